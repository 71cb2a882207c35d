"""What handlers and messages are called in a description, and how a handler is called: async, or in a thread."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from message_bus.admin.description.description import HandlerDescription, Kind
from message_bus.bus.calling import handler_name, is_async, target_of
from message_bus.bus.threads import in_thread
from message_bus.messages.definition import definition_of
from message_bus.messages.message import Message

_THREADS: Final = (in_thread.__code__.co_filename, "in_thread.<locals>.run")


def kind_of(cls: type[Message]) -> Kind:
    """Whether a message class is a command, an event or a query."""
    kinds: Mapping[str, Kind] = {"COMMAND": "command", "EVENT": "event", "QUERY": "query"}
    return kinds[definition_of(cls).kind]


def handlers_on(bus: Any, cls: Any) -> list[Any]:
    """The handlers that a bus has for a message class."""
    match kind_of(cls):
        case "event":
            return list(bus.get_event_handlers(cls))
        case "command":
            found = bus.get_command_handler(cls)
        case "query":
            found = bus.get_query_handler(cls)
    return [] if found is None else [found]


def handler_described(handler: Any) -> HandlerDescription:
    """A handler as it was registered."""
    code = getattr(handler, "__code__", None)
    return HandlerDescription(
        name=name_of(handler),
        path=path_of(_function_of(handler)),
        is_async=is_async(target_of(handler)),
        in_thread=code is not None and (code.co_filename, code.co_qualname) == _THREADS,
    )


def _function_of(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler if hasattr(handler, "__qualname__") else type(handler)


def name_of(handler: Any) -> str:
    """What a handler, a middleware, or whatever else is called."""
    return handler_name(_function_of(handler))


def path_of(thing: Any) -> str:
    """Where something is defined."""
    return f"{thing.__module__}.{thing.__qualname__}"


def type_name(cls: Any) -> str:
    """The name of a message type in rows."""
    return definition_of(cls).name if issubclass(cls, Message) else cls.__name__
