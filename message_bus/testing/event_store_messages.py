"""The events that the contract of event stores saves and loads."""

from __future__ import annotations

from dataclasses import field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from message_bus.messages.message import Command, Event
from message_bus.messages.registry import Registry


class AccountOpened(Event, name="contract.account_opened"):
    """Has a field that can be changed in place."""

    owner: str
    tags: list[str] = field(default_factory=list[str])


class Deposited(Event, name="contract.deposited", version=3, renamed_from=("contract.paid_in",)):
    """Once `contract.paid_in`, with euros; then cents; now cents and a currency."""

    cents: int
    currency: str = "EUR"


class PaidIn(Event, name="contract.paid_in"):
    """`Deposited` as an old program wrote it."""

    euros: int


class DepositedInCents(Event, name="contract.deposited", version=2):
    """`Deposited` as a less old program wrote it."""

    cents: int


class Audited(Event, name="contract.audited"):
    """Has fields that are called as what every loaded event offers."""

    id: int
    timestamp: str


class Closed(Event, name="contract.closed"):
    """Has fields that JSON has no word for."""

    amount: Decimal = Decimal("12.50")
    at: datetime = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    reference: UUID = UUID(int=7)
    reason: str | None = None
    history: tuple[int, ...] = (1, 2)
    note: str = "ünïcode, \u2028, 🚲, \x7f"


class Unheard(Event, name="contract.unheard"):
    """Not in the registry."""


class OpenAccount(Command, name="contract.open_account"):
    """Is no event."""

    owner: str


def contract_registry() -> Registry:
    """The events by name, and the upcasters of `Deposited`."""
    registry = Registry()
    registry.register(AccountOpened, Deposited, Audited, Closed)
    registry.add_upcaster(Deposited, _in_cents, from_version=1)
    registry.add_upcaster(Deposited, _with_currency, from_version=2)
    return registry


def old_registry() -> Registry:
    """What the old programs knew."""
    registry = Registry()
    registry.register(PaidIn, DepositedInCents)
    registry.add_upcaster(DepositedInCents, _in_cents, from_version=1)
    return registry


def _in_cents(payload: dict[str, Any]) -> dict[str, Any]:
    return {"cents": payload["euros"] * 100}


def _with_currency(payload: dict[str, Any]) -> dict[str, Any]:
    payload["currency"] = "DEM"
    return payload
