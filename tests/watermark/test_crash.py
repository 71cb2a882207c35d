"""What only a server of one's own can show: a crash (W4), a standby (W7), and `nextval` caught while it logs
(W1).

The crash is a real one: a server process is killed, and the server recovers from its log, with its postmaster
alive.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from message_bus.errors import UnsupportedDatabase
from message_bus.storage.preconditions import check_log, check_reader
from message_bus.storage.tables import MessageBusTables
from tests import crashing
from tests.conftest import unavailable
from tests.servers import PostgreSQL, ServerNotAvailable
from tests.waiting import wait_until
from tests.watermark.readers import Log, Reader, lost
from tests.watermark.test_look import with_look

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

UNFLUSHED = {
    "wal_writer_delay": "10s",  # nobody flushes the log but who commits
    "wal_buffers": "32kB",
    "bgwriter_lru_maxpages": "0",
    "autovacuum": "off",
}


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """A server that this test may crash."""
    try:
        started = PostgreSQL.start(settings=UNFLUSHED)
    except ServerNotAvailable as error:
        unavailable(str(error))
        raise
    yield started
    started.remove()


@pytest.fixture
def own_log(server: PostgreSQL) -> Iterator[Log]:
    """An outbox on it. Every use connects anew, as behind a pooler."""
    engine = sa.create_engine(server.url, poolclass=sa.NullPool)
    tables = MessageBusTables()
    tables.create_all(engine)
    with Log(engine, tables) as made:
        yield made


def crash(log: Log) -> None:
    """Kill one server process: the postmaster ends all others and recovers. Returns when it answers again."""
    crashing.crash(log.engine.url)
    wait_until(lambda: _answers(log), timeout=60)


def _answers(log: Log) -> bool:
    try:
        with log.engine.connect() as connection:
            return bool(connection.execute(sa.text("SELECT 1")).scalar())
    except OperationalError:
        return False


def _around_a_crash(log: Log, reader: Reader) -> list[int]:
    """Positions seen by a look are lost with the server and drawn again; the first of them commits last of
    all.
    """
    log.commit()
    dying = log.begin()
    before = log.write(dying, 100)
    assert reader.poll() == []
    crash(log)
    dying.invalidate()
    slow = log.begin()
    (again,) = log.write(slow)
    assert again in before, "the sequence did not fall back, so this proves nothing"
    log.commit(150)
    reader.poll()
    slow.commit()
    reader.poll()
    return [again]


def test_a_crash_in_which_the_sequence_falls_back_loses_nothing(own_log: Log) -> None:
    """W4: the memory of the time before is dropped, though the postmaster is the same and a pooler would hide
    the rest.
    """
    with Reader(own_log.engine, own_log.tables) as reader:
        _around_a_crash(own_log, reader)
        assert lost(own_log, reader.seen) == []
        assert reader.seen == own_log.rows


@pytest.mark.parametrize("what", ["everything", "the checkpoint"])
def test_without_w4_a_crash_loses_a_row(own_log: Log, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """W4 taken out, or only the checkpoint's place in the log: who wrote before is gone, so its positions
    seem settled.
    """
    if what == "everything":
        with_look(monkeypatch, "extract(epoch FROM pg_postmaster_start_time()), control.checkpoint_lsn", "''")
    else:
        with_look(monkeypatch, ", control.checkpoint_lsn", "")
    with Reader(own_log.engine, own_log.tables) as reader:
        late = _around_a_crash(own_log, reader)
        assert lost(own_log, reader.seen) == late


def test_a_standby_is_refused(server: PostgreSQL, own_log: Log) -> None:
    """W7: a server in recovery does not show the primary's locks."""
    mark = server.data_directory / "standby.signal"
    mark.touch()
    owner = server.data_directory.stat()
    os.chown(mark, owner.st_uid, owner.st_gid)
    own_log.commit()
    crash(own_log)  # it comes up again as a standby
    with own_log.engine.connect() as connection:
        with pytest.raises(UnsupportedDatabase, match=r"is a standby.*connect to the primary"):
            check_log(connection, own_log.tables)
        with pytest.raises(UnsupportedDatabase, match=r"is a standby.*connect to the primary"):
            check_reader(connection)


