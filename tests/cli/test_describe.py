"""`message-bus describe`, and what it is made of: what is told of an application, what is guaranteed, what is risky."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from message_bus import (
    AsyncMessageBus,
    AsyncRelay,
    Command,
    DispatchOutboxHandler,
    Event,
    FixedDelay,
    MessageBus,
    NoRetry,
    OutboxHandlerABC,
    SettingsError,
    Subscription,
)
from message_bus.admin import Description, SubscriptionDescription, WiringWarning, describe, mermaid
from message_bus.cli.describe import lines_of_description
from message_bus.cli.main import main
from tests.cli.wired_app import (
    Bookkeeper,
    Fulfilment,
    OrderPlaced,
    OrdersOf,
    OrderTotals,
    PaymentOverdue,
    PlaceOrder,
    Warehouse,
    count_orders,
    make_async_bus,
    make_bus,
    make_relay,
    make_risky,
    order_saga,
    place,
    send_mail,
)

APP = "tests.cli.wired_app"


def run(*arguments: str, width: int = 100) -> Result:
    """The command, without any database."""
    return CliRunner().invoke(main, ["describe", *arguments], env={"COLUMNS": str(width)})


def subscription(described: Description, name: str) -> SubscriptionDescription:
    """The one with this name."""
    return next(each for each in described.subscriptions if each.name == name)


def words(described: SubscriptionDescription) -> str:
    """What it guarantees."""
    return "\n".join(f"{each.text} {each.rules}" for each in described.guarantees)


# --- what is told ---------------------------------------------------------------------------------------------------------


def test_messages() -> None:
    """Every type that the bus knows, with its handlers; queries, too."""
    described = describe(make_bus())
    assert (described.bus, described.is_async) == ("MessageBus", False)
    assert [(each.kind, each.name, each.version, each.key) for each in described.messages] == [
        ("command", "PlaceOrder", 1, "customer"),
        ("event", "shop.placed", 2, "customer"),
        ("query", "OrdersOf", 1, None),
    ]
    placed = described.messages[1]
    assert (placed.path, placed.renamed_from, placed.upcasters) == (
        f"{APP}.OrderPlaced",
        ("Placed",),
        ((1, 2),),
    )
    assert [(each.name, each.path, each.is_async) for each in placed.handlers] == [
        ("send_mail", f"{APP}.send_mail", False)
    ]
    assert (described.middleware, described.observers) == (("logged",), ("Quiet",))


def test_handlers_of_an_async_bus() -> None:
    """Which are async, and which run in a thread."""
    described = describe(make_async_bus())
    how = {
        each.name: [(handler.name, handler.is_async, handler.in_thread) for handler in each.handlers]
        for each in described.messages
    }
    assert described.is_async
    assert how == {
        "PlaceOrder": [("place_async", True, False)],
        "shop.placed": [("send_mail", True, True)],
        "OrdersOf": [("count_orders", False, False)],
    }


def test_handlers_that_are_no_functions() -> None:
    """Objects are named by their class, partials by what they call."""
    bus = MessageBus()
    bus.set_event_handlers(
        OrderPlaced, [Bookkeeper(), functools.partial(send_mail), lambda event: None, Bookkeeper().handle]
    )
    [placed] = describe(bus).messages
    assert [each.name for each in placed.handlers[:2]] == ["Bookkeeper", "send_mail"]
    assert placed.handlers[2].name.endswith("<lambda>")
    assert placed.handlers[3].name == "EventHandlerABC.handle"


def test_subscriptions_of_a_bus() -> None:
    """Those that dispatch, with whom they call; those of one's own, which get whatever comes."""
    described = describe(make_bus())
    assert [(each.name, each.kind, each.mode, each.log, each.types) for each in described.subscriptions] == [
        ("dispatch", "dispatch", "transactional", "outbox", None),
        ("books", "dispatch", "transactional", "outbox", ("shop.placed",)),
        ("warehouse", "outbox handler", "concurrent", "outbox", ("shop.placed",)),
    ]
    called = {
        each.name: [(one.message, [its.name for its in one.handlers]) for one in each.deliveries]
        for each in described.subscriptions
    }
    assert called == {
        "dispatch": [("PlaceOrder", ["place"]), ("shop.placed", ["send_mail"])],
        "books": [("shop.placed", ["Bookkeeper"])],
        "warehouse": [("shop.placed", ["Warehouse"])],
    }
    books = subscription(described, "books")
    assert (books.partitions, books.handler) == (4, "DispatchOutboxHandler")


