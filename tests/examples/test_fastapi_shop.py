"""The FastAPI example, run as its README says and asked over HTTP: it loses nothing, and it does things once.

Each test has a copy of the example in a directory of its own, and a database of its own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx
import pytest
import sqlalchemy as sa

from message_bus import MessageBusTables
from message_bus.storage.urls import place_of
from tests.docs.pages import ROOT, text_of
from tests.examples.reading import Reader
from tests.examples.serving import Server, command_in, free_port, own_tests, run, serving
from tests.waiting import async_wait_until, wait_until

EXAMPLE: Final = ROOT / "docs/examples/fastapi_shop"
README: Final = "docs/examples/fastapi_shop/README.md"
HOW_TO: Final = "docs/how-to/fastapi.md"
RELAY: Final = "message-bus process-outbox --app shop.handlers:bus"
SKUS: Final = ("tea", "coffee", "cocoa")
STOCK: Final = 10_000
TABLES: Final = MessageBusTables()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the example."""
    ignore = shutil.ignore_patterns("__pycache__", "*.db*", "mail")
    return Path(shutil.copytree(EXAMPLE, tmp_path / "fastapi_shop", ignore=ignore))


@pytest.fixture
def url(database_url: sa.URL) -> str:
    """The database of this test, as the example is told it."""
    if database_url.get_backend_name() == "sqlite":
        database_url = database_url.set(drivername="sqlite+aiosqlite")
    return database_url.render_as_string(hide_password=False)


@pytest.mark.slow
def test_the_readme_word_for_word(directory: Path, url: str) -> None:
    """A newcomer types the commands and sees what the page shows; on PostgreSQL with another URL."""
    export = "export MESSAGE_BUS_DATABASE_URL="
    with Reader(directory, ModuleType("page")) as reader:
        reader.replaced[f"{export}sqlite+aiosqlite:///shop.db"] = f"{export}{shlex.quote(url)}"
        reader.replaced["shop.db: none"] = f"{place_of(sa.make_url(url))}: none"
        reader.follow(README, commands=True)


# --- many orders, and faults ------------------------------------------------------------------------------------------


