"""What a log must be like, and the server it is on, so that positions settle as `settled.py` says (W7). Pure.

Each fault names its remedy. The facts are fetched by `preconditions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OLDEST_VERSION: Final = 140_001
"""14.1 is the first where a prepared transaction keeps the virtual transaction id that its locks were seen
with.
"""

_LARGEST_BIGINT: Final = 2**63 - 1

# what version() says, in lower case, of databases that speak PostgreSQL's protocol but have no such lock table
_LOOKALIKES: Final = {
    "cockroachdb": "CockroachDB",
    "-yb-": "YugabyteDB",
    "redshift": "Amazon Redshift",
    "greenplum": "Greenplum",
    "cloudberry": "Cloudberry",
    "postgres-xl": "Postgres-XL",
    "opengauss": "openGauss",
    "gaussdb": "GaussDB",
    "materialize": "Materialize",
    "risingwave": "RisingWave",
    "questdb": "QuestDB",
    "cratedb": "CrateDB",
    "polardb-x": "PolarDB-X",
    "dsql": "Aurora DSQL",
    "spanner": "Spanner",
}

_KINDS: Final = {
    "p": "a partitioned table",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
}
_PERSISTENCE: Final = {"u": "unlogged", "t": "temporary"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What the catalogs say about a log and the server it is on, seen by the role that reads it."""

    table: str
    role: str
    is_standby: bool
    kind: str  # pg_class.relkind
    persistence: str  # pg_class.relpersistence
    is_inherited: bool
    replicated_by: str | None  # a subscription that writes into it
    type: str  # of the column position
    identity: str  # pg_attribute.attidentity: "a" always, "d" by default, "" none
    sequence: str | None = None  # of the identity; the rest is about it
    sequence_type: str = "bigint"
    persistence_of_sequence: str = "p"
    increment: int = 1
    cache: int = 1
    is_cycling: bool = False
    minimum: int = 1
    maximum: int = _LARGEST_BIGINT
    may_read_sequence: bool = True
    may_see_incarnation: bool = True
    is_row_security_active: bool = False


def unsupported_server(version_text: str, version: int) -> str | None:
    """Why this server will not do, or None. `version` as in server_version_num; `version_text` as by
    version().
    """
    lowered = version_text.lower()
    for mark, name in _LOOKALIKES.items():
        if mark in lowered:
            return (
                f"{name} speaks PostgreSQL's protocol, but has no lock table that shows who is writing: messages would be "
                "lost (use PostgreSQL 14.1+ or SQLite)"
            )
    if version < OLDEST_VERSION:
        number = f"{version // 10_000}.{version % 10_000}"
        return (
            f"PostgreSQL {number} changes the id of a transaction's locks when it is prepared: messages would be lost "
            "(update to 14.1 or later)"
        )
    return None


def faults_of(facts: LogFacts) -> list[str]:
    """Everything about this log that could lose messages, each with its remedy; empty if all is well."""
    return [
        *_faults_of_server(facts),
        *_faults_of_table(facts),
        *_faults_of_sequence(facts),
        *_faults_of_role(facts),
    ]


def _faults_of_server(facts: LogFacts) -> list[str]:
    if facts.is_standby:
        return [
            "this server is a standby, which does not show the locks of the primary's writers (connect to the primary)"
        ]
    return []


def _faults_of_table(facts: LogFacts) -> list[str]:
    table = facts.table
    faults: list[str] = []
    if facts.kind != "r":
        kind = _KINDS.get(facts.kind, "not an ordinary table")
        faults.append(f"{table} is {kind}, whose writers lock other tables (make it an ordinary table)")
    if facts.is_inherited:
        faults.append(
            f"{table} is part of an inheritance tree or a partition, so writers may lock another table than readers look "
            "at (make it a table of its own: ALTER TABLE ... NO INHERIT, or DETACH PARTITION)"
        )
    if facts.persistence in _PERSISTENCE:
        faults.append(
            f"{table} is {_PERSISTENCE[facts.persistence]}: its messages do not survive "
            f"(run: ALTER TABLE {table} SET LOGGED, or make it anew)"
        )
    if facts.replicated_by is not None:
        faults.append(
            f"{table} is written by logical replication (subscription {facts.replicated_by!r}), which brings positions of "
            "another server's sequence (take it out of the publication, and read the log where it is written)"
        )
    return faults


