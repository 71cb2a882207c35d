"""How a handler is called: decided once, when it is registered, from its signature.

A handler is an instance of one of the base classes, any object with a `handle` method, or a plain callable. It gets the
message, then the context if it takes one, then whatever else was given to `handle`. The context goes to the parameter
called `context`; else to the second positional parameter if that has no default; else to `**kwargs` as `context`; a
callable with none of these takes no context.

What can never be called like this is refused when it is registered. The line is drawn at what extra arguments may still
supply: `def h(command, context, extra)` is fine, for `bus.handle(command, 1)`, and so is a required keyword.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from message_bus.bus.context import Context
from message_bus.errors import SettingsError
from message_bus.event_handlers.base import AsyncEventHandlerABC, EventHandlerABC


class Handles(Protocol):
    """Anything with a `handle` method."""

    @property
    def handle(self) -> Callable[..., Any]:
        """Takes the message, and the context if it wants it."""
        ...


M_contra = TypeVar("M_contra", contravariant=True)


class Function(Protocol[M_contra]):
    """Anything that is called with a message first."""

    def __call__(self, message: M_contra, /, *args: Any, **kwargs: Any) -> Any:
        """Take the message, and whatever else it wants."""
        ...


M = TypeVar("M")
# The two plain forms are said again for lambdas, whose parameters are not inferred from a protocol.
Handler: TypeAlias = Handles | Callable[[M], Any] | Callable[[M, Context], Any] | Function[M]
# In a list mypy would refuse some callables that fit, so there none is held against the event's class.
EventHandlers: TypeAlias = Sequence[
    Handles | Callable[[M], Any] | Callable[[M, Context], Any] | Callable[..., Any]
]

Call: TypeAlias = Callable[..., Any]
Taking = Literal["second", "keyword", "nowhere"]


def target_of(handler: Any) -> Call:
    """The function that is called for `handler`.

    Raises: SettingsError if it is nothing that can be called, a class where its instance was meant, or nothing that a
    message can be given to.
    """
    method = getattr(handler, "handle", None)
    if isinstance(handler, type):
        raise SettingsError(
            f"handler {handler.__name__!r}", ["is a class (register an instance of it, or a function)"]
        )
    target = method if callable(method) else handler
    if not callable(target):
        raise SettingsError(
            f"handler of type {type(handler).__name__!r}", ["is not callable and has no handle() method"]
        )
    direct = _without_idle_hooks(handler)
    _refuse_misfit(handler, direct or target)
    return direct or target


def _refuse_misfit(handler: Any, target: Call) -> None:
    """Raise SettingsError if `target` could not take the message (and context), whatever else is given to `handle`."""
    given: tuple[Any, ...] = (None, None)
    named: dict[str, Any] = {}
    if is_base_handle(handler):
        target = handler._handle  # which the handle() of the base class calls with both
    else:
        match context_parameter(target):
            case "keyword":
                given, named = (None,), {"context": None}
            case "nowhere":
                given = (None,)
            case "second":
                pass
    try:  # a decorator may take what the function behind it does not
        signature = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind_partial(*given, **named)
    except TypeError:
        raise SettingsError(
            f"handler {handler_name(handler)!r}",
            [
                (
                    f"takes ({', '.join(signature.parameters)}), but is called with (message, context) "
                    "(the first parameter gets the message, and a second one the context)"
                )
            ],
        ) from None


def is_base_handle(handler: Any) -> bool:
    """Whether it derives from one of the base classes of event handlers, and leaves `handle` to that."""
    return any(
        isinstance(handler, base) and type(handler).handle is base.handle
        for base in (EventHandlerABC, AsyncEventHandlerABC)
    )


def _without_idle_hooks(handler: Any) -> Call | None:
    """The `_handle` of an event handler whose `handle` would only add two empty hooks to it."""
    for base in (EventHandlerABC, AsyncEventHandlerABC):
        if isinstance(handler, base) and all(
            getattr(type(handler), name) is getattr(base, name)
            for name in ("handle", "_before_handle", "_after_handle")
        ):
            direct: Call = handler._handle
            return direct if context_parameter(direct) == "second" else None
    return None


def context_parameter(target: Call) -> Taking:
    """Where `target` takes the context."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return "nowhere"
    kinds = inspect.Parameter
    positional = [
        each for each in parameters if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) > 1 and positional[1].name == "context":
        return "second"
    if any(
        each.name == "context" and each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        for each in parameters
    ):
        return "keyword"
    if len(positional) > 1 and positional[1].default is kinds.empty:
        return "second"
    return "keyword" if any(each.kind is kinds.VAR_KEYWORD for each in parameters) else "nowhere"


def call_of(target: Call) -> Call:
    """`call(message, context, *args, **kwargs)` for `target`."""
    match context_parameter(target):
        case "second":
            return target
        case "keyword":
            return lambda message, context, *args, **kwargs: target(message, *args, context=context, **kwargs)
        case "nowhere":
            return lambda message, context, *args, **kwargs: target(message, *args, **kwargs)


def short_call_of(target: Call) -> Call:
    """`call(message, context)` for `target`: the same without anything else, and so cheaper."""
    match context_parameter(target):
        case "second":
            return target
        case "keyword":
            return lambda message, context: target(message, context=context)
        case "nowhere":
            return lambda message, context: target(message)


def is_async(target: Any) -> bool:
    """Calling it does nothing yet: it makes a coroutine or an async generator."""
    functions = [target, getattr(target, "__call__", None)]  # noqa: B004  (an object with `async def __call__`)
    owner = getattr(target, "__self__", None)
    if isinstance(owner, EventHandlerABC):
        functions += [owner._handle, owner._before_handle, owner._after_handle]
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in functions)


def handler_name(handler: Any) -> str:
    """What a handler is called in logs and errors."""
    name: str = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    return name
