"""Run the revisions on the connection that `message_bus.storage.migrations` hands over, in its transaction.

Not for the `alembic` command line: call `message-bus db upgrade`. Configures no logging.
"""

from alembic import context


def run() -> None:
    """Run what was asked for; schema and prefix reach the revisions through `context.config.attributes`."""
    given = context.config.attributes
    if "connection" not in given:
        raise RuntimeError(
            "no connection (run `message-bus db upgrade`, or message_bus.storage.migrations.upgrade())"
        )
    context.configure(
        connection=given["connection"],
        version_table=given["version_table"],
        version_table_schema=given["schema"],
    )
    with context.begin_transaction():
        context.run_migrations()


run()
