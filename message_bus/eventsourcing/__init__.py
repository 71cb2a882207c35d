"""Event sourcing: the event log and what is built on it.

    save(stream, events, expected_version)
        │ compare-and-set of the stream's version, then one INSERT
        ▼
    event log ──► load(stream) ──► aggregate (snapshot + events after it)
        │
        └──► subscriptions ──► projections, process managers, sagas

A version is a number of events: 0 is a new stream, and `load(id, from_version=v)` gives what comes after version v.
"""
