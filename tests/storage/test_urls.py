"""Database URLs: a driver for those that name none, and no password in what is said about them."""

from __future__ import annotations

import pytest

from message_bus.errors import SettingsError
from message_bus.storage.urls import missing_driver, parse_url, place_of, secrets_in, sync_url


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u:p@h:5433/d", "postgresql+psycopg://u:p@h:5433/d"),
        ("postgres://u@h/d?sslmode=require", "postgresql+psycopg://u@h/d?sslmode=require"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("sqlite:///file.db", "sqlite:///file.db"),
    ],
)
def test_a_url_without_a_driver_means_psycopg_3(given: str, expected: str) -> None:
    """Only a missing driver is filled in."""
    assert parse_url(given).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "postgresql+asyncpg://u:p@h/d?ssl=require&prepared_statement_cache_size=0",
            "postgresql+psycopg://u:p@h/d?sslmode=require",
        ),
        ("postgresql+psycopg_async://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite+aiosqlite:///file.db", "sqlite:///file.db"),
        ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
    ],
)
def test_an_asynchronous_driver_becomes_a_synchronous_one(given: str, expected: str) -> None:
    """Migrations run synchronously, whatever driver the application has."""
    assert sync_url(given).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    "given",
    [
        "secret",
        "",
        "postgresql://u:secret@h:port/d",
        "postgresql://u:secret@more@h/d",
        "postgresql://u:sec/ret@host@secret/d",
        "postgresql://u:se:cret/p@q@h/d",
    ],
)
def test_an_unreadable_url_is_not_repeated(given: str) -> None:
    """The error says how to write a URL and shows no part of the one that was given."""
    with pytest.raises(SettingsError, match="percent-encoded") as caught:
        sync_url(given)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_at_sign_in_a_file_name_is_fine() -> None:
    """SQLite's path is no host."""
    assert sync_url("sqlite:///me@home.db").database == "me@home.db"


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("postgresql://u:p@h:5433/d", "h:5433/d"),
        ("postgresql://u:p@/d?host=/run/sockets", "/run/sockets/d"),
        ("postgresql:///d", "localhost/d"),
        ("sqlite:///shop.db", "shop.db"),
        ("sqlite://", ":memory:"),
    ],
)
def test_a_database_is_named_without_user_and_password(given: str, place: str) -> None:
    """What a command prints of a URL."""
    assert place_of(parse_url(given)) == place


@pytest.mark.parametrize(
    ("given", "module", "remedy"),
    [
        ("postgresql://h/d", "psycopg", "(pip install 'sqlalchemy-message-bus[postgres]')"),
        ("postgresql://h/d", None, "(pip install 'sqlalchemy-message-bus[postgres]')"),
        ("postgresql+asyncpg://h/d", "asyncpg", "(pip install 'sqlalchemy-message-bus[asyncpg]')"),
        ("sqlite:///x.db", "greenlet", "(pip install 'sqlalchemy-message-bus[sqlite-async]')"),
        ("postgresql+pg8000://h/d", "pg8000", "(install it)"),
        (
            "postgresql+psycopg2://h/d",
            "psycopg2",
            "(write postgresql+psycopg, and pip install 'sqlalchemy-message-bus[postgres]')",
        ),
    ],
)
def test_a_missing_driver_has_its_remedy(given: str, module: str | None, remedy: str) -> None:
    """What to install; for psycopg2, which nobody needs, what to write instead."""
    assert missing_driver(ImportError("x", name=module), parse_url(given)).endswith(
        f" is missing: x {remedy}"
    )


def test_secrets_are_known_in_every_spelling() -> None:
    """The password is recognised plain and percent-encoded, and as a query parameter."""
    assert set(secrets_in(sync_url("postgresql://u:p%40ss@h/d?password=other"))) == {
        "p@ss",
        "p%40ss",
        "other",
    }
    assert secrets_in(sync_url("sqlite:///file.db")) == ()
