"""The effects seam: `point(name)` stands around every commit and every storage effect.

In production it does nothing. Tests and the simulator install a handler that stops, kills or fails there,
which is how "killed after the bytes were written, before the commit" is a test and not a hope.
Names read `daemon.step:when`, e.g. `conveyor.record:before-commit`, `posix.rename:after`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_handler: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Tell the installed handler, if any, that execution reached `name`."""
    if _handler is not None:
        _handler(name)


def install(handler: Callable[[str], None] | None) -> None:
    """Install the handler for this process; None removes it."""
    global _handler
    _handler = handler


def install_from_environment() -> None:
    """`DLM_KILL_AT=name[#n]` kills this process with SIGKILL at the n-th arrival at that point (default the first).

    Only processes of tests set it; it is how the crash matrix reaches real processes.
    """
    target = os.environ.get("DLM_KILL_AT")
    if not target:
        return
    name, _, count = target.partition("#")
    left = int(count or 1)

    def kill_at(reached: str) -> None:
        nonlocal left
        if reached != name:
            return
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    install(kill_at)