def _faults_of_sequence(facts: LogFacts) -> list[str]:
    table, alter = facts.table, f"run: ALTER TABLE {facts.table} ALTER COLUMN position"
    faults: list[str] = []
    if facts.type != "bigint":
        faults.append(f"{table}.position is {facts.type}, not bigint ({alter} TYPE bigint)")
    if facts.identity != "a":
        have = "BY DEFAULT" if facts.identity == "d" else "no identity"
        change = "SET GENERATED ALWAYS" if facts.identity == "d" else "ADD GENERATED ALWAYS AS IDENTITY"
        faults.append(
            f"{table}.position is {have}, so rows may get positions that were not drawn under the lock ({alter} {change})"
        )
    if facts.sequence is None:
        return faults
    if facts.sequence_type != "bigint":
        faults.append(
            f"sequence {facts.sequence} is {facts.sequence_type} (run: ALTER SEQUENCE {facts.sequence} AS bigint)"
        )
    if facts.persistence_of_sequence != "p":
        faults.append(
            f"sequence {facts.sequence} is unlogged: it starts again after a crash "
            f"(run: ALTER SEQUENCE {facts.sequence} SET LOGGED)"
        )
    if facts.cache != 1:
        faults.append(
            f"{table}.position has CACHE {facts.cache}: sessions keep positions in store and use them long after the "
            f"watermark has passed them ({alter} SET CACHE 1)"
        )
    if facts.increment != 1:
        faults.append(f"{table}.position has INCREMENT {facts.increment} ({alter} SET INCREMENT 1)")
    if facts.is_cycling:
        faults.append(f"{table}.position has CYCLE: positions would start again ({alter} SET NO CYCLE)")
    if facts.minimum < 1:
        faults.append(
            f"{table}.position has MINVALUE {facts.minimum}, but logs start at 1 ({alter} SET MINVALUE 1)"
        )
    if facts.maximum != _LARGEST_BIGINT:
        faults.append(f"{table}.position has MAXVALUE {facts.maximum} ({alter} SET NO MAXVALUE)")
    return faults


def _faults_of_role(facts: LogFacts) -> list[str]:
    faults: list[str] = []
    if facts.sequence is not None and not facts.may_read_sequence:
        faults.append(usage_missing(facts.sequence, facts.role))
    if not facts.may_see_incarnation:
        faults.append(incarnation_hidden(facts.role))
    if facts.is_row_security_active:
        faults.append(rows_hidden(facts.table, facts.role))
    return faults


def usage_missing(sequence: str, role: str) -> str:
    """The fault of a role that may not read the sequence: the server would say NULL, as if nothing were
    written.
    """
    return (
        f"role {role!r} may not read the log's sequence, and would see nothing for ever "
        f'(run: GRANT USAGE ON SEQUENCE {sequence} TO "{role}")'
    )


def incarnation_hidden(role: str = "") -> str:
    """The fault of a role that may not ask whether the server has been through a crash (W4)."""
    who = f'"{role}"' if role else "the reader's role"
    return (
        f"{who} may not call pg_control_checkpoint(), which tells whether the server has crashed since the last "
        f"look (run as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_checkpoint() TO {who})"
    )


def rows_hidden(table: str, role: str) -> str:
    """The fault of a role that is subject to a policy: the rows which it hides would be passed over (W9)."""
    return (
        f"row-level security on {table} applies to role {role!r} and may hide messages from it "
        f'(run: ALTER ROLE "{role}" BYPASSRLS, or let the relay connect as another role)'
    )


def old_snapshot(isolation: str) -> str | None:
    """The fault of a transaction whose later statements keep an earlier snapshot (W3), or None."""
    if isolation in ("read committed", "read uncommitted"):
        return None
    return (
        f"a log is read in a transaction at {isolation.upper()}, whose snapshot may be older than the locks it looks at: "
        'messages would be lost (give the reader isolation_level="READ COMMITTED", in create_engine() or '
        "execution_options(); handlers that need more open a session of their own)"
    )


def faults_of_reader(isolation: str, *, is_autocommit: bool, is_standby: bool) -> list[str]:
    """Every fault of a connection that is to read a log and record its progress."""
    faults = [fault for fault in (old_snapshot(isolation),) if fault]
    if is_autocommit:
        faults.append(
            "the reader's connection is in AUTOCOMMIT, so progress and effects would not be committed together "
            '(give it isolation_level="READ COMMITTED")'
        )
    if is_standby:
        faults.append("this server is a standby: no progress can be recorded on it (connect to the primary)")
    return faults
