"""The four metrics of the messaging conventions: names, units, buckets, attributes, and what makes each of them move."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

import message_bus
from message_bus import InvalidOutboxMessage, SQLAlchemyOutBoxRepo, Telemetry
from tests.delivery.test_round_trips import counted
from tests.delivery.world import Noted, World
from tests.observability.spans import Recorded

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


@pytest.fixture
def recorded(world: World) -> Recorded:
    """What is recorded of the world's bus."""
    made = Recorded()
    world.bus.observe(made.telemetry)
    return made


def test_names_units_and_buckets(world: World, recorded: Recorded) -> None:
    """As the conventions say, under our name, version and schema."""
    world.register(Noted(n=1))
    world.process()
    metrics = recorded.metrics()
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "messaging.client.operation.duration": "s",
        "messaging.client.sent.messages": "{message}",
        "messaging.client.consumed.messages": "{message}",
        "messaging.process.duration": "s",
    }
    for name in ("messaging.client.operation.duration", "messaging.process.duration"):
        assert {point.explicit_bounds for point in metrics[name].data.data_points} == {SECONDS}
    for name in ("messaging.client.sent.messages", "messaging.client.consumed.messages"):
        assert metrics[name].data.is_monotonic
    data = recorded._reader.get_metrics_data()
    assert data is not None
    [scope] = [scope.scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    assert (scope.name, scope.version) == ("message_bus", message_bus.__version__)
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_what_makes_them_move(world: World, recorded: Recorded) -> None:
    """Three sent in two transactions and received, one of them fails once: four attempts, four settlements or more."""
    world.fail("3", 1)
    world.register(Noted(n=1), Noted(n=2))
    world.register(Noted(n=3))
    world.process()
    world.process()
    assert recorded.points("messaging.client.sent.messages") == {("send", None, None): 3}
    assert recorded.points("messaging.client.consumed.messages") == {("receive", "dispatch", None): 3}
    assert recorded.points("messaging.process.duration") == {
        ("process", "dispatch", None): 3,
        ("process", "dispatch", "ValueError"): 1,
    }
    operations = recorded.points("messaging.client.operation.duration")
    assert set(operations) == {
        ("send", None, None), ("receive", "dispatch", None), ("settle", "dispatch", None),
    }  # fmt: skip
    assert operations["send", None, None] == 2
    assert operations["settle", "dispatch", None] == 4


def test_attributes_are_bounded(world: World, recorded: Recorded) -> None:
    """Names of logs, subscriptions and errors; no id, no key, no type of message."""
    world.register(Noted(n=1))
    world.process()
    allowed = {
        "messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
        "messaging.consumer.group.name", "messaging.destination.partition.id", "error.type",
    }  # fmt: skip
    for name, metric in recorded.metrics().items():
        for point in metric.data.data_points:
            assert set(point.attributes) <= allowed
            assert point.attributes["messaging.system"] == "message_bus"
            assert point.attributes["messaging.destination.name"] == "outbox"
            assert ("messaging.operation.type" in point.attributes) == (
                name == "messaging.client.operation.duration"
            )


def test_what_could_not_be_sent(world: World, recorded: Recorded) -> None:
    """The INSERT fails, and with it the transaction: counted with the error."""
    with world.sessions() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        row = world.bus.register_outbox_message(repo, Noted(n=1))
        session.commit()
        world.bus.register_outbox_message(repo, Noted(n=2), id=row.id)
        with pytest.raises(InvalidOutboxMessage):
            session.commit()
    assert recorded.points("messaging.client.sent.messages") == {
        ("send", None, None): 1,
        ("send", None, "message_bus.InvalidOutboxMessage"): 1,
    }
    failed = recorded.spans("send outbox")[1]
    assert dict(failed.attributes or {})["error.type"] == "message_bus.InvalidOutboxMessage"
    assert '"n":2' not in failed.to_json()


def test_metrics_without_traces(world: World) -> None:
    """Only a meter provider is set: no span is made, and everything is counted."""
    recorded = Recorded()
    world.bus.observe(Telemetry(meter_provider=recorded.meters))
    world.register(Noted(n=1))
    world.process()
    assert recorded.spans() == []
    assert len(recorded.metrics()) == 4


@pytest.mark.postgresql
def test_no_statement_more(world: World, engine: sa.Engine) -> None:
    """Neither registering nor delivering asks the database anything for the sake of traces and metrics."""

    def work() -> list[Any]:
        with counted(engine) as trips:
            world.register(*(Noted(n=n) for n in range(5)))
            world.process()
        return list(trips)

    work()
    before = work()
    world.bus.observe(Recorded().telemetry)
    assert len(work()) <= len(before)
