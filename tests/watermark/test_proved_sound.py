"""What the watermark builds on, asked of the server itself: the lock is there when a position is drawn, and
it is given up only when the rows are visible. (PostgreSQL's code says so; these say whether the server at
hand does.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa

from tests.waiting import wait_until
from tests.watermark.readers import Log, lost, pid_of, positions

pytestmark = pytest.mark.postgresql

COLUMNS = "(id, type, message, payload)"
VALUES = "(gen_random_uuid(), 'EVENT', 'm', '{}')"
Way = Callable[[psycopg.Connection[object], str], object]


def _simple(connection: psycopg.Connection[object], name: str) -> object:
    return connection.execute(f"INSERT INTO {name} {COLUMNS} VALUES {VALUES}".encode())


def _extended(connection: psycopg.Connection[object], name: str) -> object:
    return connection.execute(
        f"INSERT INTO {name} {COLUMNS} VALUES (gen_random_uuid(), 'EVENT', %s, '{{}}')".encode(),
        ["m"],
        prepare=False,
    )


def _binary(connection: psycopg.Connection[object], name: str) -> object:
    return connection.execute(
        f"INSERT INTO {name} {COLUMNS} VALUES (gen_random_uuid(), 'EVENT', %b, '{{}}')".encode(),
        ["m"],
        prepare=True,
    )


def _planned(mode: str) -> Way:
    def write(connection: psycopg.Connection[object], name: str) -> object:
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
        connection.execute(
            f"PREPARE w (text) AS INSERT INTO {name} {COLUMNS} VALUES (gen_random_uuid(), 'EVENT', $1, '{{}}')".encode()
        )
        return connection.execute(b"EXECUTE w ('m')")

    return write


def _sql(template: str, *before: str) -> Way:
    def write(connection: psycopg.Connection[object], name: str) -> object:
        for statement in before:
            connection.execute(_filled(statement, name))
        return connection.execute(_filled(template, name))

    return write


def _filled(template: str, name: str) -> bytes:
    return template.format(log=name, columns=COLUMNS, values=VALUES).encode()


def _copy(connection: psycopg.Connection[object], name: str) -> object:
    with connection.cursor() as cursor, cursor.copy(f"COPY {name} {COLUMNS} FROM STDIN".encode()) as copy:
        copy.write_row(["018f0000-0000-7000-8000-000000000001", "EVENT", "m", "{}"])
    return None


def _pipelined(connection: psycopg.Connection[object], name: str) -> object:
    with connection.pipeline():
        return connection.execute(f"INSERT INTO {name} {COLUMNS} VALUES {VALUES}".encode())


def _executemany(connection: psycopg.Connection[object], name: str) -> object:
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {name} {COLUMNS} VALUES (gen_random_uuid(), 'EVENT', %s, '{{}}')".encode(),
            [["m"], ["m"]],
        )
    return None


SOURCE = "SELECT gen_random_uuid() AS id, 'EVENT' AS type, 'm' AS message, '{{}}'::json AS payload FROM generate_series(1, 3)"
SIDE = "CREATE TABLE side (n int)"
WRITE_IN_PLPGSQL = (
    "CREATE FUNCTION written() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO {log} {columns} VALUES {values}; RETURN NEW; END $$"
)

WAYS: dict[str, Way] = {
    "simple protocol": _simple,
    "extended protocol": _extended,
    "prepared, binary": _binary,
    "pipeline": _pipelined,
    "executemany": _executemany,
    "custom plan": _planned("force_custom_plan"),
    "generic plan": _planned("force_generic_plan"),
    "multi-row": _sql("INSERT INTO {log} {columns} VALUES {values}, {values}, {values}"),
    "insert select": _sql(f"INSERT INTO {{log}} {{columns}} {SOURCE}"),
    "on conflict": _sql("INSERT INTO {log} {columns} VALUES {values} ON CONFLICT (id) DO NOTHING"),
    "cte": _sql("WITH w AS (INSERT INTO {log} {columns} VALUES {values} RETURNING position) SELECT * FROM w"),
    "do block": _sql("DO $$ BEGIN INSERT INTO {log} {columns} VALUES {values}; END $$"),
    "plpgsql with an exception block": _sql(
        "DO $$ BEGIN BEGIN INSERT INTO {log} {columns} VALUES {values}; EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " END $$"
    ),
    "plpgsql, dynamic": _sql("DO $$ BEGIN EXECUTE $q$INSERT INTO {log} {columns} VALUES {values}$q$; END $$"),
    "trigger": _sql(
        "INSERT INTO side VALUES (1)",
        SIDE,
        WRITE_IN_PLPGSQL,
        "CREATE TRIGGER t AFTER INSERT ON side FOR EACH ROW EXECUTE FUNCTION written()",
    ),
    "deferred trigger": _sql(
        "SET CONSTRAINTS ALL IMMEDIATE",
        SIDE,
        WRITE_IN_PLPGSQL,
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON side DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        " EXECUTE FUNCTION written()",
        "INSERT INTO side VALUES (1)",
    ),
    "rule": _sql(
        "INSERT INTO side VALUES (1)",
        SIDE,
        "CREATE RULE r AS ON INSERT TO side DO ALSO INSERT INTO {log} {columns} VALUES {values}",
    ),
    "view": _sql(
        "INSERT INTO seen_through {columns} VALUES {values}",
        "CREATE VIEW seen_through AS SELECT id, type, message, payload FROM {log}",
    ),
    "view with instead-of trigger": _sql(
        "INSERT INTO seen_through VALUES (1)",
        "CREATE VIEW seen_through AS SELECT 1 AS n",
        WRITE_IN_PLPGSQL,
        "CREATE TRIGGER t INSTEAD OF INSERT ON seen_through FOR EACH ROW EXECUTE FUNCTION written()",
    ),
    "copy": _copy,
    "merge": _sql(
        f"MERGE INTO {{log}} AS l USING ({SOURCE}) AS s ON l.id = s.id WHEN NOT MATCHED THEN"
        " INSERT {columns} VALUES (s.id, s.type, s.message, s.payload)"
    ),
    "inside a savepoint": _sql("INSERT INTO {log} {columns} VALUES {values}", "SAVEPOINT s"),
    "after rollback to": _sql(
        "INSERT INTO {log} {columns} VALUES {values}", "SAVEPOINT s", "LOCK TABLE {log} IN ROW EXCLUSIVE MODE", "ROLLBACK TO s"
    ),
    "under a stronger lock": _sql(
        "INSERT INTO {log} {columns} VALUES {values}", "LOCK TABLE {log} IN SHARE ROW EXCLUSIVE MODE"
    ),
    "nextval by hand": _sql(
        "INSERT INTO {log} (position, id, type, message, payload) OVERRIDING SYSTEM VALUE"
        " VALUES (nextval(pg_get_serial_sequence('{log}', 'position')), gen_random_uuid(), 'EVENT', 'm', '{{}}')"
    ),
}  # fmt: skip


@pytest.fixture
def gate(log: Log) -> Iterator[sa.Connection]:
    """A transaction that nobody can draw a position beside: `nextval` waits for it, whatever led there."""
    closed = log.begin()
    closed.execute(sa.text(f"ALTER SEQUENCE {log.sequence} CACHE 1"))
    yield closed
    closed.rollback()


@pytest.mark.parametrize("way", WAYS)
def test_the_lock_is_held_when_a_position_is_drawn(way: str, log: Log, gate: sa.Connection) -> None:
    """Held at the very moment of nextval: the writer waits there, and pg_locks already shows its lock on the
    log.
    """
    writer = log.begin()
    pid = pid_of(writer)
    if way == "merge" and (writer.dialect.server_version_info or ()) < (15,):
        pytest.skip("MERGE begins with PostgreSQL 15")
    driver = writer.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            WAYS[way](driver, log.name)
        except BaseException as error:  # told to the test
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: failed or _is_blocked_by(log, pid, gate))
        assert not failed
        with log.engine.connect() as connection:
            waits_for, holds = connection.execute(
                sa.text(
                    "SELECT (SELECT relation::regclass::text FROM pg_locks WHERE pid = :pid AND NOT granted),"
                    " EXISTS (SELECT 1 FROM pg_locks WHERE pid = :pid AND granted AND mode = 'RowExclusiveLock'"
                    " AND relation = to_regclass(:name))"
                ),
                {"pid": pid, "name": log.name},
            ).one()
        assert waits_for.endswith("message_bus_outbox_position_seq")
        assert holds
    finally:
        gate.rollback()
        thread.join()
    assert not failed
    writer.rollback()


def _is_blocked_by(log: Log, pid: int, gate: sa.Connection) -> bool:
    with log.engine.connect() as connection:
        return bool(
            connection.execute(
                sa.text("SELECT cardinality(pg_blocking_pids(:pid)) > 0"), {"pid": pid}
            ).scalar()
        )


@pytest.mark.parametrize("ending", ["commit", "prepared"])
def test_when_the_lock_is_gone_a_new_snapshot_sees_the_row(log: Log, ending: str) -> None:
    """A commit becomes visible before it gives up its locks: 100 commits, each read the moment its lock is
    gone.
    """
    for turn in range(100):
        writer = log.begin()
        (drawn,) = log.write(writer)
        if ending == "prepared":
            writer.execute(sa.text(f"PREPARE TRANSACTION 'turn {turn}'"))
            writer.rollback()
            with log.engine.connect() as committer:
                thread = _ending(committer.connection.driver_connection, f"COMMIT PREPARED 'turn {turn}'")
                _sees_when_lock_is_gone(log, drawn)
                thread.join()
        else:
            thread = _ending(writer.connection.driver_connection, "COMMIT")
            _sees_when_lock_is_gone(log, drawn)
            thread.join()
            writer.rollback()
        writer.close()


def _ending(driver: object, statement: str) -> threading.Thread:
    assert isinstance(driver, psycopg.Connection)

    def end() -> None:
        if statement == "COMMIT":
            driver.commit()
        else:
            driver.autocommit = True
            driver.execute(statement.encode())
            driver.autocommit = False

    thread = threading.Thread(target=end)
    thread.start()
    return thread


def _sees_when_lock_is_gone(log: Log, drawn: int) -> None:
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        query = sa.text(
            "SELECT count(*) FROM pg_locks WHERE relation = to_regclass(:name) AND mode = 'RowExclusiveLock'"
        )
        while connection.execute(query, {"name": log.name}).scalar_one():
            pass
        assert drawn in positions(connection, log.tables)


def test_a_lock_given_up_by_rollback_to_leaves_no_row_behind(log: Log) -> None:
    """Positions drawn under a savepoint that is rolled back never exist, and the next one is drawn under a
    new lock.
    """
    writer = log.begin()
    savepoint = writer.begin_nested()
    (gone,) = log.write(writer)
    assert len(log.writers()) == 1
    savepoint.rollback()
    assert log.writers() == set()
    (kept,) = log.write(writer)
    assert len(log.writers()) == 1
    writer.commit()
    assert (gone, kept) == (1, 2)
    assert log.rows == [kept]


def test_a_released_savepoint_keeps_its_lock(log: Log) -> None:
    """RELEASE hands the lock to the transaction around it."""
    writer = log.begin()
    savepoint = writer.begin_nested()
    log.write(writer)
    savepoint.commit()
    assert len(log.writers()) == 1
    writer.commit()


def test_a_prepared_transaction_keeps_the_id_it_was_seen_with(log: Log) -> None:
    """From 14.1 on: its lock shows the same virtual transaction before PREPARE and after, without a pid."""
    writer = log.begin()
    log.write(writer)
    before = log.writers()
    writer.execute(sa.text("PREPARE TRANSACTION 'same'"))
    writer.rollback()
    after = log.writers()
    with log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ROLLBACK PREPARED 'same'"))
    assert before == after
    assert lost(log, []) == []


@pytest.mark.parametrize(
    "holder", ["DELETE FROM {log}", "UPDATE {log} SET key = key", "LOCK TABLE {log} IN ROW EXCLUSIVE MODE"]
)
def test_others_hold_the_lock_too(log: Log, holder: str) -> None:
    """W10: retention and repairs hold the watermark for the length of their transaction, rows or not."""
    other = log.begin()
    other.execute(sa.text(holder.format(log=log.name)))
    assert len(log.writers()) == 1
    other.rollback()
    assert log.writers() == set()
