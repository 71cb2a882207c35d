"""A worker that has not heard of a repartition."""

from __future__ import annotations

from datetime import timedelta

from message_bus import Subscription, Subscriptions
from message_bus.delivery.lease import claim
from tests.delivery.world import Noted, World


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
