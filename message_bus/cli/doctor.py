"""`message-bus doctor`: what is wrong, and what to do. A shell around `message_bus.admin.doctor`; it repairs nothing.

Exit codes: 0 nothing was found, 1 it could not run, 3 something was found.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click
from sqlalchemy.engine import URL

from message_bus.admin.doctor import doctor as examine
from message_bus.admin.findings import Finding
from message_bus.cli.lines import harmless
from message_bus.cli.manners import coloured
from message_bus.cli.operating import database_options, json_option, print_json, reading
from message_bus.cli.options import without_secrets

EXIT_FOUND: Final = 3


@click.command()
@json_option
@database_options
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, database_url: URL, schema: str | None, prefix: str) -> None:
    """Look for what stops delivery, loses messages, or soon will. It changes nothing.

    Run it as the user that delivers messages. Exit code 3: something was found.
    """
    with reading(database_url, schema, prefix, check=False) as (session, tables):
        found = examine(session, tables=tables)
    if as_json:
        print_json({"ok": not found, "findings": [asdict(each) for each in found]})
    else:
        lines = [line for each in found for line in _lines(each, database_url)]
        click.echo("\n".join(lines) if lines else coloured("nothing found: all is well", "green"))
    ctx.exit(EXIT_FOUND if found else 0)


def _lines(finding: Finding, url: URL) -> list[str]:
    severity = coloured(finding.severity, "red" if finding.severity == "error" else "yellow")
    return [
        f"{severity} {harmless(without_secrets(f'{finding.code}: {finding.text}', url))}",
        harmless(without_secrets(f"  remedy: {finding.remedy}", url)),
    ]
