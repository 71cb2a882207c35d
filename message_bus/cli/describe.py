"""`message-bus describe`: how an application is wired. A shell around `message_bus.admin.describe`; it needs no database.

Exit codes: 0 described, 1 it could not run, 2 a wrong command line, 3 with --strict: there are warnings.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

import click
from sqlalchemy.engine import make_url

from message_bus.admin.description.description import (
    Delivery,
    Description,
    HandlerDescription,
    MessageDescription,
    SagaDescription,
    SubscriptionDescription,
    WiringWarning,
)
from message_bus.admin.description.diagram import mermaid
from message_bus.admin.description.wiring import describe as describe_wiring
from message_bus.admin.description.wiring import is_saga
from message_bus.cli.application import load_relay_or_bus
from message_bus.cli.lines import harmless, table
from message_bus.cli.manners import coloured
from message_bus.cli.operating import json_option, print_json
from message_bus.cli.options import explained

EXIT_RISKY: Final = 3
NOWHERE: Final = make_url("sqlite://")  # no database is opened
_NARROWEST: Final = 40
_PIPED: Final = 110
"""The width of lines that nobody looks at in a terminal."""


@click.command()
@click.option(
    "--app", required=True, metavar="MODULE:ATTRIBUTE",
    help="A Relay or a bus; or a callable that returns one of these.",
)  # fmt: skip
@json_option
@click.option("--mermaid", "as_mermaid", is_flag=True, help="Print a Mermaid flowchart.")
@click.option("--strict", is_flag=True, help="Exit with 3 if there are warnings; notes do not count.")
@click.pass_context
def describe(ctx: click.Context, app: str, as_json: bool, as_mermaid: bool, strict: bool) -> None:
    """Describe the messages, handlers and subscriptions of an application, and what each guarantees.

    Sagas are described if they stand at the top of the module that --app names. Nothing is run, and no database is
    needed.
    """
    if as_json and as_mermaid:
        raise click.UsageError("--json and --mermaid exclude each other")
    with explained(NOWHERE):
        found = load_relay_or_bus(app)
        module = sys.modules[app.partition(":")[0]]
        sagas = {id(each): each for each in vars(module).values() if is_saga(each)}
        described = describe_wiring(found, sagas=sagas.values())
    if as_json:
        print_json({"ok": not described.is_risky, **asdict(described)})
    elif as_mermaid:
        click.echo(mermaid(described), nl=False)
    else:
        click.echo("\n".join(lines_of_description(described, _width())))
    ctx.exit(EXIT_RISKY if strict and described.is_risky else 0)


def _width() -> int:
    return max(_NARROWEST, shutil.get_terminal_size((_PIPED, 24)).columns)


def lines_of_description(it: Description, width: int) -> list[str]:
    """The whole description for people, in lines of at most so many characters where words allow it."""
    blocks = [
        _of_bus(it),
        _messages(it.messages),
        *(_subscription(each, width) for each in it.subscriptions),
        *(_saga(each) for each in it.sagas),
        _warnings(it.warnings, width),
    ]
    return [
        line.rstrip() for number, block in enumerate(blocks) for line in (*([""] if number else []), *block)
    ]


def _of_bus(it: Description) -> list[str]:
    lines = [f"{it.bus} ({'async' if it.is_async else 'sync'})"]
    for what, names in (("middleware", it.middleware), ("observers", it.observers)):
        if names:
            lines.append(harmless(f"  {what}: {', '.join(names)}"))
    return lines


def _messages(messages: Sequence[MessageDescription]) -> list[str]:
    if not messages:
        return ["no messages are known"]
    rows: list[tuple[str, ...]] = [
        (each.kind, each.name, str(each.version), each.key or "-", handler)
        for each in messages
        for handler in ([_handler(one) for one in each.handlers] or ["-"])
    ]
    for number in range(len(rows) - 1, 0, -1):
        if rows[number][:2] == rows[number - 1][:2]:
            rows[number] = ("", "", "", "", rows[number][4])
    return table(("kind", "message", "version", "key", "handler"), rows)


def _handler(it: HandlerDescription) -> str:
    how = "in a thread" if it.in_thread else "async" if it.is_async else ""
    return f"{it.name} ({how})" if how else it.name


def _subscription(it: SubscriptionDescription, width: int) -> list[str]:
    log = "event log" if it.log == "events" else it.log
    head = f"subscription {it.name}: {it.kind}, {it.mode}, reads the {log}"
    changed = [each for each in it.settings if each.source != "default"]
    others = [each for each in it.settings if each.source == "default"]
    rows = [(each.name, _value(each.value), each.source) for each in changed]
    lines = [harmless(head), *_wrapped("reads", _types(it), width)]
    lines += [f"  {line}" for line in table(("setting", "value", "source"), rows)]
    lines += _wrapped("defaults", ", ".join(f"{each.name}={_value(each.value)}" for each in others), width)
    lines += [line for each in it.deliveries for line in _delivery(each, width)]
    for each in it.guarantees:
        rules = f" ({', '.join(each.rules)})" if each.rules else ""
        lines += _item(f"{each.text}{rules}", width)
    return lines


def _types(it: SubscriptionDescription) -> str:
    return "all types" if it.types is None else ", ".join(it.types)


def _delivery(it: Delivery, width: int) -> list[str]:
    return _wrapped(
        it.message or "whatever comes", ", ".join(map(_handler, it.handlers)), width, joint=" -> "
    )


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _saga(it: SagaDescription) -> list[str]:
    rows = [
        (
            str(number),
            each.name,
            each.compensation or "-",
            "exactly once (G5)" if each.transactional else "at least once",
            str(each.max_attempts),
        )
        for number, each in enumerate(it.steps, 1)
    ]
    heading = ("step", "action", "undone by", "effects", "attempts")
    return [harmless(f"saga {it.name}"), *(f"  {line}" for line in table(heading, rows))]


def _warnings(warnings: Sequence[WiringWarning], width: int) -> list[str]:
    if not warnings:
        return ["nothing about the wiring is risky"]
    return [line for each in warnings for line in _warning(each, width)]


def _warning(it: WiringWarning, width: int) -> Iterator[str]:
    first, *others = textwrap.wrap(
        harmless(f"{it.severity} {it.code}: {it.text}"), width, subsequent_indent="  ", break_on_hyphens=False
    )
    severity = coloured(it.severity, "yellow" if it.severity == "warning" else None)
    yield severity + first.removeprefix(it.severity)
    yield from others
    yield from textwrap.wrap(
        harmless(f"remedy: {it.remedy}"),
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


def _wrapped(label: str, text: str, width: int, *, joint: str = ": ") -> list[str]:
    whole = harmless(f"{label}{joint}{text}")
    return textwrap.wrap(
        whole,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _item(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        harmless(text), width, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
    )
