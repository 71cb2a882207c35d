"""Crashes of a PostgreSQL server, for tests that have one of their own.

One server process is killed; the postmaster then ends all others and recovers, refusing connections meanwhile. It
does so when it notices the death, which on a busy machine takes a while: until then others connect and work as if
nothing had happened. A test that went on at once would find the server going down later, in the middle of something.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg
import sqlalchemy as sa

from tests.waiting import wait_until


def crash(url: sa.URL) -> None:
    """Crash the server behind this URL; return when it refuses connections, or has recovered."""
    given = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(given) as victim, psycopg.connect(given, autocommit=True) as witness:
        kill(victim, witness)


def kill(victim: psycopg.Connection[Any], witness: psycopg.Connection[Any]) -> None:
    """Kill the process behind `victim`; return when the postmaster has ended the one behind `witness`, too."""
    os.kill(victim.info.backend_pid, signal.SIGKILL)

    def has_ended() -> bool:
        try:
            witness.execute("SELECT 1")
        except psycopg.OperationalError:
            return True
        return False

    wait_until(has_ended, message="the server did not crash")
