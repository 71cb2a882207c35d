"""What Prometheus would see: the exposition of a `PrometheusMetrics`, parsed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from message_bus import MetricConfig, PrometheusMetrics

PREFIX = "message_bus_"


def own_metrics() -> PrometheusMetrics:
    """Metrics in a registry of their own."""
    return PrometheusMetrics(MetricConfig(registry=CollectorRegistry()))


def families(metrics: PrometheusMetrics) -> list[Metric]:
    """What the parser of prometheus_client makes of the exposition."""
    text = metrics.generate_exposition(metrics.get_prometheus_registry()).decode()
    return list(text_string_to_metric_families(text))


def series(metrics: PrometheusMetrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one name, without the prefix, by their labels' values in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name == PREFIX + name
    }


def value(metrics: PrometheusMetrics, name: str, **labels: str) -> float:
    """The sum of the samples of one name with these labels, whatever others they have; 0 if there is none."""
    return sum(
        sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
    )