def test_subscriptions_of_a_relay() -> None:
    """Projections and process managers run beside those of the bus, each partition once; no database is touched."""
    described = describe(make_relay())
    found = [(each.name, each.kind, each.log, each.types) for each in described.subscriptions]
    assert sorted(found) == sorted(
        [
            ("dispatch", "dispatch", "outbox", None),
            ("books", "dispatch", "outbox", ("shop.placed",)),
            ("warehouse", "outbox handler", "outbox", ("shop.placed",)),
            ("order_totals", "projection", "events", ("shop.placed",)),
            ("fulfilment", "process manager", "events", ("shop.placed",)),
            ("fulfilment timeouts", "timeouts", "outbox", ("PaymentOverdue",)),
        ]
    )
    assert not Path("there-is-no-such-file.db").exists()
    totals, manager = subscription(described, "order_totals"), subscription(described, "fulfilment")
    assert [each.name for one in totals.deliveries for each in one.handlers] == ["OrderTotals.placed"]
    assert [each.name for one in manager.deliveries for each in one.handlers] == ["Fulfilment.placed"]
    assert "PaymentOverdue" in [each.name for each in described.messages]
    assert [each for each in described.warnings if each.code == "upcaster-missing"] == []


def test_where_settings_come_from() -> None:
    """From the package's defaults, the handler's, or whoever set them."""
    described = describe(make_relay())
    sources = {
        each.name: {its.name: (its.value, its.source) for its in each.settings if its.source != "default"}
        for each in described.subscriptions
    }
    assert sources["dispatch"] == {
        "name": ("dispatch", "default of DispatchOutboxHandler"),
        "mode": ("transactional", "default of DispatchOutboxHandler"),
        "start": ("beginning", "set"),
    }
    assert sources["warehouse"] == {
        "name": ("warehouse", "set"),
        "mode": ("concurrent", "default of Warehouse"),
        "start": ("now", "set"),
        "types": (["shop.placed"], "set"),
        "concurrency": (8, "set"),
    }
    assert sources["order_totals"] == {
        "name": ("order_totals", "set"),
        "mode": ("transactional", "default of OrderTotals"),
        "start": ("beginning", "default of OrderTotals"),
        "types": (["shop.placed"], "@when"),
        "messages_per_commit": (100, "default of OrderTotals"),
    }
    assert sources["fulfilment timeouts"]["name"] == ("fulfilment timeouts", "name of its process manager")
    rest = {each.name: each.value for each in subscription(described, "dispatch").settings}
    assert (rest["handler_timeout"], rest["commit_within"]) == (300.0, 1.0)
    assert rest["unavailable_on"] == ["ConnectionError"]
    assert rest["backoff"].startswith("ExponentialBackoff(initial_delay=1.0")


class Secretive:
    """A policy of the application's."""

    def __repr__(self) -> str:
        return "password=s3cret"

    def delay(self, attempt: int, *, chance: float = 1.0) -> timedelta | None:
        """Not at all."""
        return None


def test_what_a_policy_of_ones_own_holds_is_not_told() -> None:
    """Its name is."""
    bus = MessageBus()
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(name="a", backoff=Secretive()))])
    described = describe(bus)
    assert described.subscriptions[0].setting("backoff") == "Secretive"
    assert "s3cret" not in repr(described)


def test_sagas() -> None:
    """Their steps in order, with what undoes them."""
    [saga] = describe(make_bus(), sagas=[order_saga]).sagas
    assert saga.name == "place order"
    steps = [
        (each.name, each.action, each.compensation, each.transactional, each.max_attempts)
        for each in saga.steps
    ]
    assert steps == [("reserve", "reserve", "release", True, 1), ("charge", "place", None, False, 3)]
    with pytest.raises(SettingsError, match="'str' is no saga"):
        describe(make_bus(), sagas=["a"])


