"""What is shipped: the wheel's contents and metadata."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import message_bus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this tree by the build backend itself."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def files_of(folder: str) -> set[str]:
    """Every file of a folder of the tree that belongs into the wheel, relative to the folder."""
    return {
        str(path.relative_to(ROOT / folder))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Every file of message_bus/ is in, alembic/ is in as message_bus/migrations/, no test and no cache is."""
    package = {f"message_bus/{name}" for name in files_of("message_bus")}
    migrations = {f"message_bus/migrations/{name}" for name in files_of("alembic")}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == package | migrations


def test_the_wheel_holds_the_migrations(wheel: zipfile.ZipFile) -> None:
    """The environment, the template and at least one revision are in the wheel."""
    names = wheel.namelist()
    assert "message_bus/migrations/env.py" in names
    assert "message_bus/migrations/script.py.mako" in names
    assert any(name.startswith("message_bus/migrations/versions/0001") for name in names)


def test_the_wheel_is_typed(wheel: zipfile.ZipFile) -> None:
    """Type checkers of users read our annotations."""
    assert "message_bus/py.typed" in wheel.namelist()


def test_the_version_comes_from_one_place(metadata: Message) -> None:
    """The distribution's version is the one that the package states."""
    assert metadata["Name"] == "sqlalchemy-message-bus"
    assert metadata["Version"] == message_bus.__version__


def test_the_core_needs_no_driver(metadata: Message) -> None:
    """Without extras only pure dependencies are installed: no database driver, no broker client."""
    required = {
        line.split(">")[0].split("<")[0]
        for line in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in line
    }
    assert required == {
        *("alembic", "click", "dataclasses-serialization", "msgspec", "sqlalchemy"),
        *("opentelemetry-api", "prometheus-client"),
    }


def test_alembic_is_not_shadowed() -> None:
    """The folder alembic/ is no package, or `import alembic` would find it wherever the root is on sys.path."""
    assert not list((ROOT / "alembic").rglob("__init__.py"))


def test_every_room_is_a_package() -> None:
    """Every folder with modules has an __init__.py; without one, tools and old importers overlook it."""
    folders = {path.parent for path in (ROOT / "message_bus").rglob("*.py")}
    assert [
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()
    ] == []
