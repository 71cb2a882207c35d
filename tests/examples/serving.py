"""Runs an example application as its reader would: a process of its own, started by the command of its README.

`command_in` takes the command from the page, `serving` starts it on a free port, waits until it answers and makes sure
that nothing of it is left. For tests of web applications in docs/examples; they talk to `Server.url` with httpx.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from tests.docs.pages import ROOT, blocks_of
from tests.docs.quick_python import quick_python
from tests.waiting import wait_until

PROGRAMS: Final = {
    "flask": ("-m", "flask"),
    "message-bus": ("-m", "message_bus.cli.main"),
    "python": (),
    "uvicorn": ("-m", "uvicorn"),
}
STARTING: Final = 30.0  # seconds, on a busy machine
STOPPING: Final = 15.0


def command_in(page: str, start: str) -> list[str]:
    """The one command in the bash blocks of a page that starts with these words: as typed, run by this Python."""
    lines = [
        line for block in blocks_of(page) if block.language == "bash" for line in block.code.splitlines()
    ]
    found = [line for line in lines if f"{line} ".startswith(f"{start} ")]
    assert len(found) == 1, f"{page} has {len(found)} commands that start with {start!r}"
    return words_of(found[0])


def words_of(line: str, python: str = sys.executable) -> list[str]:
    """A command line for subprocess; programs that come with packages are run by this Python, installed or not."""
    program, *words = shlex.split(line, comments=True)
    return [python, *PROGRAMS[program], *words]


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of the example: this checkout is importable, output comes at once."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **changes}


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Server:
    """A process that serves HTTP at `url`, and leads a process group of its own. What it prints is in `output`."""

    def __init__(
        self, command: Sequence[str], *, port: int, directory: Path, changes: Mapping[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = directory / f"server-{port}.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)], cwd=directory, env=environment(changes),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        """Everything that it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self, path: str) -> None:
        """Return when it answers a GET of `path` with anything at all; fail if it ends before."""
        with httpx.Client(base_url=self.url, timeout=STARTING) as client:
            wait_until(lambda: self._answers(client, path), STARTING, message=f"{self.url} did not answer")

    def _answers(self, client: httpx.Client, path: str) -> bool:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
        try:
            client.get(path)
        except httpx.TransportError:
            return False
        return True

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {STOPPING} s of SIGTERM:\n{self.output}") from None

    def kill(self) -> None:
        """End it and all its children at once (SIGKILL), wherever they are."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def serving(
    command: Sequence[str],
    *,
    directory: Path,
    changes: Mapping[str, str] | None = None,
    port: int | None = None,
    ready: str = "/",
) -> Iterator[Server]:
    """Start `command` in `directory` with `--port` added, and yield it when it answers; kill it if it is still there.

    `changes`: to the environment. `ready`: the path that is asked until there is an answer, be it 404.
    """
    server = Server(command, port=port or free_port(), directory=directory, changes=changes or {})
    try:
        server.wait_until_ready(ready)
        yield server
    finally:
        server.kill()


def own_tests(directory: Path, *options: str) -> str:
    """Run `pytest` in a copy of an example that lies in a clone of this project; what it printed.

    It has only the plugins that `options` name, and its warnings are errors.
    """
    shutil.copy(ROOT / "pyproject.toml", directory.parent)  # which pytest would find there
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=directory, env=environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def run(line: str, *, directory: Path, changes: Mapping[str, str] | None = None) -> str:
    """Run a command line of a page to its end in `directory`; what it printed. Fails unless it ends with 0."""
    done = subprocess.run(
        words_of(line, quick_python()), cwd=directory, env=environment(changes or {}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"{line!r} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
