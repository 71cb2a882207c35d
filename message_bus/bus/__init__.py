"""The buses: they hand commands and events to their handlers, in this process.

    set_command_handler ──► Route (wired, calling)         Context ◄── ContextVar, one per handle() (context)
                              │                              │
    handle(message) ──► shell (sync_bus, async_bus) ◄── Cascade: what is next, when to stop (dispatch, pure)
                              │
                              └──► results, Outcome (outcome)

A dispatch owns all of its state: the queue, the context, the failures. Nothing is left when it has returned or raised.
"""
