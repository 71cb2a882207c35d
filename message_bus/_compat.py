"""The few places where the synchronous and the asynchronous package really differ, as pairs of one name each.

Modules named `x_async.py` are written once; their twins `x.py` are generated from them. Whatever cannot be said by
leaving out `await` stands here: `name_async` in the one is `name` in the other.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from message_bus.errors import AsyncHandlerOnSyncBus

if TYPE_CHECKING:  # sqlalchemy.ext.asyncio needs greenlet, which synchronous users need not have
    from sqlalchemy import ClauseElement
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


async def pause_async(seconds: float) -> None:
    """Let `seconds` pass; other tasks run meanwhile."""
    await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Let `seconds` pass; other threads run meanwhile."""
    time.sleep(seconds)


async def result_of_async(value: Any) -> Any:
    """The value, awaited if it can be."""
    return await value if value is not None and inspect.isawaitable(value) else value


def result_of(value: Any) -> Any:
    """The value, which must not have to be awaited."""
    if value is not None and inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise AsyncHandlerOnSyncBus(getattr(value, "__qualname__", type(value).__name__))
    return value


async def on_sync_session_async(
    session: AsyncSession, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `function(session, ...)` on the Session inside an AsyncSession; its I/O stays asynchronous."""
    return await session.run_sync(function, *args, **kwargs)


def on_sync_session(
    session: Session, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `function(session, ...)`."""
    return function(session, *args, **kwargs)


def plain_session_async(session: AsyncSession) -> Session:
    """The Session inside an AsyncSession, for what needs no I/O."""
    return session.sync_session


def plain_session(session: Session) -> Session:
    """The session itself."""
    return session


@contextmanager
def bound_to_async(session: AsyncSession, clause: ClauseElement) -> Iterator[None]:
    """Let what names no table go where `clause` goes, on a session that has only `binds=`."""
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    own = getattr(session, "bind", None)  # SQLAlchemy 2.0 has it only if it was given one
    with bound_to(session.sync_session, clause):
        bind = session.sync_session.bind
        session.bind = AsyncEngine(bind) if own is None and isinstance(bind, Engine) else own
        try:
            yield
        finally:
            session.bind = own


@contextmanager
def bound_to(session: Session, clause: ClauseElement) -> Iterator[None]:
    """Let what names no table go where `clause` goes, on a session that has only `binds=`."""
    if session.bind is not None:
        yield
        return
    session.bind = session.get_bind(clause=clause)
    try:
        yield
    finally:
        session.bind = None


def session_factory_async(session: AsyncSession) -> async_sessionmaker[AsyncSession]:
    """A factory of sessions like this one: its engine or connection, and its class if that can be made without more."""
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    plain = session.sync_session
    return async_sessionmaker(
        session.bind,
        class_=_made_like(session, AsyncSession),
        binds=getattr(session, "binds", None),  # 2.0 has it only if it was given any
        sync_session_class=session.sync_session_class,
        expire_on_commit=plain.expire_on_commit,
        join_transaction_mode=plain.join_transaction_mode,
    )


def session_factory(session: Session) -> sessionmaker[Session]:
    """A factory of sessions like this one: its engine or connection, and its class if that can be made without more."""
    from sqlalchemy.orm import Session, sessionmaker

    return sessionmaker(
        session.bind,
        class_=_made_like(session, Session),
        binds=getattr(session, "binds", None) or getattr(session, "_Session__binds", None),  # 2.1, 2.0
        expire_on_commit=session.expire_on_commit,
        join_transaction_mode=session.join_transaction_mode,
    )


def _made_like(session: S, plain: type[S]) -> type[S]:
    try:  # the session of Flask-SQLAlchemy wants its extension
        inspect.signature(type(session)).bind(bind=None, expire_on_commit=True, join_transaction_mode="")
    except TypeError:
        return plain
    return type(session)


class Ticker:
    """Calls `beat` every `interval` in a thread of its own until it is stopped or `beat` returns False."""

    def __init__(self, beat: Callable[[], bool], interval: timedelta) -> None:
        self._beat = beat
        self._interval = interval.total_seconds()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="message_bus heartbeat", daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            if not self._beat():
                return


class AsyncTicker:
    """Calls `beat` every `interval` in a task of its own until it is stopped or `beat` returns False.

    At its end a beat in hand is awaited, as a thread would be: one that is cancelled in the middle of a statement may leave
    its connection behind with a transaction open, and on SQLite nobody could write any more (seen with aiosqlite 0.22).
    It is cancelled only with whoever waits for it, or when it has taken so long that its network must be gone.
    """

    longest_beat = 60.0
    """Seconds: twice as long as SQLite waits for its turn to write."""

    def __init__(self, beat: Callable[[], Awaitable[bool]], interval: timedelta) -> None:
        self._beat = beat
        self._interval = interval.total_seconds()
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncTicker:
        self._task = asyncio.create_task(self._run(), name="message_bus heartbeat")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._stopped.set()
        try:
            done, _ = await asyncio.wait((self._task,), timeout=self.longest_beat)
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if not done:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # asked for, so that nobody is told that it was not

    async def _run(self) -> None:
        while not await self._is_stopped_within(self._interval):
            if not await self._beat():
                return

    async def _is_stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopped.wait()
        except TimeoutError:
            return False


async def on_sync_connection_async(
    connection: AsyncConnection,
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run `function(connection, ...)` on the Connection inside an AsyncConnection; its I/O stays asynchronous."""
    return await connection.run_sync(function, *args, **kwargs)


def on_sync_connection(
    connection: Connection,
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run `function(connection, ...)`."""
    return function(connection, *args, **kwargs)


AsyncLock = asyncio.Lock
"""One task at a time; its twin `Lock`: one thread at a time."""
Lock = threading.Lock

AsyncCondition = asyncio.Condition
"""Tasks that wait for each other; its twin `Condition`: threads that do."""
Condition = threading.Condition


class TimeIsUp(Exception):
    """What was called took too long; its cause is what it raised, if it raised something."""


async def answer_within_async(span: timedelta | None, function: Callable[..., Any], *args: Any) -> Any:
    """Call it and await what it returns, if that can be; what takes longer is cancelled. Raises: TimeIsUp."""
    if span is None:
        return await result_of_async(function(*args))
    limit = asyncio.timeout(span.total_seconds())
    try:
        async with limit:
            answer = await result_of_async(function(*args))
    except Exception as error:
        if limit.expired():
            raise TimeIsUp from error
        raise
    if limit.expired():  # it has caught the cancellation and gone on
        raise TimeIsUp
    return answer


def answer_within(span: timedelta | None, function: Callable[..., Any], *args: Any) -> Any:
    """Call it; a thread cannot be cancelled, so it takes as long as it takes."""
    answer = function(*args)
    return answer if answer is None else result_of(answer)


def stall_watch_async() -> StallWatch:
    """`with stall_watch_async() as stall`: has the event loop stood still since the last time? `stall.take()` seconds."""
    return StallWatch(asyncio.get_running_loop())


def stall_watch() -> NoStall:
    """The same for threads, which block nobody but themselves."""
    return NoStall()


class StallWatch:
    """Sets a timer again and again, and sees how late it rings."""

    interval = 1.0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seconds = 0.0
        self._loop = loop

    def __enter__(self) -> StallWatch:
        self._set()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()

    def take(self) -> float:
        """For how long at most it has stood still since this was asked for the last time; nearly free."""
        late = self._loop.time() - self._timer.when()
        if late <= 0.0 and not self._seconds:
            return 0.0
        found, self._seconds = max(self._seconds, late), 0.0
        if late > 0.0:  # it has not rung yet: once is enough
            self._timer.cancel()
            self._set()
        return found

    def _set(self) -> None:
        self._timer = self._loop.call_later(self.interval, self._ring)

    def _ring(self) -> None:
        self._seconds = max(self._seconds, self._loop.time() - self._timer.when())
        self._set()


class NoStall:
    """Nothing stands still."""

    def __enter__(self) -> NoStall:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def take(self) -> float:
        """Return 0."""
        return 0.0
