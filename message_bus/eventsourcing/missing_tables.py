"""A driver's "there is no such table", told as `SchemaError`: what to do about it is said there.

Around statements on message_bus's own tables only; a table of the application that is missing is the application's.
Of no colour: what is awaited inside is seen, too. Called by sagas and projections; stores have it in `sql_statements.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from message_bus.errors import SchemaError

_UNDEFINED_TABLE: Final = "42P01"
_SQLITE: Final = "no such table"


@contextmanager
def reading(table: Table) -> Iterator[None]:
    """Raise SchemaError if this table of ours, or one beside it, is missing."""
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if code == _UNDEFINED_TABLE or _SQLITE in str(error.orig):
            raise SchemaError([f"table {table.fullname!r}, or one beside it, is missing"]) from error
        raise
