"""Engines of one kind share what is compiled, and nothing that depends on one of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tests.compiled_once import CompiledOnce

STATEMENT = sa.select(sa.table("a", sa.column("b")))


def engine(cache: Any, **options: Any) -> sa.Engine:
    """One in memory with this cache, and the table."""
    made = sa.create_engine("sqlite://", execution_options={"compiled_cache": cache}, **options)
    with made.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE a (b)")
        connection.execute(STATEMENT)
    return made


def test_two_engines_compile_once() -> None:
    """Of the same kind; one with another serializer compiles for itself, for its parameters go through that."""
    cache = CompiledOnce()
    for _ in range(2):
        engine(cache).dispose()
    assert len(cache) == 1
    engine(cache, json_serializer=str).dispose()
    assert len(cache) == 2


def test_a_map_of_schemas_is_its_engines_own() -> None:
    """SQLAlchemy refuses what was compiled for a map with other keys."""
    cache = CompiledOnce()
    for names in ({None: "main"}, {"other": "main"}):
        made = engine(cache)
        with made.connect() as connection:
            connection.execution_options(schema_translate_map=names).execute(STATEMENT)
        made.dispose()
    assert len(cache) == 3
