"""The bus and its handlers. Whoever needs them imports `bus` from here, so they are registered once."""

import os
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from message_bus import AsyncMessageBus, Context, DispatchOutboxHandler, Reject, RetryLater, Subscription
from shop.database import Order, Receipt, Reservation, Stock
from shop.mailer import Mailer
from shop.messages import GetOrder, OrderPlaced, OrderView

bus = AsyncMessageBus()
bus.context["mailer"] = Mailer(Path(os.environ.get("SHOP_MAIL", "mail")))


@bus.event_handler(OrderPlaced)
async def reserve_stock(event: OrderPlaced, context: Context) -> None:
    """Take the pieces out of stock: exactly once, because it happens in the session that the handler is given."""
    session: AsyncSession = context.db_session
    stock = await session.get(Stock, event.sku, with_for_update=True)
    if stock is None:
        raise Reject("no such article")  # trying again would not help: a dead letter
    if stock.pieces < event.pieces:
        raise RetryLater(1.0, "out of stock")  # in a second, as often as it takes
    stock.pieces -= event.pieces
    session.add(Reservation(order_id=event.order_id, sku=event.sku, pieces=event.pieces))


async def send_receipt(event: OrderPlaced, context: Context) -> None:
    """Mail a receipt: at least once, so the message's id tells the mail service what it has sent already."""
    envelope = context.envelope
    text = f"Thank you for order {event.order_id}."
    await context["mailer"].send(event.email, text, idempotency_key=str(envelope.id))
    receipt = Receipt(order_id=event.order_id, message_id=envelope.id, request_id=envelope.correlation_id)
    async with context.sessions() as session, session.begin():
        await session.merge(receipt)  # not add(): it may be there already


# The mails have a subscription of their own: while the mail service is down, stock is reserved all the same.
receipts = DispatchOutboxHandler(
    handlers={OrderPlaced: [send_receipt]},
    subscription=Subscription(name="receipts", mode="concurrent"),
)
bus.set_outbox_handlers([DispatchOutboxHandler(), receipts])


@bus.query_handler(GetOrder)
async def get_order(query: GetOrder, context: Context) -> OrderView | None:
    """The order, and what has been done about it."""
    session: AsyncSession = context.db_session
    order = await session.get(Order, query.order_id)
    if order is None:
        return None
    reserved = await session.scalar(select(Reservation.id).where(Reservation.order_id == order.id))
    receipt = await session.get(Receipt, order.id)
    return OrderView(
        id=order.id,
        email=order.email,
        sku=order.sku,
        pieces=order.pieces,
        stock="waiting" if reserved is None else "reserved",
        receipt="waiting" if receipt is None else "sent",
        request_id=None if receipt is None else receipt.request_id,
    )
