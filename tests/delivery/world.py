"""A small application for tests of delivery: three message types, an effect table, handlers that fail on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    Command,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    OutboxReport,
    SQLAlchemyOutBoxRepo,
    Subscription,
)

EFFECT = sa.Table(
    "effect",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
)
AT_ONCE = FixedDelay(0)


class Placed(Event, key="order"):
    """Keyed: placed events of one order are handled in order."""

    order: str
    n: int


class Noted(Event):
    """Without a key."""

    n: int


class Pay(Command):
    """Exactly one handler."""

    n: int


@dataclass
class World:
    """The application, its database, and what its handlers are to do."""

    sessions: sessionmaker[Session]
    tables: MessageBusTables
    bus: MessageBus = field(default_factory=MessageBus)
    failing: dict[str, list[BaseException]] = field(default_factory=dict)
    before: dict[str, Callable[[Any], object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with self.sessions.begin() as session:
            EFFECT.metadata.create_all(session.connection())
        self.bus.set_event_handlers(Placed, [self.on_placed])
        self.bus.set_event_handlers(Noted, [self.on_noted])
        self.bus.set_command_handler(Pay, self.on_pay)

    # --- handlers ---

    def on_placed(self, event: Placed, context: Any) -> None:
        """Write the effect `order:n`."""
        self._handle(f"{event.order}:{event.n}", context)

    def on_noted(self, event: Noted, context: Any) -> None:
        """Write the effect `n`."""
        self._handle(str(event.n), context)

    def on_pay(self, command: Pay, context: Any) -> None:
        """Write the effect `pay n`."""
        self._handle(f"pay {command.n}", context)

    def _handle(self, note: str, context: Any) -> None:
        context.db_session.execute(sa.insert(EFFECT).values(note=note))
        if note in self.before:
            self.before[note](context)
        if self.failing.get(note):
            raise self.failing[note].pop(0)

    # --- what tests do ---

    def settings(self, **settings: Any) -> None:
        """Run the bus's handlers under a subscription with these settings; failures are due again at once."""
        settings.setdefault("backoff", AT_ONCE)
        settings.setdefault(
            "commit_within", timedelta(minutes=1)
        )  # a batch is one, however slow the machine is
        settings.setdefault("name", "dispatch")
        self.bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(**settings))])

    def fail(self, note: str, *errors: BaseException | type[BaseException] | int) -> None:
        """Let the handler of `note` raise these errors, one an attempt; a number is that many ValueErrors."""
        for error in errors:
            if isinstance(error, int):
                self.failing.setdefault(note, []).extend(ValueError(f"failure {i}") for i in range(error))
            else:
                self.failing.setdefault(note, []).append(
                    error if isinstance(error, BaseException) else error()
                )

    def register(self, *messages: Command | Event, **options: Any) -> None:
        """Register messages in one transaction and commit it."""
        with self.sessions.begin() as session:
            repo = SQLAlchemyOutBoxRepo(session, tables=self.tables)
            for message in messages:
                self.bus.register_outbox_message(repo, message, **options)

    def process(self, *, lease: timedelta | None = None, **options: Any) -> OutboxReport:
        """One process_outbox in a session of its own."""
        with self.sessions() as session:
            if lease is None:
                return self.bus.process_outbox(SQLAlchemyOutBoxRepo(session, tables=self.tables), **options)
            from message_bus.delivery.process import process_outbox

            repo = SQLAlchemyOutBoxRepo(session, tables=self.tables)
            return process_outbox(self.bus, repo, lease=lease, **options)

    def effects(self) -> list[str]:
        """The notes of all effects, in the order in which they were written."""
        with self.sessions() as session:
            return list(session.scalars(sa.select(EFFECT.c.note).order_by(EFFECT.c.id)))

    def deliveries(self) -> list[tuple[int, str, int]]:
        """(position, state, attempts) of every row of the delivery table."""
        t = self.tables.delivery
        return self.rows(sa.select(t.c.position, t.c.state, t.c.attempts).order_by(t.c.position))

    def checkpoint(self, name: str = "dispatch") -> int:
        """The position of a subscription's only partition."""
        t = self.tables.subscription
        [(position,)] = self.rows(sa.select(t.c.position).where(t.c.name == name))
        return int(position)

    def rows(self, statement: Any) -> list[Any]:
        """What a statement returns, in a session of its own."""
        with self.sessions() as session:
            return [tuple(row) for row in session.execute(statement)]

    def write(self, *statements: Any) -> None:
        """Run statements in a transaction of their own."""
        with self.sessions.begin() as session:
            for statement in statements:
                session.execute(statement)


def placed(order: str, numbers: Iterable[int]) -> list[Placed]:
    """Events of one order."""
    return [Placed(order=order, n=n) for n in numbers]
