"""The checks behind `doctor`, one function each, on the sync Connection; the async side goes through `run_sync`.

Each runs in a savepoint of its own, and what fails is a finding, too: half a diagnosis is better than none. They read only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from importlib.metadata import distributions
from typing import Any, Final

from sqlalchemy import inspect
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from message_bus.admin.findings import (
    Finding,
    called,
    of_checkpoints,
    of_distributions,
    of_holder,
    of_prepared,
    of_row_security,
    split,
)
from message_bus.admin.ground import refuse_autocommit, tables_of_logs
from message_bus.delivery.verdicts import error_text
from message_bus.errors import MessageBusError
from message_bus.storage import status_statements as statements
from message_bus.storage.holders import holders
from message_bus.storage.logs import quoted_name, schema_of
from message_bus.storage.preconditions import faults_of_log
from message_bus.storage.schema import differences
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.watermark import Watermark

Check = Callable[[Connection, MessageBusTables], Iterator[Finding]]
_PACKAGE: Final = "message_bus/__init__.py"
_UPGRADE: Final = "message-bus db upgrade, or your own migration"


def run_checks(connection: Connection, tables: MessageBusTables) -> list[Finding]:
    """Run every check; while a table is missing only those that need none."""
    refuse_autocommit(connection, tables, "an outbox is examined")
    found = _run(connection, tables, "schema", _schema)
    found += _run(connection, tables, "distribution", _distribution)
    logs = [tables]
    if not (found and _is_incomplete(connection, tables)):
        try:
            with connection.begin_nested():
                logs = tables_of_logs(connection, tables)
        except (SQLAlchemyError, MessageBusError):  # the checks say so
            pass
        of_each_log: list[tuple[str, Check]] = [
            ("log", _log),
            ("watermark", _watermark),
            ("checkpoints", _checkpoints),
        ]
        for of_log in logs:
            for name, check in of_each_log:
                found += _run(connection, of_log, f"{name} of the {called(of_log.source_log)}", check)
        found += _run(connection, tables, "row-level security", _row_security)
    found += _run(connection, tables, "prepared transactions", partial(_prepared, logs))
    return found


def _run(connection: Connection, tables: MessageBusTables, name: str, check: Check) -> list[Finding]:
    savepoint = connection.begin_nested()
    try:
        found = list(check(connection, tables))
    except (SQLAlchemyError, MessageBusError) as error:
        savepoint.rollback()
        text = error_text(error) if isinstance(error, SQLAlchemyError) else str(error)
        return [
            split(
                "could-not-check",
                "error",
                f"{name}: {text}",
                "run doctor with the role that delivers messages",
            )
        ]
    savepoint.commit()
    return found


def _is_incomplete(connection: Connection, tables: MessageBusTables) -> bool:
    inspector = inspect(connection)
    return not all(inspector.has_table(table.name, schema_of(connection, table)) for table in tables.all)


def _schema(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    for difference in differences(connection, tables):
        yield Finding(code="schema", severity="error", text=difference, remedy=_UPGRADE)


def _distribution(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    owners: list[str] = []
    for each in distributions():  # packages_distributions() would parse every file list there is
        files = each.read_text("RECORD") or each.read_text("installed-files.txt") or ""
        if f"\n{_PACKAGE}" in f"\n{files}":
            owners.append(each.metadata["Name"])
    yield from of_distributions(owners)


def _log(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    for fault in faults_of_log(connection, tables):
        yield split("log", "error", fault, "see docs/how-the-watermark-works.md")


def _watermark(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    for each in holders(connection, tables):
        finding = of_holder(
            tables.source_log,
            who=str(each),
            pid=each.pid,
            prepared=each.prepared,
            age=each.age,
            query_hidden=each.query is None,
        )
        if finding is not None:
            yield finding


def _checkpoints(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    positions: dict[str, int] = {}
    for row in connection.execute(statements.checkpoints(tables)):  # before the look (W8)
        positions[row.name] = max(row.position, positions.get(row.name, 0))
    look = Watermark(tables).look(connection)
    yield from of_checkpoints(tables.source_log, positions, look.high, look.catch_up)


def _prepared(
    logs: Sequence[MessageBusTables], connection: Connection, tables: MessageBusTables
) -> Iterator[Finding]:
    if connection.dialect.name != "postgresql":
        return
    in_the_way = {each.prepared for of_log in logs for each in holders(connection, of_log)}
    for row in connection.execute(statements.PREPARED):
        finding = of_prepared(row.gid, row.owner, timedelta(seconds=float(row.seconds)))
        if finding is not None and row.gid not in in_the_way:
            yield finding


def _row_security(connection: Connection, tables: MessageBusTables) -> Iterator[Finding]:
    if connection.dialect.name != "postgresql":
        return
    names: list[str] = [quoted_name(connection, table) for table in tables.all]
    rows: list[Any] = list(connection.execute(statements.GUARDED, {"names": names}))
    yield from of_row_security([(row.name, row.here) for row in rows], rows[0].role if rows else "")
