"""What type checkers say about the help for tests. Checked, never run."""

from __future__ import annotations

from typing import Any, assert_type

from message_bus import (
    AsyncInMemoryOutBoxRepo,
    AsyncMessageBus,
    Command,
    Event,
    InMemoryOutBox,
    InMemoryOutBoxRepo,
    MessageBus,
    OutboxMessage,
    OutboxReport,
)
from message_bus.testing import DryRunMessageBus, Recorder, WouldHandle, drain


class PlaceOrder(Command):
    order_id: int


class OrderPlaced(Event):
    order_id: int


def a_recorder_is_a_handler(bus: MessageBus, async_bus: AsyncMessageBus) -> None:
    recorder = Recorder(result=1)
    bus.set_event_handlers(OrderPlaced, [recorder])
    bus.set_command_handler(PlaceOrder, recorder)
    bus.add_middleware(recorder.middleware)
    async_bus.add_middleware(recorder.async_middleware)
    assert_type(recorder.of(OrderPlaced), list[OrderPlaced])


def a_dry_run_is_a_bus() -> None:
    bus = DryRunMessageBus({OrderPlaced: [print]}, middleware=[])
    same: MessageBus = bus
    assert_type(bus.would_handle, list[WouldHandle])
    assert same is bus


async def repositories_in_memory_share_an_outbox(bus: MessageBus, async_bus: AsyncMessageBus) -> None:
    outbox = InMemoryOutBox()
    repo, async_repo = InMemoryOutBoxRepo(outbox), AsyncInMemoryOutBoxRepo(outbox)
    assert_type(repo.list_unprocessed(), list[OutboxMessage])
    assert_type(await async_repo.get("id"), OutboxMessage | None)
    assert_type(drain(bus, repo), OutboxReport)
    report: Any = await drain(async_bus, async_repo)
    print(report)
