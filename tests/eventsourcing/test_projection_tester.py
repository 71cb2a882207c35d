"""`ProjectionTester`: given events, then rows; on SQLite in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from message_bus import InvalidMessage, SettingsError
from message_bus.eventsourcing.projections.projection import Projection
from message_bus.eventsourcing.when import when
from message_bus.messages.envelope import new_envelope
from message_bus.testing import ProjectionTester
from tests.eventsourcing.projecting import Advertised, EventTotals, OrderCancelled, OrderPlaced
from tests.eventsourcing.test_projection import AsyncTotals


def test_given_events_then_rows() -> None:
    """Rows come as dicts, by primary key; what nobody handles is passed over."""
    with ProjectionTester(EventTotals) as tester:
        tester.given(OrderPlaced(customer="bob", cents=5), Advertised(slogan="x")).given(
            OrderPlaced(customer="ann", cents=7), OrderCancelled(customer="bob", cents=5)
        )
        rows = [
            {name: row[name] for name in ("customer", "cents", "last_position")}
            for row in tester.rows("totals")
        ]
        assert rows == [
            {"customer": "ann", "cents": 7, "last_position": 3},
            {"customer": "bob", "cents": 0, "last_position": 4},
        ]
        assert [row["what"] for row in tester.rows("seen")] == ["bob", "ann", "bob"]
        assert tester.row("totals", customer="ann")["orders"] == 1
        with pytest.raises(AssertionError, match="0 rows of 'totals' have these values"):
            tester.row("totals", customer="cid")


def test_an_instance_and_an_envelope_do_as_well() -> None:
    """An envelope keeps its position; tables in a schema are found."""
    table = sa.Table("noted", sa.MetaData(schema="reading"), sa.Column("n", sa.Integer, primary_key=True))

    class Noting(Projection):
        tables = table

        @when(OrderPlaced)
        def noted(self, event: OrderPlaced, context: Any) -> None:
            context.db_session.execute(sa.insert(self.table("noted")).values(n=context.envelope.position))

    event = OrderPlaced(customer="ann", cents=5)
    with ProjectionTester(Noting()) as tester:
        tester.given(replace(new_envelope(event), position=40), event)
        assert tester.rows("noted") == [{"n": 40}, {"n": 41}]


def test_what_could_not_be_stored_is_refused() -> None:
    """An event goes through its encoding, as on its way through a log; errors of methods come out."""
    with ProjectionTester(EventTotals) as tester, pytest.raises(InvalidMessage):
        tester.given(OrderPlaced(customer="ann", cents=None))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no async handlers"):
        ProjectionTester(AsyncTotals)
    with ProjectionTester(EventTotals) as tester:
        tester.projection.trouble.of["ann"] = [ValueError("trouble")]
        with pytest.raises(ValueError, match="trouble"):
            tester.given(OrderPlaced(customer="ann", cents=5))
