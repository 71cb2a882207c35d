"""The outbox that a handler sees while no transaction is open: it collects, and the recording commit writes."""

from __future__ import annotations

from message_bus.repositories.outbox import OutBoxRepoABC
from message_bus.repositories.outbox_message import OutboxMessage
from message_bus.repositories.waiting import encoded


class CollectingOutbox(OutBoxRepoABC):
    """Collects rows in `.rows`, to be written together with the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[OutboxMessage] = []

    def get_model(self) -> type[OutboxMessage]:
        """The package's own row."""
        return OutboxMessage

    def _add(self, outbox_message: OutboxMessage) -> None:
        encoded(
            outbox_message
        )  # what cannot be stored fails the handler that emits it, not the commit of a batch
        self.rows.append(outbox_message)
