"""What the tests of this directory share."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.conftest import OF_THE_OUTBOX


@pytest.fixture(scope="session")
def made_tables() -> tuple[sa.Table, ...]:
    """No test here knows of events."""
    return OF_THE_OUTBOX
