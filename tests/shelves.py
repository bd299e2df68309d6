"""A small world for the reaper's and the auditor's tests: real files on real storages; locks and rules in plain SQL."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from dlm.config import Settings
from dlm.db import storages
from dlm.db.engine import Database
from dlm.did import derived_path
from dlm.protocols import open_protocol
from dlm.types import ProtocolRef

SETTINGS = Settings(breaker_loss_share=0.5, breaker_delete_share=1.0, breaker_floor_files=2)
CONTENT = b"0123456789"


class Killed(BaseException):
    """What a test throws where a process would be killed."""


class Shelves:
    """Storages and files; every method that writes is one transaction, and keeps storage_usage right."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database = database
        self.root = root
        self.refs: dict[int, ProtocolRef] = {}
        self.run("INSERT INTO account (name, kind, created_at) VALUES ('me', 'person', %(now)s)")
        self.run("INSERT INTO scope (name, account_id, created_at) VALUES ('demo', 1, %(now)s)")
        self.run("INSERT INTO expression (canonical) SELECT 'e' || n FROM generate_series(1, 20) n")
        self.run("INSERT INTO site (name, created_at) VALUES ('perth', %(now)s)")

    def run(self, sql: str, **values: Any) -> None:
        with self.database.begin("shelves") as tx:
            tx.run(sql, **values)

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.database.begin("shelves") as tx:
            return [tuple(row) for row in tx.rows(sql, **values)]

    def one(self, sql: str, **values: Any) -> Any:
        return self.rows(sql, **values)[0][0]

    def storage(self, name: str, **columns: Any) -> int:
        """A storage on an empty directory with its marker."""
        names = "".join(f", {column}" for column in columns)
        values = "".join(f", %({column})s" for column in columns)
        with self.database.begin("shelves") as tx:
            storage_id = tx.scalar(
                f"""INSERT INTO storage (name, site_id, created_at{names}) VALUES (%(name)s, 1, %(now)s{values})
                    RETURNING id""",
                name=name,
                **columns,
            )
            tx.run("INSERT INTO storage_usage (storage_id) VALUES (%(id)s)", id=storage_id)
            tx.run(
                "INSERT INTO protocol (storage_id, scheme, prefix) VALUES (%(id)s, 'posix', %(prefix)s)",
                id=storage_id,
                prefix=str(self.root / name),
            )
            ref = storages.protocols(tx, [storage_id])[storage_id]
        open_protocol(ref).claim(ref.storage_uuid, create_root=True)
        self.refs[storage_id] = ref
        return int(storage_id)

    def files(self, number: int, *, known: bool = True) -> list[int]:
        """Files of the catalogue, with the content CONTENT, on no storage yet."""
        digest = f"{zlib.adler32(CONTENT):08x}" if known else None
        rows = self.rows(
            """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, adler32, created_at)
               SELECT 1, 'file', 'f' || n, 1, %(size)s, %(digest)s, %(now)s
                 FROM (SELECT (SELECT coalesce(max(id), 0) FROM did) + g AS n FROM generate_series(1, %(number)s) g) s
                ORDER BY n RETURNING id""",
            size=len(CONTENT),
            digest=digest,
            number=number,
        )
        return [row[0] for row in rows]

    def put(self, files: Iterable[int], storage: int, state: str = "available", due_s: float | None = None) -> None:
        """Replicas with their bytes on the storage; `due_s`: seconds until the tombstone, None without one."""
        files = list(files)
        for file in files:
            path = self.path(file, storage)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT)
        self.run(
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at,
                                    tombstone_at)
               SELECT f, %(storage)s, %(state)s::replica_state, %(size)s, %(now)s,
                      CASE WHEN %(state)s = 'available' THEN %(now)s END, %(now)s + interval '30 days',
                      %(now)s + make_interval(secs => %(due)s)
                 FROM unnest(%(files)s::bigint[]) f""",
            files=files,
            storage=storage,
            state=state,
            size=len(CONTENT),
            due=due_s,
        )
        self.run(
            """UPDATE storage_usage SET used_files = used_files + %(n)s, used_bytes = used_bytes + %(bytes)s
                WHERE storage_id = %(id)s""",
            n=0 if state == "lost" else len(files),
            bytes=0 if state == "lost" else len(files) * len(CONTENT),
            id=storage,
        )

    def dataset(self, files: Sequence[int], kind: str = "dataset") -> int:
        did = self.rows(
            """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
               SELECT 1, %(kind)s::did_kind, 'd' || count(*), 1, %(bytes)s, %(files)s, %(now)s FROM did RETURNING id""",
            kind=kind,
            bytes=len(files) * len(CONTENT) if kind == "dataset" else 0,
            files=len(files) if kind == "dataset" else 0,
        )[0][0]
        self.run(
            """INSERT INTO attachment (parent_id, child_id, size_bytes)
               SELECT %(did)s, id, size_bytes FROM did WHERE id = ANY (%(files)s::bigint[])""",
            did=did,
            files=list(files),
        )
        return int(did)

    def rule(self, did: int, copies: int | None = 1, state: str = "ok") -> int:
        return int(
            self.rows(
                """INSERT INTO rule (did_id, account_id, copies, expression_id, state, created_at, state_since,
                                     next_judge_at)
                   SELECT %(did)s, 1, %(copies)s::int, 1 + count(*), %(state)s::rule_state, %(now)s, %(now)s, %(now)s
                     FROM rule RETURNING id""",
                did=did,
                copies=copies,
                state=state,
            )[0][0]
        )

    def lock(self, did: int, storage: int, rule: int) -> None:
        self.run(
            """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, fill_after, created_at)
               SELECT id, %(storage)s, %(rule)s, greatest(files, 1), size_bytes, NULL, %(now)s
                 FROM did WHERE id = %(did)s""",
            did=did,
            storage=storage,
            rule=rule,
        )

    def path(self, file: int, storage: int) -> Path:
        """Where the replica's bytes are."""
        name = self.one("SELECT name FROM did WHERE id = %(id)s", id=file)
        return Path(self.refs[storage].prefix, derived_path("demo", name))

    def state(self, file: int, storage: int) -> str | None:
        sql = "SELECT state FROM replica WHERE did_id = %(file)s AND storage_id = %(storage)s"
        found = self.rows(sql, file=file, storage=storage)
        return found[0][0] if found else None

    def replica(self, file: int, storage: int) -> dict[str, Any]:
        sql = "SELECT to_jsonb(r) FROM replica r WHERE did_id = %(file)s AND storage_id = %(storage)s"
        return dict(self.one(sql, file=file, storage=storage))

    def used(self, storage: int) -> tuple[int, int]:
        """(files, bytes) that the storage's usage says."""
        return self.rows("SELECT used_files, used_bytes FROM storage_usage WHERE storage_id = %(id)s", id=storage)[0]

    def changes(self, kind: str) -> list[tuple[int, list[int]]]:
        return self.rows("SELECT storage_id, file_ids FROM change WHERE kind = %(kind)s ORDER BY id", kind=kind)

    def events(self, action: str) -> list[dict[str, Any]]:
        return [row[0] for row in self.rows("SELECT after FROM event WHERE action = %(a)s ORDER BY id", a=action)]

    def unmount(self, storage: int) -> Path:
        """Take the storage's root away; where it is kept meanwhile."""
        kept = self.root / f"kept-{storage}"
        shutil.move(self.refs[storage].prefix, kept)
        return kept

    def mount(self, storage: int) -> None:
        shutil.move(self.root / f"kept-{storage}", self.refs[storage].prefix)

    def advance(self, seconds: float) -> None:
        self.database.clock.moment += timedelta(seconds=seconds)  # type: ignore[attr-defined]
