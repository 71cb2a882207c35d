"""What a process manager's class says, checked at its definition: which messages, of which process, and what state.

Pure; called by `process_manager.py` when a class is made, so that mistakes show at import and not at the first message.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from message_bus.delivery.subscription import Subscription
from message_bus.errors import Reject, SettingsError, names_of
from message_bus.eventsourcing.processes.process_state import ProcessState, state_of
from message_bus.eventsourcing.when import handlers_of
from message_bus.messages.annotations import own_fields
from message_bus.messages.definition import definition_of
from message_bus.messages.finishing import is_message_class, making_of
from message_bus.messages.message import Event, Message

LOGS: Final = ("events", "outbox")
Correlation = str | Callable[[Any], object]
_EVENT_AND_CONTEXT = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """One class of process managers. `calls`: what to call with (process, message, context).

    `declared`: whether the class says which of its events are timeouts; else each of them may be one.
    """

    calls: Mapping[type[Message], Callable[[Any, Any, Any], Any]]
    correlate: Mapping[type[Message], Correlation]
    timeouts: tuple[type[Event], ...]
    declared: bool
    state: ProcessState

    @property
    def types(self) -> tuple[type[Message], ...]:
        """Every message type that is handled, in the order of the class."""
        return tuple(self.calls)

    def key_of(self, message: Message) -> str:
        """The key of the process that a message belongs to.

        Raises: Reject if it has none: no later attempt would find one.
        """
        how = self.correlate[type(message)]
        try:
            value = getattr(message, how) if isinstance(how, str) else how(message)
        except Exception as error:
            raise Reject(
                f"the process that {type(message).__name__!r} belongs to cannot be told: {type(error).__name__}"
            ) from error
        if isinstance(value, Enum):
            value = value.value
        if value is None or value == "":
            raise Reject(
                f"{type(message).__name__!r} belongs to no process: what it is correlated by is empty"
            )
        return str(value)


def plan_of(cls: type, base: type, *, settings: Collection[str]) -> Plan:
    """Read the class. Raises: SettingsError that lists every problem at once."""
    problems: list[str] = []
    handlers = handlers_of(cls)
    correlate: Mapping[type[Message], Correlation] = getattr(cls, "correlate", {})
    declared: Any = getattr(cls, "timeouts", None)
    if isinstance(declared, type):
        problems.append(
            f"timeouts is a class, not a tuple of classes (write timeouts = ({declared.__name__},))"
        )
        declared = (declared,)
    timeouts: tuple[type[Event], ...] = tuple(declared or ())
    problems += [
        f"@when takes {message.__name__!r}, but correlate does not say which process it belongs to "
        f"(add {message.__name__}: <name of a field>)"
        for message in handlers
        if message not in correlate
    ]
    for message, how in correlate.items():
        if isinstance(how, str) and not _has(message, how):
            problems.append(
                f"correlate: {message.__name__!r} has no field {how!r} (name one, or give a function)"
            )
    for timeout in timeouts:
        name = getattr(timeout, "__name__", repr(timeout))
        if not (isinstance(timeout, type) and issubclass(timeout, Event)):  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"timeout {name!r} is no Event: other subscriptions would look for its handler")
        elif timeout not in handlers:
            problems.append(f"timeout {name!r} has no method (mark one with @when({name}))")
    if handlers and set(handlers) <= set(timeouts):
        problems.append("nothing but timeouts is handled, so no process would ever begin (add a @when)")
    calls = {message: _call_of(function, problems) for message, function in handlers.items()}
    state = state_of(cls, base, settings=settings, problems=problems)
    if problems:
        raise SettingsError(f"process manager {cls.__name__!r}", problems)
    if declared is None:
        timeouts = tuple(each for each in handlers if issubclass(each, Event))
    return Plan(
        calls=calls,
        correlate=dict(correlate),
        timeouts=timeouts,
        declared=declared is not None,
        state=state,
    )


def refuse_one_name_twice(cls: type, types: Collection[type[Message]]) -> None:
    """Raise SettingsError if two of these types have the same name in rows."""
    names = [definition_of(each).name for each in types]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SettingsError(
            f"process manager {cls.__name__!r}", [f"two messages are called {names_of(list(twice))}"]
        )


def settings_of(cls: Any, plan: Plan, own: Subscription | None, given: Subscription) -> Subscription:
    """The subscription of a class or an instance; one that is inherited, not `own`, keeps everything but its name.

    Raises: SettingsError if it would save state apart from the checkpoint, or says what the class says.
    """
    problems: list[str] = []
    if given.mode == "concurrent":
        problems.append("mode='concurrent' would save its state apart from the checkpoint (leave it out)")
    if own is not None and own.types is not None:
        problems.append("types= is what its @when methods take (leave it out)")
    if cls.log not in LOGS:
        problems.append(f"log {cls.log!r} is unknown (use {' or '.join(map(repr, LOGS))})")
    if problems:
        raise SettingsError(f"process manager {cls.__name__!r}", problems)
    elsewhere = plan.timeouts if plan.declared and cls.log != "outbox" else ()
    types = tuple(each for each in plan.types if each not in elsewhere)
    name = own.name if own is not None and own.name is not None else cls.name
    return replace(given, name=name, types=types or None)


def _has(message: type[Message], name: str) -> bool:
    """Whether messages of this class have such an attribute, as far as their class says."""
    annotated = {each for base in message.__mro__ for each, _ in own_fields(base)}
    # what a hand-written __init__ sets is not known before there is a message
    by_hand = any(making_of(base).own_init for base in message.__mro__ if is_message_class(base))
    return by_hand or name in annotated or hasattr(message, name)


def _call_of(function: Callable[..., Any], problems: list[str]) -> Callable[[Any, Any, Any], Any]:
    name = getattr(function, "__name__", repr(function))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        problems.append(f"method {name!r} is async: it decides and does no I/O (make it a plain def)")
    elif inspect.isgeneratorfunction(function):
        problems.append(f"method {name!r} is a generator: nothing would run it (use self.send)")
    parameters = inspect.signature(function).parameters.values()
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    required = [each for each in positional[1:] if each.default is each.empty]
    takes_context = len(required) == _EVENT_AND_CONTEXT or any(
        each.name == "context" for each in positional[_EVENT_AND_CONTEXT:]
    )
    if not 1 <= len(required) <= _EVENT_AND_CONTEXT:
        problems.append(f"method {name!r} must take (self, event) or (self, event, context)")
    if takes_context:
        return function
    return lambda process, message, context: function(process, message)
