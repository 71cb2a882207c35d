"""Metrics for Prometheus: what is told to an `Observer` becomes counters, gauges and histograms of one registry.

config ──► instruments ──► tracking (what one's own code reports), calls, series ──► metrics (`PrometheusMetrics`)
"""

from message_bus.observability.prometheus.config import MetricConfig, MetricOperationType
from message_bus.observability.prometheus.metrics import PrometheusMetrics

__all__ = ["MetricConfig", "MetricOperationType", "PrometheusMetrics"]
