"""Outbox handlers: what subscriptions call with the rows of the outbox."""

from __future__ import annotations

from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler

__all__ = ["DispatchOutboxHandler"]
