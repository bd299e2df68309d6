"""The load, the daemons under it, and what is watched, for tools/soak."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from dlm import did
from dlm.core import accounts, amending, dids, files, moving, replicas, roots, rules, sites, verify
from dlm.core.storages import NewProtocol, NewStorage
from dlm.db import migrate
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database, Tx
from dlm.errors import CannotPlace, Conflict, InvalidInput, NotFound, Transient
from dlm.types import Identity

DAEMONS = ("judge", "conveyor", "reaper", "auditor")
STORAGES = {"perth-a": "perth", "perth-b": "perth", "bern-a": "bern", "bern-b": "bern", "cape-a": "cape"}
EXPRESSIONS = ("type=disk", "site=perth|site=bern", "type=disk\\cape-a", "bern-a|cape-a")
LIVE_DATASETS = 12  # per writer: what is older is let go and its files detached, so that the world stays one size
SAMPLE_S = 5
REST_S = 120  # the daemons may take this long to come to rest after the load
JUDGED_WITHIN_S = 60
WARM_S = 60  # until then modules are loaded and pools filled: no growth is told from it
GROWTH = 1.3  # resident memory in the last fifth of the run, against the first fifth after that
EPILOG = """Prints what was done, the memory of each daemon (MB), the longest that a rule waited for its judge, how many files
were registered and not read yet at the end of the load, how long it took to come to rest, and `faults`: deadlocks, broken
invariants, memory that grew (told of runs of 3 minutes and more). Exit status 1 when there are any."""
CONFIG = """[reaper]
undo_window_s = 2
[breaker]
window_s = 60
floor_files = 1000000
delete_files = 1000000000
"""


@dataclass(slots=True)
class Watch:
    """What was seen while the load ran."""

    logs: Path
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    oldest_unjudged_s: float = 0.0
    queue: list[int] = field(default_factory=list)
    unverified: int = 0


# --- the load --------------------------------------------------------------------------------------------------


def write(dsn: str, root: str, number: int, stop: Event, counts: Any) -> None:
    """One writer: random work, seeded by its number, until told to stop."""
    writer = Writer(Database(dsn), Path(root), number)
    while not stop.is_set():
        name, act = writer.chosen()
        try:
            act()
            counts[name] = counts.get(name, 0) + 1
        except (Conflict, CannotPlace, InvalidInput, NotFound, Transient) as error:
            key = f"refused: {type(error).__name__}"
            counts[key] = counts.get(key, 0) + 1
    writer.database.dispose()


class Writer:
    def __init__(self, database: Database, root: Path, number: int) -> None:
        self.database = database
        self.root = root
        self.number = number
        self.random = random.Random(number)
        self.made = 0
        self.datasets: list[tuple[str, list[str]]] = []
        self.rules: list[str] = []
        self.actor = Identity(1, "soak", frozenset({"admin"}))

    def chosen(self) -> tuple[str, Callable[[], None]]:
        if len(self.datasets) >= LIVE_DATASETS:
            return "retire", self.retire
        if not self.datasets:
            return "register", self.register
        acts = [self.register, self.declare, self.attach, self.detach, self.cancel, self.set_copies, self.move]
        act = self.random.choices(acts, weights=(3, 5, 3, 2, 3, 2, 2))[0]
        return act.__name__, act

    def begin(self) -> Any:
        return self.database.begin("soak", self.actor)

    def register(self) -> None:
        """A new dataset of up to 40 small files at the source."""
        name = f"w{self.number}.d{self.made}"
        with self.begin() as tx:
            dids.add_collections(tx, [dids.NewCollection("soak", name)])
        self.datasets.append((name, self._add_files(name, self.random.randint(1, 40))))

    def _add_files(self, dataset: str, number: int) -> list[str]:
        items = []
        for _ in range(number):
            self.made += 1
            name = f"w{self.number}.f{self.made}"
            content = name.encode() * self.random.randint(1, 50)
            path = self.root / "origin" / did.derived_path("soak", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            items.append({"name": name, "size_bytes": len(content), "adler32": f"{zlib.adler32(content):08x}"})
        with self.begin() as tx:
            replicas.register(tx, "origin", files.read(items, "soak"), dataset=("soak", dataset))
        return [item["name"] for item in items]

    def attach(self) -> None:
        name, own = self.random.choice(self.datasets)
        own += self._add_files(name, self.random.randint(1, 10))

    def detach(self) -> None:
        name, own = self.random.choice(self.datasets)
        left = [own.pop() for _ in range(min(len(own), 3))]
        if left:
            with self.begin() as tx:
                dids.detach(tx, "soak", name, [("soak", file) for file in left])

    def declare(self) -> None:
        name, _ = self.random.choice(self.datasets)
        wish = rules.Declaration(
            f"soak:{name}",
            self.random.randint(1, 2),
            self.random.choice(EXPRESSIONS),
            grouping=self.random.choice(("dataset", "none", "all")),
            spread=self.random.choice((None, "site")),
            delay_s=self.random.choice((None, None, None, 3)),
        )
        with self.begin() as tx:
            self.rules += [rule.id for rule in rules.declare(tx, [wish])]

    def cancel(self) -> None:
        if self.rules:
            with self.begin() as tx:
                rules.cancel(tx, self.rules.pop(self.random.randrange(len(self.rules))))

    def set_copies(self) -> None:
        if self.rules:
            with self.begin() as tx:
                amending.update(tx, self.random.choice(self.rules), {"copies": self.random.randint(1, 3)})

    def move(self) -> None:
        if self.rules:
            with self.begin() as tx:
                made = moving.move(tx, self.random.choice(self.rules), {"storages": self.random.choice(EXPRESSIONS)})
            self.rules.append(made.id)

    def retire(self) -> None:
        """The oldest datasets end: their rules let go, and what they held is reaped."""
        for name, _ in self.datasets[: LIVE_DATASETS // 2]:
            with self.begin() as tx:
                dids.delete_did(tx, "soak", name)
        del self.datasets[: LIVE_DATASETS // 2]


# --- the box ---------------------------------------------------------------------------------------------------


def make_world(database: Database, root: Path) -> None:
    with database.begin("soak.world") as tx:
        accounts.ensure_account(tx, "soak", roles=("admin",))
        accounts.add_scope(tx, "soak", "soak")
        for site in sorted({*STORAGES.values(), "source"}):
            sites.add_site(tx, site)
    for name, site in {**STORAGES, "origin": "source"}.items():
        kind = "source" if name == "origin" else "disk"
        new = NewStorage(name, site, [NewProtocol("posix", str(root / name))], type=kind)
        roots.add_storage(database.begin, new)


def start_daemons(dsn: str, root: Path, each: int) -> dict[str, subprocess.Popen[bytes]]:
    (root / "dlm.cfg").write_text(CONFIG)
    environment = {**os.environ, "DLM_DATABASE_DSN": dsn, "DLM_CONFIG": str(root / "dlm.cfg"), "DLM_RUN_DIR": str(root)}
    found = {}
    for name in DAEMONS:
        for number in range(each):
            log = (root / f"{name}-{number}.log").open("wb")
            command = [sys.executable, "-m", "dlm.daemons.main", name]
            found[f"{name}-{number}"] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    return found


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def look(database: Database, daemons: dict[str, subprocess.Popen[bytes]], watch: Watch) -> None:
    for name, process in daemons.items():
        if process.poll() is not None:
            last = (watch.logs / f"{name}.log").read_text()[-2000:]
            raise AssertionError(f"{name} ended with status {process.returncode}:\n{last}")
        watch.memory_mb.setdefault(name, []).append(resident_mb(process.pid))
    with database.begin("soak.look") as tx:
        oldest = tx.scalar(
            """SELECT extract(epoch FROM %(now)s - min(greatest(state_since, starts_at)))::float8
                 FROM rule WHERE state = 'declared' AND coalesce(starts_at <= %(now)s, true)"""
        )
        watch.oldest_unjudged_s = max(watch.oldest_unjudged_s, oldest or 0.0)
        watch.queue.append(tx.scalar("SELECT count(*) FROM request"))


def rest(database: Database, logs: Path) -> tuple[float, list[str]]:
    """Seconds until the daemons had nothing left to do, and what was left if that took too long."""
    start = time.monotonic()
    while time.monotonic() - start < REST_S:
        with database.begin("soak.rest") as tx:
            left = unfinished(tx)
        if not any(left.values()):
            return time.monotonic() - start, []
        time.sleep(1)
        print(f"# not at rest yet: { {name: rows for name, rows in left.items() if rows} }", file=sys.stderr)
    last = "".join(f"\n{log.name}: {log.read_text()[-500:]}" for log in sorted(logs.glob("*.log")))
    return REST_S, [f"not at rest {REST_S} s after the load: {left}{last}"]


def unfinished(tx: Tx) -> dict[str, int]:
    """How many rows of each kind still wait for a daemon; what was registered and is to be read is the storage's pace."""
    row = tx.one(
        """SELECT (SELECT count(*) FROM change) AS changes,
                  (SELECT count(*) FROM request WHERE state <> 'parked') AS requests,
                  (SELECT count(*) FROM lock WHERE fill_after IS NOT NULL) AS locks,
                  (SELECT count(*) FROM parcel) AS parcels,
                  (SELECT count(*) FROM rule WHERE state = 'declared') AS declared,
                  (SELECT count(*) FROM rule WHERE state = 'letting_go') AS letting_go,
                  (SELECT count(*) FROM rule WHERE state = 'replicating') AS replicating,
                  (SELECT count(*) FROM replica WHERE tombstone_at <= %(now)s) AS due"""
    )
    return row._asdict()


