"""The way into an outbox: `register_outbox_message`, users' own repositories, emission into the outbox; and `deliver`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from message_bus.bus.async_bus import AsyncMessageBus
from message_bus.bus.context import Context, correlate, current_context
from message_bus.bus.sync_bus import MessageBus
from message_bus.delivery.subscription import Subscription
from message_bus.errors import (
    AsyncHandlerOnSyncBus,
    HandlerNotFound,
    InvalidMessage,
    InvalidOutboxMessage,
    NotAMessage,
    Reject,
    RetryLater,
    SettingsError,
    Unavailable,
    WiringError,
)
from message_bus.event_handlers.base import EventHandlerABC
from message_bus.messages.envelope import new_envelope
from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
from message_bus.repositories.outbox import AsyncOutBoxRepoABC, OutBoxRepoABC
from message_bus.repositories.outbox_message import OutboxMessage
from tests.bus.shop import OrderPaid, OrderPlaced, OrderShipped, PlaceOrder


class Base(DeclarativeBase):
    pass


class OwnOutbox(Base):
    """A user's model with the ancestors' fields, and one of ours."""

    __tablename__ = "own_outbox"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[Any] = mapped_column(sa.JSON)
    meta: Mapped[Any] = mapped_column(sa.JSON)
    key: Mapped[str | None]
    processed: Mapped[bool] = mapped_column(default=False)


class NumberedOutbox(Base):
    """A user's model whose ids the database draws, whose `version` counts updates, and which has no meta."""

    __tablename__ = "numbered_outbox"

    id: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    message: Mapped[str]
    payload: Mapped[Any] = mapped_column(sa.JSON)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


@dataclass
class PlainRow:
    """A user's row that is no entity."""

    id: Any
    type: str
    message: str
    payload: dict[str, Any]
    meta: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class _Repo(OutBoxRepoABC):
    """A repository with no more than the contract wants."""

    def __init__(self, model: Any = OutboxMessage) -> None:
        self.model = model
        self.rows: list[Any] = []

    def get_model(self) -> Any:
        return self.model

    def _add(self, outbox_message: Any) -> None:
        self.rows.append(outbox_message)


@pytest.mark.parametrize("bus", [MessageBus, AsyncMessageBus, MessageBus(), AsyncMessageBus()])
def test_a_message_is_registered_through_the_class_or_an_instance(bus: Any) -> None:
    """The row has everything; without a message in hand it begins a story of its own."""
    repo = _Repo()
    row = bus.register_outbox_message(repo, OrderShipped(5), meta={"user": 1})
    assert repo.rows == [row]
    assert (row.type, row.message, row.version, row.payload) == ("EVENT", "OrderShipped", 1, {"order_id": 5})
    assert (row.key, row.meta, row.headers) == ("5", {"user": 1}, {"correlation_id": str(row.id)})
    assert row.id.version == 7


def test_the_caller_may_choose_id_key_and_delay() -> None:
    """Positionally as in the ancestor, or by keyword."""
    repo, message_id = _Repo(), uuid4()
    row = MessageBus.register_outbox_message(
        repo, OrderShipped(5), message_id, {"a": 1}, key="x", delay=timedelta(hours=1)
    )
    assert (row.id, row.meta, row.key, row.delay) == (message_id, {"a": 1}, "x", timedelta(hours=1))


@pytest.mark.parametrize("message_id", [0, "", "0"])
def test_falsy_ids_are_replaced(message_id: Any) -> None:
    """An id that is given is kept by a user's model, and refused by ours if it is no UUID; never replaced."""
    assert MessageBus.register_outbox_message(_Repo(PlainRow), PlaceOrder(), id=message_id).id == message_id
    repo = _Repo()
    with pytest.raises(InvalidOutboxMessage, match="id of an outbox message is a UUID"):
        MessageBus.register_outbox_message(repo, PlaceOrder(), id=message_id)
    assert repo.rows == []


