"""Write the sync twin `x.py` of every `message_bus/**/x_async.py`.

    python tests/tools/unasync.py            write the twins
    python tests/tools/unasync.py --check    compare the committed ones; exit 1 if one is stale

It works on tokens, so that formatting, comments and everything it does not know stay as they are:

- `async` and `await` go, and parentheses that stood around `await something()` alone;
- `AsyncThing` becomes `Thing`, `async_thing` and `thing_async` become `thing`, `Awaitable[T]` becomes `T`;
- the names in RENAMES, the imports in MOVED, the attributes in DROPPED as listed there;
- the same names in comments, docstrings and strings, plus the phrases in PHRASES.

Every entry of a list must match somewhere, or it is an error: a list that has outlived its use lies to the reader.
What differs otherwise is a pair of equal meaning in `message_bus/_compat.py`, named `thing_async` and `thing`. The
result is sorted and formatted by ruff; what cannot be converted (asyncio itself) is an error that names the line.
"""

from __future__ import annotations

import argparse
import io
import keyword
import re
import subprocess
import sys
import token
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "message_bus"
BY_HAND: Final = ("bus",)  # rooms whose pairs really differ
HEADER: Final = "# Generated from {source} by tests/tools/unasync.py: do not edit."

# one name for another
RENAMES: Final[dict[str, str]] = {
    "asynccontextmanager": "contextmanager",
    "enter_async_context": "enter_context",
}

# where a name that is imported lives in the sync world: (module, name) -> (module, name)
MOVED: Final[dict[tuple[str, str], tuple[str, str]]] = {
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): ("sqlalchemy.engine", "Connection"),
    ("sqlalchemy.ext.asyncio", "AsyncEngine"): ("sqlalchemy.engine", "Engine"),
    ("sqlalchemy.ext.asyncio", "AsyncSession"): ("sqlalchemy.orm", "Session"),
    ("sqlalchemy.ext.asyncio", "async_scoped_session"): ("sqlalchemy.orm", "scoped_session"),
}

# attributes of the async object that lead to the sync one: `.sync_session` of a sync session is the session itself
DROPPED: Final[frozenset[str]] = frozenset()

# in comments and strings only
PHRASES: Final[dict[str, str]] = {}

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE_IN_TEXT = re.compile(r"\b(?:await (?=[\w.]+\()|async (?=with |for |def ))")
_LEFT_OVER = re.compile(r"(?i).*async|await|a(close|iter|next)\Z|__a(enter|exit|iter|next)__")
_REPAIRS: Final = "I,F401,PYI016"  # sort imports, drop those no longer used, `Session | Session`
_STRINGS: Final = {token.STRING, token.COMMENT} | (
    {token.FSTRING_MIDDLE} if hasattr(token, "FSTRING_MIDDLE") else set()
)
_LAYOUT: Final = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.COMMENT}


class CannotConvert(Exception):
    """The source holds something that has no sync form; the text names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text from `start` to `end` (line from 1, column from 0)."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The lists to convert by; `used` counts how often each entry matched."""

    renames: dict[str, str]
    moved: dict[tuple[str, str], tuple[str, str]]
    dropped: frozenset[str]
    phrases: dict[str, str]
    used: Counter[str]

    @classmethod
    def of_this_project(cls) -> Rules:
        """The lists of this file, with nothing counted yet."""
        return cls(RENAMES, MOVED, DROPPED, PHRASES, Counter())

    def unused(self) -> list[str]:
        """Every entry that never matched."""
        entries = [f"RENAMES {name}" for name in self.renames]
        entries += [f"MOVED {module}.{name}" for module, name in self.moved]
        entries += [f"DROPPED {name}" for name in sorted(self.dropped)]
        entries += [f"PHRASES {phrase}" for phrase in self.phrases]
        return [entry for entry in entries if not self.used[entry]]

    def sync_name(self, name: str) -> str:
        """The sync form of one identifier."""
        if name in self.renames:
            self.used[f"RENAMES {name}"] += 1
            return self.renames[name]
        if re.match(r"_*Async[A-Z]", name):
            return name.replace("Async", "", 1)
        if re.match(r"_*async_\w", name):
            return name.replace("async_", "", 1)
        shorter = name.removesuffix("_async")
        return name if keyword.iskeyword(shorter) else shorter

    def sync_text(self, text: str) -> str:
        """The sync form of a comment or a string, quotes and all."""
        for phrase, replacement in self.phrases.items():
            if phrase in text:
                self.used[f"PHRASES {phrase}"] += 1
                text = text.replace(phrase, replacement)
        text = _CODE_IN_TEXT.sub("", text)
        return _WORD.sub(lambda match: self.sync_name(match[0]), text)


