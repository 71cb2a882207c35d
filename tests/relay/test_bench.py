"""That the benches of the relay run, in a form that is too small to say anything about speed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import sqlalchemy as sa

from tests.relay.bench_ground import Line


def run(url: sa.URL, *options: str) -> subprocess.CompletedProcess[str]:
    """The bench, as `make bench` runs it."""
    return subprocess.run(
        [
            sys.executable, "-m", "tests.relay.bench_relay", "--quick",
            "--database-url", url.render_as_string(hide_password=False), *options,
        ],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.load
@pytest.mark.timeout(600)
def test_every_row_is_measured(postgresql_url: sa.URL) -> None:
    """Each row of the table is there, and the exit code says whether a goal was missed."""
    done = run(postgresql_url)
    found = re.findall(r"^\| ([a-f])\. .* \| ([^|]+) \|$", done.stdout, re.MULTILINE)
    assert sorted({row for row, _ in found}) == [*"abcdef"], done.stdout + done.stderr
    assert done.returncode == any(met == "**no**" for _, met in found), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("unit", "ratio", "met"),
    [("msg/s", 0.6, True), ("msg/s", 0.59, False), ("ms", 0.6, True), ("ms", 0.61, False)],
)
def test_rates_are_to_be_high_and_durations_low(unit: str, ratio: float, met: bool) -> None:
    """A line knows whether its goal is met, and says so."""
    line = Line("x", 1.0, 1.0, ratio, unit, 0.6)
    assert (line.met, str(line).endswith("| yes |")) == (met, met)
