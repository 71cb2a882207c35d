"""What may import what, and what `import message_bus` must not load."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# roots of modules that are loaded only by those who use them
HEAVY = (
    *("aiosqlite", "asyncpg", "psycopg", "psycopg2", "sqlite3"),
    *("aio_pika", "confluent_kafka", "nats", "pika", "redis"),
    *("falcon", "fastapi", "flask", "litestar", "starlette"),
    *("alembic", "click", "dataclasses_serialization", "opentelemetry", "prometheus_client"),
)


def loaded_by(code: str) -> set[str]:
    """The root modules that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_is_light() -> None:
    """`import message_bus` loads no driver, broker client, web framework, CLI library, Alembic, metrics or tracing."""
    assert loaded_by("import message_bus").isdisjoint({*HEAVY, "sqlalchemy"})


def test_public_names_are_light() -> None:
    """Touching every public name loads no heavy module either."""
    code = "import message_bus\nfor name in getattr(message_bus, '__all__', ()): getattr(message_bus, name)"
    assert loaded_by(code).isdisjoint(HEAVY)


_EACH_IN_A_FORK = """
import gc, importlib, os, sys, traceback, warnings
import msgspec, sqlalchemy.orm, sqlalchemy.ext.asyncio

warnings.simplefilter("error")
gc.disable()
gc.freeze()
heavy, modules = set(sys.argv[1].split()), sys.argv[2:]

def failed(name):  # of a package that is imported, its modules are imported in forks of that process
    if child := os.fork():
        return os.waitpid(child, 0)[1] != 0
    problem = False
    try:
        importlib.import_module(name)
        found = {loaded.partition(".")[0] for loaded in sys.modules} & heavy
        assert not found, f"loads {found}"
    except BaseException:
        print(f"--- import {name}:", file=sys.stderr)
        traceback.print_exc()
        problem = True
    for module in modules:
        if module.rpartition(".")[0] == name:
            problem |= failed(module)
    sys.stderr.flush()
    os._exit(problem)

sys.exit(failed("message_bus"))
"""


def test_every_module_can_be_imported_first() -> None:
    """No module depends on another than its packages having been imported, none loads a heavy one, none warns."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "message_bus").rglob("*.py"))
    modules = sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)
    light = [name for name in modules if name.split(".")[1:2] not in (["cli"], ["demo"])]
    heavy = " ".join(set(HEAVY) - {"sqlite3"})
    done = subprocess.run(
        [sys.executable, "-c", _EACH_IN_A_FORK, heavy, *light], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_arrows_point_inwards() -> None:
    """The contracts of import-linter in pyproject.toml are kept."""
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None, "import-linter is not installed"
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
