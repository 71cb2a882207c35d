"""The schemas of all messages of an application: `export_message_schemas`, and `check_message_schemas` against a file.

About messages, not about tables: whether a database has ours is the business of `message_bus.check_schema`. The work is
done in `messages.json_schema` and `messages.compatibility`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from message_bus.admin.description.wiring import registries_of
from message_bus.messages.schemas.compatibility import MessageChange, compare_message_schemas
from message_bus.messages.schemas.json_schema import message_schemas


def export_message_schemas(source: Any) -> dict[str, Any]:
    """Return the JSON Schemas of all commands and events that a bus, a relay or a Registry knows.

    Of a bus or relay with those of its projections and process managers; queries are not stored, and left out. Ready for
    `json.dumps`; the same classes give the same document. Reads no database.

    Raises: SettingsError if `source` is none of these, or a name means two classes.
    """
    return message_schemas(*registries_of(source))


def check_message_schemas(source: Any, committed: Mapping[str, Any]) -> list[MessageChange]:
    """Say what has changed since an export was committed; those with `is_breaking` break somebody.

    Raises: SettingsError as `export_message_schemas`, and if `committed` is no export.
    """
    return compare_message_schemas(committed, export_message_schemas(source))
