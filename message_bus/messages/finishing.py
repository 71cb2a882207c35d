"""Making a dataclass of a message class, at the last moment at which it can be told that nobody else will.

`class ProcessOrder(Command): order_id: int` has no decorator; but when `__init_subclass__` runs, a
`@dataclass(frozen=True)` may still be about to, and `dataclass` never replaces an `__init__` that it finds.
So a class stays unfinished until it is first needed:

    defined ──► unfinished ──(first instance, fields(), definition_of(), a subclass)──► finished
                    └─────────────────(@dataclass)─────────────────────────────────────────▲

Until then `Message.__init__`, or a *guard* in front of an inherited `__init__`, waits for the first
instance. Afterwards guards are taken away: an instance costs what an instance of any dataclass costs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from message_bus.errors import MessageDefinitionError, NotAMessage, SettingsError
from message_bus.messages.annotations import own_fields, refuse_forgotten_annotations
from message_bus.messages.repairs import point_super_at, resolve_local_annotations

_FIELDS = "__dataclass_fields__"
_MAKING = "__message_making__"
_one_at_a_time = threading.RLock()

OBJECT_GIVEN = "was given as an object where its class is wanted (give the class, not an instance)"


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Making:
    """What is known of one message class: its options, and how far its making has come."""

    name: str | None
    version: int
    key: str | Callable[[Any], object] | None
    renamed_from: tuple[str, ...]
    frozen: bool
    kw_only: bool
    own_init: bool = False
    finished: bool = False
    waiting: list[weakref.ref[type]] = dataclasses.field(default_factory=list[weakref.ref[type]])
    codec: Any = None
    definition: Any = None

    def problems(self) -> list[str]:
        """Everything that is wrong about the options."""
        found: list[str] = []
        names: list[tuple[str, Any]] = [("renamed_from", name) for name in self.renamed_from]
        if self.name is not None:
            names.insert(0, ("name", self.name))
        for option, name in names:
            if not isinstance(name, str) or not name:
                found.append(f"{option}={name!r} is not a name (use a text that is not empty)")
        version: Any = self.version
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            found.append(f"version={version!r} is not a version (count from 1)")
        key: Any = self.key
        if key is not None and not callable(key) and not (isinstance(key, str) and key):
            found.append("key is neither the name of a field nor a function of the message")
        return found


def is_message_class(cls: object) -> bool:
    """Is this a class that derives from `Message` (and not `Message`, `Command` or `Event` itself)?"""
    return isinstance(cls, type) and _MAKING in cls.__dict__


def derived_from(cls: type[Any]) -> Iterator[type[Any]]:
    """The message classes that derive from this one, so far; those before these that derive from them.

    A class whose definition was refused is none, though Python knows it until its memory is freed.
    """
    for each in cls.__subclasses__():
        if is_message_class(each):
            yield each
        yield from derived_from(each)


def making_of(cls: type) -> Making:
    """The making of a message class. Raises: NotAMessage for all else, and for `Command` and `Event`."""
    if not is_message_class(cls):
        raise NotAMessage(cls, OBJECT_GIVEN if is_message_class(type(cls)) else None)
    making: Making = cls.__dict__[_MAKING]
    return making


def adopt(cls: type, making: Making) -> None:
    """Prepare a class that was just defined, or made again by `dataclass(slots=True)`."""
    earlier = cls.__dict__.get(_MAKING)
    if earlier is not None:
        making = dataclasses.replace(earlier, finished=False, waiting=[], codec=None, definition=None)
    elif problems := making.problems():
        raise SettingsError(f"message class {cls.__name__!r}", problems)
    else:
        making.own_init = "__init__" in cls.__dict__
        resolve_local_annotations(cls)
        if any(own_fields(cls)) or not making.own_init:  # else its fields are what __init__ asks for
            refuse_forgotten_annotations(cls)
    setattr(cls, _MAKING, making)
    if earlier is not None:
        _unguard(cls, at_once=True)
        point_super_at(cls)
    else:
        setattr(cls, _FIELDS, _LazyFields())
    if making.own_init:
        _guard(cls)
    elif earlier is None:
        # What cls() would inherit is made for another class: let that wait until this one is finished.
        for base in _message_bases(cls):
            making_of(base).waiting.append(weakref.ref(cls))
            _guard(base)


def finish(cls: type) -> None:
    """Make a dataclass of a message class that is not one yet. Idempotent; safe to call from any thread.

    Raises: MessageDefinitionError if `dataclass` refuses it.
    """
    making = making_of(cls)
    if making.finished:
        return
    with _one_at_a_time:
        if making.finished:
            return
        if not _is_dataclass(cls):
            try:
                _make_dataclass(cls, making)
            except (TypeError, ValueError) as error:
                setattr(cls, _FIELDS, _LazyFields())  # dataclass may have come half-way
                raise MessageDefinitionError(
                    cls.__name__, f"it cannot become a dataclass: {error}"
                ) from error
        making.finished = True
        if _still_waiting(making):
            _guard(cls)
        for base in _message_bases(cls):
            _unguard(base)


def initialise(message: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What `Message.__init__` does: finish the class of `message`, then call the `__init__` it has now."""
    if not _redirected(message, args, kwargs) and (args or kwargs):
        raise TypeError(f"{type(message).__name__}() takes no arguments")


