"""What is risky about a wiring, as far as it can be known without running anything. Pure.

Whether a handler has effects outside of the database, or blocks an event loop, cannot be known: nothing is said of it. A
"warning" is something that most likely nobody wants; a "note" is something that one should have decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, Literal

from message_bus.admin.description.description import (
    MessageDescription,
    SubscriptionDescription,
    WiringWarning,
)

_SHOWN: Final = 5


def warnings_of(
    messages: Sequence[MessageDescription],
    subscriptions: Sequence[SubscriptionDescription],
    *,
    is_async: bool,
    clashes: Sequence[tuple[str, str, str]],
    gaps: Sequence[str],
) -> list[WiringWarning]:
    """Say what is risky, warnings first. `clashes`: (name, path, other path); `gaps`: of upcasters, in words."""
    found = [
        *_of_messages(messages, subscriptions),
        *_of_registries(clashes, gaps),
        *(warning for each in subscriptions for warning in _of_subscription(each, messages)),
        *_of_all(subscriptions),
        *_of_loop(messages, is_async=is_async),
    ]
    return sorted(found, key=lambda each: each.severity == "note")


def _warning(code: str, subject: str, text: str, remedy: str) -> WiringWarning:
    return WiringWarning(code=code, severity="warning", subject=subject, text=text, remedy=remedy)


def _note(code: str, subject: str, text: str, remedy: str) -> WiringWarning:
    return WiringWarning(code=code, severity="note", subject=subject, text=text, remedy=remedy)


def _of_messages(
    messages: Sequence[MessageDescription], subscriptions: Sequence[SubscriptionDescription]
) -> Iterator[WiringWarning]:
    dispatching = [each for each in subscriptions if each.kind == "dispatch"]
    handled = {
        delivery.message
        for each in subscriptions
        if each.kind != "outbox handler"
        for delivery in each.deliveries
    }
    for each in messages:
        if each.kind == "query" or each.handlers or each.name in handled:
            continue
        readers = [other for other in dispatching if other.types is None or each.name in other.types]
        if not readers:
            continue
        if each.kind == "command":
            yield _warning(
                "command-without-handler",
                each.name,
                f"command {each.name!r} is known, but nobody handles it here: one that comes out of the outbox fails until it "
                "is a dead letter",
                "give it a handler with bus.set_command_handler(), or let the subscription read other types",
            )
        elif not any(other.kind == "outbox handler" for other in subscriptions):
            yield _note(
                "event-without-handler",
                each.name,
                f"event {each.name!r} is known, but nobody handles it here: it is passed over and counted",
                "give it a handler, if one was forgotten",
            )
    if subscriptions and not dispatching and any(each.handlers for each in messages if each.kind != "query"):
        yield _note(
            "handlers-not-dispatched",
            "bus",
            "the bus has handlers, but no subscription that runs them: they are called by bus.handle() only",
            "add a DispatchOutboxHandler to set_outbox_handlers(), if messages of the outbox are meant for them",
        )


def _of_registries(clashes: Sequence[tuple[str, str, str]], gaps: Sequence[str]) -> Iterator[WiringWarning]:
    for name, path, other in clashes:
        yield _warning(
            "name-clash",
            name,
            f"the name {name!r} means {path} in one place and {other} in another: each would read the rows of both",
            "give one of them another name: class ...(Event, name=...)",
        )
    for gap in gaps:
        text, _, remedy = gap.removesuffix(")").partition(" (")
        yield _warning(
            "upcaster-missing",
            text.split("'")[1] if "'" in text else "upcasters",
            text,
            remedy or "register the type, or take the upcaster out",
        )


def _of_subscription(
    it: SubscriptionDescription, messages: Sequence[MessageDescription]
) -> Iterator[WiringWarning]:
    yield from _of_numbers(it)
    yield from _of_failing(it, messages)
    yield from _of_name(it)
    yield from _of_types(it, messages)
    for delivery in it.deliveries:
        if it.kind == "dispatch" and len(delivery.handlers) > 1:
            yield _note(
                "several-handlers",
                f"{it.name}: {delivery.message}",
                f"{len(delivery.handlers)} handlers of {delivery.message!r} are one unit in {it.name!r}: if one fails, all are "
                "tried again, and what they did outside of the database happens again",
                "give one with outside effects a subscription of its own: DispatchOutboxHandler(handlers=...)",
            )


def _of_numbers(it: SubscriptionDescription) -> Iterator[WiringWarning]:
    shared = it.setting("messages_per_commit")
    if it.mode == "transactional" and it.concurrency > 1:
        yield _warning(
            "concurrency-ignored",
            it.name,
            f"{it.name!r} has concurrency={it.concurrency}, which has no meaning in transactional mode",
            f"use partitions={it.concurrency}, or mode='concurrent'",
        )
    if shared > 1 and it.mode == "concurrent":
        yield _warning(
            "messages-per-commit-ignored",
            it.name,
            f"{it.name!r} has messages_per_commit={shared}, which has no meaning in concurrent mode",
            "use fetch_size, or mode='transactional'",
        )
    elif shared > 1 and it.kind in ("dispatch", "outbox handler"):
        count = len({each.path for delivery in it.deliveries for each in delivery.handlers})
        whose = "its handler" if count == 1 else f"all of its {count} handlers"
        yield _warning(
            "shared-commit",
            it.name,
            f"up to {shared} messages share a commit in {it.name!r}: that is right only if {whose} just write SQL; outside "
            "effects of the whole batch repeat, and locks, SET LOCAL and loaded objects reach the next message",
            "use messages_per_commit=1, or a subscription of its own for handlers that do anything else",
        )


def _of_failing(
    it: SubscriptionDescription, messages: Sequence[MessageDescription]
) -> Iterator[WiringWarning]:
    if it.setting("max_attempts") == 1 or it.setting("backoff") == "NoRetry()":
        yield _warning(
            "no-retry",
            it.name,
            f"in {it.name!r} the first failure makes a dead letter, whatever its cause",
            "allow more attempts: max_attempts=20",
        )
    if it.setting("handler_timeout") is None:
        yield _warning(
            "no-time-limit",
            it.name,
            f"in {it.name!r} a handler that hangs is waited for without end, and its partition stands still",
            "set a handler_timeout that no handler needs: timedelta(minutes=5)",
        )
    without_key = _without_key(it, messages)
    if without_key and it.setting("on_dead_letter") == "hold":
        yield _warning(
            "hold-without-key",
            it.name,
            f"{it.name!r} holds a key behind a dead letter, but {_named(without_key)} without a key: nothing of it is held",
            "give the classes a key: class ...(Event, key='order_id')",
        )
    if without_key and it.partitions > 1:
        yield _warning(
            "partitions-without-key",
            it.name,
            f"{it.name!r} has {it.partitions} partitions, and {_named(without_key)} without a key: they are spread over all of "
            "them, in no order",
            "give the classes a key, if their order matters",
        )


def _without_key(it: SubscriptionDescription, messages: Sequence[MessageDescription]) -> list[str]:
    """What it reads, as far as it is known, and has no key; an event in its stream always has one."""
    if it.log == "events":
        return []
    read = (
        {each.message for each in it.deliveries} if it.types is None and it.kind == "dispatch" else it.types
    )
    return [
        each.name
        for each in messages
        if each.kind != "query" and each.key is None and (read is None or each.name in read)
    ]


def _of_name(it: SubscriptionDescription) -> Iterator[WiringWarning]:
    source = next(each.source for each in it.settings if each.name == "name")
    if source != "class name":
        return
    text = f"subscription {it.name!r} has the name of its class: under another name it would begin anew"
    if it.kind in ("projection", "process manager"):
        yield _note(
            "named-by-class", it.name, text, f"keep it with name = {it.name!r} when you rename the class"
        )
    else:
        yield _warning(
            "named-by-class", it.name, text, f"say it: subscription=Subscription(name={it.name!r})"
        )


def _of_types(it: SubscriptionDescription, messages: Sequence[MessageDescription]) -> Iterator[WiringWarning]:
    if it.kind != "dispatch" or it.types is None:
        return
    kinds = {each.name: each.kind for each in messages}
    called = {each.message for each in it.deliveries}
    for name in it.types:
        if kinds.get(name) == "query":
            text, remedy = "a query, and nobody can put one into an outbox", "take it out of types="
        elif name not in called and kinds.get(name) != "command":  # of a command it is said already
            text, remedy = "a type for which it has no handler", "take it out of types=, or give it a handler"
        else:
            continue
        yield _warning("types-without-handler", it.name, f"{it.name!r} reads {name!r}, {text}", remedy)


def _of_all(subscriptions: Sequence[SubscriptionDescription]) -> Iterator[WiringWarning]:
    by_log: Callable[[SubscriptionDescription], str] = lambda each: each.log  # noqa: E731
    for log, of_log in groupby(sorted(subscriptions, key=by_log), by_log):
        together = list(of_log)
        silent = [each.name for each in together if each.setting("start") is None]
        if len(together) > 1 and silent:
            yield _note(
                "start-not-said",
                ", ".join(silent),
                f"{_list_of(silent)} {'does' if len(silent) == 1 else 'do'} not say where to start: added to a log with "
                f"history ({'event log' if log == 'events' else log}) it stays idle until somebody says it",
                "say it: Subscription(start='beginning') or start='now'",
            )


def _of_loop(messages: Sequence[MessageDescription], *, is_async: bool) -> Iterator[WiringWarning]:
    names = dict.fromkeys(
        handler.name for each in messages for handler in each.handlers if not handler.is_async
    )
    if is_async and names:
        yield _note(
            "sync-on-async-bus",
            "bus",
            f"{_list_of(list(names))} run in the event loop's thread: while one blocks, nothing else goes on",
            "wrap one that blocks: in_thread(handler)",
        )


def _named(names: Sequence[str]) -> str:
    verb: Literal["is", "are"] = "is" if len(names) == 1 else "are"
    return f"{_list_of(names)} {verb}"


def _list_of(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
