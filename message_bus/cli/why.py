"""`message-bus why`: the life of one message. A shell around `message_bus.admin.why`.

Exit codes: 0 it was found, 1 it was not, or the command could not run, 2 a wrong command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from uuid import UUID

import click
from sqlalchemy.engine import URL

from message_bus.admin.emitted import Emitted
from message_bus.admin.life import Life
from message_bus.admin.why import why as tell
from message_bus.cli.lines import harmless, instant, short
from message_bus.cli.operating import database_options, json_option, print_json, reading

_LONGEST_TEXT = 160
_NO_TIME = " " * len("2026-01-01 00:00:00Z")


@click.command()
@click.argument("id", type=click.UUID)
@json_option
@database_options
def why(
    id: UUID,  # noqa: A002
    as_json: bool,
    database_url: URL,
    schema: str | None,
    prefix: str,
) -> None:
    """Tell the life of the message, or event, with this ID: what has happened to it, what it waits for, what came of it."""
    with reading(database_url, schema, prefix) as (session, tables):
        life = tell(session, id, tables=tables)
    if life is None:
        raise click.ClickException(
            f"there is no message {id} (its transaction was rolled back, it was cancelled, or retention has taken it)"
        )
    if as_json:
        print_json(
            {**asdict(life), "state": life.state, "moments": [asdict(moment) for moment in life.moments]}
        )
    else:
        click.echo("\n".join(lines_of_life(life)))


def lines_of_life(life: Life) -> list[str]:
    """One line about the message, then one per moment, then what it has emitted, as a tree."""
    key = "no key" if life.key is None else f"key {short(life.key, 32)}"
    lines = [harmless(f"{life.message} {life.id}, {life.type.lower()}, {key}: {life.state}")]
    for moment in life.moments:
        at = _NO_TIME if moment.at is None else instant(moment.at)
        who = "" if moment.subscription is None else f"{moment.subscription}: "
        lines.append(f"  {at}  {harmless(who + short(moment.text, _LONGEST_TEXT))}")
    if life.emitted:
        lines += ["emitted:", *(f"  {line}" for line in lines_of_tree(life.emitted))]
    if life.emitted_more:
        lines.append("there is more of this than is told here")
    return lines


def lines_of_tree(emitted: Sequence[Emitted], margin: str = "") -> Iterator[str]:
    """One line per message, under the one that has brought it about."""
    for number, each in enumerate(emitted, 1):
        is_last = number == len(emitted)
        branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        key = "" if each.key is None else f", key {short(each.key, 32)}"
        due = "" if each.due_at is None else f" until {instant(each.due_at)}"
        yield harmless(
            f"{margin}{branch}{each.message} {each.id}, {each.type.lower()}{key}: {each.state}{due}"
        )
        yield from lines_of_tree(each.emitted, margin + below)
