"""Seeing what the package does: `Observer`, and what is built on it: metrics and traces.

`bus.observe(observer)` is all the wiring there is. Whoever attaches none pays nothing but the question whether there is one.
The observers for Prometheus and OpenTelemetry are imported by whoever uses them, from modules of their own.
"""
