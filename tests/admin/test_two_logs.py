"""What operators see and do where the outbox and the event log are read: a position means a message of its own log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zlib import crc32

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from message_bus import (
    AsyncDeadLetters,
    AsyncSubscriptions,
    DeadLetters,
    MessageBusTables,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
)
from message_bus.admin import (
    DeadCount,
    Finding,
    Life,
    Status,
    async_doctor,
    async_status,
    async_why,
    doctor,
    prune,
    status,
    why,
)
from message_bus.eventsourcing.stores.sqlalchemy_store import SQLAlchemyEventStore
from tests.admin.operators import Meanwhile, before, discard, letters, replay
from tests.admin.test_subscriptions import change, columns, delivered_to, listed
from tests.admin.two_logs import Orders, append, one_letter_each, reading_both
from tests.delivery.world import Noted, Placed, World, placed
from tests.waiting import wait_until

THEN = datetime(2021, 1, 1, tzinfo=UTC)
SOON = datetime(2100, 1, 1, tzinfo=UTC)


def state(world: World) -> Status:
    """What `status` says."""
    with world.sessions() as session:
        return status(session, tables=world.tables)


def found(world: World) -> list[Finding]:
    """What `doctor` says."""
    with world.sessions() as session:
        return doctor(session, tables=world.tables)


def life(world: World, message_id: UUID) -> Life:
    """What `why` says."""
    with world.sessions() as session:
        told = why(session, message_id, tables=world.tables)
    assert told is not None
    return told


def texts(told: Life) -> list[str]:
    """Its moments, as text, with whose they are."""
    return [f"{moment.subscription or ''}: {moment.text}".removeprefix(": ") for moment in told.moments]


def places(world: World) -> dict[str, tuple[str, str, int]]:
    """Name -> log, state and position of each subscription."""
    return {name: tuple(rest) for name, *rest in columns(world, "name", "log", "state", "position")}


@contextmanager
def writing(world: World, stream: str = "open", n: int = 1) -> Iterator[Any]:
    """A transaction that has written an event, and is open."""
    with world.sessions() as session:
        SQLAlchemyEventStore(session, tables=world.tables).save(stream, placed(stream, [n]))
        yield session


# --- list, status -----------------------------------------------------------------------------------------------------


def test_each_subscription_is_behind_its_own_log(world: World) -> None:
    """Lag counts the messages of the log that is read, and each says which one it is."""
    one_letter_each(world)
    append(world, "c", 1, 2)
    world.register(Noted(n=2), Noted(n=3), Noted(n=4))
    told = {each.subscription: (each.log, each.position, each.lag, each.dead) for each in listed(world)}
    assert told == {"dispatch": ("outbox", 1, 3, 1), "orders": ("events", 4, 2, 1)}
    assert [each.log for each in listed(world, "orders")] == ["events"]


def test_the_list_is_in_order_of_names(world: World) -> None:
    """Whatever the log: partitions of one subscription stand together."""
    reading_both(world, name="a-first", partitions=2)
    world.process()
    assert [(each.subscription, each.partition) for each in listed(world)] == [
        ("a-first", 0),
        ("a-first", 1),
        ("dispatch", 0),
    ]


def test_status_tells_both_logs_apart(world: World) -> None:
    """Watermarks, ages and dead letters are those of each log."""
    one_letter_each(world)
    told = state(world)
    assert (told.outbox_rows, told.watermark.settled, told.watermark.high) == (1, 1, 1)
    assert told.events is not None
    assert (told.events.watermark.settled, told.events.watermark.high) == (4, 4)
    assert told.events.oldest_at is not None
    assert told.events.newest_at is not None
    assert told.events.oldest_at <= told.events.newest_at <= told.at
    assert told.dead == (
        DeadCount(subscription="dispatch", message="Noted", count=1),
        DeadCount(subscription="orders", message="Placed", count=1),
    )


def test_status_without_a_reader_of_events(world: World) -> None:
    """Who has no subscription of the event log is told nothing about it."""
    append(world, "a", 1)
    world.process()
    assert state(world).events is None


@pytest.mark.postgresql
def test_status_names_who_holds_the_event_log(world: World) -> None:
    """W10: and the outbox, which nobody holds, is not blamed."""
    one_letter_each(world)
    with writing(world) as session:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        told = state(world)
    assert told.watermark.holder is None
    assert told.events is not None
    assert f"pid {pid}, application" in (told.events.watermark.holder or "")
    assert (told.events.watermark.settled, told.events.watermark.high) == (4, 5)


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_letters_of_both_logs(world: World) -> None:
    """Each with its own message: id, type, key, payload and log; a page goes on where the last one ended."""
    dead = one_letter_each(world)
    [first, second] = letters(world, payload=True)
    assert (first.subscription, first.log, first.position, first.id, first.message, first.key) == (
        *("dispatch", "outbox", 1, UUID(int=1), "Noted"),
        None,
    )
    assert (second.subscription, second.log, second.position, second.id, second.message, second.key) == (
        *("orders", "events", 1, dead, "Placed"),
        "a",
    )
    assert (second.type, second.payload) == ("EVENT", {"order": "a", "n": 1})
    assert second.created_at is not None
    assert letters(world, limit=1) == [replace(first, payload=None, meta=None)]
    assert [each.log for each in letters(world, after=first)] == ["events"]
    assert letters(world, after=second) == []


def test_letters_are_selected_by_their_own_messages(world: World) -> None:
    """By id, type, subscription and error; counted and found alike."""
    dead = one_letter_each(world)
    for selection, log in (
        ({"ids": [dead]}, "events"),
        ({"ids": [UUID(int=1)]}, "outbox"),
        ({"message": "Placed"}, "events"),
        ({"message": "Noted"}, "outbox"),
        ({"subscription": "orders"}, "events"),
        ({"error": "NO ORDER a:1"}, "events"),
    ):
        assert [each.log for each in letters(world, **selection)] == [log]
        with world.sessions() as session:
            assert DeadLetters(session, tables=world.tables).count(**selection) == 1
    with world.sessions() as session:
        dead_letters = DeadLetters(session, tables=world.tables)
        assert dead_letters.count() == 2
        letter = dead_letters.get(dead)
        assert letter is not None
        assert letter.subscription == "orders"


def test_an_event_is_replayed(world: World) -> None:
    """By its type: the message of the outbox at the same position stays what it is."""
    one_letter_each(world)
    reading_both(world)
    with world.sessions() as session:
        dry = DeadLetters(session, tables=world.tables).replay(message="Placed", dry_run=True)
    report = replay(world, message="Placed")
    assert report.letters == dry.letters
    assert [(each.subscription, each.message, each.key) for each in report.letters] == [
        ("orders", "Placed", "a")
    ]
    assert report.left == 0
    assert world.process().subscriptions["orders"].delivered == 1
    assert world.effects()[-1] == "a:1"
    assert [each.log for each in letters(world)] == ["outbox"]


def test_all_are_replayed_and_discarded(world: World) -> None:
    """Those of both logs, in one transaction; a limit takes the lowest positions."""
    one_letter_each(world)
    assert [each.subscription for each in replay(world, everything=True, limit=1).letters] == ["dispatch"]
    world.fail("1", 1)
    world.process()
    reading_both(world)
    assert [each.subscription for each in replay(world).letters] == ["dispatch", "orders"]
    world.fail("1", 1)
    assert world.process().dead == 1
    assert [each.message for each in discard(world).letters] == ["Noted"]
    assert letters(world) == []


def test_an_event_is_discarded(world: World) -> None:
    """By its id, or as it was listed; the other log's letter of this position stays."""
    dead = one_letter_each(world)
    assert [each.id for each in discard(world, ids=[dead]).letters] == [dead]
    assert [each.subscription for each in letters(world)] == ["dispatch"]
    assert discard(world, letters=letters(world)).count == 1
    assert letters(world) == []