def test_meta_is_silently_dropped() -> None:
    """It is stored in every model that has a place for it; where there is none, giving it is an error."""
    for model in (OutboxMessage, PlainRow, OwnOutbox):
        assert MessageBus.register_outbox_message(_Repo(model), PlaceOrder(), meta={"a": 1}).meta == {"a": 1}
    with pytest.raises(InvalidOutboxMessage, match="'NumberedOutbox' has no place for meta"):
        MessageBus.register_outbox_message(_Repo(NumberedOutbox), PlaceOrder(), meta={"a": 1})


def test_only_the_bare_class_name_is_stored_and_no_version() -> None:
    """The row has the type's name and version, and a user's model gets what it has columns for."""

    class Named(OrderPlaced, name="orders.placed", version=3, key="order_id"):
        pass

    row = MessageBus.register_outbox_message(_Repo(), Named(1))
    assert (row.message, row.version, row.key) == ("orders.placed", 3, "1")
    own = MessageBus.register_outbox_message(_Repo(OwnOutbox), Named(1))
    assert (own.message, own.payload, own.key) == ("orders.placed", {"order_id": 1}, "1")


def test_a_users_model_gets_an_id_as_its_column_wants_it() -> None:
    """Text for text, none where the database draws numbers; and a version column of the mapper's own is left alone."""
    own = MessageBus.register_outbox_message(_Repo(OwnOutbox), PlaceOrder())
    assert UUID(own.id).version == 7
    numbered = MessageBus.register_outbox_message(_Repo(NumberedOutbox), PlaceOrder())
    assert (numbered.id, numbered.version) == (None, None)
    assert MessageBus.register_outbox_message(_Repo(PlainRow), PlaceOrder()).id.version == 7


def test_a_users_model_cannot_wait_or_be_ordered_without_a_place_for_it() -> None:
    """Asking for what would be dropped is an error; a key that only the class has is none."""
    with pytest.raises(InvalidOutboxMessage, match="no place for delay"):
        MessageBus.register_outbox_message(_Repo(OwnOutbox), PlaceOrder(), delay=timedelta(1))
    with pytest.raises(InvalidOutboxMessage, match="no place for key"):
        MessageBus.register_outbox_message(_Repo(PlainRow), PlaceOrder(), key="x")
    MessageBus.register_outbox_message(_Repo(PlainRow), OrderShipped())


@pytest.mark.parametrize(
    ("error", "match", "message", "options"),
    [
        (InvalidMessage, "order_id is None", OrderPlaced(None), {}),  # type: ignore[arg-type]
        (NotAMessage, "'str'", "PlaceOrder", {}),
        (InvalidOutboxMessage, "key must be a str, not int", PlaceOrder(), {"key": 5}),
        (InvalidOutboxMessage, "delay must be a timedelta", PlaceOrder(), {"delay": 5}),
        (InvalidOutboxMessage, "delay must be a timedelta", PlaceOrder(), {"delay": timedelta(-1)}),
        (
            InvalidOutboxMessage,
            "delay must be a timedelta",
            PlaceOrder(),
            {"delay": datetime(2026, 1, 1, tzinfo=UTC)},
        ),
        (InvalidOutboxMessage, "meta cannot be stored as JSON", PlaceOrder(), {"meta": {"a": object()}}),
        (InvalidOutboxMessage, "meta cannot be stored as JSON", PlaceOrder(), {"meta": {"a": "\ud800"}}),
        (InvalidOutboxMessage, "meta cannot be stored as JSON", PlaceOrder(), {"meta": 5}),
    ],
)
def test_bad_input_registers_nothing(error: type[Exception], match: str, message: Any, options: Any) -> None:
    """L6: the error comes at the line that registers, and says what is wrong without a value."""
    repo = _Repo()
    with pytest.raises(error, match=match):
        MessageBus.register_outbox_message(repo, message, **options)
    assert repo.rows == []


def test_what_is_no_outbox_is_refused() -> None:
    """The error lists what is accepted."""
    with pytest.raises(WiringError, match=r"'object' is no outbox .*Session"):
        MessageBus.register_outbox_message(object(), PlaceOrder())


