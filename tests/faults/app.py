"""The application of the fault suite: what its handlers do is written down, so that whatever goes wrong shows.

Two subscriptions read everything. "once" is transactional: its handlers write effects through the session they are
given. "sender" is concurrent: it writes them on a connection of its own, as something outside of the database would.
A message says what its handler does besides: see `Moved.does`. `message-bus relay --app tests.faults.app:make_bus` or
make_async_bus; the settings come in the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from message_bus import (
    AsyncMessageBus,
    AsyncOutboxHandlerABC,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    MessageBusTables,
    OutboxHandlerABC,
    OutboxMessage,
    Reject,
    Subscription,
    configure_sqlite,
)
from message_bus.cli.options import DATABASE_URL_VARIABLE
from message_bus.storage.types import Position, UtcDateTime, utc_now
from tests.faults import moments
from tests.faults.moments import Doom

SETTINGS_VARIABLE: Final = "MESSAGE_BUS_FAULTS_APP"
ONCE: Final = "once"
SENDER: Final = "sender"

metadata = sa.MetaData()
tables = MessageBusTables(metadata)

# nothing is unique here: doing it twice must show, not fail
effects = sa.Table(
    "fault_effect",
    metadata,
    sa.Column("id", Position, primary_key=True),
    sa.Column("subscription", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("message_id", sa.Uuid, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("at", UtcDateTime(), nullable=False),
)
written = sa.Table(
    "fault_written",
    metadata,
    sa.Column("message_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("does", sa.Text, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the application of one process is like. `doom`: where it kills or freezes itself."""

    subscriptions: tuple[str, ...] = (ONCE, SENDER)
    messages_per_commit: int = 1
    partitions: int = 1
    fetch_size: int = 100
    concurrency: int = 1
    max_attempts: int = 20
    backoff: float = 0.05
    handler_timeout: float | None = 300.0
    on_dead_letter: str = "continue"
    start: str | int | None = "beginning"
    doom: Doom | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For the process."""
        return {SETTINGS_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def given(cls) -> Settings:
        """What the environment says."""
        found = json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))
        doom = found.pop("doom", None)
        assert set(found) <= {each.name for each in fields(cls)}
        return cls(**{**found, "doom": Doom(**doom) if doom else None})

    def subscription(self, name: str) -> Subscription:
        """The settings of this subscription."""
        return Subscription(
            name=name,
            messages_per_commit=self.messages_per_commit if name == ONCE else 1,
            partitions=self.partitions,
            fetch_size=self.fetch_size,
            concurrency=self.concurrency if name == SENDER else 1,
            max_attempts=self.max_attempts,
            backoff=FixedDelay(self.backoff),
            handler_timeout=None if self.handler_timeout is None else timedelta(seconds=self.handler_timeout),
            on_dead_letter=self.on_dead_letter,  # type: ignore[arg-type]
            start=_place(self.start),  # type: ignore[arg-type]
        )


def _place(start: str | int | None) -> object:
    """A time is given as text, as its isoformat()."""
    return datetime.fromisoformat(start) if isinstance(start, str) and start[0].isdigit() else start


class Moved(Event, key="key"):
    """Something with this key has moved.

    What its handlers do besides: "emit" an Echo, "fail" (always) or "fail:2" (the first two attempts), "reject", "kill"
    the process, "exit" it by SystemExit, "sleep:0.5". The transactional one writes its effect before, the other one after.
    """

    key: str
    n: int
    does: str = ""


class Echo(Event, key="key"):
    """What the transactional handler emits, if it is to."""

    key: str
    n: int
    does: str = ""


class Failed(Exception):
    """What handlers raise that are to fail."""


def _effect(subscription: str, row: OutboxMessage, attempt: int) -> sa.Insert:
    return effects.insert().values(
        subscription=subscription, message=row.message, key=row.key, n=row.payload["n"], message_id=row.id,
        position=row.position, attempt=attempt, pid=os.getpid(), at=utc_now(),
    )  # fmt: skip


def obey(does: str, attempt: int) -> float:
    """Do what the message says; how long to sleep is left to the caller."""
    what, _, number = does.partition(":")
    if what == "fail" and (not number or attempt <= int(number)):
        raise Failed(f"attempt {attempt}")
    if what == "reject":
        raise Reject("as it was told")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        raise SystemExit(7)
    return float(number) if what == "sleep" else 0.0


# --- the transactional subscription ---------------------------------------------------------------------------------


def _row_of(event: Moved | Echo, context: Any) -> OutboxMessage:
    envelope = context.envelope
    row = OutboxMessage(
        type="event", message=type(event).__name__, payload={"n": event.n}, id=envelope.id, key=event.key
    )
    row.position = envelope.position
    return row


def _emit(event: Moved | Echo, context: Any) -> None:
    if event.does == "emit" and isinstance(event, Moved):
        context.emit(Echo(key=event.key, n=event.n))


def record(event: Moved | Echo, context: Any) -> None:
    """Write the effect."""
    context.db_session.execute(_effect(ONCE, _row_of(event, context), context.attempt))
    _emit(event, context)
    moments.come_to(moments.IN_A_HANDLER)
    time.sleep(obey(event.does, context.attempt))


async def record_async(event: Moved | Echo, context: Any) -> None:
    """Write the effect."""
    await context.db_session.execute(_effect(ONCE, _row_of(event, context), context.attempt))
    _emit(event, context)
    moments.come_to(moments.IN_A_HANDLER)
    await asyncio.sleep(obey(event.does, context.attempt))


# --- the concurrent subscription ------------------------------------------------------------------------------------


_WRITABLE: Final = sa.text(
    "SET TRANSACTION READ WRITE"
)  # the world outside is not read-only when the database is


class Sender(OutboxHandlerABC):
    """Writes effects on a connection of its own."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__()
        self.subscription = subscription
        engine = sa.create_engine(os.environ[DATABASE_URL_VARIABLE])
        self._engine = configure_sqlite(engine) if engine.dialect.name == "sqlite" else engine

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        time.sleep(obey(outbox_message.payload["does"], context["attempt"]))
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(_WRITABLE)
            connection.execute(_effect(SENDER, outbox_message, context["attempt"]))
        moments.come_to(moments.IN_A_HANDLER)