def test_an_event_that_has_a_subscription_is_not_left(world: World) -> None:
    """An event can be tried though the outbox has nothing at its position: no letter is taken for one that is gone."""
    reading_both(world, "a:1")
    append(world, "a", 1)
    world.process()
    with world.sessions() as session:
        report = DeadLetters(session, tables=world.tables).replay(everything=True, dry_run=True)
    assert (report.count, report.left) == (1, 0)


def test_a_letter_of_nobody(world: World) -> None:
    """Its subscription is gone, and nobody knows its log: it is listed once, and can be discarded."""
    one_letter_each(world)
    s = world.tables.subscription
    world.write(sa.delete(s).where(s.c.name == "dispatch"))
    assert [(each.subscription, each.log) for each in letters(world)] == [
        ("dispatch", "outbox"),
        ("orders", "events"),
    ]
    assert (replay(world, subscription="dispatch").left, discard(world).count) == (1, 2)


# --- subscriptions ----------------------------------------------------------------------------------------------------


def idle(world: World, **settings: Any) -> None:
    """Three events, one of them of the year 2020, of which an idle subscription "late" knows nothing; one message."""
    delivered_to(world, "dispatch")
    reading_both(world)
    world.register(Noted(n=1))
    world.write(
        sa.insert(world.tables.event).values(
            id=UUID(int=7),
            stream="old",
            version=1,
            message="Placed",
            key_hash=crc32(b"old"),
            payload={"order": "old", "n": 1},
            recorded_at=datetime(2020, 1, 1, tzinfo=UTC),
        )
    )
    append(world, "a", 1, 2)
    world.process()
    world.bus.set_outbox_handlers([*world.bus.outbox_handlers, Orders(name="late", **settings)])
    world.process()
    assert places(world)["late"] == ("events", "idle", 0)


