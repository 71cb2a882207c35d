"""Metrics of a relay: the state of its logs, why it woke, who took whose lease; and `message-bus relay --metrics-port`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from message_bus import (
    DispatchOutboxHandler,
    FixedDelay,
    MessageBus,
    MetricConfig,
    OutboxHandlerABC,
    PrometheusMetrics,
    Relay,
    SQLAlchemyOutBoxRepo,
    Subscription,
    Unavailable,
)
from message_bus.cli.main import main
from message_bus.cli.metrics_port import metrics_of, metrics_served
from message_bus.observability.observer import Gauges, Part, PartitionGauges
from tests.delivery.world import AT_ONCE, Noted, Pay, World, placed
from tests.observability.scraping import own_metrics, series, value
from tests.relay.test_processes import running
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics(world: World) -> PrometheusMetrics:
    """Observes the world's bus."""
    made = own_metrics()
    world.bus.observe(made)
    return made


def relay_of(world: World, **options: Any) -> Relay:
    """A relay that looks often."""
    return Relay(
        world.bus, world.sessions, tables=world.tables, **{"poll": timedelta(seconds=0.05), **options}
    )


# --- the state of the logs


def test_the_state_of_the_logs(metrics: PrometheusMetrics, world: World) -> None:
    """Lag, what is recorded of failures, rows and age of the outbox, the schedule: as a relay reads them."""
    late = DispatchOutboxHandler(
        handlers={Noted: [lambda event: None]}, subscription=Subscription(name="late", types={Noted})
    )
    [dispatch] = world.bus.outbox_handlers
    world.bus.set_outbox_handlers([dispatch, late])
    world.process()  # both know where to start
    world.bus.set_outbox_handlers([dispatch])
    world.settings(max_attempts=1)
    world.fail("a:0", 1)
    world.register(*placed("a", range(3)))
    world.register(Pay(n=1), delay=timedelta(hours=1))
    world.register(Pay(n=2), delay=timedelta(hours=1))
    outbox = world.tables.outbox
    [(now,), *_] = world.rows(sa.select(outbox.c.created_at))
    world.write(sa.update(outbox).values(created_at=now - timedelta(hours=1)))
    world.process()
    with relay_of(world):
        wait_until(lambda: series(metrics, "state_read_timestamp_seconds"))
    assert series(metrics, "lag_messages") == {("0", "dispatch"): 0, ("0", "late"): 3}
    age = series(metrics, "lag_seconds")
    assert age["0", "dispatch"] == 0
    assert 3_600 <= age["0", "late"] < 3_700
    assert series(metrics, "undelivered_messages") == {
        ("0", state, name): float((state, name) == ("dead", "dispatch"))
        for state in ("retrying", "held", "dead")
        for name in ("dispatch", "late")
    }
    assert series(metrics, "outbox_rows") == {("outbox",): 3}
    assert 3_600 <= value(metrics, "outbox_oldest_age_seconds") < 3_700
    assert series(metrics, "scheduled_messages") == {("delayed",): 2, ("due",): 0}
    assert series(metrics, "watermark_age_seconds") == {("outbox",): 0}


def test_nothing_is_claimed_where_nothing_is_read(metrics: PrometheusMetrics, world: World) -> None:
    """A process without a relay has no series that says zero of what it has not looked at."""
    world.register(Noted(n=1))
    world.process()
    for name in ("lag_messages", "outbox_rows", "outbox_oldest_age_seconds", "scheduled_messages"):
        assert series(metrics, name) == {}


@pytest.mark.postgresql
def test_a_transaction_that_holds_the_watermark(metrics: PrometheusMetrics, world: World) -> None:
    """Somebody has written to the outbox and does not commit: for how long is seen."""
    with world.sessions() as session:
        repo = SQLAlchemyOutBoxRepo(session, tables=world.tables)
        world.bus.register_outbox_message(repo, Noted(n=1))
        repo.flush()
        with relay_of(world):
            wait_until(lambda: value(metrics, "watermark_age_seconds", log="outbox") > 0)


