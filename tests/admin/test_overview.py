"""status, doctor and why: what they say about real situations, on both databases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    DispatchOutboxHandler,
    MessageBusTables,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    Subscription,
    UnflushedWork,
)
from message_bus.admin import (
    DeadCount,
    Finding,
    Life,
    Status,
    async_doctor,
    async_prune,
    async_status,
    async_why,
    doctor,
    prune,
    status,
    why,
)
from message_bus.admin.findings import of_distributions, of_holder, spelled, split
from tests.admin.operators import LONG_AGO, discard
from tests.admin.test_subscriptions import change, idle
from tests.delivery.world import Noted, Placed, World, placed
from tests.watermark.readers import Log
from tests.watermark.test_preconditions import as_role

__all__ = ["as_role"]  # a fixture

HOUR = timedelta(hours=1)


@pytest.fixture
def log(engine: sa.Engine, tables: MessageBusTables) -> Iterator[Log]:
    """What `as_role` needs."""
    with Log(engine, tables) as made:
        yield made


def state(world: World) -> Status:
    """What `status` says."""
    with world.sessions() as session:
        return status(session, tables=world.tables)


def found(world: World) -> dict[str, Finding]:
    """What `doctor` says, by code."""
    with world.sessions() as session:
        return {each.code: each for each in doctor(session, tables=world.tables)}


def life(world: World, number: int) -> Life:
    """What `why` says about the message with this number as its id."""
    with world.sessions() as session:
        told = why(session, UUID(int=number), tables=world.tables)
    assert told is not None
    return told


def texts(told: Life) -> list[str]:
    """Its moments, as text."""
    return [moment.text for moment in told.moments]


# --- status -----------------------------------------------------------------------------------------------------------


def test_an_outbox_without_anything(world: World) -> None:
    """Nothing to tell, and no error."""
    told = state(world)
    assert (told.subscriptions, told.outbox_rows, told.oldest_at, told.oldest_age) == ((), 0, None, None)
    assert (told.delayed, told.due, told.next_due_at, told.dead) == (0, 0, None, ())
    assert (told.watermark.settled, told.watermark.high, told.watermark.holder) == (0, 0, None)


def test_what_status_says(world: World) -> None:
    """Rows, ages, the schedule, the watermark, and dead letters by type; time is the database's."""
    world.fail("a:1", 1)
    world.fail("3", 1)
    world.fail("4", 1)
    world.register(*placed("a", [1, 2]), Noted(n=3), Noted(n=4))
    world.register(Noted(n=5), delay=HOUR)
    world.process()
    world.register(Noted(n=6), delay=timedelta(microseconds=1))
    world.write(
        sa.update(world.tables.outbox).where(world.tables.outbox.c.position == 1).values(created_at=LONG_AGO)
    )
    told = state(world)
    assert (told.outbox_rows, told.delayed, told.due) == (4, 2, 1)
    assert told.oldest_age is not None
    assert told.oldest_age > timedelta(days=1_000)
    assert told.next_due_at is not None
    assert told.next_due_at <= told.at
    assert (told.watermark.settled, told.watermark.high) == (4, 4)
    assert told.dead == (
        DeadCount(subscription="dispatch", message="Noted", count=2),
        DeadCount(subscription="dispatch", message="Placed", count=1),
    )
    [dispatch] = told.subscriptions
    assert (dispatch.lag, dispatch.dead) == (0, 3)


@pytest.mark.postgresql
def test_who_holds_the_watermark(world: World) -> None:
    """W10: pid and query of the oldest open writer; what is known to be settled is not forgotten."""
    world.register(Noted(n=1))
    world.process()
    with world.sessions() as writer:
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=2))
        repo.flush()
        pid = writer.scalar(sa.text("SELECT pg_backend_pid()"))
        told = state(world).watermark
        assert (told.settled, told.high) == (1, 2)
        assert told.holder is not None
        assert f"pid {pid}, application" in told.holder
        assert told.age is not None


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_a_healthy_outbox(world: World) -> None:
    """No false alarm: before the first run, and with messages, failures and delays."""
    assert found(world) == {}
    world.fail("1", 1)
    world.register(Noted(n=1), Noted(n=2))
    world.register(Noted(n=3), delay=HOUR)
    world.process()
    assert found(world) == {}


