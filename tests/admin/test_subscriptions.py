"""What operators do with subscriptions, on both databases."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import scoped_session

from message_bus import (
    AsyncSubscriptions,
    DispatchOutboxHandler,
    PartitionStatus,
    SettingsError,
    Subscription,
    SubscriptionChange,
    Subscriptions,
    UnsupportedDatabase,
    WiringError,
)
from message_bus.admin.partitions import refuse_beyond
from message_bus.delivery.lease import claim
from tests.admin.operators import LONG_AGO, states
from tests.delivery.world import AT_ONCE, Noted, Placed, World, placed

ONCE = datetime(2000, 1, 1, tzinfo=UTC)
SOON = datetime(2100, 1, 1, tzinfo=UTC)


def listed(world: World, name: str | None = None) -> list[PartitionStatus]:
    """What `list` returns."""
    with world.sessions() as session:
        return Subscriptions(session, tables=world.tables).list(name)


def change(world: World, action: str, *arguments: Any, **options: Any) -> SubscriptionChange:
    """Call the method of this name, and commit."""
    with world.sessions.begin() as session:
        done: SubscriptionChange = getattr(Subscriptions(session, tables=world.tables), action)(
            *arguments, **options
        )
        return done


def delivered_to(world: World, *names: str, **settings: Any) -> None:
    """Let these subscriptions deliver to the same handlers."""
    world.bus.set_outbox_handlers(
        [
            DispatchOutboxHandler(
                subscription=Subscription(name=name, max_attempts=1, backoff=AT_ONCE, **settings)
            )
            for name in names
        ]
    )


def taken(world: World, lease: timedelta = timedelta(minutes=1)) -> Any:
    """Take the lease of the subscription, as a worker does."""
    with world.sessions.begin() as session:
        return claim(session, world.tables, Subscription(name="dispatch"), 0, lease=lease)


def columns(world: World, *names: str) -> list[Any]:
    """These columns of the checkpoint rows, by name and partition."""
    t = world.tables.subscription
    return world.rows(sa.select(*(t.c[name] for name in names)).order_by(t.c.name, t.c.partition))


# --- list -------------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_an_empty_list(world: World) -> None:
    """Before the first run there is none."""
    assert listed(world) == []


def test_what_the_list_says(world: World) -> None:
    """Where a subscription is, how far behind, and what has failed; nobody is working on it."""
    world.settings(max_attempts=1, on_dead_letter="hold")
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]), Noted(n=3))
    world.process()
    world.register(Noted(n=4))
    [status] = listed(world)
    assert replace(status, seen_at=ONCE) == PartitionStatus(
        subscription="dispatch",
        partition=0,
        partitions=1,
        state="active",
        position=3,
        lag=1,
        owner=None,
        lease_until=None,
        retrying=0,
        held=1,
        dead=1,
        seen_at=ONCE,
    )
    assert timedelta(0) <= datetime.now(UTC) - status.seen_at < timedelta(minutes=1)
    assert listed(world, "other") == []


@pytest.mark.sqlite
def test_who_works_on_it(world: World) -> None:
    """The owner and the end of its lease, as long as it has not ended; a lease is a sign of life."""
    world.process()
    lease = taken(world)
    [status] = listed(world)
    assert status.owner == lease._me["me"]
    assert status.lease_until is not None
    assert status.lease_until > status.seen_at
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO, seen_at=LONG_AGO))
    [status] = listed(world)
    assert (status.owner, status.lease_until, status.seen_at.year) == (None, None, 2020)


def test_each_partition_counts_its_own(world: World) -> None:
    """Lag and failures belong to the partition of the key."""
    world.settings(max_attempts=1, partitions=2)
    world.fail("a:1", 1)
    world.register(Placed(order="a", n=1))
    world.process()
    world.register(*placed("a", [2, 3]), *placed("d", [1]))
    [first, second] = listed(world)
    assert {(first.lag, first.dead), (second.lag, second.dead)} == {(2, 1), (1, 0)}


# --- start, pause, resume -----------------------------------------------------------------------------------------------


def idle(world: World, count: int = 3) -> None:
    """A second subscription, added to a log with history and told no place to start from."""
    delivered_to(world, "dispatch")
    world.register(*[Noted(n=n) for n in range(1, count + 1)])
    world.process()
    delivered_to(world, "dispatch", "late")
    world.process()
    [_, late] = listed(world)
    assert (late.state, late.lag) == ("idle", None)


@pytest.mark.parametrize(("at", "position"), [("beginning", 0), ("now", 3), (1, 1), (ONCE, 0), (SOON, 3)])
def test_an_idle_one_is_started(world: World, at: Any, position: int) -> None:
    """From the beginning, from now, behind a position, from a time: what comes after it is delivered."""
    idle(world)
    done = change(world, "start", "late", at=at)
    assert (done.position, done.before) == (position, (0,))
    assert world.process().subscriptions["late"].delivered == 3 - position
    assert columns(world, "name", "state") == [("dispatch", "active"), ("late", "active")]


@pytest.mark.sqlite
def test_only_an_idle_one_is_started(world: World) -> None:
    """An active or paused one has a place: the remedy says what moves it."""
    world.process()
    with pytest.raises(
        SettingsError, match=r"start: subscription 'dispatch' is active, not idle \(reset moves it\)"
    ):
        change(world, "start", "dispatch")
    change(world, "pause", "dispatch")
    with pytest.raises(SettingsError, match=r"is paused, not idle \(resume lets it go on, reset moves it\)"):
        change(world, "start", "dispatch")


def test_paused_and_resumed(world: World) -> None:
    """A paused one delivers nothing and loses nothing; both can be said twice."""
    world.process()
    assert [change(world, "pause", "dispatch").changed for _ in range(2)] == [True, False]
    world.register(Noted(n=1))
    assert world.process().delivered == 0
    assert [change(world, "resume", "dispatch").changed for _ in range(2)] == [True, False]
    assert (world.process().delivered, world.effects()) == (1, ["1"])


@pytest.mark.sqlite
@pytest.mark.parametrize("action", ["pause", "resume"])
def test_an_idle_one_is_neither_paused_nor_resumed(world: World, action: str) -> None:
    """It has no place to go on from."""
    idle(world)
    with pytest.raises(SettingsError, match=r"subscription 'late' is idle: .* \(start begins it\)"):
        change(world, action, "late")


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("start", ()),
        ("pause", ()),
        ("resume", ()),
        ("reset", ("now",)),
        ("rename", ("new",)),
        ("drop", ()),
        ("repartition", (2,)),
    ],
)
def test_a_name_that_nobody_has(world: World, action: str, arguments: tuple[Any, ...]) -> None:
    """The error names those that there are."""
    with pytest.raises(SettingsError, match=r"no subscription is called 'other' \(there are none yet"):
        change(world, action, "other", *arguments)
    world.process()
    with pytest.raises(SettingsError, match=r"no subscription is called 'other' \(there are: 'dispatch'\)"):
        change(world, action, "other", *arguments)


# --- reset --------------------------------------------------------------------------------------------------------------


def test_rewound(world: World) -> None:
    """G4: everything after the position is delivered once more, in order; what was recorded about it is gone."""
    world.fail("a:2", 1)
    world.register(*placed("a", [1, 2, 3]))
    world.process()
    done = change(world, "reset", "dispatch", 1)
    assert (done.position, done.before, dict(done.removed)) == (1, (3,), {"dead": 1})
    assert world.process().delivered == 2
    assert world.effects() == ["a:1", "a:3", "a:2", "a:3"]


@pytest.mark.parametrize("to", ["now", 3, SOON])
def test_skipped(world: World, to: Any) -> None:
    """What lies before the new position is never delivered."""
    world.process()
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    assert change(world, "reset", "dispatch", to).position == 3
    world.register(Noted(n=4))
    assert (world.process().delivered, world.effects()) == (1, ["4"])


@pytest.mark.sqlite
def test_a_reset_to_a_time(world: World) -> None:
    """From the first message that was registered at that time or later."""
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    world.process()
    o = world.tables.outbox
    world.write(sa.update(o).where(o.c.position < 3).values(created_at=LONG_AGO))
    assert change(world, "reset", "dispatch", datetime(2020, 1, 2, tzinfo=UTC)).position == 2


@pytest.mark.sqlite
def test_never_below_what_was_pruned(world: World) -> None:
    """S4: what retention may have taken is passed over, wherever one asks to begin."""
    world.register(*[Noted(n=n) for n in (1, 2, 3)])
    world.process()
    o = world.tables.outbox
    world.write(sa.update(o).where(o.c.position < 3).values(created_at=LONG_AGO))
    assert world.process().pruned == 2
    for to in ("beginning", 0, 1, ONCE):
        assert change(world, "reset", "dispatch", to).position == 2
    assert world.process().delivered == 1


@pytest.mark.sqlite
def test_what_is_paused_stays_paused_and_what_is_idle_wakes(world: World) -> None:
    """A reset moves; it lets nothing run that somebody has stopped."""
    idle(world)
    change(world, "pause", "dispatch")
    change(world, "reset", "dispatch", 1)
    change(world, "reset", "late", 2)
    assert columns(world, "state", "position") == [("paused", 1), ("active", 2)]


@pytest.mark.sqlite
def test_a_dry_run_changes_nothing(world: World) -> None:
    """It says what would be done."""
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    before = columns(world, "name", "state", "position", "epoch", "revision")
    for action, arguments in [("reset", (0,)), ("drop", ()), ("repartition", (3,))]:
        done = change(world, action, "dispatch", *arguments, dry_run=True)
        assert (done.dry_run, done.before, done.action) == (True, (1,), action)
        assert action == "repartition" or dict(done.removed) == {"dead": 1}
    assert columns(world, "name", "state", "position", "epoch", "revision") == before
    assert states(world) == {1: "dead"}


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("to", "problem"),
    [
        (-1, "a position is 0 or more"),
        (True, "True is no place in a log"),
        ("yesterday", r"'yesterday' is no place in a log \(give 'beginning', 'now', a position or"),
        (datetime(2026, 1, 1), r"the time is a naive datetime \(give it a timezone\)"),
        (99, r"position 99 is beyond the settled one, 0 \(give a smaller one, or 'now'\)"),
    ],
)
def test_no_place_in_a_log(world: World, to: Any, problem: str) -> None:
    """What makes no sense is refused with the remedy."""
    world.process()
    with pytest.raises(SettingsError, match=problem):
        change(world, "reset", "dispatch", to)


def test_a_position_that_may_still_get_company() -> None:
    """While writers are open, a position that they may be behind is refused, and the remedy is another one."""
    refuse_beyond(5, known=5, open_writers=True)
    with pytest.raises(SettingsError, match=r"beyond the settled one, 5 \(a transaction that has"):
        refuse_beyond(6, known=5, open_writers=True)
    with pytest.raises(SettingsError, match=r"beyond the settled one, 5 \(give a smaller one, or 'now'\)"):
        refuse_beyond(6, known=5, open_writers=False)


# --- a worker at work -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "arguments"), [("reset", (0,)), ("rename", ("new",)), ("drop", ()), ("repartition", (2,))]
)
def test_not_while_a_worker_has_the_lease(world: World, action: str, arguments: tuple[Any, ...]) -> None:
    """Its messages in hand would be handled elsewhere at the same time; unless it is forced, and then it commits nothing."""
    world.register(Noted(n=1))
    world.process()
    lease = taken(world)
    with pytest.raises(
        SettingsError, match=rf"{action}.*: a worker has the lease of subscription 'dispatch' until 2"
    ):
        change(world, action, "dispatch", *arguments)
    assert world.checkpoint() == 1
    change(world, action, "dispatch", *arguments, force=True)
    with world.sessions() as session:
        assert not lease.renew(session)


def test_a_forced_reset_keeps_others_out_until_the_lease_ends(world: World) -> None:
    """G3: what the old worker is doing outside the database is not done by another one at the same time."""
    world.register(Noted(n=1))
    world.process()
    taken(world)
    change(world, "reset", "dispatch", 0, force=True)
    assert world.process().busy == ("dispatch",)
    change(world, "repartition", "dispatch", 2, force=True)
    delivered_to(world, "dispatch", partitions=2)
    assert world.process().busy == ("dispatch",)
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO))
    assert world.process().delivered == 1


@pytest.mark.sqlite
def test_the_lease_of_a_dead_worker_is_in_nobodys_way(world: World) -> None:
    """Once it has ended, it counts no more."""
    world.process()
    taken(world)
    world.write(sa.update(world.tables.subscription).values(lease_until=LONG_AGO))
    assert change(world, "reset", "dispatch", "now").position == 0


# --- rename, drop ---------------------------------------------------------------------------------------------------------


def test_renamed(world: World) -> None:
    """It goes on where it was, with its dead letters, under the new name."""
    world.fail("1", 1)
    world.register(Noted(n=1), Noted(n=2))
    world.process()
    done = change(world, "rename", "dispatch", "mail")
    assert (done.subscription, done.name, done.position) == ("dispatch", "mail", None)
    delivered_to(world, "mail")
    world.register(Noted(n=3))
    assert (world.process().dead, world.effects()) == (1, ["2", "3"])
    [status] = listed(world)
    assert (status.subscription, status.dead) == ("mail", 1)


@pytest.mark.sqlite
def test_a_name_that_is_taken(world: World) -> None:
    """Nothing is renamed over another one, and no name is empty."""
    delivered_to(world, "dispatch", "mail")
    world.process()
    with pytest.raises(SettingsError, match=r"there is a subscription 'mail' already \(drop it first\)"):
        change(world, "rename", "dispatch", "mail")
    for name in ("", "x" * 201):
        with pytest.raises(SettingsError, match="a name has 1 to 200 characters"):
            change(world, "rename", "dispatch", name)


def test_dropped(world: World) -> None:
    """Place, retries and dead letters are gone; made again it is new, and its epochs go on (S2)."""
    world.fail("1", 1)
    world.register(Noted(n=1))
    for _ in range(3):
        world.process()
    [(epoch,)] = columns(world, "epoch")
    done = change(world, "drop", "dispatch")
    assert (dict(done.removed), columns(world, "name"), states(world)) == ({"dead": 1}, [], {})
    assert world.process().delivered == 1
    assert columns(world, "epoch") == [(epoch + 1,)]


@pytest.mark.parametrize(
    ("action", "arguments"), [("rename", ("new",)), ("repartition", (3,)), ("reset", (0,))]
)
def test_epochs_never_restart(world: World, action: str, arguments: tuple[Any, ...]) -> None:
    """S2: whatever is done with a subscription, the next worker gets a higher epoch than any before."""
    for _ in range(3):
        world.process()
    [(before,)] = columns(world, "epoch")
    change(world, action, "dispatch", *arguments)
    assert all(epoch > before for (epoch,) in columns(world, "epoch"))
    [name] = {name for (name,) in columns(world, "name")}
    change(world, "drop", name)
    delivered_to(world, "dispatch")
    world.process()
    [(after,)] = columns(world, "epoch")
    assert after > before + 1


@pytest.mark.sqlite
def test_what_is_left_of_a_subscription_is_dropped(world: World) -> None:
    """Rows of one whose checkpoint somebody has deleted can be removed, too."""
    world.fail("1", 1)
    world.register(Noted(n=1))
    world.process()
    world.write(sa.delete(world.tables.subscription))
    assert dict(change(world, "drop", "dispatch").removed) == {"dead": 1}


# --- repartition ----------------------------------------------------------------------------------------------------------


def test_divided_at_one_position(world: World) -> None:
    """S5: every partition goes on from where all stood, with its keys' failures; nothing twice, nothing lost."""
    world.settings(max_attempts=3)
    world.fail("a:1", 1)
    world.register(*placed("a", [1, 2]), *placed("b", [1]))
    world.process()
    done = change(world, "repartition", "dispatch", 4)
    assert (done.partitions, done.position, done.held, done.before) == (4, 3, 0, (3,))
    assert columns(world, "partition", "partitions", "position") == [(n, 4, 3) for n in range(4)]
    world.register(*placed("a", [3]), *placed("c", [1]))
    world.settings(max_attempts=3, partitions=4)
    world.process()
    assert sorted(world.effects()) == ["a:1", "a:2", "a:3", "b:1", "c:1"]
    assert [each for each in world.effects() if each[0] == "a"] == ["a:1", "a:2", "a:3"]
    change(world, "repartition", "dispatch", 1)
    assert columns(world, "partition", "partitions", "position") == [(0, 1, 5)]


