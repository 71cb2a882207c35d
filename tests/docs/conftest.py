"""A walk through one page."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.docs.pages import Walk


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    """A walk through one page, in `tmp_path`; engines that the page has made are disposed of afterwards."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where annotations of message classes are looked up
    monkeypatch.chdir(tmp_path)
    yield Walk(tmp_path, module)
    for made in list(vars(module).values()):
        if isinstance(made, sa.Engine):
            made.dispose()
        assert not isinstance(made, AsyncEngine), "a page closes its AsyncEngine itself"
    vars(module).clear()
    gc.collect()
