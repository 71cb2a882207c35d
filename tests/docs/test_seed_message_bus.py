# ruff: noqa: D102, E402, I001, UP037  (the document's code is left as it is, with its imports where it needs them)
"""The document of the first message_bus, section by section: its code, and that it does what the document says.

Word for word, but for imports that the document leaves out, and for the places where it says "depends on your database".
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

# --- Quick Start: Basic Setup ---

from message_bus import MessageBus
from message_bus.commands import Command
from message_bus.events import Event


# Define your commands and events
class ProcessOrder(Command):
    order_id: int


class OrderProcessed(Event):
    order_id: int
    status: str


# Create message bus
message_bus = MessageBus()

# --- Registering Handlers ---

from message_bus.command_handlers.base import CommandHandlerABC
from message_bus.event_handlers.base import EventHandlerABC


class ProcessOrderHandler(CommandHandlerABC):
    def handle(self, cmd: ProcessOrder, context: dict, *args, **kwargs):
        # Process the order
        print(f"Processing order {cmd.order_id}")

        # Emit an event when done
        self.emmit_message(OrderProcessed(
            order_id=cmd.order_id,
            status="completed"
        ))  # fmt: skip


class OrderProcessedHandler(EventHandlerABC):
    def _handle(self, event: OrderProcessed, context: dict, *args, **kwargs):
        print(f"Order {event.order_id} was processed with status: {event.status}")


# Register handlers
message_bus.set_command_handler(ProcessOrder, ProcessOrderHandler())
message_bus.set_event_handlers(OrderProcessed, [OrderProcessedHandler()])


def test_registering_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """The command's handler runs, then the handler of the event that it emitted; twice the same, not 1, then 1+2."""
    for order_id in (1, 2):
        results = message_bus.handle(ProcessOrder(order_id=order_id))
        assert capsys.readouterr().out.splitlines() == [
            f"Processing order {order_id}",
            f"Order {order_id} was processed with status: completed",
        ]
        assert results == [
            {"command": ProcessOrder(order_id=order_id), "result": None},
            {"event": OrderProcessed(order_id=order_id, status="completed"), "result": None},
        ]


# --- Using Outbox Pattern ---


class Base(DeclarativeBase):
    pass


class OutBox(Base):
    """Your database model"""

    __tablename__ = "outbox"
    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    meta: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    processed: Mapped[bool] = mapped_column(default=False)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


from message_bus.repositories.outbox import OutBoxRepoABC
from message_bus.core import AsyncMessageBus
from message_bus.outbox_handlers.base import OutboxHandlerABC  # left out in the document


# Define your outbox repository (implementation depends on your ORM)
class SAOutBoxRepo(OutBoxRepoABC):
    def __init__(self, db_session):
        self._db_session = db_session
        super().__init__()

    def get_model(self):
        return OutBox  # Your database model

    def _add(self, outbox_message):
        self._db_session.add(outbox_message)

    async def list_unprocessed(self):
        # Implementation depends on your database
        pass


# Register outbox handler (e.g., for sending to message queue)
class MessageQueueHandler(OutboxHandlerABC):
    def _handle(self, outbox_message, context: dict, *args, **kwargs):
        # Send message to external queue or service
        print(f"Sending {outbox_message.message} to queue")


class FinishedOutBoxRepo(SAOutBoxRepo):
    """What the document leaves to its reader."""

    async def list_unprocessed(self):
        return self._db_session.scalars(sa.select(OutBox).where(~OutBox.processed).order_by(OutBox.id)).all()

    def save(self):
        self._db_session.commit()

    def rollback(self):
        self._db_session.rollback()


@pytest.fixture
def db_session(session_factory: sessionmaker[Session]):
    """A session on a database with the model of the document."""
    with session_factory() as session:
        Base.metadata.create_all(session.connection())
        session.commit()
        yield session


