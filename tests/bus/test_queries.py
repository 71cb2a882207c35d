"""Queries: exactly one handler, and its result is the answer; nobody emits or stores one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, Generic, TypeVar

import pytest
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    AsyncMessageBus,
    Command,
    Context,
    HandlerNotFound,
    InMemoryOutBoxRepo,
    InvalidOutboxMessage,
    MessageBus,
    MessageBusTables,
    MessageDefinitionError,
    NotAMessage,
    OutboxMessage,
    Query,
    QueryNotSendable,
    SettingsError,
    SQLAlchemyOutBoxRepo,
    WiringError,
    correlate,
)
from message_bus.command_handlers.base import CommandHandlerABC
from tests.bus.colours import ALL, OUTBOX, Colour, name_of
from tests.bus.shop import OrderPaid, OrderPlaced, PlaceOrder

T = TypeVar("T")


class GetOrder(Query[str]):
    order_id: int = 1


class Plain(Query):
    order_id: int = 1


class Page(Query[list[T]], Generic[T]):
    number: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Query[int]):
    order_id: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Query[int]):
    order_id: int = 1


class ByHand(Query[int]):
    def __init__(self, order_id: int = 1) -> None:
        self.order_id = order_id


@pytest.fixture(params=ALL, ids=name_of)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each bus."""
    chosen: Colour = request.param
    return chosen


# --- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["set_query_handler", "subscribe", "decorator"])
async def test_a_query_has_one_handler_and_its_result_is_the_answer(colour: Colour, way: str) -> None:
    """However it was registered; `ask` returns the bare result, `handle` the same in its list."""
    bus = colour.bus()

    def handler(query: GetOrder) -> str:
        return f"order {query.order_id}"

    bus.query_handler(GetOrder)(handler) if way == "decorator" else getattr(bus, way)(GetOrder, handler)
    query = GetOrder(3)
    assert await colour.done(bus.ask(query)) == "order 3"
    results = await colour.done(bus.handle(query))
    assert results == (["order 3"] if colour.is_async else [{"query": query, "result": "order 3"}])
    assert (await colour.done(bus.dispatch(query))).results == results
    assert bus.get_query_handler(GetOrder) is handler
    assert (
        bus.get_query_handler(Plain),
        bus.get_command_handler(GetOrder),
        bus.get_event_handlers(GetOrder),
    ) == (
        *(None, None),
        [],
    )


@pytest.mark.parametrize(
    "query", [Plain(2), Page(2), Page[int](2), Frozen(order_id=2), Slotted(2), ByHand(2)]
)
async def test_every_form_of_a_query(colour: Colour, query: Any) -> None:
    """Untyped, generic, decorated, written by hand: a message like any other, that can be copied and pickled."""
    bus = colour.bus()
    bus.set_query_handler(type(query), lambda query: query)
    assert await colour.done(bus.ask(query)) is query
    if not isinstance(query, ByHand):  # which has no equality of its own
        assert copy.copy(query) == query
        assert pickle.loads(pickle.dumps(query)) == query  # noqa: S301
        assert type(query).deserialize(query.serialize()) == query


async def test_none_and_false_are_answers(colour: Colour) -> None:
    """What is returned is the answer, whatever it is."""
    answers: list[Any] = [None, False, 0, [], ValueError("returned, not raised")]
    for answer in answers:
        bus = colour.bus()
        bus.set_query_handler(GetOrder, lambda query, answer=answer: answer)
        assert await colour.done(bus.ask(GetOrder())) is answer


async def test_the_handlers_error_reaches_who_asks(colour: Colour) -> None:
    """Also on a bus that logs the failures of events."""

    def fails(query: GetOrder) -> str:
        raise LookupError("no such order")

    bus = colour.bus()
    bus.subscribe(GetOrder, fails)
    for way in (bus.ask, bus.handle, bus.dispatch, bus.publish):
        with pytest.raises(LookupError, match="no such order"):
            await colour.done(way(GetOrder()))


async def test_a_query_without_a_handler(colour: Colour) -> None:
    """The error says how to register one."""
    with pytest.raises(HandlerNotFound, match=r"no handler for query 'GetOrder'.*bus\.set_query_handler\(\)"):
        await colour.done(colour.bus().ask(GetOrder()))


