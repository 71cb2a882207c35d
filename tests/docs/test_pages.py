"""README and docs do what they say: their code runs, their commands and links and the tests they name exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa

from message_bus.storage.urls import place_of
from tests.docs.not_run import NOT_RUN
from tests.docs.pages import PAGES, ROOT, Block, Walk, blocks_of, text_of, unknown_command

FIRST = "docs/quickstart.md"
WORD_FOR_WORD = (
    FIRST,
    "docs/how-to/dead-letters.md",
    "docs/how-to/operations.md",
    "docs/production/monitoring.md",
)
"""Pages whose bash blocks are run, too."""

FOLLOWED_ELSEWHERE = (
    "docs/examples/bank/README.md",
    "docs/examples/fastapi_shop/README.md",
    "docs/examples/flask_shop/README.md",
    "docs/how-to/cron.md",
    "docs/how-to/describe.md",
    "docs/how-to/message-schemas.md",
    "docs/how-to/plain-scripts.md",
    "docs/how-to/testing.md",
)
"""The same, but tests/examples and test_how_to.py follow them: a server must run meanwhile, or time pass."""

RUN_ON_A_SERVER = ("docs/production/security.md",)
"""Pages whose SQL is run by test_production.py."""

RULES = {"docs/guarantees.md": "G", "docs/how-the-watermark-works.md": "WLS"}

ENGINE = 'configure_sqlite(create_engine("sqlite:///shop.db"))'
ASYNC_ENGINE = 'configure_sqlite(create_async_engine("sqlite+aiosqlite:///shop.db"))'
ON_BOTH = [
    page
    for page in PAGES
    if ENGINE in text_of(page) and page not in (*WORD_FOR_WORD, *FOLLOWED_ELSEWHERE, *RULES)
]
"""Pages whose code makes the quickstart's engines: run on PostgreSQL with the quickstart's change, too."""

_TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+(?:::\w+)?)")
_LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)?(?:#([\w-]+))?\)")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (*WORD_FOR_WORD, *FOLLOWED_ELSEWHERE, *RULES, *ON_BOTH)]
)
def test_the_code_of_a_page_runs(page: str, walk: Walk) -> None:
    """Every python block, in order, in one namespace; bash blocks are looked at by another test."""
    walk.follow(page)


@pytest.mark.parametrize("page", ON_BOTH)
def test_the_code_of_a_page_runs_on_both_databases(page: str, walk: Walk, database_url: sa.URL) -> None:
    """The same; on PostgreSQL with other engines and nothing else changed."""
    if database_url.get_backend_name() == "postgresql":
        walk.replaced = on_postgresql(database_url)
    walk.follow(page)


def on_postgresql(database_url: sa.URL) -> dict[str, str]:
    """The two engines of a page, and what they become."""
    url = database_url.render_as_string(hide_password=False)
    return {ENGINE: f'create_engine("{url}")', ASYNC_ENGINE: f'create_async_engine("{url}")'}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_page_followed_word_for_word(walk: Walk, database_url: sa.URL) -> None:
    """A newcomer saves the files, types the commands and sees what the page shows; on PostgreSQL with its two changes."""
    follow_word_for_word(FIRST, walk, database_url)


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in WORD_FOR_WORD if page != FIRST])
def test_a_page_followed_word_for_word(page: str, walk: Walk, database_url: sa.URL) -> None:
    """The same on SQLite, as the page is written."""
    follow_word_for_word(page, walk, database_url)


@pytest.mark.load
@pytest.mark.postgresql
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in WORD_FOR_WORD if page != FIRST])
def test_a_page_followed_on_postgresql(page: str, walk: Walk, database_url: sa.URL) -> None:
    """The same with the quickstart's two changes; a command takes a second each time."""
    follow_word_for_word(page, walk, database_url)


def follow_word_for_word(page: str, walk: Walk, database_url: sa.URL) -> None:
    """Run its Python and its commands."""
    walk.hides_greenlet = True  # a plain installation has none on SQLAlchemy 2.1
    if database_url.get_backend_name() == "postgresql":
        walk.hides_greenlet = False
        url = database_url.render_as_string(hide_password=False)
        walk.replaced = {
            **on_postgresql(database_url),
            "export MESSAGE_BUS_DATABASE_URL=sqlite:///shop.db": f"export MESSAGE_BUS_DATABASE_URL='{url}'",
            "shop.db: none": f"{place_of(database_url)}: none",
        }
        assert all(old in text_of(page) for old in walk.replaced if old != ASYNC_ENGINE)
    walk.follow(page, commands=True)


