"""`Projection`: a read model, kept up to date from the events of a log.

    event ──► @when method ──► rows of its own tables ──┐
                                     checkpoint ────────┴──► one COMMIT (G5)

A subscription like any other: Relay and `process_outbox` run it. What it writes and how far it has come are committed
together, so no event is missed or counted twice, whatever dies. Or *inline*: the writer applies its events in its own
transaction. How a projection is filled anew beside the live one is said in `rebuilding.py`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, overload

from sqlalchemy import Connection, Table
from sqlalchemy.orm import Session, scoped_session

from message_bus._compat import result_of, result_of_async
from message_bus.bus.abc import MessageBusABC
from message_bus.bus.context import Context
from message_bus.delivery.subscription import Subscription
from message_bus.errors import AsyncHandlerOnSyncBus, ProjectionNotReady, SettingsError
from message_bus.eventsourcing.bus_registry import registry_for
from message_bus.eventsourcing.projections.projection_bookkeeping import obstacle_of
from message_bus.eventsourcing.projections.projection_progress import (
    lag_of,
    this_moment,
    wait_for,
    wait_for_async,
)
from message_bus.eventsourcing.projections.projection_state import INLINE, Lag
from message_bus.eventsourcing.projections.projection_tables import copies_of, problems_of, tables_by_name
from message_bus.eventsourcing.when import can_take, handlers_of, marks_of
from message_bus.messages.definition import definition_of
from message_bus.messages.envelope import Envelope, stored_envelope
from message_bus.messages.message import Message
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.registry import Registry
from message_bus.outbox_handlers.base import OutboxHandlerABC
from message_bus.repositories.targets import DEFAULT_TABLES
from message_bus.storage.tables import MessageBusTables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    SyncSession = Session | scoped_session[Any] | Connection
    AnyAsyncSession = AsyncSession | async_scoped_session[Any] | AsyncConnection

logger = logging.getLogger("message_bus.eventsourcing")

_CHECKED: Final = "message_bus.projection_checked"  # in Session.info: projection and transaction
_LONGEST_NAME: Final = 150  # a rebuild's subscription is called name@generation


class Projection(OutboxHandlerABC):
    """Derive from it, name the tables, mark methods with `@when`, and write through `self.table(...)`.

        class OrderTotals(Projection):
            tables = {"totals": TOTALS}

            @when(OrderPlaced)
            def placed(self, event: OrderPlaced, context: Context) -> None:
                totals = self.table("totals")
                context.db_session.execute(insert(totals).values(order_id=event.order_id, cents=event.cents))

    `name`: of the bookkeeping and the subscription (default: the class name); keep it when the class is renamed. `version`:
    of the code; raise it when the tables or what is in them change, and rebuild. `tables`: SQLAlchemy tables (or mapped
    classes) under short names, or a sequence of them; yours to create, without foreign keys. `log`: "events" or "outbox".

    Methods take `(self, event)` or `(self, event, context)`, and may be async on an AsyncMessageBus. They write with
    `context.db_session`, never commit, and see their events in the order of the log (G3, G4). `context.envelope` has id and
    position. A type that no method takes is not read.

    `registry`: upcasters of old payloads (default: those of the bus that it is set on). `subscription`: other settings; by
    default 100 messages share a commit, and it starts at the beginning. `inline`: the writers fill it, with `apply`; then it
    is no subscription.

    If the tables in the database are of another `version` it waits, with a warning, until it is rebuilt and swapped. One
    object may be shared by threads and relays, if your methods keep nothing in it.

    Raises: SettingsError with all that does not fit, at the class statement or when it is made.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    tables: ClassVar[Any] = ()
    log: ClassVar[Literal["outbox", "events"]] = "events"
    default_mode = "transactional"
    _makes_envelopes = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__
        problems = [*_problems_of_name(cls.name)]
        if type(cls.version) is not int or cls.version < 1:
            problems.append("version must be a whole number >= 1")
        try:
            problems += problems_of(tables_by_name(cls.tables))
        except TypeError as error:
            problems.append(f"tables: {error} (give Tables, or a mapping of short names to Tables)")
        problems += [
            f"method {name!r} is Projection's own (give yours another name)"
            for name, value in vars(cls).items()
            if marks_of(value) and hasattr(Projection, name)
        ]
        problems += [
            f"method {function.__name__!r} must take (self, event) or (self, event, context)"
            for function in dict.fromkeys(handlers_of(cls).values())
            if not can_take(function, 3 if _takes_context(function) else 2)
        ]
        if problems:
            raise SettingsError(f"projection {cls.__name__!r}", problems)

    def __init__(
        self,
        *,
        registry: Registry | None = None,
        subscription: Subscription | None = None,
        inline: bool = False,
    ) -> None:
        super().__init__()
        self._handlers = {
            message: (function, _takes_context(function))
            for message, function in handlers_of(type(self)).items()
        }
        given = subscription if subscription is not None else type(self).subscription
        problems = list(self._problems(given, inline=inline))
        if problems:
            raise SettingsError(f"projection {self.name!r}", problems)
        self._has_own_registry = registry is not None
        self._bus: Any = None
        self.registry = Registry() if registry is None else registry
        self.registry.register(*self._handlers)
        settings = Subscription(messages_per_commit=100) if given is None else given
        self.subscription = replace(
            settings,
            name=self.name,
            types=tuple(self._handlers),
            start="beginning" if settings.start is None else settings.start,
        )
        self.inline = inline
        self.generation: int | None = None
        """The generation that it builds; None: it fills the live tables."""
        self.live_tables: Mapping[str, Table] = tables_by_name(type(self).tables)
        """The tables under their live names."""
        self._in_hand = self.live_tables
        self._warned: str | None = None

    def _problems(self, given: Subscription | None, *, inline: bool) -> Iterable[str]:
        if not self._handlers:
            yield "it has no handler (mark a method with @when(OrderPlaced))"
        if not tables_by_name(type(self).tables):
            yield "it has no tables (name them: tables = {'totals': TOTALS})"
        if given is None:
            return
        if inline:
            yield "it is inline, so it has no subscription (leave one of them out)"
        if given.name not in (None, self.name):
            yield f"its subscription is called {given.name!r} (leave the name out: it is the projection's)"
        if given.mode == "concurrent":
            yield "its subscription is concurrent (leave mode out: what it writes is committed with its place)"
        if given.partitions != 1:
            yield "its subscription has several partitions (a projection is one history: leave partitions out)"
        if given.types is not None:
            yield "its subscription has types (leave them out: @when says what it reads)"

    def table(self, name: str) -> Table:
        """Return the table with this short name in the generation in hand: the live one, or in a rebuild its copy.

        Raises: SettingsError if the projection has no such table.
        """
        try:
            return self._in_hand[name]
        except KeyError:
            there = ", ".join(map(repr, self._in_hand))
            raise SettingsError(
                f"projection {self.name!r}", [f"there is no table {name!r} (there are: {there})"]
            ) from None

    @property
    def handled(self) -> tuple[type[Message], ...]:
        """The message types that it reads."""
        return tuple(self._handlers)

    @property
    def message_names(self) -> tuple[str, ...]:
        """The names under which what it reads may stand in the log."""
        found = [definition_of(each) for each in self._handlers]
        return tuple(dict.fromkeys(name for each in found for name in (each.name, *each.renamed_from)))

    @property
    def filled_by(self) -> str:
        """The subscription that fills it, or that its writers do."""
        if self.inline:
            return INLINE
        return self.name if self.generation is None else f"{self.name}@{self.generation}"

    def building(self, generation: int) -> Self:
        """Return this projection for the copies of its tables of this generation; used by a rebuild."""
        made = copy.copy(self)
        made.generation = generation
        made.inline = False
        made._in_hand = copies_of(self.live_tables, generation)
        assert self.subscription is not None
        made.subscription = replace(self.subscription, name=made.filled_by, start="beginning")
        return made

    # --- as a subscription -------------------------------------------------------------------------------------------

    def clashes_with(self, others: Sequence[Any]) -> Sequence[str]:
        """Say which of these projections write a table of this one."""
        mine = {table.fullname for table in self.live_tables.values()}
        return [
            f"projections {other.name!r} and {self.name!r} both write table {table.fullname!r} (give each tables of its own; "
            f"the next version of one keeps its name: name = {other.name!r})"
            for other in others
            if isinstance(other, Projection) and other.name != self.name
            for table in other.live_tables.values()
            if table.fullname in mine
        ]

    def attach(self, bus: Any) -> None:
        """Called by the bus or relay that runs it.

        Raises: SettingsError if it is inline; AsyncHandlerOnSyncBus if a handler is async and the bus is not.
        """
        if self.inline:
            raise SettingsError(
                f"projection {self.name!r}",
                ["it is inline: its writers fill it (leave it out here, or leave out inline=True)"],
            )
        if isinstance(bus, MessageBusABC):
            self.refuse_colour_of(None)
        self._bus = bus

    def handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Let the method that takes this message write. With an AsyncSession the result is to be awaited.

        Raises: ProjectionNotReady, UnknownMessageType, MessageDecodeError, or what the method raises.
        """
        row = outbox_message
        context = context if isinstance(context, Context) else Context(context)
        tables: MessageBusTables = getattr(context.outbox, "tables", DEFAULT_TABLES)
        session = context.db_session
        if hasattr(session, "run_sync"):
            return self._handle_async(row, context, session, tables)
        if self.generation is None:
            self._make_sure(session, tables)
        return self.call(self._decoded(row, context), context)

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        return self.handle(outbox_message, context, *args, **kwargs)

    async def _handle_async(self, row: Any, context: Context, session: Any, tables: MessageBusTables) -> None:
        if self.generation is None and not self._is_checked(session.sync_session):
            await session.run_sync(self._make_sure, tables)
        await result_of_async(self.call(self._decoded(row, context), context))

    def _decoded(self, row: Any, context: Context) -> Message:
        registry = registry_for(
            row.message,
            own=self.registry,
            is_given=self._has_own_registry,
            bus=self._bus,
            types=self._handlers,
        )
        message = registry.decode(row.message, row.version, row.payload_json)
        context["envelope"] = stored_envelope(message, row)
        return message

    def call(self, message: Message, context: Context) -> Any:
        """Call the method that takes this message; nothing is checked. For tests of your own."""
        function, takes_context = self._handlers[type(message)]
        return function(self, message, context) if takes_context else function(self, message)

    # --- inline ------------------------------------------------------------------------------------------------------

    @overload
    def apply(
        self,
        session: SyncSession,
        events: Iterable[RecordedEvent | Envelope],
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None: ...
    @overload
    def apply(
        self,
        session: AnyAsyncSession,
        events: Iterable[RecordedEvent | Envelope],
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> Awaitable[None]: ...
    def apply(self, session: Any, events: Any, *, tables: MessageBusTables = DEFAULT_TABLES) -> Any:
        """Bring an inline projection up to date in the writer's transaction: `apply(session, store.save(...))`.

        To be awaited with an AsyncSession. The read model is never behind then; in return every writer waits for every other
        one that changes the same row of it, and a handler that fails fails the writer. Commits nothing (G10).

        Raises: SettingsError if it is not inline, or for plain events; ProjectionNotReady; what its methods raise.
        """
        if not self.inline:
            raise SettingsError(
                f"projection {self.name!r}",
                ["it is a subscription: the relay fills it (make it with inline=True, or leave this out)"],
            )
        session = this_moment(session)
        events = _recorded(self.name, events)
        wanted = [each for each in events if type(each.message) in self._handlers]
        if hasattr(session, "run_sync"):
            return self._apply_async(session, wanted, tables)
        self.refuse_colour_of(session)
        if wanted:
            self._make_sure(session, tables)
        for each in wanted:
            result_of(self.call(each.message, Context(db_session=session, envelope=each)))
        return None

    async def _apply_async(self, session: Any, events: list[Any], tables: MessageBusTables) -> None:
        if events:
            await session.run_sync(self._make_sure, tables)
        for each in events:
            await result_of_async(self.call(each.message, Context(db_session=session, envelope=each)))

    # --- how far it is -----------------------------------------------------------------------------------------------

    @overload
    def lag(self, session: SyncSession, *, tables: MessageBusTables = DEFAULT_TABLES) -> Lag: ...
    @overload
    def lag(
        self, session: AnyAsyncSession, *, tables: MessageBusTables = DEFAULT_TABLES
    ) -> Awaitable[Lag]: ...
    def lag(self, session: Any, *, tables: MessageBusTables = DEFAULT_TABLES) -> Any:
        """Return how many messages it is behind, and since when. To be awaited with an AsyncSession.

        Counts committed messages of the types that it reads; with millions of them that takes a moment. An inline one is
        never behind. In the caller's transaction.
        """
        session = this_moment(session)
        if hasattr(session, "run_sync"):
            return session.run_sync(lag_of, self, tables)
        return lag_of(session, self, tables)

    @overload
    def wait_for(
        self,
        session: SyncSession,
        position: int,
        timeout: float = 10.0,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> None: ...
    @overload
    def wait_for(
        self,
        session: AnyAsyncSession,
        position: int,
        timeout: float = 10.0,
        *,
        tables: MessageBusTables = DEFAULT_TABLES,
    ) -> Awaitable[None]: ...
    def wait_for(
        self, session: Any, position: int, timeout: float = 10.0, *, tables: MessageBusTables = DEFAULT_TABLES
    ) -> Any:
        """Wait until everything up to this position of its log is in its tables: read your own writes.

        To be awaited with an AsyncSession. `position` is that of an event that is committed; `timeout` is in seconds. It looks
        every 5 ms at first, later every 100 ms, over another connection of the session's engine, so an open transaction does
        not hide what is new; but one that began before (REPEATABLE READ, SQLite) does not show it either: read in a new one.
        What failed and will be tried again is waited for. An inline projection is always up to date.

        Raises: TimeoutError, which says where it stands; SettingsError for a timeout that is no number.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            problem = f"timeout is a {type(timeout).__name__}, not a number of seconds (of a timedelta: .total_seconds())"
            raise SettingsError(f"projection {self.name!r}", [problem])
        session = this_moment(session)
        wait = wait_for_async if hasattr(session, "run_sync") else wait_for
        return wait(session, self, position, timeout, tables)

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _is_checked(self, session: Any) -> bool:
        transaction = session.get_transaction()
        return transaction is not None and session.info.get((_CHECKED, self.name)) is transaction

    def _make_sure(self, session: Session | Connection, tables: MessageBusTables) -> None:
        """Once a transaction: the live tables are of this version, and nobody else's. Raises: ProjectionNotReady."""
        if self._is_checked(session):
            return
        problem = obstacle_of(session, self, tables)
        if problem is not None:
            if self._warned != problem:
                self._warned = problem
                logger.warning(
                    "projection %r waits: %s", self.name, problem, extra={"subscription": self.filled_by}
                )
            raise ProjectionNotReady(self.name, problem)
        self._warned = None
        session.info[_CHECKED, self.name] = session.get_transaction()

    @property
    def is_async(self) -> bool:
        """Whether a handler has to be awaited."""
        return any(inspect.iscoroutinefunction(function) for function, _ in self._handlers.values())

    def refuse_colour_of(self, session: object) -> None:
        """Raise AsyncHandlerOnSyncBus if a handler is async and this session is not."""
        if hasattr(session, "run_sync"):
            return
        for function, _ in self._handlers.values():
            if inspect.iscoroutinefunction(function):
                raise AsyncHandlerOnSyncBus(function.__qualname__)


def _problems_of_name(name: Any) -> Iterable[str]:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        yield f"name must have 1 to {_LONGEST_NAME} characters"
    elif "@" in name:
        yield f"name {name!r} has an @ in it, which stands before a generation (leave it out)"


def _recorded(name: str, events: Any) -> list[Any]:
    """What was given to `apply`, as a list. Raises: SettingsError if it is not what a store returns."""
    several = list(events) if isinstance(events, Iterable) else [events]
    strangers = [each for each in several if not isinstance(each, RecordedEvent | Envelope)]
    if strangers or not isinstance(events, Iterable):
        given = type(strangers[0]).__name__ if strangers else f"single {type(events).__name__}"
        problem = f"apply was given a {given!r} (give it the list that was recorded: apply(session, store.save(...)))"
        raise SettingsError(f"projection {name!r}", [problem])
    return several


def _takes_context(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return len(positional) > 2 or any(each.kind is each.VAR_POSITIONAL for each in parameters)