async def test_only_what_has_one_handler_can_be_asked(colour: Colour) -> None:
    """A command can, too; an event has any number of handlers and so no answer."""
    bus = colour.bus()
    bus.subscribe(PlaceOrder, lambda command: "placed")
    bus.subscribe(OrderPlaced, lambda event: "answer")
    assert await colour.done(bus.ask(PlaceOrder())) == "placed"
    with pytest.raises(WiringError, match="'OrderPlaced' is an event"):
        await colour.done(bus.ask(OrderPlaced()))
    with pytest.raises(NotAMessage):
        await colour.done(bus.ask("a text"))


async def test_a_batch_may_hold_queries(colour: Colour) -> None:
    """Among other messages, in their order."""
    bus = colour.bus()
    bus.subscribe(GetOrder, lambda query: query.order_id)
    bus.subscribe(PlaceOrder, lambda command: "placed")
    results = await colour.done(bus.batch_handle([GetOrder(1), PlaceOrder(), GetOrder(2)]))
    if colour.is_async:
        assert results == [[1], ["placed"], [2]]
    else:
        assert [each["result"] for each in results] == [1, "placed", 2]
        assert [next(iter(each)) for each in results] == ["query", "command", "query"]


async def test_asking_inside_a_handler(colour: Colour) -> None:
    """The query has a context of its own, is caused by the message in hand, and leaves the emissions of that alone."""
    seen: dict[str, Any] = {}
    bus = colour.bus()

    def answers(query: GetOrder, context: Context) -> str:
        seen["query"] = (context.envelope.headers, dict(context), context.emitted_messages)
        context["left"] = "behind"
        context.emit(OrderPaid())
        return "order"

    def notes(context: Context) -> None:
        context.emit(OrderPlaced())
        seen["command"] = context.envelope

    def place(command: PlaceOrder, context: Context) -> Any:
        notes(context)
        return bus.ask(GetOrder(), context={"user": "inner"}), dict(context), context.emitted_messages

    async def place_async(command: PlaceOrder, context: Context) -> Any:
        notes(context)
        return await bus.ask(GetOrder(), context={"user": "inner"}), dict(context), context.emitted_messages

    handled: list[Any] = []
    bus.subscribe(GetOrder, answers)
    bus.subscribe(OrderPaid, handled.append)
    bus.subscribe(OrderPlaced, handled.append)
    bus.subscribe(PlaceOrder, place_async if colour.is_async else place)
    with correlate("request-1"):
        answer, mine, emitted = await colour.done(bus.ask(PlaceOrder(), context={"user": "outer"}))
    assert (answer, mine, emitted) == ("order", {"user": "outer"}, [OrderPlaced()])
    headers, given, before = seen["query"]
    assert (given, before) == ({"user": "inner"}, [])
    assert headers["correlation_id"] == "request-1"
    assert headers["causation_id"] == str(seen["command"].id)
    assert handled == [OrderPaid(), OrderPlaced()]  # what the query emitted was handled before `ask` returned


async def test_a_failing_query_is_an_error_of_the_handler_that_asked(colour: Colour) -> None:
    """An event handler that asks in vain fails like any other, and the others run (or not) as ever."""
    bus = colour.bus()

    def asks(event: OrderPlaced) -> Any:
        return bus.ask(GetOrder())

    async def asks_async(event: OrderPlaced) -> Any:
        return await bus.ask(GetOrder())

    bus.subscribe(OrderPlaced, asks_async if colour.is_async else asks)
    bus.subscribe(OrderPlaced, lambda event: "other")
    if colour.is_in_memory:
        with pytest.raises(HandlerNotFound):
            await colour.values(bus, OrderPlaced())
    else:
        assert await colour.values(bus, OrderPlaced()) == ["other"]


# --- names and definitions ------------------------------------------------------------------------------------------


async def test_queries_do_not_claim_a_name(colour: Colour) -> None:
    """No row names a query: two classes of one name, or a query called like a command, live on one bus."""

    def another() -> Any:
        class GetOrder(Query[int]):
            order_id: int = 1

        return GetOrder

    class Same(Command, name="GetOrder"):
        order_id: int = 1

    other = another()
    bus = colour.bus()
    bus.subscribe(GetOrder, lambda query: "first")
    bus.subscribe(other, lambda query: "second")
    bus.subscribe(Same, lambda command: "command")
    answers = [await colour.done(bus.ask(each())) for each in (GetOrder, other, Same)]
    assert answers == ["first", "second", "command"]
    assert bus.registry.decode("GetOrder", 1, "{}") == Same()
    assert GetOrder not in bus.registry