class AsyncSender(AsyncOutboxHandlerABC):
    """The same in asyncio."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__()
        self.subscription = subscription
        url = sa.make_url(os.environ[DATABASE_URL_VARIABLE])
        if url.get_backend_name() == "sqlite":
            self._engine = configure_sqlite(create_async_engine(url.set(drivername="sqlite+aiosqlite")))
        else:
            self._engine = create_async_engine(url)

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(obey(outbox_message.payload["does"], context["attempt"]))
        async with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(_WRITABLE)
            await connection.execute(_effect(SENDER, outbox_message, context["attempt"]))
        moments.come_to(moments.IN_A_HANDLER)


# --- the buses --------------------------------------------------------------------------------------------------------


def _outbox_handlers(settings: Settings, sender: Callable[[Subscription], Any]) -> list[Any]:
    made: dict[str, Callable[[Subscription], Any]] = {
        ONCE: lambda subscription: DispatchOutboxHandler(subscription=subscription),
        SENDER: sender,
    }
    return [made[name](settings.subscription(name)) for name in settings.subscriptions]


def make_bus() -> MessageBus:
    """A sync application."""
    settings = Settings.given()
    moments.arm(settings.doom, asynchronous=False)
    bus = MessageBus(event_handlers={Moved: [record], Echo: [record]})
    bus.set_outbox_handlers(_outbox_handlers(settings, Sender))
    return bus


def make_async_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    settings = Settings.given()
    moments.arm(settings.doom, asynchronous=True)
    bus = AsyncMessageBus(event_handlers={Moved: [record_async], Echo: [record_async]})
    bus.set_outbox_handlers(_outbox_handlers(settings, AsyncSender))
    return bus


def record_apart(event: Moved | Echo, context: Any) -> None:
    """Write the effect in a transaction of its own: what a handler must not do, if it is to happen once."""
    with context.db_session.get_bind().begin() as connection:
        connection.execute(_effect(ONCE, _row_of(event, context), context.attempt))
    moments.come_to(moments.IN_A_HANDLER)


def make_leaky_bus() -> MessageBus:
    """An application with a fault, for the test that the faults would be found."""
    settings = Settings.given()
    moments.arm(settings.doom, asynchronous=False)
    bus = MessageBus(event_handlers={Moved: [record_apart], Echo: [record_apart]})
    bus.set_outbox_handlers(_outbox_handlers(settings, Sender))
    return bus