def test_a_registered_message_inherits_from_the_one_in_hand() -> None:
    """Correlation and causation come from the message that is being handled, else the edge's correlation."""
    repo = _Repo()

    def place(command: PlaceOrder, context: Context) -> None:
        MessageBus.register_outbox_message(repo, OrderPlaced())
        assert repo.rows[0].headers == {
            "correlation_id": "web",
            "causation_id": str(context.envelope.id),
        }

    with correlate("web"):
        MessageBus(command_handlers={PlaceOrder: place}).handle(PlaceOrder())
        assert MessageBus.register_outbox_message(repo, PlaceOrder()).headers == {"correlation_id": "web"}


def test_save_awaited_in_one_class_and_not_in_the_other() -> None:
    """Each colour of repository has its own base; only get_model and _add must be written, add() is never awaited."""

    class Async(AsyncOutBoxRepoABC):
        def get_model(self) -> Any:
            return OutboxMessage

        async def _add(self, outbox_message: Any) -> None: ...

    for method in ("save", "rollback", "list_unprocessed"):
        with pytest.raises(WiringError, match=rf"_Repo has no {method}\(\) \(override it"):
            getattr(_Repo(), method)()
        with pytest.raises(WiringError, match=rf"Async has no {method}\(\)"):
            asyncio.run(getattr(Async(), method)())
    with pytest.raises(WiringError, match="_Repo has no get"):
        _Repo().get(1)
    with pytest.raises(WiringError, match=r"Async has no get"):
        asyncio.run(Async().get(1))
    with pytest.raises(WiringError, match=r"_add\(\) is async"):
        AsyncMessageBus.register_outbox_message(Async(), PlaceOrder())
    with pytest.raises(TypeError, match="abstract"):
        OutBoxRepoABC()  # type: ignore[abstract]


def test_rows_added_by_hand_are_checked() -> None:
    """All that is wrong at once; a row of another class is not taken."""
    with pytest.raises(InvalidOutboxMessage, match=r"type must be .*; message must be .*; payload must be"):
        _Repo(PlainRow).add(PlainRow(id=1, type="QUERY", message="", payload=None))  # type: ignore[arg-type]
    with pytest.raises(InvalidOutboxMessage, match="class 'OutboxMessage' is wanted, not a 'PlainRow'"):
        _Repo().add(PlainRow(1, "EVENT", "OrderPlaced", {}))


# --- emission into the outbox ---------------------------------------------------------------------------------------


class Emits(EventHandlerABC):
    """Emits one message, then fails if told to."""

    def __init__(self, message: Any, *, fails: bool = False) -> None:
        self.message = message
        self.fails = fails

    def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> int:
        self.emit_message(self.message)
        if self.fails:
            raise RuntimeError
        return len(self.emitted_messages)


@pytest.mark.parametrize("bus_type", [MessageBus, AsyncMessageBus])
@pytest.mark.parametrize("handlers", [1, 2])
async def test_emissions_are_dispatched_although_the_callers_transaction_rolls_back(
    bus_type: type[Any], handlers: int
) -> None:
    """With an outbox in the context they are registered there, in the caller's transaction, and not handled here."""
    paid: list[Any] = []
    repo = _Repo()
    bus = bus_type(
        {OrderPlaced: [Emits(OrderPaid(1)), Emits(OrderPaid(2))][:handlers], OrderPaid: [paid.append]}
    )
    bus.context["outbox"] = repo
    given = new_envelope(OrderPlaced())
    for context in ({}, {"envelope": given}):
        message = context["envelope"].message if context else OrderPlaced()
        results = bus.handle(message, context=context)
        results = await results if bus_type is AsyncMessageBus else [each["result"] for each in results]
        assert results == [1] * handlers
    assert paid == []
    assert [row.payload for row in repo.rows] == [{"order_id": 1}, {"order_id": 2}][:handlers] * 2
    assert {row.headers["causation_id"] for row in repo.rows[handlers:]} == {str(given.id)}


