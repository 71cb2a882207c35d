"""The tables of a projection, and their copies under other names: what a rebuild fills beside the live ones.

    totals        the live table, whatever its generation
    totals__3     generation 3: while it is being built, and again when it has been live and is retired

Values only, nothing is read from a database here: `Projection`, the rebuild and the swap ask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import ForeignKeyConstraint, Index, MetaData, Table
from sqlalchemy.sql.elements import conv

_LONGEST: Final = 63  # bytes of a name on PostgreSQL
_LONGEST_SUFFIX: Final = "__999999"


def tables_by_name(given: Any) -> Mapping[str, Table]:
    """The tables as a class names them: a mapping of short names, or a sequence; mapped classes stand for their tables."""
    if isinstance(given, Mapping):
        pairs = [(str(name), _table_of(each)) for name, each in given.items()]
    elif isinstance(given, Iterable) and not isinstance(given, Table | str):
        pairs = [(table.name, table) for table in map(_table_of, given)]
    else:
        table = _table_of(given)
        pairs = [(table.name, table)]
    return MappingProxyType(dict(pairs))


def _table_of(given: Any) -> Table:
    table = getattr(given, "__table__", given)
    if not isinstance(table, Table):
        raise TypeError(f"{type(given).__name__!r} is no Table")
    return table


def problems_of(tables: Mapping[str, Table]) -> list[str]:
    """What keeps these tables from being filled a second time under other names."""
    problems: list[str] = []
    for table in tables.values():
        if len(f"{table.name}{_LONGEST_SUFFIX}".encode()) > _LONGEST:
            problems.append(f"the name of table {table.name!r} is too long for a copy (at most 55 bytes)")
        if any(isinstance(each, ForeignKeyConstraint) for each in table.constraints):
            problems.append(
                f"table {table.name!r} has a foreign key (leave it out: a read model is filled in the order of its events, "
                "and exchanged as a whole)"
            )
    names = [table.fullname for table in tables.values()]
    problems += [
        f"table {name!r} is named twice" for name in sorted({name for name in names if names.count(name) > 1})
    ]
    return problems


def suffixed(name: str, generation: int) -> str:
    """The name that something of this generation has while another one is live; shortened if it must be."""
    suffix = f"__{generation}"
    if len(f"{name}{suffix}".encode()) <= _LONGEST:
        return f"{name}{suffix}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = name.encode()[: _LONGEST - len(suffix) - 9].decode(errors="ignore")
    return f"{kept}_{digest}{suffix}"


def copy_of(table: Table, generation: int, *, same_constraints: bool = False) -> Table:
    """The same table under the name of this generation, in a MetaData of its own.

    Indexes and constraints are named after the generation, too: on PostgreSQL such names are unique in a schema. On SQLite
    those of constraints are not, and nobody can rename them later.
    """
    metadata = MetaData(naming_convention=table.metadata.naming_convention)
    copy = table.to_metadata(metadata, name=suffixed(table.name, generation))
    given = {str(each.name) for each in _named(table)}
    for each in _named(copy):
        if same_constraints and not isinstance(each, Index):
            continue
        if str(each.name) in given:  # else it was made of the table's name
            each.name = conv(suffixed(str(each.name), generation))
    return copy


def _named(table: Table) -> Iterator[Any]:
    parts: tuple[Any, ...] = (*table.indexes, *table.constraints)
    return (each for each in parts if each.name is not None)


def copies_of(tables: Mapping[str, Table], generation: int) -> Mapping[str, Table]:
    """`copy_of` for each."""
    return MappingProxyType({name: copy_of(table, generation) for name, table in tables.items()})


def live_names(table: Table, generation: int) -> dict[str, str]:
    """What named indexes and constraints of the copy are called when it is live: those that its MetaData names."""
    found = {suffixed(str(each.name), generation): str(each.name) for each in _named(table)}
    copy = copy_of(table, generation)
    by_columns = {tuple(each.columns.keys()): str(each.name) for each in table.indexes}
    found |= {
        str(each.name): by_columns[columns]
        for each in copy.indexes
        if (columns := tuple(each.columns.keys())) in by_columns and str(each.name) not in found
    }
    return found


def compared_columns(table: Table) -> list[str]:
    """The columns that say the same whenever the same events were handled: numbers and times of the database do not."""
    return [column.name for column in table.columns if not _made_by_the_database(column)]


def _made_by_the_database(column: Any) -> bool:
    if column.autoincrement is True:  # "auto" says nothing: most integer keys are given by the event
        return True
    defaults = (column.default, column.onupdate)
    if any(each is not None and not each.is_scalar for each in defaults):
        return True
    if column.computed is not None or column.identity is not None or column.server_onupdate is not None:
        return True
    given = column.server_default
    return given is not None and "(" in str(getattr(given, "arg", ""))


def stored_names(tables: Mapping[str, Table]) -> dict[str, str]:
    """Short names and full names, as the bookkeeping keeps them."""
    return {name: table.fullname for name, table in tables.items()}


def table_named(full_name: str) -> Table:
    """A table of this name, of which nothing else is known: for a DROP."""
    schema, _, name = full_name.rpartition(".")
    return Table(name, MetaData(), schema=schema or None)
