"""What a backend says of itself, and what all contracts share. `Capabilities` needs no pytest; a contract does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from message_bus.messages.message import Message
from message_bus.messages.registry import Registry

Units: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Opens a unit of work: a context manager whose value is a repository, and which saves nothing at its end."""
AsyncUnits: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]
"""The same with `async with`."""

Stores: TypeAlias = Callable[[Registry], AbstractContextManager[Any]]
"""Opens a unit of work: a context manager whose value is an event store with this registry, and whose end commits."""
AsyncStores: TypeAlias = Callable[[Registry], AbstractAsyncContextManager[Any]]
"""The same with `async with`."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do. Everything is claimed unless it is declared away; a skipped test names what is missing.

    Of an outbox. `ids`: what its rows are identified by. `meta`, `keys`, `versions`, `headers`: its rows have a place
    for that. `delays`: messages may be registered with a delay. `several_units_of_work`: two may be open at once.
    `concurrent_writers`: both may add before one of them saves. `order_per_key`: a failing row holds back later rows of
    its key. `dead_letters`: a row whose handler raises `Reject` is not tried again.

    Of an event store. `rolls_back`: what a unit of work that ends by an error has saved was never saved.

    Of a bus. `runs_handlers`: False for a dry run. `isolates_event_handlers`: a failing event handler stops no other and
    does not reach the caller (else its error does). `one_at_a_time`: the handlers of an event run one after another.
    `queries`: it has `set_query_handler` and `ask`. `middleware`: it has `add_middleware`. `decorators`: it has
    `command_handler`, `event_handler` and `query_handler`. `outbox`: it has `process_outbox`.
    """

    ids: Literal["uuid", "text", "integer"] = "uuid"
    meta: bool = True
    keys: bool = True
    versions: bool = True
    headers: bool = True
    delays: bool = True
    several_units_of_work: bool = True
    concurrent_writers: bool = True
    order_per_key: bool = True
    dead_letters: bool = True

    rolls_back: bool = True

    runs_handlers: bool = True
    isolates_event_handlers: bool = True
    one_at_a_time: bool = True
    queries: bool = True
    middleware: bool = True
    decorators: bool = True
    outbox: bool = True


class Contract:
    """The base of the contracts: tests that a backend inherits, with the capabilities that it declares."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    def _needs(self, *names: str) -> None:
        """Skip the test unless all of these capabilities are declared."""
        import pytest

        missing = [name for name in names if not getattr(self.capabilities, name)]
        if missing:
            pytest.skip(f"{type(self).__name__} declares no {', '.join(missing)}")


def entry(kind: Literal["command", "event", "query"], message: Message, result: object) -> Any:
    """What a MessageBus returns of one handler."""
    return {kind: message, "result": result}


def entry_async(kind: Literal["command", "event", "query"], message: Message, result: object) -> Any:
    """What an AsyncMessageBus returns of one handler."""
    return result
