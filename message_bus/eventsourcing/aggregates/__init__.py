"""Aggregates: objects whose state is what their events have made of it, and the repository that loads and saves them.

aggregate.py ──► handling.py (which method takes which event), history.py (what was applied), state.py (snapshots)
aggregate_repository.py ──► snapshotting.py (when), pairing.py (store, class and outbox fit together)
conflicts.py       `retry_on_conflict`
"""