@pytest.mark.parametrize("thing", [None, 42, "bus", object()])
def test_what_is_neither_a_bus_nor_a_relay(thing: Any) -> None:
    """Is refused."""
    with pytest.raises(SettingsError, match="is neither a bus of this package nor a relay"):
        describe(thing)


# --- guarantees -----------------------------------------------------------------------------------------------------------


def guaranteed(bus: Any = None, **settings: Any) -> str:
    """What a dispatching subscription with these settings guarantees."""
    bus = MessageBus() if bus is None else bus
    bus.set_outbox_handlers([DispatchOutboxHandler(subscription=Subscription(name="a", **settings))])
    return words(describe(bus).subscriptions[0])


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "in the database exactly once", "at most the batch in hand"),
        ({}, "all messages in the order of the log ('G4',)", "no order between others"),
        ({"mode": "concurrent"}, "all effects at least once: a crash repeats at most the batch in hand (100", "exactly once"),
        ({"mode": "concurrent", "concurrency": 8}, "up to 8 keys at once", "G4"),
        ({"concurrency": 8}, "G4", "up to 8 keys"),
        ({"partitions": 4}, "no order between others: 4 partitions", "G4"),
        ({"messages_per_commit": 50}, "up to 50 messages share a commit, for at most 1 s", "in hand"),
        ({"messages_per_commit": 50}, "outside effects of the whole batch repeat", "100 messages"),
        ({"messages_per_commit": 50, "mode": "concurrent"}, "at least once", "share a commit"),
        ({}, "a dead letter after 20 failed attempts; then its key goes on", "is held"),
        ({"on_dead_letter": "hold", "max_attempts": 3}, "after 3 failed attempts; then its key is held", "key goes on"),
        ({"max_attempts": 1}, "a dead letter after its first failure", "failed attempts"),
        ({"backoff": NoRetry()}, "a dead letter after its first failure", "failed attempts"),
        ({"unavailable_on": (TimeoutError,)}, "an outage (Unavailable, TimeoutError) counts as no attempt", "ConnectionError"),
        ({"unavailable_on": ()}, "an outage (Unavailable) counts", "ConnectionError"),
        ({}, "a handler may take 5 min; one that takes longer cannot be stopped", "cancelled"),
        ({"handler_timeout": timedelta(seconds=0.5)}, "a handler may take 0.5 s", "5 min"),
        ({"handler_timeout": None}, "a handler may take as long as it likes", "the lease"),
    ],
)  # fmt: skip
def test_what_settings_guarantee(settings: dict[str, Any], said: str, unsaid: str) -> None:
    """Each setting changes what is said, and nothing is said that does not hold."""
    text = guaranteed(**settings)
    assert said in text
    assert unsaid not in text


def test_what_other_kinds_guarantee() -> None:
    """An async handler is cancelled; a projection has no outside effects; a stream is a key."""
    assert "an async one is cancelled then" in guaranteed(AsyncMessageBus())
    described = describe(make_relay())
    totals = words(subscription(described, "order_totals"))
    assert "what its methods write through context.db_session" in totals
    assert "messages of one stream in order" in totals
    assert "elsewhere" not in totals
    assert "its state, and what it sends," in words(subscription(described, "fulfilment"))


def test_rules_that_are_cited_exist() -> None:
    """Every number stands in docs/guarantees.md."""
    known = set(re.findall(r"^\*\*(G\d+)\b", Path("docs/guarantees.md").read_text(), re.MULTILINE))
    cited = {
        rule for each in describe(make_relay()).subscriptions for one in each.guarantees for rule in one.rules
    }
    assert {"G2", "G3", "G5", "G7", "G8"} <= cited <= known


# --- warnings -------------------------------------------------------------------------------------------------------------


class Keyless(Event):
    """An event without a key."""

    n: int


class Second(Event, name="Second", version=2, key="n"):
    """An event with a past."""

    n: int


class Nameless(OutboxHandlerABC):
    """A handler whose subscription has no name."""

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Unnamed(OrderTotals):
    """A projection without a name."""


