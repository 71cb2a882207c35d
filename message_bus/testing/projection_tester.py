"""`ProjectionTester`: what a projection makes of some events, on SQLite in memory, without engine, log or relay.

For unit tests of the `@when` methods. That events arrive once and in order is the engine's business, and tested there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from sqlalchemy import StaticPool, create_engine, select
from sqlalchemy.orm import Session

from message_bus._compat import result_of
from message_bus.bus.context import Context
from message_bus.errors import SettingsError
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.messages.definition import definition_of
from message_bus.messages.envelope import Envelope, new_envelope
from message_bus.messages.message import Message
from message_bus.messages.recorded import RecordedEvent


class ProjectionTester:
    """Hands events to a projection, and shows its tables: `ProjectionTester(OrderTotals).given(...).rows("totals")`.

    `projection`: the class, or an instance. Its tables are made in a SQLite database in memory, which is gone with the
    tester (or at the end of `with`). Events are encoded and decoded as a log does it, get the positions 1, 2, 3, ..., and
    those that no method takes are passed over. `context`: what handlers find in their context besides the session.

    Raises: SettingsError if a handler is async (a sync session runs it nowhere; test it with a relay).
    """

    def __init__(
        self, projection: type[Projection] | Projection, *, context: Mapping[str, Any] | None = None
    ) -> None:
        self.projection = projection() if isinstance(projection, type) else projection
        if self.projection.is_async:
            raise SettingsError("ProjectionTester", ["it runs no async handlers (test them with a relay)"])
        self.position = 0
        """The position of the last event."""
        self._context = dict(context or {})
        tables = self.projection.live_tables.values()
        no_schemas = {table.schema: None for table in tables}
        self._engine = create_engine(
            "sqlite://", poolclass=StaticPool, execution_options={"schema_translate_map": no_schemas}
        )
        self._session = Session(self._engine)
        for table in tables:
            table.create(self._engine)

    def given(self, *events: Message | Envelope | RecordedEvent) -> Self:
        """Let these events happen, one after another. Raises: what the projection's methods raise."""
        for event in events:
            self.position += 1
            message = event if isinstance(event, Message) else event.message
            if type(message) not in self.projection.handled:
                continue
            definition = definition_of(type(message))
            again = definition.decode(definition.check(message))
            envelope: Envelope | RecordedEvent
            if isinstance(event, Message):
                now = datetime.now(UTC)
                envelope = replace(new_envelope(again), position=self.position, created_at=now)
            else:
                envelope = event
                self.position = event.position or self.position
            context = Context({**self._context, "db_session": self._session, "envelope": envelope})
            result_of(self.projection.call(again, context))
        self._session.flush()
        return self

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of the table with this short name, by its primary key. Raises: SettingsError."""
        found = self.projection.table(table)
        order = list(found.primary_key.columns) or list(found.columns)
        rows = self._session.execute(select(found).order_by(*order)).mappings()
        return [dict(row) for row in rows]

    def row(self, table: str, **where: Any) -> dict[str, Any]:
        """Return the one row with these values. Raises: AssertionError if there is none, or more than one."""
        chosen = [row for row in self.rows(table) if all(row[name] == value for name, value in where.items())]
        if len(chosen) != 1:
            raise AssertionError(
                f"{len(chosen)} rows of {table!r} have these values, not one: {self.rows(table)}"
            )
        return chosen[0]

    def close(self) -> None:
        """Forget everything."""
        self._session.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self.close()
