"""Every form a message class may be written in: each works, and works like a plain dataclass."""

# ruff: noqa: D102  (the classes here are samples)

from __future__ import annotations

import abc
import copy
import dataclasses
import pickle
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar

import pytest

from message_bus.commands import Command
from message_bus.errors import MessageDecodeError, MessageDefinitionError, NotAMessage
from message_bus.events import Event
from message_bus.messages import Message, definition_of


class ProcessOrder(Command):
    order_id: int
    tags: list[str] = field(default_factory=list)
    note: str = ""
    limit: ClassVar[int] = 5


class OrderMoved(Event):
    """Never instantiated by a test of its own: unpickling makes the first one."""

    order_id: int


@dataclass
class Decorated(Command):
    order_id: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Frozen(Event):
    order_id: int
    note: str = ""


@dataclass(slots=True)
class Slotted(Event, name="orders.slotted", version=2, key="order_id", renamed_from="Slotted"):
    order_id: int
    note: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.note = self.note.strip()

    def serialize(self) -> dict[str, Any]:
        return super().serialize()

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Slotted:
        return super().deserialize(data)


@dataclass(frozen=True, slots=True)
class FrozenSlotted(Event):
    order_id: int


class ByHand(Command):
    def __init__(self, data: str) -> None:
        self.data = data
        self.made_by_init = True


class ByHandAnnotated(Command):
    data: str
    size: int

    def __init__(self, data: str) -> None:
        self.data = data
        self.size = len(data)


class ByHandWithoutTypes(Event):
    def __init__(self, data, *, extra=None):  # type: ignore[no-untyped-def]
        self.data = data
        self.extra = extra


FORMS: list[Message] = [
    ProcessOrder(1, ["a"]),
    ProcessOrder(order_id=1),
    Decorated(1),
    Frozen(order_id=1, note="x"),
    Slotted(1, " x "),
    FrozenSlotted(1),
    ByHand("x"),
    ByHandAnnotated("xyz"),
    ByHandWithoutTypes({"a": [1]}, extra=2),
]


def again(message: Message) -> Any:
    """Encode and decode."""
    definition = definition_of(type(message))
    return definition.decode(definition.check(message))


@pytest.mark.parametrize("message", FORMS, ids=repr)
class TestEveryForm:
    def test_round_trip(self, message: Message) -> None:
        """A message of any form comes back equal, of the same class."""
        assert again(message) == message
        assert type(again(message)) is type(message)

    def test_serialize_and_deserialize(self, message: Message) -> None:
        """The two methods of the ancestor are each other's inverse."""
        assert type(message).deserialize(message.serialize()) == message

    def test_pickle_and_copy(self, message: Message) -> None:
        """Pickle, copy and deepcopy give equal messages."""
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(message, protocol)) == message  # noqa: S301
        assert copy.copy(message) == message
        assert copy.deepcopy(message) == message

    def test_it_is_a_dataclass(self, message: Message) -> None:
        """The functions of the module dataclasses know every form."""
        assert dataclasses.is_dataclass(type(message))
        assert dataclasses.asdict(message) == {  # type: ignore[call-overload]
            f.name: getattr(message, f.name) for f in dataclasses.fields(message)
        }
        assert repr(message).startswith(f"{type(message).__name__}(")


