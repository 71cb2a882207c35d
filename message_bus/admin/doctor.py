# Generated from doctor_async.py by tests/tools/unasync.py: do not edit.
"""What is wrong with this outbox, and what to do about it. `message-bus doctor` only prints it.

It repairs nothing. Each check stands in `checks.py`; when something is worth a finding, and what is said, in `findings.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.checks import run_checks
from message_bus.admin.findings import Finding, keeps_from_asking, of_subscriptions
from message_bus.admin.ground import on_connection
from message_bus.admin.subscriptions import Subscriptions
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.types import utc_now

Findings = list[Finding]


def doctor(
    session: Session | scoped_session[Any] | Connection,
    *,
    tables: MessageBusTables = DEFAULT_TABLES,
) -> Findings:
    """Look for everything that stops delivery, loses messages, or soon will; empty: all is well.

    Ask with the role that delivers messages: privileges and row-level security are those of the connection. Reads only, in
    the caller's transaction, which must be READ COMMITTED. A check that fails is a finding itself, so that nothing is raised
    but what keeps it from asking at all.
    """
    subscriptions = Subscriptions(session, tables=tables)
    target: Any = subscriptions.session
    found: Findings = on_sync_session(target, on_connection, tables, run_checks, tables)
    if not any(keeps_from_asking(each) for each in found):
        now = target.execute(select(utc_now())).scalar_one()
        found += of_subscriptions(subscriptions.list(), now)
    return sorted(found, key=lambda finding: finding.severity != "error")
