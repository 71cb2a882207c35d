"""Projections: tables that are kept up to date from events, filled anew beside the live ones, and swapped.

projection.py      the class that users derive from; inline, or a subscription
rebuilding.py      fills a generation of tables beside the live one      projection_changes.py   swaps, in one transaction
projections_admin.py   list, rebuild, verify, swap, drop: what `message-bus projections` wraps
projection_state.py    what is decided, as values (pure)
"""
