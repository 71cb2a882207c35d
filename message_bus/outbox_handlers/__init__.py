"""Outbox handlers: what subscriptions call with the rows of the outbox."""
