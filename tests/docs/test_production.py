"""What the pages about production promise: of roles and privileges, tried on a real server; of revisions of the schema."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from message_bus import Event, MessageBus, MessageBusTables, Relay, SQLAlchemyEventStore, check_schema
from message_bus.admin import doctor, status
from tests.docs.pages import ROOT, blocks_of

PAGE = "docs/production/security.md"


class Ordered(Event, name="tests.docs.ordered"):
    number: int


@pytest.fixture
def grants() -> str:
    """The statements of the page."""
    [block] = [block for block in blocks_of(PAGE) if block.language == "sql"]
    return block.code


@pytest.fixture
def engine_of(
    grants: str, engine: sa.Engine, tables: MessageBusTables, database_url: sa.URL, schema: str
) -> Iterator[Callable[[str], sa.Engine]]:
    """An engine that works as one of the page's roles; they have what the page grants, and are gone afterwards."""
    roles = {each: f"{each}_{schema}" for each in ("shop_web", "shop_relay")}
    code = grants.replace("SCHEMA public", f"SCHEMA {schema}")
    for role, name in roles.items():
        code = code.replace(role, name)
    with engine.begin() as connection:
        for name in roles.values():
            connection.exec_driver_sql(f"CREATE ROLE {name}")
        connection.exec_driver_sql(code)
    made: list[sa.Engine] = []

    def engine_of(role: str) -> sa.Engine:
        options = f"-csearch_path={schema} -crole={roles[role]}"
        made.append(sa.create_engine(database_url.set(query={**database_url.query, "options": options})))
        return made[-1]

    yield engine_of
    for each in made:
        each.dispose()
    with engine.begin() as connection:
        for name in roles.values():
            connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.mark.postgresql
def test_the_two_roles(engine_of: Callable[[str], sa.Engine], tables: MessageBusTables) -> None:
    """One registers messages and appends events, the other delivers them; each with what the page grants it."""
    seen: list[int] = []
    bus = MessageBus(event_handlers={Ordered: [lambda event: seen.append(event.number)]})
    with Session(engine_of("shop_web")) as session, session.begin():
        bus.register_outbox_message(session, Ordered(number=1))
        bus.register_outbox_message(session, Ordered(number=2))
        SQLAlchemyEventStore(session).save("order-1", [Ordered(number=1)], expected_version=0)
        assert len(SQLAlchemyEventStore(session).load("order-1")) == 1
    delivering = engine_of("shop_relay")
    with delivering.connect() as connection:
        check_schema(connection, tables)
        assert doctor(connection) == []
    with Session(delivering) as session:
        assert bus.process_outbox(session).ok
    assert seen == [1, 2]
    with Relay(bus, delivering) as relay:
        with Session(engine_of("shop_web")) as session, session.begin():
            bus.register_outbox_message(session, Ordered(number=3))
        relay.wait_until_idle()
    assert seen == [1, 2, 3]
    with Session(delivering) as session:
        assert status(session).outbox_rows == 3


@pytest.mark.postgresql
def test_who_only_registers_may_not_read(engine_of: Callable[[str], sa.Engine]) -> None:
    """The smaller role cannot look at payloads, nor at what has become of them."""
    with (
        Session(engine_of("shop_web")) as session,
        pytest.raises(sa.exc.ProgrammingError, match="permission"),
    ):
        session.execute(sa.text("SELECT payload FROM message_bus_outbox"))


def test_every_table_is_granted(grants: str) -> None:
    """A table that a later version adds is added to the page, too."""
    named = set(re.findall(r"message_bus_\w+", grants[grants.index("shop_relay;") :]))
    assert named >= {table.name for table in MessageBusTables().all}


_REVISIONS = sorted((ROOT / "alembic/versions").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", _REVISIONS[1:], ids=lambda path: path.stem)
def test_a_revision_only_adds(path: Path) -> None:
    """rolling-deploys.md: the new schema comes first, so the old code must run on it: nothing that it uses is taken away."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [upgrade] = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "upgrade"]
    done = {
        node.func.attr
        for node in ast.walk(upgrade)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "op"
    }
    assert done <= {"get_context", "create_table", "create_index", "add_column", "execute"}
    taking = re.compile(r"\b(DROP\s+(?!VIEW|TRIGGER|FUNCTION)|RENAME|SET NOT NULL)", re.IGNORECASE)
    assert not taking.search(path.read_text(encoding="utf-8").split("def downgrade")[0])