@pytest.mark.sqlite
def test_the_same_number_changes_nothing(world: World) -> None:
    """It is no error, and no new epoch."""
    world.process()
    before = columns(world, "epoch", "revision")
    assert not change(world, "repartition", "dispatch", 1).changed
    assert columns(world, "epoch", "revision") == before


@pytest.mark.sqlite
@pytest.mark.parametrize("count", [0, -1, True, 1.5, 10_001])
def test_no_number_of_partitions(world: World, count: Any) -> None:
    """It is refused before anything is looked at."""
    with pytest.raises(SettingsError, match="partitions must be a whole number from 1 to 10,000"):
        change(world, "repartition", "dispatch", count)


def apart(world: World) -> None:
    """Two partitions that stand apart: that of a and b has delivered its messages, that of d has not."""
    world.settings(max_attempts=3, partitions=2)
    world.process()
    for n in range(1, 6):
        world.register(Placed(order="a", n=n), Placed(order="b", n=n), Placed(order="d", n=n), Noted(n=n))
    t = world.tables.subscription
    with world.sessions.begin() as session:
        blocker = claim(
            session, world.tables, Subscription(name="dispatch", partitions=2), 0, lease=timedelta(minutes=1)
        )
    assert blocker is not None
    assert world.process().busy == ("dispatch",)
    world.write(sa.update(t).values(owner=None, lease_until=None))
    positions = [position for (position,) in columns(world, "position")]
    assert positions[0] == 0 < positions[1]


