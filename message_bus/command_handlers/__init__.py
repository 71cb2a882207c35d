"""Base classes of command handlers."""
