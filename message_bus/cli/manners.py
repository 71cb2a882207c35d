"""How every command behaves at a terminal: `--debug`, colour, progress, what is said of a wrong command line.

Colour and progress are for terminals only; NO_COLOR and FORCE_COLOR are honoured. Every command gets `--debug` from the
group, so that none can forget it. Loads no SQLAlchemy: `message-bus --help` is quick.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final, Literal, Protocol

import click

Colour = Literal["red", "yellow", "green"]
_DEBUG: Final = "message_bus.debug"
_CREDENTIALS: Final = re.compile(r"(?<=://)\S*@")


def _remember(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_DEBUG] = True


def with_debug(command: click.Command) -> click.Command:
    """The command, and those below it, with the option `--debug`, if they have none of their own."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            with_debug(each)
    elif not any("--debug" in parameter.opts for parameter in command.params):
        option = click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Show the traceback if it could not run.",
        )
        command.params.append(option)
    return command


def wants_debug() -> bool:
    """Whether the command line says `--debug`."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_DEBUG))


class WrongCommandLine(click.UsageError):
    """A wrong command line, said in one line: what is wrong, and what to do. Exit code 2."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line on stderr."""
        click.echo(f"Error: {self.format_message()}", file=file or sys.stderr, color=self.show_color)

    def format_message(self) -> str:
        """The line. A URL that stands where it does not belong loses its password."""
        text = _CREDENTIALS.sub("***@", " ".join(self.message.split())).rstrip(".")
        # the group is called as it was started
        below = [] if self.ctx is None else self.ctx.command_path.split()[1:]
        help_ = " ".join(["message-bus", *below, "--help"])
        return text if text.endswith(")") else f"{text} (`{help_}` shows what can be given)"


@contextmanager
def one_line_for_mistakes() -> Generator[None]:
    """Turn click's several lines about a wrong command line into one."""
    try:
        yield
    except (WrongCommandLine, click.exceptions.NoArgsIsHelpError):
        raise
    except click.UsageError as error:
        raise WrongCommandLine(error.format_message(), error.ctx) from None


def colour_wanted(environ: Mapping[str, str]) -> bool | None:
    """Whether to use colour whatever the output is; None: only on a terminal."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return False if environ.get("TERM") == "dumb" else None


class Coloured(str):
    """A text that stands out on a terminal, where it is padded and made harmless before it is coloured."""

    __slots__ = ("colour",)

    def __new__(cls, text: str, colour: Colour) -> Coloured:
        """Make the text; `click.echo` takes the colour away where there is no terminal."""
        made = super().__new__(cls, text)
        made.colour = colour
        return made

    colour: Colour


def coloured(text: str, colour: Colour | None) -> str:
    """The text in this colour."""
    return text if colour is None else click.style(text, fg=colour)


def colour_of(text: str) -> Colour | None:
    """The colour that a cell was given."""
    return text.colour if isinstance(text, Coloured) else None


def counted(count: int, colour: Colour, text: str | None = None) -> str:
    """A number (or what is said of it) that stands out unless it is zero."""
    said = f"{count:,}" if text is None else text
    return Coloured(said, colour) if count else said


class Show(Protocol):
    """Is told how much is done."""

    def __call__(self, done: int, length: int | None = None) -> None:
        """So much, of `length` if that has changed."""


@contextmanager
def progress(label: str, length: int, *, silent: bool = False) -> Generator[Show | None]:
    """A bar on stderr if that is a terminal: gives a function to be told how much is done. `silent`: no bar."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=max(length, 1), label=label, file=sys.stderr) as bar:

        def show(done: int, length: int | None = None) -> None:
            whole = bar.length = max(bar.length or 1 if length is None else length, 1)
            bar.update(min(done, whole) - bar.pos)

        yield show
