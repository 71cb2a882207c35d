"""`retry_on_conflict`: again after a ConcurrencyError, and after nothing else."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AggregateRepository,
    AsyncAggregateRepository,
    AsyncMessageBus,
    AsyncSQLAlchemyEventStore,
    Command,
    ConcurrencyError,
    FixedDelay,
    InMemoryAsyncEventStore,
    InMemoryEventStore,
    MessageBusTables,
    NoRetry,
    SettingsError,
    SQLAlchemyEventStore,
    retry_on_conflict,
)
from tests.eventsourcing.orders import Order, an_order

AT_ONCE = FixedDelay(0)


def failing(times: int, error: Exception | None = None) -> tuple[list[int], Callable[[], str]]:
    """Work that fails that many times, and the list of its calls."""
    calls: list[int] = []

    def work() -> str:
        calls.append(len(calls) + 1)
        if len(calls) <= times:
            raise error or ConcurrencyError("o-1", 1, 2)
        return f"done at {len(calls)}"

    return calls, work


def test_a_conflict_is_tried_again_and_the_result_returned() -> None:
    """The ancestor dropped it."""
    calls, work = failing(2)
    assert retry_on_conflict(work, backoff=AT_ONCE) == "done at 3"
    assert calls == [1, 2, 3]


def test_the_last_conflict_is_raised() -> None:
    """After as many attempts as were asked for, with a note; a policy may end it earlier."""
    calls, work = failing(9)
    with pytest.raises(ConcurrencyError) as caught:
        retry_on_conflict(work, attempts=4, backoff=AT_ONCE)
    assert (len(calls), caught.value.__notes__) == (4, ["(this was attempt 4 of 4)"])
    calls, work = failing(9)
    with pytest.raises(ConcurrencyError):
        retry_on_conflict(work, attempts=4, backoff=NoRetry())
    assert calls == [1]


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), ValueError("a rule"), KeyError("x"), ConnectionError()]
)
def test_programming_errors_and_rules_are_not_retried(error: Exception) -> None:
    """The ancestor repeated them all."""
    calls, work = failing(1, error)
    with pytest.raises(type(error)):
        retry_on_conflict(work, backoff=AT_ONCE)
    assert calls == [1]


async def test_what_returns_an_awaitable_is_awaited() -> None:
    """Coroutine functions and lambdas around them."""
    calls, work = failing(2)

    async def later() -> str:
        await asyncio.sleep(0)
        return work()

    assert await retry_on_conflict(later, backoff=AT_ONCE) == "done at 3"
    calls.clear()
    assert await retry_on_conflict(lambda: asyncio.wait_for(later(), 60), backoff=AT_ONCE) == "done at 3"
    calls.clear()
    with pytest.raises(ConcurrencyError):
        await retry_on_conflict(later, attempts=2, backoff=AT_ONCE)
    assert calls == [1, 2]


async def test_as_a_decorator() -> None:
    """With arguments, of both colours; a bus sees that the async one is async."""
    calls, work = failing(1)

    @retry_on_conflict(attempts=2, backoff=AT_ONCE)
    def now(prefix: str, *, end: str) -> str:
        """Say so."""
        return prefix + work() + end

    assert (now("(", end=")"), now.__doc__) == ("(done at 2)", "Say so.")
    calls.clear()

    @retry_on_conflict(backoff=AT_ONCE)
    async def later(command: Any, context: Any) -> str:
        return work()

    class Ship(Command):
        pass

    assert inspect.iscoroutinefunction(later)
    assert await AsyncMessageBus(command_handlers={Ship: later}).ask(Ship()) == "done at 2"


def test_it_waits_as_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts only, longer each time by default, with full jitter."""
    waited: list[float] = []
    monkeypatch.setattr("message_bus.eventsourcing.aggregates.conflicts.pause", waited.append)

    class Counting:
        def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta:
            assert 0 <= chance < 1
            return timedelta(seconds=attempt)

    retry_on_conflict(failing(2)[1], backoff=Counting())
    assert waited == [1.0, 2.0]
    retry_on_conflict(failing(2)[1])
    assert waited[2] <= 0.01
    assert waited[3] <= 0.02


