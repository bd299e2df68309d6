"""The command: which figures, how large, and the table of what came out."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from dlm.db.embedded import EmbeddedPostgres
from figures.goals import verdict
from figures.measuring import Bench, Figure, make_template

FIGURES = (
    "judge",
    "judge-none",
    "judge-present",
    "register",
    "interactive",
    "evaluate",
    "tangle",
    "resync",
    "verify",
    "letgo",
    "small-rules",
    "conveyor",
    "transfer",
    "reaper",
    "latency",
    "list",
    "expression",
    "rest",
)
OPTIONS = ("shared_buffers=1GB", "max_wal_size=4GB", "checkpoint_timeout=30min", "work_mem=64MB")


@contextmanager
def _server(dsn: str | None, directory: Path) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    server = EmbeddedPostgres(directory / "db", options=OPTIONS)
    server.start()
    try:
        yield server.dsn("postgres")
    finally:
        server.stop()
        server.remove()


def main(arguments: list[str]) -> int:
    """Measure the figures that are named, or all; the exit status does not depend on what they are."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the scratch directory go
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    print(f"{machine}; --files {options.files:,}\n")
    print(f"{'figure':<28}{'dlm':>12}{'yardstick':>12}  {'unit':<9}{'ratio':>7}{'n':>11}{'MB':>6}{'stmts':>8}  goal")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="dlm-bench-", dir=options.dir) as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        with _server(options.dsn, directory) as dsn:
            make_template(dsn)
            bench = Bench(dsn, directory, options.repeat)
            for name in options.figures or FIGURES:
                module = importlib.import_module(f"figures.{name.replace('-', '_')}")
                for figure in module.measure(bench, options.files):
                    _show(figure, options.json)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; default all")
    parser.add_argument("--files", type=int, default=100_000, help="the middle size, default 100,000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--json", type=Path, help="append one JSON line per figure to this file")
    parser.add_argument("--dsn", help="a server on which databases may be made; without it one is started")
    parser.add_argument("--dir", default="/tmp", help="where its data and the files to copy stand (default /tmp)")
    options = parser.parse_args(arguments)
    unknown = set(options.figures) - set(FIGURES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return options


def _show(figure: Figure, path: Path | None) -> None:
    f = figure
    places = 0 if f.value >= 100 else 2
    ratio = f"{f.ratio:>7.2f}" if f.yardstick_value else f"{'–':>7}"
    print(
        f"{f.figure:<28}{f.value:>12,.{places}f}{f.yardstick_value:>12,.{places}f}  {f.unit:<9}{ratio}{f.n:>11,}"
        f"{f.peak_rss_mb:>6.0f}{f.statements:>8,}  {verdict(f)}",
        flush=True,
    )
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(figure), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