def test_select_last_value_can_read_a_position_that_nobody_has_drawn(own_log: Log) -> None:
    """W1: `nextval` writes a value 32 ahead into the page while it logs, and SELECT reads the page without
    its lock.

    A commit is stopped while it holds the lock that log writers need, so that another session stands still
    inside `nextval`; a SELECT that had found its row before then reads what is in the page.
    pg_sequence_last_value waits.
    """
    sequence = own_log.sequence
    url = own_log.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        psycopg.connect(url, autocommit=True) as watch,
        psycopg.connect(url, autocommit=True) as keeper,
        psycopg.connect(url) as committer,
        psycopg.connect(url, autocommit=True) as drawer,
        psycopg.connect(url, autocommit=True) as selecting,
        psycopg.connect(url, autocommit=True) as asking,
    ):
        committer.execute("SET commit_delay = 100000")
        committer.execute("SET commit_siblings = 0")
        committer.commit()
        keeper.execute("SELECT pg_advisory_lock(42)")
        read: list[int] = []
        answered: list[int] = []

        def select() -> None:
            query = f"SELECT last_value FROM {sequence} WHERE pg_advisory_lock(42)::text IS NOT NULL"
            read.extend(row[0] for row in selecting.execute(query.encode()))

        def draw() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                drawer.execute(
                    f"SELECT count(nextval('{sequence}')) FROM generate_series(1, 10000000)".encode()
                )

        def ask() -> None:
            answered.extend(
                row[0] for row in asking.execute(f"SELECT pg_sequence_last_value('{sequence}')".encode())
            )

        def waits_for(connection: psycopg.Connection[tuple[object, ...]], event: str) -> bool:
            found = watch.execute(
                "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [connection.info.backend_pid]
            ).fetchone()
            return found is not None and found[0] == event

        def commit_slowly() -> None:
            committer.execute("CREATE TABLE IF NOT EXISTS something (n int)")
            committer.commit()

        threads = [threading.Thread(target=select), threading.Thread(target=commit_slowly)]
        threads[0].start()
        wait_until(lambda: waits_for(selecting, "advisory"))
        threads[1].start()
        wait_until(lambda: _is_committing(watch, committer))
        os.kill(committer.info.backend_pid, signal.SIGSTOP)  # within its commit_delay, with the lock in hand
        try:
            threads.append(threading.Thread(target=draw))
            threads[-1].start()
            wait_until(lambda: waits_for(drawer, "WALWrite"))
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            wait_until(
                lambda: (
                    waits_for(asking, "BufferContent")
                    or waits_for(asking, "BufferExclusive")
                    or waits_for(asking, "BufferShared")
                )
            )
            keeper.execute("SELECT pg_advisory_unlock(42)")
            wait_until(lambda: read)
            assert not answered
            watch.execute("SELECT pg_cancel_backend(%s)", [drawer.info.backend_pid])
        finally:
            os.kill(committer.info.backend_pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
        drawn = watch.execute(f"SELECT pg_sequence_last_value('{sequence}')".encode()).fetchone()
        assert drawn is not None
        assert answered[0] <= drawn[0]
        assert drawn[0] < read[0] <= drawn[0] + 32


def _is_committing(
    watch: psycopg.Connection[tuple[object, ...]], committer: psycopg.Connection[tuple[object, ...]]
) -> bool:
    """Is this session in its COMMIT, and holding the lock (so that no other can flush)?"""
    found = watch.execute(
        "SELECT state = 'active' AND query = 'COMMIT' AND clock_timestamp() - query_start > interval '5 ms'"
        " FROM pg_stat_activity WHERE pid = %s",
        [committer.info.backend_pid],
    ).fetchone()
    return found is not None and bool(found[0])
