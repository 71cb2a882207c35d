"""The throw-away server: it dies with its creator."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
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
