"""The application under test, on each database."""

import pytest
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables
from tests.delivery.world import World


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """A fresh application in a fresh database: one failure kills a message."""
    made = World(session_factory, tables)
    made.settings(max_attempts=1)
    return made
