"""What CloudEvents cost over the message alone; run it as a script.

Both sides are measured in turns in one run, and the best turn of each counts: only the ratios mean something.
"""

from __future__ import annotations

import json
import platform
import time
import timeit
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from message_bus import CloudEventReader, CloudEventWriter
from message_bus.messages import definition_of, new_envelope
from tests.messages.bench_codec import VALUES, OrderPlaced

TURNS, CALLS = 300, 50  # short turns: some of them are not interrupted


def microseconds(*paths: Callable[[], object]) -> list[float]:
    """The best turn of each path, per call."""
    turns = [[timeit.timeit(path, number=CALLS) / CALLS * 1e6 for path in paths] for _ in range(TURNS)]
    return [min(each) for each in zip(*turns, strict=True)]


def main() -> None:
    """Print the figures."""
    message = OrderPlaced(**VALUES)
    envelope = replace(new_envelope(message, key="7"), position=1, created_at=datetime.now(UTC))
    definition = definition_of(OrderPlaced)
    payload = definition.encode(message)
    writer, reader = CloudEventWriter(source="/shop"), CloudEventReader(accepts=[OrderPlaced])
    body, sent = writer.to_structured(envelope).body, writer.to_binary(envelope)
    attributes = {name: value for name, value in json.loads(body).items() if name not in ("data", "time")}
    data = message.serialize()
    official = http.HTTPMessage(*sent)

    def write_officially() -> bytes:
        return JSONFormat().write(CloudEvent({**attributes, "time": envelope.created_at}, data))

    print(
        f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}; µs per event"
    )
    rows = [
        ("encode / decode alone", lambda: definition.encode(message), lambda: definition.decode(payload)),
        ("structured", lambda: writer.to_structured(envelope), lambda: reader.from_structured(body)),
        ("binary, HTTP", lambda: writer.to_binary(envelope), lambda: reader.from_binary(*sent)),
        ("official, structured", write_officially, lambda: JSONFormat().read(CloudEvent, body)),
        ("official, binary", lambda: None, lambda: http.from_binary(official, JSONFormat(), CloudEvent)),
    ]
    written = microseconds(*(write for _, write, _ in rows))
    read = microseconds(*(read for _, _, read in rows))
    for (name, _, _), write_time, read_time in zip(rows, written, read, strict=True):
        print(f"{name:24} write {write_time:7.2f}  read {read_time:7.2f}")


if __name__ == "__main__":
    main()