def convert(source: str, rules: Rules, *, filename: str = "<source>") -> str:
    """The sync twin of this source, not yet formatted."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.splitlines(keepends=True)
    edits = list(_edits(tokens, lines, rules, filename))
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        (row, column), (last, end) = edit.start, edit.end
        lines[row - 1 : last] = [lines[row - 1][:column] + edit.text + lines[last - 1][end:]]
    return "".join(lines)


def _edits(
    tokens: Sequence[tokenize.TokenInfo], lines: Sequence[str], rules: Rules, filename: str
) -> Iterator[Edit]:
    skip_to = 0
    for index, this in enumerate(tokens):
        if index < skip_to:
            continue
        if this.type in _STRINGS:
            text = _between(lines, this.start, this.end)
            if (converted := rules.sync_text(text)) != text:
                yield Edit(this.start, this.end, converted)
        elif this.type == token.OP and this.string == "." and tokens[index + 1].string in rules.dropped:
            rules.used[f"DROPPED {tokens[index + 1].string}"] += 1
            yield Edit(this.start, tokens[index + 1].end)
            skip_to = index + 2
        elif this.string == "from" and _starts_statement(tokens, index):
            skip_to, edits = _moved_import(tokens, index, rules)
            yield from edits
        elif this.type == token.NAME:
            yield from _edits_of_name(tokens, index, rules, f"{filename}:{this.start[0]}")


def _edits_of_name(
    tokens: Sequence[tokenize.TokenInfo], index: int, rules: Rules, place: str
) -> Iterator[Edit]:
    this, following = tokens[index], tokens[index + 1]
    if this.string in ("async", "await"):
        if following.start[0] != this.end[0]:
            raise CannotConvert(f"{place}: `{this.string}` ends its line")
        yield Edit(this.start, following.start)
        if this.string == "await":
            yield from _lone_parentheses(tokens, index)
    elif this.string == "Awaitable" and following.string == "[":
        closing = tokens[_closing(tokens, index + 1)]
        yield Edit(this.start, following.end)
        yield Edit(closing.start, closing.end)
    elif this.string == "asyncio":
        raise CannotConvert(f"{place}: asyncio has no sync form (use a pair from message_bus/_compat.py)")
    elif (name := rules.sync_name(this.string)) != this.string:
        yield Edit(this.start, this.end, name)


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])


def _starts_statement(tokens: Sequence[tokenize.TokenInfo], index: int) -> bool:
    return (
        index == 0 or tokens[index - 1].type in _LAYOUT | {token.ENCODING} or tokens[index - 1].string in ";:"
    )


def _closing(tokens: Sequence[tokenize.TokenInfo], index: int) -> int:
    """The index of the bracket that closes the one at `index`."""
    depth = 0
    for position in range(index, len(tokens)):
        if tokens[position].type == token.OP:
            depth += (tokens[position].string in "([{") - (tokens[position].string in ")]}")
        if depth == 0:
            return position
    raise AssertionError("tokenize has seen to it that brackets match")


def _lone_parentheses(tokens: Sequence[tokenize.TokenInfo], index: int) -> Iterator[Edit]:
    """Edits that drop the parentheses of `(await a.b(c)).d`, which nothing but `await` needed."""
    opening, before = tokens[index - 1], tokens[index - 2]
    is_call = before.string in (")", "]", "}") or (
        before.type in (token.NAME, token.STRING) and not keyword.iskeyword(before.string)
    )
    if opening.string != "(" or is_call:
        return
    closing = _closing(tokens, index - 1)
    position = index + 1
    while position < closing:
        part = tokens[position]
        if part.string in ("(", "["):
            position = _closing(tokens, position)
        elif part.string != "." and (part.type != token.NAME or keyword.iskeyword(part.string)):
            return
        position += 1
    yield Edit(opening.start, opening.end)
    yield Edit(tokens[closing].start, tokens[closing].end)


def _moved_import(tokens: Sequence[tokenize.TokenInfo], index: int, rules: Rules) -> tuple[int, list[Edit]]:
    """Rewrite `from module import names` if one of the names has moved; ruff sorts and joins the lines later.

    Returns the index of the first token that is not dealt with.
    """
    end = next(i for i in range(index, len(tokens)) if tokens[i].type == token.NEWLINE)
    words = [
        item.string
        for item in tokens[index + 1 : end]
        if item.type not in _LAYOUT and item.string not in "()"
    ]
    split = words.index("import")
    module, names = "".join(words[:split]), " ".join(words[split + 1 :]).split(",")
    imports = [name.split() for name in names if name.strip()]
    if not any((module, parts[0]) in rules.moved for parts in imports):
        return index + 1, []
    indent = " " * tokens[index].start[1]
    lines: list[str] = []
    for name, *alias in imports:
        source = (module, name)
        if source in rules.moved:
            rules.used[f"MOVED {module}.{name}"] += 1
        target, new = rules.moved.get(source, (module, rules.sync_name(name)))
        lines.append(f"from {target} import {' '.join([new, *map(rules.sync_name, alias)])}")
    return end, [Edit(tokens[index].start, tokens[end - 1].end, f"\n{indent}".join(lines))]


def leftovers(result: str, filename: str) -> list[str]:
    """What a finished twin must not contain any more."""
    compile(result, filename, "exec")
    return [
        f"{filename}:{item.start[0]}: {item.string!r} has no sync form (add it to RENAMES)"
        for item in tokenize.generate_tokens(io.StringIO(result).readline)
        if item.type == token.NAME and _LEFT_OVER.match(item.string)
    ]


# --- files ------------------------------------------------------------------------------------------------------


def sources(package: Path = PACKAGE) -> list[Path]:
    """Every file to convert."""
    found = sorted(package.rglob("*_async.py"))
    return [path for path in found if path.relative_to(package).parts[0] not in BY_HAND]


def twin(source: Path) -> Path:
    """The file that is generated from this one."""
    return source.with_name(source.name.replace("_async.py", ".py"))


def generate(source: Path, rules: Rules) -> str:
    """The finished text of the twin of this file."""
    text = convert(source.read_text(), rules, filename=str(source.relative_to(ROOT)))
    text = HEADER.format(source=source.name) + "\n" + text
    target = twin(source)
    text = _ruff(["check", "--select", _REPAIRS, "--fix-only", "--quiet"], text, target)
    text = _ruff(["format", "--quiet"], text, target)
    if problems := leftovers(text, str(target.relative_to(ROOT))):
        raise CannotConvert("\n".join(problems))
    return text


def _ruff(command: Sequence[str], text: str, target: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(target), "-"],
        input=text, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotConvert(f"ruff could not read the twin {target.relative_to(ROOT)}:\n{done.stderr}")
    return done.stdout


def orphans(found: Iterable[Path]) -> list[Path]:
    """Files that say that they are generated, but whose source is gone."""
    twins = {twin(source) for source in found}
    first_words = HEADER.split("{", maxsplit=1)[0]
    generated = {path for path in PACKAGE.rglob("*.py") if path.read_text().startswith(first_words)}
    return sorted(generated - twins)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the sync twins of *_async.py.")
    parser.add_argument("--check", action="store_true", help="compare with the committed ones instead")
    check: bool = parser.parse_args(arguments).check
    rules = Rules.of_this_project()
    problems: list[str] = []
    found = sources()
    for source in found:
        target = twin(source)
        try:
            text = generate(source, rules)
        except CannotConvert as error:
            problems.append(str(error))
            continue
        if target.exists() and target.read_text() == text:
            continue
        if check:
            problems.append(
                f"{target.relative_to(ROOT)} is not what {source.name} gives (run `make unasync`)"
            )
        else:
            target.write_text(text)
            print(f"wrote {target.relative_to(ROOT)}")
    problems += [f"{path.relative_to(ROOT)} is generated, but its source is gone" for path in orphans(found)]
    problems += [f"{entry}: matches nothing in any *_async.py (remove it)" for entry in rules.unused()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(found)} sync twins are up to date")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
