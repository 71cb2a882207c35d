"""Which change of a message breaks what, rule by rule; and that what is called harmless really is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus.errors import MessageDecodeError, SettingsError
from message_bus.messages import Command, Event, Registry, definition_of
from message_bus.messages.schemas.compatibility import MessageChange, compare_message_schemas
from message_bus.messages.schemas.json_schema import message_schemas
from tests.messages.test_overrides import OnlyTolerant
from tests.messages.test_properties import json_values
from tests.messages.test_types import CASES, Color, Money, Size, Tree

ROWS, CODE, BOTH, NOBODY = ("old rows",), ("old code",), ("old rows", "old code"), ()
HINTS = [hint for hint, _ in CASES]


class More(Enum):
    """Color with one more value."""

    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Pair(NamedTuple):
    """Two, of which one may be left out."""

    x: int
    y: int = 0


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    """Takes nothing else."""

    a: int


class ClosedMore(msgspec.Struct, forbid_unknown_fields=True):
    """The same with one more."""

    a: int
    b: int = 0


def message(fields: dict[str, Any], base: type = Event, name: str = "Ordered", **options: Any) -> Any:
    """A message class; a field is a type, or a pair of type and default."""
    namespace: dict[str, Any] = {"__annotations__": {}}
    for field_name, what in fields.items():
        hint, *default = what if isinstance(what, tuple) else (what,)
        namespace["__annotations__"][field_name] = hint
        for value in default:
            namespace[field_name] = field(default_factory=lambda value=value: value, kw_only=True)
    return type(name, (base,), namespace, **options)


def export(*classes: Any, upcasters: dict[int, int] | None = None) -> Any:
    """What is in the file, for these classes; the upcasters are of all of them."""
    registry = Registry()
    registry.register(*classes)
    for cls in classes:
        for start, to in (upcasters or {}).items():
            registry.add_upcaster(cls, dict, from_version=start, to_version=to)
    return json.loads(json.dumps(message_schemas(registry)))


def changes(old: Any, new: Any) -> list[tuple[str | None, str, tuple[str, ...]]]:
    """Field, code and who is broken."""
    return [(each.field, each.code, each.breaks) for each in compare_message_schemas(old, new)]


def the_change(old: Any, new: Any) -> MessageChange:
    """The only one there is."""
    [found] = compare_message_schemas(old, new)
    return found


# --- types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "breaks", "text"),
    [
        (int, str, BOTH, "was an integer, and is a string now"),
        (int, int | None, CODE, "was an integer, and is an integer or null now"),
        (int | None, int, ROWS, "was an integer or null, and is an integer now"),
        (int | None, str | None, BOTH, "was an integer or null, and is a string or null now"),
        (int, float, CODE, "was an integer, and is a number now"),
        (float, int, ROWS, "was a number, and is an integer now"),
        (int, Any, CODE, "was an integer, and is anything now"),
        (Any, int, ROWS, "was anything, and is an integer now"),
        (str, UUID, ROWS, "was a string, and is a string (uuid) now"),
        (UUID, str, CODE, "was a string (uuid), and is a string now"),
        (bytes, str, CODE, "was a string (base64), and is a string now"),
        (datetime, date, BOTH, "was a string (date-time), and is a string (date) now"),
        (Decimal, UUID, BOTH, "was a string (decimal), and is a string (uuid) now"),
        (Color, str, CODE, "was one of 'blue', 'red', and is a string now"),
        (str, Color, ROWS, "was a string, and is one of 'blue', 'red' now"),
        (UUID, Color, BOTH, "was a string (uuid), and is one of 'blue', 'red' now"),
        (Color, Size, BOTH, "was one of 'blue', 'red', and is one of 1, 2 now"),
        (Color, More, CODE, "can be 'green' now"),
        (More, Color, ROWS, "cannot be 'green' any more"),
        (Literal["a", 1], Literal["a", 1, 2], CODE, "can be 2 now"),
        (list[int], set[int], ROWS, "was a list, and is a set now"),
        (set[int], list[int], CODE, "was a set, and is a list now"),
        (list[int], tuple[int, int], ROWS, "was a list, and is a tuple of 2 now"),
        (tuple[int, int], list[int], CODE, "was a tuple of 2, and is a list now"),
        (tuple[int, int], tuple[int, int, int], BOTH, "was a tuple of 2, and is a tuple of 3 now"),
        (dict[str, int], dict[int, int], ROWS, "has keys that are numbers instead of any strings"),
        (dict[int, int], dict[str, int], CODE, "has keys that are any strings instead of numbers"),
        (dict[UUID, int], dict[Color, int], BOTH, "has keys that are one of 'blue', 'red' instead of strings (uuid)"),
        (dict[str, int], Money, BOTH, "was an object, and is an object Money now"),
        (Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=0)], CODE, "has 0 as its minimum instead of 1"),
        (Annotated[int, msgspec.Meta(le=1)], Annotated[int, msgspec.Meta(le=0)], ROWS, "has 0 as its maximum instead of 1"),
        (str, Annotated[str, msgspec.Meta(max_length=3)], ROWS, "has 3 as its maxLength instead of nothing"),
        (Annotated[str, msgspec.Meta(pattern="^a")], str, CODE, "has nothing as its pattern instead of '^a'"),
        (Annotated[str, msgspec.Meta(pattern="^a")], Annotated[str, msgspec.Meta(pattern="^b")], BOTH,
         "has '^b' as its pattern instead of '^a'"),
        (Closed, ClosedMore, CODE, None),
    ],
)  # fmt: skip
def test_another_type(old: Any, new: Any, breaks: tuple[str, ...], text: str | None) -> None:
    """A type that changes breaks who reads what it could not be before, at the same version; and says the remedy."""
    found = the_change(export(message({"value": old})), export(message({"value": new})))
    assert found.breaks == breaks
    assert found.field is not None
    assert found.field.startswith("value")
    assert text is None or (found.field, found.text) == ("value", text)
    assert found.remedy is not None
    assert "version 2" in found.remedy
    assert "@registry.upcast('Ordered', from_version=1)" in found.remedy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (list[int], tuple[int, ...]),
        (dict[str, int], dict[str, int]),
        (int | None, None | int),
        (Color, Literal["red", "blue"]),
        (Annotated[int, msgspec.Meta(title="count")], int),
    ],
)
def test_the_same_in_other_words(old: Any, new: Any) -> None:
    """Types with the same JSON are the same type."""
    assert changes(export(message({"value": old})), export(message({"value": new}))) == []


@cache
def sample(number: int) -> tuple[Any, bytes, Any]:
    """A message class for a type, the payload of one of its messages, and its export."""
    hint, value = CASES[number]
    cls = message({"value": hint})
    return cls, definition_of(cls).encode(cls(value)), export(cls)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_is_called_harmless_can_be_read(number: int) -> None:
    """Any type that becomes any other: who is not said to break decodes what the other has written."""
    before, payload, document = sample(number)
    for other in range(len(CASES)):
        after, others_payload, others_document = sample(other)
        broken = {who for each in compare_message_schemas(document, others_document) for who in each.breaks}
        if "old rows" not in broken:
            definition_of(after).decode(payload)
        if "old code" not in broken:
            definition_of(before).decode(others_payload)


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_each_type_fits_itself(hint: Any) -> None:
    """Exported again from another class, nothing has changed."""
    assert changes(export(message({"value": hint})), export(message({"value": hint}))) == []


# --- fields ---------------------------------------------------------------------------------------------------------------

FIELD_RULES: list[tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, tuple[str, ...]]]]] = [
    ({"a": int}, {"a": int}, []),
    ({"a": int}, {"a": int, "b": (int, 0)}, [("b", "field-added", NOBODY)]),
    ({"a": int}, {"a": int, "b": int}, [("b", "required-field-added", ROWS)]),
    ({"a": int, "b": int}, {"a": int}, [("b", "field-removed", CODE)]),
    ({"a": int, "b": (int, 0)}, {"a": int}, [("b", "field-removed", CODE)]),
    ({"a": (int, 0)}, {"a": int}, [("a", "field-required", ROWS)]),
    ({"a": int}, {"a": (int, 0)}, [("a", "field-optional", NOBODY)]),
    ({"a": int}, {"b": int}, [("a", "field-removed", CODE), ("b", "required-field-added", ROWS)]),
    ({"a": int, "b": str}, {"b": str, "a": int}, []),
]


@pytest.mark.parametrize(("old", "new", "expected"), FIELD_RULES)
def test_fields(old: dict[str, Any], new: dict[str, Any], expected: Any) -> None:
    """Fields that come, go, or get and lose their default; in the message itself, and wherever it holds a dataclass."""
    assert changes(export(message(old)), export(message(new))) == expected


PLACES = {
    "part": lambda part: part,
    "part ": lambda part: part | None,
    "part[]": lambda part: list[part],
    "part{}": lambda part: dict[str, part],
    "part[1]": lambda part: tuple[int, part],
    "part[]{}": lambda part: list[dict[str, part]],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("old", "new", "expected"), FIELD_RULES)
def test_nested_fields(old: dict[str, Any], new: dict[str, Any], expected: Any, place: str) -> None:
    """The same inside of what a field holds, with the path that leads there."""

    def part(fields: dict[str, Any]) -> Any:
        made = make_dataclass(
            "Part",
            [
                (name, what[0], field(default=what[1], kw_only=True))
                if isinstance(what, tuple)
                else (name, what)
                for name, what in fields.items()
            ],
        )
        return message({"part": PLACES[place](made)})

    inside = [(f"{place.strip()}.{name}", code, breaks) for name, code, breaks in expected]
    assert changes(export(part(old)), export(part(new))) == inside


@dataclass
class Branch:
    """Inside of itself."""

    value: int
    up: Branch | None = None
    down: list[Branch] = field(default_factory=list)


def test_a_class_inside_of_itself_is_compared_once() -> None:
    """What has changed in it is said once, not at every depth."""
    old, new = export(message({"tree": Branch})), export(message({"tree": Branch}))
    its = new["messages"]["Ordered"]["schema"]["$defs"]["Branch"]
    its["properties"]["more"] = {"type": "integer"}
    its["required"].append("more")
    assert changes(old, new) == [("tree.more", "required-field-added", ROWS)]


def test_a_class_in_two_places_is_compared_in_both() -> None:
    """A consumer may read one of them only."""
    found = changes(
        export(message({"a": Money, "b": list[Money]})), export(message({"a": Tree, "b": list[Tree]}))
    )
    assert [path for path, code, _ in found if code == "required-field-added"] == ["a.value", "b[].value"]


def test_a_named_tuple_that_grows() -> None:
    """One more with a default: old rows are short enough, old code refuses the longer ones."""
    assert changes(export(message({"at": tuple[int]})), export(message({"at": Pair}))) == [
        ("at", "type-widened", CODE)
    ]


def test_another_default() -> None:
    """Nothing breaks, but rows without a value mean something else."""
    found = changes(export(message({"a": (int, 1)})), export(message({"a": (int, 2)})))
    assert found == []  # a factory's default is not known
    old = type("Ordered", (Event,), {"__annotations__": {"a": int}, "a": 1})
    new = type("Ordered", (Event,), {"__annotations__": {"a": int}, "a": 2})
    assert changes(export(old), export(new)) == [("a", "default-changed", NOBODY)]


# --- messages -------------------------------------------------------------------------------------------------------------

A = {"a": int}


def test_a_new_message() -> None:
    """Breaks nobody."""
    new = export(message(A), message(A, Command, "Order"))
    assert [
        (each.message, each.code, each.breaks) for each in compare_message_schemas(export(message(A)), new)
    ] == [("Order", "message-added", NOBODY)]


def test_a_message_that_is_gone() -> None:
    """Its rows cannot be read any more."""
    found = the_change(export(message(A)), export())
    assert (found.message, found.field, found.code, found.breaks) == (
        "Ordered",
        None,
        "message-removed",
        ROWS,
    )
    assert found.remedy is not None
    assert "keep the class" in found.remedy


def test_a_message_that_is_called_something_else() -> None:
    """Without renamed_from it breaks, and the remedy names the new one; with it nothing does."""
    old = export(message(A))
    gone, added = compare_message_schemas(old, export(message(A, name="Placed")))
    assert (gone.code, gone.breaks, added.code) == ("message-removed", ROWS, "message-added")
    assert gone.remedy == "if it is called 'Placed' now: class ...(Event, renamed_from='Ordered')"
    kept = export(message(A, name="Placed", renamed_from="Ordered"))
    assert changes(old, kept) == [(None, "renamed", NOBODY)]
    changed = export(message({"b": int}, name="Placed", renamed_from="Ordered"))
    assert [each.code for each in compare_message_schemas(old, changed)] == [
        *("renamed", "field-removed", "required-field-added"),
    ]


def test_a_former_name_that_is_forgotten() -> None:
    """Rows with it cannot be read any more; one that was added breaks nothing."""
    old = export(message(A, renamed_from=("Placed", "Order")))
    found = the_change(old, export(message(A, renamed_from="Order")))
    assert (found.code, found.breaks) == ("former-name-removed", ROWS)
    assert "'Placed'" in found.text
    assert changes(export(message(A)), old) == []
    again = export(message(A, name="Placed", renamed_from=("Ordered", "Order")))
    assert changes(old, again) == [(None, "renamed", NOBODY)]


def test_another_kind() -> None:
    """An event that becomes a command is another message."""
    found = the_change(export(message(A)), export(message(A, Command)))
    assert (found.code, found.breaks, found.text) == (
        "kind-changed",
        BOTH,
        "was an event, and is a command now",
    )


def test_another_key() -> None:
    """Nothing breaks, but the order of messages before and after it."""
    found = changes(export(message(A)), export(message(A, key="a")))
    assert found == [(None, "key-changed", NOBODY)]


def test_a_version_that_was_raised() -> None:
    """With upcasters from every version that could be read, whatever has changed breaks nobody; without one, old rows."""
    old = export(message(A))
    assert changes(old, export(message({"b": str}, version=2), upcasters={1: 2})) == [
        (None, "version-raised", NOBODY)
    ]
    found = the_change(old, export(message({"b": str}, version=2)))
    assert (found.field, found.code, found.breaks) == (None, "upcaster-missing", ROWS)
    assert found.text == "has no upcaster that leads from version 1 to 2"
    assert found.remedy == "write one: @registry.upcast('Ordered', from_version=1)"
    assert changes(old, export(message(A, version=3), upcasters={1: 3})) == [(None, "version-raised", NOBODY)]
    assert changes(old, export(message(A, version=3), upcasters={2: 3})) == [(None, "upcaster-missing", ROWS)]
    assert changes(old, export(message(A, version=3), upcasters={1: 2})) == [(None, "upcaster-missing", ROWS)]


def test_an_upcaster_that_is_gone() -> None:
    """What was read before must be read on, also the versions before the last; gaps of long ago are not today's."""
    old = export(message(A, version=3), upcasters={1: 2, 2: 3})
    assert changes(old, export(message(A, version=3), upcasters={2: 3})) == [(None, "upcaster-missing", ROWS)]
    assert changes(old, export(message(A, version=4), upcasters={1: 2, 2: 3, 3: 4})) == [
        (None, "version-raised", NOBODY)
    ]
    assert changes(old, export(message(A, version=4), upcasters={2: 3, 3: 4})) == [
        (None, "upcaster-missing", ROWS)
    ]
    gap = export(message(A, version=3), upcasters={2: 3})
    assert changes(gap, export(message(A, version=3), upcasters={2: 3})) == []


