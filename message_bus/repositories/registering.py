"""The one way in for a message: `register` checks it, encodes it, and puts its row into an outbox.

Wherever an outbox is wanted, a repository, a Session, AsyncSession, scoped_session or Connection does as well. The row
inherits correlation and causation from the message in hand. Called by the buses and the delivery engine.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec

from message_bus.bus.context import correlation_id, in_hand, refuse_unsendable
from message_bus.errors import InvalidOutboxMessage, WiringError
from message_bus.messages.definition import MAX_PAYLOAD_BYTES, definition_of
from message_bus.messages.envelope import CORRELATION_ID, Envelope, child_headers
from message_bus.messages.ids import uuid7
from message_bus.messages.message import Message
from message_bus.observability.observer import Observer, Registration, nothing
from message_bus.observability.trace_context import add_trace_context
from message_bus.repositories.outbox import AsyncOutBoxRepoABC, OutBoxRepoABC, Repo
from message_bus.repositories.outbox_message import OutboxMessage


def register(
    outbox: Any,
    message: Message,
    *,
    id: Any = None,  # noqa: A002
    meta: Mapping[str, Any] | None = None,
    key: str | None = None,
    delay: timedelta | None = None,
    parent: Envelope | None = None,
    observer: Observer | None = None,
    max_payload: int = MAX_PAYLOAD_BYTES,
) -> Any:
    """Register `message` in `outbox` and return the row; what `MessageBus.register_outbox_message` says, holds here.

    `parent`: the envelope it inherits correlation and causation from; default the one in hand. `observer`: is told.
    `max_payload`: bytes.
    """
    repo = as_repo(outbox)
    row = _row(
        repo,
        message,
        id=id,
        meta=meta,
        key=key,
        delay=delay,
        parent=parent,
        observer=observer,
        max_payload=max_payload,
    )
    repo.add(row)
    return row


def register_all(
    outbox: Any,
    messages: Iterable[Message],
    *,
    parent: Envelope | None,
    observer: Observer | None = None,
    max_payload: int = MAX_PAYLOAD_BYTES,
) -> None:
    """Register several messages, or none of them if one is invalid."""
    repo = as_repo(outbox)
    rows = [
        _row(repo, message, parent=parent, observer=observer, max_payload=max_payload) for message in messages
    ]
    for row in rows:
        repo.add(row)


def as_repo(thing: Any) -> Repo:
    """The repository that `thing` is, or one over the session or connection that it is.

    Raises: WiringError if it is neither.
    """
    if isinstance(thing, OutBoxRepoABC | AsyncOutBoxRepoABC):
        return thing
    session: Any = thing
    if _is_one_of(thing, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection", "async_scoped_session"):
        from message_bus.repositories.sqlalchemy_async import AsyncSQLAlchemyOutBoxRepo

        return AsyncSQLAlchemyOutBoxRepo(session)
    if _is_one_of(thing, "sqlalchemy.orm", "Session", "scoped_session") or _is_one_of(
        thing, "sqlalchemy", "Connection"
    ):
        from message_bus.repositories.sqlalchemy import SQLAlchemyOutBoxRepo

        return SQLAlchemyOutBoxRepo(session)
    raise WiringError(
        f"{type(thing).__name__!r} is no outbox (give a repository derived from OutBoxRepoABC, a Session, AsyncSession, "
        "scoped_session or Connection)"
    )


def _row(
    repo: Repo,
    message: Message,
    *,
    id: Any = None,  # noqa: A002
    meta: Mapping[str, Any] | None = None,
    key: str | None = None,
    delay: timedelta | None = None,
    parent: Envelope | None = None,
    observer: Observer | None = None,
    max_payload: int = MAX_PAYLOAD_BYTES,
) -> Any:
    refuse_unsendable(message)
    if key is not None and not isinstance(key, str):
        raise InvalidOutboxMessage(f"the key must be a str, not {type(key).__name__} (give str(key))")
    if delay is not None and (not isinstance(delay, timedelta) or delay < timedelta(0)):
        raise InvalidOutboxMessage("the delay must be a timedelta that is not negative")
    definition = definition_of(type(message))
    payload = definition.check(message, max_bytes=max_payload)
    model = repo.get_model()
    ours = isinstance(model, type) and issubclass(model, OutboxMessage)
    if id is None:
        id = uuid7() if ours else _new_id(model)  # noqa: A001
    parent = in_hand() if parent is None else parent
    headers = child_headers(parent) or {CORRELATION_ID: correlation_id() or str(id)}
    values: dict[str, Any] = {
        "id": id,
        "type": definition.kind,
        "message": definition.name,
        "version": definition.version,
        "key": definition.key_of(message) if key is None else key,
        "meta": _json_ready(meta),
        "headers": headers,
    }
    if observer is None:
        add_trace_context(headers)
    else:
        registration = Registration(
            id=id, type=definition.kind, message=definition.name, key=values["key"], headers=headers
        )
        with observer.registering(registration) or nothing():
            add_trace_context(headers)
    if ours:
        row = model(payload=payload, delay=delay, **values)
        row.observer = observer
        return row
    return _foreign_row(
        model, {**values, "payload": msgspec.json.decode(payload)}, given_key=key, delay=delay
    )


def _foreign_row(
    model: Any, values: dict[str, Any], *, given_key: str | None, delay: timedelta | None
) -> Any:
    """A row of a user's own model: what it has no place for is left out, unless it was asked for."""
    known = _attributes_of(model)
    wanted = {"meta": values["meta"], "key": given_key, "delay": delay}
    homeless = [
        name for name, value in wanted.items() if value is not None and (name == "delay" or name not in known)
    ]
    if homeless:
        raise InvalidOutboxMessage(
            f"{getattr(model, '__name__', model)!r} has no place for {', '.join(homeless)} "
            "(add the column, or use SQLAlchemyOutBoxRepo and its tables)"
        )
    optional = {"meta", "version", "key", "headers"}
    if values["id"] is None:
        del values["id"]
    return model(**{name: value for name, value in values.items() if name not in optional or name in known})


