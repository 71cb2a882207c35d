"""Finding, replaying and discarding dead letters, on both databases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import scoped_session

from message_bus import (
    DeadLetters,
    DispatchOutboxHandler,
    Event,
    MessageBus,
    Reject,
    SettingsError,
    Subscription,
    UnsupportedDatabase,
    WiringError,
)
from message_bus.admin import AsyncDeadLetters, DeadLetter
from message_bus.storage.types import utc_now
from tests.admin.operators import LONG_AGO, discard, letters, replay, states
from tests.delivery.world import AT_ONCE, Noted, Pay, Placed, World, placed
from tests.waiting import wait_until

SOON = datetime(2100, 1, 1, tzinfo=UTC)
ONCE = datetime(2000, 1, 1, tzinfo=UTC)


def kill(world: World, *messages: Placed | Noted | Pay, error: BaseException | None = None) -> None:
    """Register messages whose first attempt kills them."""
    notes: dict[type[Placed | Noted | Pay], Callable[[Any], str]] = {
        Placed: lambda m: f"{m.order}:{m.n}",
        Noted: lambda m: str(m.n),
        Pay: lambda m: f"pay {m.n}",
    }
    for message in messages:
        world.fail(notes[type(message)](message), error or ValueError(f"failure {message.n}"))
    world.register(*messages)
    world.process()


def two_subscriptions(world: World) -> None:
    """Both deliver the same messages to the same handlers."""
    world.bus.set_outbox_handlers(
        [
            DispatchOutboxHandler(subscription=Subscription(name=name, max_attempts=1, backoff=AT_ONCE))
            for name in ("first", "second")
        ]
    )


# --- finding ----------------------------------------------------------------------------------------------------------


def test_what_a_dead_letter_says(world: World) -> None:
    """G7: whose it is, which message, how often it was tried, what went wrong and when; no payload, no meta."""
    kill(world, Placed(order="a", n=1))
    [letter] = letters(world)
    d, o = world.tables.delivery, world.tables.outbox
    [(message_id, created_at)] = world.rows(sa.select(o.c.id, o.c.created_at))
    [(failed_at,)] = world.rows(sa.select(d.c.updated_at))
    assert replace(letter, traceback=None) == DeadLetter(
        subscription="dispatch",
        position=1,
        id=message_id,
        type="EVENT",
        message="Placed",
        key="a",
        attempts=1,
        error="ValueError: failure 1",
        traceback=None,
        failed_at=failed_at,
        created_at=created_at,
    )
    assert "ValueError: failure 1" in (letter.traceback or "")
    with pytest.raises(FrozenInstanceError):
        letter.key = "b"  # type: ignore[misc]


def test_payloads_are_read_only_on_request(world: World) -> None:
    """They may hold secrets: they are read only with payload=True, and no repr shows them."""
    world.fail("a:1", 1)
    world.register(Placed(order="a", n=1), meta={"user": "ann"})
    world.process()
    [letter] = letters(world)
    assert (letter.payload, letter.meta) == (None, None)
    [letter] = letters(world, payload=True)
    assert (letter.payload, letter.meta) == ({"order": "a", "n": 1}, {"user": "ann"})
    assert "ann" not in repr(letter)
    with world.sessions() as session:
        shown = DeadLetters(session).get(letter.id or "", payload=True)
    assert shown == letter


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        ({}, [1, 2, 4]),
        ({"subscription": "dispatch"}, [1, 2, 4]),
        ({"subscription": "other"}, []),
        ({"message": "Noted"}, [2]),
        ({"message": "noted"}, []),
        ({"error": "failure"}, [1, 2]),
        ({"error": "FAILURE 1"}, [1]),
        ({"error": "100% sure_"}, [4]),
        ({"error": "%"}, [4]),
        ({"error": "failure_1"}, []),
        ({"since": ONCE, "until": SOON}, [1, 2, 4]),
        ({"since": SOON}, []),
        ({"until": ONCE}, []),
        ({"ids": []}, []),
        ({"error": "failure", "message": "Placed"}, [1]),
    ],
)
def test_a_selection(world: World, selection: dict[str, Any], found: list[int]) -> None:
    """All that is given must fit; `list` and `count` agree; what is not dead is never found."""
    kill(world, Placed(order="a", n=1), Noted(n=2))
    world.register(Noted(n=3))
    kill(world, Pay(n=4), error=Reject("100% sure_"))
    world.settings(max_attempts=9)
    world.fail("b:5", 1)
    world.register(*placed("b", [5, 6]))
    world.process()
    assert states(world) == {1: "dead", 2: "dead", 4: "dead", 5: "retrying", 6: "held"}
    assert [letter.position for letter in letters(world, **selection)] == found
    with world.sessions() as session:
        assert DeadLetters(session).count(**selection) == len(found)


def test_a_selection_by_time(world: World) -> None:
    """Died at or after `since`, before `until`; times are aware, in whatever zone."""
    kill(world, Noted(n=1), Noted(n=2))
    d = world.tables.delivery
    for position, hour in ((1, 10), (2, 12)):
        at = datetime(2026, 1, 1, hour, tzinfo=UTC)
        world.write(sa.update(d).where(d.c.position == position).values(updated_at=at))
    ten = datetime.fromisoformat("2026-01-01T12:00:00+02:00")
    assert [each.position for each in letters(world, since=ten)] == [1, 2]
    assert [each.position for each in letters(world, since=ten + timedelta(microseconds=1))] == [2]
    assert [each.position for each in letters(world, until=ten)] == []
    assert [each.position for each in letters(world, until=ten + timedelta(hours=2))] == [1]


def test_a_selection_by_id(world: World) -> None:
    """Ids as UUIDs or as text; one that is no dead letter is not found."""
    kill(world, Noted(n=1), Noted(n=2))
    world.register(Noted(n=3), id=(delivered := uuid4()))
    world.process()
    [first, second] = letters(world)
    assert letters(world, ids=[str(second.id), delivered, uuid4()]) == [second]
    with world.sessions() as session:
        dead_letters = DeadLetters(session)
        assert dead_letters.get(str(first.id)) == first
        assert dead_letters.get(delivered) is None


def test_a_message_that_is_dead_twice(world: World) -> None:
    """Each subscription has a letter of its own; `get` wants to know which one."""
    two_subscriptions(world)
    world.fail("1", 2)
    world.register(Noted(n=1))
    world.process()
    [first, second] = letters(world)
    assert (first.subscription, second.subscription, first.id) == ("first", "second", second.id)
    with world.sessions() as session:
        dead_letters = DeadLetters(session)
        assert dead_letters.get(first.id or "", "second") == second
        with pytest.raises(SettingsError, match=r"dead in 'first', 'second' \(say which: subscription="):
            dead_letters.get(first.id or "")


def test_page_by_page(world: World) -> None:
    """`after` is the last letter of the page before; a page may end between two letters of one message."""
    two_subscriptions(world)
    for n in range(3):
        world.fail(str(n), 2)
    world.register(*[Noted(n=n) for n in range(3)])
    world.process()
    everything = letters(world)
    assert len(everything) == 6
    for size in (1, 2, 4, 5, 100):
        pages: list[DeadLetter] = []
        while page := letters(world, limit=size, after=pages[-1] if pages else None):
            assert len(page) <= size
            pages += page
        assert pages == everything
    assert letters(world, limit=None) == everything


@pytest.mark.parametrize(
    "call",
    [
        lambda dead_letters: dead_letters.list(since=datetime(2026, 1, 1)),
        lambda dead_letters: dead_letters.list(limit=0),
        lambda dead_letters: dead_letters.count(ids=["x"]),
        lambda dead_letters: dead_letters.replay(),
        lambda dead_letters: dead_letters.discard(),
        lambda dead_letters: dead_letters.replay(everything=True, message="x"),
        lambda dead_letters: dead_letters.replay(everything=True, per_second=0),
        lambda dead_letters: dead_letters.discard(everything=True, limit=-1),
    ],
)
def test_what_is_refused(world: World, call: Callable[[DeadLetters], Any]) -> None:
    """A naive time, no selection at all, a limit of nothing: before anything is asked of the database."""
    kill(world, Noted(n=1))
    with world.sessions() as session, pytest.raises(SettingsError):
        call(DeadLetters(session))
    assert states(world) == {1: "dead"}


def test_where_it_works(world: World) -> None:
    """On a session, a scoped session, a connection; one of the other colour is refused with the remedy."""
    kill(world, Noted(n=1))
    with world.sessions() as session, session.bind.connect() as connection:  # type: ignore[union-attr]
        assert len(DeadLetters(connection).list()) == 1
    scoped = scoped_session(world.sessions)
    assert len(DeadLetters(scoped).list()) == 1
    scoped.remove()
    with pytest.raises(WiringError, match="give sync ones to DeadLetters, async ones to AsyncDeadLetters"):
        DeadLetters(AsyncSession())  # type: ignore[arg-type]
    with world.sessions() as session, pytest.raises(WiringError, match="async ones to AsyncDeadLetters"):
        AsyncDeadLetters(session)  # type: ignore[arg-type]


# --- replaying --------------------------------------------------------------------------------------------------------


def test_a_replayed_letter_is_delivered_by_the_next_run(world: World) -> None:
    """G7, G5: its effect is there once; a second replay finds nothing."""
    kill(world, Placed(order="a", n=1))
    assert world.process().dead == 1
    report = replay(world)
    assert (report.action, report.count, report.left, report.dry_run) == ("replay", 1, 0, False)
    assert states(world) == {1: "retrying"}
    assert replay(world).count == 0
    assert (world.process().delivered, world.effects(), world.deliveries()) == (1, ["a:1"], [])
    assert replay(world).count == 0


def test_attempts_start_anew(world: World) -> None:
    """G7: a replayed letter has all its attempts ahead of it; until one fails its old error stays visible."""
    seen: list[int] = []
    world.settings(max_attempts=2)
    world.before["1"] = lambda context: seen.append(context.attempt)
    world.fail("1", 4)
    world.register(Noted(n=1))
    for _ in range(3):
        world.process()
    assert letters(world)[0].attempts == 2
    replay(world)
    d = world.tables.delivery
    assert world.rows(sa.select(d.c.attempts, d.c.crashes, d.c.error)) == [(0, 0, "ValueError: failure 1")]
    for _ in range(3):
        world.process()
    assert (seen, letters(world)[0].error) == ([1, 2, 1, 2], "ValueError: failure 3")


def test_letters_of_one_key_are_tried_in_order(world: World) -> None:
    """G3: several dead letters of one key, and a new message behind them."""
    kill(world, *placed("a", [1, 2, 3]))
    assert replay(world).count == 3
    world.register(Placed(order="a", n=4))
    assert world.process().ok
    assert world.effects() == ["a:1", "a:2", "a:3", "a:4"]


def test_a_replayed_letter_that_fails_holds_back_later_ones(world: World) -> None:
    """G3: as long as it is retrying, other letters of its key and new messages wait; other keys do not."""
    kill(world, *placed("a", [1, 2]))
    world.settings(max_attempts=2)
    world.fail("a:1", 1)
    replay(world)
    world.register(Placed(order="a", n=3), Placed(order="b", n=1))
    report = world.process()
    assert (world.effects(), report.retrying, report.held) == (["b:1"], 2, 1)
    world.process()
    assert world.effects() == ["b:1", "a:1", "a:2", "a:3"]


def test_letters_that_hold_their_key(world: World) -> None:
    """G3, G7: with on_dead_letter='hold' the replayed letter goes first, then all that waited for it, in order."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    kill(world, *placed("a", [1]))
    world.register(*placed("a", [2, 3]))
    assert world.process().held == 2
    replay(world)
    assert world.process().ok
    assert world.effects() == ["a:1", "a:2", "a:3"]


