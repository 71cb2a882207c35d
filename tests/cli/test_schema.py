"""`message-bus schema export` and `check`: what they print, what they refuse, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from message_bus import Command, Event, MessageBus, Registry, SettingsError
from message_bus.admin import check_message_schemas, export_message_schemas
from message_bus.cli.main import main
from tests.cli.wired_app import OrderPlaced, make_async_bus, make_bus, make_older, make_relay

APP = "tests.cli.wired_app"


def run(*arguments: str, given: str | bytes | None = None) -> Result:
    """The command, without any database."""
    return CliRunner().invoke(main, ["schema", *arguments], input=given)


def exported(app: str) -> str:
    """What `export` prints."""
    done = run("export", "--app", f"{APP}:{app}")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The export of last year's bus, committed."""
    path = tmp_path / "messages.json"
    path.write_text(exported("make_older"), encoding="utf-8")
    return path


def test_an_export() -> None:
    """JSON with a newline at its end: every message of the application, but no query, and each schema is one."""
    text = exported("make_relay")
    assert text.endswith("}\n")
    messages = json.loads(text)["messages"]
    assert list(messages) == ["PaymentOverdue", "PlaceOrder", "shop.placed"]
    for each in messages.values():
        Draft202012Validator.check_schema(each["schema"])
    assert exported("make_relay") == text


def test_an_export_into_a_file(tmp_path: Path) -> None:
    """The same bytes, and nothing on stdout."""
    path = tmp_path / "messages.json"
    done = run("export", "--app", f"{APP}:make_bus", "--output", str(path))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert path.read_bytes() == exported("make_bus").encode()


def test_nothing_has_changed() -> None:
    """An application fits its own export, read from stdin as well."""
    done = run("check", "--app", f"{APP}:make_relay", "-", given=exported("make_relay"))
    assert (done.exit_code, done.stdout) == (0, "nothing has changed\n")


def test_what_breaks_nothing(file: Path) -> None:
    """A version that was raised with its upcaster, and a new message: said, and exit code 0."""
    done = run("check", "--app", f"{APP}:make_bus", str(file))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        (
            "fine version-raised: shop.placed has version 2 instead of 1: old rows pass through upcasters, old code "
            "tries the new ones again later"
        ),
        "fine message-added: PlaceOrder is new",
        "nothing breaks; `message-bus schema export` brings the file up to date",
    ]


def test_what_breaks(file: Path) -> None:
    """The break names message, field and the missing upcaster, comes first, and exit code 3 follows."""
    document = json.loads(file.read_text())
    placed = document["messages"]["shop.placed"]
    placed["version"] = 2
    placed["upcasters"] = [[1, 2]]
    placed["renamed_from"] = ["Placed"]
    file.write_text(json.dumps(document))
    done = run("check", "--app", f"{APP}:make_bus", str(file))
    assert done.exit_code == 3, done.output
    assert done.stdout.splitlines() == [
        "breaking field-removed: shop.placed.cents is gone: old code cannot do without it (breaks old code)",
        (
            "  remedy: keep it, or give the message version 3 and write the missing upcaster: "
            "@registry.upcast('shop.placed', from_version=2)"
        ),
        "fine message-added: PlaceOrder is new",
        "1 of 2 changes breaks something",
    ]


def test_an_older_application(file: Path) -> None:
    """The other way round everything breaks: messages gone, the version lowered."""
    file.write_text(exported("make_bus"), encoding="utf-8")
    done = run("check", "--app", f"{APP}:make_older", str(file))
    assert done.exit_code == 3
    assert "breaking message-removed: PlaceOrder" in done.stdout
    assert "breaking version-lowered: shop.placed" in done.stdout


