"""How an application is wired, as plain values: what `describe` returns, and the command line prints. Pure.

Nothing here is read from a database: what a subscription has done, and whether it is idle or paused, says `status`.
`wiring.py` makes them (`subscriptions.py`, `handlers.py`), `words.py` says what
is guaranteed, `warnings.py` what is risky, `diagram.py` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["command", "event", "query"]


@dataclass(frozen=True, kw_only=True)
class HandlerDescription:
    """A handler. `name`: as in logs; `path`: where it is defined. `in_thread`: an AsyncMessageBus runs it in a thread."""

    name: str
    path: str
    is_async: bool = False
    in_thread: bool = False


@dataclass(frozen=True, kw_only=True)
class MessageDescription:
    """A message type that the bus knows. `name`: in rows; `path`: of its class.

    `key`: the field (or `function()`) that orders it, None for nothing. `upcasters`: as pairs of versions. `handlers`: those
    on the bus itself, called by `bus.handle`, and by subscriptions that dispatch.
    """

    name: str
    path: str
    kind: Kind
    version: int
    key: str | None
    renamed_from: tuple[str, ...] = ()
    upcasters: tuple[tuple[int, int], ...] = ()
    handlers: tuple[HandlerDescription, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a subscription. `value`: plain; spans in seconds. `source`: "default", "set", or whose default it is."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """Something that holds for a subscription, in words. `rules`: the numbers under which docs/guarantees.md has it."""

    text: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a subscription calls with one message type. `message` is None for whatever comes."""

    message: str | None
    handlers: tuple[HandlerDescription, ...]


@dataclass(frozen=True, kw_only=True)
class SubscriptionDescription:
    """A subscription of this application.

    `kind`: "dispatch" (the bus's own handlers), "projection", "process manager", "timeouts" (of one), or "outbox handler".
    `handler`: its class. `log`: "outbox" or "events". `types`: names of what it reads; None for everything.
    """

    name: str
    kind: Literal["dispatch", "projection", "process manager", "timeouts", "outbox handler"]
    handler: str
    log: str
    mode: Literal["transactional", "concurrent"]
    partitions: int
    concurrency: int
    types: tuple[str, ...] | None
    deliveries: tuple[Delivery, ...]
    settings: tuple[Setting, ...]
    guarantees: tuple[Guarantee, ...]

    def setting(self, name: str) -> Any:
        """Return the value of the setting with this name."""
        return next(each.value for each in self.settings if each.name == name)


@dataclass(frozen=True, kw_only=True)
class StepDescription:
    """A step of a saga. `compensation`: what undoes it, None for nothing. `transactional`: its effects happen exactly once.

    `max_attempts`: of the action, before the saga is undone.
    """

    name: str
    action: str
    compensation: str | None
    transactional: bool
    max_attempts: int


@dataclass(frozen=True, kw_only=True)
class SagaDescription:
    """A saga, and its steps in order."""

    name: str
    steps: tuple[StepDescription, ...]


@dataclass(frozen=True, kw_only=True)
class WiringWarning:
    """Something about the wiring. A "warning" is risky, a "note" good to know.

    `code`: for programs. `subject`: the subscription, message or handler that is meant. `remedy`: what to do.
    """

    code: str
    severity: Literal["warning", "note"]
    subject: str
    text: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """An application: its bus, messages, subscriptions and sagas, and what is risky about them.

    `messages`: sorted by kind and name, queries included. `middleware`: outermost first. `is_async`: an AsyncMessageBus.
    """

    bus: str
    is_async: bool
    messages: tuple[MessageDescription, ...]
    middleware: tuple[str, ...]
    observers: tuple[str, ...]
    subscriptions: tuple[SubscriptionDescription, ...]
    sagas: tuple[SagaDescription, ...]
    warnings: tuple[WiringWarning, ...]

    @property
    def is_risky(self) -> bool:
        """Whether there is a warning, and not just notes."""
        return any(each.severity == "warning" for each in self.warnings)
