"""Transfertools: the interface to what moves bytes, and the table from a pair of schemes to the tool."""

from __future__ import annotations

from collections.abc import Callable

from dlm.errors import Unsupported
from dlm.transfertools.interface import Copy, Outcome, Transfertool

__all__ = ["Copy", "Outcome", "Transfertool", "select"]


def select(source_scheme: str, destination_scheme: str, *, threads: int = 2) -> Transfertool:
    """The tool that moves from one scheme to the other; errors.Unsupported if there is none."""
    make = _TOOLS.get((source_scheme, destination_scheme))
    if make is None:
        raise Unsupported(f"no transfertool moves {source_scheme} to {destination_scheme}")
    return make(threads)


# Each tool is imported when first used: an optional one may need a package that is not installed.
def _local(threads: int) -> Transfertool:
    from dlm.transfertools.local import LocalTool

    return LocalTool(threads=threads)


_POSIX = ("posix", "file")
_TOOLS: dict[tuple[str, str], Callable[[int], Transfertool]] = {
    (here, there): _local for here in _POSIX for there in _POSIX
}
