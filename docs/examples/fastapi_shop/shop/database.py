"""The engine, the shop's own tables, and `python -m shop.database`, which makes them.

An application with Alembic puts `MessageBusTables(Base.metadata)` here and needs neither that command nor
`message-bus db upgrade`.
"""

import asyncio
import os
from uuid import UUID

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from message_bus import configure_sqlite

engine = create_async_engine(os.environ.get("MESSAGE_BUS_DATABASE_URL", "sqlite+aiosqlite:///shop.db"))
if engine.dialect.name == "sqlite":
    configure_sqlite(engine)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The shop's tables."""


class Order(Base):
    """What a customer has ordered."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    sku: Mapped[str]
    pieces: Mapped[int]


class Stock(Base):
    """How many pieces of an article are left."""

    __tablename__ = "stock"
    sku: Mapped[str] = mapped_column(primary_key=True)
    pieces: Mapped[int]


class Reservation(Base):
    """Pieces that were taken out of stock for an order."""

    __tablename__ = "reservations"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(index=True)
    sku: Mapped[str]
    pieces: Mapped[int]


class Receipt(Base):
    """A receipt that was mailed."""

    __tablename__ = "receipts"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[UUID]
    request_id: Mapped[str | None]


async def create_tables() -> None:
    """Make those of the shop's tables that are missing."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