class TestUndecorated:
    def test_positional_and_by_name(self) -> None:
        """Fields are taken by position and by name."""
        assert ProcessOrder(1, ["x"]) == ProcessOrder(order_id=1, tags=["x"], note="")

    def test_default_factory_makes_a_fresh_value(self) -> None:
        """Two messages do not share a list."""
        first, second = ProcessOrder(1), ProcessOrder(2)
        first.tags.append("x")
        assert second.tags == []

    def test_wrong_arguments_are_refused(self) -> None:
        """The constructor complains like that of a dataclass, also for the very first instance."""

        class Fresh(Command):
            order_id: int

        with pytest.raises(TypeError, match="order_id"):
            Fresh()  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected"):
            Fresh(1, other=2)  # type: ignore[call-arg]

    def test_fields_before_the_first_instance(self) -> None:
        """`fields()` and `is_dataclass()` know a class that has never been instantiated."""

        class Base(Event):
            a: int

        class Derived(Base):
            b: int = 0

        assert [f.name for f in dataclasses.fields(Derived)] == ["a", "b"]
        assert dataclasses.is_dataclass(Derived)
        assert [f.name for f in dataclasses.fields(Base)] == ["a"]

    def test_fields_of_an_unfinished_class_whose_base_is_finished(self) -> None:
        """A class does not pass its base's fields off as its own."""

        class Base(Event):
            a: int

        assert Base(1).a == 1

        class Derived(Base):
            b: int

        assert [f.name for f in dataclasses.fields(Derived)] == ["a", "b"]

    def test_match_by_position(self) -> None:
        """A match statement takes fields by position."""
        match ProcessOrder(7):
            case ProcessOrder(order_id):
                assert order_id == 7
            case _:
                pytest.fail("did not match")

    def test_replace(self) -> None:
        """`dataclasses.replace` gives a changed copy."""
        assert dataclasses.replace(ProcessOrder(1, ["a"]), order_id=2) == ProcessOrder(2, ["a"])

    def test_a_class_attribute_is_no_field(self) -> None:
        """A ClassVar is neither asked for nor stored."""
        assert "limit" not in ProcessOrder(1).serialize()
        assert ProcessOrder(1).limit == 5

    def test_frozen_and_kw_only_as_class_keywords(self) -> None:
        """An undecorated class may be frozen and keyword-only; what derives from it is frozen, too."""

        class Base(Event, frozen=True):
            a: int

        class Derived(Base, kw_only=True):
            b: int

        message = Derived(1, b=2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            message.a = 3  # type: ignore[misc]
        with pytest.raises(TypeError, match="positional"):
            Derived(1, 2)  # type: ignore[misc]
        assert hash(message) == hash(Derived(1, b=2))

    def test_unpickled_before_any_instance_was_made(self) -> None:
        """An unpickled message of a class that this process never used has equality and a repr."""
        make, _, state = ProcessOrder(3).__reduce_ex__(pickle.HIGHEST_PROTOCOL)[:3]
        message = make(OrderMoved)
        vars(message).update(order_id=state["order_id"])
        assert repr(message) == "OrderMoved(order_id=3)"
        assert message == OrderMoved(3)

    def test_what_dataclass_refuses_is_refused_each_time(self) -> None:
        """A class that cannot become a dataclass says why, again and again."""

        class Wrong(Event):
            a: int = 1
            b: str

        for _ in range(2):
            with pytest.raises(MessageDefinitionError, match=r"'Wrong'.*non-default argument 'b'"):
                Wrong(1, "x")
            with pytest.raises(MessageDefinitionError, match="non-default argument 'b'"):
                definition_of(Wrong)

    def test_make_dataclass(self) -> None:
        """Classes made by `make_dataclass` are messages like others."""
        made = dataclasses.make_dataclass("Made", [("a", int)], bases=(Event,))
        assert again(made(1)) == made(1)


class TestDecorated:
    def test_frozen(self) -> None:
        """A frozen message is hashable and cannot be changed."""
        message = Frozen(order_id=1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            message.order_id = 2  # type: ignore[misc]
        assert {message: 1}[Frozen(order_id=1)] == 1

    def test_slots_have_no_dict(self) -> None:
        """The bases leave room for slots."""
        assert not hasattr(Slotted(1), "__dict__")
        assert not hasattr(FrozenSlotted(1), "__dict__")

    def test_slots_keep_the_options(self) -> None:
        """The class that `slots=True` makes anew has the name, version, key and former names of the first."""
        definition = definition_of(Slotted)
        assert (definition.name, definition.version, definition.renamed_from) == (
            "orders.slotted",
            2,
            ("Slotted",),
        )
        assert definition.key_of(Slotted(7)) == "7"

    def test_super_in_a_slotted_class(self) -> None:
        """`super()` without arguments works in the methods of a slotted message."""
        assert Slotted(1, " x ").note == "x"
        assert Slotted.deserialize(Slotted(1, "x").serialize()) == Slotted(1, "x")

    def test_slots_with_a_hand_written_init(self) -> None:
        """A slotted class may bring its own __init__."""

        @dataclass(slots=True)
        class SlottedByHand(Event):
            a: int

            def __init__(self, a: int) -> None:
                super().__init__()
                self.a = a

        assert again(SlottedByHand(1)) == SlottedByHand(1)
        assert not hasattr(SlottedByHand.__init__, "__guards__")

    def test_a_frozen_class_under_a_plain_base(self) -> None:
        """An undecorated base without fields may have frozen and not frozen descendants."""

        class DomainEvent(Event):
            """The common base of an application's events."""

        @dataclass(frozen=True)
        class One(DomainEvent):
            a: int

        @dataclass
        class Two(DomainEvent):
            a: int

        class Three(DomainEvent):
            a: int

        assert [again(m) for m in (One(1), Two(1), Three(1))] == [One(1), Two(1), Three(1)]


class TestPostInit:
    def test_super_post_init(self) -> None:
        """`super().__post_init__()` works in every class, and costs nothing where it is not called."""

        class Stripped(Command):
            name: str

            def __post_init__(self) -> None:
                super().__post_init__()
                self.name = self.name.strip()

        class Derived(Stripped):
            more: int = 0

            def __post_init__(self) -> None:
                super().__post_init__()
                self.more += 1

        assert Stripped(" x ").name == "x"
        assert (Derived(" x ").name, Derived(" x ").more) == ("x", 1)
        Message.__post_init__(ProcessOrder(1))

    def test_a_refusal_in_post_init_is_a_decode_error(self) -> None:
        """What a validator raises is the cause; its text, which may quote a value, is not ours."""

        class Positive(Command):
            amount: int

            def __post_init__(self) -> None:
                if self.amount <= 0:
                    raise ValueError(f"not positive: {self.amount}")

        with pytest.raises(MessageDecodeError) as caught:
            definition_of(Positive).decode(b'{"amount": -77}')
        assert "-77" not in str(caught.value)
        assert "ValueError" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)


class TestHandWrittenInit:
    def test_it_is_called_on_decode(self) -> None:
        """Decoding goes through `__init__`, with or without annotations."""
        assert again(ByHand("x")).made_by_init
        assert again(ByHandWithoutTypes([1])).extra is None

    def test_types_of_parameters_are_checked(self) -> None:
        """The annotations of the parameters are the types of the fields."""
        with pytest.raises(MessageDecodeError, match="field 'data' does not fit: expected `str`, got `int`"):
            definition_of(ByHand).decode(b'{"data": 1}')

    def test_a_missing_parameter_takes_its_default(self) -> None:
        """Missing keys take the parameter's default, or the field is named."""
        assert definition_of(ByHandWithoutTypes).decode(b'{"data": 1}') == ByHandWithoutTypes(1)
        with pytest.raises(MessageDecodeError, match="field 'data' is missing"):
            definition_of(ByHandWithoutTypes).decode(b"{}")

    def test_equality_from_the_first_instance_on(self) -> None:
        """The class is finished by its first instance, whoever wrote __init__."""

        class Fresh(Command):
            def __init__(self, data: str) -> None:
                self.data = data

        assert Fresh("x") == Fresh("x")
        assert repr(Fresh("x")).endswith("Fresh(data='x')")

    def test_a_field_that_init_does_not_ask_for_is_restored(self) -> None:
        """What was stored wins over what __init__ would compute anew."""
        restored = definition_of(ByHandAnnotated).decode(b'{"data": "xyz", "size": 99}')
        assert restored == _sized("xyz", 99)
        assert definition_of(ByHandAnnotated).decode(b'{"data": "xyz"}') == ByHandAnnotated("xyz")

    def test_inheritance(self) -> None:
        """A class without fields of its own inherits the __init__; one may call the other with super()."""

        class Same(ByHand):
            """No __init__, no fields."""

        class More(ByHand):
            def __init__(self, data: str, more: int = 0) -> None:
                super().__init__(data)
                self.more = more

        assert again(Same("x")) == Same("x")
        assert again(Same("x")).made_by_init
        assert again(More("x", 3)) == More("x", 3)
        assert again(More("x", 3)).made_by_init

    def test_fields_added_to_a_hand_written_init(self) -> None:
        """As in every dataclass, new fields bring a new __init__."""

        class Base(Command):
            a: int

            def __init__(self, a: int) -> None:
                self.a = a

        assert Base(1).a == 1

        class Derived(Base):
            b: int

        assert again(Derived(1, 2)) == Derived(1, 2)
        assert again(Base(1)) == Base(1)

    def test_any_keyword(self) -> None:
        """An __init__ that takes any keyword gets every field."""

        class Loose(Command):
            a: int
            b: int

            def __init__(self, **fields: int) -> None:
                self.a, self.b = fields["a"], fields["b"]

        assert again(Loose(a=1, b=2)) == Loose(a=1, b=2)

    def test_a_parameter_that_is_no_field(self) -> None:
        """An __init__ that could not be called on decode is refused at definition."""

        class Total(Command):
            total: int

            def __init__(self, left: int, right: int) -> None:
                self.total = left + right

        with pytest.raises(
            MessageDefinitionError, match=r"'left' of __init__ is no field of 'Total'.*make it a field"
        ):
            definition_of(Total)

    def test_a_parameter_that_is_not_kept(self) -> None:
        """An __init__ that does not keep what it was given is found at registration."""

        class Forgetful(Command):
            def __init__(self, data: str) -> None:
                self.other = data

        with pytest.raises(Exception, match=r"it has no attribute 'data' \(set self.data in __init__"):
            definition_of(Forgetful).check(Forgetful("x"))

    def test_an_error_of_init_is_a_decode_error(self) -> None:
        """What __init__ raises on decode is the cause of a MessageDecodeError without its text."""

        class Choosy(Command):
            def __init__(self, data: str) -> None:
                if data == "secret":
                    raise KeyError(data)
                self.data = data

        with pytest.raises(MessageDecodeError, match="refused by the class") as caught:
            definition_of(Choosy).decode(b'{"data": "secret"}')
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)


