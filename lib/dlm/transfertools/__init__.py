"""Transfertools: the interface to what moves bytes, and the table from a pair of schemes to the tool."""

from __future__ import annotations

from dlm.errors import Unsupported
from dlm.transfertools.interface import Copy, Opener, Outcome, Transfertool

__all__ = ["Copy", "Opener", "Outcome", "Transfertool", "select"]


def select(
    source_scheme: str, destination_scheme: str, *, threads: int = 2, open_protocol: Opener | None = None
) -> Transfertool:
    """The tool that moves from one scheme to the other; errors.Unsupported if there is none.

    `open_protocol` makes the adapters of storages, for the tools that stand on them.
    """
    tool = _TOOLS.get((source_scheme, destination_scheme))
    if tool == "local":
        return _local(threads)
    if tool is None or open_protocol is None:
        raise Unsupported(f"no transfertool moves {source_scheme} to {destination_scheme}")
    return _gfal(threads, open_protocol) if tool == "gfal2" else _stream(threads, open_protocol)


# Each tool is imported when first used: an optional one may need a package that is not installed.
def _local(threads: int) -> Transfertool:
    from dlm.transfertools.local import LocalTool

    return LocalTool(threads=threads)


def _stream(threads: int, open_protocol: Opener) -> Transfertool:
    from dlm.transfertools.stream import StreamTool

    return StreamTool(open_protocol, threads=threads)


def _gfal(threads: int, open_protocol: Opener) -> Transfertool:
    from dlm.transfertools.gfal import GfalTool

    return GfalTool(open_protocol, threads=threads)


_POSIX = ("posix", "file")
_REMOTE = ("s3", "dav", "davs", "https", "sftp", "root")
_ALL = (*_POSIX, *_REMOTE)
_WEB = ("davs", "https")
# The first choice of each pair. What gfal2 cannot have copied between two storages, it leaves to the stream.
_TOOLS: dict[tuple[str, str], str] = (
    {(here, there): "stream" for here in _ALL for there in _ALL}
    | {(here, there): "local" for here in _POSIX for there in _POSIX}
    | {(here, there): "gfal2" for here in _WEB for there in _WEB}
    | {("root", "root"): "gfal2"}
)