@pytest.mark.parametrize(
    ("at", "position"),
    [("beginning", 0), ("now", 3), (2, 2), (THEN - timedelta(days=900), 0), (THEN, 1), (SOON, 3)],
)
def test_an_idle_one_starts_in_its_log(world: World, at: Any, position: int) -> None:
    """Now, a time, a position: of the event log, though the outbox is shorter."""
    idle(world)
    done = change(world, "start", "late", at=at)
    assert (done.position, done.before, done.held) == (position, (0,), 0)
    assert world.process().subscriptions["late"].delivered == 3 - position


def test_it_is_reset_in_its_log(world: World) -> None:
    """Back and forward: what retention has taken from the outbox is not gone from the events (S4)."""
    one_letter_each(world)
    world.write(
        sa.update(world.tables.log).where(world.tables.log.c.log == "outbox").values(pruned_to=3),
    )
    assert change(world, "reset", "orders", "beginning").position == 0
    assert change(world, "reset", "orders", "now").position == 4
    assert change(world, "reset", "orders", 2).position == 2
    with pytest.raises(SettingsError, match="position 5 is beyond the settled one, 4"):
        change(world, "reset", "orders", 5)
    with pytest.raises(SettingsError, match="position 4 is beyond the settled one, 1"):
        change(world, "reset", "dispatch", 4)
    world.write(sa.update(world.tables.log).where(world.tables.log.c.log == "events").values(pruned_to=3))
    assert change(world, "reset", "orders", "beginning", dry_run=True).position == 3


def test_a_renamed_one_keeps_its_letters(world: World) -> None:
    """Its log, its place and its failures go with it; a name of the other log is taken, too."""
    one_letter_each(world)
    with pytest.raises(SettingsError, match="there is a subscription 'dispatch' already"):
        change(world, "rename", "orders", "dispatch")
    change(world, "rename", "orders", "mail")
    assert places(world)["mail"] == ("events", "active", 4)
    assert [(each.subscription, each.log) for each in letters(world)] == [
        ("dispatch", "outbox"),
        ("mail", "events"),
    ]