@pytest.mark.parametrize("page", RULES)
def test_the_code_of_a_page_about_rules_runs(page: str, walk: Walk, engine: sa.Engine) -> None:
    """The same with an `engine` at hand, on both databases."""
    walk.module.__dict__["engine"] = engine
    walk.follow(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_listed(page: str) -> None:
    """Not one is overlooked: what no test runs stands in not_run.py, with the reason."""
    blocks = list(blocks_of(page))
    directives = len(
        re.findall(r"^```\{", text_of(page), re.MULTILINE)
    )  # of the site, such as a table of contents
    fences = len(re.findall(r"^[ \t]*(?:```|~~~)", text_of(page), re.MULTILINE))
    assert fences == 2 * (len(blocks) + directives), f"{page} has a block that the tests do not see"
    not_run = {_first_line(block) for block in blocks if not _is_run(block)}
    assert not_run == set(NOT_RUN.get(page, {}))
    assert all(block.argument for block in blocks if block.kind == "not run"), "a mark says why, too"


def test_what_is_listed_is_there() -> None:
    """The list names pages that exist, and gives a reason for each block."""
    assert set(NOT_RUN) <= set(PAGES)
    assert all(reason for blocks in NOT_RUN.values() for reason in blocks.values())


def _is_run(block: Block) -> bool:
    match block.kind, block.language:
        case "not run", _:
            return False
        case "", "bash":
            return block.page in (*WORD_FOR_WORD, *FOLLOWED_ELSEWHERE)
        case "", "sql":
            return block.page in RUN_ON_A_SERVER
        case _:
            return True  # by the walk through its page; text and diagrams are nothing to run


def _first_line(block: Block) -> str:
    return block.code.splitlines()[0]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """Make targets, subcommands and options, modules, extras: what a bash block names is there."""
    for block in blocks_of(page):
        if block.language == "bash" and not (
            page in (*WORD_FOR_WORD, *FOLLOWED_ELSEWHERE) and block.kind in ("", "file")
        ):
            for line in block.code.splitlines():
                assert unknown_command(line) is None, f"{block}: {unknown_command(line)}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links between pages name files, and headings, that exist."""
    for target, heading in _LINK.findall(text_of(page)):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if heading:
            assert heading in _headings(path), f"{page} links to {target}#{heading}"


def _headings(path: Path) -> set[str]:
    """Anchors as they are made of headings: lower case, words joined by hyphens, punctuation left out."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str) -> None:
    """`tests/path.py::name` is a test of this repository."""
    missing = [
        f"{path}::{name}" for path, name in _TEST.findall(text_of(page)) if name not in _tests_in(path)
    ]
    assert not missing, f"{page} names tests that do not exist: {missing}"


@pytest.mark.parametrize("page", RULES)
def test_each_rule_has_its_tests_or_says_not_yet(page: str) -> None:
    """Under every numbered rule there is a test whose docstring cites the number, or the words "Not yet"."""
    rule_and_body = rf"^\*\*([{RULES[page]}]\d+)\b(.*?)(?=^\*\*[A-Z]\d+\b|^#|\Z)"
    rules = re.findall(rule_and_body, text_of(page), re.MULTILINE | re.DOTALL)
    assert len(rules) >= 12
    without = [rule for rule, body in rules if "Not yet" not in body and not _cited(rule, body)]
    assert not without, f"{page}: no test that cites {without}"


def _cited(rule: str, body: str) -> bool:
    docstrings = [_tests_in(path).get(name, "") for path, name in _TEST.findall(body)]
    return any(re.search(rf"\b{rule}\b", docstring) for docstring in docstrings)


def test_the_guarantees_are_complete() -> None:
    """G1 to G12, in order; and the rules of watermark, writing late and subscriptions that docstrings cite."""
    assert _rules("docs/guarantees.md") == [f"G{n}" for n in range(1, 13)]
    wanted = (
        [f"W{n}" for n in range(1, 11)] + [f"L{n}" for n in range(1, 8)] + [f"S{n}" for n in range(1, 12)]
    )
    assert _rules("docs/how-the-watermark-works.md") == wanted


def _rules(page: str) -> list[str]:
    return re.findall(rf"^\*\*([{RULES[page]}]\d+)\b", text_of(page), re.MULTILINE)


@cache
def _tests_in(path: str) -> dict[str, str]:
    """The tests in a file, those of classes as `Class::name`, with their docstrings."""
    if not (ROOT / path).is_file():
        return {}
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found: dict[str, str] = {}
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        inside = (
            [("", node)]
            if not isinstance(node, ast.ClassDef)
            else [(f"{node.name}::", each) for each in node.body]
        )
        for prefix, each in inside:
            if isinstance(each, functions) and each.name.startswith("test_"):
                found[prefix + each.name] = ast.get_docstring(each) or ""
    return found
