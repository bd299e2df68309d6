"""The command: which figures, how large, and what came out."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dlm.db.embedded import EmbeddedPostgres
from figures import drawing, report
from figures.measuring import Bench, CannotMeasure, Figure, make_template, query

# In an order in which worlds that several measure on are made once.
FIGURES = (
    "judge",
    "interactive",
    "list",
    "judges",
    "judge-none",
    "judge-present",
    "resync",
    "verify",
    "letgo",
    "register",
    "evaluate",
    "tangle",
    "small-rules",
    "conveyor",
    "transfer",
    "reaper",
    "latency",
    "expression",
    "rest",
)
BY_HAND = ("curve", "scale")
OPTIONS = (
    "shared_buffers=1GB",
    "max_wal_size=4GB",
    "checkpoint_timeout=30min",
    "work_mem=64MB",
    "maintenance_work_mem=256MB",
)
LEAST_FILES, MOST_FILES = 1000, 100_000_000
NEED_BYTES, NEED_BYTES_PER_FILE = 2 * 10**9, 100_000  # worlds of ten times as many files, and the log


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
    """Measure the figures that are named, or all; 1 when one could not be measured, whatever the others are."""
    options = _options(arguments)
    if options.table:
        print(report.markdown(options.table), end="")
        return 0
    if options.draw:
        drawing.write(options.svg, report.read(options.draw)[1])
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the scratch directory go
    with tempfile.TemporaryDirectory(prefix="dlm-bench-", dir=options.dir) as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        with _server(options.dsn, directory) as dsn:
            make_template(dsn)
            _begin(options, dsn)
            bench = Bench(dsn, directory, options.repeat)
            try:
                return _measure(bench, options)
            finally:
                bench.close()


def _begin(options: argparse.Namespace, dsn: str) -> None:
    """Say on what machine this is, and how the columns are to be read."""
    load = f"{os.getloadavg()[0]:.1f}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {python}"
    postgresql = str(query(dsn, "SHOW server_version"))
    facts = {"machine": machine, "postgresql": postgresql, "load": load, "files": options.files}
    report.append(options.json, {"run": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **facts})
    print(f"{machine}, PostgreSQL {postgresql}, load {load} at the start; --files {options.files:,}\n")
    print(report.HEADER, flush=True)


def _measure(bench: Bench, options: argparse.Namespace) -> int:
    """Each figure; one that cannot be measured says why, and the others go on."""
    took_s: dict[str, float] = {}
    found: list[Figure] = []
    failed = []
    for name in options.figures or FIGURES:
        module = importlib.import_module(f"figures.{name.replace('-', '_')}")
        start = time.monotonic()
        try:
            for figure in module.measure(bench, options.files):
                found.append(figure)
                report.append(options.json, report.as_record(figure))
                print(report.line(figure), flush=True)
        except Exception as error:  # noqa: BLE001  whatever ends one figure, the others are measured
            failed.append(name)
            if not isinstance(error, CannotMeasure):
                traceback.print_exc()
            print(f"{name:<38}could not be measured: {error}", flush=True)
        took_s[name] = round(time.monotonic() - start, 1)
    report.append(options.json, {"took_s": took_s})
    print(report.seconds_table(took_s))
    print("\ngoals missed: " + (", ".join(report.missed(found)) or "none"))
    if "curve" in took_s and "curve" not in failed:
        drawing.write(options.svg, found)
        print(f"drawn: {options.svg}")
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measure dlm beside bare yardsticks.")
    names = f"of {', '.join(FIGURES)}; default all. By hand: {' and '.join(BY_HAND)}"
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=names)
    parser.add_argument("--files", type=int, default=100_000, help="the middle size (scale: the only), default 100,000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--json", type=Path, help="append one JSON line per figure to this file")
    parser.add_argument("--dsn", help="a server on which databases may be made; without it one is started")
    parser.add_argument(
        "--dir", type=Path, default=Path("/tmp"), help="where data and files to copy stand (default /tmp)"
    )
    parser.add_argument("--table", type=Path, metavar="JSON", help="measure nothing: print such a file as markdown")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: draw the curve of such a file")
    parser.add_argument("--svg", type=Path, default=drawing.PICTURE, help="where curve and --draw write the picture")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with what is wrong, before anything is started."""
    unknown = [name for name in options.figures if name not in FIGURES + BY_HAND]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES + BY_HAND)}")
    if not LEAST_FILES <= options.files <= MOST_FILES:
        parser.error(f"--files: from {LEAST_FILES:,} to {MOST_FILES:,}, not {options.files:,}")
    if options.repeat < 1:
        parser.error(f"--repeat: at least 1, not {options.repeat}")
    if not options.dir.is_dir() or not os.access(options.dir, os.W_OK):
        parser.error(f"--dir: {options.dir} is no directory that can be written to")
    for name, path in (("--table", options.table), ("--draw", options.draw)):
        if path is not None and not path.is_file():
            parser.error(f"{name}: there is no file {path}")
    for name, path in (("--json", options.json), ("--svg", options.svg)):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{name}: there is no directory {path.parent}")
    need = NEED_BYTES + NEED_BYTES_PER_FILE * options.files
    if set(options.figures) != {"scale"} and shutil.disk_usage(options.dir).free < need:
        parser.error(f"--dir: {options.dir} has less than {need / 1e9:.0f} GB free; name another one, or fewer --files")
