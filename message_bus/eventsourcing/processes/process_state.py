"""The state of a process: the attributes that its class declares, made JSON and read back.

    class OrderProcess(ProcessManager):
        paid: bool = False                      state
        items: list[str] = []                   state; each process gets a copy of the default
        limit: ClassVar[int] = 3                not state

Pure. What is stored is decoded at once, so that a value that does not fit its annotation is refused while its author is
still there. Called by `process_manager.py`.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import Field
from functools import cached_property, partial
from typing import Any, Final

import msgspec

from message_bus.errors import WiringError
from message_bus.messages import foreign
from message_bus.messages.annotations import own_fields
from message_bus.messages.codec import to_json
from message_bus.messages.misfits import encode_error, misfit_of
from message_bus.messages.repairs import function_around

_MISSING: Final = object()


class ProcessState:
    """The declared attributes of one class, with their defaults. Immutable."""

    def __init__(self, owner: type, names: Collection[str]) -> None:
        self._owner = owner
        self.names = tuple(names)
        self._defaults = {name: getattr(owner, name) for name in names}
        self._homes = {
            name: each for each in reversed(owner.__mro__) for name, _ in own_fields(each) if name in names
        }
        self._hints: dict[str, Any] = {
            name: dict(own_fields(home))[name] for name, home in self._homes.items()
        }
        frame = function_around(owner)
        if frame is not None:  # what only a running function knows is looked up while it runs
            for name, hint in self._hints.items():
                with suppress(NameError):
                    self._hints[name] = self._evaluated(name, hint, frame.f_locals)

    def check(self) -> None:
        """See that the state of a new process can be stored and read. Raises: WiringError naming what cannot."""
        self.encode(self._defaults)

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return these values as JSON would give them back.

        Raises: WiringError naming the attribute that cannot be stored, or does not fit its annotation.
        """
        encoded: dict[str, Any] = {}
        for name in self.names:
            try:
                encoded[name] = msgspec.json.decode(to_json(values[name]))
            except Exception as error:  # noqa: BLE001  (what a value's own functions may raise)
                reason = encode_error(self._owner.__name__, error, name)
                raise WiringError(f"state of process manager {reason} (store plain values)") from None
        self.decode(encoded)
        return encoded

    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of stored data: what it lacks takes its default, what is declared no more is left out.

        Raises: WiringError naming the attribute that does not fit its annotation.
        """
        struct = self._struct
        try:
            found = msgspec.convert(dict(data), struct, dec_hook=foreign.decode, str_keys=True)
        except Exception as error:  # noqa: BLE001  (what __post_init__ of a nested class may raise)
            misfit = misfit_of(error)
            raise WiringError(
                f"state of process manager {self._owner.__name__!r}: {misfit.field!r} does not fit its annotation: "
                f"{misfit.reason} (raise schema_version and override upgrade_state, if the class was changed)"
            ) from None
        return {name: getattr(found, name) for name in self.names}

    def _evaluated(self, name: str, hint: Any, known: Mapping[str, Any] | None = None) -> Any:
        """The type that an annotation means. Other annotations of the class may name what is not there at run time."""
        holder = types.SimpleNamespace(__annotations__={name: hint})
        module = sys.modules.get(self._homes[name].__module__)
        namespace: dict[str, Any] = {} if module is None else vars(module)
        try:
            return typing.get_type_hints(holder, namespace, dict(known or {}), include_extras=True)[name]
        except NameError as error:
            if known is not None:
                raise
            raise WiringError(
                f"state {name!r} of process manager {self._owner.__name__!r}: its annotation names {error.name!r}, which "
                "its module does not have (define it there)"
            ) from None

    @cached_property
    def _struct(self) -> type[msgspec.Struct]:
        hints = {name: self._evaluated(name, hint) for name, hint in self._hints.items()}
        return msgspec.defstruct(
            self._owner.__name__,
            [
                (name, hints[name], msgspec.field(default_factory=partial(deepcopy, default)))
                for name, default in self._defaults.items()
            ],
            kw_only=True,
        )


def state_of(cls: type, base: type, *, settings: Collection[str], problems: list[str]) -> ProcessState:
    """Find what `cls` and what it derives from declare, up to `base`; say in `problems` what is wrong with it.

    `settings`: names of `base` that are no state, annotated or not.
    """
    names: dict[str, None] = {}
    for each in reversed(cls.__mro__):
        if each in base.__mro__:
            continue
        for name, _ in own_fields(each):
            default = getattr(cls, name, _MISSING)
            if name in settings:
                continue
            if hasattr(base, name):
                problems.append(f"{name!r} is no name for state: ProcessManager has it (choose another)")
            elif default is _MISSING:
                problems.append(f"state {name!r} has no default: a new process begins with it (give one)")
            elif isinstance(default, Field):
                problems.append(f"state {name!r}: write the default itself (each process gets a copy of it)")
            else:
                names[name] = None
    return ProcessState(cls, () if problems else tuple(names))
