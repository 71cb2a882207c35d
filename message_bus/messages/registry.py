"""Which message types a bus knows: names to classes, and the upcasters of their old versions.

A name from the database or a broker is looked up here and nowhere else; nothing is imported or evaluated.
Each bus has a registry of its own. Written while an application is put together, and when a bus puts a type into an
outbox that it has not met before: one thread at a time, which is the bus's business; reading is safe for threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from message_bus.errors import SettingsError, UnknownMessageType
from message_bus.messages.definition import MessageDefinition, definition_of, read_object
from message_bus.messages.message import Message
from message_bus.messages.upcasting import Chain, Step, Upcaster

_F = TypeVar("_F", bound=Upcaster)


class Registry:
    """The message types of one bus."""

    def __init__(self) -> None:
        self._by_name: dict[str, MessageDefinition] = {}
        self._classes: dict[type[Message], None] = {}
        self._noticed: set[type[Message]] = set()
        self._chains: dict[str, Chain] = {}

    def register(self, *classes: type[Message]) -> None:
        """Make classes known under their names and former names. Idempotent; all or none.

        Raises: SettingsError if a name belongs to another class; NotAMessage; MessageDefinitionError.
        """
        names: dict[str, MessageDefinition] = {}
        problems: list[str] = []
        definitions = {cls: definition_of(cls) for cls in classes}
        for cls, definition in definitions.items():
            for name in (definition.name, *definition.renamed_from):
                known = names.get(name) or self._by_name.get(name)
                if known is not None and known.cls is not cls:
                    problems.append(
                        f"{name!r} means both {_path(known.cls)} and {_path(cls)} "
                        "(give one of them another name: class ...(Event, name=...))"
                    )
                names[name] = definition
        if problems:
            raise SettingsError("message types", problems)
        self._by_name.update(names)
        self._classes.update(dict.fromkeys(definitions))

    def notice(self, messages: Iterable[Message]) -> list[SettingsError]:
        """Make the classes of messages known that were just put into an outbox; return why some could not be, once.

        A name that means another class here keeps its meaning, and nothing is raised: the rows are in the caller's
        transaction already, and right for whoever knows the class.
        """
        clashes: list[SettingsError] = []
        for message in messages:
            cls = type(message)
            if cls not in self._noticed:
                self._noticed.add(cls)
                try:
                    self.register(cls)
                except SettingsError as error:
                    clashes.append(error)
        return clashes

    def get(self, name: str) -> type[Message] | None:
        """Return the class with this name, or that once had it; None if there is none."""
        definition = self._by_name.get(name)
        return None if definition is None else definition.cls

    def __contains__(self, name_or_class: object) -> bool:
        return (
            name_or_class in self._by_name
            if isinstance(name_or_class, str)
            else any(name_or_class is cls for cls in self._classes)
        )

    def __iter__(self) -> Iterator[type[Message]]:
        return iter(tuple(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def add_upcaster(
        self,
        message: type[Message] | str,
        upcaster: Upcaster,
        *,
        from_version: int,
        to_version: int | None = None,
    ) -> None:
        """Let `upcaster` turn payloads of `from_version` into those of `to_version` (default: the next).

        It gets a dict that it may change and returns the new payload. A class named by a former name is
        meant as well.

        Raises: SettingsError if the step is ambiguous or does not lead forward.
        """
        if isinstance(message, str):
            name = message
        else:
            self.register(message)
            name = definition_of(message).name
        step = Step(from_version, from_version + 1 if to_version is None else to_version, upcaster)
        self._chains[name] = self._chains.get(name, Chain(name)).with_step(step)

    def upcast(
        self, message: type[Message] | str, *, from_version: int, to_version: int | None = None
    ) -> Callable[[_F], _F]:
        """Register the decorated function as an upcaster: `@registry.upcast(OrderPlaced, from_version=1)`."""

        def register(upcaster: _F) -> _F:
            self.add_upcaster(message, upcaster, from_version=from_version, to_version=to_version)
            return upcaster

        return register

    def decode(self, name: str, version: int, payload: bytes | str) -> Message:
        """Return the message that a row holds, its payload upcast to the version of its class.

        A payload of a version that the class has not reached counts as an unknown type: in a rolling deploy
        an old worker meets it first.

        Raises: UnknownMessageType; MessageDecodeError naming the field, never its value.
        """
        definition = self._by_name.get(name)
        if definition is None:
            raise UnknownMessageType(name)
        if version == definition.version:
            return definition.decode(payload)
        if version > definition.version:
            raise UnknownMessageType(name, version=version, known=definition.version)
        data = read_object(definition.name, payload)
        chain = self._chain_of(definition)
        return definition.decode(chain.upcast(data, from_version=version, to_version=definition.version))

    def check(self) -> None:
        """Look for gaps in the chains of upcasters. Raises: SettingsError with all of them."""
        definitions = {cls: definition_of(cls) for cls in self._classes}
        problems = [
            gap
            for definition in definitions.values()
            for gap in self._chain_of(definition).gaps(definition.version)
        ]
        known = {
            name
            for definition in definitions.values()
            for name in (definition.name, *definition.renamed_from)
        }
        problems += [
            f"upcaster for {name!r}, which is no registered type"
            for name in sorted(set(self._chains) - known)
        ]
        if problems:
            raise SettingsError("upcasters", problems)

    def _chain_of(self, definition: MessageDefinition) -> Chain:
        """The steps given under any name that the type has or had."""
        chain = Chain(definition.name)
        for name in (definition.name, *definition.renamed_from):
            for step in self._chains[name].steps if name in self._chains else ():
                chain = chain.with_step(step)
        return chain


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