def test_subscriptions_that_deliver_nothing(world: World) -> None:
    """Idle, paused, and unseen for more than a week: each with the command that helps."""
    idle(world)
    change(world, "pause", "dispatch")
    both = found(world)
    assert both["subscription-idle"].remedy.startswith("message-bus subscriptions start late --at")
    assert both["subscription-paused"].remedy == "message-bus subscriptions resume dispatch"
    change(world, "resume", "dispatch")
    s = world.tables.subscription
    world.write(sa.update(s).where(s.c.name == "dispatch").values(seen_at=LONG_AGO))
    unseen = found(world)["subscription-unseen"]
    assert unseen.text.startswith("no worker has had subscription 'dispatch' for ")
    assert unseen.remedy.endswith("message-bus subscriptions drop dispatch")


def test_a_relay_that_keeps_its_lease_is_seen(world: World) -> None:
    """It acquired the lease long ago, and renews it: that is a sign of life."""
    world.process()
    world.write(
        sa.update(world.tables.subscription).values(
            seen_at=LONG_AGO, owner="x", lease_until=datetime.now(UTC) + HOUR
        )
    )
    assert found(world) == {}


def test_a_sequence_behind_a_checkpoint(world: World) -> None:
    """W8: after a restore or a TRUNCATE; the remedy, run as it stands, repairs it."""
    world.register(Noted(n=1))
    world.process()
    world.write(sa.update(world.tables.subscription).values(position=7))
    finding = found(world)["position-behind"]
    assert finding.severity == "error"
    assert "the outbox is at position 1, behind the checkpoints of 'dispatch' at 7" in finding.text
    repair = finding.remedy.removeprefix("stop the writers and run: ").partition("; then")[0]
    world.write(sa.text(repair))
    assert found(world) == {}


def test_tables_that_differ(world: World) -> None:
    """Each difference is a finding; what needs the tables is not asked then."""
    world.write(sa.text("ALTER TABLE message_bus_schedule RENAME TO gone"))
    with world.sessions() as session:
        findings = doctor(session)
    assert [(each.code, each.severity) for each in findings] == [("schema", "error")]
    assert findings[0].text == "table message_bus_schedule is missing"
    assert "message-bus db upgrade" in findings[0].remedy


def test_an_empty_database(session_factory: sessionmaker[Session]) -> None:
    """It says what is missing instead of failing."""
    with session_factory() as session:
        assert {each.code for each in doctor(session)} == {"schema"}


