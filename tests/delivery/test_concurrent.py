"""Concurrent mode: users' own outbox handlers, no transaction open while they run, at least once."""

from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import Context, OutboxHandlerABC, OutboxMessage, Subscription, Unavailable
from tests.delivery.world import AT_ONCE, EFFECT, Noted, Placed, World, placed


class Send(OutboxHandlerABC):
    """Sends rows to a list; fails on demand."""

    subscription = Subscription(backoff=AT_ONCE, fetch_size=10)

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.contexts: list[Context] = []
        self.failing: dict[str, list[BaseException]] = {}

    def _handle(self, outbox_message: OutboxMessage, context: Any, *args: Any, **kwargs: Any) -> None:
        text = f"{outbox_message.key or ''}{outbox_message.payload['n']}"
        self.contexts.append(context)
        if self.failing.get(text):
            raise self.failing[text].pop(0)
        self.sent.append(text)


@pytest.fixture
def send(world: World) -> Send:
    """The only outbox handler."""
    handler = Send()
    world.bus.set_outbox_handlers([handler])
    return handler


def test_an_own_handler_gets_rows(world: World, send: Send) -> None:
    """The ancestor's outbox handlers: each row once, under a subscription named like the class."""
    world.register(Placed(order="a", n=1), Noted(n=2))
    report = world.process()
    assert (send.sent, report.delivered, set(report.subscriptions)) == (["a1", "2"], 2, {"Send"})
    assert world.process().delivered == 0


def test_no_transaction_is_open_while_it_runs(world: World, send: Send) -> None:
    """Its context has a session factory, not a session; the caller's session is not in a transaction."""
    world.register(Noted(n=1))
    with world.sessions() as session:
        open_transactions: list[bool] = []
        original = send._handle
        send._handle = lambda *a, **k: open_transactions.append(session.in_transaction()) or original(*a, **k)  # type: ignore[method-assign,func-returns-value]
        world.bus.process_outbox(session)
    assert open_transactions == [False]
    [context] = send.contexts
    assert "db_session" not in context
    with context.sessions() as own:
        assert own.execute(sa.select(EFFECT)).all() == []


def test_a_failure_holds_back_its_key_only(world: World, send: Send) -> None:
    """G3 in concurrent mode: followers of a failed row wait, others go on."""
    send.failing["a1"] = [ValueError("x")]
    world.register(*placed("a", [1, 2]), *placed("b", [1]))
    report = world.process()
    assert (send.sent, report.retrying, report.held) == (["b1"], 1, 1)
    world.process()
    assert send.sent == ["b1", "a1", "a2"]


def test_an_outage_keeps_what_was_sent_before_it(world: World, send: Send) -> None:
    """G8 in concurrent mode: what was confirmed before the outage is not sent again."""
    send.failing["2"] = [Unavailable("broker")]
    world.register(*[Noted(n=n) for n in range(4)])
    report = world.process()
    assert (send.sent, report.unavailable, report.retrying) == (["0", "1"], ("Send",), 0)
    assert world.process().ok
    assert send.sent == ["0", "1", "2", "3"]


def test_a_crash_redelivers_at_most_the_batch_in_hand(world: World, send: Send) -> None:
    """G2 in concurrent mode: batches recorded before a crash are not repeated, the one in hand is."""
    from datetime import timedelta

    from tests.waiting import wait_until

    send.failing["12"] = [SystemExit()]
    world.register(*[Noted(n=n) for n in range(15)])
    with pytest.raises(SystemExit):
        world.process(lease=timedelta(seconds=0.2))
    wait_until(lambda: world.process().delivered)
    assert send.sent == [*(str(n) for n in range(12)), *(str(n) for n in range(10, 15))]


def test_dispatch_in_concurrent_mode_writes_emissions_with_the_checkpoint(world: World) -> None:
    """What handlers emit without a transaction is collected and committed together with the record."""
    emitted: list[Any] = []

    def emit(event: Noted, context: Any) -> None:
        if event.n < 3:
            context.emit(Noted(n=event.n + 1))
            emitted.append(event.n)
        if event.n == 2 and emitted.count(2) == 1:
            raise ValueError("after it emitted")

    world.bus.set_event_handlers(Noted, [emit])
    world.settings(mode="concurrent")
    world.register(Noted(n=1))
    world.process()
    t = world.tables.outbox
    assert world.rows(sa.select(sa.func.count()).select_from(t)) == [(2,)]
    world.process()
    assert world.rows(sa.select(sa.func.count()).select_from(t)) == [(3,)]
    assert emitted == [1, 2, 2]
