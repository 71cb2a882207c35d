"""The converter of the sync twins: cases, and that the committed twins are fresh."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.tools import unasync
from tests.tools.unasync import CannotConvert, Rules, convert, leftovers


def rules(**lists: object) -> Rules:
    """Rules with only these lists, so that the cases do not depend on the project's."""
    given: dict[str, object] = {"renames": {}, "moved": {}, "dropped": frozenset(), "phrases": {}}
    return Rules(**(given | lists), used=Counter())  # type: ignore[arg-type]


MOVED = {
    ("sqlalchemy.ext.asyncio", "AsyncSession"): ("sqlalchemy.orm", "Session"),
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): ("sqlalchemy.engine", "Connection"),
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def f():\n    return await g(1)\n", "def f():\n    return g(1)\n"),
        ("async  def f(): ...\n", "def f(): ...\n"),
        ("async with a() as b, c():\n    pass\n", "with a() as b, c():\n    pass\n"),
        ("async for x in y:\n    pass\n", "for x in y:\n    pass\n"),
        ("z = [x async for x in y if await x.ok()]\n", "z = [x for x in y if x.ok()]\n"),
        ("row = (await s.execute(q, {'a': (1, 2)})).one()\n", "row = s.execute(q, {'a': (1, 2)}).one()\n"),
        ("n = (await f())[0]\n", "n = f()[0]\n"),
        ("n = (await f() + 1)[0]\n", "n = (f() + 1)[0]\n"),
        ("n = (await f() if a else b).c\n", "n = (f() if a else b).c\n"),
        ("print(await f())\n", "print(f())\n"),
        ("return_(a)(await f())\n", "return_(a)(f())\n"),
        ("x = not (await f())\n", "x = not f()\n"),
        ("class AsyncRepo(AsyncBase[AsyncItem]): ...\n", "class Repo(Base[Item]): ...\n"),
        ("class _AsyncRepo: ...\n", "class _Repo: ...\n"),
        ("from a.b_async import AsyncRepo, claim_async\n", "from a.b import Repo, claim\n"),
        ("f: Callable[[AsyncX], Awaitable[dict[str, T]]]\n", "f: Callable[[X], dict[str, T]]\n"),
        ("asynchronous = is_async = Asyncio = 1\n", "asynchronous = is_async = Asyncio = 1\n"),
        ("x = 1  # until AsyncLease has ended\n", "x = 1  # until Lease has ended\n"),
        ('"""An `AsyncLease`.\n\n    async with lease:\n        await lease.renew()\n"""\n',
         '"""An `Lease`.\n\n    with lease:\n        lease.renew()\n"""\n'),
        ("\"\"\"Users await the end, async or not.\"\"\"\n", "\"\"\"Users await the end, async or not.\"\"\"\n"),
        ("__all__ = ['AsyncLease']\n", "__all__ = ['Lease']\n"),
        ("x = f'{AsyncLease!r} of AsyncLease {{}} {claim_async(1)}'\n",
         "x = f'{Lease!r} of Lease {{}} {claim(1)}'\n"),
        ("x  =  [ 1,\n   2 ]   # kept as it is\n", "x  =  [ 1,\n   2 ]   # kept as it is\n"),
    ],
)  # fmt: skip
def test_converts(source: str, expected: str) -> None:
    """Colours go, names follow, everything else stays to the letter."""
    assert convert(source, rules()) == expected


def test_moved_imports_are_split_by_their_new_modules() -> None:
    """Names of one async module may live in several sync ones, also within parentheses and with an alias."""
    source = (
        "if x:\n    from sqlalchemy.ext.asyncio import (\n"
        "        AsyncConnection as C,\n        AsyncSession,\n    )\n"
    )
    expected = (
        "if x:\n    from sqlalchemy.engine import Connection as C\n    from sqlalchemy.orm import Session\n"
    )
    assert convert(source, rules(moved=MOVED)) == expected


def test_lists_apply_and_are_counted() -> None:
    """Renamed names, dropped attributes and phrases are applied, and what was used is known."""
    used = rules(
        renames={"aclose": "close"}, dropped=frozenset({"sync_session"}), phrases={"the task": "the thread"}
    )
    source = "await s.sync_session.aclose()  # ends the task\n"
    assert convert(source, used) == "s.close()  # ends the thread\n"
    assert used.unused() == []


def test_an_entry_that_matches_nothing_is_named() -> None:
    """A list that has outlived its use is found out."""
    idle = rules(renames={"aclose": "close"}, moved=MOVED, dropped=frozenset({"sync_x"}), phrases={"a": "b"})
    convert("x = 1\n", idle)
    assert idle.unused() == [
        "RENAMES aclose",
        "MOVED sqlalchemy.ext.asyncio.AsyncSession",
        "MOVED sqlalchemy.ext.asyncio.AsyncConnection",
        "DROPPED sync_x",
        "PHRASES a",
    ]


def test_asyncio_itself_cannot_be_converted() -> None:
    """The error names the line and the remedy."""
    with pytest.raises(CannotConvert, match=r"x_async\.py:2: asyncio has no sync form .*_compat"):
        convert("async def f():\n    await asyncio.sleep(1)\n", rules(), filename="x_async.py")


@pytest.mark.parametrize("word", ["asynccontextmanager", "__aenter__", "aclose", "StopAsyncIteration"])
def test_what_is_left_over_is_found(word: str) -> None:
    """A name that only the async world has does not slip through."""
    assert leftovers(f"x = 1\n{word} = 2\n", "x.py") == [
        f"x.py:2: {word!r} has no sync form (add it to RENAMES)"
    ]


def test_the_committed_twins_are_fresh() -> None:
    """Every x.py is what its x_async.py gives, and every entry of the lists is used."""
    done = subprocess.run([sys.executable, unasync.__file__, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