def test_a_letter_behind_another_one_that_holds_its_key(world: World) -> None:
    """G3: replayed before the one in front of it, it waits."""
    kill(world, *placed("a", [1, 2]))
    world.settings(max_attempts=1, on_dead_letter="hold")
    [first, second] = letters(world)
    replay(world, letters=[second])
    assert (world.process().delivered, states(world)) == (0, {1: "dead", 2: "retrying"})
    replay(world, letters=[first])
    assert (world.process().delivered, world.effects()) == (2, ["a:1", "a:2"])


def test_a_rate(world: World) -> None:
    """The first attempts are spread, by the database's clock, in position order; later ones of a key wait."""
    kill(world, *placed("a", [1, 2]), Noted(n=3))
    replay(world, everything=True, per_second=0.01)
    d = world.tables.delivery
    due = [at for (at,) in world.rows(sa.select(d.c.next_attempt_at).order_by(d.c.position))]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(due)]
    assert gaps == [pytest.approx(100, abs=5), pytest.approx(100, abs=5)]
    world.register(Placed(order="a", n=4))
    world.write(sa.update(d).where(d.c.position == 1).values(next_attempt_at=LONG_AGO))
    report = world.process()
    assert (world.effects(), report.retrying, report.held) == (["a:1"], 2, 1)


