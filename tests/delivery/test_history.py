"""The history: written with what it tells, once, by whoever has the lease; and gone with the message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from message_bus import OutboxHandlerABC, Subscription
from message_bus.delivery.housekeeping import prune
from tests.delivery.test_rules_s import lose_the_answer
from tests.delivery.world import AT_ONCE, Noted, Placed, World, placed

LONG_AGO = sa.text("'2020-01-01 00:00:00.000000'")
WEEK = timedelta(days=7)


class Send(OutboxHandlerABC):
    """Concurrent mode: fails for the numbers that it is told to, each time."""

    def __init__(self, *failing: int, **settings: Any) -> None:
        super().__init__()
        self.subscription = Subscription(**{"name": "send", "backoff": AT_ONCE, **settings})
        self.failing = failing

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        if outbox_message.payload["n"] in self.failing:
            raise ValueError(f"no {outbox_message.payload['n']}")


def history(world: World) -> list[tuple[Any, ...]]:
    """(position, what, attempt) of everything that has happened, in its order."""
    h = world.tables.history
    return world.rows(sa.select(h.c.position, h.c.what, h.c.attempt).order_by(h.c.id))


@contextmanager
def statements(world: World) -> Iterator[list[str]]:
    """What goes to the database meanwhile, each statement and COMMIT."""
    seen: list[str] = []
    engine = world.sessions.kw["bind"]

    def note(_: object, __: object, text: str, *___: object) -> None:
        seen.append(" ".join(text.split()))

    def commit(_: object) -> None:
        seen.append("COMMIT")

    sa.event.listen(engine, "before_cursor_execute", note)
    sa.event.listen(engine, "commit", commit)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
        sa.event.remove(engine, "commit", commit)


# --- once, and by whoever has the lease -------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
def test_a_worker_that_lost_its_lease_writes_no_history(world: World, mode: str) -> None:
    """G6: neither of a failure nor of a delivery; what the new owner has written stays alone."""
    t = world.tables.subscription
    stolen: list[int] = []

    def steal(_: Any) -> None:
        stolen.append(1)
        world.write(sa.update(t).values(owner="thief", epoch=t.c.epoch + 1))

    def give_back() -> None:
        world.write(sa.update(t).values(owner=None))

    world.settings(mode=mode)
    if mode == "concurrent":  # a handler has no session of its own there
        world.bus.set_event_handlers(Noted, [lambda event, context: fail_or_not(context)])
    failing = [ValueError("first"), ValueError("second")]

    def fail_or_not(context: Any) -> None:
        if "1" in world.before:
            world.before["1"](context)
        if failing:
            raise failing.pop(0)

    if mode == "transactional":
        world.fail("1", *failing)
    world.register(Noted(n=1))
    world.before["1"] = steal
    assert world.process().busy == ("dispatch",)
    assert (history(world), len(stolen)) == ([], 1)
    give_back()
    del world.before["1"]
    world.process()
    assert history(world) == [(1, "failed", 1)]
    world.before["1"] = steal
    assert world.process().busy == ("dispatch",)
    assert (history(world), len(stolen)) == ([(1, "failed", 1)], 2)


@pytest.mark.parametrize("happens", [True, False])
@pytest.mark.parametrize("attempt", [1, 2])
def test_the_answer_to_the_commit_of_a_failure_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, attempt: int, happens: bool
) -> None:
    """S1: each failure is written once, whether its commit has happened or not."""
    world.fail("1", *(ValueError(str(n)) for n in range(attempt - 1)))
    world.register(Noted(n=1))
    for _ in range(attempt - 1):
        world.process()
    tried: list[int] = []

    def fail(_: Any) -> None:
        tried.append(1)
        raise LookupError("this one")

    world.before["1"] = fail
    lose_the_answer(world, monkeypatch, when=lambda: bool(tried), happens=happens)
    world.process()
    monkeypatch.undo()
    if len(tried) == 1 and not happens:  # what has failed in a run is not tried again in that run
        world.process()
    assert history(world) == [(1, "failed", n) for n in range(1, attempt + 1)]
    assert len(tried) == (1 if happens else 2)
    del world.before["1"]
    world.process()
    assert history(world)[-1] == (1, "delivered", attempt + 1)


def test_a_batch_that_is_repeated_message_by_message(world: World) -> None:
    """The first, common attempt has failed for nobody: it is rolled back, and only the culprit's own is written."""
    world.settings(messages_per_commit=10)
    world.fail("2", 2)
    world.register(*(Noted(n=n) for n in (1, 2, 3)))
    world.process()
    assert history(world) == [(2, "failed", 1)]


