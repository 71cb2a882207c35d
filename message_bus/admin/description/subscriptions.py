"""One subscription described: whom it calls, its settings and whose they are. Called by `wiring.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal

from message_bus.admin.description.description import (
    Delivery,
    HandlerDescription,
    Setting,
    SubscriptionDescription,
)
from message_bus.admin.description.handlers import (
    handler_described,
    handlers_on,
    kind_of,
    name_of,
    path_of,
    type_name,
)
from message_bus.admin.description.words import guarantees_of
from message_bus.bus.calling import is_async
from message_bus.delivery.subscription import Subscription
from message_bus.eventsourcing.processes.process_manager import ProcessManager
from message_bus.eventsourcing.processes.process_timeouts import ProcessTimeouts
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.when import handlers_of
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler

SubscriptionKind = Literal["dispatch", "projection", "process manager", "timeouts", "outbox handler"]


def subscription_described(
    handler: Any, settings: Subscription, is_async_bus: bool
) -> SubscriptionDescription:
    """One outbox handler with its settings."""
    kind = _kind_of(handler)
    mode = settings.mode or handler.default_mode
    log = str(handler.log)
    return SubscriptionDescription(
        name=str(settings.name),
        kind=kind,
        handler=type(handler).__qualname__,
        log=log,
        mode=mode,
        partitions=settings.partitions,
        concurrency=settings.concurrency,
        types=None if settings.types is None else tuple(map(type_name, settings.types)),
        deliveries=tuple(_deliveries(handler, settings)),
        settings=tuple(_settings(handler, settings, kind)),
        guarantees=tuple(guarantees_of(settings, mode=mode, log=log, kind=kind, is_async=is_async_bus)),
    )


def _kind_of(handler: Any) -> SubscriptionKind:
    match handler:
        case DispatchOutboxHandler():
            return "dispatch"
        case Projection():
            return "projection"
        case ProcessManager():
            return "process manager"
        case ProcessTimeouts():
            return "timeouts"
        case _:
            return "outbox handler"


def _deliveries(handler: Any, settings: Subscription) -> Iterator[Delivery]:
    types = settings.types
    match handler:
        case DispatchOutboxHandler():
            for cls in sorted(types or handler.bus.registry, key=type_name):
                found = tuple(map(handler_described, handlers_on(handler.bus, cls)))
                if found and kind_of(cls) != "query":
                    yield Delivery(message=type_name(cls), handlers=found)
        case Projection() | ProcessManager() | ProcessTimeouts():
            owner = type(handler.manager if isinstance(handler, ProcessTimeouts) else handler)
            for cls, function in handlers_of(owner).items():
                if types is None or cls in types:
                    yield Delivery(message=type_name(cls), handlers=(_method(function),))
        case _:
            itself = HandlerDescription(
                name=type(handler).__qualname__,
                path=path_of(type(handler)),
                is_async=is_async(handler.handle) or is_async(handler._handle),
            )
            for name in [None] if types is None else map(type_name, types):
                yield Delivery(message=name, handlers=(itself,))


def _method(function: Any) -> HandlerDescription:
    return HandlerDescription(name=function.__qualname__, path=path_of(function), is_async=is_async(function))


def _settings(handler: Any, settings: Subscription, kind: SubscriptionKind) -> Iterator[Setting]:
    own = _defaults(handler, settings, kind)
    for each in dataclasses.fields(Subscription):
        value = getattr(settings, each.name)
        if each.name in own:
            value, source = own[each.name]
        else:
            source = "default" if value == each.default else "set"
        yield Setting(name=each.name, value=_plain(value), source=source)


def _defaults(handler: Any, settings: Subscription, kind: SubscriptionKind) -> dict[str, tuple[Any, str]]:
    """What a handler says where its settings say nothing, and whose default that is."""
    owner = type(handler).__name__
    given: Subscription | None = handler.subscription
    own: dict[str, tuple[Any, str]] = {}
    if settings.mode is None:
        own["mode"] = (handler.default_mode, f"default of {owner}")
    if (
        given is None
        or given.name is None
        or (kind in ("projection", "process manager") and settings.name == owner)
    ):
        own["name"] = (settings.name, "class name")
    elif kind == "dispatch" and settings.name == "dispatch":
        own["name"] = (settings.name, f"default of {owner}")
    if kind in ("projection", "process manager", "timeouts"):
        own["types"] = (settings.types, "@when")
    if kind == "timeouts":
        own["name"] = (settings.name, "name of its process manager")
    if kind == "projection" and settings.messages_per_commit == 100:
        own["messages_per_commit"] = (100, f"default of {owner}")
    if kind in ("projection", "timeouts") and settings.start == "beginning":
        own["start"] = ("beginning", f"default of {owner}")
    return own


def _plain(value: Any) -> Any:
    match value:
        case timedelta():
            return value.total_seconds()
        case datetime():
            return value.isoformat()
        case None | bool() | int() | float() | str():
            return value
        case tuple() | list() | set() | frozenset():
            return [type_name(each) for each in value]
        case _ if type(value).__module__.startswith("message_bus."):
            return repr(value)
        case _ if callable(value):
            return name_of(value)
        case _:
            return type(value).__name__  # a policy of the user's: its repr may hold whatever
