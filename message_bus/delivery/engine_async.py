"""Runs one leased partition of one subscription until nothing is left: the only engine there is.

    settle in ──► due and held rows ──► new rows ──► due and held rows ──► ... nothing left     (run)
                   each: ready? ──► [trying] ──► handler ──► one commit                        (attempts, the modes)

Two modes differ in how a group of messages is handled: `AsyncTransactionalRun` on the session whose commit moves the
checkpoint, `AsyncConcurrentRun` outside of any transaction. Called by the worker; it never waits for a lease and never
decides what a failure means (that is `verdicts`).
"""

from __future__ import annotations

from message_bus.delivery.concurrent_async import AsyncConcurrentRun
from message_bus.delivery.run_async import AsyncRun
from message_bus.delivery.transactional_async import AsyncTransactionalRun

__all__ = ["AsyncConcurrentRun", "AsyncRun", "AsyncTransactionalRun"]
