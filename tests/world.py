"""A small world for tests: real storages in directories, real files, the real daemons run by hand, one clock.

`check` asserts the invariants of the architecture and compares catalogue and disk; tests call it after every step.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlm import config, did
from dlm.clock import ManualClock
from dlm.core import accounts, dids, files, replicas, roots, rules, sites, verify
from dlm.core.storages import NewProtocol, NewStorage
from dlm.daemons.auditor import Auditor
from dlm.daemons.conveyor import Conveyor
from dlm.daemons.judge import Judge
from dlm.daemons.loop import Pass
from dlm.daemons.reaper import Reaper
from dlm.db.engine import Database
from dlm.types import Identity

SCOPE = "test"
PASSES = 200  # more than any of these worlds needs: a test that reaches it found a loop
DAY = 86_400


class World:
    def __init__(self, database: Database, clock: ManualClock, root: Path, **settings: Any) -> None:
        self.database = database
        self.clock = clock
        self.root = root
        self.settings = config.load(None, {}, {name: str(value) for name, value in settings.items()})
        with database.begin("world") as tx:
            accounts.ensure_account(tx, "root", roles=("admin",))
            row = accounts.get_account(tx, "root")
            self.actor = Identity(row.id, "root", frozenset({"admin"}))
            accounts.add_scope(tx, SCOPE, "root")
        self.judge = Judge(database, self.settings)
        self.conveyor = Conveyor(database, self.settings)
        self.reaper = Reaper(database, self.settings)
        self.auditor = Auditor(database, self.settings)

    # -- building ---------------------------------------------------------------------------------------------

    def begin(self, name: str = "test") -> Any:
        return self.database.begin(name, self.actor)

    def add_site(self, name: str, country: str = "AU") -> None:
        with self.begin() as tx:
            sites.add_site(tx, name, {"country": country})

    def add_storage(self, name: str, site: str = "perth", **facts: Any) -> Path:
        """A posix storage in a directory of its own, and its site where that is missing."""
        root = self.root / name
        root.mkdir(parents=True, exist_ok=True)
        with self.begin() as tx:
            if site not in {row.name for row in sites.list_sites(tx)[0]}:
                sites.add_site(tx, site)
        protocol = NewProtocol("posix", str(root))
        roots.add_storage(self.begin, NewStorage(name=name, site=site, protocols=[protocol], **facts))
        return root

    def put(self, storage: str, contents: Mapping[str, bytes], dataset: str | None = None, *, verified: bool = False) -> None:
        """Write files at their derived paths and register them, in a dataset when one is named (made if missing)."""
        items = []
        for name, content in contents.items():
            path = self.root / storage / did.derived_path(SCOPE, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            items.append({"name": name, "size_bytes": len(content), "adler32": f"{zlib.adler32(content):08x}"})
        with self.begin() as tx:
            if dataset is not None:
                self._ensure_dataset(tx, dataset)
            checked = files.read(items, SCOPE)
            replicas.register(tx, storage, checked, dataset=(SCOPE, dataset) if dataset else None, verified=verified)

    def _ensure_dataset(self, tx: Any, name: str) -> None:
        if not [row for row in dids.list_dids(tx, dids.Filter(SCOPE, pattern=name))[0] if row.name == name]:
            dids.add_collections(tx, [dids.NewCollection(SCOPE, name)])

    def many(self, storage: str, number: int, dataset: str = "ds", prefix: str = "f", **how: Any) -> list[str]:
        """Register `number` small files, all different, and return their names."""
        contents = {f"{prefix}{i}": f"{prefix} {i} ".encode() * (1 + i % 7) for i in range(number)}
        self.put(storage, contents, dataset, **how)
        return list(contents)

    def container(self, name: str, *children: str) -> None:
        with self.begin() as tx:
            dids.add_collections(tx, [dids.NewCollection(SCOPE, name, kind=dids.DidKind.CONTAINER)])
            if children:
                dids.attach(tx, SCOPE, name, [(SCOPE, child) for child in children])

    def attach(self, parent: str, *children: str) -> None:
        with self.begin() as tx:
            dids.attach(tx, SCOPE, parent, [(SCOPE, child) for child in children])

    def detach(self, parent: str, *children: str) -> None:
        with self.begin() as tx:
            dids.detach(tx, SCOPE, parent, [(SCOPE, child) for child in children])

    def declare(self, name: str, copies: int | None, on: str, **more: Any) -> str:
        """Declare a rule and return its id."""
        with self.begin() as tx:
            return rules.declare(tx, [rules.Declaration(f"{SCOPE}:{name}", copies, on, **more)])[0].id

    def cancel(self, rule: str) -> None:
        with self.begin() as tx:
            rules.cancel(tx, rule)

    # -- running ----------------------------------------------------------------------------------------------

    def run(self, *daemons: Any) -> Pass:
        """Run the daemons in turn until none of them has anything to do now."""
        total = Pass()
        for _ in range(PASSES):
            done = Pass()
            for daemon in daemons:
                done.merge(daemon.run_once())
            total.merge(done)
            if not done.counts and not done.is_full:
                return total
        raise AssertionError(f"still busy after {PASSES} passes: {done}")

    def settle(self) -> Pass:
        """Judge, move, audit and judge again until the world is at rest at this moment."""
        return self.run(self.judge, self.conveyor, self.auditor, self.reaper)

    def later(self, seconds: float) -> Pass:
        self.clock.advance(seconds)
        return self.settle()

    # -- looking ----------------------------------------------------------------------------------------------

    def rule(self, rule: str) -> dict[str, Any]:
        with self.begin() as tx:
            return rules.get(tx, rule)

    def state(self, rule: str) -> str:
        return self.rule(rule)["state"]

    def where(self, name: str) -> dict[str, str]:
        """The states of a file's replicas, by storage."""
        return {row.storage: row.state for row in self._replicas(name)}

    def _replicas(self, name: str) -> list[Any]:
        with self.begin() as tx:
            return list(
                tx.rows(
                    """SELECT s.name AS storage, r.state, r.tombstone_at FROM replica r JOIN storage s ON s.id = r.storage_id
                         JOIN did d ON d.id = r.did_id WHERE d.name = %(name)s ORDER BY 1""",
                    name=name,
                )
            )

    def count(self, storage: str, state: str = "available") -> int:
        with self.begin() as tx:
            return tx.scalar(
                """SELECT count(*) FROM replica r JOIN storage s ON s.id = r.storage_id
                    WHERE s.name = %(storage)s AND r.state = %(state)s::replica_state""",
                storage=storage,
                state=state,
            )

    def did_id(self, name: str) -> int:
        with self.begin() as tx:
            return tx.scalar("SELECT id FROM did WHERE name = %(name)s", name=name)

    def storage_id(self, name: str) -> int:
        with self.begin() as tx:
            return tx.scalar("SELECT id FROM storage WHERE name = %(name)s", name=name)

    def path(self, storage: str, name: str) -> Path:
        return self.root / storage / did.derived_path(SCOPE, name)

    def check(self) -> None:
        """Assert the invariants on the catalogue, and that catalogue and disks agree byte for byte."""
        with self.begin() as tx:
            found = [*verify.verify(tx), *verify.verify_files(tx)]
        assert found == [], "\n".join(map(str, found))
