"""The demo runs, its summary agrees on both databases, and it would say so if it did not."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus.demo.__main__ import run
from message_bus.demo.ledger import Ledger, differences, expected, found
from message_bus.demo.models import Base, Invoice, Order, Product, Reservation, Status
from message_bus.demo.orders import read_orders, read_products
from message_bus.demo.shop import tables
from message_bus.demo.summary import lines_of
from tests.demo.make_orders_csv import POISON

ROOT = Path(__file__).parents[2]

ROWS = 80  # the message that never succeeds is among them


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "message_bus.demo", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def shop(engine: sa.Engine) -> sessionmaker[Session]:
    """A database with the demo's tables, still empty."""
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


def run_small(shop: sessionmaker[Session]) -> bool:
    """Run the demo on the first rows."""
    products = read_products()
    return run(shop, products, read_orders(products, most=ROWS))


def differences_in(session: Session) -> list[str]:
    """What differs between the CSV's first rows and the database."""
    products = read_products()
    return differences(expected(products, read_orders(products, most=ROWS)), found(session, tables))


def test_orders_stock_invoices_and_dead_letters_agree(
    shop: sessionmaker[Session], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on either database ends with the figures of the CSV, one dead letter among them (G1, G3, G5, G7)."""
    assert run_small(shop)
    printed = capsys.readouterr().out
    assert "agree, in each of" in printed
    assert "DIFFERS" not in printed
    assert f"dead letter  order {POISON}, given up after 3 attempts: NoTaxRate" in printed
    with shop() as session:
        assert differences_in(session) == []


def _lose_an_invoice(session: Session) -> None:
    session.execute(sa.delete(Invoice).where(Invoice.order_id == 1_002))


def _invoice_twice(session: Session) -> None:
    cents = session.scalars(sa.select(Invoice.cents).where(Invoice.order_id == 1_002)).one()
    session.add(Invoice(order_id=1_002, cents=cents, attempt=1))


def _reserve_twice(session: Session) -> None:
    session.add(Reservation(order_id=1_002, quantity=1, attempt=1))


def _misplace_a_box(session: Session) -> None:
    session.execute(sa.update(Product).where(Product.sku == "TEA-07").values(stock=Product.stock - 1))


def _forget_an_order(session: Session) -> None:
    session.execute(sa.update(Order).where(Order.id == 1_002).values(status=Status.PLACED))


def _bury_the_dead_letter(session: Session) -> None:
    session.execute(sa.delete(tables.delivery))


FAULTS: dict[Callable[[Session], None], str] = {
    _lose_an_invoice: "invoiced: 1002 must be [",
    _invoice_twice: "invoiced: 1002 must be [",
    _reserve_twice: "reserved: 1002 must be [",
    _misplace_a_box: "stock: 'TEA-07' must be ",
    _forget_an_order: "states: 1002 must be 'invoiced', the database says 'placed'",
    _bury_the_dead_letter: f"dead letters: {POISON} must be 1, the database says nothing",
}


@pytest.mark.sqlite
def test_any_disagreement_is_found(shop: sessionmaker[Session]) -> None:
    """If anything were lost or done twice, the comparison would name it."""
    run_small(shop)
    for fault, said in FAULTS.items():
        with shop() as session:
            fault(session)
            session.flush()
            lines = differences_in(session)
            session.rollback()
        assert any(line.startswith(said) for line in lines), (fault, lines)


def test_a_summary_that_differs_says_so() -> None:
    """The summary marks the figure and lists the differences, at most twenty."""
    wanted = Ledger(stock={str(number): 1 for number in range(30)})
    have = Ledger(stock={str(number): 2 for number in range(30)})
    lines = list(lines_of(wanted, have, [], differences(wanted, have)))
    assert [line.split() for line in lines if "DIFFERS" in line] == [
        ["boxes:", "left", "in", "stock", "30", "60", "DIFFERS"]
    ]
    assert "They do NOT agree: 30 differences." in lines
    assert lines[-1] == "  ... and 10 more"


@pytest.mark.sqlite
def test_the_command_runs_on_a_file_of_its_own_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without options it needs nothing, prints plain lines where there is no terminal, and leaves nothing behind."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = demo("--orders", str(ROWS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ROWS} of {ROWS} rows; delivered" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite
def test_a_kept_database_can_be_used_again(tmp_path: Path) -> None:
    """--keep leaves the database there; the next run replaces it."""
    url = f"sqlite:///{tmp_path}/shop.db"
    for _ in range(2):
        done = demo("--orders", "20", "--keep", "--database-url", url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"kept in {url}" in done.stdout


@pytest.mark.sqlite
def test_a_file_with_other_tables_is_refused(tmp_path: Path) -> None:
    """What the demo did not make, it does not drop."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/theirs.db")
    Base.metadata.create_all(engine)
    engine.dispose()
    done = demo("--orders", "20", "--database-url", str(engine.url))
    assert done.returncode == 1
    assert "holds tables that the demo did not make (name another file)" in done.stderr


@pytest.mark.postgresql
def test_on_postgresql_it_has_a_schema_of_its_own(postgresql_url: sa.URL) -> None:
    """The schema is made, kept if so asked, made again by the next run, and dropped at its end."""
    url = postgresql_url.render_as_string(hide_password=False)
    kept = demo("--orders", "20", "--database-url", url, "--keep")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "message_bus_demo" in _schemas(postgresql_url)
    done = demo("--orders", "20", "--database-url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "message_bus_demo" not in _schemas(postgresql_url)


@pytest.mark.postgresql
def test_a_schema_of_somebody_else_is_refused(postgresql_url: sa.URL, schema: str) -> None:
    """A schema that the demo did not make is not dropped, be it empty."""
    url = postgresql_url.render_as_string(hide_password=False)
    done = demo("--orders", "20", "--database-url", url, "--schema", schema)
    assert done.returncode == 1
    assert f"schema '{schema}' exists and the demo did not make it" in done.stderr
    assert schema in _schemas(postgresql_url)


@pytest.mark.postgresql
def test_tables_that_others_put_into_its_schema_are_not_dropped(postgresql_url: sa.URL) -> None:
    """If something else lives in the demo's schema, the next run fails and drops nothing."""
    url = postgresql_url.render_as_string(hide_password=False)
    name = "message_bus_demo_shared"
    demo("--orders", "20", "--database-url", url, "--keep", "--schema", name)
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {name}.theirs ()")
    done = demo("--orders", "20", "--database-url", url, "--schema", name)
    assert done.returncode == 1
    with engine.begin() as connection:
        tables_left = sa.inspect(connection).get_table_names(schema=name)
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    assert {"theirs", "orders", "message_bus_outbox"} <= set(tables_left)


def _schemas(url: sa.URL) -> list[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return sa.inspect(connection).get_schema_names()


@pytest.mark.sqlite
def test_a_terminal_gets_a_progress_bar() -> None:
    """On a terminal one bar grows instead of lines."""
    terminal, stdout = pty.openpty()
    with (
        closing(os.fdopen(terminal, "rb", buffering=0)) as screen,
        subprocess.Popen(
            [sys.executable, "-m", "message_bus.demo", "--orders", "20"],
            cwd=ROOT,
            stdout=stdout,
            stderr=stdout,
        ),
    ):
        os.close(stdout)
        shown = b""
        while chunk := _read(screen.fileno()):
            shown += chunk
    assert b"100%" in shown
    assert b"agree, in each of" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # what Linux says when the other side is closed
        return b""
