"""Old payloads become new ones: a chain of functions over dicts, applied before a payload is decoded.

A step leads from one version of a message type to a later one. Pure: a payload is copied before the first
step, and what a step returns is the next one's input. The registry keeps one chain per type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from message_bus.errors import MessageDecodeError, SettingsError

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """One upcaster: from `from_version` to `to_version`, which may skip some."""

    from_version: int
    to_version: int
    upcaster: Upcaster


@dataclass(frozen=True, slots=True)
class Chain:
    """The upcasters of one message type, at most one leaving each version."""

    name: str
    steps: tuple[Step, ...] = ()

    def with_step(self, step: Step) -> Chain:
        """Return the chain with one more step. Raises: SettingsError if it leads nowhere or is ambiguous."""
        problems: list[str] = []
        if step.from_version < 1:
            problems.append(f"from_version={step.from_version} is not a version (count from 1)")
        if step.to_version <= step.from_version:
            problems.append(f"to_version={step.to_version} is not after from_version={step.from_version}")
        if any(known.from_version == step.from_version for known in self.steps):
            problems.append(f"version {step.from_version} has an upcaster already (one leaves each version)")
        if problems:
            raise SettingsError(f"upcaster for {self.name!r}", problems)
        return Chain(self.name, (*self.steps, step))

    def gaps(self, version: int) -> list[str]:
        """Say which old versions do not lead to `version`: none if every payload ever written can be read."""
        leaving = {step.from_version: step.to_version for step in self.steps}
        found = [
            f"{self.name!r}: an upcaster leads to version {step.to_version}, beyond {version} of the class"
            for step in self.steps
            if step.to_version > version
        ]
        starts = sorted({1, *leaving, *leaving.values()})
        missing = [start for start in starts if start < version and start not in leaving]
        return found + [
            f"{self.name!r}: nothing leads from version {start} on to {version} (add an upcaster)"
            for start in missing
        ]

    def upcast(self, payload: Mapping[str, Any], *, from_version: int, to_version: int) -> dict[str, Any]:
        """Return the payload as `to_version` would have written it; `payload` itself is left as it is.

        Raises: MessageDecodeError if a step is missing or fails.
        """
        leaving = {step.from_version: step for step in self.steps}
        try:
            current: dict[str, Any] = copy.deepcopy(dict(payload))
        except RecursionError:
            raise MessageDecodeError(self.name, "the payload is nested too deeply to be upcast") from None
        version = from_version
        while version < to_version:
            step = leaving.get(version)
            if step is None or step.to_version > to_version:
                raise MessageDecodeError(
                    self.name,
                    f"no upcaster leads from version {version} to {to_version} (add one to the registry)",
                )
            current = self._apply(step, current)
            version = step.to_version
        return current

    def _apply(self, step: Step, payload: dict[str, Any]) -> dict[str, Any]:
        hop = f"the upcaster from version {step.from_version} to {step.to_version}"
        try:
            result: Any = step.upcaster(payload)
        except Exception as error:
            raise MessageDecodeError(self.name, f"{hop} raised {type(error).__name__}") from error
        if not isinstance(result, dict):
            raise MessageDecodeError(
                self.name, f"{hop} returned {type(result).__name__} (return the new payload)"
            )
        upcast: dict[str, Any] = result
        return upcast
