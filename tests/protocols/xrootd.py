"""XRootD servers on loopback: root://, and https:// with tokens and copies between servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.gfal import extension
from protocols.filesystems import is_root
from protocols.servers import PREFILLED, Place, fill, free_port, running

USER = "nobody"  # XRootD refuses to be root
INSTALL = "apt-get install xrootd-server xrootd-client xrootd-plugins"
needs_gfal = pytest.mark.skipif(not extension.is_there(), reason=f"gfal2 is not installed: {extension.HINT}")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory that other users reach: pytest keeps closing those that it makes."""
    with tempfile.TemporaryDirectory(prefix="dlm-xrootd-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def xrootd(base: Path, *more: str, prefilled: bool = False) -> Iterator[Place]:
    """An XRootD server of a new directory, for everybody; `more` are lines for its configuration."""
    program = shutil.which("xrootd")
    if program is None:
        pytest.skip(f"XRootD's server is not installed: {INSTALL}")
    directory, port = base / "data", free_port()
    (base / "admin").mkdir(parents=True)
    directory.mkdir()
    if prefilled:
        fill(directory / PREFILLED / "many")
    config = base / "xrootd.cfg"
    lines = (
        f"xrd.port {port}", "all.export /", f"oss.localroot {directory}", f"all.adminpath {base}/admin",
        f"all.pidpath {base}/admin", "xrootd.chksum max 2 adler32 md5", "xrd.network nodnr", "ofs.tpc pgm /usr/bin/xrdcp --server",
        *more,
    )  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    command = [program, "-c", str(config), "-n", "test"]
    if is_root:
        given_to_user(base)
        command += ["-R", USER]
    with running(command, port, base / "server.log"):
        yield Place("root", f"root://127.0.0.1:{port}/", {}, directory, {})


def given_to_user(base: Path) -> None:
    """Make all below the directory the server's."""
    user = pwd.getpwnam(USER)
    for directory, _, names in os.walk(base):
        for path in [directory, *(os.path.join(directory, name) for name in names)]:
            os.chown(path, user.pw_uid, user.pw_gid)
