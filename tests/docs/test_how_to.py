"""What the how-to pages show but cannot run on every database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import AsyncMessageBus, MessageBus, MessageBusTables, SQLAlchemyOutBoxRepo, check_schema
from tests.docs.pages import Walk
from tests.docs.test_pages import on_postgresql
from tests.waiting import wait_until


@pytest.fixture
def tenants(engine: sa.Engine) -> Iterator[list[str]]:
    """Names of two schemas that are gone after the test."""
    names = [f"tenant_{uuid4().hex[:8]}" for _ in range(2)]
    yield names
    with engine.begin() as connection:
        for name in names:
            connection.execute(sa.schema.DropSchema(name, cascade=True, if_exists=True))


@pytest.mark.postgresql
def test_a_schema_for_each_tenant(
    walk: Walk,
    database_url: sa.URL,
    engine: sa.Engine,
    tenants: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`upgrade_all` and `deliver_all` of own-models.md: each tenant's messages are delivered from the tenant's schema."""
    walk.replaced = on_postgresql(database_url)
    walk.follow("docs/how-to/own-models.md")
    page: ModuleType = walk.module
    page.bus.set_event_handlers(page.OrderPlaced, [])
    page.upgrade_all(tenants)
    for count, tenant in enumerate(tenants, 1):
        with page.engine_for(tenant).connect() as connection:
            check_schema(connection, MessageBusTables())
        with Session(page.engine_for(tenant)) as session, session.begin():
            for _ in range(count):
                page.bus.register_outbox_message(session, page.OrderPlaced(order_id=7))
    seen: list[int] = []
    page.bus.set_event_handlers(page.OrderPlaced, [lambda event: seen.append(event.order_id)])
    page.deliver_all(tenants)
    assert capsys.readouterr().out.split() == [tenants[0], "1", tenants[1], "2"]
    for tenant in tenants:
        with Session(page.engine_for(tenant)) as session:
            assert SQLAlchemyOutBoxRepo(session).list_unprocessed() == []
    with engine.connect() as connection:
        assert not sa.inspect(connection).has_table("message_bus_subscription", schema="public")


def test_view_and_triggers_are_made_by_the_four_lines(walk: Walk, engine: sa.Engine, tmp_path: Path) -> None:
    """own-models.md: an application's own Alembic, from an empty directory to tables that check_schema accepts."""
    from alembic import command
    from alembic.config import Config

    directory = tmp_path / "migrations"
    config = Config(tmp_path / "alembic.ini")
    config.set_main_option("script_location", str(directory))
    command.init(config, str(directory))
    tables = MessageBusTables(sa.MetaData())
    (directory / "env.py").write_text(ENV)
    with engine.begin() as connection:
        config.attributes.update(connection=connection, target_metadata=tables.metadata)
        command.revision(config, "outbox", autogenerate=True)
        [script] = (directory / "versions").glob("*_outbox.py")
        made = script.read_text()
        assert made.count("# ### end Alembic commands ###") == 2
        script.write_text(
            made.replace(
                "import sqlalchemy as sa\n",
                "import sqlalchemy as sa\nfrom message_bus import MessageBusTables\n"
                "from message_bus.storage.event_guard import create_guard\n"
                "from message_bus.storage.views import create_view\n",
            ).replace(
                "    # ### end Alembic commands ###",
                "    create_view(op.get_bind(), MessageBusTables())\n"
                "    create_guard(op.get_bind(), MessageBusTables())",
                1,
            )
        )
        command.upgrade(config, "head")
        check_schema(connection, tables)


@pytest.fixture
def limits(walk: Walk) -> ModuleType:
    """The page about middleware, with its token bucket."""
    walk.follow("docs/how-to/middleware.md")
    return walk.module


def test_threads_share_a_token_bucket(limits: ModuleType) -> None:
    """middleware.md: of 400 calls from 8 threads, as many pass as there are tokens, never one more."""
    bucket = limits.TokenBucket(rate=1, burst=50, clock=lambda: 0.0)
    bus = MessageBus(
        command_handlers={limits.PlaceOrder: lambda command: "placed"},
        middleware=[limits.rate_limited(bucket)],
    )
    start = threading.Barrier(8)

    def calls(_: int) -> int:
        start.wait()
        passed = 0
        for _ in range(50):
            with suppress(limits.RateLimitExceeded):
                passed += bus.ask(limits.PlaceOrder(customer="ann")) == "placed"
        return passed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(calls, range(8))) == 50


async def test_tasks_share_a_token_bucket(walk: Walk) -> None:
    """middleware.md: the same for tasks on an AsyncMessageBus."""
    await asyncio.to_thread(walk.follow, "docs/how-to/middleware.md")  # which runs event loops of its own
    page: ModuleType = walk.module
    bucket = page.TokenBucket(rate=1, burst=50, clock=lambda: 0.0)

    async def place(command: Any) -> str:
        await asyncio.sleep(0)
        return "placed"

    bus = AsyncMessageBus(
        command_handlers={page.PlaceOrder: place}, middleware=[page.async_rate_limited(bucket)]
    )
    calls = [bus.ask(page.PlaceOrder(customer="ann")) for _ in range(200)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert ended.count("placed") == 50
    assert sum(isinstance(each, page.RateLimitExceeded) for each in ended) == 150


def test_a_rate_limit_behind_the_outbox(limits: ModuleType, engine: sa.Engine) -> None:
    """middleware.md: a message over the limit is tried again when there is a token, and is no failure of its handler."""
    MessageBusTables().create_all(engine)
    bucket = limits.TokenBucket(rate=1_000_000, burst=1, clock=iter([0.0, 0.0, 0.0, 1.0]).__next__)
    seen: list[str] = []
    bus = MessageBus(
        event_handlers={limits.OrderPlaced: [lambda event: seen.append(event.customer)]},
        middleware=[limits.rate_limited(bucket)],
    )
    with Session(engine) as session:
        for customer in ("ann", "bob"):
            bus.register_outbox_message(session, limits.OrderPlaced(customer=customer))
        session.commit()
        report = bus.process_outbox(session)
        assert (report.delivered, report.retrying, seen) == (1, 1, ["ann"])
        wait_until(lambda: bus.process_outbox(session).delivered)
    assert seen == ["ann", "bob"]


ENV = """
from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["target_metadata"],
)
with context.begin_transaction():
    context.run_migrations()
"""


@pytest.mark.slow
def test_the_fixtures_of_the_page_about_testing(walk: Walk, database_url: sa.URL) -> None:
    """testing.md word for word: the files are saved, and pytest runs them; on PostgreSQL with other engines only."""
    if database_url.get_backend_name() == "postgresql":
        walk.replaced = on_postgresql(database_url)
    walk.follow("docs/how-to/testing.md", commands=True)
