"""Attempts at messages: what both modes, and careful and ordinary handling, have in common.

    trying is recorded and committed ──► the payload is read ──► the message is handled ──► the row is gone, or says what failed
                                      └── the worker dies here: the next owner finds `trying`, and counts a crash

That is the careful way (S6, G7), after a lease was taken over, and for what has killed a worker before. The ordinary way
records nothing beforehand. `AsyncRun` says which messages, in which order; the modes say how one is handled.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus._compat import NoStall, StallWatch, TimeIsUp, answer_within_async
from message_bus.bus.context import Context
from message_bus.delivery.changes_async import AsyncRecorder
from message_bus.delivery.hands_async import AsyncHands
from message_bus.delivery.jobs import Failed, Interrupted, Job, Stop, TakenBack, Tally, Trying
from message_bus.delivery.lease_async import AsyncLease
from message_bus.delivery.observed import Observed
from message_bus.delivery.reading_async import AsyncReader
from message_bus.delivery.subscription import Subscription
from message_bus.delivery.telling import handlers_of, log_stall
from message_bus.delivery.turns_async import AsyncTurns
from message_bus.delivery.verdicts import (
    Dead,
    Delivered,
    HandlerTimedOut,
    Outage,
    PassedOver,
    Retry,
    decide,
    single_errors,
    speaks_of_handlers,
)
from message_bus.messages.envelope import undecoded_envelope
from message_bus.storage.outages import is_outage
from message_bus.storage.tables import RETRYING, TRYING, MessageBusTables

if TYPE_CHECKING:
    from message_bus.outbox_handlers.base import AsyncOutboxHandlerABC, OutboxHandlerABC

logger = logging.getLogger("message_bus.delivery")

STALL = 1.0  # seconds: an event loop that stands still for longer is worth a line in the log


class AsyncAttempts:
    """Tries messages of one leased partition. One use, one task."""

    def __init__(
        self,
        session: AsyncSession,
        handler: OutboxHandlerABC | AsyncOutboxHandlerABC,
        *,
        tables: MessageBusTables,
        settings: Subscription,
        lease: AsyncLease,
        reader: AsyncReader,
        recorder: AsyncRecorder,
        context: Mapping[str, Any],
        registry: Any,
        stop: Stop,
        observed: Observed,
        hands: AsyncHands | None = None,
        turns: AsyncTurns | None = None,
    ) -> None:
        self._observed = observed
        self._session = session
        self._handler = handler
        self._tables = tables
        self._settings = settings
        self._lease = lease
        self._reader = reader
        self._recorder = recorder
        self._context = context
        self._registry = None if getattr(handler, "_makes_envelopes", False) else registry
        self._stop = stop
        self._hands = AsyncHands() if hands is None else hands
        self._turns = AsyncTurns() if turns is None else turns
        self._tally = Tally()
        self._stall: StallWatch | NoStall = NoStall()
        self._failed_here: set[int] = set()  # once a run is enough, even if the database's clock steps back

    async def _group(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        """Handle these jobs and commit up to `to` (or as far as it got); how many of them are done with.

        `ahead`: how many rows may be read for the next batch when the checkpoint moves.
        """
        raise NotImplementedError

    async def _together(self, jobs: Sequence[Job], blocked: set[str], *, to: int, ahead: int = 0) -> int:
        """The ordinary way, beside whatever other workers of this process have in hand."""
        async with self._hands.shared():
            await self._ready()
            return await self._group(jobs, blocked, to=to, ahead=ahead)

    async def _carefully(self, job: Job, blocked: set[str], *, to: int) -> None:
        """One message, alone in this process, its attempt recorded before (S6)."""
        async with self._hands.alone():
            await self._ready()
            trying = job._replace(state=TRYING)
            self._lease.unfinished = TakenBack(job.position, RETRYING if job.state is None else job.state)
            await self._recorder.commit(self._session, [Trying(job)], to=to)
            whole = await self._reader.whole(self._session, trying)
            if whole is None:
                await self._take_back()
                return
            await self._group((whole,), blocked, to=self._lease.at.position)
            self._lease.unfinished = None

    async def _take_back(self) -> None:
        """Nobody has died of the attempt that is recorded: it does not count. Raises LeaseLost.

        Nothing else may be tried before that: who forgets it leaves the message behind for ever.
        """
        taken_back = self._lease.unfinished
        if taken_back is None:
            return
        await self._lease.reload(self._session)
        await self._recorder.commit(self._session, [taken_back], to=self._lease.at.position)
        self._lease.unfinished = None

    async def _ready(self) -> None:
        """No handler is started unless the lease is good by our own clock (S7). Raises LeaseLost."""
        if self._lease.over:
            if not await self._lease.renew(self._session):
                raise self._lease.lost()
            self._lease.trust()

    @property
    def _try(self) -> Callable[[Job, Mapping[str, Any]], Awaitable[bool]]:
        return self._call if self._observed.observers is None else self._call_observed

    async def _call(self, job: Job, resources: Mapping[str, Any]) -> bool:
        """Call the handler; True if it handled the message, False if it passed it over."""
        context = Context(resources)
        context["attempt"] = job.attempts + 1
        if self._registry is not None:
            context["envelope"] = undecoded_envelope(self._registry, job.message)
        watch = self._lease.watch
        token = watch.begin(job)
        try:
            handled = await answer_within_async(
                self._settings.handler_timeout, self._handler.handle, job.message, context
            )
        except TimeIsUp as too_long:
            raise self._timed_out(job) from too_long.__cause__
        finally:
            watch.end(token)
            stood_still = self._stall.take()
            if stood_still > STALL:
                handlers = handlers_of(self._handler, job.message.message)
                log_stall(self._observed.part, handlers, job, stood_still)
        return handled is None or not isinstance(handled, PassedOver)

    async def _call_observed(self, job: Job, resources: Mapping[str, Any]) -> bool:
        """Do what `_call` does, and let observers see it."""
        attempt = self._observed.attempt(job)
        with self._observed.attempting(attempt):
            handled = await self._call(job, resources)
            attempt.passed_over = not handled
        return handled

    def _must_end(self) -> bool:
        """Whether no other message of a batch may be begun: asked to stop, paused, or the lease is over."""
        return self._stop.asked or self._lease.withdrawn or self._lease.over

    def _timed_out(self, job: Job) -> HandlerTimedOut:
        return HandlerTimedOut(
            f"{handlers_of(self._handler, job.message.message)} ran longer than {self._settings.handler_timeout} "
            f"with {job.message.message} (handler_timeout= of the subscription)"
        )

    def _count(self, handled: bool) -> None:
        if handled:
            self._tally.delivered += 1
        else:
            self._tally.passed_over += 1

    def _judge(self, job: Job, error: Exception) -> Failed:
        """The failure with its verdict. Raises Interrupted for an outage."""
        outage = is_outage(error)
        verdict = decide(
            error, attempt=job.attempts + 1, settings=self._settings, chance=random.random(), outage=outage
        )
        match verdict:
            case Outage():
                raise Interrupted(
                    error, database=any(isinstance(each, SQLAlchemyError) for each in single_errors(error))
                ) from error
            case Retry() | Dead():
                self._failed_here.add(job.position)
                self._suspect(job, error)
                return Failed(job, error, verdict)
            case Delivered() | PassedOver():  # pragma: no cover  (decide() says these of no error only)
                raise AssertionError(verdict)

    def _suspect(self, job: Job, error: Exception) -> None:
        suspicion = self._lease.suspicion
        if not speaks_of_handlers(error):
            suspicion.succeeded()
            return
        before = suspicion.active
        suspicion.failed(job.position if job.message.key is None else job.message.key, self._lease.clock())
        if suspicion.active and not before:
            logger.error(
                "everything fails in subscription %r: one message at a time is tried until one succeeds",
                self._settings.name,
                extra={"subscription": self._settings.name, "partition": self._lease.partition},
            )

    def _waits(self, job: Job, blocked: set[str]) -> bool:
        """Whether it is a new message behind one of its key that is not done."""
        return job.state is None and job.message.key in blocked

    def _block(self, failed: Failed, blocked: set[str]) -> None:
        """Let later messages of its key wait, if they have to."""
        key = failed.job.message.key
        if key is not None and (isinstance(failed.verdict, Retry) or self._settings.on_dead_letter == "hold"):
            blocked.add(key)
