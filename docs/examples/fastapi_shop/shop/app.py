"""The web application: `uvicorn shop.app:app`."""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus import MessageBusTables, check_schema, correlate
from shop.database import Order, Stock, engine, sessions
from shop.handlers import bus
from shop.messages import GetOrder, OrderPlaced, OrderView
from shop.relay import Relay

RELAY = os.environ.get("SHOP_RELAY", "yes") == "yes"  # no: the relay is another process
LEASE = timedelta(seconds=float(os.environ.get("SHOP_LEASE", "30")))
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
relay = Relay(bus, sessions, lease=LEASE)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Look whether the tables are there; let the relay run as long as the application does."""
    async with engine.connect() as connection:
        await connection.run_sync(check_schema, MessageBusTables())
    async with asyncio.TaskGroup() as tasks:
        if RELAY:
            tasks.create_task(relay.run())
        yield
        relay.stop()
    await engine.dispose()


app = FastAPI(title="shop", lifespan=lifespan)


@app.middleware("http")
async def correlated(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Give everything that comes of a request the request's id, down to the last handler."""
    given = request.headers.get("X-Request-ID", "")
    request_id = given if REQUEST_ID.fullmatch(given) else str(uuid4())
    with correlate(request_id):
        response = await call_next(request)
    response.headers["X-Request-ID"] = request_id
    return response


async def reading() -> AsyncIterator[AsyncSession]:
    """A session to read with."""
    async with sessions() as session:
        yield session


async def transaction() -> AsyncIterator[AsyncSession]:
    """A session whose changes and messages are committed together, or not at all."""
    async with sessions.begin() as session:
        yield session
    relay.wake()


# scope="function": the commit comes before the answer, so nobody is told of an order that does not exist
Reading = Annotated[AsyncSession, Depends(reading, scope="function")]
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]


class NewOrder(BaseModel):
    """What a customer sends."""

    email: str = Field(min_length=3, max_length=200)
    sku: str = Field(min_length=1, max_length=50)
    pieces: int = Field(ge=1, le=1_000)


class Delivery(BaseModel):
    """What comes into stock."""

    pieces: int = Field(ge=1, le=1_000_000)


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder, session: Transaction) -> dict[str, int]:
    """Store the order, and the message about it, in one transaction."""
    order = Order(email=new.email, sku=new.sku, pieces=new.pieces)
    session.add(order)
    await session.flush()  # now the order has its id
    bus.register_outbox_message(
        session, OrderPlaced(order_id=order.id, email=order.email, sku=order.sku, pieces=order.pieces)
    )
    return {"id": order.id}


@app.get("/orders/{order_id}")
async def show_order(order_id: int, session: Reading) -> OrderView:
    """The order, and what has become of it."""
    found = await bus.ask(GetOrder(order_id=order_id), context={"db_session": session})
    if found is None:
        raise HTTPException(404, "no such order")
    return found


@app.put("/stock/{sku}")
async def put_into_stock(sku: str, delivery: Delivery, session: Transaction) -> dict[str, int]:
    """Add pieces of an article, which may be a new one."""
    stock = await session.get(Stock, sku, with_for_update=True)
    if stock is None:
        stock = Stock(sku=sku, pieces=0)
        session.add(stock)
    stock.pieces += delivery.pieces
    return {"pieces": stock.pieces}