def resurrect(cls: type, *args: Any) -> Any:
    """Make the bare instance that pickle and copy fill."""
    finish(cls)
    return cls.__new__(cls, *args)


def _make_dataclass(cls: type, making: Making) -> None:
    declared = dict(own_fields(cls))
    if making.own_init and not declared:
        cls.__annotations__ = _parameters(cls)
    provider = next(base for base in cls.__mro__ if "__init__" in base.__dict__)
    inherited = provider.__dict__.get(_MAKING)
    by_hand = inherited is not None and inherited.own_init
    dataclasses.dataclass(
        # A class without fields of its own keeps a hand-written __init__ that it inherits.
        init=bool(declared) or not by_hand,
        frozen=making.frozen or any(_is_frozen(base) for base in cls.__mro__[1:]),
        kw_only=making.kw_only,
    )(cls)


def _message_bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if is_message_class(base)]


def _is_dataclass(cls: type) -> bool:
    return type(cls.__dict__[_FIELDS]) is dict


def _is_frozen(base: type) -> bool:
    making = base.__dict__.get(_MAKING)
    return (making is not None and making.frozen) or getattr(
        base.__dict__.get("__dataclass_params__"), "frozen", False
    )


def _has_fields(cls: type) -> bool:
    for base in cls.__mro__:
        making = base.__dict__.get(_MAKING)
        if making is None:
            if base.__dict__.get(_FIELDS):
                return True
        elif making.own_init or any(own_fields(base)):
            return True
    return False


def _parameters(cls: type) -> dict[str, Any]:
    """The fields of a class that declares none: what its `__init__` asks for, under the same names."""
    init = inspect.unwrap(cls.__dict__["__init__"])
    return {
        name: Any if parameter.annotation is parameter.empty else parameter.annotation
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


class _LazyFields:
    """`__dataclass_fields__` of an unfinished class: asking for it finishes the class.

    A class without any field says that it has none: it may be the plain base of a frozen dataclass, which
    could not be derived from it once it had become a dataclass itself.
    """

    def __get__(self, instance: object, owner: type) -> dict[str, dataclasses.Field[Any]]:
        if not _has_fields(owner):
            raise AttributeError(f"{owner.__name__!r} has no fields")
        finish(owner)
        fields: dict[str, dataclasses.Field[Any]] = owner.__dict__[_FIELDS]
        return fields


# --- guards: an __init__ that waits for the class of its first instance
# ------------------------------------------


def _guard(owner: type) -> None:
    original = owner.__dict__.get("__init__")
    if original is None or hasattr(original, "__guards__"):
        return

    @functools.wraps(original)
    def guard(self: Any, /, *args: Any, **kwargs: Any) -> None:
        redirected = _redirected(self, args, kwargs)
        _unguard(owner)
        if not redirected:
            original(self, *args, **kwargs)

    guard.__guards__ = original  # type: ignore[attr-defined]
    owner.__init__ = guard  # type: ignore[misc]


def _unguard(owner: type, *, at_once: bool = False) -> None:
    with _one_at_a_time:
        original = getattr(owner.__dict__.get("__init__"), "__guards__", None)
        if original is not None and (at_once or not _still_waiting(making_of(owner))):
            owner.__init__ = original  # type: ignore[misc]


def _still_waiting(making: Making) -> bool:
    making.waiting = [ref for ref in making.waiting if (cls := ref()) is not None and not _is_dataclass(cls)]
    return not making.finished or bool(making.waiting)


def _redirected(message: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Finish the class of `message`; if its own `__init__` should have been called instead, call that."""
    cls: type = message.__class__
    making = making_of(cls)
    was_finished = making.finished
    finish(cls)
    if making.own_init or "__init__" not in cls.__dict__:
        return False
    # A thread may come here with a class that another thread has finished meanwhile: then nothing is set
    # yet. (If something is, this is a `super().__init__()` of a `__post_init__`.)
    if was_finished and (not cls.__dict__[_FIELDS] or not _is_bare(message)):
        return False
    init = cls.__dict__["__init__"]
    getattr(init, "__guards__", init)(message, *args, **kwargs)
    return True


def _is_bare(message: Any) -> bool:
    if getattr(message, "__dict__", None):
        return False
    slots = (slot for base in type(message).__mro__ for slot in base.__dict__.get("__slots__", ()))
    return not any(hasattr(message, slot) for slot in slots if slot not in ("__dict__", "__weakref__"))
