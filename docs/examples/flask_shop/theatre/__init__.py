"""A theatre that sells seats: Flask, Flask-SQLAlchemy, and a bus whose outbox is emptied by cron."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click
from flask import Flask

from message_bus import configure_sqlite, correlate
from theatre.handlers import bus
from theatre.models import db
from theatre.web import web

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEFAULT_URL = f"sqlite:///{Path(__file__).parents[1] / 'theatre.db'}"


class RequestIds:
    """Every message of a request carries the request's X-Request-ID, also through the outbox."""

    def __init__(self, application: "WSGIApplication") -> None:
        self.application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        request_id = environ.get("HTTP_X_REQUEST_ID", "")[:64] or str(uuid4())

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, [*headers, ("X-Request-ID", request_id)], *exc_info)

        with correlate(request_id):
            return self.application(environ, start)


def create_app(database_url: str | None = None) -> Flask:
    """The application. It reads the same variable as the command `message-bus`: both must mean one database."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url or os.environ.get(
        "MESSAGE_BUS_DATABASE_URL", DEFAULT_URL
    )
    db.init_app(app)
    with app.app_context():  # outside of it there is no db.engine; nothing has connected yet
        if db.engine.dialect.name == "sqlite":
            configure_sqlite(db.engine)
    app.register_blueprint(web)
    app.wsgi_app = RequestIds(app.wsgi_app)  # type: ignore[method-assign]

    @app.cli.command("init-db")
    def init_db() -> None:
        """Make the tables, those of the outbox among them."""
        db.create_all()

    @app.cli.command("process-outbox")
    def process_outbox() -> None:
        """Deliver what is in the outbox, once."""
        report = bus.process_outbox(db.session)
        click.echo(f"{report.delivered} delivered, {report.retrying} retrying, {report.dead} dead")
        if not report.ok:
            raise SystemExit(3)

    return app
