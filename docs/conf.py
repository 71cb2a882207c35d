"""How Sphinx builds the pages of this directory (`make docs`). Settings only; no page needs the network to be built."""

from __future__ import annotations

import sys
from pathlib import Path

from message_bus import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "message_bus"
author = "message_bus contributors"
html_show_copyright = False
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinxcontrib.mermaid", "our_docstrings"]
exclude_patterns = ["_site", "examples/*/[!R]*"]
default_role = "literal"  # `name` in docstrings
smartquotes = False  # `--option` is two hyphens

myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# make docs runs with -n -W: a reference that leads nowhere is an error, but for these.
nitpick_ignore_regex = [
    # other projects and the standard library: their inventories would be fetched from the network
    (r"py:.*", r"(collections|contextlib|datetime|pathlib|sqlalchemy|types|typing|uuid)\..*"),
    (r"py:.*", r"(UUID|Path|datetime|timedelta|Abstract(Async)?ContextManager)"),
    (r"py:.*", r"(Attributes|CollectorRegistry|MeterProvider|Span|TracerProvider)"),
    (r"py:.*", r"(Async)?(Connection|Engine|MetaData|Session|Table)|(async_)?(scoped_session|sessionmaker)"),
    # type variables, and aliases that say what a parameter may be
    (r"py:.*", r"(message_bus\..*\.)?_?[A-Z]"),
    (r"py:.*", r"Any(Async|Sync)?(Engine|Session)|SyncSession|Send|Call|EventHandlers|Handler"),
    # of a signature with a default that is made anew each time, `<factory>`, only pieces are understood
    (r"py:.*", r"tuple\[str"),
    # protocols inside of the package that a signature mentions
    (
        r"py:.*",
        r"(.*\.)?(Async)?Watermark|message_bus\.bus\.calling\.(Function|Handles)|message_bus\..*\.InHand",
    ),
]

suppress_warnings = ["ref.python"]  # two classes are called Recorded: one of admin, one of testing

html_theme = "furo"
html_title = "message_bus"
html_show_sourcelink = False