def test_a_query_whose_fields_nobody_can_encode(colour: Colour) -> None:
    """It is refused when its handler is registered, as a command is; a field that says Any holds anything."""

    class Needs(Query[int]):
        what: object

    class Takes(Query[int]):
        what: Any

    bus = colour.bus()
    with pytest.raises(MessageDefinitionError, match=r"field 'what' has type object.*say typing\.Any"):
        bus.subscribe(Needs, lambda query: 1)
    assert bus.get_query_handler(Needs) is None
    bus.subscribe(Takes, lambda query: 1)


async def test_a_field_may_hold_what_cannot_be_encoded(colour: Colour) -> None:
    """A query is never encoded on its way to its handler."""

    class Takes(Query[int]):
        what: Any

    thing = object()
    bus = colour.bus()
    bus.subscribe(Takes, lambda query: query.what)
    assert await colour.done(bus.ask(Takes(thing))) is thing


def test_handlers_are_for_their_own_kind(colour: Colour) -> None:
    """A query is no command and no event, and the other way round; the constructor takes none either."""
    bus = colour.bus()
    with pytest.raises(SettingsError, match="'GetOrder': is not a Command"):
        bus.set_command_handler(GetOrder, print)
    with pytest.raises(SettingsError, match="'GetOrder': is not an Event"):
        bus.set_event_handlers(GetOrder, [print])
    with pytest.raises(SettingsError, match="'PlaceOrder': is not a Query"):
        bus.set_query_handler(PlaceOrder, print)
    with pytest.raises(NotAMessage):
        bus.set_query_handler(Query, print)
    with pytest.raises(SettingsError, match="is not a Command"):
        colour.make(command_handlers={GetOrder: print})


# --- nobody would get the answer ------------------------------------------------------------------------------------


async def test_a_query_cannot_be_emitted(colour: Colour) -> None:
    """At the line that tries to, by either way, and outside of a dispatch too."""

    class Emits(CommandHandlerABC):
        def handle(self, cmd: PlaceOrder, context: Any, *args: Any, **kwargs: Any) -> int:
            refused = 0
            for emit in (self.emit_message, self.emmit_message, context.emit):
                with pytest.raises(
                    QueryNotSendable, match=r"query 'GetOrder'.*\(ask it: bus\.ask\(query\)\)"
                ):
                    emit(GetOrder())
                refused += 1
            return refused

    bus = colour.bus(command_handlers={PlaceOrder: Emits()})
    bus.subscribe(GetOrder, print)
    assert await colour.values(bus, PlaceOrder()) == [3]
    with pytest.raises(QueryNotSendable):
        Emits().emit_message(GetOrder())


def test_a_query_cannot_be_put_into_an_outbox(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """Not through a session, nor a repository, nor as a row made by hand; nothing is registered then."""
    with session_factory() as session:
        for outbox in (session, SQLAlchemyOutBoxRepo(session), InMemoryOutBoxRepo()):
            with pytest.raises(QueryNotSendable):
                MessageBus.register_outbox_message(outbox, GetOrder())
        repo = SQLAlchemyOutBoxRepo(session)
        with pytest.raises(InvalidOutboxMessage):
            repo.add(OutboxMessage(type="QUERY", message="GetOrder", payload={"order_id": 1}))
        session.commit()
        assert repo.list_unprocessed() == []


@pytest.mark.parametrize("colour", OUTBOX, ids=name_of)
async def test_a_handler_behind_the_outbox_may_ask(colour: Colour) -> None:
    """Asking is a dispatch of its own; what the answering handler emits is handled in it."""
    bus = colour.bus()
    handled: list[Any] = []

    def asks(event: OrderPlaced) -> Any:
        handled.append(bus.ask(GetOrder()))

    async def asks_async(event: OrderPlaced) -> Any:
        handled.append(await bus.ask(GetOrder()))

    bus.subscribe(GetOrder, lambda query, context: context.emit(OrderPaid()))
    bus.subscribe(OrderPaid, handled.append)
    bus.subscribe(OrderPlaced, asks_async if colour.is_async else asks)
    outbox = InMemoryOutBoxRepo()
    assert await colour.done(bus.deliver(OrderPlaced(), Context(outbox=outbox))) == 1
    assert handled == [OrderPaid(), None]
    assert outbox.list_unprocessed() == []


async def test_typed_answers_of_both_colours() -> None:
    """The answer has the type that the class names (mypy checks this test, too)."""
    bus, async_bus = MessageBus(), AsyncMessageBus()
    bus.set_query_handler(GetOrder, lambda query: "order")
    async_bus.set_query_handler(GetOrder, lambda query: "order")
    text: str = bus.ask(GetOrder())
    assert text.upper() == (await async_bus.ask(GetOrder())).upper() == "ORDER"
