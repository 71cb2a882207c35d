"""Rebuild, verify, swap, drop: beside a live projection, killed at any step, and what is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables, Reject, SettingsError
from message_bus.errors import AsyncHandlerOnSyncBus, RebuildRefused
from message_bus.eventsourcing.projections import projection_changes, projections_admin, rebuilding
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projections_admin import Projections
from message_bus.eventsourcing.projections.projections_admin_async import AsyncProjections
from message_bus.eventsourcing.projections.rebuilding import Rebuild
from message_bus.eventsourcing.when import when
from message_bus.messages.envelope import new_envelope
from message_bus.storage import projection_statements
from tests.eventsourcing.projecting import (
    METADATA,
    SEEN,
    TOTALS,
    EventTotals,
    OrderPlaced,
    Shop,
    append_events,
    fill,
    projection_of,
)
from tests.eventsourcing.test_projection import AsyncTotals, Version2, recorded
from tests.waiting import wait_until


@pytest.fixture(params=["events", "outbox"])
def shop(
    request: pytest.FixtureRequest, session_factory: sessionmaker[Session], tables: MessageBusTables
) -> Shop:
    """A shop whose projection has handled 60 events of either log."""
    made = Shop(session_factory, tables, request.param)
    made.run_as(projection_of(request.param))
    fill(made, 60)
    made.process()
    return made


@pytest.fixture
def events(session_factory: sessionmaker[Session], tables: MessageBusTables) -> Shop:
    """The same, of the event log."""
    made = Shop(session_factory, tables, "events")
    made.run_as(projection_of("events"))
    fill(made, 60)
    made.process()
    return made


def names_in(shop: Shop) -> dict[str, tuple[list[str | None], str | None, list[str | None]]]:
    """Of each table of the projection: its indexes, its primary key, its checks."""
    with shop.sessions() as session:
        found = sa.inspect(session.connection())
        return {
            table: (
                sorted(each["name"] or "" for each in found.get_indexes(table)),
                found.get_pk_constraint(table)["name"],
                [each["name"] for each in found.get_check_constraints(table)],
            )
            for table in found.get_table_names()
            if table.startswith(("totals", "seen"))
        }


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_rebuild_takes_the_place_of_the_live_one(shop: Shop) -> None:
    """Built, compared, swapped, dropped; the live subscription goes on with the new tables (G5)."""
    with shop.sessions.begin() as session:
        session.execute(sa.update(TOTALS).values(cents=0))  # why somebody rebuilds
    assert shop.totals() != shop.expected()
    told: list[tuple[int, int]] = []
    done = shop.admin.rebuild(shop.projection, progress=lambda at, goal: told.append((at, goal)))
    assert (done.generation, done.position, done.failed, told[-1]) == (1, 60, (), (60, 60))
    assert shop.totals("totals__1") == shop.expected()
    [totals, seen] = done.verification.tables
    assert (done.ok, totals.equal, seen.equal) == (False, False, True)
    assert (totals.only_live, totals.only_rebuilt) == (7, 7)
    fill(shop, 15)
    swapped = shop.admin.swap(shop.projection)
    assert (swapped.position, swapped.tables) == (75, {"totals": "totals__0", "seen": "seen__0"})
    fill(shop, 15)
    assert shop.process().delivered == 15
    assert shop.totals() == shop.expected()
    assert (
        shop.scalar("SELECT count(*) FROM seen")
        == shop.scalar("SELECT count(DISTINCT position) FROM seen")
        == 90
    )
    assert shop.checkpoint("totals@1") is None
    assert [(each.generation, each.state, each.position) for each in shop.admin.list()] == [
        (0, "retired", None),
        (1, "live", 90),
    ]
    assert shop.admin.drop("totals") == ["totals__0", "seen__0"]
    assert shop.admin.drop("totals") == []
    assert shop.generations() == [(1, 1, "live")]


def test_what_is_written_meanwhile_is_handled_before_the_tables_are_compared(
    events: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of its own, not in the transaction that compares, where on SQLite all writers wait for it."""
    monkeypatch.setattr(rebuilding, "BATCH", 20)
    written = iter((200, 100))

    def others_write(*_: int) -> None:
        fill(events, next(written, 0))
        events.process()

    compared: list[int] = []
    bring = Rebuild.bring

    def note(self: Rebuild, session: Session, *, after: int, to: int | None) -> int:
        compared.append(after)
        return bring(self, session, after=after, to=to)

    monkeypatch.setattr(Rebuild, "bring", note)
    done = events.admin.rebuild(events.projection, progress=others_write)
    assert done.ok
    assert (done.position, done.verification.position, compared) == (360, 360, [360])