@pytest.mark.parametrize("count", [1, 3])
def test_divided_while_partitions_stand_apart(world: World, count: int) -> None:
    """S5, G3: with `hold` what some have not reached comes first, in order, each message once."""
    apart(world)
    done_before = world.effects()
    with pytest.raises(
        SettingsError, match=r"stand apart, from 0 to \d+, with \d+ messages between \(let its workers"
    ):
        change(world, "repartition", "dispatch", count)
    with pytest.raises(
        SettingsError, match=r"more than 1 \(let its workers catch up first, or raise most=\)"
    ):
        change(world, "repartition", "dispatch", count, hold=True, most=1)
    assert states(world) == {}
    done = change(world, "repartition", "dispatch", count, hold=True)
    assert done.held == 20 - len(done_before) == len(states(world)) > 1
    for order in "abd":
        world.register(Placed(order=order, n=6))
    world.settings(max_attempts=3, partitions=count)
    assert world.process().ok
    effects = world.effects()
    assert len(effects) == len(set(effects)) == 23
    for order in "abd":
        assert [each for each in effects if each[0] == order] == [f"{order}:{n}" for n in range(1, 7)]
    assert states(world) == {}


def test_only_the_types_that_it_reads_are_held(world: World) -> None:
    """A subscription with `types` in its settings gets no others, if they are named."""
    apart(world)
    for types in ("Noted", ["Noted"]):
        done = change(world, "repartition", "dispatch", 1, hold=True, types=types, dry_run=True)
        keyed = change(world, "repartition", "dispatch", 1, hold=True, types=["Placed"], dry_run=True)
        everything = change(world, "repartition", "dispatch", 1, hold=True, dry_run=True)
        assert 0 < done.held < everything.held == done.held + keyed.held
    change(world, "repartition", "dispatch", 1, hold=True, types=["Noted"])
    world.settings(max_attempts=3)
    world.process()
    assert len([each for each in world.effects() if ":" not in each]) == 5


