"""The requests. Each that changes something ends with one commit: rows and messages, or neither."""

from typing import Any

from flask import Blueprint, abort, request
from sqlalchemy.exc import IntegrityError, NoResultFound

from theatre.handlers import bus
from theatre.messages import CancelBooking, GetPerformance, SeatBooked
from theatre.models import Booking, Performance, db

web = Blueprint("web", __name__)


@web.post("/performances")
def announce() -> tuple[dict[str, Any], int]:
    """A new performance, with or without its hall."""
    performance = Performance(title=request.json["title"], hall=request.json.get("hall"))
    db.session.add(performance)
    db.session.commit()
    return {"id": performance.id}, 201


@web.patch("/performances/<int:performance_id>")
def decide_hall(performance_id: int) -> dict[str, Any]:
    """The hall is decided."""
    performance = db.get_or_404(Performance, performance_id)
    performance.hall = request.json["hall"]
    db.session.commit()
    return {"id": performance_id, "hall": performance.hall}


@web.post("/performances/<int:performance_id>/bookings")
def book(performance_id: int) -> tuple[dict[str, Any], int]:
    """All of these seats, or none of them."""
    db.get_or_404(Performance, performance_id)
    booked = []
    try:
        for seat in sorted(request.json["seats"]):  # sorted: two groups never wait for each other's seats
            booking = Booking(performance_id=performance_id, seat=seat, email=request.json["email"])
            db.session.add(booking)
            db.session.flush()  # now the booking has its id; or the seat is taken
            bus.register_outbox_message(
                db.session, SeatBooked(performance_id=performance_id, booking_id=booking.id)
            )
            booked.append(booking.id)
        db.session.commit()
    except IntegrityError:
        db.session.rollback()  # takes the seats before this one back, and their messages
        abort(409, "one of the seats is taken")
    return {"bookings": booked}, 201


@web.patch("/bookings/<int:booking_id>")
def correct_email(booking_id: int) -> dict[str, Any]:
    """The e-mail address was wrong."""
    booking = db.get_or_404(Booking, booking_id)
    booking.email = request.json["email"]
    db.session.commit()
    return {"id": booking_id, "email": booking.email}


@web.delete("/bookings/<int:booking_id>")
def cancel(booking_id: int) -> tuple[str, int]:
    """A command, handled at once on the session of this request; what it emits waits in the outbox."""
    context = {"db_session": db.session, "outbox": db.session}
    (handled,) = bus.handle(CancelBooking(booking_id=booking_id), context=context)
    if not handled["result"]:
        abort(404)
    db.session.commit()
    return "", 204


@web.get("/performances/<int:performance_id>")
def show(performance_id: int) -> dict[str, Any]:
    """A query, answered from the session of this request."""
    try:
        return bus.ask(GetPerformance(performance_id=performance_id), context={"db_session": db.session})
    except NoResultFound:
        abort(404)
