"""A shop with a read model, for tests of projections: what was ordered, and by whom.

`Shop` writes events into either log and runs the projection as an application would: `process_outbox`, or a relay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import Event, FixedDelay, MessageBus, MessageBusTables, OutboxReport, Subscription
from message_bus.delivery.process import process_outbox
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.projections.projections_admin import Projections
from message_bus.eventsourcing.when import when
from message_bus.messages.definition import definition_of
from message_bus.messages.keys import key_hash
from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo

METADATA = sa.MetaData()
TOTALS = sa.Table(
    "totals",
    METADATA,
    sa.Column("customer", sa.String, primary_key=True),
    sa.Column("cents", sa.Integer, nullable=False),
    sa.Column("orders", sa.Integer, nullable=False),
    sa.Column("last_position", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    sa.CheckConstraint("orders > -1000000", name="totals_orders_check"),
    sa.Index("totals_cents_idx", "cents"),
)
SEEN = sa.Table(
    "seen",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("what", sa.String, nullable=False, index=True),
)


class OrderPlaced(Event, name="shop.OrderPlaced", key="customer"):
    """Somebody has ordered something."""

    customer: str
    cents: int


class OrderCancelled(Event, name="shop.OrderCancelled", key="customer"):
    """And does not want it any more."""

    customer: str
    cents: int


class Advertised(Event, name="shop.Advertised"):
    """Nothing that the read model reads."""

    slogan: str


class Trouble:
    """What a handler is to raise, a customer: one error an attempt."""

    def __init__(self) -> None:
        self.of: dict[str, list[BaseException]] = {}

    def meet(self, customer: str) -> None:
        """Raise the next error of this customer."""
        if self.of.get(customer):
            raise self.of[customer].pop(0)


class Totals(Projection):
    """What each customer has ordered; and a row for each event."""

    name = "totals"
    tables = {"totals": TOTALS, "seen": SEEN}  # noqa: RUF012
    trouble = Trouble()

    @when(OrderPlaced)
    def placed(self, event: OrderPlaced, context: Any) -> None:
        """One more."""
        self._add(event.customer, event.cents, 1, context)

    @when(OrderCancelled)
    def cancelled(self, event: OrderCancelled, context: Any) -> None:
        """One less."""
        self._add(event.customer, -event.cents, -1, context)

    def _add(self, customer: str, cents: int, orders: int, context: Any) -> None:
        totals, session = self.table("totals"), context.db_session
        position = context.envelope.position
        changed = session.execute(
            sa.update(totals)
            .where(totals.c.customer == customer)
            .values(cents=totals.c.cents + cents, orders=totals.c.orders + orders, last_position=position)
        )
        if not changed.rowcount:
            session.execute(
                sa.insert(totals).values(
                    customer=customer, cents=cents, orders=orders, last_position=position
                )
            )
        session.execute(sa.insert(self.table("seen")).values(position=position, what=customer))
        self.trouble.meet(customer)


class EventTotals(Totals):
    """The same from the event log."""

    name = "totals"
    log = "events"


class OutboxTotals(Totals):
    """The same from the outbox."""

    name = "totals"
    log = "outbox"


def projection_of(log: str, **options: Any) -> Totals:
    """The projection of this log, with troubles of its own; failures are due again at once."""
    options.setdefault("subscription", Subscription(backoff=FixedDelay(0), messages_per_commit=100))
    cls: type[Totals] = EventTotals if log == "events" else OutboxTotals
    made = cls(**{name: value for name, value in options.items() if value is not None})
    made.trouble = Trouble()
    return made


# --- as --app finds it ------------------------------------------------------------------------------------------------


def make_bus() -> MessageBus:
    """A bus whose outbox handler is the projection."""
    bus = MessageBus()
    bus.set_outbox_handlers([EventTotals()])
    return bus


def make_list() -> list[Projection]:
    """What no relay runs."""
    return [EventTotals(inline=True)]


def make_failing() -> Projection:
    """One that fails for the customer c0, for ever."""
    made = EventTotals()
    made.trouble = Trouble()
    made.trouble.of["c0"] = [ValueError() for _ in range(1_000)]
    return made


@dataclass
class Shop:
    """The application: its database, its projection, its log."""

    sessions: sessionmaker[Session]
    tables: MessageBusTables
    log: str = "events"
    projection: Totals = field(default_factory=EventTotals)
    bus: MessageBus = field(default_factory=MessageBus)

    def __post_init__(self) -> None:
        with self.sessions.begin() as session:
            METADATA.create_all(session.connection())

    @property
    def admin(self) -> Projections:
        """What operators have; a rebuild that was killed is waited for a second."""
        return Projections(self.sessions, tables=self.tables, lease=timedelta(seconds=20))

    def run_as(self, projection: Totals) -> None:
        """Let this be the projection that runs."""
        self.projection = projection
        self.bus.set_outbox_handlers([projection])

    def write(self, *events: Event) -> None:
        """Write events in one transaction."""
        with self.sessions.begin() as session:
            self.append(session, *events)

    def append(self, session: Session, *events: Event) -> None:
        """Write events in this transaction."""
        if self.log == "outbox":
            for event in events:
                self.bus.register_outbox_message(SQLAlchemyOutBoxRepo(session, tables=self.tables), event)
        elif events:
            append_events(session, self.tables, *events)

    def expire_leases(self) -> None:
        """End the leases of those who are dead, without waiting."""
        s = self.tables.subscription
        with self.sessions.begin() as session:
            session.execute(sa.update(s).values(lease_until=datetime(2020, 1, 1, tzinfo=UTC)))

    def process(self, *, lease: timedelta = timedelta(seconds=30), **options: Any) -> OutboxReport:
        """One process_outbox with the projection."""
        self.bus.set_outbox_handlers([self.projection])
        with self.sessions() as session:
            repo = SQLAlchemyOutBoxRepo(session, tables=self.tables)
            return process_outbox(self.bus, repo, lease=lease, **options)

    def totals(self, table: str = "totals") -> dict[str, tuple[int, int]]:
        """Cents and orders of each customer."""
        with self.sessions() as session:
            rows = session.execute(sa.text(f"SELECT customer, cents, orders FROM {table}"))
            return {customer: (cents, orders) for customer, cents, orders in rows}

    def expected(self) -> dict[str, tuple[int, int]]:
        """The same, counted from the log."""
        counted: dict[str, tuple[int, int]] = {}
        with self.sessions() as session:
            source = self.tables.of_log(self.log).source
            for message, payload in session.execute(
                sa.select(source.c.message, source.c.payload).order_by(source.c.position)
            ):
                sign = {"shop.OrderPlaced": 1, "shop.OrderCancelled": -1}.get(message)
                if sign is not None:
                    cents, orders = counted.get(payload["customer"], (0, 0))
                    counted[payload["customer"]] = (cents + sign * payload["cents"], orders + sign)
        return counted

    def scalar(self, statement: Any) -> Any:
        """The one value that a statement returns."""
        with self.sessions() as session:
            return session.scalar(sa.text(statement) if isinstance(statement, str) else statement)

    def high(self) -> int:
        """The last position of the log."""
        return int(self.scalar(sa.select(sa.func.max(self.tables.of_log(self.log).source.c.position))) or 0)

    def checkpoint(self, name: str = "totals") -> int | None:
        """Where a subscription stands."""
        s = self.tables.subscription
        found: int | None = self.scalar(sa.select(s.c.position).where(s.c.name == name))
        return found

    def generations(self) -> list[tuple[int, int, str]]:
        """(generation, version, state) of the projection."""
        p = self.tables.projection
        with self.sessions() as session:
            rows = session.execute(sa.select(p.c.generation, p.c.version, p.c.state).order_by(p.c.generation))
            return [tuple(row) for row in rows]


def append_events(session: Session, tables: MessageBusTables, *events: Event) -> list[int]:
    """Write events, each the first of a stream that is called after its customer; their positions."""
    t = tables.event
    positions: list[int] = []
    for event in events:
        definition = definition_of(type(event))
        stream = f"{definition.key_of(event)}-{uuid4().hex}"
        position = session.scalar(
            sa.insert(t).returning(t.c.position).values(
                id=uuid4(), stream=stream, version=1, message=definition.name,
                schema_version=definition.version, key_hash=key_hash(stream), payload=event.serialize(),
            )
        )  # fmt: skip
        positions.append(int(position or 0))
    return positions


def fill(shop: Shop, count: int, *, customers: int = 7) -> None:
    """So many orders, some of them cancelled."""
    events: list[Event] = []
    for number in range(count):
        kind: Callable[..., Event] = OrderCancelled if number % 5 == 4 else OrderPlaced
        events.append(kind(customer=f"c{number % customers}", cents=number))
    shop.write(*events)