def test_a_dropped_one_leaves_its_epoch_to_its_log(world: World) -> None:
    """S2: whoever makes it anew there begins after it; the other log's letters stay."""
    one_letter_each(world)
    for _ in range(3):
        append(world, "c", 1)
        world.process()
    epoch = dict(columns(world, "name", "epoch"))["orders"]
    assert dict(change(world, "drop", "orders").removed) == {"dead": 1}
    t = world.tables.log
    assert dict(world.rows(sa.select(t.c.log, t.c.last_epoch)))["events"] == epoch
    assert [each.subscription for each in letters(world)] == ["dispatch"]
    assert list(places(world)) == ["dispatch"]


def test_partitions_that_stand_apart_hold_events(world: World) -> None:
    """S5: what some have not reached is found in the event log, and comes first, in the order of its stream (G3)."""
    reading_both(world, partitions=2)
    world.register(Noted(n=1))
    for stream in ("a", "d", "a", "d"):
        append(world, stream, 1)
    world.process()
    assert {each.position for each in listed(world, "orders")} == {4}
    s = world.tables.subscription
    world.write(sa.update(s).where(s.c.name == "orders", s.c.partition == 0).values(position=1))
    lag = sum(each.lag or 0 for each in listed(world, "orders"))
    assert lag == 2
    done = change(world, "repartition", "orders", 1, hold=True)
    assert (done.position, done.held) == (4, lag)
    assert places(world)["orders"] == ("events", "active", 4)
    earlier = world.effects()
    reading_both(world)
    assert world.process().subscriptions["orders"].delivered == lag
    [key] = {note.partition(":")[0] for note in world.effects()[len(earlier) :]}
    assert key in ("a", "d")


@pytest.mark.postgresql
def test_a_change_locks_its_own_log(world: World) -> None:
    """S4: it waits for whoever has the event log's row, and for nobody who has the outbox's."""
    one_letter_each(world)
    t = world.tables.log
    with world.sessions.begin() as session:
        session.execute(sa.select(t).where(t.c.log == "outbox").with_for_update())
        change(world, "pause", "orders")
    with world.sessions.begin() as session:
        session.execute(sa.select(t).where(t.c.log == "events").with_for_update())
        other = Meanwhile(world, lambda: change(world, "resume", "orders"))
        other.start()
        assert other.waited
    other.join()
    assert places(world)["orders"] == ("events", "active", 4)


@pytest.mark.postgresql
@pytest.mark.parametrize(("action", "arguments"), [("reset", (0,)), ("drop", ())])
def test_one_that_changes_its_log_meanwhile(world: World, action: str, arguments: tuple[Any, ...]) -> None:
    """Dropped and made anew on the other log, before our lock: its positions mean something else, so nothing is done."""
    one_letter_each(world)
    s = world.tables.subscription
    moved = sa.update(s).where(s.c.name == "orders").values(log="outbox")
    with (
        before(world, "SELECT message_bus_log.pruned_to", lambda: world.write(moved)),
        pytest.raises(SettingsError, match="'orders' was made anew, on another log"),
    ):
        change(world, action, "orders", *arguments)
    assert places(world)["orders"] == ("outbox", "active", 4)


@pytest.mark.postgresql
@pytest.mark.parametrize(("at", "partitions"), [("now", 1), ("now", 2), (SOON, 1)])
def test_one_that_starts_while_somebody_writes(world: World, at: Any, partitions: int) -> None:
    """S4: nothing is refused and nothing lost: it begins when the writer has ended, and delivers what that has written."""
    idle(world, partitions=partitions)
    with writing(world) as writer:
        append(world, "b", 1)
        dry = change(world, "start", "late", at=at, dry_run=True)
        done = change(world, "start", "late", at=at)
        assert [(each.position, each.held) for each in (dry, done)] == [(5, 1), (5, 1)]
        assert places(world)["late"] == ("events", "idle", 5)
        [finding] = [each for each in found(world) if each.code == "subscription-idle"]
        assert finding.text.endswith("it begins with the first run after they have ended")
        writer.commit()
    append(world, "c", 1)
    world.bus.set_outbox_handlers([world.bus.outbox_handlers[-1]])
    earlier = len(world.effects())
    wait_until(lambda: world.process().ok and len(world.effects()) == earlier + 2)
    assert world.effects()[earlier:] == ["open:1", "c:1"]
    assert {(each.state, each.held) for each in listed(world, "late")} == {("active", 0)}