def measured(*partitions: PartitionGauges, **logs: float) -> Gauges:
    """What a relay has read."""
    return Gauges(
        partitions=partitions,
        outbox_rows=0,
        outbox_oldest_seconds=0,
        delayed=0,
        due=0,
        watermark_age=logs or {"outbox": 0.0},
    )


def gauges_of(name: str, partition: int, lag: int | None = 1) -> PartitionGauges:
    """A partition that is one message behind."""
    return PartitionGauges(
        part=Part(subscription=name, partition=partition, log="outbox"),
        lag=lag,
        lag_seconds=None if lag is None else 2.0,
    )


def test_what_has_gone_leaves_no_series() -> None:
    """A subscription that was dropped, partitions that were joined, a log that nobody reads any more."""
    metrics = own_metrics()
    metrics.measured(
        measured(gauges_of("a", 0), gauges_of("a", 1), gauges_of("b", 0), outbox=1.0, events=2.0)
    )
    assert set(series(metrics, "lag_messages")) == {("0", "a"), ("1", "a"), ("0", "b")}
    assert set(series(metrics, "watermark_age_seconds")) == {("outbox",), ("events",)}
    metrics.measured(measured(gauges_of("a", 0)))
    for name in ("lag_messages", "lag_seconds"):
        assert set(series(metrics, name)) == {("0", "a")}
    assert set(series(metrics, "undelivered_messages")) == {
        ("0", state, "a") for state in ("retrying", "held", "dead")
    }
    assert set(series(metrics, "watermark_age_seconds")) == {("outbox",)}


def test_one_that_does_not_know_where_to_start_has_no_lag() -> None:
    """Nor has it a lag of zero."""
    metrics = own_metrics()
    metrics.measured(measured(gauges_of("a", 0, lag=None)))
    assert series(metrics, "lag_messages") == series(metrics, "lag_seconds") == {}


# --- waking up, leases, outages


def test_woken_by_a_commit_of_this_process(metrics: PrometheusMetrics, world: World) -> None:
    """It rings."""
    with relay_of(world, listen=False) as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        relay.wait_until_idle()
    assert value(metrics, "wake_ups_total", subscription="dispatch", cause="commit") >= 1


