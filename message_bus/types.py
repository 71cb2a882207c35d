"""A path of the ancestor: `Message`, and `serializer`, where users register types of their own.

`serializer` is dataclasses-serialization's `JSONSerializer`; that library is loaded when the name is first
used. What is registered there before a message class is first used counts for its fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from message_bus.messages.message import Message

if TYPE_CHECKING:
    serializer: Any

__all__ = ["Message", "serializer"]


def __getattr__(name: str) -> Any:
    if name == "serializer":
        from dataclasses_serialization.json import JSONSerializer

        return JSONSerializer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
