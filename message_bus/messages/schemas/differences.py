"""How two JSON Schemas of one message differ, field by field: who could not read what the other has written. Pure.

Only the keywords that our exports hold are understood, with whatever values a file may hold; others are taken for remarks.
Called by `compatibility.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from message_bus.messages.schemas.nodes import (
    Node,
    alternatives,
    as_dict,
    as_list,
    essence,
    form_of,
    is_equal,
    is_set,
    is_tuple,
    kind_of,
    spelled,
    spelled_key,
    takes,
)

Breaks = Literal["old rows", "old code"]
OLD_ROWS: Final = "old rows"
OLD_CODE: Final = "old code"

_LOWER_LIMITS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_LIMITS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_OTHER_LIMITS: Final = ("pattern", "multipleOf")
_NOTHING: Final = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: where, what, and who cannot go on; nobody if `breaks` is empty."""

    path: str
    code: str
    text: str
    breaks: tuple[Breaks, ...] = ()


def differences(old: Node, new: Node) -> list[Difference]:
    """Say how the schema of a message has changed; the order is that of the old one's fields."""
    return list(_Comparison(old, new).of(old, new, ""))


class _Comparison:
    def __init__(self, old: Node, new: Node) -> None:
        self._old, self._new = old, new
        self._in_hand: set[tuple[int, int]] = set()

    def of(self, old: Any, new: Any, path: str) -> Iterator[Difference]:
        """The differences of two nodes of the two documents."""
        yield from self._once(old, new, lambda: self._of(old, new, path))

    def _once(
        self, old: object, new: object, compare: Callable[[], Iterator[Difference]]
    ) -> Iterator[Difference]:
        """A class that is inside of itself is compared once."""
        both = (id(old), id(new))
        if both not in self._in_hand:
            self._in_hand.add(both)
            yield from compare()
            self._in_hand.remove(both)

    def _of(self, old: Any, new: Any, path: str) -> Iterator[Difference]:
        olds, news = alternatives(old, self._old), alternatives(new, self._new)
        if not all(olds) or not all(news):  # anything goes
            if all(olds) != all(news):
                yield _types(olds, news, path, rows=all(news), code=all(olds))
            return
        pairs, gone, come = _paired(olds, news)
        if not pairs:
            yield _types(olds, news, path, rows=True, code=True)
            return
        if gone or come:
            yield _types(olds, news, path, rows=bool(gone), code=bool(come))
        for before, after in pairs:
            yield from self._same_kind(before, after, path)

    def _same_kind(self, old: Node, new: Node, path: str) -> Iterator[Difference]:
        if "enum" in old or "enum" in new:
            yield from _values(old, new, path)
        elif old.get("type") == "array":
            yield from self._array(old, new, path)
        elif old.get("type") == "object":
            yield from self._object(old, new, path)
        elif old.get("type") != new.get("type"):  # whole numbers and others
            yield _types(
                [old], [new], path, rows=old.get("type") == "number", code=old.get("type") != "number"
            )
        elif (before := form_of(old)) != (after := form_of(new)):
            yield _types([old], [new], path, rows=after is not None, code=before is not None)
        yield from _limits(old, new, path)

    def _array(self, old: Node, new: Node, path: str) -> Iterator[Difference]:
        if is_tuple(old) and is_tuple(new):
            sizes = [len(as_list(each.get("prefixItems"))) for each in (old, new)]
            rows, code = not takes(new, sizes[0]), not takes(old, sizes[1])
        else:
            kinds = (is_tuple, is_set)
            rows = any(each(new) and not each(old) for each in kinds)
            code = any(each(old) and not each(new) for each in kinds)
        if rows or code:
            yield _types([old], [new], path, rows=rows, code=code)
        for before, after, where in _items(old, new):
            yield from self.of(before, after, f"{path}{where}")

    def _object(self, old: Node, new: Node, path: str) -> Iterator[Difference]:
        if ("properties" in old) != ("properties" in new):
            yield _types([old], [new], path, rows=True, code=True)
        elif "properties" in old:
            its, others = old["properties"], new["properties"]
            yield from self._once(its, others, lambda: self._fields(old, new, path))
        else:
            names = (old.get("propertyNames", {}), new.get("propertyNames", {}))
            if not is_equal(*map(essence, names)):
                yield _keys(*names, path)
            values = (old.get("additionalProperties", {}), new.get("additionalProperties", {}))
            yield from self.of(*values, f"{path}{{}}")

    def _fields(self, old: Node, new: Node, path: str) -> Iterator[Difference]:
        before, after = as_dict(old.get("properties")), as_dict(new.get("properties"))
        needed, needs = as_list(old.get("required")), as_list(new.get("required"))
        for name, its in before.items():
            where = f"{path}.{name}" if path else name
            if name not in after:
                yield _removed(where, was_required=name in needed)
                continue
            if name in needs and name not in needed:
                text = "has no default any more: rows from before the field was added have no value"
                yield Difference(where, "field-required", text, (OLD_ROWS,))
            elif name in needed and name not in needs:
                yield Difference(where, "field-optional", "has a default now")
            elif _default(its) != _default(after[name]):
                yield Difference(where, "default-changed", "has another default now")
            yield from self.of(its, after[name], where)
        for name in after:
            if name not in before:
                where = f"{path}.{name}" if path else name
                if name in needs:
                    text = "is new and has no default: old rows have no value"
                    yield Difference(where, "required-field-added", text, (OLD_ROWS,))
                elif old.get("additionalProperties") is False:
                    yield Difference(where, "field-added", "is new, and old code refuses it", (OLD_CODE,))
                else:
                    yield Difference(where, "field-added", "is new; what has none takes its default")


