"""What SQLAlchemy has compiled for one engine serves all engines of its kind: thousands of tests make engines of their own.

Compiling is what a small test on a new engine would do for most of its time. Used by conftest.py alone.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


class CompiledOnce(dict[Any, Any]):
    """A `compiled_cache`. Of the dialect, which comes first in its keys, only counts what compiling depends on."""

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict does."""
        return super().get(_for_all(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(_for_all(key), compiled)


def compile_once() -> None:
    """Let all engines of this process share one; those that are given a cache of their own use that."""
    options: Any = sa.Engine._execution_options  # pyright: ignore[reportPrivateUsage]
    sa.Engine._execution_options = options.union({"compiled_cache": CompiledOnce()})  # pyright: ignore[reportPrivateUsage]


def _for_all(key: Any) -> Any:
    dialect, statement, columns, translates, *others = key
    if translates:  # it is compiled for the names in one map of schemas
        return key
    return (
        type(dialect), dialect.name, dialect.paramstyle, getattr(dialect, "server_version_info", None),
        getattr(dialect, "_json_serializer", None), getattr(dialect, "_json_deserializer", None),
        statement, columns, *others,
    )  # fmt: skip
