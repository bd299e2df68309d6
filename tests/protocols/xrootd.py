"""XRootD servers on loopback: root://, and https:// with tokens and copies between servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.gfal import extension
from protocols.filesystems import is_root, open_to_nobody
from protocols.servers import PREFILLED, Place, fill, free_port, running

USER = "nobody"  # XRootD refuses to be root
INSTALL = "apt-get install xrootd-server xrootd-client xrootd-plugins"
needs_gfal = pytest.mark.skipif(not extension.is_there(), reason=f"gfal2 is not installed: {extension.HINT}")


@contextlib.contextmanager
def xrootd(base: Path, *more: str, serving: Path | None = None) -> Iterator[Place]:
    """An XRootD server of a directory, a new one or that which another serves; `more` are lines for its configuration."""
    program = shutil.which("xrootd")
    if program is None:
        pytest.skip(f"XRootD's server is not installed: {INSTALL}")
    directory, port = serving or base / "data", free_port()
    (base / "admin").mkdir(parents=True)
    if serving is None:
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
    """Make all below the directory the server's, and let it get there."""
    user = pwd.getpwnam(USER)
    for directory, _, names in os.walk(base):
        for path in [directory, *(os.path.join(directory, name) for name in names)]:
            os.chown(path, user.pw_uid, user.pw_gid)
    open_to_nobody(base)
