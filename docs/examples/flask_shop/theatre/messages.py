"""What the parts of the theatre tell each other. Ids only: whoever handles a message reads how things are by then."""

from typing import Any

from message_bus import Command, Event, Query


class SeatBooked(Event, name="theatre.seat_booked", key="performance_id"):
    """A seat has its owner. Those of one performance are handled in the order of booking."""

    performance_id: int
    booking_id: int


class BookingCancelled(Event, name="theatre.booking_cancelled", key="performance_id"):
    """A seat is free again. The same key: it never overtakes its SeatBooked."""

    performance_id: int
    booking_id: int


class CancelBooking(Command):
    """Handled in the request itself; it never reaches the outbox."""

    booking_id: int


class MailTicket(Command, name="theatre.mail_ticket"):
    """Emitted when a ticket was printed; it reaches the outbox together with the ticket."""

    ticket_id: int


class GetPerformance(Query[dict[str, Any]]):
    """How things stand."""

    performance_id: int
