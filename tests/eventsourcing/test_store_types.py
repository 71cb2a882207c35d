"""Which class a stored event is of, and what a loaded event offers besides its fields."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import datetime
from typing import Any

import pytest

from message_bus.errors import (
    ConcurrencyError,
    DuplicateEvent,
    MessageDefinitionError,
    SettingsError,
    UnknownEventType,
)
from message_bus.eventsourcing.stores.event_types import EventTypes
from message_bus.eventsourcing.stores.in_memory_store import InMemoryEventStore
from message_bus.eventsourcing.stores.store import Snapshot
from message_bus.messages.envelope import new_envelope
from message_bus.messages.ids import uuid7
from message_bus.messages.message import Event
from message_bus.messages.recorded import RecordedEvent
from message_bus.messages.registry import Registry
from message_bus.testing.event_store_messages import AccountOpened, Deposited, contract_registry


class Moored(Event, name="types.moored", renamed_from=("types.tied_up",)):
    ship: str


class TiedUp(Event, name="types.tied_up_once"):
    ship: str


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Event, name="types.slotted"):
    ship: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Event, name="types.frozen"):
    ship: str


class HandWritten(Event, name="types.hand_written"):
    def __init__(self, ship: str) -> None:
        self.ship = ship


class WithProperty(Event, name="types.with_property"):
    ship: str

    @property
    def id(self) -> str:
        """What the class says of itself."""
        return f"ship {self.ship}"


class Keyed(Event, name="types.keyed", key="id"):
    id: int


# --- which class


def test_without_a_registry_every_defined_class_is_known() -> None:
    """By its name, and by the names that it had."""
    store = InMemoryEventStore()
    store.save("a", [Moored("Fram"), Frozen(ship="Fram")])
    assert store.load("a") == [Moored("Fram"), Frozen(ship="Fram")]
    assert EventTypes().decoder("types.tied_up", 1)(b'{"ship": "Fram"}') == Moored("Fram")


def test_a_class_that_is_defined_later_is_found() -> None:
    """The store looks again when it meets a name that it does not know."""
    types = EventTypes()
    with pytest.raises(UnknownEventType, match="import the module of its class"):
        types.decoder("types.launched", 1)

    class Launched(Event, name="types.launched"):
        ship: str

    assert types.decoder("types.launched", 1)(b'{"ship": "Fram"}') == Launched("Fram")


def test_a_name_of_two_classes_is_an_error() -> None:
    """It says which two, and that a registry decides; the others are not affected."""

    class One(Event, name="types.ambiguous"):
        ship: str

    class Two(Event, name="types.ambiguous"):
        ship: str

    types = EventTypes()
    with pytest.raises(SettingsError, match=r"One and .*Two .*registry="):
        types.decoder("types.ambiguous", 1)
    types.decoder("types.moored", 1)
    registry = Registry()
    registry.register(Two)
    assert EventTypes(registry).decoder("types.ambiguous", 1)(b'{"ship": "Fram"}') == Two("Fram")
    assert One("Fram") != Two("Fram")


def test_a_class_that_is_defined_again_takes_the_place_of_the_old_one() -> None:
    """In a notebook, after a reload, and with `dataclass(slots=True)`, which makes a second class."""

    def define() -> type[Event]:
        class Again(Event, name="types.again"):
            ship: str

        return Again

    old, new = define(), define()
    assert old is not new
    assert type(EventTypes().decoder("types.again", 1)(b'{"ship": "Fram"}')) is new
    assert type(EventTypes().decoder("types.slotted", 1)(b'{"ship": "Fram"}')) is Slotted


def test_a_class_that_was_refused_is_no_candidate() -> None:
    """Its error keeps it alive, in a notebook for as long as its cell; the others are read all the same."""
    with pytest.raises(MessageDefinitionError) as refused:

        class Refused(Event, name="types.refused"):
            ship = "Fram"

    assert any(each.__name__ == "Refused" for each in Event.__subclasses__()), refused
    assert EventTypes().decoder("types.moored", 1)(b'{"ship": "Fram"}') == Moored("Fram")
    with pytest.raises(UnknownEventType):
        EventTypes().decoder("types.refused", 1)


def test_the_classes_of_the_contracts_are_no_candidates() -> None:
    """Who runs our contracts beside his own tests may call an event as they do."""

    class MyAccount(Event, name="contract.account_opened"):
        owner: str

    assert type(EventTypes().decoder("contract.account_opened", 1)(b'{"owner": "Ada"}')) is MyAccount
    assert AccountOpened("Ada") != MyAccount("Ada")


def test_a_newer_version_than_the_class_is_unknown() -> None:
    """In a rolling deploy an old program meets what a new one has written."""
    text = (
        r"'types.moored' was written in version 2, by a newer process: the class here has version 1 \(deploy"
    )
    with pytest.raises(UnknownEventType, match=text) as caught:
        EventTypes().decoder("types.moored", 2)
    assert (caught.value.message_name, caught.value.version) == ("types.moored", 2)
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(copied), copied.version) == (str(caught.value), 2)


def test_with_a_registry_only_what_is_in_it_is_known() -> None:
    """A class that happens to be defined is not enough."""
    store = InMemoryEventStore(registry=contract_registry())
    store.save("a", [Moored("Fram")])
    with pytest.raises(UnknownEventType, match=r"types\.moored"):
        store.load("a")


def test_gaps_are_found_at_the_start() -> None:
    """`check` names the version that nothing leads on from."""
    registry = Registry()
    registry.register(Deposited)
    with pytest.raises(SettingsError, match="nothing leads from version 1"):
        EventTypes(registry).check()


# --- what a loaded event offers


@pytest.mark.parametrize("event", [Moored("Fram"), Frozen(ship="Fram"), HandWritten("Fram")], ids=repr)
def test_a_loaded_event_offers_its_envelope(event: Event) -> None:
    """Whatever way its class is written; and it is the same event as before in every other respect."""
    store = InMemoryEventStore()
    (recorded,) = store.save("a", [event])
    (loaded,) = store.load("a")
    assert loaded.envelope == recorded
    assert loaded.envelope.message is loaded
    given: Any = loaded
    assert (given.id, given.timestamp) == (recorded.id, recorded.timestamp)
    assert loaded.serialize() == event.serialize()
    assert repr(loaded).partition(" object")[0] == repr(event).partition(" object")[0]
    assert pickle.loads(pickle.dumps(loaded)).envelope == recorded  # noqa: S301
    assert copy.deepcopy(loaded).envelope == recorded


def test_one_that_was_not_loaded_has_none() -> None:
    """Reading it is an AttributeError that says where it would come from; changed copies have none either."""
    with pytest.raises(AttributeError, match="only events that a store has loaded"):
        _ = Moored("Fram").envelope
    assert not hasattr(Moored("Fram"), "id")
    store = InMemoryEventStore()
    store.save("a", [Frozen(ship="Fram")])
    (loaded,) = store.load("a")
    assert isinstance(loaded, Frozen)
    assert not hasattr(dataclasses.replace(loaded, ship="Gjøa"), "envelope")


def test_slots_have_no_place_for_it() -> None:
    """Such an event is loaded like any other; its envelope is there when the whole log is read."""
    store = InMemoryEventStore()
    store.save("a", [Slotted("Fram")])
    (loaded,) = store.load("a")
    assert loaded == Slotted("Fram")
    assert not hasattr(loaded, "envelope")
    assert store.read_all()[0].version == 1


def test_what_the_class_says_itself_hides_it() -> None:
    """A field, also one without a default, and a property."""
    store = InMemoryEventStore()
    store.save("a", [WithProperty("Fram"), Keyed(7)])
    ship, keyed = store.load("a")
    assert isinstance(ship, WithProperty)
    assert ship.id == "ship Fram"
    assert isinstance(keyed, Keyed)
    assert keyed.id == 7
    with pytest.raises(TypeError, match="id"):
        Keyed()  # type: ignore[call-arg]


def test_a_recorded_event_can_be_pickled_and_compared() -> None:
    """Before and after somebody has looked into it."""
    store = InMemoryEventStore()
    store.save("a", [new_envelope(Moored("Fram"), meta={"user": 7})])
    fresh, read = store.read_all()[0], store.read_all()[0]
    assert pickle.loads(pickle.dumps(fresh)) == read  # noqa: S301
    assert read.meta == {"user": 7}
    assert pickle.loads(pickle.dumps(read)) == fresh  # noqa: S301
    with pytest.raises(AttributeError, match="nothing"):
        _ = fresh.nothing  # type: ignore[attr-defined]


def test_saving_a_recorded_event_again_is_refused() -> None:
    """It keeps its id, as an Envelope does: copying a log is safe to repeat."""
    source, copied = InMemoryEventStore(), InMemoryEventStore()
    (recorded,) = source.save("a", [Moored("Fram")])
    assert isinstance(recorded, RecordedEvent)
    (again,) = copied.save("a", [recorded])
    assert (again.id, again.headers) == (recorded.id, recorded.headers)
    with pytest.raises(DuplicateEvent):
        copied.save("a", [recorded])


# --- errors and snapshots


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConcurrencyError("a", 1, 2),
            "aggregate 'a' was expected at version 1, but is at version 2 (load it again and repeat)",
        ),
        (
            ConcurrencyError("a", 1, None),
            "aggregate 'a' was expected at version 1, but was changed by another transaction "  # noqa: ISC004
            "(roll back, load it again and repeat)",
        ),
        (
            ConcurrencyError("a", None, None),
            "aggregate 'a' was changed by another transaction (roll back, load it again and repeat)",
        ),
    ],
)
def test_what_a_conflict_says(error: ConcurrencyError, text: str) -> None:
    """What was expected, what is there, what to do; and it survives pickling."""
    assert str(error) == text
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.aggregate_id, again.expected_version, again.actual_version) == (
        error.aggregate_id, error.expected_version, error.actual_version,
    )  # fmt: skip


def test_errors_survive_pickling() -> None:
    """With what they know."""
    taken = uuid7()
    again = pickle.loads(pickle.dumps(DuplicateEvent("a", taken)))  # noqa: S301
    assert (again.aggregate_id, again.event_id, str(taken) in str(again)) == ("a", taken, True)
    unknown = pickle.loads(pickle.dumps(UnknownEventType("types.x")))  # noqa: S301
    assert unknown.message_name == "types.x"


def test_a_snapshot_says_everything_that_does_not_fit() -> None:
    """At once, when it is made."""
    moment: Any = datetime(2024, 5, 1)
    with pytest.raises(SettingsError) as caught:
        Snapshot("a", "Account", -1, {}, moment, 0)
    assert len(caught.value.problems) == 3


def test_of_two_classes_the_one_that_was_saved_is_meant() -> None:
    """Test modules of one process may each have their own `OrderPlaced`; a store that is made later knows it, too."""

    class First(Event, name="types.saved"):
        ship: str

    class Second(Event, name="types.saved"):
        ship: str

    for cls in (First, Second, First):
        store = InMemoryEventStore()
        store.save("Fram", [cls(ship="Fram")])
        assert store.load("Fram") == [cls(ship="Fram")]
        assert EventTypes().decoder("types.saved", 1)(b'{"ship": "Fram"}') == cls(ship="Fram")
