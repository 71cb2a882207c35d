"""The contracts notice what they are for: backends that are broken in one way each, and the test that says so.

The tests of a contract are called by hand here, each with a fresh backend; those that a pytest run would show as failed
are collected by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import pytest
from _pytest.outcomes import OutcomeException, Skipped

from message_bus import (
    AsyncInMemoryOutBoxRepo,
    AsyncMessageBus,
    InMemoryOutBox,
    InMemoryOutBoxRepo,
    MessageBus,
    OutboxMessage,
)
from message_bus.bus.context import Context
from message_bus.testing import (
    AsyncBusContract,
    AsyncOutboxContract,
    BusContract,
    Capabilities,
    OutboxContract,
)

CAPABILITIES = Capabilities(order_per_key=False, dead_letters=False)


class Outboxes(OutboxContract):
    """The contract, without being a test of this run."""

    capabilities = CAPABILITIES


class AsyncOutboxes(AsyncOutboxContract):
    """The same in the other colour."""

    capabilities = CAPABILITIES


async def failures(contract: Any, make: Callable[[], Any]) -> set[str]:
    """The names of the tests that fail on what `make` makes."""
    failed: set[str] = set()
    for name in dir(contract):
        if not name.startswith("test_") or hasattr(getattr(contract, name), "pytestmark"):
            continue
        try:
            outcome = getattr(contract, name)(make())
            if inspect.isawaitable(outcome):
                await outcome
        except Skipped:
            continue
        except (Exception, OutcomeException):
            failed.add(name)
    return failed


def units(repository: type[Any]) -> Callable[[], Any]:
    """What the fixture `unit_of_work` of such a repository would give, anew for each test."""

    def unit_of_work() -> Callable[[], Any]:
        outbox = InMemoryOutBox()
        return lambda: nullcontext(repository(outbox))

    return unit_of_work


class SavesWhenAdding(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        super()._add(outbox_message)
        self.save()


class ForgetsToRollBack(InMemoryOutBoxRepo):
    def rollback(self) -> None:
        """Nothing."""


class SavesInsteadOfRollingBack(InMemoryOutBoxRepo):
    def rollback(self) -> None:
        """The opposite."""
        self.save()


class NeverSaves(InMemoryOutBoxRepo):
    def save(self) -> None:
        """Nothing."""


class LosesMeta(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.meta = {}
        super()._add(outbox_message)


class LosesHeaders(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.headers = {}
        super()._add(outbox_message)


class LosesTheKey(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.key = None
        super()._add(outbox_message)


class LosesTheVersion(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.version = 1
        super()._add(outbox_message)


class IgnoresTheDelay(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.delay = None
        super()._add(outbox_message)


class MakesItsOwnIds(InMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.id = UUID(int=outbox_message.id.int ^ 1)
        super()._add(outbox_message)


class DoesNotValidate(InMemoryOutBoxRepo):
    def add(self, outbox_message: Any) -> None:
        """Anything goes."""
        if isinstance(outbox_message, OutboxMessage):
            outbox_message.type = "EVENT"
            self._add(outbox_message)


class NeverMarks(InMemoryOutBoxRepo):
    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Copies that `save` knows nothing of."""
        return [copy.copy(row) for row in super().list_unprocessed(limit)]


class MarksAlthoughAHandlerFailed(InMemoryOutBoxRepo):
    def rollback(self) -> None:
        """Marks the row in hand all the same."""
        super().rollback()
        for row in self.list_unprocessed(1):
            row.processed = True
        self.save()


class MarksWhenListing(InMemoryOutBoxRepo):
    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Claims the rows by marking them."""
        rows = super().list_unprocessed(limit)
        for row in rows:
            row.processed = True
        super().save()
        return rows


class ListsInReverse(InMemoryOutBoxRepo):
    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """The last one first."""
        return super().list_unprocessed(limit)[::-1]


class ListsWhatIsProcessed(InMemoryOutBoxRepo):
    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Everything there is."""
        rows = [self._unit_of_work._handed_out(each) for each in self.outbox._in_order()]
        return [*rows, *(row for row in super().list_unprocessed() if row not in rows)]


class FindsAnything(InMemoryOutBoxRepo):
    def get(self, id: Any) -> OutboxMessage | None:  # noqa: A002
        """Some row or other."""
        return super().get(id) or next(iter(self.list_unprocessed()), None)


