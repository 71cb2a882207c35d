"""The base classes of messages: `Message`, `Command`, `Event`, `Query`.

A message is a dataclass. Deriving is enough; decorating with `@dataclass(...)` works too, and so does a hand-written
`__init__`. What makes an undecorated class a dataclass lives in `finishing.py`, how it becomes JSON in
`codec.py`; this module holds only what users derive from. Nothing here is paid per instance.
"""

from __future__ import annotations

import copyreg
import dataclasses
import typing
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Self, dataclass_transform

from message_bus.errors import SettingsError, names_of
from message_bus.messages.codec import codec_of
from message_bus.messages.finishing import Making, adopt, finish, initialise, resurrect

Kind = Literal["COMMAND", "EVENT", "QUERY"]

STORED: Final = "_stored_as"
"""The attribute in which a loaded event keeps the row it came from; with a `_`, so that it is never encoded."""

_NOTHING: Final[dict[str, Any]] = {}


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # its default spares strict users a type argument

    from message_bus.messages.recorded import RecordedEvent

    R_co = TypeVar("R_co", covariant=True, default=Any)

    @dataclass_transform(field_specifiers=(dataclasses.field,))
    class _MessageType(ABCMeta):
        """For type checkers alone: a class that names it is neither frozen nor not, so both may derive from it."""

        def __new__(  # pyright looks here for the class keywords, not at __init_subclass__
            mcls,
            cls_name: str,
            bases: tuple[type, ...],
            namespace: dict[str, Any],
            /,
            *,
            name: str | None = None,
            version: int = 1,
            key: str | Callable[[Any], object] | None = None,
            renamed_from: str | Sequence[str] = (),
            frozen: bool = False,
            kw_only: bool = False,
        ) -> Any: ...

else:
    R_co = typing.TypeVar("R_co", covariant=True)
    _MessageType = type


class _EmptyPostInit:
    """An empty `__post_init__` that `super()` finds, but `dataclass` and msgspec do not.

    Both look it up on the class and would call it for every instance; with this only
    `super().__post_init__()` pays.
    """

    def __get__(self, instance: object, owner: type) -> Callable[..., None]:
        if instance is None and not _is_base(owner):
            raise AttributeError(f"{owner.__name__!r} has no __post_init__ of its own")
        return lambda *_: None


def _is_base(cls: type) -> bool:
    return cls.__dict__.get("__message_making__") is None


class _Stored:
    """Gives what is known of an event that a store has loaded. Not a data descriptor: a field of its name hides it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        stored = None if instance is None else getattr(instance, "__dict__", _NOTHING).get(STORED)
        if stored is None:  # `dataclass` asks the class, too: is there a default?
            raise AttributeError(
                f"{owner.__name__!r} has no {self._name!r} (only events that a store has loaded have one, and not those "
                "of classes with slots: see RecordedEvent)"
            )
        envelope = stored.envelope_of(instance)
        return envelope if self._name == "envelope" else getattr(envelope, self._name)


class Message(metaclass=_MessageType):
    """The base of everything that a bus carries; derive from `Command`, `Event` or `Query`.

    A derived class is a dataclass, with or without the decorator. Options are class keywords:

    `name`: what rows and brokers call the type (default: the class name).
    `version`: the version of its payload, from 1; older payloads pass through the registry's upcasters.
    `key`: the field (or property, or function of the message) whose value orders messages (G3); inherited. Whether
    there is such a field is looked up when a bus meets the class: one that derives from it may bring the field.
    `renamed_from`: names that the type had before.
    `frozen`, `kw_only`: as in `dataclass`, for classes without the decorator; `frozen` is inherited.

    Raises: SettingsError at the class statement, with all that is wrong about the options; MessageDefinitionError for
    a plain value without annotation, which would be no field.
    """

    __slots__ = ()
    __message_base__: ClassVar = True

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

        def __post_init__(self) -> None:
            """Do nothing; here so that `super().__post_init__()` always works."""
    else:
        __post_init__ = _EmptyPostInit()

        def __init__(self, *args, **kwargs):
            # Reached only while a class is unfinished (once), or by a hand-written `super().__init__()`.
            initialise(self, args, kwargs)

        def __eq__(self, other):
            # Reached while a class is being finished (`dataclass` sets __init__ first, so another thread may
            # already have instances) and in classes that asked for eq=False.
            finish(type(self))
            equals = type(self).__eq__
            return NotImplemented if equals is Message.__eq__ else equals(self, other)

        __hash__ = object.__hash__

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        key: str | Callable[[Any], object] | None = None,
        renamed_from: str | Sequence[str] = (),
        frozen: bool = False,
        kw_only: bool = False,
        **options: Any,
    ) -> None:
        try:
            super().__init_subclass__(**options)
        except TypeError as error:
            if not options:
                raise
            problem = (
                f"unknown option {names_of(options)} (name, version, key, renamed_from, frozen, kw_only)"
            )
            raise SettingsError(f"message class {cls.__name__!r}", [problem]) from error
        if "__message_kind__" in cls.__dict__:
            return
        making = Making(
            name=name,
            version=version,
            key=key,
            renamed_from=(renamed_from,) if isinstance(renamed_from, str) else tuple(renamed_from),
            frozen=frozen,
            kw_only=kw_only,
        )
        adopt(cls, making)

    def serialize(self) -> dict[str, Any]:
        """Return the fields as a dict, ready for JSON. Override with `super()` to store something else.

        Raises: InvalidMessage naming the field that cannot be encoded.
        """
        return codec_of(type(self)).serialize(self)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """Return the message that `serialize` made `data` of. Override with `super()` to accept more.

        Keys that are no fields are ignored; missing ones take the field's default.

        Raises: MessageDecodeError naming the field that is missing or does not fit, never its value.
        """
        message: Self = codec_of(cls).deserialize(data)
        return message

    def __reduce_ex__(self, protocol: Any) -> Any:
        # An unpickled message may be the first of its class in a process: its class must be finished, too.
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (resurrect, *reduced[1:])
        return reduced


class Command(Message, metaclass=_MessageType):
    """An order to do something: exactly one handler."""

    __slots__ = ()
    __message_kind__: ClassVar[Kind] = "COMMAND"


class Event(Message, metaclass=_MessageType):
    """Something that has happened: any number of handlers.

    One that a store has loaded offers `.envelope` (a RecordedEvent), `.id` and `.timestamp`, unless it has a field of
    that name or slots.
    """

    __slots__ = ()
    __message_kind__: ClassVar[Kind] = "EVENT"

    if (
        TYPE_CHECKING
    ):  # of `id` and `timestamp` type checkers are told nothing: many events have fields called so

        @property
        def envelope(self) -> RecordedEvent:
            """Where, when and under which id the event was recorded. Raises: AttributeError if it was not loaded."""
            ...
    else:
        envelope = _Stored()
        id = _Stored()
        timestamp = _Stored()


class Query(Message, Generic[R_co], metaclass=_MessageType):
    """A question: exactly one handler, and its result is the answer; ask it with `bus.ask(query)`.

    `class GetOrder(Query[OrderView])` tells type checkers what the answer is; `class GetOrder(Query)` leaves it open.
    Somebody waits for the answer, so a query is neither emitted nor put into an outbox.
    """

    __slots__ = ()
    __message_kind__: ClassVar[Kind] = "QUERY"


__all__ = ["Command", "Event", "Kind", "Message", "Query"]