def test_as_json(file: Path) -> None:
    """One object with stable keys."""
    done = run("check", "--app", f"{APP}:make_bus", str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["ok"]) == (0, True)
    assert list(found["changes"][0]) == ["message", "field", "code", "text", "breaks", "remedy"]
    file.write_text(exported("make_bus"), encoding="utf-8")
    done = run("check", "--app", f"{APP}:make_older", str(file), "--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (3, False)


def test_names_that_could_move_the_cursor() -> None:
    """Are made harmless."""
    document = json.loads(exported("make_bus"))
    document["messages"]["a\x1b[2J"] = document["messages"]["PlaceOrder"]
    done = run("check", "--app", f"{APP}:make_bus", "-", given=json.dumps(document))
    assert done.exit_code == 3
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"{}", "is no export (make one with `message-bus schema export`)"),
        (b'{"message_bus": 99, "messages": {}}', "was made by a newer version"),
    ],
    ids=["empty", "cut off", "no text", "deep", "other JSON", "newer"],
)
def test_a_file_that_is_none(file: Path, content: bytes, said: str) -> None:
    """One line with the remedy, and exit code 1."""
    file.write_bytes(content)
    done = run("check", "--app", f"{APP}:make_bus", str(file))
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check", "--app", f"{APP}:make_bus", "there/is/none.json"], 2, "No such file"),
        (["check", "--app", f"{APP}:make_bus"], 2, "Missing argument"),
        (["export"], 2, "Missing option '--app'"),
        (["export", "--app", f"{APP}:TOTALS"], 1, "name a Relay, a bus or a Registry"),
        (["export", "--app", f"{APP}:make_bus", "--output", "there/is/none.json"], 1, "No such file"),
    ],
)
def test_what_is_wrong(arguments: list[str], code: int, said: str) -> None:
    """One line, and an exit code."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


# --- the API --------------------------------------------------------------------------------------------------------------


def test_what_can_be_exported() -> None:
    """A bus of either colour, a relay with what it runs beside its bus, and a registry by itself."""
    names = {
        "bus": list(export_message_schemas(make_bus())["messages"]),
        "async": list(export_message_schemas(make_async_bus())["messages"]),
        "relay": list(export_message_schemas(make_relay())["messages"]),
        "registry": list(export_message_schemas(make_bus().registry)["messages"]),
    }
    assert names == {
        "bus": ["PlaceOrder", "shop.placed"],
        "async": ["PlaceOrder", "shop.placed"],
        "relay": ["PaymentOverdue", "PlaceOrder", "shop.placed"],
        "registry": ["PlaceOrder", "shop.placed"],
    }
    with pytest.raises(SettingsError, match="neither a bus"):
        export_message_schemas("a")


def test_a_registry_of_events(tmp_path: Path) -> None:
    """What an event store reads with can be checked without a bus, and the upcasters count."""

    class Registered(Event, name="Registered"):
        name: str

    class RegisteredNow(Event, name="Registered", version=2):
        first: str
        last: str

    old, new = Registry(), Registry()
    old.register(Registered)
    new.register(RegisteredNow)
    committed = export_message_schemas(old)
    [found] = check_message_schemas(new, committed)
    assert (found.code, found.breaks) == ("upcaster-missing", ("old rows",))
    new.add_upcaster(RegisteredNow, dict, from_version=1)
    [found] = check_message_schemas(new, committed)
    assert (found.code, found.is_breaking) == ("version-raised", False)


def test_the_changes_that_ci_is_to_catch() -> None:
    """A field removed, a type changed, a required field added, a message renamed; and an optional field passes."""

    def bus(name: str = "Booked", base: Any = Command, **fields: Any) -> MessageBus:
        hints = {field: hint for field, (hint, *_) in fields.items()}
        defaults = {field: rest[0] for field, (_, *rest) in fields.items() if rest}
        made = MessageBus()
        made.register_messages(type(name, (base,), {"__annotations__": hints, **defaults}))
        return made

    committed = export_message_schemas(bus(seat=(int,), row=(str,)))

    def breaks(now: MessageBus) -> list[tuple[str, str | None, str]]:
        found = check_message_schemas(now, committed)
        return [(each.message, each.field, each.code) for each in found if each.is_breaking]

    assert breaks(bus(seat=(int,))) == [("Booked", "row", "field-removed")]
    assert breaks(bus(seat=(str,), row=(str,))) == [("Booked", "seat", "type-changed")]
    assert breaks(bus(seat=(int,), row=(str,), hall=(str,))) == [("Booked", "hall", "required-field-added")]
    assert breaks(bus("Reserved", seat=(int,), row=(str,))) == [("Booked", None, "message-removed")]
    assert breaks(bus(seat=(int,), row=(str,), hall=(str, "main"))) == []
    assert OrderPlaced in make_bus().registry
    assert breaks(make_older()) == [("Booked", None, "message-removed")]
