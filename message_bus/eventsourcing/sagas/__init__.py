"""Sagas: steps that are run one after the other, and undone in reverse when one fails.

saga.py ──► saga_turns.py (one turn: a step or its undoing, in one transaction) ──► saga_rows.py (the row that remembers)
saga_progress.py       what is next (pure)       saga_steps.py      what users say of a step (pure)
"""