def _sized(data: str, size: int) -> ByHandAnnotated:
    message = ByHandAnnotated(data)
    message.size = size
    return message


class TestFieldSpecials:
    def test_init_false_is_restored(self) -> None:
        """A field with `init=False` is stored and restored, and computed if a payload lacks it."""

        class Sum(Event):
            a: int
            b: int
            total: int = field(init=False)

            def __post_init__(self) -> None:
                self.total = self.a + self.b

        assert again(Sum(1, 2)) == Sum(1, 2)
        assert definition_of(Sum).decode(b'{"a":1,"b":2}').total == 3
        assert definition_of(Sum).decode(b'{"a":1,"b":2,"total":9}').total == 9

    def test_init_var_is_refused(self) -> None:
        """An InitVar is not stored, so decoding could not give it: refused, with the remedy."""

        class Hashed(Command):
            digest: str = ""
            password: InitVar[str] = ""

        with pytest.raises(
            MessageDefinitionError, match=r"field 'password' is an InitVar.*make it a field"
        ) as caught:
            definition_of(Hashed)
        assert caught.value.field == "password"

    def test_kw_only_field(self) -> None:
        """A keyword-only field may follow one with a default."""

        class Mixed(Event):
            a: int = 0
            b: int = field(kw_only=True)

        assert again(Mixed(1, b=2)) == Mixed(b=2, a=1)


