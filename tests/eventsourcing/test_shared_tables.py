# ruff: noqa: D102  (what the tests are made of)
"""Two projections of one program that write the same table are refused: each would undo what the other has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import Event, MessageBus, Projection, Relay, SettingsError, configure_sqlite, when

TOTALS = sa.Table("shared_totals", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
OTHERS = sa.Table("shared_others", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
ELSEWHERE = sa.Table(
    "shared_totals", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), schema="elsewhere"
)


class Opened(Event, name="sharedtables.Opened"):
    """An event."""


class Totals(Projection):
    """The first."""

    tables = {"totals": TOTALS}  # noqa: RUF012

    @when(Opened)
    def opened(self, event: Opened) -> None: ...


class NewTotals(Totals):
    """Meant to be the next version of the first; but its name is its own."""

    version = 2


class OtherTotals(Totals):
    """Of other tables."""

    tables = {"totals": OTHERS}  # noqa: RUF012


class ForeignTotals(Totals):
    """Of a table of the same name in another schema."""

    tables = {"totals": ELSEWHERE}  # noqa: RUF012


TEXT = (
    r"projections 'Totals' and 'NewTotals' both write table 'shared_totals' "
    r"\(give each tables of its own; the next version of one keeps its name: name = 'Totals'\)"
)


@pytest.mark.parametrize("handlers", [(Totals, NewTotals), (OtherTotals, Totals, NewTotals)])
def test_two_projections_of_one_table_are_refused_on_a_bus(handlers: Any) -> None:
    """Also what was meant to be a new version: a derived class has a name of its own."""
    bus = MessageBus()
    with pytest.raises(SettingsError, match=TEXT):
        bus.set_outbox_handlers([make() for make in handlers])
    bus.set_outbox_handlers([Totals()])
    bus.set_outbox_handlers([NewTotals()])  # in place of it


def test_and_between_a_bus_and_its_relay(tmp_path: Path) -> None:
    """The relay runs those of its bus and those that it was given."""
    bus = MessageBus()
    bus.set_outbox_handlers([Totals()])
    engine = configure_sqlite(sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}"))
    with pytest.raises(SettingsError, match=TEXT):
        Relay(bus, engine, projections=[NewTotals()])
    engine.dispose()


def test_tables_of_other_names_or_schemas_are_no_clash() -> None:
    """What is compared is the full name."""
    MessageBus().set_outbox_handlers([Totals(), OtherTotals(), ForeignTotals()])
