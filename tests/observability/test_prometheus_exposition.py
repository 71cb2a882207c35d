"""What Prometheus is given: names and types by its rules, registries that are shared, and the files in docs/ that go with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from promql_parser import AggregateExpr, BinaryExpr, MatrixSelector, VectorSelector

from message_bus import MessageBus, MetricConfig, MetricOperationType, PrometheusMetrics, SettingsError
from message_bus.observability.observer import (
    Attempt,
    Batch,
    Gauges,
    Outcome,
    Part,
    PartitionGauges,
    SagaRun,
)
from tests.delivery.world import Noted, Pay
from tests.observability.scraping import PREFIX, families, own_metrics, series, value

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/metrics.md"
DASHBOARD = ROOT / "docs/monitoring/grafana-dashboard.json"
RULES = ROOT / "docs/monitoring/alert-rules.yml"


def instruments(metrics: PrometheusMetrics) -> dict[str, MetricWrapperBase]:
    """All of them, by their attribute."""
    return {name: each for name, each in vars(metrics).items() if isinstance(each, MetricWrapperBase)}


class Row:
    """A message in a log."""

    message = "Noted"


@pytest.fixture
def metrics() -> PrometheusMetrics:
    """Everything has happened once."""
    made = own_metrics()
    bus = MessageBus(
        event_handlers={Noted: [lambda event: None]}, command_handlers={Pay: lambda command: None}
    )
    bus.observe(made)
    bus.handle(Noted(n=1))
    bus.handle(Pay(n=1))
    part = Part(subscription="dispatch", partition=0, log="outbox")
    verdicts: list[Any] = ["delivered", "passed over", "held", "retrying", "dead"]
    arounds = [
        made.writing([Row()]),
        made.attempting(Attempt(part=part, row=Row(), number=2, waited=1.0)),
        made.recording(Batch(part=part, outcomes=[Outcome(row=Row(), verdict=each) for each in verdicts], seconds=1)),
        made.loading("Order"),
        made.storing("save"),
        made.saga(SagaRun(saga_type="order", saga_id="7", status="completed")),
    ]  # fmt: skip
    for around in arounds:
        assert around is not None
        with around:
            pass
    made.leased(part, "claimed")
    made.woken(part, "poll")
    made.out_of_reach(part, True)
    made.housekept(1, 1)
    made.record_projection_lag("totals", 1)
    with made.track_projection_update("totals"):
        pass
    made.loaded(made)
    gauges = PartitionGauges(part=part, lag=1, lag_seconds=1.0, retrying=1, held=1, dead=1)
    made.measured(
        Gauges(
            partitions=[gauges], outbox_rows=1, outbox_oldest_seconds=1, delayed=1, due=1, watermark_age={"outbox": 1}
        )
    )  # fmt: skip
    return made


# --- the exposition


def test_the_exposition_is_understood(metrics: PrometheusMetrics) -> None:
    """By the parsers of both formats, to the last metric; everything that has happened has moved something."""
    names = {PREFIX + name.removesuffix("_total") for name in instruments(metrics)}
    assert {family.name.removesuffix("_total") for family in families(metrics)} >= names
    text = open_metrics(metrics.registry).decode()
    parsed = {family.name: family for family in open_metrics_families(text)}
    assert set(parsed) == names
    for name, family in parsed.items():
        moved = [sample.value for sample in family.samples if not sample.name.endswith("_created")]
        assert any(moved), f"{name} has not moved"


def test_names_follow_the_rules(metrics: PrometheusMetrics) -> None:
    """Snake case, `_total` for counters only, base units at the end, no type in the name, a text that helps."""
    odd_units = ("milliseconds", "minutes", "hours", "days", "ms", "kb", "kilobytes", "percent")
    suffixes = ("_count", "_sum", "_bucket", "_created", "_info")
    for attribute, each in instruments(metrics).items():
        name = each._name + ("_total" if isinstance(each, Counter) else "")
        assert name == PREFIX + attribute
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name), name
        words = name.split("_")
        assert not {"counter", "gauge", "histogram", "summary"} & set(words), name
        assert not set(odd_units) & set(words), name
        assert not name.endswith(suffixes), name
        assert name.endswith("_total") == isinstance(each, Counter), name
        assert ("seconds" in words) <= name.endswith("_seconds"), name
        if isinstance(each, Histogram):
            assert name.endswith(("_seconds", "_messages")), f"{name} says no unit"
        assert len(each._documentation) > 10, name
        assert each._documentation.endswith("."), name


def test_labels_are_few_and_named_by_the_rules(metrics: PrometheusMetrics) -> None:
    """None is, or could hold, an id or a key of a message."""
    known = {
        *("type", "event_type", "command_type", "aggregate_type", "operation_type", "saga_type", "projection_name"),
        *("handler", "subscription", "partition", "status", "state", "change", "cause", "log"),
    }  # fmt: skip
    assert {label for each in instruments(metrics).values() for label in each._labelnames} == known


def test_without_histograms() -> None:
    """`enable_summary_metrics=False` leaves counters and gauges, and nothing that is measured fails."""
    made = PrometheusMetrics(MetricConfig(registry=CollectorRegistry(), enable_summary_metrics=False))
    bus = MessageBus(command_handlers={Pay: lambda command: None})
    bus.observe(made)
    bus.handle(Pay(n=1))
    with made.commands_latency_seconds.labels("Pay").time():
        pass
    assert {family.type for family in families(made)} == {"counter", "gauge"}
    assert value(made, "commands_total", command_type="Pay") == 1


# --- registries and names


def test_two_instances_on_one_registry_add_up() -> None:
    """Neither clashes with the other, and each series is there once; objects in memory are added up, too."""
    registry = CollectorRegistry()
    first, second = (PrometheusMetrics(MetricConfig(registry=registry)) for _ in range(2))
    for each in (first, second):
        with each.track_command_handle("Pay"):
            pass
        each.loaded(each)
    assert series(first, "commands_total") == series(second, "commands_total") == {("Pay", "success"): 2}
    assert series(first, "aggregates_in_memory") == {("PrometheusMetrics",): 2}


def test_namespaces_keep_them_apart() -> None:
    """The same registry, other names."""
    registry = CollectorRegistry()
    first = PrometheusMetrics(MetricConfig(registry=registry))
    second = PrometheusMetrics(MetricConfig(namespace="shop", subsystem="outbox", registry=registry))
    with second.track_command_handle("Pay"):
        pass
    assert series(first, "commands_total") == {}
    labels = {"command_type": "Pay", "status": "success"}
    assert registry.get_sample_value("shop_outbox_commands_total", labels) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda registry: Gauge("commands", "Not ours.", namespace="message_bus", registry=registry),
        lambda registry: Counter("commands", "Not ours.", namespace="message_bus", registry=registry),
        lambda registry: Counter(
            "commands", "Not ours.", ["command_type", "colour"], namespace="message_bus", registry=registry
        ),
    ],
)
def test_what_is_taken_by_something_else(make: Any) -> None:
    """Another type, or other labels, under one of our names: said with the remedy, not counted into."""
    registry = CollectorRegistry()
    make(registry)
    with pytest.raises(SettingsError, match=r"'message_bus_commands_total'.*another namespace"):
        PrometheusMetrics(MetricConfig(registry=registry))


def test_names_that_do_not_fit() -> None:
    """Both are said at once, without repeating them."""
    with pytest.raises(
        SettingsError, match=r"namespace must be letters.*subsystem must be letters"
    ) as caught:
        MetricConfig(namespace="my-shop", subsystem="7up")
    assert "shop" not in str(caught.value)


def test_the_default_registry() -> None:
    """Without one of their own they are where prometheus_client's own metrics are."""
    code = (
        "import message_bus, prometheus_client\n"
        "made = message_bus.PrometheusMetrics()\n"
        "assert made.get_prometheus_registry() is prometheus_client.REGISTRY\n"
        "assert b'python_gc' in made.generate_exposition(made.get_prometheus_registry())\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_nothing_is_loaded_before_it_is_used() -> None:
    """Neither `import message_bus` nor the names load prometheus_client; making metrics does."""
    code = (
        "import sys, message_bus\n"
        "message_bus.MetricConfig(namespace='shop'); message_bus.MetricOperationType.APPEND\n"
        "message_bus.PrometheusMetrics\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "message_bus.PrometheusMetrics()\n"
        "assert 'prometheus_client' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


IN_A_PROCESS = """
import sys
from message_bus import PrometheusMetrics
from message_bus.observability.observer import Gauges, Part, PartitionGauges

metrics = PrometheusMetrics()
with metrics.track_command_handle("Pay"):
    pass
def gauges(*names):
    parts = [PartitionGauges(part=Part(subscription=name, partition=0, log="outbox"), lag=int(sys.argv[1]), lag_seconds=1.0)
             for name in names]
    return Gauges(partitions=parts, outbox_rows=0, outbox_oldest_seconds=0, delayed=0, due=0, watermark_age={"outbox": 0})
metrics.measured(gauges("dispatch", "dropped"))
metrics.measured(gauges("dispatch"))
metrics.out_of_reach(Part(subscription="dispatch", partition=int(sys.argv[1]), log="outbox"), True)
"""


def test_several_processes(tmp_path: Path) -> None:
    """prometheus_client's multi-process mode: counters add up, the state is the latest, what has gone is no number."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for number in ("1", "2"):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", IN_A_PROCESS, number], check=True, cwd=ROOT, env=env
        )
    collect = (
        "import prometheus_client as p; from prometheus_client.multiprocess import MultiProcessCollector as C\n"
        "registry = p.CollectorRegistry(); C(registry); print(p.generate_latest(registry).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", collect], check=True, cwd=ROOT, env=env, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert 'message_bus_commands_total{command_type="Pay",status="success"} 2.0' in lines
    assert 'message_bus_lag_messages{partition="0",subscription="dispatch"} 2.0' in lines
    assert 'message_bus_lag_messages{partition="0",subscription="dropped"} NaN' in lines
    assert 'message_bus_partitions_out_of_reach{subscription="dispatch"} 2.0' in lines


# --- measuring by hand (seed 001)


async def test_the_example_of_the_document() -> None:
    """Its classes, its context managers, its instruments; only the import differs, and the names of namespace and labels."""

    def handle_create_order(command: object) -> None:
        pass

    metrics = PrometheusMetrics(MetricConfig(namespace="myapp", registry=CollectorRegistry()))
    with metrics.track_command_handle("CreateOrder"):
        handle_create_order("command")
    with metrics.track_storage_operation(MetricOperationType.APPEND):
        pass
    with metrics.track_event_publish("OrderCreated"):
        pass
    with metrics.track_aggregate_load("Order"):
        pass
    with metrics.track_projection_update("totals"):
        pass
    with metrics.track_saga_execution("checkout"):
        pass
    async with metrics.track_async_event_publish("OrderCreated"):
        pass
    async with metrics.track_async_command_handle("CreateOrder"):
        pass
    metrics.record_projection_lag("totals", 5)
    registry = metrics.get_prometheus_registry()
    text = metrics.generate_exposition(registry).decode()
    assert text == prometheus_client.generate_latest(registry).decode()
    for line in (
        'myapp_commands_total{command_type="CreateOrder",status="success"} 2.0',
        'myapp_commands_latency_seconds_count{command_type="CreateOrder"} 2.0',
        'myapp_storage_operations_total{operation_type="append",status="success"} 1.0',
        'myapp_storage_operation_seconds_count{operation_type="append"} 1.0',
        'myapp_events_total{event_type="OrderCreated",status="success"} 2.0',
        'myapp_events_processing_seconds_count{event_type="OrderCreated"} 2.0',
        'myapp_aggregates_loaded_total{aggregate_type="Order"} 1.0',
        'myapp_aggregates_load_time_seconds_count{aggregate_type="Order"} 1.0',
        'myapp_projection_update_seconds_count{projection_name="totals"} 1.0',
        'myapp_projection_events_behind{projection_name="totals"} 5.0',
        'myapp_saga_executions_total{saga_type="checkout",status="success"} 1.0',
        'myapp_saga_duration_seconds_count{saga_type="checkout"} 1.0',
        "# TYPE myapp_aggregates_in_memory gauge",
    ):
        assert line in text.splitlines()


async def test_what_fails_by_hand_is_an_error() -> None:
    """Counted and timed as such, and raised; an aggregate that could not be loaded is none that was."""
    metrics = own_metrics()
    for around in (
        metrics.track_command_handle("Pay"),
        metrics.track_event_publish("Noted"),
        metrics.track_storage_operation("load"),
        metrics.track_saga_execution("order"),
        metrics.track_aggregate_load("Order"),
        metrics.track_projection_update("totals"),
    ):
        with pytest.raises(ZeroDivisionError), around:
            _ = 1 / 0
    with pytest.raises(ZeroDivisionError):
        async with metrics.track_async_command_handle("Pay"):
            _ = 1 / 0
    assert series(metrics, "commands_total") == {("Pay", "error"): 2}
    assert series(metrics, "events_total") == {("Noted", "error"): 1}
    assert series(metrics, "storage_operations_total") == {("load", "error"): 1}
    assert series(metrics, "saga_executions_total") == {("order", "error"): 1}
    assert series(metrics, "aggregates_loaded_total") == {}
    assert value(metrics, "projection_update_seconds_count", projection_name="totals") == 1


# --- the page, the dashboard, the alert rules


def test_the_page_lists_all_metrics(metrics: PrometheusMetrics) -> None:
    """Each with its kind, its labels and what it says; none that is not there."""
    row = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
    listed = {
        name: (kind, re.findall(r"`(\w+)`", labels), text)
        for name, kind, labels, text in row.findall(PAGE.read_text(encoding="utf-8"))
    }
    assert listed == {
        name: (each._type, list(each._labelnames), each._documentation)
        for name, each in instruments(metrics).items()
    }


def test_the_page_lists_all_values_of_labels(metrics: PrometheusMetrics) -> None:
    """Those that are ours: changes of leases, operations of stores."""
    text = PAGE.read_text(encoding="utf-8")
    for name in ("lease_changes_total", "undelivered_messages", "scheduled_messages"):
        for labels in series(metrics, name):
            assert all(f"`{label}`" in text for label in labels if label not in ("0", "dispatch"))


def test_every_metric_is_named_in_a_test_that_makes_it_move(metrics: PrometheusMetrics) -> None:
    """By the tests of handlers and workers, of relays, of event sourcing."""
    tests = "".join(
        (Path(__file__).parent / f"test_prometheus{part}.py").read_text(encoding="utf-8")
        for part in ("", "_relay", "_events")
    )
    assert not [name for name in instruments(metrics) if f'"{name}' not in tests]


def test_the_alert_rules(metrics: PrometheusMetrics) -> None:
    """They parse as YAML and PromQL, ask for metrics and labels that are there, and each stands in the README beside them."""
    [group] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    readme = (RULES.parent / "README.md").read_text(encoding="utf-8")
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) >= 8
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"`{rule['alert']}`" in readme
        labels = promised(rule["expr"], metrics)
        said = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert said <= labels, f"{rule['alert']} says {said}, but its result has {labels}"
        if "for" in rule:
            promql_parser.parse_duration(rule["for"])


def test_the_dashboard(metrics: PrometheusMetrics) -> None:
    """Every panel has its place, a data source, a text, and expressions that ask for what is there; nothing is left out."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    asked: set[str] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$subscription", ".*")
            labels = promised(expression, metrics)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]
            asked |= set(re.findall(rf"{PREFIX}(\w+)", expression))
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "subscription"}
    [(name, label)] = re.findall(
        rf"label_values\({PREFIX}(\w+), (\w+)\)", variables["subscription"]["definition"]
    )
    assert label in instruments(metrics)[name]._labelnames
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert set(instruments(metrics)) - shown <= {
        *("events_total", "events_processing_seconds", "commands_total", "commands_latency_seconds"),
        *("aggregates_load_time_seconds", "lag_seconds", "saga_duration_seconds"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rate(message_bus_events[5m])", "is not exposed"),
        ("max by (log) (message_bus_lag_seconds)", "has {'log'}"),
        ('message_bus_lag_seconds{state="dead"}', "has no {'state'}"),
        ("message_bus_lag_seconds > on (log) message_bus_lag_messages", "has {'log'}"),
    ],
)
def test_a_wrong_expression_is_found(expression: str, said: str, metrics: PrometheusMetrics) -> None:
    """The two tests above can fail."""
    with pytest.raises(AssertionError, match=re.escape(said)):
        promised(expression, metrics)


def promised(expression: str, metrics: PrometheusMetrics) -> set[str]:
    """The labels that its result may have. It asks only for samples and labels that are there."""
    samples = {
        sample.name: set(sample.labels)
        for family in families(metrics)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    found: set[str] = set()
    by: set[str] = set()
    for node in nodes(promql_parser.parse(expression)):
        match node:
            case VectorSelector():
                assert node.name in samples, f"{node.name} is not exposed"
                names = {matcher.name for matcher in node.matchers.matchers}
                assert names <= samples[node.name], f"{node.name} has no {names - samples[node.name]}"
                found |= samples[node.name]
            case AggregateExpr() if node.modifier is not None:
                by |= set(node.modifier.labels)
            case BinaryExpr() if node.modifier is not None and node.modifier.matching is not None:
                by |= set(node.modifier.matching.labels)
            case _:
                pass
    assert by <= found, f"no metric of {expression} has {by - found}"
    return by or found


def nodes(expression: Any) -> Iterator[Any]:
    """Every part of an expression."""
    seen: list[Any] = []

    def visit(node: Any) -> None:
        seen.append(node)
        if isinstance(node, MatrixSelector):
            seen.append(node.vector_selector)

    promql_parser.walk(expression, visit)
    return iter(seen)