def test_an_inline_projection_is_caught_up_with_as_well(
    session_factory: sessionmaker[Session], tables: MessageBusTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no subscription: what its writers have committed is in the log."""
    monkeypatch.setattr(rebuilding, "BATCH", 20)
    shop = Shop(session_factory, tables)
    inline = EventTotals(inline=True)
    written = iter((100,))

    def write(count: int) -> None:
        orders = [OrderPlaced(customer="c1", cents=n) for n in range(count)]
        with shop.sessions.begin() as session:
            for position, order in zip(append_events(session, tables, *orders), orders, strict=True):
                inline.apply(session, recorded(order, first=position))

    write(30)
    done = shop.admin.rebuild(inline, progress=lambda *_: write(next(written, 0)))
    assert (done.ok, done.position) == (True, 130)


def test_a_rebuild_that_others_outrun_ends(events: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up when the distance does not become smaller; the comparison brings the rest."""
    monkeypatch.setattr(rebuilding, "BATCH", 20)
    calls: list[int] = []

    def others_write(*_: int) -> None:
        calls.append(1)
        fill(events, 30)
        events.process()

    done = events.admin.rebuild(events.projection, progress=others_write)
    assert (done.ok, done.verification.position) == (True, events.high())
    assert len(calls) < 20


def test_a_swap_from_far_behind_is_refused(events: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody would wait while it handles them all behind its locks: only on demand."""
    monkeypatch.setattr(rebuilding, "BATCH", 20)
    monkeypatch.setattr(projections_admin, "MOST_BEHIND_LOCKS", 50)
    events.admin.rebuild(events.projection)
    with monkeypatch.context() as patch:
        # as if others wrote as fast as it handles
        patch.setattr(Rebuild, "fill", lambda *_: None)
        fill(events, 100)
        events.process()
        with pytest.raises(RebuildRefused, match=r"100 positions behind .* does not come nearer: .*force"):
            events.admin.swap(events.projection)
        swapped = events.admin.swap(events.projection, force=True)
    assert swapped.position == 160
    assert events.totals() == events.expected()


def test_an_unchanged_projection_is_equal(shop: Shop) -> None:
    """At one position; times and numbers that the database makes are not compared."""
    fill(shop, 10)
    done = shop.admin.rebuild(shop.projection)
    assert done.ok
    assert done.verification.position == 70
    assert [each.columns for each in done.verification.tables] == [
        ("customer", "cents", "orders", "last_position"),
        ("position", "what"),
    ]
    assert shop.checkpoint() == 70  # nobody else did, so the rebuild has brought it forward
    assert shop.admin.verify(shop.projection) == done.verification


def test_names_of_indexes_and_constraints_are_those_of_the_live_table(events: Shop) -> None:
    """After one swap and after two, a migration tool finds what the metadata says."""
    before = names_in(events)
    for _ in range(2):
        events.admin.rebuild(events.projection)
        events.admin.swap(events.projection)
        events.admin.drop("totals")
        assert names_in(events) == before


@pytest.mark.postgresql
def test_who_may_read_the_live_table_may_read_the_new_one(events: Shop, postgresql_url: sa.URL) -> None:
    """Grants go with the name."""
    with events.sessions.begin() as session:
        session.execute(sa.text("GRANT SELECT ON totals TO PUBLIC"))
        session.execute(sa.text("GRANT UPDATE ON totals TO pg_monitor WITH GRANT OPTION"))
    events.admin.rebuild(events.projection)
    events.admin.swap(events.projection)
    with events.sessions() as session:
        [(acl,)] = session.execute(
            sa.text("SELECT relacl::text FROM pg_class WHERE oid = 'totals'::regclass")
        )
    assert "=r/" in acl
    assert "pg_monitor=w*/" in acl


@pytest.mark.postgresql
def test_tables_in_a_schema_with_types_of_their_own(
    session_factory: sessionmaker[Session], tables: MessageBusTables, schema: str
) -> None:
    """A schema, an identity, an enum, an unnamed unique key and a generated name: twice around, all is called as before."""
    metadata = sa.MetaData(schema=schema)
    table = sa.Table(
        "Colours of Orders",
        metadata,
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("colour", sa.Enum("red", "blue", name="colour", metadata=metadata), nullable=False),
        sa.Column("data", sa.JSON),
        sa.Column("position", sa.BigInteger, unique=True, index=True),
        sa.Index(None, sa.text("(position + 1)")),
    )

    class Colours(Projection):
        tables = [table]  # noqa: RUF012

        @when(OrderPlaced)
        def placed(self, event: OrderPlaced, context: Any) -> None:
            values = {"colour": "red", "data": {"a": [1]}, "position": context.envelope.position}
            context.db_session.execute(sa.insert(self.table("Colours of Orders")).values(values))

    shop, colours = Shop(session_factory, tables), Colours()
    with shop.sessions.begin() as session:
        metadata.create_all(session.connection())
    shop.run_as(colours)  # type: ignore[arg-type]
    fill(shop, 4)
    shop.process()

    def names() -> set[Any]:
        found = "SELECT conname FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)"
        found += " AND contype <> 'n' UNION SELECT relname FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace)"
        found += " AND relkind <> 'S'"
        with shop.sessions() as session:
            return set(session.scalars(sa.text(found), {"schema": schema}))

    before = names()
    for _ in range(2):
        assert shop.admin.rebuild(colours).ok
        swapped = shop.admin.swap(colours)
        assert shop.admin.drop("Colours") == [swapped.tables["Colours of Orders"]]
        assert names() == before
    assert shop.scalar(sa.select(sa.func.count()).select_from(table)) == 4


def test_a_second_rebuild_gets_another_generation(events: Shop) -> None:
    """No number is used twice; retired tables stay until they are dropped."""
    for generation in (1, 2):
        events.admin.rebuild(events.projection)
        assert events.admin.swap(events.projection).generation == generation
    assert events.generations() == [(0, 1, "retired"), (1, 1, "retired"), (2, 1, "live")]
    assert events.admin.drop("totals") == ["totals__0", "seen__0", "totals__1", "seen__1"]


def test_a_projection_that_has_never_run_can_be_built(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Then the rebuilt one's place in the log becomes the live subscription's."""
    shop = Shop(session_factory, tables)
    fill(shop, 20)
    projection = projection_of("events")
    done = shop.admin.rebuild(projection)
    assert done.verification.why_not == "the live projection has no place in the log yet"
    shop.admin.swap(projection)
    shop.run_as(projection)
    assert shop.process().delivered == 0
    assert (shop.totals(), shop.checkpoint()) == (shop.expected(), 20)


def test_an_inline_projection_is_rebuilt_from_what_its_writers_committed(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Its writers go on; the swap takes in what they have committed, seen behind the locks."""
    shop = Shop(session_factory, tables)
    projection = EventTotals(inline=True)

    def write(*events: Any) -> None:
        with shop.sessions.begin() as session:
            shop.append(session, *events)
            source = shop.tables.of_log("events").source
            for event in events:
                envelope = _recorded(event, session.scalar(sa.select(sa.func.max(source.c.position))))
                projection.apply(session, [envelope])

    for number in range(20):
        write(OrderPlaced(customer=f"c{number % 3}", cents=number))
    with shop.sessions.begin() as session:
        session.execute(sa.update(TOTALS).values(cents=0))
    assert not shop.admin.rebuild(projection).ok
    write(OrderPlaced(customer="new", cents=1))
    shop.admin.swap(projection)
    write(OrderPlaced(customer="new", cents=1))
    assert shop.totals() == shop.expected()
    assert shop.checkpoint("totals@1") is None
    assert shop.admin.list()[-1].subscription == "(inline)"
    assert shop.admin.rebuild(projection).ok


def _recorded(event: Any, position: int) -> Any:
    return replace(new_envelope(event), position=position)


@pytest.mark.postgresql
@pytest.mark.parametrize("rule", [True, False])
def test_a_writer_that_is_not_done_yet_is_waited_for(
    session_factory: sessionmaker[Session],
    tables: MessageBusTables,
    monkeypatch: pytest.MonkeyPatch,
    rule: bool,
) -> None:
    """What an inline writer is about to commit is in the new tables; without the locks it would stay in the old ones."""
    shop, projection = Shop(session_factory, tables), EventTotals(inline=True)

    def write(session: Session, event: OrderPlaced) -> None:
        [position] = append_events(session, tables, event)
        projection.apply(session, [_recorded(event, position)])

    with shop.sessions.begin() as session:
        write(session, OrderPlaced(customer="ann", cents=1))
    shop.admin.rebuild(projection)
    if not rule:
        monkeypatch.setattr(projections_admin.ddl, "lock", lambda *args, **options: None)
    with shop.sessions() as session:
        write(session, OrderPlaced(customer="bob", cents=2))
        swapping = threading.Thread(target=shop.admin.swap, args=(projection,))
        swapping.start()
        wait_until(
            lambda: shop.scalar(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'totals'::regclass"
            ),
            timeout=30,
        )
        session.commit()
    swapping.join()
    assert (shop.totals() == shop.expected()) is rule


async def test_async_handlers_are_rebuilt_too(
    async_engine: AsyncEngine,
    async_session_factory: async_sessionmaker[AsyncSession],
    async_tables: MessageBusTables,
) -> None:
    """AsyncProjections is the same for an AsyncMessageBus."""
    projection, admin = AsyncTotals(), AsyncProjections(async_session_factory, tables=async_tables)
    async with async_session_factory() as session:
        await (await session.connection()).run_sync(METADATA.create_all)
        for customer in ("ann", "bob"):
            await session.run_sync(append_events, async_tables, OrderPlaced(customer=customer, cents=5))
        await session.commit()
    assert (await admin.rebuild(projection)).position == 2
    async with async_session_factory() as session:
        await session.run_sync(append_events, async_tables, OrderPlaced(customer="cid", cents=5))
        await session.commit()
    assert (await admin.swap(projection, by="somebody")).position == 3
    async with async_session_factory() as session:
        assert (await session.scalars(sa.select(TOTALS.c.customer).order_by(TOTALS.c.customer))).all() == [
            "ann",
            "bob",
            "cid",
        ]
    assert [each.state for each in await admin.list()] == ["retired", "live"]
    assert (await AsyncProjections(async_engine, tables=async_tables).rebuild(projection)).ok
    assert (await admin.verify(projection)).ok
    assert await admin.drop("totals", building=True) == ["totals__0", "seen__0", "totals__2", "seen__2"]


def test_async_handlers_need_the_other_colour(events: Shop) -> None:
    """A sync rebuild of them says so before it makes anything."""
    with pytest.raises(AsyncHandlerOnSyncBus):
        events.admin.rebuild(AsyncTotals())
    assert events.generations() == [(0, 1, "live")]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_fails_in_the_rebuild_is_a_reason_to_refuse(shop: Shop) -> None:
    """Unless it is forced: then the event is left out, and its dead letter belongs to the live subscription."""
    shop.write(OrderPlaced(customer="bad", cents=1), OrderPlaced(customer="good", cents=1))
    shop.process()
    shop.projection.trouble.of["bad"] = [ValueError(str(n)) for n in range(100)]
    done = shop.admin.rebuild(shop.projection)
    assert (done.failed, done.ok) == ((61,), False)
    with pytest.raises(RebuildRefused, match="events at 61 failed in the rebuild"):
        shop.admin.swap(shop.projection)
    assert shop.generations() == [(0, 1, "live"), (1, 1, "building")]
    shop.admin.swap(shop.projection, force=True)
    assert "bad" not in shop.totals()
    d = shop.tables.delivery
    assert shop.scalar(sa.select(d.c.subscription).where(d.c.position == 61, d.c.state == "dead")) == "totals"


def test_what_is_dead_in_the_live_one_may_be_dead_in_the_rebuilt_one(shop: Shop) -> None:
    """A poison that everybody knows of does not keep anybody from swapping."""
    shop.projection.trouble.of["bad"] = [Reject("poison") for _ in range(10)]
    shop.write(OrderPlaced(customer="bad", cents=1))
    shop.process()
    done = shop.admin.rebuild(shop.projection)
    assert (done.failed, done.ok) == ((), True)
    shop.admin.swap(shop.projection)
    d = shop.tables.delivery
    assert shop.scalar(sa.select(sa.func.count()).select_from(d)) == 1


def test_newer_code_gives_up_what_older_code_was_building(events: Shop) -> None:
    """Its tables have another shape."""
    events.admin.rebuild(events.projection)
    done = events.admin.rebuild(Version2())
    assert done.generation == 2
    assert events.generations() == [(0, 1, "live"), (2, 2, "building")]
    assert set(names_in(events)) == {"totals", "seen", "totals__2", "seen__2"}
    with pytest.raises(RebuildRefused, match="version 2 is built, but this is version 1"):
        events.admin.swap(events.projection)


def test_what_makes_no_sense_is_refused(events: Shop, session_factory: sessionmaker[Session]) -> None:
    """Each with its remedy."""
    with pytest.raises(RebuildRefused, match="nothing is built"):
        events.admin.swap(events.projection)
    with pytest.raises(RebuildRefused, match="nothing is built"):
        events.admin.verify(events.projection)
    with pytest.raises(SettingsError, match=r"no projection is called 'total' \(there are: 'totals'\)"):
        events.admin.drop("total")
    with pytest.raises(SettingsError, match="not on 'str'"):
        Projections("sqlite://")  # type: ignore[arg-type]
    with pytest.raises(RebuildRefused, match=r"filled by 'totals', but this one by '.inline.'"):
        events.admin.rebuild(EventTotals(inline=True))
    with events.sessions.begin() as session:
        SEEN.drop(session.connection())
        session.execute(sa.delete(events.tables.projection))
    with pytest.raises(RebuildRefused, match="there is no table 'seen'"):
        events.admin.rebuild(events.projection)


def test_a_pruned_log_is_not_rebuilt_from(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """What retention has taken would be missing."""
    shop = Shop(session_factory, tables, "outbox")
    shop.run_as(projection_of("outbox"))
    fill(shop, 5)
    shop.process()
    with shop.sessions.begin() as session:
        session.execute(sa.update(tables.log).values(pruned_to=3))
    with pytest.raises(RebuildRefused, match="up to position 3 of its log are pruned"):
        shop.admin.rebuild(shop.projection)
    assert shop.generations() == [(0, 1, "live")]


@pytest.mark.postgresql
def test_a_view_over_the_live_table_is_in_the_way(events: Shop) -> None:
    """PostgreSQL's views hold on to the table, not to its name: they would show the retired one."""
    with events.sessions.begin() as session:
        session.execute(sa.text("CREATE VIEW rich AS SELECT * FROM totals WHERE cents > 100"))
    events.admin.rebuild(events.projection)
    with pytest.raises(RebuildRefused, match="view 'rich' refers to table 'totals'"):
        events.admin.swap(events.projection)
    with events.sessions.begin() as session:
        session.execute(sa.text("DROP VIEW rich"))
    events.admin.swap(events.projection)


@pytest.mark.sqlite
def test_a_view_on_sqlite_shows_the_new_table(events: Shop) -> None:
    """There a view is looked up by name."""
    with events.sessions.begin() as session:
        session.execute(sa.text("CREATE VIEW everybody AS SELECT customer FROM totals"))
    events.admin.rebuild(events.projection)
    events.admin.swap(events.projection)
    fill(events, 1)
    events.write(OrderPlaced(customer="new", cents=1))
    events.process()
    assert events.scalar("SELECT count(*) FROM everybody WHERE customer = 'new'") == 1


@pytest.mark.postgresql
def test_a_swap_waits_for_readers_and_gives_up(events: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long query is waited for a moment, several times; then nothing is changed."""
    monkeypatch.setattr(projections_admin, "_LOCKS_WITHIN", timedelta(milliseconds=20))
    monkeypatch.setattr(projections_admin, "_TRIES", 2)
    events.admin.rebuild(events.projection)
    with events.sessions() as reader:
        reader.execute(sa.select(TOTALS)).all()
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            events.admin.swap(events.projection)
    assert events.generations() == [(0, 1, "live"), (1, 1, "building")]
    events.admin.swap(events.projection)


def test_two_rebuilds_at_once_are_one(events: Shop) -> None:
    """The second one waits for the lease of the first, and is refused if that is alive."""
    events.admin.rebuild(events.projection)
    s = events.tables.subscription
    with events.sessions.begin() as session:
        session.execute(
            sa.update(s)
            .where(s.c.name == "totals@1")
            .values(owner="somebody", lease_until=datetime(9999, 1, 1, tzinfo=UTC))
        )
    impatient = Projections(events.sessions, tables=events.tables, lease=timedelta(seconds=1))
    with pytest.raises(RebuildRefused, match="another process is at work on subscription 'totals@1'"):
        impatient.rebuild(events.projection)
    with pytest.raises(RebuildRefused, match="another process is building it"):
        events.admin.drop("totals", building=True)


def test_two_swaps_at_once_are_one(events: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds that it is done, and leaves nothing behind."""
    events.admin.rebuild(events.projection)
    fill_it = Rebuild.fill

    def late(self: Rebuild, *args: Any) -> int:
        monkeypatch.setattr(Rebuild, "fill", fill_it)
        events.admin.swap(events.projection)
        return fill_it(self, *args)

    monkeypatch.setattr(Rebuild, "fill", late)
    with pytest.raises(RebuildRefused, match="somebody else has swapped or dropped what was built"):
        events.admin.swap(events.projection)
    assert events.checkpoint("totals@1") is None
    assert events.generations() == [(0, 1, "retired"), (1, 1, "live")]


@pytest.mark.parametrize("method", ["_failed", "gap"])
def test_a_swap_that_comes_second_is_refused(
    events: Shop, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """However late it notices; with one line, not with a table that is missing."""
    events.admin.rebuild(events.projection)
    owner: Any = Projections if method == "_failed" else Rebuild
    original = getattr(owner, method)

    def late(self: Any, *args: Any) -> Any:
        monkeypatch.setattr(owner, method, original)
        found = original(self, *args)
        events.admin.swap(events.projection)
        return found

    monkeypatch.setattr(owner, method, late)
    with pytest.raises(RebuildRefused, match=r"somebody else has|nothing is built"):
        events.admin.swap(events.projection)
    assert events.generations() == [(0, 1, "retired"), (1, 1, "live")]


# --- killed at any step -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "method", "when"),
    [
        (projection_changes, "begin", "after"),
        (Rebuild, "fill", "before"),
        (Rebuild, "fill", "after"),
        (Rebuild, "verify", "before"),
        (projection_changes, "lock_for_swap", "after"),
        (projection_changes.ddl, "exchange", "after"),
        (projection_changes, "_hand_over", "after"),
        (projection_changes, "swap", "after"),
        (projection_changes, "remove", "after"),
    ],
)
def test_killed_at_any_step_it_is_run_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, when: str
) -> None:
    """Rebuild, swap and drop are each all or nothing; run again, they get to the end."""
    original = getattr(owner, method)

    def dies(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            original(*args, **kwargs)
        raise Killed

    def all_of_it() -> None:
        if not any(state == "live" and generation for generation, _, state in shop.generations()):
            shop.admin.rebuild(shop.projection)
            shop.admin.swap(shop.projection)
        shop.admin.drop("totals")

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, dies)
        with pytest.raises(Killed):
            all_of_it()
    shop.expire_leases()
    fill(shop, 5)
    shop.process()
    assert shop.totals() == shop.expected()
    all_of_it()
    fill(shop, 5)
    shop.process()
    assert shop.totals() == shop.expected()
    assert (
        shop.scalar("SELECT count(*) FROM seen")
        == shop.scalar("SELECT count(DISTINCT position) FROM seen")
        == 70
    )
    assert shop.generations() == [(1, 1, "live")]
    assert set(names_in(shop)) == {"totals", "seen"}


# --- the swap and whoever is at work ----------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("rule", [True, False])
def test_tables_and_place_change_hands_together(
    events: Shop, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A worker with a batch in hand cannot commit it into the new tables (G5, G6); with the rule taken out it does, twice."""
    if not rule:

        def leaves_it_where_it_was(tables: MessageBusTables) -> Any:
            of, to = sa.bindparam("of_subscription"), sa.bindparam("to")
            return sa.update(tables.subscription).where(of == "", to == -1).values(state="active")

        monkeypatch.setattr(projection_statements, "take_over", leaves_it_where_it_was)

    class Interrupted(EventTotals):
        name = "totals"
        swapped = False

        def _add(self, *args: Any) -> None:
            if not self.swapped:  # the batch has begun, but touched no table yet: nobody waits for it
                self.swapped = True
                events.admin.swap(projection)
            super()._add(*args)

    projection = events.projection
    events.admin.rebuild(projection)
    fill(events, 3)
    events.run_as(Interrupted())
    events.process()
    events.run_as(projection)
    events.process()
    assert (events.totals() == events.expected()) is rule