class Named(Nameless):
    """One with a name."""

    subscription = Subscription(name="named", start="now")


def dispatching(**settings: Any) -> DispatchOutboxHandler:
    """A dispatching subscription."""
    return DispatchOutboxHandler(subscription=Subscription(name="a", start="beginning", **settings))


def bus_of(*handlers: Any, events: Any = None, known: Any = (), commands: Any = None) -> MessageBus:
    """A bus with these outbox handlers."""
    bus = MessageBus(events or {}, commands or {})
    bus.register_messages(*known)
    if handlers:
        bus.set_outbox_handlers(handlers)
    return bus


def upcasting(bus: MessageBus, *versions: int, of: Any = Second) -> MessageBus:
    """The bus with upcasters."""
    for version in versions:
        bus.registry.add_upcaster(of, dict, from_version=version)
    return bus


def one(event: Any) -> None:
    """A handler."""


def other(event: Any) -> None:
    """Another handler."""


async def patient(event: Any) -> None:
    """A handler of an AsyncMessageBus."""


def clashing() -> MessageBus:
    """Of two buses behind one, each has a Keyless of its own."""
    another = MessageBus()
    another.register_messages(type("Keyless", (Event,), {"__annotations__": {"n": int}}))
    bus = bus_of(known=[Keyless])
    bus.set_outbox_handlers(
        [dispatching(), DispatchOutboxHandler(another, subscription=Subscription(name="b", start="now"))]
    )
    return bus


Made = Callable[[], Any]
RISKS: list[tuple[str, str, Made, Made]] = [
    ("command-without-handler", "warning",
     lambda: bus_of(known=[PlaceOrder]),
     lambda: bus_of(commands={PlaceOrder: place})),
    ("command-without-handler", "warning",
     lambda: bus_of(dispatching(types=[PlaceOrder]), known=[PlaceOrder]),
     lambda: bus_of(dispatching(types=[Keyless]), events={Keyless: [one]}, known=[PlaceOrder])),
    ("event-without-handler", "note",
     lambda: bus_of(known=[Keyless]),
     lambda: bus_of(events={Keyless: [one]})),
    ("event-without-handler", "note",
     lambda: bus_of(dispatching(), known=[Keyless]),
     lambda: bus_of(dispatching(), Named(), known=[Keyless])),
    ("several-handlers", "note",
     lambda: bus_of(events={Keyless: [one, other]}),
     lambda: bus_of(events={Keyless: [one]})),
    ("handlers-not-dispatched", "note",
     lambda: bus_of(Named(), events={Keyless: [one]}),
     lambda: bus_of(Named(), dispatching(), events={Keyless: [one]})),
    ("shared-commit", "warning",
     lambda: bus_of(dispatching(messages_per_commit=10), events={Keyless: [one]}),
     lambda: bus_of(dispatching(messages_per_commit=1), events={Keyless: [one]})),
    ("messages-per-commit-ignored", "warning",
     lambda: bus_of(dispatching(messages_per_commit=10, mode="concurrent")),
     lambda: bus_of(dispatching(messages_per_commit=10))),
    ("concurrency-ignored", "warning",
     lambda: bus_of(dispatching(concurrency=2)),
     lambda: bus_of(dispatching(concurrency=2, mode="concurrent"))),
    ("no-retry", "warning",
     lambda: bus_of(dispatching(max_attempts=1)),
     lambda: bus_of(dispatching(max_attempts=2))),
    ("no-retry", "warning",
     lambda: bus_of(dispatching(backoff=NoRetry())),
     lambda: bus_of(dispatching(backoff=FixedDelay(1.0)))),
    ("no-time-limit", "warning",
     lambda: bus_of(dispatching(handler_timeout=None)),
     lambda: bus_of(dispatching(handler_timeout=timedelta(1)))),
    ("hold-without-key", "warning",
     lambda: bus_of(dispatching(on_dead_letter="hold"), events={Keyless: [one]}),
     lambda: bus_of(dispatching(on_dead_letter="hold"), events={OrderPlaced: [one]})),
    ("hold-without-key", "warning",
     lambda: bus_of(dispatching(on_dead_letter="hold"), events={Keyless: [one]}),
     lambda: bus_of(dispatching(on_dead_letter="continue"), events={Keyless: [one]})),
    ("partitions-without-key", "warning",
     lambda: bus_of(dispatching(partitions=2), events={Keyless: [one]}),
     lambda: bus_of(dispatching(partitions=2), events={OrderPlaced: [one]})),
    ("partitions-without-key", "warning",
     lambda: bus_of(Warehouse(), dispatching(partitions=2), events={Keyless: [one]}),
     lambda: bus_of(Warehouse(), dispatching(partitions=1), events={Keyless: [one]})),
    ("named-by-class", "warning",
     lambda: bus_of(Nameless()),
     lambda: bus_of(Named())),
    ("named-by-class", "note",
     lambda: bus_of(dispatching(), Unnamed()),
     lambda: bus_of(dispatching(), OrderTotals())),
    ("types-without-handler", "warning",
     lambda: bus_of(dispatching(types=[Keyless])),
     lambda: bus_of(dispatching(types=[Keyless]), events={Keyless: [one]})),
    ("start-not-said", "note",
     lambda: bus_of(dispatching(), DispatchOutboxHandler()),
     lambda: bus_of(DispatchOutboxHandler())),
    ("upcaster-missing", "warning",
     lambda: bus_of(events={Second: [one]}),
     lambda: upcasting(bus_of(events={Second: [one]}), 1)),
    ("upcaster-missing", "warning",
     lambda: upcasting(bus_of(events={Keyless: [one]}), 1, of="Unheard"),
     lambda: upcasting(bus_of(events={Second: [one]}), 1, of="Second")),
    ("name-clash", "warning", clashing, lambda: bus_of(known=[Keyless])),
    ("sync-on-async-bus", "note",
     lambda: AsyncMessageBus({Keyless: [one]}),
     lambda: AsyncMessageBus({Keyless: [patient]})),
    ("sync-on-async-bus", "note",
     lambda: AsyncMessageBus({Keyless: [one]}),
     lambda: MessageBus({Keyless: [one]})),
]  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "with_it", "without"), RISKS, ids=[each[0] for each in RISKS])
def test_what_is_risky(code: str, severity: str, with_it: Made, without: Made) -> None:
    """Each warning is given for a wiring that has it, with what to do, and not for one beside it that has not."""
    [found] = [each for each in describe(with_it()).warnings if each.code == code]
    assert found.severity == severity
    assert found.text
    assert found.remedy
    assert code not in [each.code for each in describe(without()).warnings]


