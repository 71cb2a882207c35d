"""Process managers: react to events over time, remember, and send commands.

process_manager.py     the class that users derive from; its step is one transaction
process_plan.py        what a class says about itself (pure)     process_state.py    its state as JSON (pure)
process_timeouts.py    what a process sends to itself comes back through the outbox
"""
