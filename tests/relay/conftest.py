"""The application under test, on each database, and a relay for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables, Relay
from tests.delivery.world import World


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """A fresh application in a fresh database, failures due again at once."""
    made = World(session_factory, tables)
    made.settings()
    return made


@pytest.fixture
def relay_for(world: World) -> Callable[..., Relay]:
    """Makes relays that look often."""

    def make(**options: Any) -> Relay:
        return Relay(world.bus, world.sessions, **{"poll": timedelta(seconds=0.1), **options})

    return make