def test_another_distribution(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same name that somebody else's distribution brings."""
    other = tmp_path / "message_bus-3.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: message-bus\nVersion: 3.0\n")
    (other / "RECORD").write_text("message_bus/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    finding = found(world)["other-distribution"]
    assert "also belongs to the distribution 'message-bus'" in finding.text
    assert finding.remedy.startswith("pip uninstall message-bus;")


@pytest.mark.postgresql
def test_a_log_that_would_lose_messages(world: World) -> None:
    """W7: each fault is a finding with its remedy."""
    world.write(sa.text("ALTER TABLE message_bus_outbox ALTER COLUMN position SET CACHE 20"))
    finding = found(world)["log"]
    assert "position has CACHE 20" in finding.text
    assert finding.remedy == "run: ALTER TABLE message_bus_outbox ALTER COLUMN position SET CACHE 1"


@pytest.mark.postgresql
def test_row_level_security(world: World, as_role: Callable[[], sa.Connection]) -> None:
    """W9: on any of our tables: a warning for who is not subject to it, an error for who is."""
    world.write(sa.text("ALTER TABLE message_bus_delivery ENABLE ROW LEVEL SECURITY"))
    finding = found(world)["row-level-security"]
    assert finding.severity == "warning"
    assert "row-level security is on for table message_bus_delivery" in finding.text
    [other] = [each for each in doctor(as_role()) if each.code == "row-level-security"]
    assert (other.severity, "hides rows from role" in other.text) == ("error", True)


@pytest.mark.postgresql
def test_a_role_that_may_not_look(world: World, as_role: Callable[[], sa.Connection]) -> None:
    """A check that fails is a finding, and the others go on."""
    connection = as_role()
    role = connection.scalar(sa.text("SELECT current_user"))
    world.write(sa.text(f'REVOKE ALL ON message_bus_subscription FROM "{role}"'))
    codes = {each.code for each in doctor(connection)}
    assert "could-not-check" in codes
    connection.execute(sa.text("SELECT 1"))


@pytest.mark.postgresql
def test_a_forgotten_prepared_transaction(world: World) -> None:
    """W10: it is named, with how to end it."""
    with world.sessions() as session:
        session.execute(sa.text("LOCK TABLE message_bus_outbox IN ROW EXCLUSIVE MODE"))
        session.execute(sa.text("PREPARE TRANSACTION 'forgotten'"))
        session.rollback()
    with world.sessions() as session:
        [holder] = [each for each in doctor(session) if each.code == "prepared-transaction"] or [None]
    with world.sessions.kw["bind"].connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ROLLBACK PREPARED 'forgotten'"))
    assert holder is None  # younger than five seconds
    old = of_holder(who="x", pid=None, prepared="it's", age=timedelta(hours=1), query_hidden=True)
    assert old is not None
    assert old.remedy.startswith("run: COMMIT PREPARED 'it''s' or ROLLBACK PREPARED 'it''s'")


@pytest.mark.parametrize(
    ("age", "hidden", "remedy"),
    [
        (timedelta(seconds=4), False, None),
        (timedelta(seconds=6), False, "let it end, or run: SELECT pg_terminate_backend(7)"),
        (None, True, "run: GRANT pg_read_all_stats TO this role, to see what it does; then let it end"),
    ],
)
def test_how_long_a_writer_may_be_open(age: timedelta | None, hidden: bool, remedy: str | None) -> None:
    """A short transaction is no finding; one whose age is hidden is."""
    finding = of_holder(who="pid 7", pid=7, prepared=None, age=age, query_hidden=hidden)
    assert (finding is None) == (remedy is None)
    assert finding is None or finding.remedy.startswith(remedy or "")


def test_pieces_of_findings() -> None:
    """A text is split from its remedy; distributions are compared as pip does; spans are short."""
    assert split("x", "error", "it is f(x) (run: g())", "else").remedy == "run: g()"
    assert split("x", "error", "no remedy", "else") == Finding(
        code="x", severity="error", text="no remedy", remedy="else"
    )
    assert list(of_distributions(["sqlalchemy_message_bus", "SQLAlchemy-Message-Bus"])) == []
    spans = (timedelta(seconds=5), timedelta(minutes=3), timedelta(hours=5), timedelta(days=9))
    assert [spelled(span) for span in spans] == ["5 s", "3 min", "5 h", "9 d"]


# --- why --------------------------------------------------------------------------------------------------------------


def test_the_life_of_messages(world: World) -> None:
    """Delivered, retrying, held behind which one, waiting; each in the order of time."""
    world.settings(max_attempts=3)
    world.fail("a:1", 2)
    for number, event in enumerate([*placed("a", [1, 2]), Noted(n=3)], 1):
        world.register(event, id=UUID(int=number))
    world.process()
    first, second, third = (life(world, number) for number in (1, 2, 3))
    assert (first.state, second.state, third.state) == ("retrying", "held", "delivered")
    assert texts(first)[:3] == [
        "registered",
        "in the outbox at position 1, settled",
        "attempt 1 failed: ValueError: failure 0",
    ]
    assert texts(first)[-1] == "to be tried again"
    assert texts(second)[-1] == f"held behind message {UUID(int=1)} of the same key, at position 1"
    assert (texts(third)[-1], third.moments[-1].subscription) == ("delivered", "dispatch")
    for told in (first, second, third):
        times = [moment.at for moment in told.moments if moment.at is not None]
        assert times == sorted(times)
    world.process()
    assert [fate.attempts for fate in life(world, 1).fates] == [2]


def test_a_message_that_waits(world: World) -> None:
    """For a first run, behind others, for a paused or an idle subscription."""
    world.register(Noted(n=1), id=UUID(int=1))
    assert texts(life(world, 1))[-1] == "waiting: there is no subscription yet"
    world.process()
    world.register(Noted(n=2), id=UUID(int=2))
    world.register(Noted(n=3), id=UUID(int=3))
    assert texts(life(world, 2))[-1] == "waiting for the next run"
    assert texts(life(world, 3))[-1] == "waiting behind 1 message"
    change(world, "pause", "dispatch")
    assert (
        "the subscription is paused (message-bus subscriptions resume dispatch)" in texts(life(world, 3))[-1]
    )
    assert life(world, 3).state == "waiting"


def test_a_message_of_several_subscriptions(world: World) -> None:
    """One fate each; an idle one has no say in whether it is delivered."""
    idle(world)
    with world.sessions() as session:
        message_id = session.scalars(sa.select(world.tables.outbox.c.id)).first()
        told = why(session, str(message_id))
    assert told is not None
    assert [(fate.subscription, fate.state) for fate in told.fates] == [
        ("dispatch", "delivered"),
        ("late", "waiting"),
    ]
    assert told.state == "delivered"


def test_a_dead_message(world: World) -> None:
    """With its error; once it is discarded it counts as dealt with."""
    world.fail("1", 1)
    world.register(Noted(n=1), id=UUID(int=1))
    world.process()
    assert (life(world, 1).state, texts(life(world, 1))[-1]) == (
        "dead",
        "dead after 1 attempt: ValueError: failure 0",
    )
    discard(world)
    assert life(world, 1).state == "delivered"


def test_a_delayed_message(world: World) -> None:
    """When it is due; then it is a message like any other."""
    world.register(Placed(order="a", n=1), id=UUID(int=1), delay=HOUR)
    told = life(world, 1)
    assert (told.state, told.position, texts(told)) == (
        "delayed",
        None,
        ["registered, with a delay", "due: then it enters the outbox"],
    )
    world.write(sa.update(world.tables.schedule).values(due_at=LONG_AGO))
    world.process()
    assert life(world, 1).state == "delivered"


def test_a_message_that_is_not_there(world: World) -> None:
    """None; an id that is none is an error."""
    with world.sessions() as session:
        assert why(session, uuid4()) is None
        with pytest.raises(SettingsError, match=r"why: 'x' is no message id \(ids are UUIDs\)"):
            why(session, "x")


@pytest.mark.postgresql
def test_a_message_that_is_not_settled(world: World) -> None:
    """W6: committed, but behind a transaction that is still open: it says so."""
    world.process()
    with world.sessions() as writer:
        repo = SQLAlchemyOutBoxRepo(writer, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=1))
        repo.flush()
        world.register(Noted(n=2), id=UUID(int=2))
        assert "not settled: a transaction that began to write before" in "".join(texts(life(world, 2)))
        assert texts(life(world, 2))[-1] == "waiting until it is settled"