# --- sessions, transactions, the log ----------------------------------------------------------------------------------------


def test_nothing_happens_before_the_commit(world: World) -> None:
    """G10: a rollback takes it back."""
    world.register(Noted(n=1))
    world.process()
    before = columns(world, "name", "partition", "state", "position", "epoch", "revision")
    with world.sessions() as session:
        subscriptions = Subscriptions(session)
        subscriptions.pause("dispatch")
        subscriptions.reset("dispatch", 0)
        subscriptions.rename("dispatch", "new")
        subscriptions.repartition("new", 5)
        subscriptions.drop("new")
        assert subscriptions.list() == []
        session.rollback()
    assert columns(world, "name", "partition", "state", "position", "epoch", "revision") == before


def test_on_a_connection_and_on_a_scoped_session(world: World, engine: sa.Engine) -> None:
    """Both are the caller's as a session is."""
    world.process()
    with engine.begin() as connection:
        assert Subscriptions(connection).pause("dispatch").changed
    scoped = scoped_session(world.sessions)
    assert not Subscriptions(scoped).pause("dispatch").changed
    scoped.remove()


def test_of_the_wrong_colour() -> None:
    """It says which class takes what was given."""
    with pytest.raises(
        WiringError, match="Subscriptions works on Session or Connection, not on 'AsyncSession'"
    ):
        Subscriptions(AsyncSession())  # type: ignore[arg-type]
    with pytest.raises(WiringError, match="async ones to AsyncSubscriptions"):
        AsyncSubscriptions(sa.create_engine("sqlite://"))  # type: ignore[arg-type]


