# Generated from engine_async.py by tests/tools/unasync.py: do not edit.
"""Runs one leased partition of one subscription until nothing is left: the only engine there is.

    settle in ──► due and held rows ──► new rows ──► due and held rows ──► ... nothing left     (run)
                   each: ready? ──► [trying] ──► handler ──► one commit                        (attempts, the modes)

Two modes differ in how a group of messages is handled: `TransactionalRun` on the session whose commit moves the
checkpoint, `ConcurrentRun` outside of any transaction. Called by the worker; it never waits for a lease and never
decides what a failure means (that is `verdicts`).
"""

from __future__ import annotations

from message_bus.delivery.concurrent import ConcurrentRun
from message_bus.delivery.run import Run
from message_bus.delivery.transactional import TransactionalRun

__all__ = ["ConcurrentRun", "Run", "TransactionalRun"]
