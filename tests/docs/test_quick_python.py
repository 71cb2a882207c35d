"""`QuickPython`: what a program is given and what it leaves are as they are with the interpreter itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.quick_python import QuickPython

HERE = "import os, sys; print(sys.argv, os.getcwd(), os.environ['COLOUR'], sys.path[0]); print(__name__, file=sys.stderr)"


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    """The program to be run in place of `python`."""
    made = QuickPython()
    yield str(made.program)
    made.close()


def outcome(python: str, *words: str, directory: Path, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and the end of stderr."""
    done = subprocess.run(
        [python, *words], cwd=directory, env={"COLOUR": "red"}, input=stdin, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr[-30:]


@pytest.mark.parametrize(
    "words",
    [
        ("-c", HERE, "a", "--b"),
        ("-m", "here", "a"),
        ("here.py", "a"),
        ("-", "a"),
        ("-W", "error", "-c", HERE),
        ("-c", "import sys; sys.exit(3)"),
        ("-c", "import sys; sys.exit('no')"),
        ("-c", "1 / 0"),
        ("-c", "import os; os.abort()"),
        ("-c", "import atexit; atexit.register(print, 'at the end')"),
        ("-c", "import threading as t, time; t.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"),
        ("-c", "import sys; print(sys.stdin.read())"),
    ],
)  # fmt: skip
def test_like_the_interpreter(quick: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Arguments, directory, environment, paths, output, input and exit code are the same."""
    (tmp_path / "here.py").write_text(HERE)
    stdin = HERE if words[0] == "-" else "some input"
    found, expected = (
        outcome(each, *words, directory=tmp_path, stdin=stdin) for each in (quick, sys.executable)
    )
    assert found == expected


def test_a_signal_reaches_the_program(quick: str, tmp_path: Path) -> None:
    """Ctrl-C interrupts it, and SIGTERM ends it: the code says so."""
    waiting = "import time\ntry: print('there', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')"
    for number, code, said in ((signal.SIGINT, 0, "interrupted\n"), (signal.SIGTERM, -signal.SIGTERM, "")):
        with subprocess.Popen(
            [quick, "-c", waiting], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            process.send_signal(number)
            assert process.stdout.read() == said
        assert process.returncode == code


def test_killed_with_it(quick: str, tmp_path: Path) -> None:
    """SIGKILL of what was started ends the program too: what it prints comes to an end."""
    waiting = "import time\nprint('there', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([quick, "-c", waiting], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.kill()
        assert process.stdout.read() == ""