def test_woken_by_looking(metrics: PrometheusMetrics, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody rings for the commits of other processes."""
    monkeypatch.setattr("message_bus.repositories.bells.ring", lambda log="outbox": None)
    with relay_of(world, listen=False) as relay:
        relay.wait_until_idle()
        world.register(Noted(n=1))
        wait_until(lambda: value(metrics, "wake_ups_total", cause="poll") >= 1)


@pytest.mark.postgresql
def test_woken_by_a_notification(
    metrics: PrometheusMetrics, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit elsewhere, heard while the relay is asleep."""
    monkeypatch.setattr("message_bus.repositories.bells.ring", lambda log="outbox": None)
    asleep = sa.select(world.tables.log.c.asleep_until)
    with relay_of(world, poll=timedelta(seconds=60)):
        wait_until(lambda: world.rows(asleep) not in ([], [(None,)]))
        world.register(Noted(n=1))
        wait_until(lambda: value(metrics, "wake_ups_total", cause="notification") >= 1)


def test_woken_by_the_clock(metrics: PrometheusMetrics, world: World) -> None:
    """While everything fails, one more message is tried now and then."""
    world.settings(backoff=FixedDelay(3_600))
    for n in range(25):
        world.fail(f"k{n}:0", 1)
    world.register(*(each for n in range(25) for each in placed(f"k{n}", [0])))
    with relay_of(world, listen=False):
        wait_until(lambda: value(metrics, "wake_ups_total", cause="timer") >= 1)


def test_taken_over(metrics: PrometheusMetrics, world: World) -> None:
    """From a worker that was silent for longer than its lease."""
    world.process()
    world.register(Noted(n=1))
    checkpoint = world.tables.subscription
    world.write(sa.update(checkpoint).values(owner="dead", lease_until=checkpoint.c.created_at))
    assert value(metrics, "lease_changes_total", change="taken_over") == 0
    world.process()
    assert value(metrics, "lease_changes_total", subscription="dispatch", change="taken_over") == 1


class Send(OutboxHandlerABC):
    """Finds what it sends to out of reach, while it is told to."""

    subscription = Subscription(name="send", backoff=AT_ONCE)
    down = True

    def _handle(self, outbox_message: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        if self.down:
            raise Unavailable("the broker")


def test_an_outage_that_lasts(metrics: PrometheusMetrics, world: World) -> None:
    """A partition that a relay keeps is out of reach until what it needs is back (G8)."""
    send = Send()
    world.bus.set_outbox_handlers([send])
    world.register(Noted(n=1))
    with relay_of(world):
        wait_until(lambda: series(metrics, "partitions_out_of_reach") == {("send",): 1})
        send.down = False
        wait_until(lambda: series(metrics, "partitions_out_of_reach") == {("send",): 0})
    assert value(metrics, "outages_total", subscription="send") == 1
    assert value(metrics, "messages_delivered_total", subscription="send") == 1


# --- message-bus relay --metrics-port


@pytest.fixture
def port() -> int:
    """A port of 127.0.0.1 that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scraped(port: int) -> str:
    """What Prometheus would get."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.parametrize("app", ["make_bus", "make_async_bus", "make_relay", "make_async_relay"])
def test_a_relay_serves_its_metrics(app: str, world: World, database_url: sa.URL, port: int) -> None:
    """Of this application and of the process, to this machine alone, until it ends."""
    with running(app, database_url, "--metrics-port", str(port)) as process:
        answered(port)
        wait_until(
            lambda: 'message_bus_lag_messages{partition="0",subscription="dispatch"} 0.0' in scraped(port)
        )
        assert "process_cpu_seconds_total" in scraped(port)
        with pytest.raises(OSError):  # noqa: PT011  (nobody listens there)
            socket.create_connection(("127.0.0.2", port), timeout=2).close()
        process.send(signal.SIGTERM)
        code, said = process.end()
        assert code == 0, said
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def answered(port: int) -> None:
    """Wait until somebody listens there."""

    def is_there() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    wait_until(is_there, timeout=30)


def test_a_bus_that_has_metrics_keeps_them(port: int) -> None:
    """Its own registry and names are served; the port is free afterwards, and may be taken again."""
    bus = MessageBus()
    metrics = PrometheusMetrics(MetricConfig(namespace="shop", registry=own_metrics().registry))
    bus.observe(metrics)
    assert metrics_of(bus) is metrics
    for _ in range(2):
        with metrics_served(bus, port, "127.0.0.1"):
            bus.set_event_handlers(Noted, [lambda event: None])
            bus.handle(Noted(n=1))
            assert "shop_events_total" in scraped(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_that_is_taken() -> None:
    """One line, with the remedy, before the relay runs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        done = CliRunner().invoke(
            main, ["relay", "--app", "tests.observability.idle_app:Idle", "--metrics-port", taken]
        )
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: metrics cannot be served on 127.0.0.1:{taken}: Address already in use "
        "(choose another --metrics-port or --metrics-host)\n"
    )


@pytest.mark.parametrize(("options", "said"), [([], "False False"), (["--metrics-port"], "True True")])
def test_without_the_option_nothing_is_loaded(options: list[str], said: str, port: int) -> None:
    """A relay without metrics does not even import prometheus_client."""
    done = subprocess.run(
        [sys.executable, "-m", "message_bus.cli.main", "relay", "--app", "tests.observability.idle_app:Idle",
         *options, *([str(port)] if options else [])],
        cwd=ROOT, capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
