"""The tables of the outbox side, as SQLAlchemy tables that can live in the user's own MetaData; those of event sourcing
are defined in `event_tables.py`, the history in `history_table.py`.

One `MessageBusTables` names one set of tables: a metadata, a schema, a prefix. Status strings of rows live here and
nowhere else. What the columns mean is said in each column's comment; the view over them is in `views.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    FromClause,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.engine import Connection, Engine

from message_bus.errors import SettingsError
from message_bus.storage import event_guard, event_tables, history_table
from message_bus.storage.logs import EVENT_LOG, OUTBOX_LOG
from message_bus.storage.naming import Naming, one_of
from message_bus.storage.types import Position, UtcDateTime, utc_now
from message_bus.storage.views import attach

COMMAND: Final = "COMMAND"
EVENT: Final = "EVENT"

# delivery.state: what became of a message that was not simply handled
RETRYING: Final = "retrying"  # failed, to be tried again at next_attempt_at
TRYING: Final = "trying"  # an attempt recorded before it was made (careful mode)
HELD: Final = "held"  # untried: an earlier message of its key is not done
DEAD: Final = "dead"  # a dead letter: given up, kept
BLOCKING: Final = (RETRYING, TRYING, HELD)  # a row in one of these blocks its key (S3)
DELIVERY_STATES: Final = (RETRYING, TRYING, HELD, DEAD)

# subscription.state
ACTIVE: Final = "active"
IDLE: Final = "idle"  # made on a log with history and told no place to start from
PAUSED: Final = "paused"
SUBSCRIPTION_STATES: Final = (ACTIVE, IDLE, PAUSED)

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*\Z")
_LONGEST_SUFFIX = "subscription_log_state_check"
_POSTGRESQL_NAME_BYTES = 63


class MessageBusTables:
    """One set of message_bus tables.

    `.outbox`, `.subscription`, `.delivery`, `.history`, `.schedule`, `.log`, `.inbox`, and those of event sourcing:
    `.event`, `.stream`, `.snapshot`, `.process`, `.saga`, `.projection`.

    `metadata`: where the tables are put (default: one of their own). Give your application's `Base.metadata` to let
    its Alembic autogenerate find them. `schema` (default: the metadata's), `prefix`: lower-case SQL identifiers.

    Two instances over the same metadata, schema and prefix share the same Table objects. Immutable, safe to share.

    Raises: SettingsError for a name that is not `[a-z_][a-z0-9_]*` or too long for PostgreSQL.
    """

    def __init__(
        self, metadata: MetaData | None = None, schema: str | None = None, prefix: str = "message_bus_"
    ) -> None:
        if schema is None and metadata is not None:
            schema = metadata.schema  # where SQLAlchemy would put a table that names none
        problems = [
            f"{label} {value!r} is not a lower-case SQL identifier (use [a-z_][a-z0-9_]*)"
            for label, value in (("schema", schema), ("prefix", prefix))
            if value and not _IDENTIFIER.match(value)
        ]
        if len(f"{prefix}{_LONGEST_SUFFIX}".encode(errors="replace")) > _POSTGRESQL_NAME_BYTES:
            problems.append(
                f"prefix {prefix!r} is too long (at most {_POSTGRESQL_NAME_BYTES - len(_LONGEST_SUFFIX)} bytes)"
            )
        if schema and len(schema.encode(errors="replace")) > _POSTGRESQL_NAME_BYTES:
            problems.append(f"schema {schema!r} is too long (at most {_POSTGRESQL_NAME_BYTES} bytes)")
        if problems:
            raise SettingsError("MessageBusTables", problems)
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self._naming = Naming(self.metadata, schema, prefix)
        is_new = self.qualified("outbox") not in self.metadata.tables
        self.outbox: Table = self._table("outbox", self._outbox)
        self.schedule: Table = self._table("schedule", self._schedule)
        self.log: Table = self._table("log", self._log)
        self.subscription: Table = self._table("subscription", self._subscription)
        self.delivery: Table = self._table("delivery", self._delivery)
        self.inbox: Table = self._table("inbox", self._inbox)
        naming = self._naming
        self.history: Table = self._table("history", lambda: history_table.history_table(naming))
        self.event: Table = self._table("event", lambda: event_tables.event_table(naming))
        self.stream: Table = self._table("stream", lambda: event_tables.stream_table(naming))
        self.snapshot: Table = self._table("snapshot", lambda: event_tables.snapshot_table(naming))
        self.process: Table = self._table("process", lambda: event_tables.process_table(naming))
        self.saga: Table = self._table("saga", lambda: event_tables.saga_table(naming))
        self.projection: Table = self._table("projection", lambda: event_tables.projection_table(naming))
        self.source_log: str = OUTBOX_LOG
        """The log that is read through `source`; see `of_log`."""
        self.source: FromClause = self.outbox
        """What the delivery engine reads its messages from."""
        self._built: dict[Any, Any] = {}  # statements over these tables
        self._of_logs: dict[str, MessageBusTables] = {}
        if is_new:
            attach(self)
            event_guard.attach(self)

    def __repr__(self) -> str:
        return f"MessageBusTables(schema={self.schema!r}, prefix={self.prefix!r})"

    @property
    def all(self) -> tuple[Table, ...]:
        """Every table of this set, in an order in which they can be made."""
        return (
            self.outbox, self.schedule, self.log, self.subscription, self.delivery, self.inbox,
            self.event, self.stream, self.snapshot, self.process, self.saga, self.projection, self.history,
        )  # fmt: skip

    def of_log(self, log: str) -> MessageBusTables:
        """Return the same tables for whoever reads the log with this name: `source` is what its messages are read from.

        Raises: SettingsError if there is no such log.
        """
        self.log_table(log)
        known = self._of_logs.get(log)
        if known is None:
            known = self._of_logs[log] = copy.copy(self)
            known._built = {}
            known.source_log = log
            known.source = self.outbox if log == OUTBOX_LOG else event_tables.message_source(self.event)
        return known

    def log_table(self, log: str = OUTBOX_LOG) -> Table:
        """Return the table of the log with this name.

        Raises: SettingsError if there is no such log.
        """
        logs = {OUTBOX_LOG: self.outbox, EVENT_LOG: self.event}
        if log not in logs:
            raise SettingsError("log", [f"{log!r} is not a log (there are: {', '.join(map(repr, logs))})"])
        return logs[log]

    def qualified(self, name: str) -> str:
        """Return the full name of the table or view with this short name, as MetaData spells it (unquoted)."""
        return self._naming.qualified(name)

    def create_all(self, bind: Engine | Connection) -> None:
        """Create what is missing of these tables and their view. For production prefer `message-bus db upgrade`."""
        self.metadata.create_all(bind, tables=list(self.all))

    def drop_all(self, bind: Engine | Connection) -> None:
        """Drop these tables and their view, with everything in them."""
        self.metadata.drop_all(bind, tables=list(self.all))

    def _table(self, name: str, make: Callable[[], Table]) -> Table:
        known = self.metadata.tables.get(self.qualified(name))
        return make() if known is None else known

    def _name(self, suffix: str) -> str:
        return self._naming.name(suffix)

    def _constraint(self, suffix: str) -> str:
        return self._naming.constraint(suffix)

    def _message_columns(self, table: str) -> list[Column[object] | CheckConstraint]:
        return [
            Column("type", String(7), nullable=False, comment="COMMAND or EVENT"),
            Column("message", Text, nullable=False, comment="type name"),
            Column(
                "version",
                Integer,
                nullable=False,
                server_default=text("1"),
                comment="of the payload's schema",
            ),
            Column("key", Text, comment="messages of one key are handled in order; null: no order"),
            Column("key_hash", BigInteger, comment="crc32 of key, for partitions; null: no key"),
            Column("payload", JSON, nullable=False),
            Column("meta", JSON(none_as_null=True), comment="the user's own"),
            Column("headers", JSON(none_as_null=True), comment="correlation, causation, trace context"),
            Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
            CheckConstraint(one_of("type", (COMMAND, EVENT)), name=self._constraint(f"{table}_type_check")),
            CheckConstraint("key_hash >= 0", name=self._constraint(f"{table}_key_hash_check")),
        ]

    def _outbox(self) -> Table:
        return Table(
            self._name("outbox"),
            self.metadata,
            Column("position", Position, Identity(always=True), comment="order of the log"),
            Column("id", Uuid, nullable=False, comment="message id"),
            *self._message_columns("outbox"),
            PrimaryKeyConstraint("position", name=self._constraint("outbox_pkey")),
            UniqueConstraint("id", name=self._constraint("outbox_id_key")),
            schema=self.schema,
            sqlite_autoincrement=True,  # a position once used is never used again
        )

    def _schedule(self) -> Table:
        return Table(
            self._name("schedule"),
            self.metadata,
            Column("id", Uuid, nullable=False, comment="message id"),
            Column("due_at", UtcDateTime, nullable=False, comment="when it enters the outbox"),
            *self._message_columns("schedule"),
            PrimaryKeyConstraint("id", name=self._constraint("schedule_pkey")),
            Index(self._name("schedule_due_at_idx"), "due_at", "id"),
            schema=self.schema,
        )

    def _log(self) -> Table:
        return Table(
            self._name("log"),
            self.metadata,
            Column("log", Text, nullable=False, comment="outbox or events"),
            Column(
                "pruned_to",
                BigInteger,
                nullable=False,
                server_default=text("0"),
                comment="rows up to here may be gone",
            ),
            Column(
                "last_epoch",
                BigInteger,
                nullable=False,
                server_default=text("0"),
                comment="of dropped subscriptions",
            ),
            Column("asleep_until", UtcDateTime, comment="until then writers notify: a relay waits for it"),
            PrimaryKeyConstraint("log", name=self._constraint("log_pkey")),
            schema=self.schema,
        )

    def _subscription(self) -> Table:
        return Table(
            self._name("subscription"),
            self.metadata,
            Column("name", Text, nullable=False),
            Column("partition", Integer, nullable=False),
            Column("log", Text, nullable=False),
            Column("partitions", Integer, nullable=False, server_default=text("1")),
            Column("state", Text, nullable=False, server_default=text("'active'")),
            Column(
                "position",
                BigInteger,
                nullable=False,
                comment="checkpoint: every row up to here is dealt with",
            ),
            Column(
                "epoch",
                BigInteger,
                nullable=False,
                comment="grows by one with every acquisition of the lease",
            ),
            Column(
                "revision",
                BigInteger,
                nullable=False,
                server_default=text("0"),
                comment="grows with every commit of progress",
            ),
            Column("owner", Text, comment="token of the lease's holder"),
            Column("lease_until", UtcDateTime),
            Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
            Column(
                "seen_at", UtcDateTime, nullable=False, server_default=utc_now(), comment="last acquisition"
            ),
            PrimaryKeyConstraint("name", "partition", name=self._constraint("subscription_pkey")),
            CheckConstraint(
                one_of("state", SUBSCRIPTION_STATES), name=self._constraint("subscription_state_check")
            ),
            CheckConstraint(
                "partition >= 0 AND partition < partitions",
                name=self._constraint("subscription_partition_check"),
            ),
            schema=self.schema,
        )

    def _delivery(self) -> Table:
        return Table(
            self._name("delivery"),
            self.metadata,
            Column("subscription", Text, nullable=False),
            Column("position", BigInteger, nullable=False),
            Column("key", Text),
            Column("key_hash", BigInteger),
            Column("state", Text, nullable=False),
            Column("attempts", Integer, nullable=False, server_default=text("0"), comment="that failed"),
            Column(
                "crashes", Integer, nullable=False, server_default=text("0"), comment="that killed the worker"
            ),
            Column("next_attempt_at", UtcDateTime),
            Column("error", Text),
            Column("traceback", Text),
            Column("created_at", UtcDateTime, nullable=False, server_default=utc_now()),
            Column("updated_at", UtcDateTime, nullable=False, server_default=utc_now()),
            PrimaryKeyConstraint("subscription", "position", name=self._constraint("delivery_pkey")),
            CheckConstraint(one_of("state", DELIVERY_STATES), name=self._constraint("delivery_state_check")),
            CheckConstraint("key_hash >= 0", name=self._constraint("delivery_key_hash_check")),
            Index(self._name("delivery_state_idx"), "subscription", "state", "next_attempt_at", "position"),
            Index(self._name("delivery_key_idx"), "subscription", "key", "position"),
            Index(self._name("delivery_position_idx"), "position"),
            schema=self.schema,
        )

    def _inbox(self) -> Table:
        return Table(
            self._name("inbox"),
            self.metadata,
            Column("consumer", Text, nullable=False),
            Column("message_id", Text, nullable=False),
            Column("received_at", UtcDateTime, nullable=False, server_default=utc_now()),
            PrimaryKeyConstraint("consumer", "message_id", name=self._constraint("inbox_pkey")),
            Index(self._name("inbox_received_at_idx"), "received_at"),
            schema=self.schema,
        )
