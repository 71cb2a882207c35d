"""Base classes of event handlers."""
