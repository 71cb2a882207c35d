"""The relay: delivers what is in the outbox for as long as a process lives.

    watcher ──signs──► board ◄──rings── commits of this process
                         │
       ┌─────────────────┼──────────────────┐
    station           station           housekeeper
    claim or stand by ──► run until nothing is left ──► wait ──► run ...

One thread (or task) for each: a *station* for every partition of every subscription, one *watcher* that looks at the
database when it is quiet, one *housekeeper*. They meet at the *board*, and wait nowhere else. None of them dies of an
outage; a fault of the set-up stops the relay. `Relay` runs threads, `AsyncRelay` tasks.
"""
