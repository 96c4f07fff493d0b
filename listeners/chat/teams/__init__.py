"""Microsoft Teams: token validation, adaptive cards, the Bot Connector."""
