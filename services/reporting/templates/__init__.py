"""Jinja2 templates of the reports; a package so that they travel as package data."""
