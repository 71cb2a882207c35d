"""Delivery: subscriptions read a log, call their handlers and record what came of it."""