def test_a_query_that_a_subscription_reads() -> None:
    """Nobody can put one into an outbox."""
    bus = bus_of(dispatching(types=[OrdersOf, Keyless]), events={Keyless: [one]})
    bus.set_query_handler(OrdersOf, count_orders)
    [found] = [each for each in describe(bus).warnings if each.code == "types-without-handler"]
    assert "'OrdersOf', a query" in found.text


def test_all_risks_are_tested() -> None:
    """Every code in the module has a wiring here."""
    source = Path("message_bus/admin/description/warnings.py").read_text()
    assert set(re.findall(r'_(?:warning|note)\(\s*"([a-z-]+)"', source)) == {each[0] for each in RISKS}


def test_a_bus_without_risks() -> None:
    """The example has none, so that a warning means something; notes do not make it risky."""
    assert describe(make_bus()).warnings == ()
    assert describe(make_relay()).warnings == ()
    noted = describe(bus_of(events={Keyless: [one, other]}))
    assert [each.severity for each in noted.warnings] == ["note"]
    assert not noted.is_risky
    assert describe(make_risky()).is_risky


def test_warnings_come_first() -> None:
    """And notes after them."""
    found = describe(
        bus_of(dispatching(max_attempts=1), events={Keyless: [one, other]}, known=[PlaceOrder])
    ).warnings
    assert [each.severity for each in found] == ["warning", "warning", "note"]


# --- the diagram ----------------------------------------------------------------------------------------------------------

