"""Takes each rule out of the package, and sees whether a test notices: `python -m tests.delivery.rules_taken_out [RULE ...]`.

It works on a copy in a temporary directory. Every line of the table is a rule, the place where it stands in the source,
what stands there without it, and the tests of which at least one must fail then. `--first`: before, all these tests must
pass as the package is (else that is left to the suite, of which they are part). Exit code 1: something went unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Final

from tests.delivery import rules_of_logs, rules_of_subscriptions
from tests.delivery.rules_without import Without
from tests.servers import PostgreSQL

ROOT: Final = Path(__file__).parents[2]
LONGEST: Final = 180  # seconds for the tests of one line; a test that hangs has noticed something, too


TABLE: Final = (*rules_of_subscriptions.TABLE, *rules_of_logs.TABLE)


def copied(to: Path) -> None:
    """The package, its tests and what these need, without version control."""
    for name in ("message_bus", "tests", "alembic", "docs"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "alembic.ini"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to / name)


def run_tests(where: Path, tests: str, server: str) -> tuple[str, str]:
    """ "passed", "failed", "hangs" or "broken" (nothing was tested), and the end of what was printed."""
    chosen = [f"tests/{each}" for each in sorted(set(tests.split()))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *chosen]
    environment = {
        **os.environ,
        "PYTHONPATH": str(where),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MESSAGE_BUS_TEST_POSTGRESQL_URL": server,
    }
    with (where / "output").open("w+") as output:
        process = subprocess.Popen(command, cwd=where, env=environment, stdout=output, stderr=output)
        try:
            code = process.wait(LONGEST * (1 if len(chosen) < 10 else 10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "hangs", ""
        output.seek(0)
        said = output.read()
    return {0: "passed", 1: "failed"}.get(code, "broken"), said[-2_000:]


def judged(where: Path, each: Without, server: str) -> str:
    """Take one rule out, run its tests, put it back; what became of it."""
    path = where / "message_bus" / each.file
    source = path.read_text()
    if each.old not in source:
        return "NOT FOUND"
    path.write_text(source.replace(each.old, each.new))
    try:
        outcome, said = run_tests(where, each.tests, server)
    finally:
        path.write_text(source)
    if outcome == "passed":
        return "NOT NOTICED"
    if (
        outcome == "broken"
        or (outcome == "failed" and "\nFAILED " not in said)
        or "SyntaxError" in said
        or "NameError" in said
        or "ImportError" in said
    ):
        return f"BROKEN: {said[-300:]}"
    return outcome


def main(rules: list[str]) -> int:
    """Print the table of the rules that are named, or of all."""
    first = "--first" in rules
    rules = [rule for rule in rules if rule != "--first"]
    table = [each for each in TABLE if not rules or each.rule in rules]
    server = PostgreSQL.start()
    wrong = 0
    try:
        with tempfile.TemporaryDirectory() as directory:
            where = Path(directory)
            copied(where)
            if first:
                outcome, said = run_tests(where, " ".join(each.tests for each in table), server.url)
                if outcome != "passed":
                    print(f"as the package is, its tests should pass, but: {outcome}\n{said}")
                    return 1
            for each in table:
                began = monotonic()
                outcome = judged(where, each, server.url)
                good = outcome in ("failed", "hangs")
                wrong += not good
                mark = "noticed" if good else "WRONG  "
                seconds = monotonic() - began
                print(
                    f"{each.rule:4} {mark} {seconds:5.1f} s  {each.what}" + ("" if good else f": {outcome}"),
                    flush=True,
                )
    finally:
        server.remove()
    print(f"{len(table) - wrong} of {len(table)} noticed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
