"""`message-bus schema`: the JSON Schemas of all messages, and whether they still fit those in a file.

A shell around `message_bus.admin.export_message_schemas` and `check_message_schemas`; it needs no database, and has nothing
to do with that of the tables (`message-bus db`). Exit codes: 0 done, nothing breaks, 1 it could not run, 2 a wrong command
line, 3 something breaks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import click

from message_bus.admin.description.schemas import check_message_schemas, export_message_schemas
from message_bus.cli.application import AnyBus, find
from message_bus.cli.describe import NOWHERE
from message_bus.cli.lines import harmless
from message_bus.cli.manners import coloured
from message_bus.cli.operating import json_option, print_json
from message_bus.cli.options import explained
from message_bus.errors import SettingsError
from message_bus.messages.registry import Registry
from message_bus.messages.schemas.compatibility import MessageChange
from message_bus.relay.wiring import AnyRelay

EXIT_BREAKING: Final = 3

_app_option = click.option(
    "--app", required=True, metavar="MODULE:ATTRIBUTE",
    help="A Relay, a bus or a Registry; or a callable that returns one of these.",
)  # fmt: skip


@click.group()
def schema() -> None:
    """Export the JSON Schemas of all messages, and check that they still fit."""


@schema.command("export")
@_app_option
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where to write them [default: stdout]",
)  # fmt: skip
def export(app: str, output: Path | None) -> None:
    """Print the JSON Schemas of all commands and events, to be committed."""
    with explained(NOWHERE):
        text = json.dumps(export_message_schemas(_load(app)), indent=2, ensure_ascii=False, allow_nan=False)
        if output is not None:
            output.write_text(f"{text}\n", encoding="utf-8")
    if output is None:
        click.echo(text)


@schema.command("check")
@_app_option
@click.argument("file", type=click.File(encoding="utf-8"))
@json_option
@click.pass_context
def check(ctx: click.Context, app: str, file: IO[str], as_json: bool) -> None:
    """Compare the messages of an application with those in FILE ('-': stdin), an earlier export.

    Exit code 3: old rows, or old code beside the new one, could not be read any more.
    """
    with explained(NOWHERE):
        changes = check_message_schemas(_load(app), _read(file))
    breaking = [each for each in changes if each.is_breaking]
    if as_json:
        print_json({"ok": not breaking, "changes": [asdict(each) for each in changes]})
    else:
        click.echo("\n".join(_lines(changes, len(breaking))))
    ctx.exit(EXIT_BREAKING if breaking else 0)


def _load(app: str) -> Any:
    found = find(app, AnyRelay | AnyBus | Registry)
    if not isinstance(found, AnyRelay | AnyBus | Registry):
        raise SettingsError(
            f"--app {app}",
            [
                f"is of type {type(found).__name__} (name a Relay, a bus or a Registry, or a function that returns one)"
            ],
        )
    return found


def _read(file: IO[str]) -> Any:
    try:
        return json.load(file)
    except (ValueError, RecursionError) as error:  # also text that is no UTF-8
        raise SettingsError(
            file.name, [f"is no JSON: {type(error).__name__} (make it with `message-bus schema export`)"]
        ) from None


def _lines(changes: list[MessageChange], breaking: int) -> Iterator[str]:
    for each in sorted(changes, key=lambda change: not change.is_breaking):
        where = each.message if each.field is None else f"{each.message}.{each.field}"
        broken = f" (breaks {' and '.join(each.breaks)})" if each.breaks else ""
        verdict = coloured("breaking", "red") if each.breaks else coloured("fine", "green")
        yield f"{verdict} {harmless(f'{each.code}: {where} {each.text}{broken}')}"
        if each.remedy is not None:
            yield harmless(f"  remedy: {each.remedy}")
    if breaking:
        yield f"{breaking} of {len(changes)} changes {'breaks' if breaking == 1 else 'break'} something"
    elif changes:
        yield "nothing breaks; `message-bus schema export` brings the file up to date"
    else:
        yield "nothing has changed"
