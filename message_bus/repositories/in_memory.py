# Generated from in_memory_async.py by tests/tools/unasync.py: do not edit.
"""An outbox in memory, for tests and prototypes: the repository contract without a database.

One repository is one unit of work: what it adds is seen by itself at once and by others after `save()`. Several share an
`InMemoryOutBox`. `process_outbox` works on it as on a repository of the user's own: list, handle, mark, save.
"""

from __future__ import annotations

from uuid import UUID

from message_bus.repositories.in_memory_store import InMemoryOutBox, UnitOfWork
from message_bus.repositories.outbox import OutBoxRepoABC
from message_bus.repositories.outbox_message import OutboxMessage


class InMemoryOutBoxRepo(OutBoxRepoABC):
    """Puts messages into an outbox in memory: `InMemoryOutBoxRepo()`, or one of several on the same `outbox`.

    Nothing survives the process, and a failing row is tried by every call of `process_outbox`, without back-off or dead
    letters; two calls at once deliver twice. Row objects are copies: of a change in one only `processed` is stored, by
    `save()`. One thread or task at a time per repository, as with a session; any number of repositories per outbox.
    """

    def __init__(self, outbox: InMemoryOutBox | None = None) -> None:
        super().__init__()
        self.outbox = InMemoryOutBox() if outbox is None else outbox
        self._unit_of_work = UnitOfWork(self.outbox)

    def get_model(self) -> type[OutboxMessage]:
        """Return the class of the rows."""
        return OutboxMessage

    def _add(self, outbox_message: OutboxMessage) -> None:
        self._unit_of_work.add(outbox_message)

    def get(self, id: UUID | str) -> OutboxMessage | None:  # noqa: A002
        """Return the message with this id; None if there is none.

        Finds what this repository has added and not yet saved, and delayed messages; these have no position.
        """
        return self._unit_of_work.get(id)

    def list_unprocessed(self, limit: int | None = None) -> list[OutboxMessage]:
        """Return the messages that are not processed yet, in the order of their commits.

        Delayed ones are not seen before they are due; what this repository has not saved comes last.
        """
        return self._unit_of_work.list_unprocessed(limit)

    def save(self) -> None:
        """Commit: positions are drawn, and others see what was added and marked as processed.

        Raises: InvalidOutboxMessage if an id is taken; nothing is stored then.
        """
        self._unit_of_work.save()

    def rollback(self) -> None:
        """Drop what was added, and undo marks, since the last `save()`."""
        self._unit_of_work.rollback()
