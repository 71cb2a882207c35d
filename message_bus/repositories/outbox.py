"""Outbox repositories: the contract for users' own.

A repository puts rows into the caller's transaction; it is made per session, and never commits unless `save` is called.
What builds the rows is `registering.py`; the package's own repositories are in `sqlalchemy.py` and `sqlalchemy_async.py`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

from message_bus.errors import InvalidOutboxMessage, WiringError
from message_bus.repositories.outbox_message import OutboxMessage


class _AnyRepo(ABC):
    @abstractmethod
    def get_model(self) -> Any:
        """Return the class of the rows: `OutboxMessage`, or a model with `id, type, message, payload, meta`."""

    @abstractmethod
    def _add(self, outbox_message: Any) -> Any:
        """Put a valid row into the session; not async, not a commit."""

    def add(self, outbox_message: Any) -> None:
        """Check a row and put it into the caller's transaction.

        Raises: InvalidOutboxMessage.
        """
        check_row(outbox_message, self.get_model())
        added = self._add(outbox_message)
        if inspect.isawaitable(added):
            if inspect.iscoroutine(added):
                added.close()
            raise WiringError(
                f"{type(self).__name__}._add() is async, but adding happens inside the caller's transaction without "
                "awaiting (make it a plain def: session.add() does no I/O)"
            )

    def _missing(self, method: str) -> WiringError:
        return WiringError(f"{type(self).__name__} has no {method}() (override it to process this outbox)")


class OutBoxRepoABC(_AnyRepo):
    """An outbox of your own: `get_model` and `_add` are enough to register messages, the rest is for processing.

    Rows whose model has an attribute `processed` get it set to True when all outbox handlers have handled them.
    """

    def get(self, id: Any) -> Any:  # noqa: A002
        """Return the row with this id; None if there is none."""
        raise self._missing("get")

    def list_unprocessed(self) -> Any:
        """Return the rows that were not handled yet, oldest first."""
        raise self._missing("list_unprocessed")

    def save(self) -> Any:
        """Commit."""
        raise self._missing("save")

    def rollback(self) -> Any:
        """Roll back."""
        raise self._missing("rollback")


class AsyncOutBoxRepoABC(_AnyRepo):
    """The same for an AsyncMessageBus; `_add` stays a plain function, the others may be async or not."""

    async def get(self, id: Any) -> Any:  # noqa: A002
        """Return the row with this id; None if there is none."""
        raise self._missing("get")

    async def list_unprocessed(self) -> Any:
        """Return the rows that were not handled yet, oldest first."""
        raise self._missing("list_unprocessed")

    async def save(self) -> Any:
        """Commit."""
        raise self._missing("save")

    async def rollback(self) -> Any:
        """Roll back."""
        raise self._missing("rollback")


Repo: TypeAlias = OutBoxRepoABC | AsyncOutBoxRepoABC


def check_row(row: Any, model: Any) -> None:
    """Raise InvalidOutboxMessage unless `row` is a complete row of `model`."""
    if isinstance(model, type) and not isinstance(row, model):
        raise InvalidOutboxMessage(
            f"an outbox row of class {model.__name__!r} is wanted, not a {type(row).__name__!r}"
        )
    problems = []
    if getattr(row, "type", None) not in ("COMMAND", "EVENT"):
        problems.append("type must be 'COMMAND' or 'EVENT'")
    name = getattr(row, "message", None)
    if not isinstance(name, str) or not name:
        problems.append("message must be the name of a message type")
    if not isinstance(row, OutboxMessage) and not isinstance(
        getattr(row, "payload", None), Mapping | str | bytes
    ):
        problems.append("payload must be a dict")
    if problems:
        raise InvalidOutboxMessage(f"outbox row: {'; '.join(problems)}")
