"""What happens. No Flask here: `context.db_session` is the request's session, or the one of the cron step."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from message_bus import CommandHandlerABC, Context, EventHandlerABC, MessageBus, Reject
from theatre.messages import BookingCancelled, CancelBooking, GetPerformance, MailTicket, SeatBooked
from theatre.models import Booking, Performance, Ticket

bus = MessageBus()
print_at_once = partial(
    print, flush=True
)  # stands for a mail service: what a killed step has mailed is seen, too


class PrintTicket(EventHandlerABC):
    """The next ticket of the performance."""

    def _handle(self, event: SeatBooked, context: Context, *args: Any, **kwargs: Any) -> None:
        session: Session = context.db_session
        performance = session.get_one(Performance, event.performance_id)
        booking = session.get(Booking, event.booking_id)
        if booking is None:
            return  # cancelled before its ticket was printed
        if performance.hall is None:
            raise LookupError("the performance has no hall yet")  # tried again later
        if "@" not in booking.email:
            raise Reject("the e-mail address has no @")  # no use in trying again: a dead letter
        performance.printed += 1
        ticket = Ticket(performance_id=performance.id, booking_id=booking.id, number=performance.printed)
        session.add(ticket)
        session.flush()  # now the ticket has its id
        self.emit_message(MailTicket(ticket_id=ticket.id))


class MailTicketHandler(CommandHandlerABC):
    """The mail goes out again if the process dies before the commit; `ticket.mails` counts it once all the same."""

    def __init__(self, send: Callable[[str], None] = print_at_once) -> None:
        self.send = send

    def handle(self, cmd: MailTicket, context: Context, *args: Any, **kwargs: Any) -> None:
        """Send the ticket to whoever booked the seat."""
        session: Session = context.db_session
        ticket = session.get_one(Ticket, cmd.ticket_id)
        booking = session.get(Booking, ticket.booking_id)
        if booking is not None:
            ticket.mails += 1
            session.flush()
            request = context.envelope.correlation_id
            self.send(f"mail to {booking.email}: ticket {ticket.number}, seat {booking.seat} ({request})")


class CancelBookingHandler(CommandHandlerABC):
    """Runs inside the request, on its session. What it emits is put into the outbox of that session."""

    def handle(self, cmd: CancelBooking, context: Context, *args: Any, **kwargs: Any) -> bool:
        """Delete the booking; whether there was one."""
        session: Session = context.db_session
        booking = session.get(Booking, cmd.booking_id)
        if booking is None:
            return False
        session.delete(booking)
        self.emit_message(BookingCancelled(performance_id=booking.performance_id, booking_id=cmd.booking_id))
        return True


bus.set_command_handler(MailTicket, MailTicketHandler())
bus.set_command_handler(CancelBooking, CancelBookingHandler())
bus.set_event_handlers(SeatBooked, [PrintTicket()])


@bus.event_handler(BookingCancelled)
def void_ticket(event: BookingCancelled, context: Context) -> None:
    """The ticket lets nobody in any more."""
    query = select(Ticket).where(Ticket.booking_id == event.booking_id)
    for ticket in context.db_session.scalars(query):
        ticket.void = True


@bus.query_handler(GetPerformance)
def get_performance(query: GetPerformance, context: Context) -> dict[str, Any]:
    """The performance, its bookings and its tickets."""
    session: Session = context.db_session
    performance = session.get_one(Performance, query.performance_id)
    bookings = session.scalars(
        select(Booking).where(Booking.performance_id == performance.id).order_by(Booking.id)
    )
    tickets = session.scalars(
        select(Ticket).where(Ticket.performance_id == performance.id).order_by(Ticket.number)
    )
    return {
        "title": performance.title,
        "hall": performance.hall,
        "bookings": [{"id": each.id, "seat": each.seat, "email": each.email} for each in bookings],
        "tickets": [
            {"number": each.number, "booking": each.booking_id, "void": each.void} for each in tickets
        ],
    }
