"""What the parts of the shop say to each other."""

from dataclasses import dataclass
from typing import Literal

from message_bus import Event, Query


class OrderPlaced(Event, name="shop.order_placed", key="sku"):
    """An order was committed. Orders of one article are handled in the order in which they were placed."""

    order_id: int
    email: str
    sku: str
    pieces: int


@dataclass(frozen=True)
class OrderView:
    """What the shop tells about an order."""

    id: int
    email: str
    sku: str
    pieces: int
    stock: Literal["waiting", "reserved"]
    receipt: Literal["waiting", "sent"]
    request_id: str | None  # of the request that placed it


class GetOrder(Query[OrderView | None]):
    """How is this order doing?"""

    order_id: int