def test_a_version_that_was_lowered() -> None:
    """Rows of the higher one count as unknown."""
    found = the_change(export(message(A, version=2), upcasters={1: 2}), export(message(A)))
    assert (found.code, found.breaks) == ("version-lowered", ROWS)
    assert found.remedy == "give it version 3, and upcasters that lead there"


def test_a_message_written_by_hand() -> None:
    """Nothing can be said of its fields, and that is said; of name and version all the same."""
    by_hand = export(OnlyTolerant)
    assert changes(by_hand, by_hand) == []
    plain = export(message({"value": str}, name="OnlyTolerant"))
    assert changes(plain, by_hand) == [(None, "by-hand", NOBODY)]
    assert changes(by_hand, plain) == [(None, "by-hand", NOBODY)]
    assert changes(by_hand, export()) == [(None, "message-removed", ROWS)]


# --- properties -----------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d"])
fields_of_a_message = st.dictionaries(
    names,
    st.sampled_from(CASES).flatmap(lambda case: st.sampled_from([(case[0],), case])),
    max_size=4,
)


@given(fields_of_a_message)
def test_a_schema_fits_itself(fields: dict[str, Any]) -> None:
    """Whatever is in it."""
    assert changes(export(message(fields)), export(message(fields))) == []


@given(fields_of_a_message, st.sampled_from(CASES))
def test_a_field_with_a_default_breaks_nobody(fields: dict[str, Any], added: Any) -> None:
    """Whatever its type, and whatever else is there; and both sides really read on."""
    old, new = message(fields), message({**fields, "z": added})
    assert changes(export(old), export(new)) == [("z", "field-added", NOBODY)]
    values = {name: what[-1] for name, what in fields.items() if len(what) > 1}
    if len(values) == len(fields):
        definition_of(new).decode(definition_of(old).encode(old(**values)))
        definition_of(old).decode(definition_of(new).encode(new(**values)))


