"""The table of the history: what has happened to messages besides being quietly delivered.

One row for one thing that happened to one message in one subscription, written in the transaction that makes it happen and
never changed. A message that every subscription handles at its first attempt has none: the steady path writes nothing here.
Nobody decides by it: what is still to be done says the delivery table. `why` tells it. Used by `MessageBusTables` only.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)

from message_bus.storage.naming import Naming, one_of
from message_bus.storage.types import Position, UtcDateTime, utc_now

# history.what
FAILED: Final = "failed"  # an attempt, after which there is another
DIED: Final = "dead"  # the last attempt, or the last crash: a dead letter from here on
HELD_BEHIND: Final = "held"  # untried, because an earlier message of its key is not done
CRASHED: Final = "crashed"  # its worker died with it alone in hand
HANDLED: Final = "delivered"  # after one of these; who has none of them is delivered without a word
PASSED_OVER: Final = "passed over"  # the same, but nobody wanted it
UNWANTED: Final = "unwanted"  # the subscription does not read its type any more
REVIVED: Final = "revived"  # a dead letter whose type is known by now
REPLAYED: Final = "replayed"  # by an operator, as the following
DISCARDED: Final = "discarded"
RESET: Final = "reset"  # what was recorded went when the subscription was moved
REPARTITIONED: Final = "repartitioned"  # held, so that all partitions could stand at one position
HAPPENINGS: Final = (
    FAILED, DIED, HELD_BEHIND, CRASHED, HANDLED, PASSED_OVER, UNWANTED, REVIVED, REPLAYED, DISCARDED, RESET, REPARTITIONED,
)  # fmt: skip


def history_table(naming: Naming) -> Table:
    """What has happened, in this order. Rows go with their message, or when they are old."""
    return Table(
        naming.name("history"),
        naming.metadata,
        Column("id", Position, Identity(always=True), comment="order in which it happened"),
        Column("subscription", Text, nullable=False),
        Column("log", Text, nullable=False, comment="that the subscription reads"),
        Column("position", BigInteger, nullable=False, comment="of the message in that log"),
        Column("message_id", Uuid, comment="null: the message was gone already"),
        Column("what", Text, nullable=False),
        Column("attempt", Integer, comment="its number; of a crash: how many there were"),
        Column("behind", BigInteger, comment="position of the message that it is held behind"),
        Column("error", Text),
        Column("decided_by", Text, comment="the operator, if one has decided it and said so"),
        Column("happened_at", UtcDateTime, nullable=False, server_default=utc_now()),
        PrimaryKeyConstraint("id", name=naming.constraint("history_pkey")),
        CheckConstraint(one_of("what", HAPPENINGS), name=naming.constraint("history_what_check")),
        Index(naming.name("history_message_id_idx"), "message_id"),
        Index(naming.name("history_happened_at_idx"), "happened_at"),
        schema=naming.schema,
    )