def _attributes_of(model: Any) -> set[str]:
    mapper = getattr(model, "__mapper__", None)
    if mapper is not None:
        versioning = mapper.version_id_col  # SQLAlchemy counts updates in it: not the message's version
        return {
            name
            for name in mapper.attrs.keys()  # noqa: SIM118  (not a dict)
            if versioning is None
            or not mapper.has_property(name)
            or versioning not in getattr(mapper.attrs[name], "columns", ())
        }
    parameters = inspect.signature(model).parameters.values()
    names = {each.name for each in parameters}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        names |= set(dir(model)) | set(getattr(model, "__annotations__", ()))
    return names


def _new_id(model: Any) -> UUID | str | None:
    """A UUIDv7 as the model's id column takes it; None where the database draws a number."""
    mapper = getattr(model, "__mapper__", None)
    column = None if mapper is None or "id" not in mapper.columns else mapper.columns["id"]
    try:
        wanted = UUID if column is None else column.type.python_type
    except NotImplementedError:  # a type of the user's that does not say
        wanted = UUID
    if issubclass(wanted, int):
        return None
    return str(uuid7()) if issubclass(wanted, str) else uuid7()


def _json_ready(meta: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if meta is None:
        return None
    try:
        ready: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(dict(meta)), type=dict[str, Any])
    except Exception as error:  # noqa: BLE001  (whatever the encoder or a value's own methods raise)
        raise InvalidOutboxMessage(
            f"meta cannot be stored as JSON ({type(error).__name__}: give str keys and plain values)"
        ) from None
    return ready


def _is_one_of(thing: object, module: str, *classes: str) -> bool:
    """Whether it is an instance of one of these classes; if their module is not loaded, nothing is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(thing, tuple(getattr(loaded, name) for name in classes))
