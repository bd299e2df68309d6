"""What is in a directory that the tour takes as a storage: the files that can be named, and a record to prove by.

Nothing here writes.
"""

from __future__ import annotations

import os
import stat
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dlm import did
from dlm.errors import InvalidInput

LEFT_OUT = (".git", ".venv", "__pycache__")  # tools of a checkout that rewrite themselves; nobody's data
OWN = ".dlm-"  # how dlm's own files in a storage begin

# What tells that a file or directory is as it was: size, time of change, inode.
Record = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Found:
    """A file: its path below the directory, and the same as a name, in Unicode's normal form."""

    path: str
    name: str
    size_bytes: int
    mtime_ns: int


@dataclass(slots=True)
class Survey:
    """The files of a directory by path, and how many were left out, by reason, with an example of each."""

    root: Path
    files: list[Found] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def skip(self, reason: str, path: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, path)


def survey(root: Path, without: Path) -> Survey:
    """The files below `root`, those below `without` (dlm's own directory) left out.

    In a git checkout: the files under version control, because the others come and go.
    """
    found = Survey(root)
    taken: set[str] = set()
    for path in _paths(root, without, found):
        file = _look(found, path)
        if file is None:
            continue
        if file.name in taken:
            found.skip("has the name of another when written in Unicode's normal form", path)
            continue
        taken.add(file.name)
        found.files.append(file)
    found.files.sort(key=lambda file: file.path)
    return found


def record(root: Path, without: Path) -> Record:
    """Size, time of change and inode of everything below `root`, directories too: a file made or removed shows in them.

    Of a git checkout only what is under version control: others may work in it.
    """
    tracked = _tracked(root)
    walked = sorted(tracked) if tracked is not None else [path for path, _ in _walk(root, without)]
    return {path: seen for path in walked if (seen := _seen(root, path)) is not None}


def differences(before: Record, after: Record) -> list[str]:
    """The paths that came, went or changed, in order."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _seen(root: Path, path: str) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(os.path.join(root, path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _paths(root: Path, without: Path, found: Survey) -> Iterator[str]:
    tracked = _tracked(root)
    if tracked is not None:
        yield from tracked
        return
    for path, is_directory in _walk(root, without, found):
        if not is_directory:
            yield path


def _tracked(root: Path) -> list[str] | None:
    """The files under version control when `root` is the top of a git checkout; None when it is none."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the owner
        return None
    paths = [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]
    return [path for path in paths if os.path.lexists(root / path)] or None


def _walk(root: Path, without: Path, found: Survey | None = None) -> Iterator[tuple[str, bool]]:
    """(path below the root, is it a directory) of everything, without following links."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, above)), key=lambda entry: entry.name)
        except OSError:
            if found is not None:
                found.skip("is a directory that cannot be read", above)
            continue
        for entry in entries:
            path = f"{above}/{entry.name}" if above else entry.name
            if entry.name in LEFT_OUT or entry.path == str(without):
                continue
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory:
                waiting.append(path)
            yield path, is_directory


def _look(found: Survey, path: str) -> Found | None:
    """The file, None (with the reason noted) for what cannot be registered."""
    full = os.path.join(found.root, path)
    try:
        status = os.lstat(full)
    except OSError:
        found.skip("went away while we looked", path)
        return None
    if not stat.S_ISREG(status.st_mode):
        is_link = stat.S_ISLNK(status.st_mode)
        found.skip("is a symbolic link" if is_link else "is no file, but a socket, pipe or device", path)
        return None
    if not os.access(full, os.R_OK):
        found.skip("cannot be read", path)
        return None
    name = unicodedata.normalize("NFC", path)
    try:
        did.check_path(path)
        did.check_name(name)
    except InvalidInput:
        found.skip("has a name that cannot be written as a DID", path)
        return None
    if any(part.startswith(OWN) for part in path.split("/")):
        found.skip("is dlm's own", path)
        return None
    return Found(path, name, status.st_size, status.st_mtime_ns)