@pytest.mark.parametrize("repository", [SAOutBoxRepo, FinishedOutBoxRepo])
async def test_using_the_outbox_pattern(
    repository: type[SAOutBoxRepo], db_session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is committed with the order; a repository that lists nothing has nothing sent, a finished one once."""
    outbox_repo = repository(db_session)

    def create_order() -> Order:
        order = Order()
        db_session.add(order)
        db_session.flush()
        return order

    # Create message bus with outbox support
    message_bus = AsyncMessageBus()

    # Register your outbox handler
    message_bus.set_outbox_handlers([MessageQueueHandler()])

    # Usage in transaction
    order = create_order()

    # Register the outbox message
    message_bus.register_outbox_message(
        outbox_repo,
        message=ProcessOrder(order_id=order.id)
    )  # fmt: skip

    # Commit transaction to persist both order and outbox message
    db_session.commit()

    # Process outbox messages (usually done in background job)
    await message_bus.process_outbox(outbox_repo)

    finished = repository is FinishedOutBoxRepo
    assert capsys.readouterr().out == ("Sending ProcessOrder to queue\n" if finished else "")
    (row,) = db_session.scalars(sa.select(OutBox))
    assert (row.type, row.message, row.payload) == ("COMMAND", "ProcessOrder", {"order_id": order.id})
    assert row.processed is finished
    await message_bus.process_outbox(outbox_repo)
    assert capsys.readouterr().out == ""


def test_a_rolled_back_transaction_has_no_message(db_session: Session) -> None:
    """The document's transaction safety: the message is stored in the business transaction, and goes with it."""
    message_bus.register_outbox_message(FinishedOutBoxRepo(db_session), ProcessOrder(order_id=1))
    db_session.rollback()
    assert db_session.scalars(sa.select(OutBox)).all() == []


async def test_if_processing_fails_messages_can_be_retried(
    db_session: Session, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The document's "If processing fails, messages can be retried": a queue that is down leaves the row."""
    caplog.set_level(logging.CRITICAL, "message_bus.delivery")
    down = [True]

    class Unreliable(MessageQueueHandler):
        def _handle(self, outbox_message, context: dict, *args, **kwargs):
            if down:
                raise OSError("the queue is down")
            super()._handle(outbox_message, context, *args, **kwargs)

    bus = AsyncMessageBus()
    bus.set_outbox_handlers([Unreliable()])
    bus.register_outbox_message(FinishedOutBoxRepo(db_session), ProcessOrder(order_id=1))
    db_session.commit()
    report = await bus.process_outbox(FinishedOutBoxRepo(db_session))
    assert (report.ok, capsys.readouterr().out) == (False, "")
    down.clear()
    report = await bus.process_outbox(FinishedOutBoxRepo(db_session))
    assert (report.ok, capsys.readouterr().out) == (True, "Sending ProcessOrder to queue\n")


# --- Outbox Repository Interface ---

MyOutBoxModel = OutBox


class MyOutBoxRepo(OutBoxRepoABC):
    def get_model(self):
        # Return your database model class
        return MyOutBoxModel

    def _add(self, outbox_message):
        # Add to database session
        self._db_session.add(outbox_message)

    def list_unprocessed(self):
        # Return list of unprocessed messages
        pass

    def save(self):
        # Commit database changes
        self._db_session.commit()


def test_the_repository_interface(db_session: Session) -> None:
    """The repository of the document registers and saves; that it has no constructor is left to its reader."""
    repo = MyOutBoxRepo()
    repo._db_session = db_session
    row = MessageBus.register_outbox_message(repo, ProcessOrder(order_id=3), meta={"user": "ann"})
    repo.save()
    assert db_session.get_one(MyOutBoxModel, row.id).meta == {"user": "ann"}
    assert MessageBus().process_outbox(repo).delivered == 0


# --- Async Usage ---

from message_bus import AsyncMessageBus  # noqa: F811
from message_bus.command_handlers.base import AsyncCommandHandlerABC


class AsyncProcessOrderHandler(AsyncCommandHandlerABC):
    async def handle(self, cmd: ProcessOrder, context: dict, *args, **kwargs):
        return f"order {cmd.order_id} is done"


async def test_async_usage(db_session: Session) -> None:
    """The result of `handle` is what the async handler returned, not a coroutine."""
    outbox_repo = FinishedOutBoxRepo(db_session)

    async def handle_async_messages():
        message_bus = AsyncMessageBus()

        # Register async handlers
        message_bus.set_command_handler(ProcessOrder, AsyncProcessOrderHandler())

        # Handle messages asynchronously
        result = await message_bus.handle(ProcessOrder(order_id=123))

        # Process outbox messages asynchronously
        await message_bus.process_outbox(outbox_repo)
        return result

    assert await handle_async_messages() == ["order 123 is done"]


# --- Component Details: Message Classes ---

from message_bus.types import Message


class MyCommand(Command):
    def __init__(self, data: str):
        self.data = data


class MyEvent(Event):
    def __init__(self, data: str):
        self.data = data


# --- Handler Patterns ---


class MyCommandHandler(CommandHandlerABC):
    def handle(self, cmd: Command, context: dict, *args, **kwargs):
        # Process command logic
        return "result"


class MyEventHandler(EventHandlerABC):
    def _handle(self, event: Event, context: dict, *args, **kwargs):
        # Process event logic
        pass


class MyOutboxHandler(OutboxHandlerABC):
    def _handle(self, outbox_message, context: dict, *args, **kwargs):
        # Process outbox message (e.g., send to queue)
        pass


def test_messages_with_their_own_init_and_handler_patterns() -> None:
    """Handlers of the three patterns take messages that were written by hand."""
    bus = MessageBus(
        event_handlers={MyEvent: [MyEventHandler()]}, command_handlers={MyCommand: MyCommandHandler()}
    )
    bus.set_outbox_handlers([MyOutboxHandler()])
    assert [each["result"] for each in bus.handle(MyCommand("x"))] == ["result"]
    assert [each["result"] for each in bus.handle(MyEvent("x"))] == [None]
    assert MyEvent.deserialize(MyEvent("x").serialize()).data == "x"


# --- Core Features: Message Serialization ---


class MyMessage(Message):
    name: str
    value: int

    def serialize(self) -> dict:
        return super().serialize()

    @classmethod
    def deserialize(cls, data: dict) -> "MyMessage":
        return super().deserialize(data)


def test_message_serialization() -> None:
    """Both methods can be overridden with `super()` and are each other's inverse."""
    message = MyMessage(name="a", value=1)
    assert message.serialize() == {"name": "a", "value": 1}
    assert MyMessage.deserialize({"name": "a", "value": 1}) == message
    assert [field.name for field in fields(MyMessage)] == ["name", "value"]  # type: ignore[arg-type]


# --- Context Support ---


def test_context_support(db_session: Session) -> None:
    """What is put into the bus's context reaches the handlers; the session there is used, not closed."""
    session, my_command = db_session, ProcessOrder(order_id=7)
    message_bus = MessageBus()
    message_bus.set_command_handler(
        ProcessOrder, lambda cmd, context: context["db_session"].add(Order(id=cmd.order_id))
    )

    message_bus.context["db_session"] = session
    result = message_bus.handle(my_command)

    assert result == [{"command": my_command, "result": None}]
    assert session.in_transaction()
    session.commit()
    assert session.get(Order, 7) is not None


# --- Batch Processing ---


def test_batch_processing(capsys: pytest.CaptureFixture[str]) -> None:
    """The results of all messages, in one list."""
    cmd1, cmd2, cmd3 = (ProcessOrder(order_id=n) for n in (1, 2, 3))

    # Process multiple messages at once
    messages = [cmd1, cmd2, cmd3]
    results = message_bus.batch_handle(messages)

    assert [each["command"] for each in results if "command" in each] == messages
    assert len(results) == 6
    assert capsys.readouterr().out.count("was processed") == 3


# --- the same on the tables of this package ---


def test_without_a_repository_of_ones_own(
    db_session: Session, tables: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session in place of the repository is enough; the handlers are the same ones."""
    message_bus.register_outbox_message(db_session, ProcessOrder(order_id=9))
    db_session.commit()
    report = message_bus.process_outbox(db_session)
    assert (report.ok, report.delivered) == (True, 2)  # the command, and the event that its handler emitted
    assert capsys.readouterr().out.splitlines() == [
        "Processing order 9",
        "Order 9 was processed with status: completed",
    ]
