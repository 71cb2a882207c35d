"""The throw-away server: it dies with its creator, and crashes when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from tests import servers
from tests.conftest import unavailable
from tests.crashing import kill
from tests.waiting import wait_until


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("fatal", [signal.SIGINT, signal.SIGKILL])
def test_a_server_does_not_outlive_its_creator(fatal: signal.Signals) -> None:
    """After Ctrl-C and after SIGKILL neither the server nor its directory is left."""
    program = subprocess.Popen([sys.executable, servers.__file__], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    url = program.stdout.readline().strip()
    program.stdout.readline()
    directory = Path(url.partition("host=")[2])
    postmaster = int((directory / "data" / "postmaster.pid").read_text().split()[0])
    program.send_signal(fatal)
    program.wait(30)
    program.stdout.close()
    wait_until(lambda: not directory.exists(), timeout=30)
    wait_until(lambda: not Path(f"/proc/{postmaster}").exists(), timeout=30)


@pytest.mark.slow
@pytest.mark.postgresql
def test_a_crash_is_over_only_when_the_postmaster_has_noticed() -> None:
    """Until then others connect and work as if nothing had happened: a test would go on too early."""
    try:
        server = servers.PostgreSQL.start()
    except servers.ServerNotAvailable as error:
        unavailable(str(error))
        raise
    postmaster = int((server.data_directory / "postmaster.pid").read_text().split()[0])
    url = server.url.replace("+psycopg", "")
    with (
        psycopg.connect(url) as victim,
        psycopg.connect(url, autocommit=True) as witness,
        psycopg.connect(url, autocommit=True) as other,
    ):
        os.kill(postmaster, signal.SIGSTOP)
        killing = threading.Thread(target=kill, args=(victim, witness))
        killing.start()
        wait_until(lambda: _is_dead(victim))
        assert other.execute("SELECT 1").fetchone() == (1,)
        assert killing.is_alive()
        os.kill(postmaster, signal.SIGCONT)
        killing.join()
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    server.remove()


def _is_dead(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False
