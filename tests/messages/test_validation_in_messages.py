"""Validators in `__post_init__`: what becomes of their error when a message is made, registered and decoded."""

# ruff: noqa: D102  (the classes here are samples)

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from message_bus import (
    Command,
    Event,
    MessageBus,
    MessageBusTables,
    SQLAlchemyOutBoxRepo,
    ValidationError,
    validate_positive,
)
from message_bus.errors import InvalidMessage, MessageDecodeError
from message_bus.messages import Registry, definition_of


class Undecorated(Command):
    quantity: int
    note: str | None = "x"

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_positive(self.quantity, "quantity")


@dataclass
class Decorated(Command):
    quantity: int

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")


@dataclass(frozen=True, kw_only=True)
class Frozen(Event):
    quantity: int

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")


@dataclass(slots=True)
class Slotted(Event):
    quantity: int

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_positive(self.quantity, "quantity")


class ByKeyword(Event, frozen=True, kw_only=True):
    quantity: int

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")


class Inherited(Undecorated):
    more: str = ""


class ByHand(Command):
    def __init__(self, quantity: int) -> None:
        validate_positive(quantity, "quantity")
        self.quantity = quantity


class Reading(Command):
    quantity: int

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Reading:
        return cls(quantity=int(data["quantity"]))


class Super(Undecorated):
    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Any:
        return super().deserialize(data)


FORMS: tuple[Any, ...] = (
    Undecorated, Decorated, Frozen, Slotted, ByKeyword, Inherited, ByHand, Reading, Super,
)  # fmt: skip
forms = pytest.mark.parametrize("cls", FORMS)


@dataclass(frozen=True)
class Line:
    quantity: int

    def __post_init__(self) -> None:
        validate_positive(self.quantity, "quantity")


class Order(Command):
    first: Line
    lines: list[Line] = field(default_factory=list)
    by_name: dict[str, Undecorated] = field(default_factory=dict)
    by_hand: ByHand | None = None


class Period(Command):
    start: date
    end: date
    id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValidationError("the end lies before the start")


class TestInMessages:
    @forms
    def test_constructing(self, cls: Any) -> None:
        """The author of a message gets the validator's own error, in every form of class."""
        assert cls(quantity=1).quantity == 1
        with pytest.raises(ValidationError, match=r"\Aquantity: must be a number greater than 0\Z") as caught:
            cls(quantity=0)
        assert caught.value.field == "quantity"

    @forms
    def test_decoding(self, cls: Any) -> None:
        """A stored payload that the class refuses is a decode error with the field; the validator's is its cause."""
        registry = Registry()
        registry.register(cls)
        assert registry.decode(cls.__name__, 1, b'{"quantity":1}') == cls(quantity=1) or cls is ByHand
        for payload in (b'{"quantity":-53}', '{"quantity":-53}'):
            with pytest.raises(MessageDecodeError) as caught:
                registry.decode(cls.__name__, 1, payload)
            error = caught.value
            assert error.field == "quantity"
            assert str(error) == (
                f"cannot decode {cls.__name__!r}: field 'quantity' does not fit: must be a number greater than 0"
            )
            assert isinstance(error.__cause__, ValidationError)
            assert "-53" not in "".join(traceback.format_exception(error))

    @forms
    def test_from_a_dict(self, cls: Any) -> None:
        """Decoding a dict says the same."""
        with pytest.raises(MessageDecodeError, match="field 'quantity' does not fit: must be") as caught:
            definition_of(cls).decode({"quantity": -53})
        assert caught.value.field == "quantity"

    @pytest.mark.parametrize("cls", [Undecorated, Decorated, Slotted, Inherited, ByHand, Reading, Super])
    def test_registering(self, cls: Any) -> None:
        """A message that was changed after its check is refused when it is registered, naming the field."""
        message = cls(quantity=1)
        definition_of(cls).check(message)
        message.quantity = -53
        with pytest.raises(InvalidMessage) as caught:
            definition_of(cls).check(message)
        assert caught.value.field == "quantity"
        assert str(caught.value) == (
            f"message {cls.__name__!r}: field 'quantity' does not fit: must be a number greater than 0"
        )

    @pytest.mark.parametrize(
        ("payload", "path"),
        [
            (b'{"first":{"quantity":0}}', "first.quantity"),
            (b'{"first":{"quantity":1},"lines":[{"quantity":1},{"quantity":0}]}', "lines[1].quantity"),
            (b'{"first":{"quantity":1},"by_name":{"a":{"quantity":0}}}', "by_name[...].quantity"),
            (b'{"first":{"quantity":1},"by_hand":{"quantity":0}}', "by_hand.quantity"),
        ],
    )
    def test_nested(self, payload: bytes, path: str) -> None:
        """The field of a value inside a message is told with its path."""
        with pytest.raises(MessageDecodeError) as caught:
            definition_of(Order).decode(payload)
        assert caught.value.field == path
        assert (
            str(caught.value)
            == f"cannot decode 'Order': field {path!r} does not fit: must be a number greater than 0"
        )
        assert isinstance(caught.value.__cause__, ValidationError)

    def test_a_rule_about_several_fields(self) -> None:
        """Without a field the decode error still says what is wrong."""
        with pytest.raises(MessageDecodeError) as caught:
            definition_of(Period).decode(b'{"start":"2026-02-01","end":"2026-01-01"}')
        assert caught.value.field is None
        assert str(caught.value) == "cannot decode 'Period': the end lies before the start"

    def test_pickling_a_decode_error(self) -> None:
        """The decode error keeps its field when it is pickled."""
        with pytest.raises(MessageDecodeError) as caught:
            definition_of(Frozen).decode(b'{"quantity":0}')
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (again.field, str(again)) == ("quantity", str(caught.value))


@pytest.mark.sqlite
def test_a_stored_row_that_its_class_refuses(
    session_factory: sessionmaker[Session], tables: MessageBusTables
) -> None:
    """A row written before a rule was added ends as a dead letter that names the field and never the value."""
    handled: list[Event] = []
    bus = MessageBus({Frozen: [handled.append]})
    with session_factory.begin() as session:
        for quantity in (53, 54):
            bus.register_outbox_message(
                SQLAlchemyOutBoxRepo(session, tables=tables), Frozen(quantity=quantity)
            )
        first = sa.select(sa.func.min(tables.outbox.c.position)).scalar_subquery()
    with session_factory.begin() as session:
        row = tables.outbox.update().where(tables.outbox.c.position == first)
        session.execute(row.values(payload={"quantity": -53}))
    with session_factory() as session:
        report = bus.process_outbox(SQLAlchemyOutBoxRepo(session, tables=tables))
        assert (report.delivered, report.dead) == (1, 1)
        assert handled == [Frozen(quantity=54)]
        letter = session.execute(sa.select(tables.delivery)).one()
    assert "field 'quantity' does not fit: must be a number greater than 0" in letter.error
    assert "ValidationError: quantity: must be a number greater than 0" in letter.traceback
    assert "53" not in letter.error
