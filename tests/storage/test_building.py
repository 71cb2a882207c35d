"""A statement is built once for each set of tables, and shared by all who run it."""

from __future__ import annotations

import gc
import weakref

from message_bus import MessageBusTables
from message_bus.storage import statements


def test_the_same_arguments_give_the_same_statement() -> None:
    """However they are given."""
    tables = MessageBusTables()
    first = statements.new_rows(tables, partitions=3, partition=1, names=("a", "b"))
    assert statements.new_rows(tables, names=("a", "b"), partition=1, partitions=3) is first
    assert statements.new_rows(tables, partitions=3, partition=2, names=("a", "b")) is not first
    assert statements.due_rows(tables, partitions=3, partition=1) is not first


def test_each_log_and_each_set_of_tables_has_its_own() -> None:
    """They name other tables."""
    tables, others = MessageBusTables(), MessageBusTables(prefix="other_")
    assert tables.of_log("events") is tables.of_log("events")
    assert tables.of_log("events").of_log("outbox") is tables.of_log("outbox")
    texts = {
        str(statements.row_at(each))
        for each in (tables, tables.of_log("events"), others, others.of_log("events"))
    }
    assert len(texts) == 4


def test_what_was_built_goes_with_its_tables() -> None:
    """Tables that are made for each tenant are not kept by their statements."""
    tables = MessageBusTables()
    statements.row_at(tables)
    statements.row_at(tables.of_log("events"))
    gone = weakref.ref(tables.outbox)
    del tables
    gc.collect()
    assert gone() is None
