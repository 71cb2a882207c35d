"""`message-bus dead-letters`: find, replay and discard what was given up. A shell around `message_bus.admin.DeadLetters`.

A change is shown first, confirmed (or `--yes`), then made for exactly the letters that were shown, and committed. Nothing
is locked while somebody thinks. Payloads are shown only with `--payload`. Exit codes: 0 done (also if nothing was
selected), 1 it could not run or was not confirmed, 2 a wrong command line.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, TypeVar
from uuid import UUID

import click
from sqlalchemy.engine import URL

from message_bus.admin.dead_letters import DeadLetters
from message_bus.admin.letters import Action, DeadLetter, DeadLetterReport
from message_bus.cli.letter_lines import lines_of_letter, lines_of_letters, lines_of_report
from message_bus.cli.manners import progress
from message_bus.cli.operating import (
    Instant,
    confirm,
    json_option,
    opened,
    print_json,
    reading,
    show_warnings,
    user,
)
from message_bus.cli.options import database_url_option, tables_options

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _selection_options(command: _Command) -> _Command:
    """Give the command the options of `_selection`."""
    options = [
        click.option("--id", "ids", type=click.UUID, multiple=True, metavar="ID", help="Of a message; may be repeated."),
        click.option("--subscription", metavar="NAME", help="Whose letters."),
        click.option("--message", metavar="TYPE", help="The name of a message type."),
        click.option("--error", metavar="TEXT", help="What the error contains, in whatever case."),
        click.option("--since", type=Instant(), metavar="TIME", help="Died then or later; ISO 8601 with a zone."),
        click.option("--until", type=Instant(), metavar="TIME", help="Died before; ISO 8601 with a zone."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _deciding_options(command: _Command) -> _Command:
    """Give the command what replay and discard have in common."""
    options = [
        click.option("--all", "everything", is_flag=True, help="All dead letters there are."),
        click.option("--limit", type=click.IntRange(min=1), help="Only so many, the oldest first."),
        click.option("--dry-run", is_flag=True, help="Show which ones, and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--by", metavar="NAME", help="Who decides this, for the log [default: the user's name]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_payload_option = click.option("--payload", is_flag=True, help="Payload and meta, too: they may be secret.")


@click.group("dead-letters")
def dead_letters() -> None:
    """Find, replay and discard what was given up.

    A dead letter is a message that a subscription has stopped trying: its attempts are used up, its handler rejected
    it, or it cannot be decoded.
    """


@dead_letters.command("list")
@_selection_options
@click.option(
    "--state",
    type=click.Choice(["dead", "retrying", "held", "trying", "all"]),
    default="dead",
    show_default=True,
    help="Also what is not given up: to be tried again, waiting behind one of its key, in hand.",
)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@_payload_option
@json_option
@database_url_option
@tables_options
def list_letters(
    database_url: URL,
    schema: str | None,
    prefix: str,
    state: Any,
    limit: int,
    payload: bool,
    as_json: bool,
    **selection: Any,
) -> None:
    """List dead letters, the oldest message first; or, with --state, messages that have failed and are tried again."""
    chosen = _selection(selection)
    with _reading(database_url, schema, prefix) as letters:
        found = letters.list(**chosen, state=state, limit=limit, payload=payload)
        count = letters.count(**chosen, state=state)
    if as_json:
        print_json({"count": count, "letters": [_as_json(letter, payload) for letter in found]})
    else:
        click.echo("\n".join(lines_of_letters(found, count=count, payload=payload, state=state)))


@dead_letters.command()
@click.argument("id", type=click.UUID)
@click.option("--subscription", metavar="NAME", help="Whose letter, if the message is dead in several.")
@_payload_option
@json_option
@database_url_option
@tables_options
def show(
    database_url: URL,
    schema: str | None,
    prefix: str,
    id: UUID,  # noqa: A002
    subscription: str | None,
    payload: bool,
    as_json: bool,
) -> None:
    """Show one dead letter, with its error and traceback."""
    with _reading(database_url, schema, prefix) as letters:
        letter = letters.get(id, subscription, payload=payload)
    if letter is None:
        whose = "" if subscription is None else f" of subscription {subscription!r}"
        raise click.ClickException(
            f"message {id} is no dead letter{whose} (`message-bus dead-letters list` shows what there is)"
        )
    if as_json:
        print_json(_as_json(letter, payload))
    else:
        click.echo("\n".join(lines_of_letter(letter, payload=payload)))


@dead_letters.command()
@_selection_options
@_deciding_options
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NUMBER",
    help="Spread the first attempts: so many a second.",
)
@json_option
@database_url_option
@tables_options
def replay(rate: float | None, **options: Any) -> None:
    """Let the selected letters be tried again, with all their attempts ahead of them.

    The next `process-outbox` does that. Letters of one key are tried in their order, and while one is being retried
    later messages of its key wait.
    """
    _decide("replay", **options, per_second=rate)


@dead_letters.command()
@_selection_options
@_deciding_options
@json_option
@database_url_option
@tables_options
def discard(**options: Any) -> None:
    """Give the selected letters up for good.

    Their errors are gone, what was held behind them follows.
    """
    _decide("discard", **options)


def _decide(
    action: Action,
    *,
    database_url: URL,
    schema: str | None,
    prefix: str,
    everything: bool,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    per_second: float | None = None,
    **selection: Any,
) -> None:
    chosen = _selection(selection)
    if everything == any(value is not None for value in chosen.values()):
        raise click.UsageError(
            "--all contradicts a selection (leave one of them out)"
            if everything
            else "nothing is selected (give --id, --subscription, --message, --error, --since or --until; or --all)"
        )
    show_warnings()
    rate = {} if per_second is None else {"per_second": per_second}
    with opened(database_url, schema, prefix) as (session, tables):
        letters = DeadLetters(session, tables=tables)
        decide: Callable[..., DeadLetterReport] = getattr(letters, action)
        report = decide(**chosen, everything=everything, limit=limit, dry_run=True)
        session.rollback()
        if report.letters and not dry_run:
            if not yes and (action == "discard" or report.count > 1):
                confirm(
                    lines_of_report(report, question=True),
                    f"{action} {'it' if report.count == 1 else 'them'}?",
                )
            with progress(f"{action}ing", report.count, silent=as_json) as show:
                done = decide(letters=report.letters, by=by or user(), progress=show, **rate)
            session.commit()
            report = DeadLetterReport(action=action, letters=done.letters, left=report.left)
    if as_json:
        print_json({"count": report.count, **asdict(report)})
    else:
        click.echo("\n".join(lines_of_report(report, per_second=per_second)))


def _selection(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "ids": given["ids"] or None}


@contextmanager
def _reading(url: URL, schema: str | None, prefix: str) -> Generator[DeadLetters]:
    with reading(url, schema, prefix) as (session, tables):
        yield DeadLetters(session, tables=tables)


def _as_json(letter: DeadLetter, payload: bool) -> dict[str, Any]:
    left_out: Final = () if payload else ("payload", "meta")
    return {name: value for name, value in asdict(letter).items() if name not in left_out}