def unverified(database: Database) -> int:
    """Files registered that the auditors did not read yet: how far the writers are ahead of them."""
    with database.begin("soak.unverified") as tx:
        return int(tx.scalar("SELECT count(*) FROM replica WHERE state = 'unverified'"))


def deadlock_reports(log: Path) -> list[str]:
    """What the server wrote of each deadlock: who waited for whom, in which statements."""
    reports: list[str] = []
    is_inside = False
    for line in log.read_text(errors="replace").splitlines():
        if "deadlock detected" in line:
            reports.append("")
        is_inside = "deadlock detected" in line or (is_inside and (line.startswith("\t") or any(word in line for word in ("DETAIL", "HINT", "CONTEXT"))))
        if is_inside:
            reports[-1] += line + "\n"
    return reports[:20]


def deadlocks(database: Database) -> int:
    with database.begin("soak.deadlocks") as tx:
        return int(tx.scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/soak", description="Mixed load on real storages, then the invariants.", epilog=EPILOG
    )
    parser.add_argument("--minutes", type=float, default=60, help="of load (60); up to 2 more to come to rest")
    parser.add_argument("--writers", type=int, default=8, help="processes that change the catalogue (8)")
    parser.add_argument("--daemons", type=int, default=2, help="of each kind (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result goes here, too")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.writers < 1 or options.daemons < 1:
        parser.error("--minutes, --writers and --daemons must be more than 0")
    with tempfile.TemporaryDirectory(prefix="dlm-soak-") as directory:
        root = Path(directory)
        server = EmbeddedPostgres(root / "db")
        dsn = server.start()
        try:
            migrate.upgrade(dsn)
            result = soak(dsn, root, options)
            result["faults"] += deadlock_reports(server.log)
            print(json.dumps(result, indent=2), flush=True)  # before hundreds of thousands of files are removed
            if options.json:
                options.json.write_text(json.dumps(result) + "\n")
        finally:
            server.stop()
            server.remove()
    return 1 if result["faults"] else 0


