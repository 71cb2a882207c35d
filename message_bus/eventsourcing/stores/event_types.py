"""From the name of a stored event to its class: through a `Registry`, or through the classes that are defined. Pure.

Nothing is imported or evaluated: a name from the database is only ever compared. A store asks once per type and
version, not once per event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import WeakValueDictionary

from message_bus.errors import SettingsError, UnknownEventType, UnknownMessageType
from message_bus.messages.definition import definition_of
from message_bus.messages.finishing import derived_from, making_of
from message_bus.messages.message import Event
from message_bus.messages.registry import Registry

Decode = Callable[[Any], Any]

# stores are made anew with each session, so what one has saved another one has to know
_saved: Final[WeakValueDictionary[str, type[Event]]] = WeakValueDictionary()

_CONTRACTS: Final = "message_bus.testing."  # their events have names that users may want as well


class EventTypes:
    """What a store reads its events with. Safe for threads.

    `registry`: the classes, and the upcasters of their old versions. None: every `Event` class that is defined by the
    time a name is looked up, under its name and its former ones. Of two classes with one name the one that this process
    has saved last is meant; if it has saved neither, that is an error.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        if registry is not None and not isinstance(registry, Registry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingsError("registry", [f"is a Registry, not a {type(registry).__name__}"])
        self._registry = registry
        self._defined: dict[str, list[type[Event]]] = {}
        self._decoders: dict[tuple[str, int], Decode] = {}

    def notice(self, events: Iterable[Event]) -> None:
        """Remember the classes of what is saved."""
        if self._registry is None:
            for cls in {type(event) for event in events}:
                name = definition_of(cls).name
                if _saved.get(name) is not cls:
                    _saved[name] = cls
                    self._decoders.clear()

    def decoder(self, name: str, version: int) -> Decode:
        """What makes an event of a payload that was stored under this name and schema version.

        Raises: UnknownEventType; SettingsError if the name means several classes. What it returns raises
        MessageDecodeError.
        """
        key = (name, version)
        found = self._decoders.get(key)
        if found is None:
            found = self._decoders[key] = self._find(name, version)
        return found

    def check(self) -> None:
        """Look for gaps in the chains of upcasters. Raises: SettingsError with all of them."""
        if self._registry is not None:
            self._registry.check()

    def _find(self, name: str, version: int) -> Decode:
        registry = self._registry
        if registry is None:
            registry = Registry()
            registry.register(self._class_of(name))
        cls = registry.get(name)
        if cls is None:
            raise UnknownEventType(name)
        definition = definition_of(cls)
        if version == definition.version:
            return definition.decode
        if version > definition.version:
            raise UnknownEventType(name, version=version, known=definition.version)
        return lambda payload: _decode(registry, name, version, payload)

    def _class_of(self, name: str) -> type[Event]:
        if name not in self._defined:
            self._defined = _defined_events()
        classes = self._defined.get(name, [])
        if not classes:
            raise UnknownEventType(name)
        if len(classes) > 1:
            saved = _saved.get(name)
            if saved is not None and saved in classes:
                return saved
            paths = " and ".join(sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in classes))
            raise SettingsError(
                "event store", [f"event type {name!r} means {paths} (say which: give the store a registry=)"]
            )
        return classes[0]


def _decode(registry: Registry, name: str, version: int, payload: Any) -> Any:
    try:
        return registry.decode(name, version, payload)
    except UnknownMessageType as error:
        raise UnknownEventType(error.message_name) from error


def _defined_events() -> dict[str, list[type[Event]]]:
    by_path = {
        (cls.__module__, cls.__qualname__): cls for cls in derived_from(Event)
    }  # defined again: the newer one
    by_name: dict[str, dict[type[Event], None]] = {}
    for cls in by_path.values():
        if cls.__module__.startswith(_CONTRACTS):
            continue
        making = making_of(cls)
        for name in (making.name or cls.__name__, *making.renamed_from):
            by_name.setdefault(name, {})[cls] = None
    return {name: list(classes) for name, classes in by_name.items()}
