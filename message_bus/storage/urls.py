"""Database URLs as people write them, turned into what SQLAlchemy wants; never printed with their password.

A URL without a driver means psycopg 3; `sync_url` also accepts one with an asynchronous driver. Who reads a URL from
the command line or the environment calls this; the rest of the package gets engines and connections.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from message_bus.errors import SettingsError

_DRIVERS: Final = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_SYNC_DRIVERS: Final = {
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
}
_EXTRAS: Final = {
    "psycopg": "postgres",
    "asyncpg": "asyncpg",
    "aiosqlite": "sqlite-async",
}
_ASYNCPG_ONLY: Final = ("async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func")


def parse_url(url: str | URL) -> URL:
    """Read a database URL; `postgres://` and `postgresql://` mean psycopg 3.

    Raises: SettingsError, which does not repeat the URL: it holds a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _unreadable() from None  # their texts quote parts of it
    backend = parsed.get_backend_name()
    if backend != "sqlite" and ("@" in (parsed.host or "") or "@" in (parsed.database or "")):
        raise _unreadable()  # a piece of the password would be taken, and printed, for host or database
    return parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))


def sync_url(url: str | URL) -> URL:
    """Read a database URL and choose the synchronous driver for it: psycopg for asyncpg, sqlite3 for aiosqlite."""
    parsed = parse_url(url)
    if parsed.drivername == "postgresql+asyncpg":
        query = {("sslmode" if name == "ssl" else name): value for name, value in parsed.query.items()}
        parsed = parsed.set(query=query).difference_update_query(_ASYNCPG_ONLY)
    return parsed.set(drivername=_SYNC_DRIVERS.get(parsed.drivername, parsed.drivername))


def place_of(url: URL) -> str:
    """Which database a URL means, fit to be printed: the file, or host:port/name. No user, no password."""
    if url.get_backend_name() == "sqlite":
        return url.database or ":memory:"
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def missing_driver(error: ImportError, url: URL) -> str:
    """What to say when the driver of a URL cannot be imported: what is missing, and what to install."""
    module = (error.name or url.drivername.partition("+")[2]).partition(".")[0]
    extra = _EXTRAS.get(module)
    if module == "greenlet":  # asyncio with any driver
        extra = "sqlite-async" if url.get_backend_name() == "sqlite" else "postgres"
    remedy = f"pip install 'sqlalchemy-message-bus[{extra}]'" if extra else "install it"
    if module == "psycopg2":
        remedy = "write postgresql+psycopg, and pip install 'sqlalchemy-message-bus[postgres]'"
    return f"the driver for {url.drivername} is missing: {error} ({remedy})"


def secrets_in(url: URL) -> tuple[str, ...]:
    """What must not be printed of this URL: its password, as it is and as it is written there."""
    given = [url.password, url.query.get("password"), url.query.get("sslpassword")]
    found = [secret for each in given if each for secret in ([each] if isinstance(each, str) else each)]
    encoded = [
        URL.create("x", username="x", password=secret).render_as_string(hide_password=False)
        for secret in found
    ]
    return tuple(found) + tuple(each.removeprefix("x://x:").rstrip("@/") for each in encoded)


def _unreadable() -> SettingsError:
    problem = (
        "cannot be read (write postgresql://user:password@host:5432/name or sqlite:///file.db, "
        "with special characters of the password percent-encoded)"
    )
    return SettingsError("database URL", [problem])