def test_a_limit_takes_the_oldest(world: World) -> None:
    """With `limit` only so many, in position order."""
    kill(world, *[Noted(n=n) for n in range(5)])
    assert [each.position for each in replay(world, everything=True, limit=2).letters] == [1, 2]
    assert [each.position for each in discard(world, everything=True, limit=2).letters] == [3, 4]
    assert states(world) == {1: "retrying", 2: "retrying", 5: "dead"}


def test_a_dry_run(world: World) -> None:
    """It says what would happen, changes nothing, and its letters can be replayed as they are."""
    kill(world, *[Noted(n=n) for n in range(3)])
    shown = replay(world, message="Noted", limit=2, dry_run=True)
    assert (shown.dry_run, [each.position for each in shown.letters]) == (True, [1, 2])
    assert set(states(world).values()) == {"dead"}
    assert replay(world, letters=shown.letters).letters == shown.letters
    assert replay(world, letters=shown.letters).count == 0
    assert discard(world, letters=letters(world)).count == 1
    assert discard(world, letters=[]).count == 0


def test_a_letter_that_has_died_again_is_another_one(world: World) -> None:
    """What somebody has looked at is not what lies there now: its error may be a different one."""
    kill(world, Noted(n=1))
    seen = letters(world)
    world.fail("1", KeyError("another reason"))
    replay(world)
    wait_until(lambda: world.rows(sa.select(utc_now())) > [(seen[0].failed_at,)])
    world.process()
    assert discard(world, letters=seen).count == 0
    assert discard(world, letters=letters(world)).count == 1


