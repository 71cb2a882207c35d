"""`--metrics-port`: serve the metrics of a bus over HTTP for as long as a command runs. For `message-bus relay`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from message_bus.observability.prometheus import PrometheusMetrics


@contextmanager
def metrics_served(bus: Any, port: int | None, host: str) -> Iterator[None]:
    """Serve what `metrics_of` this bus have counted; the port is free again afterwards. `port` None: do nothing."""
    if port is None:
        yield
        return
    from prometheus_client import start_http_server

    registry = metrics_of(bus).get_prometheus_registry()
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise click.ClickException(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error} "
            "(choose another --metrics-port or --metrics-host)"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def metrics_of(bus: Any) -> PrometheusMetrics:
    """Return the PrometheusMetrics that observes this bus already; if none does, a new one that does from now on."""
    for each in bus.observer or ():
        if isinstance(each, PrometheusMetrics):
            return each
    made = PrometheusMetrics()
    bus.observe(made)
    return made
