"""What belongs together stays together: contexts of dispatches, sessions of tenants, tables of relays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Context,
    MessageBus,
    MessageBusTables,
    Relay,
    SQLAlchemyOutBoxRepo,
    Subscription,
)
from tests.delivery.world import Noted, World
from tests.waiting import wait_until


def test_a_dispatch_has_a_context_of_its_own() -> None:
    """What a handler puts into its context is seen by its cascade, and neither by the bus nor by the next dispatch."""
    bus = MessageBus()
    bus.context["shared"] = "by all"
    seen: list[dict[str, Any]] = []

    def note(event: Noted, context: Context) -> None:
        seen.append(dict(context))
        context["user"] = event.n

    bus.set_event_handlers(Noted, [note])
    bus.handle(Noted(n=1), context={"request": 1})
    bus.handle(Noted(n=2))
    assert seen == [{"shared": "by all", "request": 1}, {"shared": "by all"}]
    assert bus.context == {"shared": "by all"}


async def test_an_async_dispatch_has_one_too() -> None:
    """The same for tasks that handle at once."""
    bus = AsyncMessageBus()
    seen: list[dict[str, Any]] = []

    async def note(event: Noted, context: Context) -> None:
        seen.append(dict(context))
        context["user"] = event.n

    bus.set_event_handlers(Noted, [note])
    await bus.batch_handle([Noted(n=1), Noted(n=2)])
    assert seen == [{}, {}]


def test_a_transaction_holds_one_message_unless_more_are_asked_for(world: World) -> None:
    """Row-level security: what one handler sets with SET LOCAL (here: in the session) does not reach the next message."""
    assert Subscription().messages_per_commit == 1
    seen: list[object] = []
    marks = iter("abc")

    def look(context: Any) -> None:
        transaction = context.db_session.get_transaction()
        seen.append(getattr(transaction, "tenant", None))
        transaction.tenant = next(marks)

    world.before = {"1": look, "2": look, "3": look}
    world.register(Noted(n=1), Noted(n=2), Noted(n=3))
    assert world.process().delivered == 3
    assert seen == [None, None, None]


@pytest.fixture
def tenants(engine: sa.Engine) -> Iterator[list[MessageBusTables]]:
    """The tables of two tenants, each in a schema of its own."""
    found = [MessageBusTables(schema=f"tenant_{uuid4().hex[:8]}") for _ in range(2)]
    with engine.begin() as connection:
        for tables in found:
            connection.execute(sa.schema.CreateSchema(str(tables.schema)))
            tables.create_all(connection)
    yield found
    with engine.begin() as connection:
        for tables in found:
            connection.execute(sa.schema.DropSchema(str(tables.schema), cascade=True))


@pytest.mark.postgresql
def test_one_relay_serves_one_set_of_tables(engine: sa.Engine, tenants: list[MessageBusTables]) -> None:
    """The relay of one tenant delivers what that tenant has written, and touches nothing of the other's."""
    bus = MessageBus()
    done = threading.Event()
    seen: list[int] = []

    def note(event: Noted) -> None:
        seen.append(event.n)
        if len(seen) == 2:
            done.set()

    bus.set_event_handlers(Noted, [note])
    mine, theirs = tenants
    with Session(engine) as session:
        for tables, numbers in ((theirs, (10, 20)), (mine, (1, 2))):
            repo = SQLAlchemyOutBoxRepo(session, tables=tables)
            for number in numbers:
                bus.register_outbox_message(repo, Noted(n=number))
        session.commit()
    with Relay(bus, sessionmaker(engine), tables=mine, poll=timedelta(seconds=0.1)):
        assert done.wait(20)
        wait_until(lambda: _count(engine, mine.subscription) == 1)
    assert seen == [1, 2]
    assert _count(engine, theirs.subscription) == 0


def _count(engine: sa.Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
