"""Real file systems, users and processes for the tests of what stands on POSIX."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm import effects

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="mounting a small file system needs root")


class mounted:  # noqa: N801  reads as a statement
    """A tmpfs with those options, mounted inside the block."""

    def __init__(self, where: Path, options: str) -> None:
        self.where, self.options = where, options

    def __enter__(self) -> None:
        self.where.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.where)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.where)], check=True)


def in_child(act: Callable[[], object]) -> int:
    """The exit status of a child that does `act`: 0, 1 if it raised, -9 if it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException:  # noqa: BLE001  the child must end here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def as_nobody(act: Callable[[], object]) -> int:
    """The exit status of a child that does `act` without root's power to pass every permission."""

    def unprivileged() -> None:
        if is_root:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        act()

    return in_child(unprivileged)


def open_to_nobody(path: Path) -> None:
    """Let other users pass through the directories above, which pytest makes private."""
    for above in path.parents:
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & stat.S_IXOTH:
            above.chmod(above.stat().st_mode | stat.S_IXOTH)


def killed_at(point: str, act: Callable[[], object]) -> bool:
    """True if a child doing `act` was killed by SIGKILL when it reached the effects point."""

    def kill(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def until_killed() -> None:
        effects.install(kill)
        act()

    return in_child(until_killed) == -signal.SIGKILL
