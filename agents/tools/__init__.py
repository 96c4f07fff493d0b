"""Typed tools: what the agents can do, and nothing else."""
