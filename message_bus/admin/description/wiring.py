"""Reads how a bus or relay is wired: `describe`. It calls no handler, opens no connection and changes nothing.

What a relay was given beside its bus (projections, process managers) is among its handlers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from message_bus.admin.description.description import (
    Description,
    MessageDescription,
    SagaDescription,
    StepDescription,
)
from message_bus.admin.description.handlers import handler_described, handlers_on, kind_of, name_of, path_of
from message_bus.admin.description.subscriptions import subscription_described
from message_bus.admin.description.warnings import warnings_of
from message_bus.bus.abc import AsyncMessageBusABC
from message_bus.bus.wired import WiredBus
from message_bus.delivery.retry import NoRetry
from message_bus.delivery.subscription import Subscription
from message_bus.errors import SettingsError
from message_bus.eventsourcing.sagas.saga_steps import SagaStep
from message_bus.messages.definition import definition_of
from message_bus.messages.message import Message
from message_bus.messages.registry import Registry
from message_bus.messages.schemas.json_schema import key_name, steps_of
from message_bus.outbox_handlers.dispatch import DispatchOutboxHandler
from message_bus.storage.logs import OUTBOX_LOG

Wired = Sequence[tuple[Any, Subscription]]

_ORDER: Final = {"command": 0, "event": 1, "query": 2}


def describe(bus_or_relay: Any, *, sagas: Iterable[Any] = ()) -> Description:
    """Say how a bus, or a relay and its bus, is wired, what each subscription guarantees, and what is risky about it.

    Reads no database. `sagas`: to be described as well; a bus does not know them.

    Raises: SettingsError if it is neither a bus of this package nor a relay.
    """
    bus, wired = wiring_of(bus_or_relay)
    registries = registries_of(bus_or_relay)
    is_async_bus = isinstance(bus, AsyncMessageBusABC)
    messages = tuple(_messages(bus, wired, registries))
    subscriptions = tuple(
        subscription_described(handler, settings, is_async_bus) for handler, settings in wired
    )
    return Description(
        bus=type(bus).__name__,
        is_async=is_async_bus,
        messages=messages,
        middleware=tuple(map(name_of, bus._middleware)),
        observers=tuple(map(name_of, bus._observers)),
        subscriptions=subscriptions,
        sagas=tuple(map(_saga, sagas)),
        warnings=tuple(
            warnings_of(
                messages,
                subscriptions,
                is_async=is_async_bus,
                clashes=_clashes(registries),
                gaps=_gaps(registries),
            )
        ),
    )


def wiring_of(bus_or_relay: Any) -> tuple[WiredBus[Any], Wired]:
    """The bus, and all outbox handlers that it or the relay runs, with their settings. Raises: SettingsError."""
    of_relay: Wired | None = getattr(bus_or_relay, "handlers", None)
    bus = bus_or_relay if of_relay is None else bus_or_relay.bus
    if not isinstance(bus, WiredBus):
        raise SettingsError(
            "describe",
            [f"{type(bus).__name__!r} is neither a bus of this package nor a relay (give one of them)"],
        )
    if of_relay is not None:
        return bus, sorted(of_relay, key=lambda wired: bool(wired[0].log != OUTBOX_LOG))
    handlers = bus.outbox_handlers
    return bus, [
        (each, (each.subscription or Subscription()).named(type(each).__name__)) for each in handlers
    ]


def registries_of(source: Any) -> tuple[Registry, ...]:
    """All registries that messages are read with: a registry itself, or those of a bus or relay. Raises: SettingsError."""
    if isinstance(source, Registry):
        return (source,)
    bus, wired = wiring_of(source)
    found = [bus.registry]
    for handler, _ in wired:
        reads = handler if hasattr(handler, "registry") else getattr(handler, "bus", None)
        registry = getattr(reads, "registry", None)
        if isinstance(registry, Registry) and not any(registry is each for each in found):
            found.append(registry)
    return tuple(found)


# --- messages ------------------------------------------------------------------------------------------------------------


def _messages(
    bus: WiredBus[Any], wired: Wired, registries: Sequence[Registry]
) -> Iterator[MessageDescription]:
    buses = [bus, *(each.bus for each, _ in wired if isinstance(each, DispatchOutboxHandler))]
    queries = [cls for cls, route in bus._routes.items() if route.label == "query"]
    classes = dict.fromkeys([*(cls for registry in registries for cls in registry), *queries])
    named = sorted(classes, key=lambda cls: (_ORDER[kind_of(cls)], definition_of(cls).name))
    for cls in named:
        definition = definition_of(cls)
        handlers = next((found for each in buses if (found := handlers_on(each, cls))), [])
        yield MessageDescription(
            name=definition.name,
            path=path_of(cls),
            kind=kind_of(cls),
            version=definition.version,
            key=key_name(cls),
            renamed_from=definition.renamed_from,
            upcasters=tuple(steps_of(definition, registries)),
            handlers=tuple(map(handler_described, handlers)),
        )


# --- the rest ------------------------------------------------------------------------------------------------------------


def is_saga(thing: object) -> bool:
    """Whether this is a saga of either colour."""
    steps = getattr(thing, "steps", None)
    return isinstance(steps, tuple) and bool(steps) and all(isinstance(each, SagaStep) for each in steps)


def _saga(saga: Any) -> SagaDescription:
    if not is_saga(saga):
        raise SettingsError(
            "describe", [f"{type(saga).__name__!r} is no saga (give Saga or AsyncSaga objects)"]
        )
    steps = (
        StepDescription(
            name=step.name,
            action=name_of(step.action),
            compensation=None if step.compensation is None else name_of(step.compensation),
            transactional=step.transactional,
            max_attempts=1 if isinstance(step.retry, NoRetry) else step.max_attempts,
        )
        for step in saga.steps
    )
    return SagaDescription(name=saga.name, steps=tuple(steps))


def _clashes(registries: Sequence[Registry]) -> list[tuple[str, str, str]]:
    """Names that mean one class here and another there: a registry alone has none."""
    meant: dict[str, type[Message]] = {}
    found: dict[tuple[str, str, str], None] = {}
    for registry in registries:
        for cls in registry:
            definition = definition_of(cls)
            for name in (definition.name, *definition.renamed_from):
                other = meant.setdefault(name, cls)
                if other is not cls:
                    found[(name, path_of(other), path_of(cls))] = None
    return list(found)


def _gaps(registries: Sequence[Registry]) -> list[str]:
    """Versions that no upcaster leads on from, in the words of the registry that would read them."""
    found: list[str] = []
    for registry in registries:
        try:
            registry.check()
        except SettingsError as error:
            found += error.problems
    return list(dict.fromkeys(found))
