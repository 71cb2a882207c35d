"""The nodes of a JSON Schema as our exports hold them: what a value may be, and how to say that. Pure.

A file may hold anything: whatever is no node counts as one that says nothing. Called by `schema_differences.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

Node = Mapping[str, Any]

_REMARKS: Final = frozenset(
    {
        "$schema",
        "$defs",
        "$comment",
        "$id",
        "$ref",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
    }
)
_FORM: Final = ("format", "contentEncoding", "anyOf")


def alternatives(node: Any, root: Node, followed: frozenset[str] = frozenset()) -> list[Node]:
    """What a value may be: one thing, or one of several. An empty one is anything."""
    node, followed = _resolved(node, root, followed)
    if "anyOf" in node and "type" not in node:
        return [each for choice in as_list(node["anyOf"]) for each in alternatives(choice, root, followed)]
    return [essence(node)]


def _resolved(node: Any, root: Node, followed: frozenset[str]) -> tuple[Node, frozenset[str]]:
    found: Node = as_dict(node)
    while isinstance(reference := found.get("$ref"), str) and reference not in followed:
        followed |= {reference}
        target = (
            root if reference == "#" else as_dict(root.get("$defs")).get(reference.removeprefix("#/$defs/"))
        )
        found = {**as_dict(target), **{key: value for key, value in found.items() if key not in _REMARKS}}
    return found, followed


def essence(node: Any) -> Node:
    """A node without remarks, but for the name of its class; empty if anything fits."""
    found = {key: value for key, value in as_dict(node).items() if key not in _REMARKS}
    return {**found, "title": node.get("title")} if found else found


def kind_of(node: Node) -> str:
    """The JSON type of a node; of a list of values, theirs."""
    if "enum" in node:
        kinds = {_kind_of_value(each) for each in as_list(node["enum"])}
        return kinds.pop() if len(kinds) == 1 else "values"
    return str(node.get("type"))


def _kind_of_value(value: object) -> str:
    names: dict[type, str] = {
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), "values")


def form_of(node: Node) -> str | None:
    """What kind of text it is; None: any."""
    found = {key: node[key] for key in _FORM if key in node}
    return json.dumps(found, sort_keys=True, default=str) if found else None


def is_tuple(node: Node) -> bool:
    """Whether an array has a place for each of its items."""
    return "prefixItems" in node or node.get("items") is False


def is_set(node: Node) -> bool:
    """Whether an array holds nothing twice."""
    return bool(node.get("uniqueItems"))


def takes(node: Node, count: int) -> bool:
    """Whether a tuple may have so many items."""
    most = len(as_list(node.get("prefixItems")))
    least = node.get("minItems", most)
    return (least if isinstance(least, int) else most) <= count <= most


def is_equal(old: object, new: object) -> bool:
    """Whether two values are the same in JSON."""
    return json.dumps(old, sort_keys=True, default=str) == json.dumps(new, sort_keys=True, default=str)


def as_dict(value: Any) -> Node:
    """A node, whatever stands there."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> Sequence[Any]:
    """A list, whatever stands there."""
    return value if isinstance(value, list) else []


def spelled(nodes: Sequence[Node]) -> str:
    """What a value may be, for people."""
    return " or ".join(dict.fromkeys(_word(each) for each in nodes)) or "nothing"


def _word(node: Node) -> str:
    if not node:
        return "anything"
    if "enum" in node:
        return f"one of {', '.join(map(repr, as_list(node['enum'])))}"
    kind = str(node.get("type", "unknown"))
    if kind == "array" and is_tuple(node):
        return f"a tuple of {len(as_list(node.get('prefixItems')))}"
    if kind == "array":
        return "a set" if is_set(node) else "a list"
    if kind == "object":
        return f"an object {node['title']}" if "properties" in node and node.get("title") else "an object"
    if kind == "string":
        forms = [node.get("format"), *(as_dict(each).get("format") for each in as_list(node.get("anyOf")))]
        form = next((each for each in forms if each), node.get("contentEncoding"))
        return f"a string ({form})" if form else "a string"
    return f"an {kind}" if kind[:1] in "aeiou" else f"{'' if kind == 'null' else 'a '}{kind}"


def spelled_key(node: Node) -> str:
    """What the keys of an object may be, for people."""
    forms = [
        str(as_dict(each).get("format")) for each in (node, *as_list(node.get("anyOf"))) if "format" in each
    ]
    if "enum" in node or forms:
        return _word(node) if "enum" in node else f"strings ({forms[0]})"
    return "numbers" if "pattern" in node else "other strings" if node else "any strings"