NODE = re.compile(r'    \w+(\(\["[^"]+"\]\)|\[\["[^"]+"\]\]|\["[^"]+"\])(:::\w+)?')
EDGE = re.compile(r'    \w+ (-->|-\.->)(\|"[^"]+"\|)? \w+')
CLASS = re.compile(r"    classDef \w+ [\w:#,]+")
PARTS = re.compile(r'"([^"]*)"')


def parsed(diagram: str) -> list[str]:
    """The labels of a flowchart; fails for a line that is no part of one, and for an edge that leads nowhere."""
    head, *lines = diagram.splitlines()
    assert head == "flowchart LR"
    nodes = {re.split(r"[\[(]", line.strip())[0] for line in lines if NODE.fullmatch(line)}
    for line in lines:
        assert NODE.fullmatch(line) or EDGE.fullmatch(line) or CLASS.fullmatch(line), line
        if EDGE.fullmatch(line):
            words = line.split()
            assert {words[0], words[-1]} <= nodes, line
    return [label for line in lines for label in PARTS.findall(line)]


def test_the_diagram() -> None:
    """Messages lead to the subscriptions that read them, those to their handlers; queries to theirs at once."""
    diagram = mermaid(describe(make_relay()))
    labels = parsed(diagram)
    assert {
        "PlaceOrder",
        "shop.placed",
        "OrdersOf",
        "dispatch (transactional)",
        "warehouse (concurrent)",
    } <= set(labels)
    assert {"send_mail", "Bookkeeper", "Warehouse", "OrderTotals.placed", "Fulfilment.overdue"} <= set(labels)
    placed = next(line.split("(")[0].strip() for line in diagram.splitlines() if '"shop.placed"]' in line)
    assert sum(line.strip().startswith(f"{placed} -->") for line in diagram.splitlines()) == 5
    assert len(re.findall(r"-\.->", diagram)) == 1


def test_a_handler_of_everything_in_the_diagram() -> None:
    """It stands behind the whole log."""
    assert "everything in the outbox" in parsed(mermaid(describe(bus_of(Named()))))


@given(st.text(), st.text())
def test_hostile_names(name: str, handler: str) -> None:
    """Whatever names hold, the diagram is one, and nothing in a text moves the cursor."""
    described = describe(make_relay())
    messages = tuple(
        replace(each, name=name if each.name == "shop.placed" else each.name, handlers=tuple(
            replace(one_of_them, name=handler) for one_of_them in each.handlers
        ))
        for each in described.messages
    )  # fmt: skip
    subscriptions = tuple(
        replace(each, name=f"{name}-{each.name}", deliveries=tuple(
            replace(delivery, message=name if delivery.message == "shop.placed" else delivery.message)
            for delivery in each.deliveries
        ))
        for each in described.subscriptions
    )  # fmt: skip
    warning = WiringWarning(code="a", severity="note", subject=name, text=name, remedy=handler)
    hostile = replace(described, messages=messages, subscriptions=subscriptions, warnings=(warning,))
    for label in parsed(mermaid(hostile)):
        assert not set(re.sub(r"#\d+;", "", label)) & set('"#;<>&%`\n\r\x1b{}[]')
    for line in lines_of_description(hostile, 60):
        assert line.isprintable()


def test_a_hostile_class_name() -> None:
    """A class may be called anything, if it is made so."""
    cls = type('x"]; click m0 "javascript:alert(1)', (Event,), {"__annotations__": {"n": int}})
    diagram = mermaid(describe(bus_of(events={cls: [one]})))
    parsed(diagram)
    assert '"x#34;#93;#59; click m0 #34;javascript#58;alert(1)"' in diagram


# --- the command ----------------------------------------------------------------------------------------------------------