@given(fields_of_a_message.filter(bool), st.data())
def test_a_field_that_is_gone_breaks_somebody(fields: dict[str, Any], data: st.DataObject) -> None:
    """Whatever its type, default or not."""
    gone = data.draw(st.sampled_from(sorted(fields)))
    left = {name: what for name, what in fields.items() if name != gone}
    found = changes(export(message(fields)), export(message(left)))
    assert found == [(gone, "field-removed", CODE)]


# --- what a file may hold -------------------------------------------------------------------------------------------------

PLAIN = {
    "kind": "event",
    "version": 1,
    "key": None,
    "renamed_from": [],
    "upcasters": [],
    "by_hand": False,
    "schema": {},
}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (None, "the old one is no export"),
        ([], "the old one is no export"),
        ({}, "the old one is no export"),
        ({"message_bus": "1", "messages": {}}, "the old one is no export"),
        ({"message_bus": 1}, "the old one is no export"),
        ({"message_bus": 2, "messages": {}}, "was made by a newer version of message_bus"),
        ({"message_bus": 1, "messages": {"A": 1}}, "no whole entry for 'A'"),
        *(
            ({"message_bus": 1, "messages": {"A": {**PLAIN, name: "x"}}}, "no whole entry for 'A'")
            for name in PLAIN
            if name != "key"
        ),
        ({"message_bus": 1, "messages": {"A": {**PLAIN, "version": True}}}, "no whole entry for 'A'"),
        ({"message_bus": 1, "messages": {"A": {**PLAIN, "upcasters": [[1]]}}}, "no whole entry for 'A'"),
        ({"message_bus": 1, "messages": {"A": {**PLAIN, "renamed_from": [[]]}}}, "no whole entry for 'A'"),
    ],
)
def test_what_is_no_export(document: Any, problem: str) -> None:
    """Is refused with the remedy."""
    with pytest.raises(SettingsError) as caught:
        compare_message_schemas(document, export())
    assert problem in str(caught.value)