class TestInheritance:
    def test_fields_and_defaults_are_inherited(self) -> None:
        """Each class of a line has its own constructor, whichever is used first."""

        class Base(Event):
            a: int

        class Middle(Base):
            b: int = 1

        class Last(Middle):
            c: int = 2

        assert Last(0, 1, 2).c == 2
        assert Base(0).a == 0
        assert Middle(0, 5).b == 5
        assert Base(1) == Base(1)
        assert [again(m) for m in (Base(0), Middle(0), Last(0))] == [Base(0), Middle(0), Last(0)]
        for cls in (Base, Middle, Last):
            assert not hasattr(cls.__init__, "__guards__")

    def test_a_base_that_is_used_before_and_after_its_descendant(self) -> None:
        """Instances of a base made while a descendant is unfinished are right, and cost nothing afterwards."""

        class Base(Event):
            a: int

        class Derived(Base):
            b: int

        assert Base(1) == Base(1)
        assert Derived(1, 2) == Derived(1, 2)
        assert Base(a=3).a == 3
        assert not hasattr(Base.__init__, "__guards__")

    def test_decorated_from_undecorated_and_back(self) -> None:
        """Decorated and undecorated classes may derive from each other."""

        class Base(Event):
            a: int

        @dataclass
        class Middle(Base):
            b: int

        class Last(Middle):
            c: int

        assert again(Last(1, 2, 3)) == Last(1, 2, 3)
        assert again(Middle(1, 2)) == Middle(1, 2)
        assert Base(1).a == 1

    def test_an_abstract_base(self) -> None:
        """An abstract message class has no definition of its own, its descendants do."""

        class Base(Event, abc.ABC):
            a: int

            @abc.abstractmethod
            def label(self) -> str: ...

        class Concrete(Base):
            def label(self) -> str:
                return f"<{self.a}>"

        with pytest.raises(MessageDefinitionError, match="'Base': it is abstract"):
            definition_of(Base)
        assert again(Concrete(1)).label() == "<1>"

    def test_mixins(self) -> None:
        """A plain class beside the message base contributes its methods."""

        class Shouting:
            name: str

            def shout(self) -> str:
                return self.name.upper()

        class Named(Shouting, Event):
            name: str

        assert again(Named("x")).shout() == "X"

    def test_without_any_field(self) -> None:
        """A message need not have fields."""

        class Ping(Event):
            pass

        assert again(Ping()) == Ping()
        with pytest.raises(TypeError):
            Ping(1)  # type: ignore[call-arg]

    def test_the_bases_themselves_are_no_messages(self) -> None:
        """Message, Command and Event are there to derive from."""
        for base in (Message, Command, Event):
            with pytest.raises(NotAMessage):
                base()
            with pytest.raises(NotAMessage):
                definition_of(base)
            assert not dataclasses.is_dataclass(base)

    def test_neither_command_nor_event(self) -> None:
        """A class that derives from Message alone serializes, as the ancestor's did, but no bus takes it."""

        class MyMessage(Message):
            name: str
            value: int

            def serialize(self) -> dict[str, Any]:
                return super().serialize()

            @classmethod
            def deserialize(cls, data: dict[str, Any]) -> MyMessage:
                return super().deserialize(data)

        assert MyMessage.deserialize(MyMessage("a", 1).serialize()) == MyMessage("a", 1)
        with pytest.raises(NotAMessage):
            definition_of(MyMessage)


class TestLocalClasses:
    def test_annotations_name_local_classes(self) -> None:
        """A class inside a function may use what is defined there before it, also as text annotations."""

        @dataclass
        class Line:
            sku: str

        class Placed(Event):
            first: Line
            lines: list[Line] = field(default_factory=list)

        assert again(Placed(Line("a"), [Line("b")])) == Placed(Line("a"), [Line("b")])

    def test_a_name_that_cannot_be_found(self) -> None:
        """An annotation that Python cannot resolve is reported with the field and the remedy."""

        class Lost(Event):
            a: int
            b: Nowhere  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(
            MessageDefinitionError,
            match=r"field 'b' has an annotation whose name 'Nowhere'.*top of the module",
        ) as caught:
            definition_of(Lost)
        assert caught.value.field == "b"
