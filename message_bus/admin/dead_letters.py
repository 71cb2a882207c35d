# Generated from dead_letters_async.py by tests/tools/unasync.py: do not edit.
"""Find, replay and discard dead letters, in the caller's transaction. `message-bus dead-letters` only wraps this.

    dead ──replay──► retrying, all attempts ahead of it ──► delivered, or dead again
      └──discard──► gone: what was held behind it follows in order

Those of both logs, each with the message that its position means in its subscription's log. They are in order of position,
one of the outbox and one of the events side by side.

A change locks the checkpoint rows of the subscriptions concerned, and reads the letters again behind that lock (S3). It
handles no message: the worker that owns the subscription does, after the caller's commit. What a worker has in hand at
that moment it finishes first; then it reads anew what is to be tried, and what must wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import on_sync_session
from message_bus.admin.ground import refuse_autocommit, refuse_hidden, tables_of_logs
from message_bus.admin.letters import (
    COLOURS,
    Action,
    ChosenLetter,
    DeadLetter,
    DeadLetterReport,
    Selection,
    State,
    delays,
    refuse_numbers,
    refuse_unclear,
    states_of,
    stored,
)
from message_bus.delivery.remembering import decided
from message_bus.errors import SettingsError, WiringError, names_of
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage import dead_letter_statements as statements
from message_bus.storage import history_statements
from message_bus.storage.history_table import DISCARDED, REPLAYED
from message_bus.storage.tables import MessageBusTables

logger = logging.getLogger("message_bus.admin")

AT_ONCE = 1_000  # letters: so often somebody who waits is told

Letters = list[DeadLetter]  # inside the class `list` is the method
Tables = list[MessageBusTables]
Rows = list[Row[Any]]
Given = Collection[DeadLetter | ChosenLetter]


class DeadLetters:
    """The dead letters of all subscriptions, on the caller's session or connection.

    The caller owns the transaction (G10): nothing happens before it commits. Between `replay` or `discard` and that
    commit the workers of these subscriptions wait: keep it short. Every method takes the same selection: letters that
    fit all that is given of `subscription` (a name), `ids` (of messages), `message` (a type's name), `error` (text that
    the error contains, in whatever case), `since` and `until` (aware; died at or after, before). Not task-safe: neither
    is a session.

    Raises: WiringError for a session of the other colour, or anything else.
    """

    def __init__(
        self,
        session_or_connection: Session | scoped_session[Any] | Connection,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None:
        if not isinstance(session_or_connection, Session | scoped_session | Connection):
            raise WiringError(
                f"{type(self).__name__} works on {Session.__name__} or {Connection.__name__}, not on "
                f"{type(session_or_connection).__name__!r} ({COLOURS})"
            )
        self._given = session_or_connection
        self.tables = tables

    @property
    def session(self) -> Session | Connection:
        """The session or connection; behind a scoped session the one of this moment."""
        return self._given() if isinstance(self._given, scoped_session) else self._given

    def list(
        self,
        *,
        subscription: str | None = None,
        ids: Collection[UUID | str] | None = None,
        message: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 100,
        after: DeadLetter | None = None,
        payload: bool = False,
        state: State = "dead",
    ) -> Letters:
        """Return the first `limit` letters, in position order; `after`: those behind this one, the last of the page before.

        Payload and meta are read only with `payload=True`. `state`: "retrying", "held", "trying" or "all" shows what is
        not given up: to look at only, nothing can be decided about it.

        Raises: SettingsError for a selection that says nothing sensible (a naive time, an id that is no UUID).
        """
        refuse_numbers("list", limit=limit)
        selection = Selection(
            subscription=subscription, ids=ids, message=message, error=error, since=since, until=until
        )
        behind = None if after is None else (after.position, after.subscription)
        rows: Rows = []
        for tables in self._logs():
            rows += self.session.execute(
                statements.letters(
                    tables, selection, payload=payload, states=states_of(state), after=behind, limit=limit
                )
            )
        return [_letter_of(row) for row in sorted(rows, key=_place_of)[:limit]]

    def get(
        self,
        id: UUID | str,  # noqa: A002
        subscription: str | None = None,
        *,
        payload: bool = False,
    ) -> DeadLetter | None:
        """Return the dead letter of the message with this id; None if it is not dead, or no more.

        Raises: SettingsError if it is dead in several subscriptions and none is named.
        """
        found = self.list(subscription=subscription, ids=[id], payload=payload)
        if len(found) > 1:
            names = names_of([letter.subscription for letter in found])
            raise SettingsError("dead letters", [f"{id} is dead in {names} (say which: subscription=...)"])
        return found[0] if found else None

    def count(
        self,
        *,
        subscription: str | None = None,
        ids: Collection[UUID | str] | None = None,
        message: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        state: State = "dead",
    ) -> int:
        """Count the letters that are selected, in this state as for `list`. Raises: SettingsError as `list` does."""
        selection = Selection(
            subscription=subscription, ids=ids, message=message, error=error, since=since, until=until
        )
        count = 0
        for tables in self._logs():
            found = self.session.execute(statements.count_letters(tables, selection, states_of(state)))
            count += int(found.scalar_one())
        return count

    def replay(
        self,
        *,
        subscription: str | None = None,
        ids: Collection[UUID | str] | None = None,
        message: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        letters: Given | None = None,
        everything: bool = False,
        limit: int | None = None,
        per_second: float | None = None,
        by: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> DeadLetterReport:
        """Let the selected letters be tried again, each with all its attempts (`max_attempts`) ahead of it.

        `letters`: those that `list` or a dry run has returned, as far as nobody has decided about them since.
        `everything`: all there are; without it a selection is wanted. `limit`: only so many, the oldest first.
        `per_second`: spread their first attempts, from now on, by the database's clock. `by`: who decides, for the log and
        for `why`. `progress`: is told from time to time how many are written.

        Nothing is handled here: the subscription's next run does that. Order: letters of one key are tried in
        position order, and as long as one is retrying the later messages of its key wait, new ones included (G3).
        What has overtaken it while it was dead stays as it is. Repeating the call changes nothing: what is retrying is no
        dead letter. Letters that nobody could try (the message or the subscription is gone) are left, and counted.

        Raises: SettingsError if nothing is selected, or the selection says nothing sensible. UnsupportedDatabase on
            an AUTOCOMMIT connection.
        """
        selection = Selection(
            subscription=subscription, ids=ids, message=message, error=error, since=since, until=until
        )
        refuse_numbers("replay", limit=limit, per_second=per_second)
        refuse_unclear("replay", selection, letters=letters, everything=everything)
        logs = self._logs()
        names = self._lock(logs, selection, letters, dry_run=dry_run)
        found = self._read(logs, selection, names, letters, triable=True, limit=limit)
        left = self._read(logs, selection, names, letters, triable=False)
        if not dry_run and found:
            self._write(
                statements.replay_letter(self.tables),
                [
                    {"of_subscription": row.subscription, "at_position": row.position, "delay": delay}
                    for row, delay in zip(found, delays(len(found), per_second), strict=True)
                ],
                progress,
            )
            self._remember(REPLAYED, found, by=by)
            self._tell_owners(found)
        return _reported("replay", found, left=len(left), by=by, dry_run=dry_run)

    def discard(
        self,
        *,
        subscription: str | None = None,
        ids: Collection[UUID | str] | None = None,
        message: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        letters: Given | None = None,
        everything: bool = False,
        limit: int | None = None,
        by: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> DeadLetterReport:
        """Give the selected letters up for good: the traceback is gone, `why` and the log know of the rest.

        `letters`, `everything`, `limit`, `by`: as for `replay`. What was held behind a discarded letter follows in order,
        with the subscription's next run. The message itself stays in the outbox until retention takes it (G9), and
        counts as dealt with. Repeating the call changes nothing.

        Raises: as `replay` does.
        """
        selection = Selection(
            subscription=subscription, ids=ids, message=message, error=error, since=since, until=until
        )
        refuse_numbers("discard", limit=limit)
        refuse_unclear("discard", selection, letters=letters, everything=everything)
        logs = self._logs()
        names = self._lock(logs, selection, letters, dry_run=dry_run)
        found = self._read(logs, selection, names, letters, limit=limit)
        if not dry_run and found:
            self._write(
                statements.discard_letter(self.tables),
                [{"of_subscription": row.subscription, "at_position": row.position} for row in found],
                progress,
            )
            self._remember(DISCARDED, found, by=by)
            self._tell_owners(found)  # what was held behind it may go on
        return _reported("discard", found, by=by, dry_run=dry_run)

    def _remember(self, what: str, found: Sequence[Row[Any]], *, by: str | None) -> None:
        """Let `why` tell who has decided this, and when."""
        self._write(history_statements.remember(self.tables), decided(what, found, by=by))

    def _tell_owners(self, found: Sequence[Row[Any]]) -> None:
        """Let the workers of these partitions see that something was decided, also while they wait."""
        parts = {(row.subscription, row.partition) for row in found if row.partition is not None}
        if parts:
            self._write(
                statements.note_decision(self.tables),
                [{"of_subscription": name, "part": partition} for name, partition in sorted(parts)],
            )

    def _refuse_hidden(self) -> None:
        session: Any = self.session
        on_sync_session(session, refuse_hidden, self.tables)

    def _logs(self) -> Tables:
        """The tables for the readers of each log."""
        self._refuse_hidden()
        session: Any = self.session
        found: Tables = on_sync_session(session, tables_of_logs, self.tables)
        return found

    def _lock(
        self, logs: Tables, selection: Selection, letters: Given | None, *, dry_run: bool
    ) -> Sequence[str]:
        """Which subscriptions are concerned; their checkpoint rows are locked now, unless it is a dry run (S3)."""
        if letters is not None:
            names: Sequence[str] = sorted({letter.subscription for letter in letters})
        else:
            found: set[str] = set()
            for tables in logs:
                found.update(self.session.scalars(statements.subscriptions_of_letters(tables, selection)))
            names = sorted(found)
        if names and not dry_run:
            session: Any = self.session
            on_sync_session(session, refuse_autocommit, self.tables)
            locked = self.session.execute(statements.lock_subscriptions(self.tables), {"names": names})
            locked.all()
        return names

    def _read(
        self,
        logs: Tables,
        selection: Selection,
        names: Sequence[str],
        letters: Given | None,
        *,
        triable: bool | None = None,
        limit: int | None = None,
    ) -> Sequence[Row[Any]]:
        """What is dead now: in a later statement than the lock, or it could be what it was before (S3)."""
        if not names:
            return ()
        wanted = None if letters is None else {_death_of(each) for each in letters}
        positions = sorted(each.position for each in letters) if letters else None
        rows: Rows = []
        for tables in logs:
            found = self.session.execute(
                statements.letters_to_decide(
                    tables,
                    selection,
                    names=names,
                    triable=triable,
                    between=(positions[0], positions[-1]) if positions else None,
                    limit=limit if wanted is None else None,
                )
            )
            rows += [row for row in found if wanted is None or _death_of(row) in wanted]
        return sorted(rows, key=_place_of)[:limit]

    def _write(
        self,
        statement: Any,
        parameters: Sequence[dict[str, Any]],
        progress: Callable[[int], object] | None = None,
    ) -> None:
        for begin in range(0, len(parameters), AT_ONCE):
            self.session.execute(statement, list(parameters[begin : begin + AT_ONCE]))
            if progress is not None:
                progress(min(begin + AT_ONCE, len(parameters)))


def _death_of(letter: Any) -> tuple[str, int, datetime]:
    """One that was replayed and has died again is another one."""
    return letter.subscription, letter.position, letter.failed_at


def _place_of(row: Row[Any]) -> tuple[int, str]:
    return row.position, row.subscription


def _letter_of(row: Row[Any]) -> DeadLetter:
    values = dict(row._mapping)
    asked_for = {name: stored(values.pop(name)) for name in ("payload", "meta") if name in values}
    return DeadLetter(**values, **asked_for)


def _reported(
    action: Action, found: Sequence[Row[Any]], *, by: str | None, dry_run: bool, left: int = 0
) -> DeadLetterReport:
    report = DeadLetterReport(
        action=action,
        letters=tuple(
            ChosenLetter(
                subscription=row.subscription,
                position=row.position,
                id=row.id,
                message=row.message,
                key=row.key,
                failed_at=row.failed_at,
            )
            for row in found
        ),
        left=left,
        dry_run=dry_run,
    )
    if report.letters and not dry_run:
        logger.warning(
            "%s of %d dead %s of %s, by %s: in force when its transaction commits",
            action,
            report.count,
            "letter" if report.count == 1 else "letters",
            names_of(report.subscriptions),
            by or "somebody who gave no name",
            extra={
                "action": action,
                "by": by,
                "count": report.count,
                "subscriptions": report.subscriptions,
                "message_ids": [str(letter.id) for letter in report.letters[:100]],
            },
        )
    return report