def test_not_in_autocommit(world: World, engine: sa.Engine) -> None:
    """Its locks would end at once."""
    world.process()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(UnsupportedDatabase, match="subscriptions are changed in a transaction"):
            Subscriptions(connection).pause("dispatch")
        assert len(Subscriptions(connection).list()) == 1


@pytest.mark.sqlite
@pytest.mark.parametrize(("by", "said"), [("ann", "by ann"), (None, "by somebody who gave no name")])
def test_the_log_says_who(world: World, caplog: pytest.LogCaptureFixture, by: str | None, said: str) -> None:
    """One line a change, with fields for programs; none for a dry run, or for what changed nothing."""
    world.process()
    caplog.set_level(logging.WARNING, "message_bus.admin")
    change(world, "reset", "dispatch", 0, by=by)
    change(world, "reset", "dispatch", 0, by=by, dry_run=True)
    change(world, "resume", "dispatch", by=by)
    [record] = caplog.records
    assert (
        record.getMessage()
        == f"reset of subscription 'dispatch', {said}: in force when its transaction commits"
    )
    extra = vars(record)
    assert (extra["by"], extra["action"], extra["position"]) == (by, "reset", 0)


async def test_the_asynchronous_twin(async_engine: Any, async_tables: Any) -> None:
    """The same source: each method once, on an AsyncSession."""
    t = async_tables.subscription
    row = {"partitions": 1, "partition": 0, "log": "outbox", "position": 0, "epoch": 7, "seen_at": ONCE}
    async with AsyncSession(async_engine) as session, session.begin():
        await session.execute(sa.insert(t), [{**row, "name": "one", "state": "idle"}])
        subscriptions = AsyncSubscriptions(session)
        assert (await subscriptions.start("one", at=ONCE)).position == 0
        assert (await subscriptions.pause("one")).changed
        assert (await subscriptions.resume("one")).changed
        assert (await subscriptions.reset("one", "now")).position == 0
        assert (await subscriptions.rename("one", "two")).name == "two"
        assert (await subscriptions.repartition("two", 3)).partitions == 3
        assert [(each.subscription, each.lag) for each in await subscriptions.list()] == [("two", 0)] * 3
        assert (await subscriptions.drop("two")).before == (0, 0, 0)
        with pytest.raises(SettingsError, match="there are none yet"):
            await subscriptions.drop("two")
