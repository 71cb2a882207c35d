"""The pure half of the refusals: which server, which catalog facts, and that every fault names its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from message_bus.storage.requirements import (
    LogFacts,
    faults_of,
    faults_of_reader,
    old_snapshot,
    unsupported_server,
)

GOOD = LogFacts(
    table="app.message_bus_outbox",
    role="relay",
    is_standby=False,
    kind="r",
    persistence="p",
    is_inherited=False,
    replicated_by=None,
    type="bigint",
    identity="a",
    sequence="app.message_bus_outbox_position_seq",
)


@pytest.mark.parametrize(
    ("version_text", "name"),
    [
        ("CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27, go1.19.10)", "CockroachDB"),
        ("PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 17", "YugabyteDB"),
        (
            "PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2, Redshift 1.0.54052",
            "Amazon Redshift",
        ),
        ("PostgreSQL 12.12 (Greenplum Database 7.0.0 build commit:0a7a3566) on x86_64", "Greenplum"),
        ("PostgreSQL 9.5.0 on x86_64-unknown-linux-gnu (Materialize v0.80.0)", "Materialize"),
        ("PostgreSQL 13.14.0-RisingWave-2.0.1 (unknown)", "RisingWave"),
    ],
)
def test_databases_that_only_look_like_postgresql_are_refused(version_text: str, name: str) -> None:
    """W7: whatever version they claim to be, they have no lock table like PostgreSQL's."""
    fault = unsupported_server(version_text, 170_000)
    assert fault is not None
    assert fault.startswith(name)
    assert "(use PostgreSQL 14.1+ or SQLite)" in fault


@pytest.mark.parametrize(
    ("version", "is_refused"), [(130_014, True), (140_000, True), (140_001, False), (180_000, False)]
)
def test_servers_before_14_1_are_refused(version: int, is_refused: bool) -> None:
    """W2, W7: before 14.1 PREPARE changes the id that a lock is seen with, and the writer would seem to be
    gone.
    """
    fault = unsupported_server("PostgreSQL, by its own word", version)
    assert (fault is not None) is is_refused
    if fault is not None:
        assert f"{version // 10_000}.{version % 10_000}" in fault
        assert "(update to 14.1 or later)" in fault


def test_a_good_log_has_no_faults() -> None:
    """What `create_all` makes passes."""
    assert faults_of(GOOD) == []


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"is_standby": True}, "connect to the primary"),
        ({"kind": "p"}, "make it an ordinary table"),
        ({"kind": "f"}, "make it an ordinary table"),
        ({"is_inherited": True}, "NO INHERIT"),
        ({"persistence": "u"}, "SET LOGGED"),
        ({"persistence": "t"}, "SET LOGGED"),
        ({"replicated_by": "from_there"}, "out of the publication"),
        ({"type": "integer"}, "TYPE bigint"),
        ({"identity": "d"}, "SET GENERATED ALWAYS"),
        ({"identity": "", "sequence": None}, "ADD GENERATED ALWAYS AS IDENTITY"),
        ({"sequence_type": "integer"}, "AS bigint"),
        ({"persistence_of_sequence": "u"}, "SET LOGGED"),
        ({"cache": 10}, "SET CACHE 1"),
        ({"increment": 2}, "SET INCREMENT 1"),
        ({"is_cycling": True}, "SET NO CYCLE"),
        ({"minimum": -5}, "SET MINVALUE 1"),
        ({"maximum": 1000}, "SET NO MAXVALUE"),
        (
            {"may_read_sequence": False},
            'GRANT USAGE ON SEQUENCE app.message_bus_outbox_position_seq TO "relay"',
        ),
        (
            {"may_see_incarnation": False},
            'GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_checkpoint() TO "relay"',
        ),
        ({"is_row_security_active": True}, 'ALTER ROLE "relay" BYPASSRLS'),
    ],
)
def test_every_fault_names_its_remedy(change: dict[str, object], remedy: str) -> None:
    """W7: one fact wrong is one fault, which says in parentheses what to do about it."""
    (fault,) = faults_of(replace(GOOD, **change))  # type: ignore[arg-type]
    assert remedy in fault[fault.rindex("(", 0, fault.index(remedy) + 1) :]
    assert fault.endswith(")")


def test_all_faults_are_named_at_once() -> None:
    """W7: nobody should have to repair one thing to hear of the next."""
    assert len(faults_of(replace(GOOD, is_standby=True, cache=10, increment=2, identity="d"))) == 4


def test_read_uncommitted_is_read_committed() -> None:
    """W3: PostgreSQL treats them alike."""
    assert old_snapshot("read uncommitted") is None
    assert old_snapshot("serializable") is not None


def test_a_reader_must_be_able_to_commit_its_progress() -> None:
    """W3, W7: AUTOCOMMIT and a standby are faults of a reader's connection."""
    assert faults_of_reader("read committed", is_autocommit=False, is_standby=False) == []
    assert len(faults_of_reader("repeatable read", is_autocommit=True, is_standby=True)) == 3
