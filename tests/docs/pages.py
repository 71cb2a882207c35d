"""The Markdown pages as tests see them: their code blocks, and how each kind of block is run.

A block is marked by an HTML comment on the line before it, which readers do not see:

    <!-- file: shop.py -->      the block is saved under this name, to be used by later blocks
    <!-- output -->             the block is what the block before it prints; `...` stands for anything
    <!-- from: path -->         the block stands word for word in this file of the repository, which other tests run
    <!-- not run: reason -->    the block is only looked at

Unmarked python blocks share one namespace per page; unmarked bash blocks are run, on the pages that are to be followed
word for word, by bash in the page's own directory. (A library for Markdown would only have found the fences.)
"""

from __future__ import annotations

import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click

from message_bus.cli.main import main as message_bus_command
from tests.docs.quick_python import quick_python

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))

_BLOCK: Final = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is where its first line of code stands in the page."""

    page: str
    line: int
    language: str
    code: str
    kind: str
    argument: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    """The page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> Iterator[Block]:
    """Every fenced block of the page, in order."""
    text = text_of(page)
    for found in _BLOCK.finditer(text):
        kind, _, argument = (found["mark"] or "").partition(": ")
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["language"], found["code"], kind, argument)


@dataclass
class Walk:
    """Follows a page from top to bottom in a directory of its own."""

    directory: Path
    module: ModuleType
    hides_greenlet: bool = False
    """Whether it is as after a plain `pip install`, until the page installs an extra."""
    replaced: dict[str, str] = field(default_factory=dict)
    printed: str | None = ""
    _exports: list[str] = field(default_factory=list)

    def follow(self, page: str, *, commands: bool = False) -> None:
        """Do what each block says; bash blocks only with `commands`."""
        for block in blocks_of(page):
            match block.kind, block.language:
                case "not run", _:
                    self.hides_greenlet &= "[" not in block.code
                case "file", _:
                    (self.directory / block.argument).write_text(self._code(block), encoding="utf-8")
                case "from", _:
                    assert _stands_in(text_of(block.argument), block.code), (
                        f"{block} is not in {block.argument} (any more)"
                    )
                case "output", _:
                    self._compare(block)
                case "", "python":
                    self._python(block)
                case "", "bash" if commands:
                    self._bash(block)
                case "", "bash":
                    self.printed = None
                case "", "text" | "sql" | "mermaid":
                    pass
                case _:
                    raise AssertionError(
                        f"{block}: nobody knows what to do with {block.kind!r} {block.language}"
                    )

    def _code(self, block: Block) -> str:
        code = block.code
        for old, new in self.replaced.items():
            code = code.replace(old, new)
        return code

    def _python(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + self._code(block)  # so that tracebacks show the line of the page
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(  # noqa: S102  (our own pages)
                compile(source, block.page, "exec", dont_inherit=True), self.module.__dict__
            )
        self.printed = printed.getvalue()

    def _bash(self, block: Block) -> None:
        code = self._code(block)
        strict = "" if "$?" in code else "set -e\n"
        done = subprocess.run(
            ["bash", "-c", strict + "\n".join([*self._exports, code])],
            cwd=self.directory, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=60,
        )  # fmt: skip
        self.printed = done.stdout
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}"
        self._exports += [line for line in code.splitlines() if line.startswith("export ")]

    def _environment(self) -> dict[str, str]:
        """Where `python` and `message-bus` are this checkout's, whether or not it is installed."""
        commands, hidden = self.directory / ".commands", self.directory / ".hidden"
        if not commands.exists():
            commands.mkdir()
            hidden.mkdir()
            (hidden / "greenlet.py").write_text("raise ModuleNotFoundError('hidden', name='greenlet')\n")
        python = sys.executable if self.hides_greenlet else quick_python()
        for name, words in {
            "python": "",
            "message-bus": "-m message_bus.cli.main ",
            "flask": "-m flask ",
        }.items():
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(python)} {words}"$@"\n')
            (commands / name).chmod(0o755)
        return {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([*([str(hidden)] if self.hides_greenlet else []), str(ROOT)]),
        }

    def _compare(self, block: Block) -> None:
        if self.printed is None:
            return
        promised = self._code(block)
        same = doctest.OutputChecker().check_output(promised, self.printed, doctest.ELLIPSIS)
        assert same, f"{block} promises\n{promised}\nbut this was printed:\n{self.printed}"


def _stands_in(text: str, code: str) -> bool:
    """Word for word; what is a method there may stand at the margin of the page, with two lines between functions."""
    methods = textwrap.indent(code, " " * 4).replace("\n\n\n", "\n\n")
    return code in text or methods in text


# --- commands that are only looked at -----------------------------------------------------------------------------


def unknown_command(line: str) -> str | None:
    """What is wrong with a command line of a page: None if all that it names exists."""
    match shlex.split(line, comments=True):
        case []:
            return None
        case ["make", *words]:
            return _unless(
                {word for word in words if "=" not in word} <= _make_targets(), f"no such target: {line}"
            )
        case ["python", "-m", module, *_]:
            of_an_example = any((ROOT / "docs/examples").glob(f"*/{module}/__main__.py"))
            return _unless(of_an_example or find_spec(module) is not None, f"no module {module!r}")
        case ["pip", "install", what]:
            return _unless(_is_ours(what), f"{what!r} is not this distribution, or has no such extra")
        case ["message-bus", *words]:
            return _unknown_words(message_bus_command, words)
        case ["export" | "cd" | "git", *_]:
            return None
    return f"nobody knows the command {line!r}"


def _unless(fine: bool, problem: str) -> str | None:
    return None if fine else problem


@cache
def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _is_ours(requirement: str) -> bool:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, _, extras = requirement.rstrip("]").partition("[")
    wanted = set(extras.split(",")) if extras else set[str]()
    return name == project["name"] and wanted <= set(project["optional-dependencies"])


def _unknown_words(command: click.Command, words: list[str]) -> str | None:
    context = click.Context(command)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        if found is None:
            return f"no command {words[0]!r}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    strange = {word.partition("=")[0] for word in words if word.startswith("--")} - known
    return _unless(not strange, f"no option {', '.join(sorted(strange))}")