def test_an_outage_is_no_failure(world: World) -> None:
    """G8: nothing is counted, so nothing is told."""
    world.fail("1", ConnectionError("out of reach"))
    world.register(Noted(n=1))
    world.process()
    assert history(world) == []


def test_what_is_written_of_an_error(world: World) -> None:
    """Type and text, at most 8 KiB, redacted as `redact=` says, without the parameters of statements or a traceback."""
    failing = sa.text("SELECT * FROM nowhere WHERE secret = :s")
    world.settings(redact=lambda text: text.replace("4711", "(number)"))
    world.before["1"] = lambda context: context.db_session.execute(failing, {"s": "hidden value"})
    world.fail("2", ValueError("card 4711 " + "é" * 20_000))
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    h = world.tables.history
    [(first,), (second,)] = world.rows(sa.select(h.c.error).order_by(h.c.position))
    assert "nowhere" in first
    assert "hidden value" not in first + second
    assert "Traceback" not in first + second
    assert second.startswith("ValueError: card (number) é")
    assert len(second.encode()) <= 8 * 1024 + 3


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_who_has_no_trouble_pays_nothing(world: World) -> None:
    """No statement of a run in which everything succeeds names the history, but the one that removes what is old."""
    world.register(*(Noted(n=n) for n in range(20)), *placed("a", range(5)))
    with statements(world) as seen:
        assert world.process().delivered == 25
    about = [each for each in seen if "message_bus_history" in each]
    assert len(about) == 1
    assert about[0].startswith("DELETE FROM message_bus_history WHERE")


@pytest.mark.parametrize("mode", ["transactional", "concurrent"])
def test_a_commit_with_failures_has_one_statement_more(world: World, mode: str) -> None:
    """However much there is to tell: failures, holds and deliveries of one batch go in at once."""
    world.settings()
    send = Send(1, 3, mode=mode, concurrency=1)
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, send] if mode == "transactional" else [send])
    world.register(*(Placed(order=order, n=n) for n, order in enumerate("abcabc")))
    with statements(world) as seen:
        world.process()
    written = [number for number, each in enumerate(seen) if "INSERT INTO message_bus_history" in each]
    commits = [seen[:number].count("COMMIT") for number in written]
    assert len(commits) == len(set(commits))
    if mode == "concurrent":
        assert len(written) == 1
        assert history(world) == [(2, "failed", 1), (4, "failed", 1), (5, "held", None)]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "condition", ["message_id = '00000000-0000-0000-0000-000000000001'", "happened_at < '2001-01-01'"]
)
def test_the_history_is_found_by_an_index(world: World, condition: str) -> None:
    """By the message, for `why` and for what is pruned with it; by its age, for what is left behind."""
    fill = (
        "INSERT INTO message_bus_history (subscription, log, position, message_id, what, happened_at)"
        " SELECT 'mail', 'outbox', n, gen_random_uuid(), 'held', timestamptz '2000-01-01' + n * interval '1 day'"
        " FROM generate_series(1, 5000) n"
    )
    with world.sessions() as session:  # what a plan costs is to be seen only in a table that holds something
        session.execute(sa.text(fill))
        session.execute(sa.text("ANALYZE message_bus_history"))
        query = f"EXPLAIN SELECT id FROM message_bus_history WHERE {condition} ORDER BY happened_at LIMIT 10"
        plan = "\n".join(session.scalars(sa.text(query)))
    assert f"message_bus_history_{condition.split(maxsplit=1)[0]}_idx" in plan


# --- retention --------------------------------------------------------------------------------------------------------


