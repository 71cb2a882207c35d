"""What holds for a subscription with these settings, in words. Pure; the numbers are those of docs/guarantees.md."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from message_bus.admin.description.description import Guarantee
from message_bus.admin.findings import spelled
from message_bus.delivery.retry import NoRetry
from message_bus.delivery.subscription import Subscription

_WRITERS = {
    "dispatch": "what handlers write through context.db_session, and what they emit,",
    "projection": "what its methods write through context.db_session",
    "process manager": "its state, and what it sends,",
    "timeouts": "the state of its process manager, and what that sends,",
    "outbox handler": "what it writes through context.db_session, and what it emits,",
}


def guarantees_of(
    settings: Subscription, *, mode: str, log: str, kind: str, is_async: bool
) -> Iterator[Guarantee]:
    """Say what holds: how often effects happen, in which order, and what becomes of failures."""
    if mode == "transactional":
        yield from _transactional(settings, kind)
    else:
        yield from _concurrent(settings)
    yield from _order(settings, mode=mode, log=log)
    yield from _failures(settings, log=log)
    yield _time_limit(settings, is_async=is_async)


def _transactional(settings: Subscription, kind: str) -> Iterator[Guarantee]:
    yield Guarantee(
        text=f"in the database exactly once: {_WRITERS[kind]} is committed together with the checkpoint",
        rules=("G5", "G6"),
    )
    shared = settings.messages_per_commit
    if shared > 1:
        yield Guarantee(
            text=f"up to {shared} messages share a commit, for at most {_span(settings.commit_within)}: if one fails, or the "
            "process dies, all of them are handled again, so outside effects of the whole batch repeat",
            rules=("G5",),
        )
    if kind in ("dispatch", "outbox handler"):
        yield Guarantee(
            text="elsewhere (an e-mail, an API, another session) at least once: let the receiver know the message's id",
            rules=("G2",),
        )


def _concurrent(settings: Subscription) -> Iterator[Guarantee]:
    yield Guarantee(
        text=f"all effects at least once: a crash repeats at most the batch in hand ({settings.fetch_size} messages); let the "
        "receiver know the message's id",
        rules=("G2",),
    )
    yield Guarantee(text="what handlers emit is committed together with the checkpoint", rules=("G5",))


def _order(settings: Subscription, *, mode: str, log: str) -> Iterator[Guarantee]:
    of_one = "one stream" if log == "events" else "one key"
    yield Guarantee(text=f"messages of {of_one} in order, one at a time", rules=("G3",))
    at_once = settings.concurrency if mode == "concurrent" else 1
    if settings.partitions == 1 and at_once == 1:
        yield Guarantee(text="while nothing fails, all messages in the order of the log", rules=("G4",))
        return
    parallel = [
        *([f"{settings.partitions} partitions"] if settings.partitions > 1 else []),
        *([f"up to {at_once} keys at once"] if at_once > 1 else []),
    ]
    yield Guarantee(
        text=f"no order between others: {', '.join(parallel)}"
        + ("" if log == "events" else "; messages without a key are others to each other"),
        rules=("G3",),
    )


def _failures(settings: Subscription, *, log: str) -> Iterator[Guarantee]:
    once = settings.max_attempts == 1 or isinstance(settings.backoff, NoRetry)
    tried = "its first failure" if once else f"{settings.max_attempts} failed attempts"
    key = "stream" if log == "events" else "key"
    then = (
        f"its {key} goes on"
        if settings.on_dead_letter == "continue"
        else f"its {key} is held until somebody decides"
    )
    yield Guarantee(text=f"a message is a dead letter after {tried}; then {then}", rules=("G7",))
    outages = ", ".join(each.__name__ for each in settings.unavailable_on)
    yield Guarantee(
        text=f"an outage ({', '.join(filter(None, ['Unavailable', outages]))}) counts as no attempt: it waits and goes on",
        rules=("G8",),
    )


def _time_limit(settings: Subscription, *, is_async: bool) -> Guarantee:
    limit = settings.handler_timeout
    if limit is None:
        return Guarantee(text="a handler may take as long as it likes: one that hangs stops its partition")
    then = (
        "an async one is cancelled then, a failed attempt"
        if is_async
        else "one that takes longer cannot be stopped: its worker loses the lease, and another one takes over"
    )
    return Guarantee(text=f"a handler may take {_span(limit)}; {then}", rules=("G6",))


def _span(span: timedelta) -> str:
    return spelled(span) if span >= timedelta(seconds=1) else f"{span.total_seconds():g} s"
