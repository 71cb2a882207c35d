"""What happens in the shop. A message is a dataclass; deriving from `Event` (or `Command`) is enough.

`key="sku"`: messages about one product are handled in order. So the last boxes go to who ordered first, even if some
handler fails in between: then the later messages of that product wait, and only those.
"""

from __future__ import annotations

from message_bus import Event


class OrderPlaced(Event, name="shop.order_placed", key="sku"):
    """An order has been accepted."""

    order_id: int
    sku: str


class StockReserved(Event, name="shop.stock_reserved", key="sku"):
    """The boxes for an order have been set aside."""

    order_id: int
    sku: str
