"""Two exports of message schemas compared: what a change of the classes breaks, and for whom. Pure.

Two kinds of readers must go on:

    old rows: messages of the old code, in the logs, delayed or dead, are read by the new code
    old code: messages of the new code are read by workers not replaced yet, and by consumers elsewhere

A version that was raised, with upcasters that lead there, breaks neither: old rows pass through them, and old code leaves
the new version alone and tries it again later. At the same version both must fit. How types are compared is said in
`schema_differences.py`. Called by `admin.compare_message_schemas` and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from message_bus.errors import SettingsError, names_of
from message_bus.messages.schemas.differences import OLD_CODE, OLD_ROWS, Breaks, Difference, differences
from message_bus.messages.schemas.json_schema import FORMAT

_SUBJECT: Final = "message schemas"
_BOTH: Final[tuple[Breaks, ...]] = (OLD_ROWS, OLD_CODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageChange:
    """One difference between two exports.

    `message`: its name in the old one (of a new message, in the new one). `field`: its path, such as "lines[].price"; None
    if the message as a whole has changed. `code`: for programs. `text`: what has changed. `breaks`: "old rows", which
    the new code could not read, and "old code", which could not read new messages; empty if it breaks nothing.
    `remedy`: what to do about a break.
    """

    message: str
    field: str | None
    code: str
    text: str
    breaks: tuple[Breaks, ...] = ()
    remedy: str | None = None

    @property
    def is_breaking(self) -> bool:
        """Whether somebody could not go on."""
        return bool(self.breaks)


def compare_message_schemas(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[MessageChange]:
    """Say what has changed from one export to another, by message: the breaks, and what breaks nothing.

    Raises: SettingsError if one of them is no export, or was made by a newer version of this package.
    """
    before, after = _messages_of(old, "the old one"), _messages_of(new, "the new one")
    former = {name: current for current, entry in after.items() for name in entry["renamed_from"]}
    changes: list[MessageChange] = []
    for name, entry in sorted(before.items()):
        current = name if name in after else former.get(name)
        if current is None:
            changes.append(_removed(name, entry, before, after))
        else:
            changes += _compared(name, entry, current, after[current])
    known = {*before, *(former_name for entry in before.values() for former_name in entry["renamed_from"])}
    for name in sorted(set(after) - set(before)):
        if known.isdisjoint(after[name]["renamed_from"]):
            changes.append(MessageChange(message=name, field=None, code="message-added", text="is new"))
    return changes


def _compared(
    name: str, old: Mapping[str, Any], current: str, new: Mapping[str, Any]
) -> Iterator[MessageChange]:
    def change(code: str, text: str, *breaks: Breaks, remedy: str | None = None) -> MessageChange:
        return MessageChange(message=name, field=None, code=code, text=text, breaks=breaks, remedy=remedy)

    if current != name:
        yield change("renamed", f"is called {current!r} now, and read under both names")
    lost = set(old["renamed_from"]) - {current, *new["renamed_from"]}
    if lost:
        yield change(
            "former-name-removed",
            f"is not read under its former name {names_of(sorted(lost))} any more",
            OLD_ROWS,
            remedy=f"keep renamed_from={', '.join(map(repr, sorted(lost)))}",
        )
    if old["kind"] != new["kind"]:
        yield change(
            "kind-changed",
            f"was {_a(old['kind'])}, and is {_a(new['kind'])} now",
            *_BOTH,
            remedy="give the new class another name, and keep the old one while there are rows of it",
        )
    if old["key"] != new["key"]:
        yield change(
            "key-changed",
            f"has the key {new['key']!r} instead of {old['key']!r}: messages from before and after the change are not "
            "kept in order (G3)",
        )
    yield from _versions(name, old, new)
    if old["version"] != new["version"]:
        return
    if old["by_hand"] or new["by_hand"]:
        if old["by_hand"] != new["by_hand"] or old["schema"] != new["schema"]:
            yield change(
                "by-hand",
                "is written or read by functions of its own now or before: its fields are not compared",
            )
        return
    for found in differences(old["schema"], new["schema"]):
        yield _with_remedy(name, found, int(new["version"]))


def _versions(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[MessageChange]:
    before, after = old["version"], new["version"]
    if after < before:
        yield MessageChange(
            message=name,
            field=None,
            code="version-lowered",
            text=f"has version {after} instead of {before}: rows of version {before} count as unknown",
            breaks=(OLD_ROWS,),
            remedy=f"give it version {before + 1}, and upcasters that lead there",
        )
        return
    readable = [
        start
        for start in sorted({before, *(step[0] for step in old["upcasters"])})
        if _leads(old, start, before)
    ]
    stuck = [start for start in readable if not _leads(new, start, after)]
    for start in stuck:
        yield MessageChange(
            message=name,
            field=None,
            code="upcaster-missing",
            text=f"has no upcaster that leads from version {start} to {after}",
            breaks=(OLD_ROWS,),
            remedy=f"write one: @registry.upcast({name!r}, from_version={start})",
        )
    if after > before and not stuck:
        yield MessageChange(
            message=name,
            field=None,
            code="version-raised",
            text=f"has version {after} instead of {before}: old rows pass through upcasters, old code tries the new "
            "ones again later",
        )


def _leads(entry: Mapping[str, Any], start: int, version: int) -> bool:
    steps = dict(cast("Iterable[tuple[int, int]]", entry["upcasters"]))
    while start < version and steps.get(start, start) > start:
        start = steps[start]
    return start == version


def _removed(
    name: str, entry: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> MessageChange:
    alike = [
        other
        for other, new in after.items()
        if other not in before
        and new["kind"] == entry["kind"]
        and new["schema"].get("properties") == entry["schema"].get("properties")
    ]
    remedy = "keep the class while there are rows of it (message-bus status says)"
    if len(alike) == 1:
        remedy = (
            f"if it is called {alike[0]!r} now: class ...({entry['kind'].title()}, renamed_from={name!r})"
        )
    return MessageChange(
        message=name,
        field=None,
        code="message-removed",
        text="is not registered any more: its rows would become dead letters",
        breaks=(OLD_ROWS,),
        remedy=remedy,
    )


def _with_remedy(name: str, found: Difference, version: int) -> MessageChange:
    raised = (
        f"give the message version {version + 1} and write the missing upcaster: "
        f"@registry.upcast({name!r}, from_version={version})"
    )
    other = {
        "required-field-added": "give it a default, or ",
        "field-required": "leave it its default, or ",
        "field-removed": "keep it, or ",
    }.get(found.code, "")
    return MessageChange(
        message=name,
        field=found.path or None,
        code=found.code,
        text=found.text,
        breaks=found.breaks,
        remedy=f"{other}{raised}" if found.breaks else None,
    )


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "event" else f"a {kind}"


# --- what is read from a file is looked at before it is used -------------------------------------------------------------


def _messages_of(document: object, which: str) -> Mapping[str, Mapping[str, Any]]:
    layout = document.get("message_bus") if isinstance(document, Mapping) else None
    if isinstance(layout, int) and layout > FORMAT:
        raise SettingsError(
            _SUBJECT, [f"{which} was made by a newer version of message_bus (export again, or upgrade)"]
        )
    messages = document.get("messages") if isinstance(document, Mapping) else None
    if layout != FORMAT or not isinstance(messages, Mapping):
        raise SettingsError(_SUBJECT, [f"{which} is no export (make one with `message-bus schema export`)"])
    wrong = [str(name) for name, entry in messages.items() if not _is_entry(entry)]
    if wrong:
        raise SettingsError(_SUBJECT, [f"{which} has no whole entry for {names_of(wrong)} (export again)"])
    return cast("Mapping[str, Mapping[str, Any]]", messages)


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, Mapping):
        return False
    steps = entry.get("upcasters")
    return (
        entry.get("kind") in ("command", "event")
        and type(entry.get("version")) is int
        and isinstance(entry.get("key"), str | None)
        and isinstance(entry.get("by_hand"), bool)
        and isinstance(entry.get("schema"), Mapping)
        and isinstance(entry.get("renamed_from"), list)
        and all(isinstance(each, str) for each in entry["renamed_from"])
        and isinstance(steps, list)
        and all(isinstance(each, list) and [type(part) for part in each] == [int, int] for each in steps)
    )
