"""The event log in a database: what the SQLAlchemy stores do, on a plain Connection and in the caller's transaction.

It has one colour: under an async driver it runs inside SQLAlchemy's greenlet. Nothing here commits or rolls back, but for
a savepoint of its own around events whose ids the caller gave. Called by the stores only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc

from message_bus.bus.context import correlation_id, in_hand
from message_bus.errors import ConcurrencyError, DuplicateEvent, WiringError
from message_bus.eventsourcing.stores.encoding import (
    Batch,
    check_number,
    check_stream,
    encode_events,
    encode_state,
    refuse_beyond,
    repeated_id,
)
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.sql_statements import (
    Statements,
    insert_events,
    refuse_autocommit,
    run,
    statements_of,
)
from message_bus.eventsourcing.stores.store import Savable, Snapshot
from message_bus.messages.keys import key_hash
from message_bus.messages.message import STORED, Event
from message_bus.messages.recorded import (
    PackedRow,
    RecordedEvent,
    StoredRow,
    envelope_of,
    instant,
)
from message_bus.observability.trace_context import inherited_headers
from message_bus.storage import event_statements
from message_bus.storage.driver import Rendered
from message_bus.storage.insert_dialects import database_of
from message_bus.storage.logs import EVENT_LOG
from message_bus.storage.tables import MessageBusTables

COLOURS: Final = "give sync ones to SQLAlchemyEventStore, async ones to AsyncSQLAlchemyEventStore"

_SAVEPOINT: Final = "message_bus_append"
_SERIALIZATION_FAILURE: Final = "40001"
_APPENDED: Final = (
    "message_bus.appended"  # in Connection.info: the first position of an open transaction's own events
)
_MARK: Final = len(("message", "schema_version", "payload"))  # columns before those of StoredRow
_PACKED: Final = _MARK + 1
_new_row: Final = tuple.__new__
_set: Final = object.__setattr__


def refuse_other_log(watermark: Any, tables: MessageBusTables, kind: type[Any]) -> None:
    """Raise WiringError unless this is a watermark of these tables' event log: no other knows who writes into it."""
    remedy = f'give {kind.__name__}(tables.of_log("{EVENT_LOG}")), of the tables that the store has'
    if not isinstance(watermark, kind):
        raise WiringError(f"watermark is a {type(watermark).__name__!r}, not a {kind.__name__} ({remedy})")
    if watermark.log != EVENT_LOG:
        raise WiringError(
            f"the watermark is of the log {watermark.log!r}, so events of writers that are still open would be missed ({remedy})"
        )
    if watermark.table.fullname != tables.event.fullname:
        raise WiringError(
            f"the watermark is of the table {watermark.table.fullname!r}, but the events are in {tables.event.fullname!r}, so "
            f"events of writers that are still open would be missed ({remedy})"
        )


