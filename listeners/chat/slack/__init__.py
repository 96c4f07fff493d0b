"""Slack: Bolt for what comes in, the Web API for what goes out."""
