"""The registry of a bus: names to classes, and payloads of any version to messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_bus.errors import MessageDecodeError, NotAMessage, SettingsError, UnknownMessageType
from message_bus.messages import Command, Event, Registry
from message_bus.messages.upcasting import Chain, Step

NEWER = r"'orders.placed' was written in version 5, by a newer process: the class here has version 4 \(deploy"


class ProcessOrder(Command):
    order_id: int


class OrderPlaced(Event, name="orders.placed", version=4, renamed_from="OrderMade"):
    order_id: int
    currency: str


def namesake(name: str, **options: Any) -> Any:
    """Return a new event class with this name."""
    return type(name, (Event,), {"__annotations__": {"a": int}}, **options)


def upcasting_registry() -> Registry:
    """Return a registry in which versions 1 and 2 lead to 4, and nothing leads on from 3."""
    registry = Registry()

    @registry.upcast(OrderPlaced, from_version=1)
    def _(payload: dict[str, Any]) -> dict[str, Any]:
        payload["order_id"] = int(payload.pop("id"))
        return payload

    @registry.upcast("orders.placed", from_version=2, to_version=4)
    def _(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "currency": "EUR"}

    return registry


class TestNames:
    def test_register_and_look_up(self) -> None:
        """Classes are found under their names and former names; registering twice changes nothing."""
        registry = Registry()
        registry.register(ProcessOrder, OrderPlaced, ProcessOrder)
        registry.register(OrderPlaced)
        assert registry.get("ProcessOrder") is ProcessOrder
        assert registry.get("orders.placed") is registry.get("OrderMade") is OrderPlaced
        assert registry.get("OrderPlaced") is None
        assert list(registry) == [ProcessOrder, OrderPlaced]
        assert len(registry) == 2

    def test_contains(self) -> None:
        """Names and classes may be asked for."""
        registry = Registry()
        registry.register(OrderPlaced)
        for known in ("orders.placed", "OrderMade", OrderPlaced):
            assert known in registry
        for unknown in ("OrderPlaced", ProcessOrder, 3, []):
            assert unknown not in registry

    def test_two_classes_under_one_name(self) -> None:
        """A name means one class; all clashes are told, and nothing is registered."""
        first, second = namesake("Same"), namesake("Same")
        registry = Registry()
        registry.register(first)
        with pytest.raises(
            SettingsError, match=r"'Same' means both .*Same and .*Same \(give one of them another"
        ):
            registry.register(ProcessOrder, second)
        assert ProcessOrder not in registry
        assert registry.get("Same") is first
        with pytest.raises(SettingsError) as caught:
            Registry().register(first, second, namesake("Other", renamed_from=("Same",)))
        assert len(caught.value.problems) == 2

    def test_registries_are_independent(self) -> None:
        """Two buses may know different classes under one name."""
        one, other = Registry(), Registry()
        one.register(namesake("Same"))
        other.register(namesake("Same"))
        assert one.get("Same") is not other.get("Same")

    def test_what_is_no_message(self) -> None:
        """Only message classes are registered."""
        with pytest.raises(NotAMessage):
            Registry().register(int)  # type: ignore[arg-type]


class TestDecode:
    def test_current_version(self) -> None:
        """A row of the class's version is decoded as it is, under any of its names."""
        registry = Registry()
        registry.register(OrderPlaced)
        for name in ("orders.placed", "OrderMade"):
            assert registry.decode(name, 4, b'{"order_id":1,"currency":"EUR"}') == OrderPlaced(1, "EUR")
        assert registry.decode("orders.placed", 4, '{"order_id":1,"currency":"EUR"}') == OrderPlaced(1, "EUR")

    def test_unknown_type(self) -> None:
        """A name that is not registered is its own error, for it may be known after the next deploy."""
        with pytest.raises(UnknownMessageType, match="unknown message type 'Nothing'") as caught:
            Registry().decode("Nothing", 1, b"{}")
        assert caught.value.message_name == "Nothing"

    def test_a_newer_version(self) -> None:
        """A version that this program does not have yet counts as unknown, not as broken."""
        registry = Registry()
        registry.register(OrderPlaced)
        with pytest.raises(UnknownMessageType, match=NEWER) as caught:
            registry.decode("orders.placed", 5, b"{}")
        assert (caught.value.message_name, caught.value.version) == ("orders.placed", 5)

    def test_what_does_not_fit(self) -> None:
        """A payload that does not fit names type and field."""
        registry = Registry()
        registry.register(ProcessOrder)
        with pytest.raises(
            MessageDecodeError, match="cannot decode 'ProcessOrder': field 'order_id' is missing"
        ):
            registry.decode("ProcessOrder", 1, b"{}")


