"""`definition_of`: the options of a message class, its key, and who may have a definition."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from message_bus.errors import (
    InvalidMessage,
    MessageDecodeError,
    MessageDefinitionError,
    NotAMessage,
    SettingsError,
)
from message_bus.messages import Command, Event, Message, definition_of


class Level(Enum):
    HIGH = "high"


class OrderPlaced(
    Event, name="orders.placed", version=2, key="order_id", renamed_from=("OrderMade", "Ordered")
):
    order_id: int | None


class Shipped(OrderPlaced):
    pass


class TestOptions:
    def test_defaults(self) -> None:
        """Without options the class name is the name, the version is 1, there is no key."""

        class ProcessOrder(Command):
            order_id: int

        definition = definition_of(ProcessOrder)
        assert (definition.cls, definition.kind, definition.name) == (ProcessOrder, "COMMAND", "ProcessOrder")
        assert (definition.version, definition.renamed_from) == (1, ())
        assert definition.key_of(ProcessOrder(1)) is None

    def test_as_given(self) -> None:
        """The options of the class statement are those of the definition."""
        definition = definition_of(OrderPlaced)
        assert (definition.kind, definition.name, definition.version) == ("EVENT", "orders.placed", 2)
        assert definition.renamed_from == ("OrderMade", "Ordered")

    def test_only_the_key_is_inherited(self) -> None:
        """A descendant is a type of its own, with a name and version of its own, under the same key."""
        definition = definition_of(Shipped)
        assert (definition.name, definition.version, definition.renamed_from) == ("Shipped", 1, ())
        assert definition.key_of(Shipped(3)) == "3"

    def test_made_once(self) -> None:
        """The definition of a class is cached and cannot be changed."""
        assert definition_of(OrderPlaced) is definition_of(OrderPlaced)
        with pytest.raises(dataclasses.FrozenInstanceError):
            definition_of(OrderPlaced).version = 3  # type: ignore[misc]

    def test_wrong_options_are_all_told_at_once(self) -> None:
        """Options are checked at the class statement, all of them."""
        with pytest.raises(SettingsError) as caught:

            class Wrong(Event, name="", version=0, key=3, renamed_from=["", "x"]):  # type: ignore[arg-type]
                pass

        assert len(caught.value.problems) == 4
        with pytest.raises(SettingsError, match="version=True"):

            class Truth(Event, version=True):
                pass

    def test_unknown_options_are_refused(self) -> None:
        """A misspelt option does not pass silently."""
        with pytest.raises(SettingsError, match="unknown option 'nmae'"):

            class Misspelt(Event, nmae="x"):  # type: ignore[call-arg]
                pass


class TestKey:
    @pytest.mark.parametrize(
        ("value", "key"),
        [
            (None, None),
            (0, "0"),
            ("", ""),
            ("a", "a"),
            (Level.HIGH, "high"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ],
    )
    def test_values(self, value: Any, key: str | None) -> None:
        """The key is the text of the field's value; only None means that there is none."""

        class Keyed(Event, key="field"):
            field: Any

        assert definition_of(Keyed).key_of(Keyed(value)) == key

    def test_a_property_or_a_function(self) -> None:
        """The key may be computed."""

        class WithProperty(Event, key="both"):
            a: int
            b: int

            @property
            def both(self) -> str:
                return f"{self.a}-{self.b}"

        class WithFunction(Event, key=lambda message: message.a % 10):
            a: int

        assert definition_of(WithProperty).key_of(WithProperty(1, 2)) == "1-2"
        assert definition_of(WithFunction).key_of(WithFunction(17)) == "7"

    def test_a_key_that_is_no_field(self) -> None:
        """A misspelt key is found at definition."""

        class Misspelt(Event, key="oder_id"):
            order_id: int

        with pytest.raises(
            MessageDefinitionError, match=r"key='oder_id' is no field of it \(name a field or"
        ):
            definition_of(Misspelt)

    def test_a_key_that_cannot_be_read(self) -> None:
        """An error of a key function is an invalid message, with the error as its cause."""

        class Broken(Event, key=lambda message: 1 // message.a):
            a: int

        with pytest.raises(InvalidMessage, match=r"its key cannot be read \(ZeroDivisionError\)") as caught:
            definition_of(Broken).key_of(Broken(0))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("thing", [int, dict[str, int], object(), None, "OrderPlaced", OrderPlaced(1)])
def test_what_is_no_message_class(thing: Any) -> None:
    """Only classes of commands and events have definitions."""
    with pytest.raises(NotAMessage):
        definition_of(thing)


def test_errors_survive_pickling() -> None:
    """The errors of this room keep their attributes over a process boundary."""
    errors: list[Any] = []
    for attempt in (
        lambda: definition_of(OrderPlaced).decode(b"{}"),
        lambda: definition_of(OrderPlaced).check(OrderPlaced("x")),  # type: ignore[arg-type]
    ):
        with pytest.raises((MessageDecodeError, InvalidMessage)) as caught:
            attempt()
        errors.append(caught.value)
    for error in errors:
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (str(copied), copied.message_name, copied.field) == (str(error), "orders.placed", "order_id")


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_meet_a_fresh_class(eager_threads: None) -> None:
    """Many threads may make the first instances and the definition of a class at the same time."""
    for _ in range(50):

        class Base(Event):
            a: int

        class Derived(Base):
            b: int = 0

        start = threading.Barrier(8)
        failures: list[BaseException] = []

        def work(
            number: int,
            base: Any = Base,
            derived: Any = Derived,
            start: Any = start,
            failures: Any = failures,
        ) -> None:
            try:
                start.wait()
                cls = (base, derived)[number % 2]
                message = cls(number)
                assert message == cls(number)
                assert definition_of(cls).decode(definition_of(cls).check(message)) == message
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_importing_messages_loads_nothing_heavy() -> None:
    """Neither SQLAlchemy nor dataclasses-serialization is loaded by messages, nor by using one."""
    program = (
        "import sys\n"
        "from message_bus.messages import Command, definition_of\n"
        "from message_bus import types\n"
        "class A(Command):\n"
        "    x: int\n"
        "definition_of(A).check(A(1))\n"
        "heavy = {'sqlalchemy', 'dataclasses_serialization', 'toolz', 'asyncio', 'logging', 'alembic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "types.serializer\n"
        "print('dataclasses_serialization' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_the_methods_are_there_for_every_message() -> None:
    """`serialize` and `deserialize` belong to `Message` itself."""
    assert Message.serialize(OrderPlaced(1)) == {"order_id": 1}
    assert OrderPlaced.deserialize({"order_id": 1}) == OrderPlaced(1)