def soak(dsn: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    database = Database(dsn)
    make_world(database, root)
    watch = Watch(root)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with context.Manager() as manager:
        counts = [manager.dict() for _ in range(options.writers)]
        writers = [context.Process(target=write, args=(dsn, str(root), n, stop, counts[n])) for n in range(options.writers)]
        daemons = start_daemons(dsn, root, options.daemons)
        try:
            for writer in writers:
                writer.start()
            until = time.monotonic() + options.minutes * 60
            while time.monotonic() < until:
                time.sleep(SAMPLE_S)
                look(database, daemons, watch)
            end(writers, stop)
            watch.unverified = unverified(database)
            rested_s, left = rest(database, root)
        finally:
            end(writers, stop)
            stop_daemons(daemons)
        done: dict[str, int] = {}
        for count in counts:
            for name, number in count.items():
                done[name] = done.get(name, 0) + number
    with database.begin("soak.verify") as tx:
        found = [str(finding) for finding in (*verify.verify(tx), *verify.verify_files(tx))]
    return report(watch, done, rested_s, deadlocks(database), left + found)


def end(writers: list[Any], stop: Event) -> None:
    stop.set()
    for writer in writers:
        if writer.pid is not None:
            writer.join(60)


def stop_daemons(daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in daemons.values():
        process.terminate()
    for process in daemons.values():
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def report(watch: Watch, done: dict[str, int], rested_s: float, deadlocked: int, found: list[str]) -> dict[str, Any]:
    """The figures, and `faults`: what must not have happened."""
    memory = {name: _memory(samples) for name, samples in watch.memory_mb.items()}
    grown = [f"{name} grew: {m}" for name, m in memory.items() if m["late_mb"] > GROWTH * m["early_mb"] + 10]
    faults = [*found, *grown]
    if deadlocked:
        faults.append(f"{deadlocked} deadlocks")
    if watch.oldest_unjudged_s > JUDGED_WITHIN_S:
        faults.append(f"a rule waited {watch.oldest_unjudged_s:.0f} s for its judge")
    return {
        "done": dict(sorted(done.items())),
        "memory": memory,
        "slowest_judged_s": round(watch.oldest_unjudged_s, 2),
        "requests_waiting_max": max(watch.queue, default=0),
        "unverified_at_end": watch.unverified,
        "rested_s": round(rested_s, 1),
        "deadlocks": deadlocked,
        "faults": faults,
    }


def _memory(samples: list[float]) -> dict[str, float]:
    """Early, late and most; early is as late in a run too short to tell."""
    warm = samples[WARM_S // SAMPLE_S :]
    fifth = len(warm) // 5
    late = statistics.median(samples[-max(1, fifth) :])
    early = statistics.median(warm[:fifth]) if fifth >= WARM_S // SAMPLE_S // 3 else late
    return {"early_mb": round(early, 1), "late_mb": round(late, 1), "peak_mb": round(max(samples), 1)}
