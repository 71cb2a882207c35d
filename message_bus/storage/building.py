"""Statements are built once for each set of tables: with SQLAlchemy, building one takes as long as running it, or longer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from message_bus.storage.tables import MessageBusTables

Given = ParamSpec("Given")
Statement = TypeVar("Statement")


def built_once(
    build: Callable[Concatenate[MessageBusTables, Given], Statement],
) -> Callable[Concatenate[MessageBusTables, Given], Statement]:
    """Let a builder of statements keep what it has built for the same arguments, as long as its tables live.

    For builders whose arguments are few and hashable; a statement is never changed, so all may share it. Threads that are
    the first at once build it twice.
    """

    @wraps(build)
    def built(tables: MessageBusTables, /, *args: Given.args, **options: Given.kwargs) -> Statement:
        kept: dict[Any, Statement] = vars(tables)["_built"]
        key = (build, args, tuple(sorted(options.items())))
        if key not in kept:
            kept[key] = build(tables, *args, **options)
        return kept[key]

    return built
