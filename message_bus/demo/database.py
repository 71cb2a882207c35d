"""Opens the database of the demo, empty: a SQLite file that goes away again, or a schema of its own on PostgreSQL.

What an earlier run has left is dropped and made anew; anything else is refused, not dropped. A run marks what it makes:
the SQLite file with an application id, the PostgreSQL schema with a comment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.schema import CreateSchema, DropSchema

from message_bus import configure_sqlite
from message_bus.storage.urls import sync_url

SCHEMA: Final = "message_bus_demo"
MARK: Final = "made by python -m message_bus.demo: it may be dropped and made again at any time"
APPLICATION_ID: Final = 0x4D42_5553  # "MBUS", in the header of the SQLite file


class NotOurs(Exception):
    """There is something where the demo wants to be that it did not make."""


@contextmanager
def opened(
    database_url: str | None, metadata: MetaData, *, schema: str, keep: bool
) -> Iterator[tuple[Engine, str]]:
    """An engine on a database with fresh, empty tables, and its URL; unless `keep`, all of it is gone afterwards.

    Raises: NotOurs if there are tables already that no demo has made.
    """
    with ExitStack() as stack:
        url = sync_url(database_url) if database_url else _new_file(stack, keep=keep)
        on_sqlite = url.get_backend_name() == "sqlite"
        engine = _sqlite_engine(url) if on_sqlite else create_engine(_on_search_path(url, schema))
        stack.callback(engine.dispose)
        with engine.begin() as connection:
            _drop(connection, metadata, schema)
            _make(connection, metadata, schema)
        try:
            yield engine, engine.url.render_as_string(hide_password=True)
        finally:
            if not keep and database_url:
                with engine.begin() as connection:
                    _drop(connection, metadata, schema)


def _new_file(stack: ExitStack, *, keep: bool) -> URL:
    if keep:
        directory = tempfile.mkdtemp(prefix="message-bus-demo-")
    else:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="message-bus-demo-"))
    return URL.create("sqlite", database=str(Path(directory) / "shop.db"))


def _sqlite_engine(url: URL) -> Engine:
    engine = configure_sqlite(create_engine(url))

    @event.listens_for(engine, "connect")
    def hurry(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")  # the demo need not outlive a power cut

    return engine


def _on_search_path(url: URL, schema: str) -> URL:
    given = url.query.get("options", "")
    options = given if isinstance(given, str) else " ".join(given)
    return url.update_query_dict({"options": f"{options} -csearch_path={schema}".strip()})


def _drop(connection: Connection, metadata: MetaData, schema: str) -> None:
    """Drop what an earlier run made. Whatever else is in the schema makes DROP SCHEMA fail, and nothing is dropped."""
    if connection.dialect.name == "sqlite":
        if connection.scalar(text("SELECT count(*) FROM sqlite_master")):
            if connection.scalar(text("PRAGMA application_id")) != APPLICATION_ID:
                raise NotOurs(
                    f"{connection.engine.url.database} holds tables that the demo did not make (name another file)"
                )
            metadata.drop_all(connection)
        return
    comment = text(
        "SELECT obj_description(oid, 'pg_namespace') AS mark FROM pg_namespace WHERE nspname = :schema"
    )
    there = connection.execute(comment, {"schema": schema}).one_or_none()
    if there is not None:
        if there.mark != MARK:
            raise NotOurs(
                f"schema {schema!r} exists and the demo did not make it (name another one: --schema NAME)"
            )
        metadata.drop_all(connection)
        connection.execute(DropSchema(schema))


def _make(connection: Connection, metadata: MetaData, schema: str) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))
    else:
        connection.execute(CreateSchema(schema))
        name = connection.dialect.identifier_preparer.quote_schema(schema)
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {name} IS '{MARK}'")
    metadata.create_all(connection)
