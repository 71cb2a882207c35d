"""Workers that have not heard of what an operator has done."""

from __future__ import annotations

from datetime import timedelta

import pytest

from message_bus import FixedDelay, LeaseLost, Subscription, Subscriptions
from message_bus.delivery.lease import claim
from message_bus.delivery.reading import Reader
from message_bus.storage.watermark import Watermark
from tests.delivery.world import Noted, World, placed


def test_a_worker_that_thinks_of_another_number_of_partitions_claims_nothing(world: World) -> None:
    """S5: it checked the number before the repartition; with the old one it would read what belongs to others."""
    world.settings()
    world.register(Noted(1))
    world.process()
    with world.sessions.begin() as session:
        Subscriptions(session, tables=world.tables).repartition("dispatch", 2)
    with world.sessions.begin() as session:
        for partitions, claimed in ((1, False), (2, True)):
            settings = Subscription(name="dispatch", partitions=partitions)
            lease = claim(session, world.tables, settings, 0, lease=timedelta(seconds=30))
            assert (lease is not None) is claimed


@pytest.mark.postgresql  # on SQLite nobody decides anything while somebody reads
def test_what_a_subscription_was_waiting_for_is_not_overtaken_after_a_forced_reset(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3: its rows are gone with the lease: a worker that still reads must not take their keys for free."""
    world.settings(backoff=FixedDelay(600))
    world.fail("a:0", 1)
    world.register(*placed("a", range(1)))
    world.process()
    world.register(*placed("a", range(1, 3)))
    settings = Subscription(name="dispatch")
    with world.sessions() as session, world.sessions() as operating:
        lease = claim(session, world.tables, settings, 0, lease=timedelta(seconds=30))
        session.commit()
        assert lease is not None
        reader = Reader(world.tables, settings, 0, Watermark(world.tables))
        assert reader.new(session, lease, limit=10).blocked == {"a"}

        def reset(*_: object) -> frozenset[str]:
            Subscriptions(operating, tables=world.tables).reset("dispatch", 0, force=True)
            operating.commit()
            return Reader.blocked(reader, session, {"a"})

        monkeypatch.setattr(reader, "blocked", reset)
        with pytest.raises(LeaseLost):
            reader.new(session, lease, limit=10)