@dataclass
class Shop:
    """The example on a database: customers in front of the counter, the tests behind it."""

    directory: Path
    engine: sa.Engine
    changes: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        """Make the tables (the test of the README does it by its commands) and fill the stock."""
        specification = importlib.util.spec_from_file_location("_tables", self.directory / "shop/database.py")
        assert specification is not None
        assert specification.loader is not None
        database = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(database)
        with self.engine.begin() as connection:
            TABLES.create_all(connection)
            database.Base.metadata.create_all(connection)
            stock = [{"sku": sku, "pieces": STOCK} for sku in SKUS]
            connection.execute(sa.text("INSERT INTO stock (sku, pieces) VALUES (:sku, :pieces)"), stock)

    @contextmanager
    def serving(self, port: int, **changes: str) -> Iterator[Server]:
        """A server, started by the command of the README."""
        command = command_in(README, "uvicorn")
        with serving(
            command, directory=self.directory, changes={**self.changes, **changes}, port=port
        ) as server:
            yield server

    def order(
        self, numbers: Sequence[int], ports: Sequence[int], half_time: threading.Event | None = None
    ) -> list[int]:
        """Place an order for each number, again if there is no answer; the ids that the servers have confirmed.

        The second half begins only when `half_time` is set.
        """
        confirmed: list[int] = []
        with httpx.Client(timeout=30) as client:
            for number in numbers:
                if half_time is not None and len(confirmed) == len(numbers) // 2:
                    assert half_time.wait(30)
                confirmed.append(self._order(client, number, ports[number % len(ports)]))
        return confirmed

    def _order(self, client: httpx.Client, number: int, port: int) -> int:
        new = {"email": f"customer-{number}@example.com", "sku": SKUS[number % len(SKUS)], "pieces": 1}

        def placed() -> httpx.Response | None:
            try:
                return client.post(f"http://127.0.0.1:{port}/orders", json=new)
            except httpx.TransportError:
                return None

        answer = wait_until(placed, 30, message="no server")
        assert answer is not None
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def rows(self, query: str) -> list[sa.Row[Any]]:
        """What the database holds now; looking keeps no writer out."""
        with self.engine.connect().execution_options(sqlite_begin="DEFERRED") as connection:
            return list(connection.execute(sa.text(query)))

    def wait_until_delivered(self) -> None:
        """Return when every message has been handled by both subscriptions."""
        query = (
            "SELECT message, subscription, state FROM message_bus_outbox_delivery WHERE state <> 'delivered'"
        )
        wait_until(lambda: not self.rows(query), 30, message=f"still not delivered: {self.rows(query)}")

    def check(self, confirmed: Sequence[int]) -> None:
        """Nothing is lost, nothing was done twice, and who ordered an article first was served first."""
        orders = [row.id for row in self.rows("SELECT id FROM orders")]
        assert set(confirmed) <= set(orders)
        assert len(set(confirmed)) == len(confirmed)

        reserved = self.rows("SELECT order_id, sku FROM reservations ORDER BY id")
        assert Counter(row.order_id for row in reserved) == Counter(orders)
        left = {row.sku: row.pieces for row in self.rows("SELECT sku, pieces FROM stock")}
        assert left == {sku: STOCK - sum(row.sku == sku for row in reserved) for sku in SKUS}

        with self.engine.connect() as connection:
            outbox = TABLES.outbox.c
            messages = connection.execute(
                sa.select(outbox.id, outbox.payload).order_by(outbox.position)
            ).all()
        for sku in SKUS:
            placed = [message.payload["order_id"] for message in messages if message.payload["sku"] == sku]
            assert placed == [row.order_id for row in reserved if row.sku == sku]

        receipts = self.rows("SELECT order_id FROM receipts")
        assert sorted(row.order_id for row in receipts) == sorted(orders)
        mails = {path.stem for path in (self.directory / "mail").glob("*.json")}
        assert mails == {str(message.id) for message in messages}


@pytest.fixture
def shop(directory: Path, engine: sa.Engine, url: str) -> Shop:
    """The example, open for orders."""
    made = Shop(directory, engine, {"MESSAGE_BUS_DATABASE_URL": url})
    made.open()
    return made


@pytest.mark.slow
def test_killed_while_orders_flow_in(shop: Shop) -> None:
    """The server with the relay in it dies by SIGKILL among 200 orders, and is started again (G2, G3, G5)."""
    port = free_port()
    killed = threading.Event()
    with ThreadPoolExecutor(4) as customers:
        with shop.serving(port, SHOP_LEASE="1") as server:
            orders = [
                customers.submit(shop.order, range(first, 200, 4), [port], killed) for first in range(4)
            ]
            wait_until(lambda: len(shop.rows("SELECT id FROM reservations")) > 40, 30)
            server.kill()
            killed.set()
        with shop.serving(port, SHOP_LEASE="1"):
            confirmed = [each for some in orders for each in some.result()]
            assert len(confirmed) == 200
            shop.wait_until_delivered()
    shop.check(confirmed)


@pytest.mark.slow
def test_two_servers_at_once_end_cleanly_and_leave_the_rest_to_the_command(shop: Shop) -> None:
    """SIGTERM with mails still to be sent: the leases are given back, so another goes on without waiting (G6, G11)."""
    assert RELAY in text_of(README)
    ports = [free_port(), free_port()]
    down = shop.directory / "mail" / "down"
    down.parent.mkdir()
    down.touch()
    with shop.serving(ports[0]) as first, shop.serving(ports[1]) as second:
        with ThreadPoolExecutor(4) as customers:
            orders = [customers.submit(shop.order, range(each, 40, 4), ports) for each in range(4)]
            confirmed = [each for some in orders for each in some.result()]
        for server in (first, second):
            assert server.stop() == -signal.SIGTERM  # uvicorn has closed all, then ends itself by the signal
            assert "the relay has ended" in server.output
            assert "Application shutdown complete" in server.output
            assert "ERROR" not in server.output
    assert not shop.rows("SELECT name FROM message_bus_subscription WHERE owner IS NOT NULL")
    down.unlink()
    printed = run(RELAY, directory=shop.directory, changes=shop.changes)
    assert "busy" not in printed
    shop.check(confirmed)


