"""What an aggregate repository is put together of: does it fit? Asked once, when the repository is made.

Also the two things that differ by more than an `await`: what a store of each colour looks like, and a savepoint around what
may fail without harm. `x_async` in the one colour is `x` in the other.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from message_bus.errors import SettingsError, WiringError
from message_bus.eventsourcing.aggregates.aggregate import AggregateRoot
from message_bus.eventsourcing.aggregates.handling import unreachable
from message_bus.repositories.registering import as_repo

_METHODS: Final = ("save", "load", "save_snapshot", "load_snapshot")


def refuse_unfit_class(cls: object) -> None:
    """Raise unless it is an aggregate class whose `on_...` methods events can reach: WiringError, SettingsError."""
    if not (isinstance(cls, type) and issubclass(cls, AggregateRoot)):
        name = cls.__name__ if isinstance(cls, type) else type(cls).__name__
        raise WiringError(f"{name!r} is no class of aggregates (derive it from message_bus.AggregateRoot)")
    if problems := unreachable(cls):
        raise SettingsError(f"aggregate {cls.__name__!r}", problems)


def refuse_unfit_store_async(store: object) -> None:
    """Raise WiringError unless it is an event store whose methods are awaited."""
    if not _awaited(store):
        raise WiringError(
            f"{type(store).__name__!r} is a sync store, and AsyncAggregateRepository awaits its store (give the store to an "
            "AggregateRepository, or use its async twin)"
        )


def refuse_unfit_store(store: object) -> None:
    """Raise WiringError unless it is an event store whose methods are not awaited: its events would be dropped."""
    if _awaited(store):
        raise WiringError(
            f"{type(store).__name__!r} is an async store, and AggregateRepository awaits nothing: its events would be "
            "dropped (give the store to an AsyncAggregateRepository)"
        )


def _awaited(store: object) -> bool:
    missing = [name for name in _METHODS if not callable(getattr(store, name, None))]
    if missing:
        raise WiringError(
            f"{type(store).__name__!r} is no event store, it has no {', '.join(missing)} (see message_bus.EventStore)"
        )
    return any(inspect.iscoroutinefunction(getattr(store, name)) for name in _METHODS)


def outbox_beside(store: object, outbox: object) -> Any:
    """The repository of the outbox that shares the store's transactions; None for None.

    Raises: WiringError if it is no outbox, or stands on another session than the store.
    """
    if outbox is None:
        return None
    repo = as_repo(outbox)
    session = getattr(repo, "session", None)
    if session is not None and getattr(store, "session", None) is not session:
        raise WiringError(
            f"{type(store).__name__!r} does not share the session of the outbox, so that events could be stored without "
            "reaching it (make both of one session: SQLAlchemyEventStore(session), outbox=session)"
        )
    return repo


def _bound(store: Any) -> dict[str, Any]:
    """What a session that has only `binds=` must be told to find the store's connection."""
    tables = getattr(store, "tables", None)
    return {} if tables is None else {"bind_arguments": {"clause": tables.event}}


@asynccontextmanager
async def savepoint_async(store: object) -> AsyncIterator[None]:
    """Let an error inside leave the rest of the store's transaction as it was; nothing for a store without a session."""
    session: Any = getattr(store, "session", None)
    if session is None:
        yield
        return
    connection = await session.connection(**_bound(store)) if hasattr(session, "flush") else session
    async with connection.begin_nested():
        yield


@contextmanager
def savepoint(store: object) -> Iterator[None]:
    """Let an error inside leave the rest of the store's transaction as it was; nothing for a store without a session."""
    session: Any = getattr(store, "session", None)
    if session is None:
        yield
        return
    connection = session.connection(**_bound(store)) if hasattr(session, "flush") else session
    with connection.begin_nested():
        yield


__all__ = [
    "outbox_beside",
    "refuse_unfit_class",
    "refuse_unfit_store",
    "refuse_unfit_store_async",
    "savepoint",
    "savepoint_async",
]
