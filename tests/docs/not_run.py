"""The code blocks of the pages that no test runs, and why: page, first line of the block, reason.

Text that stands for itself (outputs, drawings, diagrams, what the site alone understands) is not code. Commands are looked
at all the same: their targets, options, modules and extras exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

INSTALLS: Final = "it would install from the network what the tests have checked out"
FOR_EVER: Final = "it runs until it is stopped; tests/relay/test_processes.py starts and stops it"
FOR_A_FILE: Final = "a file for another program, which is not here"

NOT_RUN: Final[Mapping[str, Mapping[str, str]]] = {
    "README.md": {
        "pip install sqlalchemy-message-bus                  # SQLite": INSTALLS,
        "make demo  # a small shop on SQLite: 3,000 orders, failing handlers, and a summary that has to agree": (
            "the demo has tests of its own (tests/demo), and `make test` would run these"
        ),
    },
    "docs/how-to/cron.md": {
        "* * * * * cd /srv/shop && . ./cron.env && .venv/bin/message-bus process-outbox --app shop:make_bus "
        ">>deliveries.log": FOR_A_FILE,
        "export MESSAGE_BUS_DATABASE_URL=postgresql+psycopg://shop:secret@db.internal/shop": FOR_A_FILE,
        "[Unit]": FOR_A_FILE,
        "[Timer]": FOR_A_FILE,
    },
    "docs/how-to/fastapi.md": {
        "message-bus process-outbox --app shop.handlers:bus": "the page shows the example, whose README is followed",
    },
    "docs/how-to/message-schemas.md": {
        "git show origin/main:messages.json | message-bus schema check --app shop:bus -": (
            "the branch that a change goes to is not here; the page runs the same commands on a file"
        ),
    },
    "docs/how-to/metrics.md": {
        "message-bus relay --app shop:make_bus --metrics-port 9464": (
            "it runs until it is stopped; tests/observability/test_prometheus_relay.py starts and stops it"
        ),
    },
    "docs/how-to/plain-scripts.md": {
        "from psycopg_pool import ConnectionPool": "psycopg_pool is not among the dependencies of the tests",
    },
    "docs/how-to/projections.md": {
        "export MESSAGE_BUS_DATABASE_URL=postgresql://shop:secret@db.internal/shop": (
            "a server that is not here; tests/cli/test_projections.py runs the commands"
        ),
    },
    "docs/how-to/relay.md": {
        "export MESSAGE_BUS_DATABASE_URL=postgresql://shop:secret@db.internal/shop": FOR_EVER,
        "engine = create_engine(": "a server that is not here",
        "engine = create_async_engine(": "a server that is not here",
    },
    "docs/how-to/tracing.md": {'pip install "sqlalchemy-message-bus[otel]"': INSTALLS},
    "docs/performance.md": {
        'make bench BENCHES=tests.relay.bench_relay ARGS="--only ab --database-url '
        'postgresql+psycopg://postgres@/postgres"': "it takes minutes",
    },
    "docs/production/disaster-recovery.md": {
        "message-bus subscriptions reset receipts --to 2026-01-31T16:30:00Z --dry-run": (
            "a subscription of another application; tests/cli/test_operations.py runs the command"
        ),
    },
    "docs/production/retention.md": {
        "message-bus prune --older-than 12h --dry-run": "docs/how-to/operations.md runs it",
        "message-bus status": "docs/how-to/operations.md runs them",
    },
    "docs/production/shutdown.md": {"[Unit]": FOR_A_FILE, "spec:": FOR_A_FILE},
    "docs/quickstart.md": {
        "pip install sqlalchemy-message-bus": INSTALLS,
        "* * * * * cd shop && MESSAGE_BUS_DATABASE_URL=sqlite:///shop.db message-bus process-outbox --app "
        "shop:make_bus": FOR_A_FILE,
        'pip install "sqlalchemy-message-bus[sqlite-async]"': INSTALLS,
    },
}
