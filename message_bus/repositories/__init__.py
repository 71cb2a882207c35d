"""Repositories: how a message gets into an outbox, in the transaction of the caller."""
