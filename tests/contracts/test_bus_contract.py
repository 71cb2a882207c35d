"""Every bus of ours under one contract."""

from __future__ import annotations

import pytest

from message_bus import AsyncMessageBus, InMemoryAsyncMessageBus, InMemoryMessageBus, MessageBus
from message_bus.testing import (
    AsyncBusContract,
    AsyncDryRunMessageBus,
    BusContract,
    Capabilities,
    DryRunMessageBus,
)


class TestMessageBus(BusContract):
    @pytest.fixture
    def bus(self) -> MessageBus:
        """The bus."""
        return MessageBus()


class TestAsyncMessageBus(AsyncBusContract):
    @pytest.fixture
    def bus(self) -> AsyncMessageBus:
        """The bus."""
        return AsyncMessageBus()


class TestInMemoryMessageBus(BusContract):
    capabilities = Capabilities(isolates_event_handlers=False)

    @pytest.fixture
    def bus(self) -> InMemoryMessageBus:
        """The bus."""
        return InMemoryMessageBus()


class TestInMemoryAsyncMessageBus(AsyncBusContract):
    capabilities = Capabilities(isolates_event_handlers=False, one_at_a_time=False)

    @pytest.fixture
    def bus(self) -> InMemoryAsyncMessageBus:
        """The bus."""
        return InMemoryAsyncMessageBus()


class TestDryRunMessageBus(BusContract):
    capabilities = Capabilities(runs_handlers=False)

    @pytest.fixture
    def bus(self) -> DryRunMessageBus:
        """The bus."""
        return DryRunMessageBus()


class TestAsyncDryRunMessageBus(AsyncBusContract):
    capabilities = Capabilities(runs_handlers=False)

    @pytest.fixture
    def bus(self) -> AsyncDryRunMessageBus:
        """The bus."""
        return AsyncDryRunMessageBus()
