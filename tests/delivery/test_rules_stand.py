"""The tables of rules that can be taken out are up to date; taking them out is a program of its own."""

from __future__ import annotations

import pytest

from tests.delivery.rules_taken_out import ROOT, TABLE
from tests.delivery.rules_without import Without


@pytest.mark.parametrize("each", TABLE, ids=lambda each: f"{each.rule}: {each.what}")
def test_a_rule_stands_where_its_table_says(each: Without) -> None:
    """Its source is there, and so are its tests: else nobody would notice that it was gone."""
    assert each.old in (ROOT / "message_bus" / each.file).read_text()
    for name in each.tests.split():
        path, _, test = name.partition("::")
        assert not test or f"def {test.partition('[')[0]}(" in (ROOT / "tests" / path).read_text()
