"""Runs `python ...` in a fork of a process that has imported everything already: 50 ms in place of a second of imports.

The pages that are followed word for word type more than a hundred commands. `QuickPython.program` is a file to be run in
place of `python`: it hands its arguments, directory, environment and open files to the server, passes signals on, and
ends as the program ends; when it is killed, so is the program. What it cannot run so (`-W`, `-i`, no arguments) is run by
the real interpreter.

`python -m tests.docs.quick_python SOCKET` is the server. It ends when its stdin is closed by whoever has started it, or
by his death.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
IMPORTED: Final = (
    "aiosqlite", "alembic.command", "alembic.config", "click", "psycopg", "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.ext.asyncio", "sqlalchemy.orm",
    "message_bus", "message_bus.cli.main", "message_bus.relay.relay", "message_bus.relay.async_relay",
)  # fmt: skip
_LARGEST: Final = 1 << 20  # bytes of a request: an environment and a command line

_CLIENT: Final = """#!{python} -IS
import json, os, signal, socket, sys
words = sys.argv[1:]
if not words or (words[0].startswith("-") and words[0] not in ("-", "-c", "-m")):
    os.execv({python!r}, [{python!r}, *words])
pid, early = None, []
def pass_on(number, frame):
    early.append(number) if pid is None else os.kill(pid, number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, pass_on)
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
answers = server.makefile()
pid = int(answers.readline())
for number in early:
    os.kill(pid, number)
code = int(answers.readline() or -9)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (9, 19) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def quick_python() -> str:
    """The program of one server for all tests of this process."""
    quick = QuickPython()
    atexit.register(quick.close)
    return str(quick.program)


class QuickPython:
    """A server and the program that asks it; both are gone after `close`, or with this process."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="quick-python-")
        where = f"{self._directory.name}/socket"
        self.program = Path(self._directory.name) / "python"
        self.program.write_text(_CLIENT.format(python=sys.executable, socket=where))
        self.program.chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, where], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the server; what still runs goes on."""
        with self._server:
            pass  # closes stdin and waits
        self._directory.cleanup()


# --- the server -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve until stdin is closed."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch over a program
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    client = _serve(sys.argv[1])
    if client is not None:
        _watch(client)


def _serve(path: str) -> socket.socket | None:
    """Fork for each client; return it in the fork, and None in the server when all is over."""
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(path)
        listening.listen(64)
        selector.register(listening, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is listening for key, _ in selector.select()):
            client, _ = listening.accept()
            if not os.fork():
                return client
            client.close()
    return None


def _watch(client: socket.socket) -> None:
    """In a fork: start the program in a fork of that, tell its number and, in the end, its exit code.

    A client that is gone was killed; so is the program then.
    """
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += client.recv(_LARGEST)
    words, directory, environment = json.loads(request)
    ended, woken = socket.socketpair()
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken.fileno())
    pid = os.fork()
    if pid:
        for each in files:  # whoever reads what the program prints waits for its end, not for ours
            os.close(each)
        with suppress(ConnectionError):
            client.sendall(f"{pid}\n".encode())
        if ended not in select.select([client, ended], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with suppress(ConnectionError):
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in (client, ended, woken):
        each.close()
    _be(words, directory, environment, files)


def _be(words: list[str], directory: str, environment: dict[str, str], files: list[int]) -> None:
    """Be that program: with its files, in its directory, as if the interpreter had just been started."""
    for target, source in enumerate(files):
        os.dup2(source, target)
        os.close(source)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[0:1] = ["" if words[0] in ("-c", "-") else directory, *paths]
    main_module: dict[str, Any] = {"__name__": "__main__"}
    match words:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec", dont_inherit=True), main_module)  # noqa: S102
        case ["-", *rest]:
            sys.argv = ["-", *rest]
            exec(compile(sys.stdin.read(), "<stdin>", "exec", dont_inherit=True), main_module)  # noqa: S102
        case [script, *rest]:
            sys.argv = [script, *rest]
            sys.path[0] = str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