# --- the example, looked at from inside -------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_own_tests_pass(directory: Path) -> None:
    """In a clone, with what the README installs and no plugin of ours: they use their own settings. Warnings are errors."""
    assert "`pip install pytest httpx`, then `pytest` in this directory" in text_of(README)
    assert "4 passed" in own_tests(directory, "-p", "anyio")  # httpx comes with it


@pytest.fixture
def application(directory: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`shop.app`, imported here; forgotten afterwards."""
    monkeypatch.setenv("MESSAGE_BUS_DATABASE_URL", url)
    monkeypatch.setenv("SHOP_MAIL", str(directory / "mail"))
    monkeypatch.syspath_prepend(directory)
    yield importlib.import_module("shop.app")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
    gc.collect()


@pytest.mark.sqlite
async def test_what_could_not_be_committed_is_not_confirmed(
    application: ModuleType, tables: MessageBusTables, engine: sa.Engine
) -> None:
    """The answer comes after the commit: if that fails, the customer hears of it, and there is no message (G1)."""
    shops_own: sa.MetaData = application.Order.metadata
    shops_own.create_all(engine)

    def fail(connection: sa.Connection) -> None:
        raise OSError("the disk is full")

    transport = httpx.ASGITransport(application.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        order = {"email": "ann@example.com", "sku": "tea", "pieces": 1}
        sa.event.listen(application.engine.sync_engine, "commit", fail)
        assert (await client.post("/orders", json=order)).status_code == 500
        sa.event.remove(application.engine.sync_engine, "commit", fail)
        assert (await client.post("/orders", json=order)).status_code == 201
    await application.engine.dispose()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.outbox)) == 1
        assert connection.scalar(sa.text("SELECT count(*) FROM orders")) == 1


async def test_the_relay_says_once_that_it_waits(
    application: ModuleType, tables: MessageBusTables, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has the leases: one line says whose, and for how long, however often it looks."""
    caplog.set_level("INFO", "shop.relay")
    subscriptions = tables.subscription
    relay = application.Relay(application.bus, application.sessions, poll=0.01)
    async with application.sessions() as session:
        await application.bus.process_outbox(session)
    with engine.begin() as connection:
        connection.execute(
            sa.update(subscriptions).values(
                owner="a dead one", lease_until=sa.text("'2999-01-01 00:00:00.000000'")
            )
        )
    looks: list[object] = []
    sa.event.listen(application.engine.sync_engine, "begin", looks.append)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run())
        await async_wait_until(lambda: "another process" in caplog.text)
        already = len(looks)
        await async_wait_until(lambda: len(looks) > already + 20)
        relay.stop()
    await application.engine.dispose()
    said = [record.getMessage() for record in caplog.records if "another process" in record.getMessage()]
    assert said == ["another process has the lease of dispatch, receipts; if it died: for at most 30 s"]


async def test_the_relay_survives_an_error(
    application: ModuleType, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It logs what went wrong, here that there are no tables, and goes on when that has been seen to."""
    relay = application.Relay(application.bus, application.sessions, poll=0.01)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run())
        await async_wait_until(lambda: caplog.text.count("the outbox could not be processed") > 1)
        with engine.begin() as connection:
            TABLES.create_all(connection)
            application.Order.metadata.create_all(connection)
        async with application.sessions.begin() as session:
            order = application.OrderPlaced(order_id=1, email="ann@example.com", sku="tea", pieces=1)
            application.bus.register_outbox_message(session, order)
        relay.wake()
        mail = Path(os.environ["SHOP_MAIL"])
        await async_wait_until(lambda: list(mail.glob("*.json")))
        relay.stop()
    await application.engine.dispose()