class SQLLog:
    """The event log of one set of tables. Bound to no connection; safe to share between threads."""

    def __init__(self, tables: MessageBusTables, types: EventTypes) -> None:
        self.tables = tables
        self._types = types

    def append(
        self, connection: sa.Connection, aggregate_id: str, events: Sequence[Savable], expected: int | None
    ) -> list[RecordedEvent]:
        """Do what `EventStore.save` says, in the connection's transaction."""
        check_stream(aggregate_id)
        check_number("expected_version", expected)
        batch = encode_events(events, inherited=inherited_headers(in_hand()), correlation_id=correlation_id())
        self._types.notice(batch.messages)
        if (repeated := repeated_id(batch.records) if batch.has_given_ids else None) is not None:
            raise DuplicateEvent(aggregate_id, repeated)
        refuse_autocommit(connection)
        if not batch.records:
            if expected is not None and (actual := self.version(connection, aggregate_id)) != expected:
                raise ConcurrencyError(aggregate_id, expected, actual)
            return []
        if batch.has_given_ids and connection.dialect.name == "postgresql":
            return self._append_in_savepoint(connection, aggregate_id, batch, expected)
        return self._append(connection, aggregate_id, batch, expected)

    def load(self, connection: sa.Connection, aggregate_id: str, from_version: int) -> list[Event]:
        """The events of one stream."""
        check_stream(aggregate_id)
        check_number("from_version", from_version)
        parameters = {"of_stream": aggregate_id, "after": from_version}
        return self._events(self._run(connection, self._of(connection).events_of, parameters))

    def read(
        self,
        connection: sa.Connection,
        after: int,
        settled: int,
        limit: int,
        names: Sequence[str] | None,
    ) -> list[RecordedEvent]:
        """The settled events after a position."""
        parameters = {"after": after, "settled": settled, "limit": limit}
        rows: Sequence[Any]
        if names is None:
            rows = self._run(connection, self._of(connection).events_after, parameters)
        else:
            rows = connection.execute(
                event_statements.events_after(self.tables, connection.dialect.name, names), parameters
            ).all()
        return self._recorded(rows)

    def version(self, connection: sa.Connection, aggregate_id: str) -> int:
        """The number of events of one stream."""
        check_stream(aggregate_id)
        rows = self._run(connection, self._of(connection).version_of, {"of_stream": aggregate_id})
        return int(rows[0][0]) if rows else 0

    def load_by_trace(self, connection: sa.Connection, trace_id: str) -> list[Event]:
        """The events with this correlation or trace id."""
        return self._events(self._run(connection, self._of(connection).events_of_trace, {"trace": trace_id}))

    def save_snapshot(self, connection: sa.Connection, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless a newer one is kept."""
        state = encode_state(snapshot)
        refuse_autocommit(connection)
        kept = connection.execute(
            self._of(connection).keep_snapshot,
            {
                "of_stream": snapshot.aggregate_id,
                "aggregate_type": snapshot.aggregate_type,
                "version": snapshot.version,
                "schema_version": snapshot.schema_version,
                "state": state,
                "taken_at": snapshot.timestamp,
            },
        )
        if kept.first() is None:  # a newer one is kept, or there is nothing that it could be a snapshot of
            refuse_beyond(snapshot, self.version(connection, snapshot.aggregate_id))

    def load_snapshot(self, connection: sa.Connection, aggregate_id: str) -> Snapshot | None:
        """The snapshot that is kept."""
        check_stream(aggregate_id)
        rows = self._run(connection, self._of(connection).snapshot_of, {"of_stream": aggregate_id})
        if not rows:
            return None
        aggregate_type, version, state, taken_at, schema_version = rows[0]
        return Snapshot(
            aggregate_id,
            aggregate_type,
            version,
            msgspec.json.decode(state),
            instant(taken_at),
            schema_version,
        )

    def transaction(self, connection: sa.Connection) -> tuple[Any, int | None]:
        """The connection's transaction, and the first position that it has drawn itself."""
        if not connection.in_transaction():
            connection.begin()
        return connection.get_transaction(), self.own_from(connection)

    def own_from(self, connection: sa.Connection) -> int | None:
        """The first position that this connection's open transaction has drawn itself."""
        found = connection.info.get(_APPENDED, {}).get(self.tables.event.fullname)
        return found[1] if found is not None and found[0] is connection.get_transaction() else None

    # --- appending

    def _append_in_savepoint(
        self, connection: sa.Connection, aggregate_id: str, batch: Batch, expected: int | None
    ) -> list[RecordedEvent]:
        """An id that is taken would abort the caller's transaction. Not SQLAlchemy's savepoint: nobody need notice."""
        connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")
        try:
            recorded = self._append(connection, aggregate_id, batch, expected)
        except (DuplicateEvent, ConcurrencyError) as error:
            if isinstance(error, DuplicateEvent) or error.actual_version is not None:
                connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            raise
        connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return recorded

    def _append(
        self, connection: sa.Connection, aggregate_id: str, batch: Batch, expected: int | None
    ) -> list[RecordedEvent]:
        count = len(batch.records)
        last = self._advance(connection, aggregate_id, count, expected)
        hashed = key_hash(aggregate_id)
        rows = [
            (
                record.id,
                aggregate_id,
                version,
                record.message,
                record.schema_version,
                hashed,
                record.payload,
                record.meta,
                record.headers,
                record.correlation_id,
                record.trace_id,
            )
            for version, record in enumerate(batch.records, last - count + 1)
        ]
        try:
            written = insert_events(connection, self.tables, rows)
        except exc.IntegrityError as error:
            database = database_of(connection.dialect)
            if not database.names_id(error, self.tables.event):
                raise
            ids = [record.id for record in batch.records]
            taken = str(ids[0]) if count == 1 else None
            if connection.dialect.name == "sqlite":  # the INSERT has undone itself alone
                self._run(
                    connection, self._of(connection).take_back, {"of_stream": aggregate_id, "count": count}
                )
                taken = taken or database.find_taken(error, connection, self.tables.event, ids)
            else:
                taken = taken or database.find_taken(error, connection, self.tables.event, ids)
            raise DuplicateEvent(aggregate_id, None if taken is None else UUID(taken)) from error
        self._note_own(connection, written[0][0])
        return [
            StoredRow(
                position, aggregate_id, version, record.id, recorded_at, record.headers, record.meta
            ).envelope_of(message)
            for (position, version, recorded_at), record, message in zip(
                written, batch.records, batch.messages, strict=True
            )
        ]

    def _advance(self, connection: sa.Connection, stream: str, count: int, expected: int | None) -> int:
        parameters: dict[str, Any] = {"of_stream": stream, "count": count}
        checked = "any" if expected is None else "at" if expected else "new"
        if checked == "at":
            parameters["expected"] = expected
        try:
            rows = self._run(connection, self._of(connection).advance[checked], parameters)
        except exc.DBAPIError as error:
            if (
                getattr(error.orig, "sqlstate", None) == _SERIALIZATION_FAILURE
            ):  # its snapshot is too old for the row
                raise ConcurrencyError(stream, expected, None) from error
            raise
        if not rows:
            raise ConcurrencyError(stream, expected, self.version(connection, stream))
        return int(rows[0][0])

    def _note_own(self, connection: sa.Connection, position: int) -> None:
        if self.own_from(connection) is None:
            appended = connection.info.setdefault(_APPENDED, {})
            appended[self.tables.event.fullname] = (connection.get_transaction(), position)

    # --- reading

    def _events(self, rows: Sequence[Any]) -> list[Event]:
        name = version = decode = None
        events: list[Event] = []
        for row in rows:
            if row[0] != name or row[1] != version:
                name, version = row[0], row[1]
                decode = self._types.decoder(name, version)
            event = decode(row[2])  # type: ignore[misc]
            if event.__class__.__dictoffset__:  # as mark_stored does
                _set(
                    event,
                    STORED,
                    PackedRow(row[3]) if len(row) == _PACKED else _new_row(StoredRow, row[_MARK:]),
                )
            events.append(event)
        return events

    def _recorded(self, rows: Sequence[Any]) -> list[RecordedEvent]:
        """The same, in their envelopes."""
        recorded: list[RecordedEvent] = []
        for row, event in zip(rows, self._events(rows), strict=True):
            stored = getattr(event, STORED, None)
            if stored is None:  # it has slots
                stored = PackedRow(row[3]) if len(row) == _PACKED else _new_row(StoredRow, row[_MARK:])
            recorded.append(envelope_of(event, stored))
        return recorded

    # --- the connection

    def _of(self, connection: sa.Connection) -> Statements:
        return statements_of(self.tables, connection.dialect)

    def _run(
        self, connection: sa.Connection, statement: Rendered, parameters: Mapping[str, Any]
    ) -> Sequence[Any]:
        return run(connection, self.tables, statement, parameters)
