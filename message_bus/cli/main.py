"""The group `message-bus`, which knows its commands by name and imports one when it is run.

So `message-bus --help` loads no SQLAlchemy, and one command does not pay for another's imports. A new command adds a
line to `COMMANDS` and a module; it decides nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import click

from message_bus.cli.manners import colour_wanted, one_line_for_mistakes, with_debug

COMMANDS: Final = {
    # name: (module:attribute, the line that --help prints)
    "dead-letters": (
        "message_bus.cli.dead_letters:dead_letters",
        "Find, replay and discard what was given up.",
    ),
    "db": ("message_bus.cli.db:db", "Create and upgrade the tables."),
    "describe": (
        "message_bus.cli.describe:describe",
        "Describe messages, handlers, subscriptions and what they guarantee.",
    ),
    "doctor": ("message_bus.cli.doctor:doctor", "Say what is wrong, and what to do."),
    "projections": ("message_bus.cli.projections:projections", "List, rebuild, swap and drop projections."),
    "prune": ("message_bus.cli.prune:prune", "Remove old messages that every subscription has passed."),
    "schedule": ("message_bus.cli.schedule:schedule", "List and cancel delayed messages."),
    "schema": ("message_bus.cli.schema:schema", "Export the JSON Schemas of messages, and check them."),
    "status": ("message_bus.cli.status:status", "Show how the outbox is doing."),
    "subscriptions": (
        "message_bus.cli.subscriptions:subscriptions",
        "List, start, pause, move, rename, drop and divide subscriptions.",
    ),
    "why": ("message_bus.cli.why:why", "Tell the life of one message."),
    "process-outbox": (
        "message_bus.cli.process_outbox:process_outbox",
        "Deliver what is in the outbox, once. For cron.",
    ),
    "relay": ("message_bus.cli.relay:relay", "Deliver what is in the outbox until it is stopped."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run; `--help` reads their short help from the table."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, imported or not."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return with_debug(command)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line as far as the command."""
        with one_line_for_mistakes():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever goes wrong is said in one line. If it is interrupted, die of the signal.

        Only then does a shell know that Ctrl-C was meant for its loop, too. The exit code 1 that click would make of it
        means that the command could not run.
        """
        try:
            with one_line_for_mistakes(), _one_line_for_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stdout.flush()
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            raise  # SIGINT is blocked

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy[name][1]) for name in self.list_commands(ctx)])


@contextmanager
def _one_line_for_errors() -> Generator[None]:
    """For what a command has not foreseen. A closed pipe is click's business: it ends the process."""
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise
    except Exception as error:
        from message_bus.cli.options import unforeseen  # loads SQLAlchemy

        raise unforeseen(error) from None


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from message_bus import __version__

        click.echo(f"message-bus {__version__}")
        context.exit()


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Deliver messages from a transactional outbox."""
    ctx.color = colour_wanted(os.environ)  # of the commands, too


if __name__ == "__main__":
    main()