@pytest.mark.postgresql
def test_one_that_starts_while_somebody_gives_up(world: World) -> None:
    """What is rolled back leaves nothing behind, and it begins all the same."""
    idle(world)
    with writing(world) as writer:
        assert change(world, "start", "late", at="now").held == 1
        writer.rollback()
    world.process()
    append(world, "b", 1)
    assert world.process().subscriptions["late"].delivered == 1
    assert [(each.state, each.held) for each in listed(world, "late")] == [("active", 0)]


# --- why --------------------------------------------------------------------------------------------------------------


def test_the_life_of_an_event(world: World) -> None:
    """Where it was recorded, and what has become of it in each subscription of its log."""
    dead = one_letter_each(world)
    told = life(world, dead)
    assert (told.state, told.message, told.type, told.key, told.position) == (
        *("dead", "Placed", "EVENT", "a"),
        None,
    )
    assert told.recorded is not None
    assert (told.recorded.position, told.recorded.stream, told.recorded.version) == (1, "a", 1)
    assert texts(told) == [
        "recorded as event 1 of stream 'a', at position 1 of the event log",
        "orders: dead after 1 attempt: ValueError: no order a:1",
    ]
    assert [(fate.subscription, fate.log) for fate in told.fates] == [("orders", "events")]
    assert texts(life(world, UUID(int=1)))[1] == "in the outbox at position 1, settled"
    assert [fate.subscription for fate in life(world, UUID(int=1)).fates] == ["dispatch"]


def test_an_event_that_waits(world: World) -> None:
    """Behind events of its log, or behind one of its stream."""
    reading_both(world, "a:1", on_dead_letter="hold")
    world.register(Noted(n=1))
    [first, second] = append(world, "a", 1, 2)
    world.process()
    assert texts(life(world, second))[-1] == (
        f"orders: held behind message {first} of the same key, at position 1"
    )
    [_, _, last] = append(world, "b", 1, 2, 3)
    assert texts(life(world, last))[-1] == "orders: waiting behind 2 messages"
    assert life(world, last).state == "waiting"


def test_an_event_that_nobody_reads(world: World) -> None:
    """It is recorded, which is all it was meant to be."""
    [event] = append(world, "a", 1)
    told = life(world, event)
    assert (told.state, texts(told)[-1]) == ("recorded", "no subscription reads the event log")


def test_an_event_that_is_in_the_outbox_too(world: World) -> None:
    """Aggregates put their events there under the same ids: both are told, and the worst of both is what it is."""
    reading_both(world, "a:1")
    append(world, "z", 1)
    with world.sessions.begin() as session:
        [recorded] = SQLAlchemyEventStore(session, tables=world.tables).save("a", placed("a", [1]))
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        world.bus.register_outbox_message(repo, Placed(order="a", n=1), id=recorded.id)
    world.process()
    told = life(world, recorded.id)
    assert (told.state, told.position) == ("dead", 1)
    assert sorted(texts(told)) == [
        "dispatch: delivered",
        "in the outbox at position 1, settled",
        "orders: dead after 1 attempt: ValueError: no order a:1",
        "recorded as event 1 of stream 'a', at position 2 of the event log",
        "registered",
    ]


