"""Other versions of the application, for scenarios with a deploy, a quota or an operator in them: see `app`.

    message-bus relay --app tests.faults.deploys:make_old_bus

They have the same subscriptions; what their handlers do, or know, is different. "old": from before `Moved` was made.
"mended": whatever a message says, its handler just writes the effect. "moody": it does what the message says every other
time. "impatient": the housekeeper comes twice a second. "cramped": its SQLite connections have no room left as long as the
file named by FULL_VARIABLE exists.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from message_bus import AsyncMessageBus, DispatchOutboxHandler, MessageBus
from message_bus.relay import watching, watching_async
from tests.faults import app
from tests.faults.app import ONCE, Echo, Settings

DEPLOYS: Final = "tests.faults.deploys"
FULL_VARIABLE: Final = "MESSAGE_BUS_FAULTS_FULL"
_NO_LIMIT: Final = 1_073_741_823  # SQLite's own


def version(kind: str, make: str) -> str:
    """The factory of this kind in the colour of `make`, for `Run.relay`."""
    return f"{DEPLOYS}:{make.removesuffix('bus')}{kind}_bus"


# --- old: it does not know Moved ----------------------------------------------------------------------------------


def make_old_bus() -> MessageBus:
    """A worker that runs the code of last week."""
    bus = MessageBus(event_handlers={Echo: [app.record]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Settings.given().subscription(ONCE))])
    return bus


def make_async_old_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    bus = AsyncMessageBus(event_handlers={Echo: [app.record_async]})
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Settings.given().subscription(ONCE))])
    return bus


# --- mended, moody: whether a message gets its way ------------------------------------------------------------------


def _obeying(obeys: Callable[[], bool]) -> None:
    """In this process what a message says is done only if this says so."""
    obey = app.obey
    app.obey = lambda does, attempt: obey(does, attempt) if obeys() else 0.0


def make_mended_bus() -> MessageBus:
    """The fault is mended."""
    _obeying(lambda: False)
    return app.make_bus()


def make_async_mended_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    _obeying(lambda: False)
    return app.make_async_bus()


def make_moody_bus() -> MessageBus:
    """It fails now, it works later."""
    _obeying(lambda: random.random() < 0.5)
    return app.make_bus()


def make_async_moody_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    _obeying(lambda: random.random() < 0.5)
    return app.make_async_bus()


# --- impatient: it finds out soon what a relay finds out within a minute ----------------------------------------------


def _hurry() -> None:
    for module in (watching, watching_async):
        module.ROUND = 0.5  # type: ignore[misc]


def make_impatient_bus() -> MessageBus:
    """Its housekeeper looks after the subscriptions twice a second."""
    _hurry()
    return app.make_bus()


def make_async_impatient_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    _hurry()
    return app.make_async_bus()


# --- cramped: SQLite without room ---------------------------------------------------------------------------------------


def _watch_the_quota() -> None:
    full = Path(os.environ[FULL_VARIABLE])

    @sa.event.listens_for(sa.Engine, "begin")
    def limit(connection: sa.Connection) -> None:
        # 1 becomes the size that the file has now: what needs another page gets SQLITE_FULL
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {1 if full.exists() else _NO_LIMIT}")
        cursor.close()


def make_cramped_bus() -> MessageBus:
    """Its database cannot grow as long as that file exists."""
    _watch_the_quota()
    return app.make_bus()


def make_async_cramped_bus() -> AsyncMessageBus:
    """The same in asyncio."""
    _watch_the_quota()
    return app.make_async_bus()