def test_only_the_named_subscription(world: World) -> None:
    """A letter of another subscription for the same message stays."""
    two_subscriptions(world)
    world.fail("1", 2)
    world.register(Noted(n=1))
    world.process()
    assert replay(world, subscription="second").subscriptions == ("second",)
    assert world.process().delivered == 1
    assert [letter.subscription for letter in letters(world)] == ["first"]


def test_partitions(world: World) -> None:
    """S5: letters of all partitions are replayed, and each is delivered by its own."""
    world.settings(max_attempts=1, partitions=3)
    orders = "abcdefgh"
    kill(world, *[Placed(order=order, n=1) for order in orders], Noted(n=1), Noted(n=2))
    s = world.tables.subscription
    before = dict(world.rows(sa.select(s.c.partition, s.c.revision)))
    [one, *_] = letters(world)
    replay(world, letters=[one])
    after = dict(world.rows(sa.select(s.c.partition, s.c.revision)))
    assert sorted(after[each] - before[each] for each in after) == [0, 0, 2]
    replay(world)
    assert (world.process().delivered, world.process().ok) == (10, True)


class Renamed(Event):
    """A type that the bus learns only later."""

    n: int


def test_an_unknown_type_that_is_known_by_now(world: World) -> None:
    """G7: a letter that died because its type was unknown is delivered once a worker knows it."""
    other = MessageBus()
    with world.sessions.begin() as session:
        other.register_outbox_message(session, Renamed(n=1))
    world.process()
    [letter] = letters(world)
    assert (letter.message, (letter.error or "").split(":")[0]) == ("Renamed", "UnknownMessageType")
    replay(world)
    assert world.process().dead == 1
    seen: list[int] = []
    world.bus.set_event_handlers(Renamed, [lambda event: seen.append(event.n)])
    replay(world)
    assert (world.process().delivered, seen) == (1, [1])


def test_what_can_be_decoded_by_now(world: World) -> None:
    """G7: after a deploy that understands the payload, a letter that could not be decoded is delivered."""
    world.register(Noted(n=1))
    o = world.tables.outbox
    world.write(sa.update(o).values(payload={"number": 1}))
    assert world.process().dead == 1
    assert (letters(world)[0].error or "").startswith("MessageDecodeError")

    class Understanding(Event, name="Noted"):
        number: int

    seen: list[int] = []
    world.bus = MessageBus()
    world.bus.set_event_handlers(Understanding, [lambda event: seen.append(event.number)])
    world.settings()
    replay(world)
    assert (world.process().delivered, seen) == (1, [1])