# --- nodes ---------------------------------------------------------------------------------------------------------------


def _paired(
    olds: Sequence[Node], news: Sequence[Node]
) -> tuple[list[tuple[Node, Node]], list[Node], list[Node]]:
    """Which of the old alternatives has become which of the new ones; those that are gone, those that have come."""
    left = list(news)
    pairs: list[tuple[Node, Node]] = []
    waiting = list(olds)
    rules: tuple[Callable[[Node, Node], bool], ...] = (
        lambda old, new: kind_of(old) == kind_of(new) and old.get("title") == new.get("title"),
        lambda old, new: kind_of(old) == kind_of(new),
        lambda old, new: {kind_of(old), kind_of(new)} == {"integer", "number"},
    )
    for fits in rules:
        for old in tuple(waiting):
            found = next((new for new in left if fits(old, new)), None)
            if found is not None:
                pairs.append((old, found))
                waiting.remove(old)
                left.remove(found)
    return pairs, waiting, left


def _default(node: Any) -> Any:
    return as_dict(node).get("default", _NOTHING)


def _items(old: Node, new: Node) -> Iterator[tuple[Any, Any, str]]:
    """What stands in the same place of two arrays; what a list holds may stand in each place of a tuple."""
    tuples = [as_list(each.get("prefixItems")) for each in (old, new) if is_tuple(each)]
    if not tuples:
        yield old.get("items", {}), new.get("items", {}), "[]"
        return
    for number in range(min(map(len, tuples))):
        before, after = (
            each["prefixItems"][number] if is_tuple(each) else each.get("items", {}) for each in (old, new)
        )
        yield before, after, f"[{number}]"


# --- differences ---------------------------------------------------------------------------------------------------------


def _broken(*, rows: bool, code: bool) -> tuple[Breaks, ...]:
    return (*((OLD_ROWS,) if rows else ()), *((OLD_CODE,) if code else ()))


def _types(olds: Sequence[Node], news: Sequence[Node], path: str, *, rows: bool, code: bool) -> Difference:
    kind = "type-changed" if rows and code else "type-narrowed" if rows else "type-widened"
    text = f"was {spelled(olds)}, and is {spelled(news)} now"
    return Difference(path, kind, text, _broken(rows=rows, code=code))


def _keys(old: Any, new: Any, path: str) -> Difference:
    before, after = essence(old), essence(new)
    text = f"has keys that are {spelled_key(after)} instead of {spelled_key(before)}"
    return Difference(path, "type-changed", text, _broken(rows=bool(after), code=bool(before)))


def _removed(path: str, *, was_required: bool) -> Difference:
    text = (
        "is gone: old code cannot do without it"
        if was_required
        else "is gone: old code reads its default instead"
    )
    return Difference(path, "field-removed", text, (OLD_CODE,))


def _values(old: Node, new: Node, path: str) -> Iterator[Difference]:
    """Of two nodes at least one lists its values."""
    if "enum" not in old or "enum" not in new:
        of_a_form = form_of(old) is not None or form_of(new) is not None  # values may be no UUIDs
        yield _types([old], [new], path, rows=of_a_form or "enum" in new, code=of_a_form or "enum" in old)
        return
    before, after = as_list(old["enum"]), as_list(new["enum"])
    gone, come = _without(before, after), _without(after, before)
    if gone:
        yield Difference(path, "value-removed", f"cannot be {_named(gone)} any more", (OLD_ROWS,))
    if come:
        yield Difference(path, "value-added", f"can be {_named(come)} now", (OLD_CODE,))


def _without(values: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    known = [(type(each), each) for each in others]  # True is not 1 here
    return [each for each in values if (type(each), each) not in known]


def _limits(old: Node, new: Node, path: str) -> Iterator[Difference]:
    tuples = is_tuple(old) or is_tuple(new)
    for keyword in (*_LOWER_LIMITS, *_UPPER_LIMITS, *_OTHER_LIMITS):
        before, after = old.get(keyword), new.get(keyword)
        if before == after or (tuples and keyword in ("minItems", "maxItems")):
            continue
        tighter, looser = after is not None, before is not None
        if isinstance(before, int | float) and isinstance(after, int | float) and keyword != "multipleOf":
            tighter = (after > before) == (keyword in _LOWER_LIMITS)
            looser = not tighter
        text = f"has {_limit(after)} as its {keyword} instead of {_limit(before)}"
        yield Difference(path, "limit-changed", text, _broken(rows=tighter, code=looser))


def _limit(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _named(values: Sequence[Any]) -> str:
    return " or ".join(map(repr, values))
