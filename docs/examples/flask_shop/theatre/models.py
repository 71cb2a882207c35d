"""What the theatre keeps: plain Flask-SQLAlchemy models, and the tables of the outbox beside them."""

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from message_bus import MessageBusTables


class Base(DeclarativeBase):
    """Typed models."""


db = SQLAlchemy(model_class=Base)
MessageBusTables(db.metadata)  # db.create_all() makes them, Flask-Migrate finds them


class Performance(db.Model):
    """One evening. The hall may be decided later."""

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    hall: Mapped[str | None]
    printed: Mapped[int] = mapped_column(default=0)


class Booking(db.Model):
    """One seat that belongs to somebody. Messages speak of its id, so SQLite must not use that again."""

    __table_args__ = (UniqueConstraint("performance_id", "seat"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    performance_id: Mapped[int] = mapped_column(ForeignKey("performance.id"))
    seat: Mapped[str]
    email: Mapped[str]


class Ticket(db.Model):
    """What a handler prints, numbered in the order of booking. Nothing here forbids a second one: delivery does."""

    id: Mapped[int] = mapped_column(primary_key=True)
    performance_id: Mapped[int] = mapped_column(ForeignKey("performance.id"))
    booking_id: Mapped[int]
    number: Mapped[int]
    mails: Mapped[int] = mapped_column(default=0)
    void: Mapped[bool] = mapped_column(default=False)