def test_emissions_go_to_the_session_of_the_handler() -> None:
    """A Session is an outbox, too: nothing is written when it rolls back."""
    with Session(sa.create_engine("sqlite://", poolclass=sa.NullPool)) as session:
        bus = MessageBus({OrderPlaced: [Emits(OrderPaid())]})
        assert not bus.dispatch(OrderPlaced(), context={"outbox": session}).failures
        session.rollback()


def test_what_a_failing_handler_emitted_is_not_registered() -> None:
    """Neither is part of it, if one of several messages is invalid."""
    repo = _Repo()

    class EmitsBadly(EventHandlerABC):
        def _handle(self, event: Any, context: Any, *args: Any, **kwargs: Any) -> None:
            self.emit_message(OrderPaid(1))
            self.emit_message(OrderPaid(None))  # type: ignore[arg-type]

    bus = MessageBus({OrderPlaced: [Emits(OrderPaid(2), fails=True), EmitsBadly(), Emits(OrderPaid(3))]})
    outcome = bus.dispatch(OrderPlaced(), context={"outbox": repo})
    assert [type(each.error) for each in outcome.failures] == [RuntimeError, InvalidMessage]
    assert [row.payload for row in repo.rows] == [{"order_id": 3}]
    bus.set_event_handlers(OrderPlaced, [EmitsBadly()])
    assert MessageBus.handle(bus, OrderPlaced(), context={"outbox": repo}) == []


# --- deliver: the way out -------------------------------------------------------------------------------------------


async def deliver(bus: Any, message: Any, context: Context) -> int:
    """In either colour."""
    done = bus.deliver(message, context)
    return done if isinstance(done, int) else await done  # type: ignore[no-any-return]


