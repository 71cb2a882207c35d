"""Who uses `message_bus.testing` without the contracts needs no pytest."""

from __future__ import annotations

import subprocess
import sys

import message_bus.testing


def loads_pytest(code: str) -> bool:
    """Whether a fresh interpreter has loaded pytest after running `code`."""
    program = f"import sys\n{code}\nprint('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout == "True\n"


def test_only_the_contracts_load_pytest() -> None:
    """The module itself, `drain`, `Recorder`, the dry-run buses and `Capabilities` do not."""
    light = [name for name in message_bus.testing.__all__ if not name.endswith("Contract")]
    assert not loads_pytest(f"from message_bus.testing import {', '.join(light)}")
    assert loads_pytest("from message_bus.testing import OutboxContract")


def test_every_name_is_there() -> None:
    """Each name of `__all__` can be imported, and `dir()` shows it."""
    assert set(message_bus.testing.__all__) <= set(dir(message_bus.testing))
    for name in message_bus.testing.__all__:
        assert getattr(message_bus.testing, name).__name__ == name