def pruned(world: World, *, older_than: timedelta = WEEK) -> int:
    """Let retention do its work."""
    with world.sessions() as session:
        return prune(session, world.tables, older_than=older_than)


def age(world: World, *names: str) -> None:
    """Let what is in these tables be years old."""
    for name in names:
        table = getattr(world.tables, name)
        column = "happened_at" if name == "history" else "created_at"
        world.write(sa.update(table).values({column: LONG_AGO}))


def test_it_goes_with_its_message(world: World) -> None:
    """When retention takes the message, what has happened to it goes in the same batch; what is young stays."""
    world.fail("1", 1)
    world.fail("2", 1)
    world.register(Noted(n=1))
    world.process()
    world.process()
    age(world, "outbox")
    world.register(Noted(n=2))
    world.process()
    world.process()
    assert [each[:2] for each in history(world)] == [(2, "failed"), (2, "delivered")]
    assert world.rows(sa.select(world.tables.outbox.c.position)) == [(2,)]


def test_what_is_not_done_keeps_its_history(world: World) -> None:
    """G9: retrying, held or dead, however old; and so does what some subscription has not passed."""
    world.settings(max_attempts=2)
    world.fail("a:1", 2)
    world.fail("b:1", 1)
    world.fail("c:1", 1)
    world.register(*placed("a", [1]), *placed("b", [1, 2]), *placed("c", [1]))
    world.process(limit=3)
    world.process(limit=1)
    before = history(world)
    assert {each[1] for each in before} == {"failed", "dead", "held"}
    age(world, "outbox", "history")
    pruned(world)
    done = {position for position, _ in world.rows(sa.select(world.tables.outbox.c.position, sa.literal(1)))}
    assert history(world) == [each for each in before if each[0] in done]
    assert {each[1] for each in history(world)} == {"failed", "dead", "held"}


def test_what_some_subscription_waits_for_keeps_its_history(world: World) -> None:
    """G9: it stays as long as its message does, however old it is."""
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Send(name="late", start="beginning")])
    world.fail("1", 1)
    world.register(Noted(n=1))
    for _ in range(2):
        world.process(only=["dispatch"])
    age(world, "outbox", "history")
    assert pruned(world) == 0
    assert [each[1] for each in history(world)] == ["failed", "delivered"]
    world.process()
    assert history(world) == []


@pytest.mark.parametrize("batch", [1_000, 2])
def test_what_is_left_behind_goes_by_its_age(
    world: World, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """An older version, or somebody by hand, has removed the messages: batch by batch, however many there are."""
    monkeypatch.setattr("message_bus.delivery.housekeeping.BATCH", batch)
    for n in range(5):
        world.fail(str(n), 1)
        world.register(Noted(n=n))
    world.process()
    world.process()
    assert len(history(world)) == 10
    o = world.tables.outbox
    world.write(sa.delete(o), sa.update(world.tables.log).values(pruned_to=5))
    pruned(world)
    assert len(history(world)) == 10  # it is young
    age(world, "history")
    pruned(world)
    assert history(world) == []


def test_what_has_happened_to_events_goes_by_its_age(world: World) -> None:
    """They are never pruned: their history is, but not that of a dead letter."""
    row = {"subscription": "orders", "log": "events", "what": "failed", "attempt": 1}
    h, d, s = world.tables.history, world.tables.delivery, world.tables.subscription
    world.process()
    world.write(
        sa.insert(s).values(name="orders", partition=0, log="events", position=9, epoch=1),
        sa.insert(d).values(subscription="orders", position=2, state="dead"),
        sa.insert(h).values([{**row, "position": n, "message_id": UUID(int=n)} for n in (1, 2, 3)]),
        sa.update(h).where(h.c.position != 3).values(happened_at=LONG_AGO),
    )
    pruned(world)
    assert [each[0] for each in history(world)] == [2, 3]


def test_without_a_subscription_nothing_of_the_outbox_goes(world: World) -> None:
    """S4: as the messages, so their history."""
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    age(world, "outbox", "history")
    world.write(sa.delete(world.tables.subscription), sa.delete(world.tables.delivery))
    assert pruned(world) == 0
    assert history(world) == [(1, "failed", 1)]