class HandsOutLiveRows(InMemoryOutBoxRepo):
    """Its stored rows are the very objects that it returns."""

    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Objects that are shared by all."""
        rows: dict[UUID, OutboxMessage] = self.outbox.__dict__.setdefault("rows", {})
        listed = [rows.setdefault(row.id, copy.copy(row)) for row in super().list_unprocessed(limit)]
        return [row for row in listed if not row.processed]


class BreaksAfterAFailure(InMemoryOutBoxRepo):
    broken = False

    def rollback(self) -> None:
        """Never works again."""
        super().rollback()
        self.broken = True

    def _add(self, outbox_message: OutboxMessage) -> None:
        if self.broken:
            raise RuntimeError("this transaction is inactive")
        super()._add(outbox_message)


BROKEN_OUTBOXES = {
    SavesWhenAdding: {"test_what_was_not_saved_is_gone", "test_others_see_nothing_before_save"},
    ForgetsToRollBack: {
        "test_rollback_drops_what_was_added",
        "test_what_a_failing_row_has_emitted_is_rolled_back",
    },
    SavesInsteadOfRollingBack: {
        "test_rollback_drops_what_was_added",
        "test_a_change_that_was_rolled_back_is_not_stored",
    },
    NeverSaves: {"test_what_was_saved_is_found_by_its_id"},
    LosesMeta: {"test_meta_is_kept"},
    LosesHeaders: {"test_headers_are_kept"},
    LosesTheKey: {"test_the_key_is_kept"},
    LosesTheVersion: {"test_the_version_is_kept"},
    IgnoresTheDelay: {"test_a_delayed_message_waits"},
    MakesItsOwnIds: {"test_ids_of_the_caller_are_kept", "test_what_was_saved_is_found_by_its_id"},
    DoesNotValidate: {"test_add_validates"},
    NeverMarks: {"test_every_row_is_handled_once_and_marked"},
    MarksAlthoughAHandlerFailed: {"test_a_failing_row_stays_and_stops_no_other"},
    MarksWhenListing: {"test_a_failing_row_stays_and_stops_no_other"},
    ListsInReverse: {"test_rows_are_listed_in_order", "test_every_row_is_handled_once_and_marked"},
    ListsWhatIsProcessed: {"test_processed_rows_are_not_listed"},
    FindsAnything: {"test_what_was_saved_is_found_by_its_id"},
    HandsOutLiveRows: {"test_a_change_that_was_rolled_back_is_not_stored"},
    BreaksAfterAFailure: {"test_the_repository_is_usable_after_a_failing_row"},
}


@pytest.mark.parametrize("repository", BROKEN_OUTBOXES, ids=lambda each: each.__name__)
async def test_a_broken_outbox_is_found_out(repository: type[InMemoryOutBoxRepo]) -> None:
    """Each fault fails the tests that are about it."""
    expected = BROKEN_OUTBOXES[repository]
    assert expected <= await failures(Outboxes(), units(repository))


class AsyncNeverSaves(AsyncInMemoryOutBoxRepo):
    async def save(self) -> None:
        """Nothing."""


class AsyncLosesMeta(AsyncInMemoryOutBoxRepo):
    def _add(self, outbox_message: OutboxMessage) -> None:
        outbox_message.meta = {}
        super()._add(outbox_message)


BROKEN_ASYNC_OUTBOXES = {
    AsyncNeverSaves: {"test_what_was_saved_is_found_by_its_id"},
    AsyncLosesMeta: {"test_meta_is_kept"},
}


@pytest.mark.parametrize("repository", BROKEN_ASYNC_OUTBOXES, ids=lambda each: each.__name__)
async def test_a_broken_async_outbox_is_found_out(repository: type[AsyncInMemoryOutBoxRepo]) -> None:
    """The async contract is the same: two examples."""
    expected = BROKEN_ASYNC_OUTBOXES[repository]
    assert expected <= await failures(AsyncOutboxes(), units(repository))


# --- buses --------------------------------------------------------------------------------------------------------


class SharesOneContext(MessageBus):
    def _context_for(self, message: Any, given: Any) -> Context:
        context = super()._context_for(message, given)
        self.context.update({**context, **(given or {})})
        return context

    def handle(self, message: Any, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        """Always the long way."""
        return self.dispatch(message, *args, context=context, **kwargs).results


class SwallowsErrors(MessageBus):
    def handle(self, message: Any, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        """Whatever is raised."""
        try:
            return super().handle(message, *args, context=context, **kwargs)
        except Exception:
            return []


class HandlesDepthFirst(MessageBus):
    def handle(self, message: Any, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        """The last emitted first."""
        results = super().handle(message, *args, context=context, **kwargs)
        return results[:1] + results[:0:-1]


class LosesArguments(MessageBus):
    def handle(self, message: Any, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        """Whatever was given."""
        return super().handle(message, context=context)


class LosesMiddleware(MessageBus):
    def add_middleware(self, middleware: Any) -> None:
        """Nothing."""


class ReplacesWhenSubscribing(MessageBus):
    def subscribe(self, message_type: Any, handler: Any) -> None:
        """The last one wins."""
        if message_type.__message_kind__ == "EVENT":
            self.set_event_handlers(message_type, [handler])
        else:
            self.set_command_handler(message_type, handler)


BROKEN_BUSES = {
    SharesOneContext: {"test_each_dispatch_has_a_context_of_its_own"},
    SwallowsErrors: {
        "test_the_error_of_a_command_reaches_the_caller",
        "test_a_command_without_handler_is_an_error",
    },
    HandlesDepthFirst: {"test_what_is_emitted_is_handled_after_the_message"},
    LosesArguments: {"test_arguments_reach_the_handlers_of_the_message"},
    LosesMiddleware: {"test_middleware_surrounds_every_handler"},
    ReplacesWhenSubscribing: {"test_subscribing_appends", "test_a_query_has_one_handler"},
}


@pytest.mark.parametrize("bus", BROKEN_BUSES, ids=lambda each: each.__name__)
async def test_a_broken_bus_is_found_out(bus: type[MessageBus]) -> None:
    """Each fault fails the tests that are about it."""
    assert BROKEN_BUSES[bus] <= await failures(BusContract(), bus)


@pytest.mark.parametrize(
    ("contract", "make"),
    [
        (Outboxes(), units(InMemoryOutBoxRepo)),
        (AsyncOutboxes(), units(AsyncInMemoryOutBoxRepo)),
        (BusContract(), MessageBus),
        (AsyncBusContract(), AsyncMessageBus),
    ],
)
async def test_what_is_not_broken_passes(contract: Any, make: Callable[[], Any]) -> None:
    """Called in this way as well: what the tests above find is the fault, not the way of calling."""
    assert await failures(contract, make) == set()
