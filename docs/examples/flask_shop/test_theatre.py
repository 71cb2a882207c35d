"""Tests of the theatre as its owner would write them: no server, no cron, and nothing of them stays in the database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from theatre import bus, create_app, db

from message_bus import OutboxReport
from message_bus.testing import drain


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The application, on a database that all tests share."""
    path: Path = tmp_path_factory.mktemp("theatre") / "test.db"
    app = create_app(f"sqlite:///{path}")
    with app.app_context():
        db.create_all()
        engine = db.engine
    yield app
    engine.dispose()


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    """A client whose requests, and what handlers write, are part of one transaction that is rolled back."""
    with app.app_context():
        engines, engine = db.engines, db.engine
        db.session.configure(join_transaction_mode="create_savepoint")
    with engine.connect() as connection:
        transaction = connection.begin()
        engines[None] = connection  # where Flask-SQLAlchemy looks up what its sessions are bound to
        yield app.test_client()
        engines[None] = engine
        transaction.rollback()


def deliver(app: Flask) -> OutboxReport:
    """What cron would do."""
    with app.app_context():
        return drain(bus, db.session)


def test_a_ticket_is_printed(app: Flask, client: FlaskClient) -> None:
    """A seat that is booked gets its ticket; the mail is a message of its own."""
    performance = client.post("/performances", json={"title": "Faust", "hall": "Main"}).json["id"]
    client.post(f"/performances/{performance}/bookings", json={"seats": ["A1"], "email": "ann@example.com"})
    assert deliver(app).delivered == 2
    shown = client.get(f"/performances/{performance}").json
    assert [ticket["number"] for ticket in shown["tickets"]] == [1]


def test_a_seat_that_is_taken_leaves_nothing_behind(app: Flask, client: FlaskClient) -> None:
    """The group's other seat is free again, and its message was never there."""
    performance = client.post("/performances", json={"title": "Faust", "hall": "Main"}).json["id"]
    client.post(f"/performances/{performance}/bookings", json={"seats": ["A2"], "email": "ann@example.com"})
    answer = client.post(
        f"/performances/{performance}/bookings", json={"seats": ["A1", "A2"], "email": "bob@example.com"}
    )
    assert answer.status_code == 409
    assert deliver(app).delivered == 2  # Ann's ticket and her mail
    assert len(client.get(f"/performances/{performance}").json["tickets"]) == 1


def test_a_booking_without_an_address_ends_as_a_dead_letter(app: Flask, client: FlaskClient) -> None:
    """It holds nobody back."""
    performance = client.post("/performances", json={"title": "Faust", "hall": "Main"}).json["id"]
    for seat, email in (("A1", "nowhere"), ("A2", "bob@example.com")):
        client.post(f"/performances/{performance}/bookings", json={"seats": [seat], "email": email})
    report = deliver(app)
    assert (report.dead, report.delivered) == (1, 2)