def test_as_text() -> None:
    """Messages, subscriptions with settings and guarantees, sagas, warnings: for people."""
    done = run("--app", f"{APP}:make_risky")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:3] == ["MessageBus (sync)", "  middleware: logged", "  observers: Quiet"]
    assert "command  PlaceOrder   1        customer  place" in lines
    assert "subscription books: dispatch, transactional, reads the outbox" in lines
    assert "  partitions    4              set" in lines
    assert "  shop.placed -> Bookkeeper" in lines
    assert "  - messages of one key in order, one at a time (G3)" in lines
    assert "saga place order" in lines
    assert "  1     reserve  release    exactly once (G5)  1" in lines
    assert "warning command-without-handler: command 'Forgotten' is known" in done.stdout
    assert run("--app", f"{APP}:make_bus").stdout.splitlines()[-1] == "nothing about the wiring is risky"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_width_of_the_terminal(width: int) -> None:
    """Lines are wrapped to it, but for tables."""
    sentences = [
        line
        for line in run("--app", f"{APP}:make_relay", width=width).stdout.splitlines()
        if line.startswith("  - ")
    ]
    assert sentences
    assert max(map(len, sentences)) <= width


def test_as_json() -> None:
    """One object with stable keys."""
    done = run("--app", f"{APP}:make_relay", "--json")
    found = json.loads(done.stdout)
    assert list(found) == [
        *(
            "ok",
            "bus",
            "is_async",
            "messages",
            "middleware",
            "observers",
            "subscriptions",
            "sagas",
            "warnings",
        ),
    ]
    assert list(found["messages"][0]) == [
        *("name", "path", "kind", "version", "key", "renamed_from", "upcasters", "handlers"),
    ]
    assert list(found["subscriptions"][0]) == [
        *(
            "name",
            "kind",
            "handler",
            "log",
            "mode",
            "partitions",
            "concurrency",
            "types",
            "deliveries",
            "settings",
        ),
        "guarantees",
    ]
    assert found["ok"] is True
    assert [each["name"] for each in found["sagas"]] == ["place order"]


def test_as_a_diagram() -> None:
    """Nothing but the flowchart."""
    parsed(run("--app", f"{APP}:make_relay", "--mermaid").stdout)


def test_strict() -> None:
    """Exit code 3 for warnings, whatever is printed; 0 without --strict, and for notes."""
    for options in ([], ["--json"], ["--mermaid"]):
        assert run("--app", f"{APP}:make_risky", *options).exit_code == 0
        assert run("--app", f"{APP}:make_risky", "--strict", *options).exit_code == 3
    assert run("--app", f"{APP}:make_bus", "--strict").exit_code == 0
    assert run("--app", f"{APP}:make_async_bus", "--strict").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--app", f"{APP}:nothing"], 1, "has no attribute 'nothing'"),
        (["--app", f"{APP}:TOTALS"], 1, "name a Relay or a bus"),
        (["--app", "tests.cli.broken:bus"], 1, "importing 'tests.cli.broken' raised ModuleNotFoundError"),
        (["--app", f"{APP}:make_bus", "--json", "--mermaid"], 2, "--json and --mermaid exclude each other"),
        ([], 2, "Missing option '--app'"),
    ],
)
def test_what_is_wrong(arguments: list[str], code: int, said: str) -> None:
    """One line, and an exit code."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_of_its_own() -> None:
    """As from a shell: no database is given, and none is made."""
    done = subprocess.run(
        [sys.executable, "-m", "message_bus.cli.main", "describe", "--app", f"{APP}:make_relay", "--strict"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert not Path("there-is-no-such-file.db").exists()
    assert Fulfilment.name in done.stdout
    assert PaymentOverdue.__name__ in done.stdout


def test_a_command_stays_a_command() -> None:
    """A message of each kind is told apart by more than its name."""
    assert {each.kind for each in describe(make_bus()).messages} == {"command", "event", "query"}
    assert issubclass(PlaceOrder, Command)


def test_an_async_relay() -> None:
    """Is described like the other one; its engine opens no connection."""
    engine = create_async_engine("sqlite+aiosqlite:///there-is-no-such-file.db")
    described = describe(AsyncRelay(make_async_bus(), engine, process_managers=[Fulfilment()]))
    assert described.is_async
    assert [each.name for each in described.subscriptions] == [
        "dispatch",
        "fulfilment timeouts",
        "fulfilment",
    ]
    assert not Path("there-is-no-such-file.db").exists()
    gap = [each for each in described.warnings if each.code == "upcaster-missing"]
    assert [each.subject for each in gap] == ["shop.placed"]  # that of the bus is not the manager's
