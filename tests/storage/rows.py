"""Rows for tests of tables and views, written as plainly as a raw INSERT."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from message_bus.storage.tables import MessageBusTables


def outbox_row(**values: Any) -> dict[str, Any]:
    """A valid row of the outbox, with some of its values replaced."""
    return {"id": uuid4(), "type": "EVENT", "message": "OrderPlaced", "payload": {"order_id": 1}, **values}


def put(connection: sa.Connection, tables: MessageBusTables, **values: Any) -> int:
    """Insert one row into the outbox and return its position."""
    outbox = tables.outbox
    position = connection.scalar(sa.insert(outbox).values(outbox_row(**values)).returning(outbox.c.position))
    assert position is not None
    return int(position)


def subscribe(
    connection: sa.Connection, tables: MessageBusTables, name: str, *checkpoints: int, log: str = "outbox"
) -> None:
    """Make a subscription with one partition per checkpoint."""
    rows = [
        {
            "name": name,
            "partition": n,
            "partitions": len(checkpoints),
            "log": log,
            "position": position,
            "epoch": 0,
        }
        for n, position in enumerate(checkpoints)
    ]
    connection.execute(sa.insert(tables.subscription), rows)


def record(
    connection: sa.Connection, tables: MessageBusTables, subscription: str, position: int, state: str
) -> None:
    """Make a delivery row."""
    connection.execute(
        sa.insert(tables.delivery).values(
            subscription=subscription, position=position, state=state, attempts=1
        )
    )
