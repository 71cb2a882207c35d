"""A Sphinx extension for `make docs`: docstrings as we write them, and types under their public names.

Docstrings are plain text with `names` in backticks, and an example is what is indented: that becomes a block of code. A
type that `message_bus` exports is linked to its entry in the reference, wherever its module is.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import message_bus


def mark_examples(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Put `::` before each indented paragraph, so that it is shown as code."""
    marked: list[str] = []
    for before, line in pairwise(["", *lines]):
        begins = line.startswith("    ") and not before and _last_text(marked).strip() == _last_text(marked)
        marked += ["::", "", line] if begins else [line]
    lines[:] = marked


def _last_text(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line), "")


def link_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element
) -> Element | None:
    """Resolve `message_bus.bus.context.Context` as `message_bus.Context`."""
    target: str = node.get("reftarget", "")
    public = "message_bus." + target.rpartition(".")[2]
    if node.get("refdomain") != "py" or public == target:
        return None
    if public.removeprefix("message_bus.") not in message_bus.__all__:
        return None
    python = env.get_domain("py")
    document: str = node.get("refdoc", env.docname)
    return python.resolve_xref(env, document, app.builder, "obj", public, node, contnode)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_examples)
    app.connect("missing-reference", link_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
