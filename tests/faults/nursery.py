"""Forks processes that have everything imported already: a relay starts in 50 ms instead of a second.

`python -m tests.faults.nursery` reads requests from stdin, one JSON object a line, and answers each with one: `start` a
function of a module in a process of its own, `poll` one for its exit code. When stdin closes, because whoever started it
is done or dead, it kills what is left of them. It has one thread, so forking is safe. `Nursery` is the other end.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
IMPORTED: Final = (
    "message_bus.cli.relay", "message_bus.cli.process_outbox", "message_bus.relay.async_relay",
    "message_bus.repositories.sqlalchemy", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.psycopg",
    "psycopg", "tests.faults.app", "tests.faults.writing",
)  # fmt: skip


class Nursery:
    """Starts processes that end with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._ask()

    def start(self, call: str, arguments: list[str], *, environment: dict[str, str], errors: Path) -> Child:
        """Call the function `module:name` with a list of arguments, in a process of its own; its stderr goes to a file."""
        pid = self._ask(start=call, arguments=arguments, environment=environment, errors=str(errors))["pid"]
        return Child(self, pid, errors)

    def poll(self, pid: int) -> dict[str, Any]:
        """How the process is."""
        return self._ask(poll=pid)

    def close(self) -> None:
        """Kill all processes that are left, and wait for their end."""
        with self._process:
            pass  # closes stdin and waits

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@dataclass(frozen=True)
class Child:
    """A process that was started, as its parent's parent sees it."""

    nursery: Nursery
    pid: int
    log: Path

    @property
    def code(self) -> int | None:
        """Its exit code, negative for the signal that has ended it; None while it is there."""
        return self.nursery.poll(self.pid)["code"]  # type: ignore[no-any-return]

    @property
    def frozen(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        return bool(self.nursery.poll(self.pid)["frozen"])

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if (
            self.code is None
        ):  # its number is not given to another one before its parent has asked for its code
            os.kill(self.pid, number)

    def stop(self) -> int:
        """Ask it to end, by SIGTERM as soon as it listens to that, and wait until it has ended; its exit code."""
        wait_until(lambda: self.code is not None or self._listens(signal.SIGTERM), timeout=30)
        self.send(signal.SIGTERM)
        return self.end()

    def _listens(self, number: int) -> bool:
        """Whether it has a handler for this signal: who is still starting has none, and ends by it."""
        if not Path("/proc").exists():
            return True
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = int(re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
        return bool(caught >> (number - 1) & 1)

    def kill(self) -> int:
        """End it with SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        return self.end()

    def freeze(self) -> None:
        """Stop it with SIGSTOP, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        self.wait_until_frozen()

    def wait_until_frozen(self, timeout: float = 30.0) -> None:
        """Wait until it has been frozen; it must not end before."""
        wait_until(lambda: self.frozen or self.code is not None, timeout=timeout)
        assert self.code is None, self.errors

    def thaw(self) -> None:
        """Let it go on with SIGCONT."""
        self.send(signal.SIGCONT)

    def end(self, timeout: float = 60.0) -> int:
        """Wait until it has ended; its exit code."""
        try:
            wait_until(lambda: self.code is not None, timeout=timeout)
        except AssertionError:
            self.send(signal.SIGABRT)  # what its threads are doing, if faulthandler is on
            raise AssertionError(f"process {self.pid} did not end: {self.errors}") from None
        code = self.code
        assert code is not None
        return code


# --- the process ------------------------------------------------------------------------------------------------------


class _Children:
    def __init__(self) -> None:
        self.codes: dict[int, int | None] = {}
        self.frozen: set[int] = set()

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        pid = os.fork()
        if not pid:
            _live(request)
        self.codes[pid] = None
        return {"pid": pid}

    def poll(self, pid: int) -> dict[str, Any]:
        while self.codes[pid] is None:
            changed, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not changed:
                break
            if os.WIFSTOPPED(status):
                self.frozen.add(pid)
            elif os.WIFCONTINUED(status):
                self.frozen.discard(pid)
            else:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return {"code": self.codes[pid], "frozen": pid in self.frozen and self.codes[pid] is None}

    def end(self) -> None:
        left = [pid for pid in self.codes if self.poll(pid)["code"] is None]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        for pid in left:
            while self.poll(pid)["code"] is None:
                time.sleep(0.01)


def _live(request: dict[str, Any]) -> NoReturn:
    """Be that process, to its end."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
            os.dup2(source, target)
        os.environ.update(request["environment"])
        random.seed()
        faulthandler.enable()
        module, _, name = request["start"].partition(":")
        getattr(import_module(module), name)(request["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    children = _Children()
    try:
        while line := sys.stdin.readline():
            request = json.loads(line)
            if "start" in request:
                answer = children.start(request)
            else:
                answer = children.poll(request["poll"]) if "poll" in request else {}
            sys.stdout.write(f"{json.dumps(answer)}\n")
            sys.stdout.flush()
    finally:
        children.end()


if __name__ == "__main__":
    main()
