"""What users say about metrics, and the names of what an event store does. Imports nothing of prometheus_client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from message_bus.errors import SettingsError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PREFIX: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class MetricConfig:
    """How metrics are named, and which registry they are in.

    A metric is called `{namespace}_{subsystem}_{name}`; an empty part is left out. `registry`: None for the default one of
    prometheus_client, which also says how the process is. `enable_summary_metrics`: False leaves out the histograms, which are
    most of the series.

    Raises: SettingsError if a name does not fit.
    """

    namespace: str = "message_bus"
    subsystem: str = ""
    registry: CollectorRegistry | None = None
    enable_summary_metrics: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"{what} must be letters, digits and underscores, and begin with no digit"
            for what, name in (("namespace", self.namespace), ("subsystem", self.subsystem))
            if name and not _PREFIX.fullmatch(name)
        ]
        if problems:
            raise SettingsError("MetricConfig", problems)


class MetricOperationType(StrEnum):
    """Operations of an event store, as they are called in labels."""

    APPEND = "append"
    LOAD = "load"
    LOAD_BY_TRACE = "load_by_trace"
    READ_ALL = "read_all"
    SAVE_SNAPSHOT = "save_snapshot"
    LOAD_SNAPSHOT = "load_snapshot"
    DELETE = "delete"
    UPDATE = "update"
    QUERY = "query"
