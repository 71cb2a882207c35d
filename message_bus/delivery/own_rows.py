# Generated from own_rows_async.py by tests/tools/unasync.py: do not edit.
"""The path for repositories that users wrote themselves: list, handle, mark, save, one message at a time.

All it knows of such a repository is the contract of `OutBoxRepoABC`, so there are no checkpoints, attempts or dead
letters here: a row whose handlers all succeed gets `processed = True` (if it has that attribute) and is saved; a row
that fails is rolled back, logged, and found again by the next call. It never stops the rows behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import InstanceState

from message_bus._compat import result_of
from message_bus.bus.context import Context
from message_bus.delivery.report import OutboxReport, SubscriptionReport, summed
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.telling import fields_of_own_row
from message_bus.delivery.verdicts import PassedOver
from message_bus.messages.envelope import undecoded_envelope
from message_bus.repositories.outbox_message import outbox_message_of

logger = logging.getLogger("message_bus.delivery")


def process_own_rows(
    bus: Any, repo: Any, handlers: Mapping[str, tuple[Any, Subscription]], *, limit: int | None
) -> OutboxReport:
    """Hand every unprocessed row to all handlers; at most `limit` rows."""
    tried: set[Any] = set()
    delivered = passed_over = failed = 0
    rows = iter(_unprocessed(repo))
    while limit is None or len(tried) < limit:
        row = _next_untried(rows, tried)
        if row is None:  # handlers may have registered more meanwhile
            rows = iter(_unprocessed(repo))
            row = _next_untried(rows, tried)
        if row is None:
            break
        message_id = row.id
        tried.add(message_id)
        extra = fields_of_own_row(message_id, getattr(row, "message", None))
        try:
            handled = _handle(bus, repo, row, handlers)
            _mark(row)
            result_of(repo.save())
        except Exception as error:
            failed += 1
            logger.error(  # with its traceback: such a repository has no other place for it
                "an outbox row failed and will be tried again: %s",
                type(error).__name__,
                exc_info=error,
                extra={**extra, "verdict": "retrying", "error_type": type(error).__name__},
            )
            result_of(repo.rollback())
            rows = iter(_unprocessed(repo))  # a rollback expires what was loaded
        else:
            delivered += handled
            passed_over += not handled
            verdict = "delivered" if handled else "passed over"
            logger.debug("an outbox row is %s", verdict, extra={**extra, "verdict": verdict})
    reports = {
        name: SubscriptionReport(name=name, delivered=delivered, passed_over=passed_over, retrying=failed)
        for name in handlers
    }
    return summed(reports)


def _unprocessed(repo: Any) -> list[Any]:
    return list(result_of(repo.list_unprocessed()) or ())


def _next_untried(rows: Iterator[Any], tried: set[Any]) -> Any:
    for row in rows:
        _load(row)
        if row.id not in tried:
            return row
    return None


def _load(row: Any) -> None:
    """Read an entity again that the commit of the row before it has expired: only sync sessions do so by themselves."""
    state = sa.inspect(row, raiseerr=False)
    if isinstance(state, InstanceState) and state.expired and state.session is not None:
        state.session.refresh(row)


def _handle(bus: Any, repo: Any, row: Any, handlers: Mapping[str, tuple[Any, Subscription]]) -> bool:
    """True if any handler took the row, False if all passed it over."""
    handled = False
    for handler, _ in handlers.values():
        context = Context({**bus.context, "outbox": repo})
        context["envelope"] = undecoded_envelope(bus.registry, outbox_message_of(row))
        outcome = result_of(handler.handle(row, context))
        handled |= not isinstance(outcome, PassedOver)
    return handled


def _mark(row: Any) -> None:
    if hasattr(row, "processed"):
        row.processed = True