def test_wrong_calls_are_refused() -> None:
    """No attempts; a decorator without its parentheses; work that needs arguments."""
    for attempts in (0, -1, 2.5, True):
        with pytest.raises(SettingsError, match="attempts"):
            retry_on_conflict(lambda: None, attempts=attempts)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"write @retry_on_conflict\(\)"):

        @retry_on_conflict  # type: ignore[arg-type]
        def ship(order_id: str) -> None: ...


# --- with aggregates ------------------------------------------------------------------------------------------


def test_each_attempt_loads_again() -> None:
    """The rival's event is in the state that the second attempt decides on."""
    store = InMemoryEventStore()
    repository = AggregateRepository(store, Order)
    repository.save(an_order())
    seen: list[Decimal] = []

    def pay() -> Decimal:
        order = repository.load("o-1")
        seen.append(order.paid)
        if len(seen) == 1:
            rival = repository.load("o-1")
            rival.pay(5)
            repository.save(rival)
        order.pay(1)
        repository.save(order)
        return order.paid

    assert retry_on_conflict(pay, backoff=AT_ONCE) == Decimal(6)
    assert seen == [Decimal(0), Decimal(5)]


def test_of_threads_that_decide_at_once_one_wins(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """G12: all have loaded the unpaid order before one of them saves; it is paid once, the others see that it is."""
    with session_factory.begin() as session:
        AggregateRepository(SQLAlchemyEventStore(session), Order).save(an_order())
    all_have_loaded = threading.Barrier(4)

    def pay(_: int) -> bool:
        first = [True]

        def attempt() -> bool:
            with session_factory.begin() as session:
                order = AggregateRepository(SQLAlchemyEventStore(session), Order).load("o-1")
            if first and first.pop():
                all_have_loaded.wait(60)
            if order.paid:
                return False
            order.pay(1)
            with session_factory.begin() as session:
                AggregateRepository(SQLAlchemyEventStore(session), Order).save(order)
            return True

        return retry_on_conflict(attempt, attempts=100)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(pay, range(4))) == 1
    with session_factory() as session:
        order = AggregateRepository(SQLAlchemyEventStore(session), Order).load("o-1")
    assert (order.paid, order.version) == (Decimal(1), 2)


async def test_of_tasks_that_decide_at_once_one_wins() -> None:
    """The same on asyncio, in memory."""
    repository = AsyncAggregateRepository(InMemoryAsyncEventStore(), Order)
    await repository.save(an_order())

    @retry_on_conflict(attempts=100)
    async def pay() -> bool:
        order = await repository.load("o-1")
        await asyncio.sleep(0)
        if order.paid:
            return False
        order.pay(1)
        await repository.save(order)
        return True

    assert sum(await asyncio.gather(*(pay() for _ in range(20)))) == 1
    assert (await repository.load("o-1")).paid == Decimal(1)


async def test_inside_the_callers_transaction(
    async_session_factory: async_sessionmaker[AsyncSession], async_tables: MessageBusTables
) -> None:
    """READ COMMITTED: after a conflict the same transaction sees what the rival committed, and goes on (G12)."""
    async with async_session_factory.begin() as session:
        await AsyncAggregateRepository(AsyncSQLAlchemyEventStore(session), Order).save(an_order())
    async with async_session_factory() as session:
        repository = AsyncAggregateRepository(AsyncSQLAlchemyEventStore(session), Order)
        stale = await repository.load("o-1")
        stale.pay(1)
        await session.rollback()
        async with async_session_factory.begin() as other:
            rival = AsyncAggregateRepository(AsyncSQLAlchemyEventStore(other), Order)
            theirs = await rival.load("o-1")
            theirs.pay(5)
            await rival.save(theirs)
        orders = [stale]

        async def pay() -> None:
            order = orders.pop() if orders else await repository.load("o-1")
            if not order.uncommitted_events:
                order.pay(1)
            await repository.save(order)

        await retry_on_conflict(pay, backoff=AT_ONCE)
        await session.commit()
        assert (await repository.load("o-1")).paid == Decimal(6)
