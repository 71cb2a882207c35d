"""Messages that msgspec alone would put together wrongly, put together here.

msgspec fills a dataclass without calling its `__init__`. Where that would bypass what belongs to the user, a
hand-written
`__init__`, a nested `deserialize()`, functions registered with dataclasses-serialization, it reads a *draft*
instead: a struct with the same fields, checked the same way. `Assembler.build` makes the object from it.
Called by the codec only.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

import msgspec

from message_bus.errors import MessageDecodeError, MessageDefinitionError
from message_bus.messages import foreign
from message_bus.messages.finishing import is_message_class
from message_bus.messages.misfits import Misfit, misfit_of, user_error
from message_bus.messages.shapes import Survey, map_types, overrides


class _StandIn(type):
    """A type that msgspec does not know, so that it asks `dec_hook` for the class that it stands for."""

    stands_for: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.stands_for)


class Plan(NamedTuple):
    """How one class is put together: the draft, the fields its `__init__` asks for, and all of them."""

    draft: type[msgspec.Struct]
    asked_for: tuple[str, ...]
    names: tuple[str, ...]


class Assembler:
    """Puts together the instances of the classes of one survey."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._stand_ins: dict[type, type] = {}
        self._plans: dict[type, Plan] = {}

    def rewrite(self, hint: Any) -> Any:
        """Replace each class in a type that is not msgspec's business."""
        return map_types(hint, lambda leaf: self._stand_in(leaf) if self._found.is_assembled(leaf) else leaf)

    def plan(self, cls: type) -> Plan:
        """Return the plan of a class. Raises: MessageDefinitionError for an `__init__` we cannot call."""
        if cls not in self._plans:
            names = tuple(field.name for field in dataclasses.fields(cls))
            asked_for, required = self._parameters(cls, names)
            hints = {name: self.rewrite(self._found.hints[cls][name]) for name in names}
            draft = msgspec.defstruct(
                cls.__name__,
                [
                    (name, hint) if name in required else (name, hint, msgspec.UNSET)
                    for name, hint in hints.items()
                ],
                kw_only=True,
            )
            self._plans[cls] = Plan(draft, asked_for, names)
        return self._plans[cls]

    def build(self, cls: type, draft: msgspec.Struct) -> Any:
        """Call `cls`, then put back the fields that its `__init__` does not ask for."""
        _, asked_for, names = self._plans[cls]
        values = {name: value for name in names if (value := getattr(draft, name)) is not msgspec.UNSET}
        instance = cls(**{name: values.pop(name) for name in asked_for if name in values})
        for name, value in values.items():
            object.__setattr__(instance, name, value)  # the class may be frozen
        return instance

    def dec_hook(self, expected: type, data: Any) -> Any:
        """Return an instance of the class that `expected` stands for, or of a registered type."""
        if not isinstance(expected, _StandIn):
            return foreign.decode(expected, data)
        cls = expected.stands_for
        if cls not in self._found.hints:
            return foreign.decode(cls, data)
        try:
            if is_message_class(cls) and overrides(cls, "deserialize"):
                nested: Any = cls
                return nested.deserialize(data)
            draft = msgspec.convert(data, self.plan(cls).draft, dec_hook=self.dec_hook, str_keys=True)
            return self.build(cls, draft)
        except MessageDecodeError as error:
            raise Misfit(None, str(error).partition(": ")[2]) from error.__cause__
        except Exception as error:  # noqa: BLE001  (whatever a user's __init__ or deserialize() raises)
            raise misfit_of(error) from user_error(error)

    def _stand_in(self, cls: type) -> type:
        if cls not in self._stand_ins:
            self._stand_ins[cls] = _StandIn(cls.__name__, (), {"stands_for": cls})
        return self._stand_ins[cls]

    def _parameters(self, cls: type, names: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
        """Which fields `__init__` takes, and which of them it cannot do without."""
        asked_for: list[str] = []
        required: set[str] = set()
        for name, parameter in list(inspect.signature(cls).parameters.items()):
            needed = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_KEYWORD:
                asked_for.extend(other for other in names if other not in asked_for)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                continue
            elif parameter.kind is not parameter.POSITIONAL_ONLY and name in names:
                asked_for.append(name)
                required.update({name} if needed else ())
            elif needed:
                what = "is positional-only" if name in names else f"is no field of {cls.__name__!r}"
                raise MessageDefinitionError(
                    self._found.root.__name__,
                    f"parameter {name!r} of __init__ {what}, so that decoding could not give it "
                    "(make it a field, or override serialize() and deserialize())",
                    field=name,
                )
        return tuple(asked_for), frozenset(required)
