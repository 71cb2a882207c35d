"""Tests of the shop without a server: requests, handlers and messages in a transaction that is rolled back."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from message_bus import MessageBusTables, configure_sqlite
from message_bus.testing import drain
from shop.app import app, reading, transaction
from shop.database import Base, Order, Reservation, Stock
from shop.handlers import bus

pytestmark = pytest.mark.anyio
ORDER = {"email": "ann@example.com", "sku": "tea", "pieces": 2}


@pytest.fixture
def anyio_backend() -> str:
    """Run the tests in asyncio."""
    return "asyncio"


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[AsyncSession]:
    """A session that may commit; what it has committed is rolled back at the end."""
    engine = configure_sqlite(create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db"))
    async with engine.connect() as connection:
        outer = await connection.begin()
        await connection.run_sync(MessageBusTables().create_all)
        await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await outer.rollback()
    await engine.dispose()


@pytest.fixture
async def client(session: AsyncSession) -> AsyncIterator[httpx.AsyncClient]:
    """Sends requests to the application, which works in the session of the test."""

    async def of_the_test() -> AsyncIterator[AsyncSession]:
        async with session.begin_nested():
            yield session

    app.dependency_overrides = {reading: of_the_test, transaction: of_the_test}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        yield client
    app.dependency_overrides = {}


class Mails(list[str]):
    """In place of the mailer: the addresses that mails were sent to."""

    async def send(self, to: str, text: str, *, idempotency_key: str) -> None:
        """Send a mail."""
        self.append(to)


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Mails:
    """What the handlers find in their context."""
    mails = Mails()
    monkeypatch.setitem(bus.context, "mailer", mails)
    return mails


async def test_an_order_is_reserved_and_gets_its_receipt(
    client: httpx.AsyncClient, session: AsyncSession, mails: Mails
) -> None:
    """Both handlers run when the outbox is drained, and the request's id reaches them."""
    await client.put("/stock/tea", json={"pieces": 5})
    placed = await client.post("/orders", json=ORDER, headers={"X-Request-ID": "r-1"})
    assert (placed.status_code, placed.headers["X-Request-ID"]) == (201, "r-1")

    assert (await drain(bus, session)).ok

    shown = (await client.get(f"/orders/{placed.json()['id']}")).json()
    assert (shown["stock"], shown["receipt"], shown["request_id"]) == ("reserved", "sent", "r-1")
    assert (await session.get_one(Stock, "tea")).pieces == 3
    assert mails == ["ann@example.com"]


async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient) -> None:
    """What comes from outside must be short and plain to be taken along."""
    answer = await client.get("/orders/1", headers={"X-Request-ID": "x" * 65})
    assert answer.status_code == 404
    assert len(answer.headers["X-Request-ID"]) == 36  # a UUID


async def test_an_order_for_nothing_is_refused(client: httpx.AsyncClient, session: AsyncSession) -> None:
    """Neither an order nor a message is stored."""
    refused = await client.post("/orders", json={**ORDER, "pieces": 0})
    assert refused.status_code == 422
    assert await session.scalar(select(func.count()).select_from(Order)) == 0
    assert (await drain(bus, session)).delivered == 0


async def test_what_nobody_has_ever_stocked_is_a_dead_letter(
    client: httpx.AsyncClient, session: AsyncSession, mails: Mails
) -> None:
    """The order stays, nothing is reserved, and the report says so; the receipt is mailed all the same."""
    await client.post("/orders", json={**ORDER, "sku": "unicorn"})
    report = await drain(bus, session)
    assert report.subscriptions["dispatch"].dead == 1
    assert report.subscriptions["receipts"].delivered == 1
    assert await session.scalar(select(func.count()).select_from(Reservation)) == 0
