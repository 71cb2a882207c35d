"""The application under test, on each database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import MessageBusTables
from tests.conftest import OF_THE_OUTBOX
from tests.delivery.world import World


@pytest.fixture
def world(session_factory: sessionmaker[Session], tables: MessageBusTables) -> World:
    """A fresh application in a fresh database, failures due again at once."""
    made = World(session_factory, tables)
    made.settings()
    return made


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """No test here knows of events."""
    return OF_THE_OUTBOX
