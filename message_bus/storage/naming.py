"""What the tables of one set, their constraints and indexes are called. Used by the modules that define tables."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import MetaData
from sqlalchemy.sql.elements import conv


@dataclass(frozen=True, slots=True)
class Naming:
    """Where one set of tables is put, and what its names begin with."""

    metadata: MetaData
    schema: str | None
    prefix: str

    def name(self, suffix: str) -> str:
        """The name of a table or an index."""
        return f"{self.prefix}{suffix}"

    def constraint(self, suffix: str) -> str:
        """The name of a constraint: final as it stands, whatever naming_convention the user's metadata has."""
        return conv(self.name(suffix))

    def qualified(self, name: str) -> str:
        """The full name of a table or view with this short name, as MetaData spells it (unquoted)."""
        return f"{self.schema}.{self.name(name)}" if self.schema else self.name(name)


def one_of(column: str, values: tuple[str, ...]) -> str:
    """A CHECK that the column holds one of these words."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"