# --- prune ------------------------------------------------------------------------------------------------------------


def test_pruned_by_hand(world: World) -> None:
    """G9: what everybody has passed and nobody has recorded; a dry run counts exactly that, and removes nothing."""
    world.fail("2", 1)
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    world.process()
    with world.sessions() as session:
        assert prune(session, timedelta(days=1)) == 0
        assert prune(session, timedelta(0), dry_run=True) == 2
    world.register(Noted(n=4))
    with world.sessions() as session:
        assert prune(session, timedelta(0), by="ann") == 2
    assert world.rows(sa.select(world.tables.outbox.c.position)) == [(2,), (4,)]
    with world.sessions() as session:
        with pytest.raises(SettingsError, match="older_than must not be negative"):
            prune(session, timedelta(-1))
        world.bus.register_outbox_message(session, Noted(n=5))
        with pytest.raises(UnflushedWork):
            prune(session, timedelta(0))
        session.rollback()


# --- the asynchronous twins -------------------------------------------------------------------------------------------


async def test_the_asynchronous_twins(async_engine: Any, async_tables: MessageBusTables) -> None:
    """The same source: each once, on an AsyncSession and on an AsyncConnection."""
    bus = AsyncMessageBus(event_handlers={Noted: []})
    settings = Subscription(name="dispatch")
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=settings)])
    async with AsyncSession(async_engine) as session:
        row = bus.register_outbox_message(session, Noted(n=1))
        await session.commit()
        await bus.process_outbox(session)
    async with async_engine.connect() as connection:
        assert (await async_status(connection)).outbox_rows == 1
        assert await async_doctor(connection) == []
        told = await async_why(connection, row.id)
        assert told is not None
        assert told.state == "delivered"
    async with AsyncSession(async_engine) as session:
        assert (await async_status(session)).subscriptions[0].lag == 0
        assert await async_doctor(session) == []
        assert await async_prune(session, timedelta(0), dry_run=True) == 1
        assert await async_prune(session, timedelta(0)) == 1
