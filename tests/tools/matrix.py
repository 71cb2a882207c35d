"""Run the suite on every interpreter of this machine and on both SQLAlchemy series.

Looks for CPython 3.11-3.14 on PATH and below ~/.pyenv/versions, and takes one of each that really runs (a pyenv shim
may name a version that is switched off). Each pair gets an environment of its own in .venv-matrix/.

`python tests/tools/matrix.py [--list] [-- pytest arguments]`, usually as `make test-matrix`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
MINORS: Final = (11, 12, 13, 14)
SQLALCHEMY: Final = {"2.0": "sqlalchemy>=2.0,<2.1", "2.1": "sqlalchemy>=2.1,<2.2"}
EXTRAS: Final = "postgres,asyncpg,sqlite-async"
_PROBE: Final = "import sys, venv; print(sys.implementation.name, *sys.version_info[:2], sys.base_prefix)"


def find_interpreters() -> dict[str, Path]:
    """Version ("3.12") to a working CPython interpreter of it."""
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    folders += sorted(pyenv.glob("3.*/bin"))
    found: dict[str, Path] = {}
    for minor in MINORS:
        version = f"3.{minor}"
        for folder in folders:
            candidate = folder / f"python{version}"
            if candidate.exists() and _answers(candidate, minor):
                found[version] = candidate
                break
    return found


def _answers(interpreter: Path, minor: int) -> bool:
    try:
        done = subprocess.run([interpreter, "-c", _PROBE], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.split()[:3] == ["cpython", "3", str(minor)]


def environment(version: str, interpreter: Path, series: str) -> Path:
    """The python of an up-to-date environment for this pair, made if necessary."""
    folder = ROOT / ".venv-matrix" / f"py{version}-sa{series}"
    python = folder / "bin" / "python"
    stamp = folder / ".stamp"
    if not stamp.exists() or stamp.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        requirements = ["--editable", f".[{EXTRAS}]", "--group", "test", SQLALCHEMY[series]]
        subprocess.run([*pip, *requirements], check=True, cwd=ROOT)
        stamp.touch()
    return python


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the tests on every Python and SQLAlchemy.")
    parser.add_argument("--list", action="store_true", help="only print the interpreters")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    arguments = parser.parse_args()
    interpreters = find_interpreters()
    for version in (f"3.{minor}" for minor in MINORS):
        print(f"Python {version}: {interpreters.get(version, 'not found')}", flush=True)
    if arguments.list:
        return 0
    results: list[tuple[str, int]] = []
    for version, interpreter in interpreters.items():
        for series in SQLALCHEMY:
            name = f"Python {version}, SQLAlchemy {series}"
            print(f"--- {name}", flush=True)
            try:
                python = environment(version, interpreter, series)
            except subprocess.CalledProcessError as error:
                results.append((f"{name} (no environment)", error.returncode))
                continue
            results.append(
                (name, subprocess.run([python, "-m", "pytest", *arguments.pytest], cwd=ROOT).returncode)
            )
    print("--- summary")
    for name, code in results:
        print(f"{'ok' if code == 0 else f'FAILED ({code})':12} {name}")
    return int(not results or any(code for _, code in results))


if __name__ == "__main__":
    sys.exit(main())
