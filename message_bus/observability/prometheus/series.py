"""Gauges that follow something: what is no longer there leaves no series behind. Used by `PrometheusMetrics`."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prometheus_client import Gauge

_GONE: Final = float("nan")


class Followed:
    """The series of one gauge that one instance has set. Safe for threads."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Set these series, by their labels, and remove those that were shown before and are not among them."""
        with self._lock:
            for labels in self._shown - values.keys():
                self._remove(labels)
            for labels, value in values.items():
                self._gauge.labels(*labels).set(value)
            self._shown = set(values)

    def _remove(self, labels: tuple[str, ...]) -> None:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # where prometheus_client cannot remove a series
            self._gauge.labels(*labels).set(_GONE)
        else:
            self._gauge.remove(*labels)


class Living:
    """Counts objects that are still in use, by label, without keeping them alive.

    The count is asked for by whoever reads the gauge. What dies takes itself out of a dict, which needs no lock: the
    garbage collector may come at any moment, also while this thread holds the lock of a gauge.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def add(self, label: str, thing: Any) -> None:
        """Count it until it is gone."""
        child: Any = self._gauge.labels(label)
        living = getattr(child, "living", None)
        if living is None:  # in the gauge itself: all instances on one registry share it
            living = vars(child).setdefault("living", {})
            child.set_function(lambda: len(living))
        key = id(thing)
        living[key] = weakref.ref(thing, lambda _: living.pop(key, None))