def raising(error: BaseException) -> Any:
    """A handler that raises this."""

    def handler(message: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize("bus_type", [MessageBus, AsyncMessageBus])
class TestDeliver:
    async def test_it_runs_all_handlers_in_the_given_context(self, bus_type: type[Any]) -> None:
        """It returns how many there are, and emissions go to the outbox with the envelope as their cause."""
        repo, seen, ran = _Repo(), [], []
        envelope = new_envelope(OrderPlaced())
        context = Context(outbox=repo, envelope=envelope, attempt=2)
        bus = bus_type(
            {
                OrderPlaced: [lambda event, context: seen.append(context), Emits(OrderPaid())],
                OrderPaid: [ran.append],
            }
        )
        assert await deliver(bus, envelope.message, context) == 2
        assert seen == [context]
        assert seen[0] is context
        assert ran == []
        assert repo.rows[0].headers == {
            "correlation_id": envelope.correlation_id,
            "causation_id": str(envelope.id),
        }
        assert current_context.get() is None

    async def test_one_error_is_raised_as_it_is_after_all_have_run(self, bus_type: type[Any]) -> None:
        """Whatever on_event_error says; and nothing is emitted then."""
        error, ran, repo = RuntimeError(), [], _Repo()
        bus = bus_type({OrderPlaced: [Emits(OrderPaid()), raising(error), ran.append]}, on_event_error="log")
        with pytest.raises(RuntimeError) as caught:
            await deliver(bus, OrderPlaced(), Context(outbox=repo))
        assert caught.value is error
        assert ran == [OrderPlaced()]
        assert repo.rows == []

    async def test_of_several_errors_the_one_that_steers_is_raised(
        self, bus_type: type[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The hidden ones are logged; without one that steers all are in a group."""
        errors = [RuntimeError(), RetryLater(1), Unavailable("db"), Reject("bad")]
        with pytest.raises(Unavailable):
            await deliver(
                bus_type({OrderPlaced: [raising(each) for each in errors]}), OrderPlaced(), Context()
            )
        assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [
            errors[0],
            errors[1],
            errors[3],
        ]
        with pytest.raises(ExceptionGroup) as caught:
            await deliver(bus_type({OrderPlaced: [raising(errors[0])] * 2}), OrderPlaced(), Context())
        assert caught.value.exceptions == (errors[0], errors[0])

    async def test_a_message_without_handlers(self, bus_type: type[Any]) -> None:
        """An event has none: 0; a command must have one."""
        assert await deliver(bus_type(), OrderPlaced(), Context()) == 0
        assert await deliver(bus_type({OrderPlaced: []}), OrderPlaced(), Context()) == 0
        with pytest.raises(HandlerNotFound):
            await deliver(bus_type(), PlaceOrder(), Context())

    async def test_an_interrupt_leaves_at_once(self, bus_type: type[Any]) -> None:
        """No further handler runs, and nothing is in hand afterwards."""
        ran: list[Any] = []
        with pytest.raises(KeyboardInterrupt):
            await deliver(
                bus_type({OrderPlaced: [raising(KeyboardInterrupt()), ran.append]}), OrderPlaced(), Context()
            )
        assert ran == []
        assert current_context.get() is None

    async def test_an_emission_without_an_outbox_is_an_error(self, bus_type: type[Any]) -> None:
        """Behind the outbox a message must not get lost."""
        with pytest.raises(WiringError, match="'OrderPaid' was emitted behind the outbox"):
            await deliver(bus_type({OrderPlaced: [Emits(OrderPaid())]}), OrderPlaced(), Context())


# --- outbox handlers ------------------------------------------------------------------------------------------------


class Sends(OutboxHandlerABC):
    """A user's outbox handler."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _before_handle(self, context: Any) -> None:
        self.calls.append("before")

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> str:
        self.calls.append("handle")
        if outbox_message is None:
            raise RuntimeError
        return "sent"

    def _after_handle(self, context: Any) -> None:
        self.calls.append("after")


class AsyncSends(AsyncOutboxHandlerABC):
    """The same for the async bus."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> str:
        self.calls.append("handle")
        return "sent"

    def _before_handle(self, context: Any) -> None:  # type: ignore[override]
        self.calls.append("before")


async def test_outbox_handlers_have_hooks_too() -> None:
    """The last one runs after a failure as well; in the async base they may be async or not."""
    sends, async_sends = Sends(), AsyncSends()
    assert sends.handle(object(), {}) == "sent"
    with pytest.raises(RuntimeError):
        sends.handle(None, {})
    assert sends.calls == ["before", "handle", "after"] * 2
    assert await async_sends.handle(object(), {}) == "sent"
    assert async_sends.calls == ["before", "handle"]


def test_outbox_handlers_are_subscriptions_with_one_name_each() -> None:
    """The class name unless the subscription has one; all mistakes at once, and nothing is set then.

    Until some are set, the bus's own handlers are what works on the outbox.
    """
    bus, first, second = MessageBus(), Sends(), Sends()
    not_one: Any = print
    with pytest.raises(
        SettingsError, match=r"'builtin_function_or_method' is not an outbox handler.*; .*'Sends'"
    ):
        bus.set_outbox_handlers([first, second, not_one])
    a_class: Any = DispatchOutboxHandler
    with pytest.raises(SettingsError, match="'DispatchOutboxHandler' is a class"):
        bus.set_outbox_handlers([a_class])
    assert [type(each) for each in bus.outbox_handlers] == [DispatchOutboxHandler]
    second.subscription = Subscription(name="second")
    bus.set_outbox_handlers([first, second])
    assert bus.outbox_handlers == [first, second]


def test_an_async_outbox_handler_is_refused_by_a_sync_bus() -> None:
    """When it is set, not when it is called."""
    with pytest.raises(AsyncHandlerOnSyncBus, match="AsyncSends"):
        MessageBus().set_outbox_handlers([AsyncSends()])
    AsyncMessageBus().set_outbox_handlers([AsyncSends(), Sends()])


def test_one_dispatch_handler_on_two_buses_is_refused() -> None:
    """It would run the first one's handlers for the messages of the second; on the same bus again it is fine."""
    first, second, handler = MessageBus(), MessageBus(), DispatchOutboxHandler()
    first.set_outbox_handlers([handler])
    first.set_outbox_handlers([handler])
    with pytest.raises(SettingsError, match="set on another bus already"):
        second.set_outbox_handlers([handler])