@pytest.mark.postgresql
def test_an_event_that_is_not_settled(world: World) -> None:
    """W6: behind a transaction that has written an event; one that has written to the outbox is in nobody's way."""
    reading_both(world)
    world.process()
    with writing(world):
        [event] = append(world, "a", 1)
        told = life(world, event)
        assert "not settled" in "".join(texts(told))
        assert texts(told)[-1] == "orders: waiting until it is settled"
        world.register(Noted(n=1), id=UUID(int=1))
        assert "not settled" not in "".join(texts(life(world, UUID(int=1))))


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_two_healthy_logs(world: World) -> None:
    """No false alarm."""
    one_letter_each(world)
    assert found(world) == []


def test_a_checkpoint_beyond_its_own_log(world: World) -> None:
    """W8: compared with the log that it reads; the remedy, run as it stands, repairs it."""
    one_letter_each(world)
    s = world.tables.subscription
    world.write(sa.update(s).where(s.c.name == "orders").values(position=9))
    [finding] = found(world)
    assert finding.code == "position-behind"
    assert "the event log is at position 4, behind the checkpoints of 'orders' at 9" in finding.text
    assert "message_bus_event" in finding.remedy
    repair = finding.remedy.removeprefix("stop the writers and run: ").partition("; then")[0]
    world.write(sa.text(repair))
    assert found(world) == []
    world.write(sa.update(s).where(s.c.name == "dispatch").values(position=3))
    [finding] = found(world)
    assert "the outbox is at position 1, behind the checkpoints of 'dispatch' at 3" in finding.text


def test_retention_waits_for_no_reader_of_events(world: World) -> None:
    """It takes no events, so a paused or forgotten reader is in nobody's way."""
    one_letter_each(world)
    change(world, "pause", "dispatch")
    change(world, "pause", "orders")
    assert [finding.text for finding in found(world)] == [
        "subscription 'dispatch' is paused; retention waits for it",
        "subscription 'orders' is paused",
    ]


@pytest.mark.postgresql
def test_an_event_log_that_would_lose_events(world: World) -> None:
    """W7: as for the outbox."""
    one_letter_each(world)
    world.write(sa.text("ALTER TABLE message_bus_event ALTER COLUMN position SET CACHE 20"))
    [finding] = [each for each in found(world) if each.code == "log"]
    assert finding.remedy == "run: ALTER TABLE message_bus_event ALTER COLUMN position SET CACHE 1"


# --- prune ------------------------------------------------------------------------------------------------------------


def test_a_dead_event_keeps_no_message(world: World) -> None:
    """G9: a dry run counts what is removed: a dead letter at the same position of the other log has no say."""
    reading_both(world, "a:1")
    append(world, "a", 1)
    world.register(Noted(n=1))
    world.process()
    with world.sessions() as session:
        assert prune(session, timedelta(0), tables=world.tables, dry_run=True) == 1
        assert prune(session, timedelta(0), tables=world.tables) == 1
    assert state(world).outbox_rows == 0
    assert [each.log for each in letters(world)] == ["events"]


# --- the asynchronous twins -------------------------------------------------------------------------------------------


async def test_the_asynchronous_twins(
    world: World, async_engine: AsyncEngine, async_tables: MessageBusTables
) -> None:
    """The same source, once each."""
    dead = one_letter_each(world)
    async with AsyncSession(async_engine) as session:
        told = await async_status(session)
        assert told.events is not None
        assert told.events.watermark.high == 4
        assert await async_doctor(session) == []
        event = await async_why(session, dead)
        assert event is not None
        assert event.state == "dead"
        dead_letters = AsyncDeadLetters(session)
        assert [each.log for each in await dead_letters.list()] == ["outbox", "events"]
        assert await dead_letters.count() == 2
        assert (await dead_letters.discard(ids=[dead])).count == 1
        subscriptions = AsyncSubscriptions(session)
        assert (await subscriptions.reset("orders", "now")).position == 4
        assert [each.log for each in await subscriptions.list()] == ["outbox", "events"]
        await session.commit()


def test_the_log_is_part_of_a_subscription() -> None:
    """Who makes settings says nothing about the log: the handler does."""
    assert not hasattr(Subscription(name="x"), "log")
