"""The page of questions and troubles: what it says that an error says, an error says."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

import pytest

from tests.docs.pages import ROOT, text_of

PAGE: Final = "docs/faq.md"
OF_OTHERS: Final = ("database is locked", "QueuePool limit", "prepared statement", "greenlet")
"""Texts of SQLite, SQLAlchemy and PostgreSQL, or that these add to."""


def quoted() -> list[str]:
    """The texts in the first column of the table of errors."""
    table = text_of(PAGE).split("## What an error means")[1].split("## ")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return [found for cell in cells for found in re.findall(r"`([^`]+)`", cell) if " " in found]


@pytest.mark.parametrize("text", [text for text in quoted() if not any(each in text for each in OF_OTHERS)])
def test_an_error_says_so(text: str) -> None:
    """Between its dots the text stands in the source, word for word."""
    pieces = [piece.strip(" '\"") for piece in text.split("...")]
    missing = [piece for piece in pieces if len(piece) > 2 and piece not in _texts()]
    assert not missing, f"nothing says {missing}"


@cache
def _texts() -> str:
    """All texts in the source of the package, the pieces of f-strings with a space for what is filled in."""
    found: list[str] = []
    for path in (ROOT / "message_bus").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_piece(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def _piece(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "{}"
