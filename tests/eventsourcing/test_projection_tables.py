"""Names of copies, columns that are compared, and what a projection decides: tables of cases and properties."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from message_bus.eventsourcing.projections.projection_state import (
    Comparison,
    Verification,
    new_failures,
    next_generation,
    obstacle,
    poll_pauses,
)
from message_bus.eventsourcing.projections.projection_tables import (
    compared_columns,
    copy_of,
    live_names,
    suffixed,
    table_named,
    tables_by_name,
)
from tests.eventsourcing.projecting import SEEN, TOTALS


@given(st.text("abcdefgäöü_", min_size=1, max_size=80), st.integers(0, 999_999))
def test_a_suffixed_name_fits_and_says_its_generation(name: str, generation: int) -> None:
    """At most 63 bytes, as PostgreSQL has it; different names stay different."""
    found = suffixed(name, generation)
    assert len(found.encode()) <= 63
    assert found.endswith(f"__{generation}")
    assert suffixed(f"{name}x", generation) != found


def test_a_copy_has_names_of_its_own() -> None:
    """Table, indexes and constraints; the original is left alone."""
    copy = copy_of(TOTALS, 3)
    assert copy.name == "totals__3"
    assert [index.name for index in copy.indexes] == ["totals_cents_idx__3"]
    assert "totals_orders_check__3" in {each.name for each in copy.constraints}
    assert [index.name for index in TOTALS.indexes] == ["totals_cents_idx"]
    assert live_names(TOTALS, 3) == {
        "totals_cents_idx__3": "totals_cents_idx",
        "totals_orders_check__3": "totals_orders_check",
    }
    assert live_names(SEEN, 3)["ix_seen__3_what"] == "ix_seen_what"
    assert "totals_orders_check" in {
        each.name for each in copy_of(TOTALS, 3, same_constraints=True).constraints
    }


def test_a_naming_convention_is_kept() -> None:
    """Names that are made of the table's name are made of the copy's, and of the live one's again."""
    metadata = sa.MetaData(
        naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s"}
    )
    table = sa.Table("t", metadata, sa.Column("a", sa.Integer, primary_key=True, index=True))
    copy = copy_of(table, 1)
    assert copy.primary_key.name == "pk_t__1"
    assert live_names(table, 1)["ix_t__1_a"] == "ix_t_a"


def test_what_the_database_makes_is_not_compared() -> None:
    """Clocks and counters differ between two runs of the same events; constants and keys do not."""
    table = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("constant", sa.Integer, default=1),
        sa.Column("server_constant", sa.String, server_default="x"),
        sa.Column("at", sa.DateTime, server_default=sa.func.now()),
        sa.Column("called", sa.DateTime, default=lambda: None),
        sa.Column("updated", sa.DateTime, onupdate=sa.func.now()),
        sa.Column("number", sa.Integer, sa.Identity()),
    )
    assert compared_columns(table) == ["key", "constant", "server_constant"]
    assert "id" not in compared_columns(SEEN)


def test_tables_are_given_in_several_forms() -> None:
    """A mapping, a sequence, or one table."""
    assert dict(tables_by_name({"x": TOTALS})) == {"x": TOTALS}
    assert dict(tables_by_name([TOTALS, SEEN])) == {"totals": TOTALS, "seen": SEEN}
    assert dict(tables_by_name(TOTALS)) == {"totals": TOTALS}
    assert (table_named("a.b").schema, table_named("a.b").name, table_named("b").schema) == ("a", "b", None)


@pytest.mark.parametrize(
    ("stored", "filler", "version", "mine", "says"),
    [
        (1, "p", 1, "p", None),
        (1, "(inline)", 1, "(inline)", None),
        (1, "p", 2, "p", "rebuild"),
        (2, "p", 1, "p", "older"),
        (1, "(inline)", 1, "p", "by the writers, inline, already"),
        (1, "p", 1, "(inline)", "by subscription 'p' already"),
        (1, "p", 1, "q", "keep that name"),
    ],
)
def test_what_stands_in_the_way(stored: int, filler: str, version: int, mine: str, says: str | None) -> None:
    """Another version, or somebody else who fills the tables."""
    found = obstacle(stored_version=stored, stored_filler=filler, version=version, filler=mine)
    assert found is None if says is None else says in (found or "")


def test_failures_of_a_rebuild_are_those_that_the_live_one_does_not_have() -> None:
    """Dead in both is known; dead in one, or waiting behind something, is not."""
    assert new_failures([(1, "dead"), (2, "dead"), (3, "held")], [(1, "dead"), (3, "dead")], dead="dead") == (
        2,
        3,
    )
    assert next_generation([]) == 1
    assert next_generation([0, 4, 2]) == 5


def test_a_verification_is_as_good_as_its_tables() -> None:
    """A table that was only counted cannot be wrong."""
    same = Comparison(table="a", live_rows=2, rebuilt_rows=2, only_live=0, only_rebuilt=0)
    twice = Comparison(table="a", live_rows=3, rebuilt_rows=2, only_live=0, only_rebuilt=0)
    counted = Comparison(table="a", live_rows=3, rebuilt_rows=2, only_live=None, only_rebuilt=None)
    assert Verification(position=1, tables=(same, counted)).ok
    assert not Verification(position=1, tables=(same, twice)).ok


@given(st.floats(0, 1_000))
def test_pauses_add_up_to_the_timeout(timeout: float) -> None:
    """No wait is longer than it was asked to be, and none is longer than 100 ms at a time."""
    pauses = poll_pauses(timeout)
    assert sum(pauses) == pytest.approx(timeout)
    assert all(0 < pause <= 0.1 for pause in pauses)
