"""Where the distribution keeps gfal2's Python extension, which the package index has only for newer libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from dlm.errors import Unsupported

# Debian's, and Enterprise Linux's. Only the one file is loaded from there: on sys.path all else in it would be, too.
DIRECTORIES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python3.{sys.version_info.minor}/site-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
)
HINT = "apt-get install python3-gfal2 gfal2-plugin-file gfal2-plugin-http gfal2-plugin-xrootd"


def found(directories: Iterable[str] = DIRECTORIES) -> Path:
    """The extension that fits this Python; errors.Unsupported, with what to install, when there is none."""
    for directory in [*directories, *(path for path in sys.path if path)]:
        for suffix in EXTENSION_SUFFIXES:
            path = Path(directory, f"gfal2{suffix}")
            if path.is_file():
                return path
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise Unsupported(f"this needs gfal2 for Python {version}, which is not installed", field="scheme", hint=HINT)


def is_there() -> bool:
    """True when gfal2 can be loaded."""
    try:
        return bool(found())
    except Unsupported:
        return False
