"""The how-to pages about cron and plain scripts, followed word for word: files saved, commands typed, output compared."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import Walk


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/how-to/cron.md", "docs/how-to/plain-scripts.md"])
def test_a_how_to_page_word_for_word(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says is printed is printed, by its commands and by its python blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # python blocks import the files that the page has saved
    before = set(sys.modules)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    try:
        Walk(tmp_path, module).follow(page, commands=True)
    finally:
        if engine := vars(module).get("engine"):
            engine.dispose()
        for name in {"orders", "shop"} & (set(sys.modules) - before):
            del sys.modules[name]
