"""What a bus or relay is wired to do, as plain values: `describe`, and what it says in words, warnings and a diagram.

wiring (what is registered) ──► description ──► words, warnings, diagram
"""