@pytest.mark.parametrize("gone", ["message", "subscription"])
def test_what_nobody_could_try(world: World, gone: str) -> None:
    """G7: a letter whose message or subscription is gone is left and counted; it is found, and can be discarded."""
    kill(world, Noted(n=1))
    table = world.tables.outbox if gone == "message" else world.tables.subscription
    world.write(sa.delete(table))
    [letter] = letters(world)
    assert (letter.message is None) == (letter.id is None) == (gone == "message")
    report = replay(world)
    assert (report.count, report.left, states(world)) == (0, 1, {1: "dead"})
    report = discard(world)
    assert (report.count, states(world)) == (1, {})


# --- discarding -------------------------------------------------------------------------------------------------------


def test_a_discarded_letter_is_gone(world: World) -> None:
    """G7: it is neither tried again nor reported any more."""
    kill(world, Placed(order="a", n=1))
    report = discard(world)
    assert (report.action, report.count) == ("discard", 1)
    assert (world.process().ok, world.effects(), letters(world)) == (True, [], [])
    assert discard(world).count == 0


def test_what_was_held_behind_a_discarded_letter_follows(world: World) -> None:
    """G3, G7: with on_dead_letter='hold', in order, and a new message after them."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    kill(world, *placed("a", [1]))
    world.register(*placed("a", [2, 3]))
    world.process()
    discard(world)
    world.register(Placed(order="a", n=4))
    assert world.process().ok
    assert world.effects() == ["a:2", "a:3", "a:4"]


def test_a_discarded_letter_no_longer_pins_retention(world: World) -> None:
    """G9, S4: its message is pruned with the others; how far the log was pruned is not taken back."""
    kill(world, *[Noted(n=n) for n in (1,)])
    world.register(*[Noted(n=n) for n in (2, 3, 4)])
    world.process()
    o, log = world.tables.outbox, world.tables.log
    world.write(sa.update(o).where(o.c.position < 4).values(created_at=LONG_AGO))
    assert world.process().pruned == 2
    assert world.rows(sa.select(log.c.pruned_to)) == [(3,)]
    discard(world)
    assert world.process().pruned == 1
    assert world.rows(sa.select(o.c.position)) == [(4,)]
    assert world.rows(sa.select(log.c.pruned_to)) == [(3,)]


# --- transactions and the log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_nothing_happens_before_the_caller_commits(world: World, action: str) -> None:
    """G10: a change lives and dies with the caller's transaction, and with what else is in it."""
    kill(world, Noted(n=1))
    with world.sessions() as session:
        assert getattr(DeadLetters(session), action)(everything=True).count == 1
        assert DeadLetters(session).list() == []
        session.rollback()
    assert states(world) == {1: "dead"}


@pytest.mark.parametrize("action", ["replay", "discard"])
def test_autocommit_is_refused(world: World, database_url: sa.URL, action: str) -> None:
    """G10, S3: without a transaction there is nothing to lock in, and nothing to roll back."""
    kill(world, Noted(n=1))
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(UnsupportedDatabase, match="AUTOCOMMIT"):
        getattr(DeadLetters(connection), action)(everything=True)
    engine.dispose()
    assert states(world) == {1: "dead"}


def test_who_did_it_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One line with who, what and which; none for a dry run, or for nothing."""
    kill(world, Noted(n=1))
    [letter] = letters(world)
    caplog.clear()
    caplog.set_level(logging.INFO, "message_bus.admin")
    discard(world, everything=True, dry_run=True, by="ann")
    replay(world, message="nothing", by="ann")
    assert caplog.records == []
    discard(world, everything=True, by="ann")
    [record] = caplog.records
    assert record.getMessage().startswith("discard of 1 dead letter of 'dispatch', by ann")
    extra = ("action", "by", "count", "subscriptions", "message_ids")
    assert [getattr(record, name) for name in extra] == [
        "discard", "ann", 1, ("dispatch",), [str(letter.id)],
    ]  # fmt: skip


def test_many_letters(world: World) -> None:
    """More than fit one page or one batch; the number of statements does not grow with them."""
    for n in range(250):  # rejected: as many plain failures in a row would look like a bad deploy, and wait
        world.fail(str(n), Reject("broken"))
    world.register(*(Noted(n=n) for n in range(250)))
    assert world.process().dead == 250
    seen: list[str] = []
    engine = world.sessions.kw["bind"]

    def see(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", see)
    assert replay(world).count == 250
    sa.event.remove(engine, "before_cursor_execute", see)
    assert len(seen) <= 9
    assert (world.process().delivered, world.process().ok) == (250, True)
