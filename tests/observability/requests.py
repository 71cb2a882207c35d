"""A web request that registers messages in a trace of its own, and what was stored of it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from opentelemetry.trace import SpanKind

from tests.delivery.world import World
from tests.observability.spans import Recorded


def request(world: World, recorded: Recorded, *messages: Any) -> Any:
    """A web request that registers messages; its span."""
    with recorded.web.start_as_current_span("POST /orders", kind=SpanKind.SERVER) as span:
        world.register(*messages)
    return span


def headers(world: World) -> list[dict[str, str]]:
    """The headers of all messages in the outbox."""
    t = world.tables.outbox
    return [row[0] for row in world.rows(sa.select(t.c.headers).order_by(t.c.position))]