class TestUpcasting:
    @pytest.mark.parametrize(
        ("version", "payload"),
        [(1, b'{"id":"7"}'), (2, b'{"order_id":7}'), (4, b'{"order_id":7,"currency":"EUR"}')],
    )
    def test_every_version_leads_to_the_class(self, version: int, payload: bytes) -> None:
        """Old payloads pass through each step that leaves their version, under old and new names."""
        registry = upcasting_registry()
        for name in ("orders.placed", "OrderMade"):
            assert registry.decode(name, version, payload) == OrderPlaced(7, "EUR")

    def test_a_step_under_a_former_name(self) -> None:
        """A step that was registered when the type had its old name still counts."""
        registry = Registry()
        registry.register(OrderPlaced)
        registry.add_upcaster(
            "OrderMade", lambda old: {**old, "currency": "EUR"}, from_version=1, to_version=4
        )
        assert registry.decode("orders.placed", 1, b'{"order_id":7}') == OrderPlaced(7, "EUR")
        registry.check()

    def test_add_upcaster_registers_the_class(self) -> None:
        """Naming a class is enough for the registry to know it."""
        assert OrderPlaced in upcasting_registry()

    def test_a_gap_while_decoding(self) -> None:
        """A version that nothing leads on from is a decode error with the remedy."""
        with pytest.raises(MessageDecodeError, match=r"no upcaster leads from version 3 to 4 \(add one"):
            upcasting_registry().decode("orders.placed", 3, b'{"order_id":7}')

    @pytest.mark.parametrize(
        ("upcaster", "told"),
        [
            (lambda old: old["geheim"], "from version 1 to 4 raised KeyError"),
            (lambda old: old.update(currency="EUR"), r"returned NoneType \(return the new payload\)"),
            (lambda old: {"currency": "EUR"}, "field 'order_id' is missing"),
        ],
    )
    def test_a_step_that_fails(self, upcaster: Any, told: str) -> None:
        """What goes wrong in a step is a decode error that says which step."""
        registry = Registry()
        registry.add_upcaster(OrderPlaced, upcaster, from_version=1, to_version=4)
        with pytest.raises(MessageDecodeError, match=told) as caught:
            registry.decode("orders.placed", 1, b'{"order_id":1}')
        assert "geheim" not in str(caught.value)

    @pytest.mark.parametrize("payload", [b"[1]", b"geheim", b"null"])
    def test_a_payload_that_is_no_object(self, payload: bytes) -> None:
        """Upcasters only ever see dicts."""
        with pytest.raises(MessageDecodeError, match=r"cannot decode 'orders.placed'"):
            upcasting_registry().decode("orders.placed", 1, payload)

    def test_steps_that_make_no_sense(self) -> None:
        """Backwards, from nowhere, or twice from one version: all problems at once."""
        registry = upcasting_registry()
        with pytest.raises(SettingsError) as caught:
            registry.add_upcaster(OrderPlaced, dict, from_version=0, to_version=0)
        assert len(caught.value.problems) == 2
        with pytest.raises(SettingsError, match="version 1 has an upcaster already"):
            registry.add_upcaster(OrderPlaced, dict, from_version=1, to_version=3)

    def test_check_finds_gaps(self) -> None:
        """Every version that a payload may have must lead to the class's; all gaps are told at once."""
        upcasting_registry().check()
        registry = Registry()
        registry.register(OrderPlaced, ProcessOrder)
        registry.add_upcaster("orders.placed", dict, from_version=2)
        registry.add_upcaster("ProcessOrder", dict, from_version=1)
        registry.add_upcaster("Nothing", dict, from_version=1)
        with pytest.raises(SettingsError) as caught:
            registry.check()
        assert caught.value.problems == (
            "'orders.placed': nothing leads from version 1 on to 4 (add an upcaster)",
            "'orders.placed': nothing leads from version 3 on to 4 (add an upcaster)",
            "'ProcessOrder': an upcaster leads to version 2, beyond 1 of the class",
            "upcaster for 'Nothing', which is no registered type",
        )


class TestChain:
    def test_the_payload_is_left_as_it_is(self) -> None:
        """Steps may change what they get, also deep inside: it is a copy."""

        def step(payload: dict[str, Any]) -> dict[str, Any]:
            payload["lines"].append(2)
            return payload

        payload = {"lines": [1]}
        chain = Chain("x", (Step(1, 2, step),))
        assert chain.upcast(payload, from_version=1, to_version=2) == {"lines": [1, 2]}
        assert payload == {"lines": [1]}

    @given(st.sets(st.integers(1, 30)), st.integers(1, 30))
    def test_no_gap_means_that_every_version_arrives(self, leaving: set[int], version: int) -> None:
        """A chain without gaps leads from each of its versions to the class's, through rising versions."""
        rising = sorted(leaving | {1})
        chain = Chain("x")
        for this, following in zip(rising, [*rising[1:], version], strict=True):
            if following > this:
                chain = chain.with_step(
                    Step(this, following, lambda old, here=this: {"path": [*old["path"], here]})  # type: ignore[misc]
                )
        if chain.gaps(version):
            return
        for start in [step.from_version for step in chain.steps]:
            path = chain.upcast({"path": []}, from_version=start, to_version=version)["path"]
            assert path == [other for other in rising if start <= other < version]


def test_a_payload_nested_too_deeply_is_a_decode_error() -> None:
    """Trying again would not help (G7): whoever delivers it makes it a dead letter at once."""
    nested: Any = {}
    for _ in range(5_000):
        nested = {"inner": nested}
    with pytest.raises(MessageDecodeError, match="nested too deeply"):
        Chain("deep").with_step(Step(1, 2, lambda data: data)).upcast(nested, from_version=1, to_version=2)