entries = st.fixed_dictionaries(
    {
        **{name: st.just(its) for name, its in PLAIN.items()},
        "schema": st.dictionaries(st.text(), json_values),
    }
)
documents = json_values | st.fixed_dictionaries(
    {"message_bus": st.just(1), "messages": st.dictionaries(st.text(), json_values | entries)}
)
keywords = st.sampled_from(
    ["type", "$ref", "anyOf", "enum", "properties", "required", "items", "prefixItems", "$defs", "minimum", "pattern", "format",
     "additionalProperties", "propertyNames", "minItems", "maxItems", "uniqueItems", "title", "default", "object", "array", "a"]
)  # fmt: skip
schemas = st.recursive(
    keywords | st.sampled_from(["#", "#/$defs/a", 0, 1, None, True, 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(keywords, schemas), st.dictionaries(keywords, schemas))
def test_a_damaged_schema_is_compared_all_the_same(old: Any, new: Any) -> None:
    """Whatever a file holds in the place of a schema, the comparison ends without an error."""
    both = [
        {"message_bus": 1, "messages": {"A": {**PLAIN, "schema": schema}}}
        for schema in (old, new, export(message({"a": Money, "type": int})))
    ]
    for one in both:
        for other in both:
            compare_message_schemas(one, other)


@given(documents)
def test_any_file_is_compared_or_refused(document: Any) -> None:
    """There is one error for whatever is no export."""
    with suppress(SettingsError):
        compare_message_schemas(document, export(message(A)))


def test_errors_of_decoding_are_what_breaking_means() -> None:
    """The meaning of "old rows", with the codec: a required field that was added makes a dead letter of an old row."""
    old, new = message(A), message({**A, "b": int})
    with pytest.raises(MessageDecodeError, match="b"):
        definition_of(new).decode(definition_of(old).encode(old(1)))
