"""Follows the README of an example word for word, with its servers and what else is to run in a terminal of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.docs.pages import Block, Walk
from tests.examples.serving import STOPPING, Server, free_port, serving


class Reader(Walk):
    """Types what the page says. Use it as a context manager: what still runs at the end is killed.

    A block with `uvicorn` is a server: it is started on a free port, in place of the one before, which gets a Ctrl-C.
    A block that begins with `while true` runs on beside what follows.
    """

    def __init__(self, directory: Path, module: ModuleType) -> None:
        super().__init__(directory, module)
        self.port = free_port()
        self.replaced["localhost:8000"] = f"127.0.0.1:{self.port}"
        self.server: Server | None = None
        self._terminals = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._terminals.close()

    def _bash(self, block: Block) -> None:
        if "uvicorn " in block.code:
            self._serve(block.code)
        elif block.code.startswith("while true"):
            self._run_on(self._code(block))
        else:
            super()._bash(block)

    def _serve(self, code: str) -> None:
        words = shlex.split(code)
        command = words.index("uvicorn")
        exported = [shlex.split(line)[1] for line in self._exports]
        if self.server is not None:
            self._interrupt(self.server)
        server = serving(
            [sys.executable, "-m", *words[command:]],
            directory=self.directory,
            changes=dict(each.split("=", 1) for each in [*exported, *words[:command]]),
            port=self.port,
        )
        self.server = self._terminals.enter_context(server)

    def _interrupt(self, server: Server) -> None:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STOPPING) == 0, server.output

    def _run_on(self, code: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join([*self._exports, code])], cwd=self.directory, env=self._environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._terminals.callback(_kill_group, process)


def _kill_group(process: subprocess.Popen[Any]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
