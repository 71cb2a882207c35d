"""Looks at a real server, beside real writers, in interleavings that the test decides on (W1, W2, W3, W5,
W6).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from message_bus.errors import PositionBehind, SchemaError, SettingsError, UnsupportedDatabase
from message_bus.storage import looking
from message_bus.storage.settled import Look, Remembered, check_checkpoint
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark
from tests.watermark.readers import AsyncReader, Log, Reader, lost, pid_of, positions

pytestmark = pytest.mark.postgresql


def with_look(patch: pytest.MonkeyPatch, rule: str, weaker: str) -> None:
    """Take a rule out of the statement."""
    sql = looking.LOOK.text
    assert rule in sql
    weak = sa.text(sql.replace(rule, weaker)).bindparams(
        sa.bindparam("name", type_=sa.Text), sa.bindparam("position", type_=sa.Text)
    )
    patch.setattr(looking, "LOOK", weak.bindparams(sa.bindparam("above", type_=sa.BigInteger)))


# --- the race itself ----------------------------------------------------------------------------------------------


def test_a_row_that_commits_after_a_later_one_is_not_lost(log: Log, reader: Reader) -> None:
    """5 is drawn before 6, and 6 commits first: nothing is passed before both are there, and then in order."""
    slow = log.begin()
    first = log.write(slow)
    second = log.commit()
    assert reader.poll() == []
    slow.commit()
    assert reader.poll() == first + second


def test_without_the_watermark_that_row_is_lost(log: Log) -> None:
    """The naive cursor, which reads whatever is above its checkpoint, never sees the one that committed late."""
    slow = log.begin()
    first = log.write(slow)
    with log.engine.connect() as connection:
        log.commit()
        seen = positions(connection, log.tables)
        slow.commit()
        seen += positions(connection, log.tables, after=seen[-1])
    assert lost(log, seen) == first


def test_a_rolled_back_position_does_not_hold_anything_back(log: Log, reader: Reader) -> None:
    """A gap settles as soon as the transaction that made it has ended."""
    gone = log.begin()
    log.write(gone, 3)
    written = log.commit()
    assert reader.poll() == []
    gone.rollback()
    assert reader.poll() == written
    assert reader.checkpoint == 4


def test_a_writer_that_wrote_something_else_first_is_no_different(log: Log, reader: Reader) -> None:
    """Its transaction id is older than everybody's; the lock says what counts: it has not drawn a position
    yet.
    """
    early = log.begin()
    early.execute(sa.text("SELECT pg_current_xact_id()"))
    committed = log.commit()
    assert reader.poll() == committed
    late = log.write(early)
    early.commit()
    assert reader.poll() == late


def test_an_unrelated_long_transaction_does_not_stall_the_log(log: Log, reader: Reader) -> None:
    """Only who writes to this log is waited for."""
    other = log.begin()
    other.execute(sa.text("CREATE TABLE unrelated (n int)"))
    other.execute(sa.text("INSERT INTO unrelated VALUES (1)"))
    assert reader.poll() == []
    written = log.commit()
    assert reader.poll() == written
    other.rollback()


def test_overlapping_writers_are_followed(log: Log, reader: Reader) -> None:
    """W5: with two writers always open, what the earlier ones wrote comes through, one look at a time."""
    open_now = [log.begin()]
    expected = [log.write(open_now[0])]
    assert reader.poll() == []
    for _ in range(5):
        open_now.append(log.begin())
        expected.append(log.write(open_now[-1]))
        reader.poll()
        open_now.pop(0).commit()
    reader.poll()
    assert reader.seen == [position for part in expected[:-1] for position in part]
    open_now.pop().commit()
    reader.poll()
    assert reader.seen == log.rows


# --- the order of a look ------------------------------------------------------------------------------------------


def _high(connection: sa.Connection, log: Log) -> int:
    query = sa.text("SELECT coalesce(pg_sequence_last_value(CAST(:name AS regclass)), 0)")
    return int(connection.execute(query, {"name": log.sequence}).scalar_one())


def test_without_the_order_of_a_look_a_row_is_lost(log: Log) -> None:
    """Writers first and the sequence after them: who draws a position in between is overlooked."""
    committed: list[sa.Connection] = []
    with log.engine.connect() as connection:
        before = frozenset(log.writers())
        slow = log.begin()
        committed.append(slow)
        first = log.write(slow)
        settled = Remembered().observe(_high(connection, log), before, "1")
        seen = positions(connection, log.tables, upto=settled)
        slow.commit()
        seen += positions(connection, log.tables, after=settled)
    assert lost(log, seen) == first


def test_the_server_reads_the_sequence_before_the_locks(log: Log) -> None:
    """The statement's parts announce themselves as they are run: the order is the statement's, on every plan."""
    with log.engine.connect() as connection:
        connection.execute(
            sa.text(
                "CREATE FUNCTION told(what text, value anyelement) RETURNS anyelement VOLATILE LANGUAGE plpgsql"
                " AS $$ BEGIN RAISE NOTICE '%', what; RETURN value; END $$"
            )
        )
        connection.execute(
            sa.text(
                "CREATE FUNCTION told_locks() RETURNS SETOF pg_locks VOLATILE LANGUAGE plpgsql"
                " AS $$ BEGIN RAISE NOTICE 'locks'; RETURN QUERY SELECT * FROM pg_catalog.pg_locks; END $$"
            )
        )
        sql = looking.LOOK.text.replace("FROM pg_locks AS lock", "FROM told_locks() AS lock")
        sql = sql.replace(
            "pg_sequence_last_value(log.sequence)", "told('high', pg_sequence_last_value(log.sequence))"
        )
        log.write(connection)
        told: list[str] = []
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.add_notice_handler(lambda notice: told.append(notice.message_primary))
        for mode in ("force_custom_plan", "force_generic_plan"):
            connection.execute(sa.text(f"SET LOCAL plan_cache_mode = {mode}"))
            for switched_off in ("nestloop", "hashjoin", "mergejoin", "material", "memoize"):
                connection.execute(sa.text(f"SET LOCAL enable_{switched_off} = off"))
                told.clear()
                row = connection.execute(
                    sa.text(sql), {"name": log.name, "position": "position", "above": -1}
                ).one()
                assert told == ["high", "locks"]
                assert row.own


def test_the_plan_gives_the_locks_what_the_sequence_said(log: Log) -> None:
    """The part that reads the locks is run with `high` in hand, and not at all if nothing is new (W6)."""
    log.commit()
    for above, expected in ((0, "loops=1"), (1, "never executed")):
        with log.engine.connect() as connection:
            plan = "\n".join(
                connection.execute(
                    sa.text(f"EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF) {looking.LOOK.text}"),
                    {"name": log.name, "position": "position", "above": above},
                ).scalars()
            )
        assert "One-Time Filter" in plan
        locks = next(line for line in plan.splitlines() if "pg_lock_status" in line and "->" in line)
        assert expected in locks


def test_each_statement_sees_the_locks_of_its_moment(log: Log) -> None:
    """pg_locks belongs to no snapshot: a REPEATABLE READ transaction sees a writer come and go."""
    with log.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(sa.text("SELECT 1"))
        query = sa.text(
            "SELECT count(*) FROM pg_locks WHERE relation = to_regclass(:name) AND mode = 'RowExclusiveLock'"
        )
        seen = [connection.execute(query, {"name": log.name}).scalar_one()]
        writer = log.begin()
        log.write(writer)
        seen.append(connection.execute(query, {"name": log.name}).scalar_one())
        writer.commit()
        seen.append(connection.execute(query, {"name": log.name}).scalar_one())
    assert seen == [0, 1, 0]


@pytest.fixture
def statements(log: Log) -> Iterator[list[str]]:
    """Every statement that SQLAlchemy sends through the log's engine."""
    sent: list[str] = []

    def note(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    event.listen(log.engine, "before_cursor_execute", note)
    yield sent
    event.remove(log.engine, "before_cursor_execute", note)


def test_a_look_is_one_statement(log: Log, statements: list[str]) -> None:
    """One round trip, with and without writers; a second one only when what was remembered does not hold any
    more.
    """
    watermark = Watermark(log.tables)
    expected = Look(1, 1, catch_up=f"SELECT setval('{log.sequence}', {{position}})")
    writer = log.begin()
    log.write(writer)
    with log.engine.connect() as connection:
        for _ in range(3):
            statements.clear()
            watermark.look(connection)
            assert len(statements) == 1
        writer.commit()
        statements.clear()
        assert watermark.look(connection) == expected
        assert len(statements) == 1
        connection.execute(sa.text("CHECKPOINT"))
        statements.clear()
        assert watermark.look(connection) == expected
        assert len(statements) == 2


def test_nothing_new_asks_for_no_locks(log: Log, reader: Reader) -> None:
    """W6: the position that is known to be settled is handed to the statement, which then leaves the locks
    alone.
    """
    log.commit(3)
    assert reader.poll() == [1, 2, 3]
    watermark = reader.async_watermark if isinstance(reader, AsyncReader) else reader.watermark
    assert watermark._remembered.settled == 3
    reader.begin()
    seen = reader.run(looking.see, log.tables.outbox, above=3)
    assert (seen.high, seen.writers) == (3, frozenset())
    assert reader.look().settled == 3
    reader.end()


# --- W1 -----------------------------------------------------------------------------------------------------------


def test_an_untouched_log_is_settled_at_nothing(reader: Reader) -> None:
    """W1: a sequence that was never used has no last value; that is 0, not an error and not 1."""
    reader.begin()
    assert reader.look().high == 0
    assert reader.look().settled == 0
    reader.end()


# --- W2: whose locks count ----------------------------------------------------------------------------------------


def test_a_message_written_and_read_in_one_transaction_is_read(log: Log, reader: Reader) -> None:
    """W2: register and process inside a test's transaction that will be rolled back: one's own rows are
    settled.
    """
    reader.begin()
    written = reader.run(lambda connection: log.write(connection, 2))
    assert reader.read(reader.look()) == written
    reader.run(lambda connection: connection.rollback())
    reader.end()


def test_without_the_exclusion_of_oneself_it_is_never_read(
    log: Log, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2 taken out: the reader waits for itself."""
    with_look(
        monkeypatch,
        "FILTER (WHERE lock.pid IS DISTINCT FROM pg_backend_pid()) AS others",
        "FILTER (WHERE true) AS others",
    )
    with_look(monkeypatch, "FILTER (WHERE lock.pid = pg_backend_pid()) AS own", "FILTER (WHERE false) AS own")
    reader.begin()
    reader.run(lambda connection: log.write(connection, 2))
    assert reader.read(reader.look()) == []
    reader.run(lambda connection: connection.rollback())
    reader.end()


def test_ones_own_rows_are_not_settled_for_the_others_of_the_process(log: Log) -> None:
    """W2: subscriptions share what is remembered, but not what one of them may see because it wrote it."""
    shared = Watermark(log.tables)
    writing = log.begin()
    written = log.write(writing)
    assert shared.look(writing).settled == 1
    with Reader(log.engine, log.tables, shared) as other:
        assert other.poll() == []
        writing.commit()
        assert other.poll() == written


def test_without_that_distinction_the_others_lose_the_row(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """W2 weakened: own locks are left out of what is remembered, as if they were nobody's."""
    with_look(
        monkeypatch,
        "array_agg(lock.virtualtransaction) FILTER (WHERE lock.pid = pg_backend_pid()) AS own",
        "NULL AS own",
    )
    shared = Watermark(log.tables)
    writing = log.begin()
    written = log.write(writing)
    assert shared.look(writing).settled == 1
    with Reader(log.engine, log.tables, shared) as other:
        other.poll()
        writing.commit()
        other.poll()
        assert lost(log, other.seen) == written


def test_a_prepared_transaction_is_waited_for(log: Log, reader: Reader) -> None:
    """W2: it has no pid, but keeps the virtual transaction id that it was seen with; COMMIT PREPARED lets it
    through.
    """
    writer = log.begin()
    first = log.write(writer)
    second = log.commit()
    assert reader.poll() == []
    before = log.writers()
    writer.execute(sa.text("PREPARE TRANSACTION 'forgotten'"))
    writer.rollback()
    assert log.writers() == before
    assert reader.poll() == []
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("COMMIT PREPARED 'forgotten'"))
    assert reader.poll() == first + second


def test_without_the_care_for_missing_pids_a_prepared_row_is_lost(
    log: Log, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2 weakened: `pid <> pg_backend_pid()` is not true of no pid, so the prepared transaction is
    overlooked.
    """
    with_look(monkeypatch, "lock.pid IS DISTINCT FROM pg_backend_pid()", "lock.pid <> pg_backend_pid()")
    writer = log.begin()
    first = log.write(writer)
    writer.execute(sa.text("PREPARE TRANSACTION 'overlooked'"))
    writer.rollback()
    log.commit()
    reader.poll()
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("COMMIT PREPARED 'overlooked'"))
    reader.poll()
    assert lost(log, reader.seen) == first


@pytest.fixture
def cloned(log: Log, postgresql_url: sa.URL, administration: sa.Engine) -> Iterator[Log]:
    """The same log in a database that was made from this one as its template: same schema, same OIDs."""
    name = f"{postgresql_url.database}_clone"
    log.engine.dispose()
    administration.dispose()  # a template must have no other connection
    elsewhere = sa.create_engine(
        postgresql_url.set(database="template1"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )
    with elsewhere.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}" TEMPLATE "{postgresql_url.database}"'))
    engine = sa.create_engine(log.engine.url.set(database=name), poolclass=sa.NullPool)
    with Log(engine, log.tables) as made:
        yield made
    with elsewhere.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


def test_a_writer_in_a_cloned_database_is_not_waited_for(log: Log, cloned: Log, reader: Reader) -> None:
    """W2: databases made from one template share OIDs; only locks of one's own database count."""
    far_away = cloned.begin()
    cloned.write(far_away)
    written = log.commit()
    assert reader.poll() == written
    far_away.rollback()


def test_without_the_database_in_the_question_a_clone_stalls_the_log(
    log: Log, cloned: Log, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2 weakened: a tenant's open transaction holds back everybody else's messages."""
    with_look(monkeypatch, "AND lock.database = seen.database", "")
    far_away = cloned.begin()
    cloned.write(far_away)
    log.commit()
    assert reader.poll() == []
    far_away.rollback()


def test_one_who_waits_for_the_lock_is_not_waited_for(log: Log, reader: Reader) -> None:
    """W2: it has not drawn a position yet (`granted`), and may wait for long."""
    written = log.commit()
    locker = log.begin()
    locker.execute(sa.text(f"LOCK TABLE {log.name} IN SHARE MODE"))
    waiting = log.begin()
    pid = pid_of(waiting)
    thread = threading.Thread(target=log.write, args=(waiting,))
    thread.start()
    log.wait_for_blocked(pid)
    assert reader.poll() == written
    locker.rollback()
    thread.join()
    waiting.rollback()


# --- W3: the snapshot of the rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_in_an_older_snapshot_is_refused(log: Log, reader: Reader, level: str) -> None:
    """W3: its later statements could not see what has settled since; the error says what to set."""
    reader.begin(level)
    with pytest.raises(UnsupportedDatabase, match=rf'{level}.*isolation_level="READ COMMITTED"'):
        reader.look()
    reader.end()


def test_without_w3_a_row_is_lost(log: Log, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """W3 taken out: the row commits after the snapshot and before the look, which settles it; the rows do not
    have it.
    """
    monkeypatch.setattr(looking, "old_snapshot", lambda isolation: None)
    reader.begin("REPEATABLE READ")
    reader.run(lambda connection: connection.execute(sa.text("SELECT 1")).one())
    written = log.commit()
    assert reader.read(reader.look()) == []
    reader.end()
    reader.poll()
    assert lost(log, reader.seen) == written


def test_without_reading_rows_after_the_look_a_row_is_lost(log: Log, reader: Reader) -> None:
    """W3: rows of a statement that began before the look are older than its locks."""
    reader.begin()
    rows = reader.run(positions, log.tables)
    written = log.commit()
    settled = reader.look().settled
    reader.end()
    seen = [position for position in rows if position <= settled]
    assert settled == 1
    assert lost(log, seen) == written


def test_a_default_of_repeatable_read_is_noticed(log: Log, reader: Reader) -> None:
    """W3: whoever set the level: here the role's default, which no engine option shows."""
    reader.begin()
    reader.run(
        lambda connection: connection.execute(
            sa.text("SET default_transaction_isolation = 'repeatable read'")
        )
    )
    reader.run(lambda connection: connection.commit())
    with pytest.raises(UnsupportedDatabase, match="REPEATABLE READ"):
        reader.look()
    reader.run(lambda connection: connection.rollback())
    reader.run(lambda connection: connection.execute(sa.text("RESET default_transaction_isolation")))
    reader.end()


def test_a_session_in_somebody_elses_transaction_is_fine(log: Log) -> None:
    """W3: a test suite's outer transaction at READ COMMITTED, with savepoints: each statement has its own
    snapshot.
    """
    outer = log.begin()
    outer.execute(sa.text("SELECT 1"))
    written = log.commit()
    nested = outer.begin_nested()
    with Session(outer, join_transaction_mode="create_savepoint") as session:
        look = Watermark(log.tables).look(session.connection())
        assert positions(session.connection(), log.tables, upto=look.settled) == written
    nested.rollback()
    outer.rollback()


# --- sharing, age, cancelling -------------------------------------------------------------------------------------


def test_a_watermark_shared_by_threads_is_never_ahead(log: Log) -> None:
    """Subscriptions of one process look at once while writers overlap: each position settles after its
    transaction.
    """
    shared = Watermark(log.tables)
    ended: set[int] = set()
    failures: list[int] = []
    enough = threading.Event()

    def look_all_the_time() -> None:
        with log.engine.connect() as connection:
            while not enough.is_set():
                known = shared.look(connection).settled
                if any(position not in ended for position in range(1, known + 1)):
                    failures.append(known)
                connection.rollback()

    threads = [threading.Thread(target=look_all_the_time) for _ in range(3)]
    for thread in threads:
        thread.start()
    open_now: list[tuple[sa.Connection, list[int]]] = []
    for _ in range(60):
        connection = log.begin()
        open_now.append((connection, log.write(connection)))
        if len(open_now) > 3:
            connection, held = open_now.pop(0)
            ended.update(held)  # before the commit: from here on it may be settled
            connection.commit()
            connection.close()
    for connection, held in open_now:
        ended.update(held)
        connection.rollback()
    enough.set()
    for thread in threads:
        thread.join()
    assert failures == []
    with log.engine.connect() as connection:
        assert shared.look(connection).settled == 60


def test_looks_of_one_watermark_wait_for_one_another(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older answer taken in after a newer one would drop writers that came in between: so none is under
    way then.
    """
    shared = Watermark(log.tables)
    inside: list[str] = []
    entered, go_on = threading.Event(), threading.Event()
    real = looking.see

    def slow(connection: sa.Connection, table: sa.Table, *, above: int = -1) -> looking.Seen:
        inside.append(threading.current_thread().name)
        entered.set()
        assert go_on.wait(10)
        return real(connection, table, above=above)

    monkeypatch.setattr(looking, "see", slow)

    def look() -> None:
        with log.engine.connect() as connection:
            shared.look(connection)

    threads = [threading.Thread(target=look, name=name) for name in ("first", "second")]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert inside == ["first"]
    assert shared._lock.locked()
    go_on.set()
    for thread in threads:
        thread.join()
    assert inside == ["first", "second"]


async def test_a_cancelled_look_leaves_the_watermark_usable(
    log: Log, postgresql_url: sa.URL, schema: str
) -> None:
    """A task that is cancelled in the middle of a look gives up the lock; the memory is as it was."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from message_bus.storage.watermark_async import AsyncWatermark

    engine = create_async_engine(postgresql_url.update_query_dict({"options": f"-csearch_path={schema}"}))
    watermark = AsyncWatermark(log.tables)
    log.commit()
    blocker = log.begin()
    blocker.execute(
        sa.text(f"ALTER SEQUENCE {log.sequence} CACHE 1")
    )  # whoever reads the sequence waits for this
    async with engine.connect() as connection:
        pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
        task = asyncio.create_task(watermark.look(connection))
        await asyncio.sleep(0)  # the task sends its statement and waits for the answer
        await asyncio.to_thread(log.wait_for_blocked, pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.invalidate()
    blocker.rollback()
    async with engine.connect() as connection:
        assert (await watermark.look(connection)).settled == 1
    await engine.dispose()


def test_the_reader_measures_how_long_the_watermark_stands(log: Log) -> None:
    """W10: the age grows while a writer holds the lock, by the process's own clock, and is nothing when all
    is settled.
    """
    now = 100.0
    watermark = Watermark(log.tables, clock=lambda: now)
    writer = log.begin()
    log.write(writer)
    with log.engine.connect() as connection:
        assert watermark.look(connection).age == timedelta(0)
        now = 107.5
        assert watermark.look(connection).age == timedelta(seconds=7.5)
        writer.commit()
        assert watermark.look(connection).age == timedelta(0)


# --- W8 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accident",
    ["SELECT setval('{sequence}', 2)", "TRUNCATE {name} RESTART IDENTITY"],
    ids=["setval", "truncate"],
)
def test_a_sequence_behind_the_checkpoint_is_an_error_with_a_repair_that_works(
    log: Log, reader: Reader, accident: str
) -> None:
    """W8: the log begins anew below the checkpoint: the reader says so, and the SQL that it names lets it go
    on.
    """
    log.commit(5)
    reader.poll()
    with log.engine.begin() as connection:
        connection.execute(sa.text(f"DELETE FROM {log.name}"))
        connection.execute(sa.text(accident.format(sequence=log.sequence, name=log.name)))
    log.commit()
    reader.begin()
    look = reader.look()
    assert look.settled == look.high < 5
    assert reader.read(look) == []  # without the check: nothing to do, for ever
    assert log.rows
    with pytest.raises(PositionBehind) as caught:
        check_checkpoint(look, reader.checkpoint)
    reader.end()
    repair = str(caught.value).split("run: ")[1].split(";")[0]
    with log.engine.begin() as connection:
        connection.execute(sa.text(repair))
    written = log.commit()
    assert written == [6]
    assert reader.poll() == written


# --- which table, which sequence ----------------------------------------------------------------------------------


def test_a_log_made_anew_is_another_one(log: Log, reader: Reader) -> None:
    """W4: dropped and created again, table and sequence have other OIDs: nothing remembered applies to them."""
    log.commit(9)
    assert reader.poll() == list(range(1, 10))
    log.tables.drop_all(log.engine)
    log.tables.create_all(log.engine)
    writer = log.begin()
    log.write(writer, 12)
    reader.begin()
    look = reader.look()
    reader.end()
    assert (look.settled, look.high) == (0, 12)
    writer.rollback()


def test_schema_translate_map_decides_which_table_is_looked_at(log: Log, postgresql_url: sa.URL) -> None:
    """A tenant's connection looks at the tenant's log, whatever the tables' own schema is, odd names
    included.
    """
    tables = MessageBusTables(schema="app")
    tenant = "Tenant 'a'"
    quoted = "\"Tenant 'a'\""
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {quoted}"))
        translated = connection.execution_options(schema_translate_map={"app": tenant})
        tables.metadata.create_all(translated, tables=[tables.outbox])
        connection.execute(sa.text(log.insert("4", into=f"{quoted}.message_bus_outbox")))
    with engine.connect().execution_options(schema_translate_map={"app": tenant}) as connection:
        look = Watermark(tables).look(connection)
        assert (look.settled, look.high) == (4, 4)
        connection.execute(sa.text(look.catch_up.format(position=9)))
        assert Watermark(tables).look(connection).high == 9
        connection.rollback()
        connection.execute(sa.text(f"DROP SCHEMA {quoted} CASCADE"))
        connection.commit()


def test_a_missing_table_is_named_and_the_transaction_stays_usable(engine: sa.Engine) -> None:
    """The wrong search_path or no migration: an error that says which, instead of an aborted transaction."""
    with engine.connect() as connection:
        with pytest.raises(
            SchemaError, match="table message_bus_outbox is missing, or not on the search_path"
        ):
            Watermark(MessageBusTables()).look(connection)
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1


def test_an_unknown_log_is_refused_at_once(tables: MessageBusTables) -> None:
    """A name that no log has is a mistake in the wiring."""
    with pytest.raises(SettingsError, match="'inbox' is not a log"):
        Watermark(tables.of_log("inbox"))


def test_positions_beyond_four_bytes_are_nothing_special(log: Log, make_reader: Callable[[], Reader]) -> None:
    """The position that goes to the server and back is a bigint on every driver."""
    with log.engine.begin() as connection:
        connection.execute(sa.text(f"SELECT setval('{log.sequence}', {2**40})"))
    written = log.commit(2)
    one = make_reader()
    assert one.poll() == written == [2**40 + 1, 2**40 + 2]
    assert one.poll() == []
