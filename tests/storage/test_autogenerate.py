"""The other way to migrate: the tables in the application's MetaData, found by its own Alembic autogenerate."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from message_bus.errors import SchemaError
from message_bus.storage.event_guard import create_guard
from message_bus.storage.schema import check_schema
from message_bus.storage.tables import MessageBusTables
from message_bus.storage.views import create_view, drop_view
from tests.storage.test_tables import CONVENTION


def application(**options: Any) -> tuple[sa.MetaData, MessageBusTables]:
    """An application's metadata, with a table of its own and ours."""

    class Base(DeclarativeBase):
        metadata = sa.MetaData(naming_convention=options.pop("naming_convention", None))

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Base.metadata, MessageBusTables(Base.metadata, **options)


def alembic_on(connection: sa.Connection, metadata: sa.MetaData, schema: str | None) -> MigrationContext:
    """Alembic as an application's env.py sets it up."""

    def include_name(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name in (None, schema)

    return MigrationContext.configure(
        connection,
        opts={
            "target_metadata": metadata,
            "compare_type": True,
            # on SQLite Alembic would miss every Identity, the application's too, although SQLite has none
            "compare_server_default": connection.dialect.name == "postgresql",
            "include_schemas": schema is not None,
            "include_name": include_name,
        },
    )


def run(context: MigrationContext, code: str) -> None:
    """Run the body of a migration script, with the imports that Alembic's template has."""
    with Operations.context(context):
        exec(f"def upgrade():\n    {code}", script := {"op": op, "sa": sa})  # noqa: S102
        script["upgrade"]()


def body(context: MigrationContext, ops: Any) -> str:
    """The script's text, as it would stand in the file; it needs no import beyond the template's."""
    code = render_python_code(ops, migration_context=context)
    assert "message_bus.storage" not in code
    return code


@pytest.mark.parametrize(
    "options",
    [{}, {"prefix": "shop_"}, {"schema": "elsewhere"}, {"naming_convention": CONVENTION}],
    ids=["plain", "prefix", "schema", "naming convention"],
)
def test_a_generated_migration_makes_our_tables(
    engine: sa.Engine, request: pytest.FixtureRequest, options: dict[str, Any]
) -> None:
    """The script runs as written, check_schema asks for view and triggers only, the next autogenerate finds nothing."""
    if "schema" in options:
        if engine.dialect.name == "sqlite":
            path = request.getfixturevalue("tmp_path") / "elsewhere.db"
            sa.event.listen(
                engine, "connect", lambda dbapi, record: dbapi.execute(f"ATTACH '{path}' AS elsewhere")
            )
        else:
            options = {"schema": f"{request.getfixturevalue('schema')}_elsewhere"}
            request.addfinalizer(lambda: drop_schema(engine, options["schema"]))
            with engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(options["schema"]))
    metadata, tables = application(**options)
    with engine.begin() as connection:
        context = alembic_on(connection, metadata, tables.schema)
        script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        upgrade, downgrade = body(context, script.upgrade_ops), body(context, script.downgrade_ops)

        run(context, upgrade)
        with pytest.raises(SchemaError) as caught:
            check_schema(connection, tables)
        view, *triggers = caught.value.differences
        assert "message_bus.storage.views.create_view(op.get_bind(), tables)" in view
        assert len(triggers) == 2
        for missing in triggers:
            assert "message_bus.storage.event_guard.create_guard(op.get_bind(), tables)" in missing
        create_view(connection, tables)
        create_guard(connection, tables)
        check_schema(connection, tables)
        assert compare_metadata(alembic_on(connection, metadata, tables.schema), metadata) == []

        drop_view(connection, tables)
        run(context, downgrade)
        assert sa.inspect(connection).get_table_names(tables.schema) == []


def drop_schema(engine: sa.Engine, schema: str) -> None:
    """Remove what the test made outside its own schema."""
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema(schema, cascade=True))


def test_create_all_and_autogenerate_agree(engine: sa.Engine) -> None:
    """After metadata.create_all there is nothing to migrate, however often one asks."""
    metadata, tables = application()
    with engine.begin() as connection:
        metadata.create_all(connection)
        assert compare_metadata(alembic_on(connection, metadata, None), metadata) == []
        check_schema(connection, tables)


def test_view_and_triggers_are_made_in_the_script(engine: sa.Engine) -> None:
    """`create_view(op.get_bind(), tables)` and `create_guard(...)` as the last lines of the script complete it."""
    metadata, tables = application()
    with engine.begin() as connection:
        context = alembic_on(connection, metadata, None)
        script = produce_migrations(context, metadata)
        assert isinstance(script.upgrade_ops, UpgradeOps)
        run(context, body(context, script.upgrade_ops))
        with Operations.context(context):
            create_view(op.get_bind(), tables)
            create_guard(op.get_bind(), tables)
        check_schema(connection, tables)
