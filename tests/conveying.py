"""A small world for the conveyor's tests: storages on real directories, files, rules, requests."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from dlm.config import Settings
from dlm.daemons.conveyor import Conveyor
from dlm.db import storages as storage_rows
from dlm.db.engine import Database, Tx
from dlm.did import derived_path, derived_paths
from dlm.protocols import open_protocol
from dlm.types import ProtocolRef

SETTINGS = Settings(conveyor_threads=2, conveyor_lease_s=300, conveyor_batch=500)


class Yard:
    """Storages, files and requests; every method that writes is one transaction."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database = database
        self.root = root
        self.refs: dict[int, ProtocolRef] = {}
        with database.begin("yard") as tx:
            tx.run("INSERT INTO account (name, kind, created_at) VALUES ('me', 'person', %(now)s)")
            tx.run("INSERT INTO scope (name, account_id, created_at) VALUES ('demo', 1, %(now)s)")
            tx.run("INSERT INTO expression (canonical) VALUES ('*')")

    def storage(self, name: str, site: str = "perth", country: str = "AU") -> int:
        """A storage on an empty directory with its marker."""
        with self.database.begin("yard") as tx:
            tx.run(
                """INSERT INTO site (name, country, created_at) VALUES (%(site)s, %(country)s, %(now)s)
                   ON CONFLICT DO NOTHING""",
                site=site,
                country=country,
            )
            storage_id = tx.scalar(
                """INSERT INTO storage (name, site_id, created_at)
                   SELECT %(name)s, id, %(now)s FROM site WHERE name = %(site)s RETURNING id""",
                name=name,
                site=site,
            )
            tx.run("INSERT INTO storage_usage (storage_id) VALUES (%(id)s)", id=storage_id)
            tx.run(
                "INSERT INTO protocol (storage_id, scheme, prefix) VALUES (%(id)s, 'posix', %(prefix)s)",
                id=storage_id,
                prefix=str(self.root / name),
            )
            ref = storage_rows.protocols(tx, [storage_id])[storage_id]
        open_protocol(ref).claim(ref.storage_uuid, create_root=True)
        self.refs[storage_id] = ref
        return storage_id

    def files(self, contents: Collection[bytes], prefix: str = "f", checksums: bool = True) -> list[int]:
        """Files of the catalogue, with these contents, on no storage."""
        digests = [f"{zlib.adler32(content):08x}" if checksums else None for content in contents]
        with self.database.begin("yard") as tx:
            rows = tx.rows(
                """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, created_at)
                   SELECT 1, 'file', %(prefix)s || n, 1, size_bytes, 1, adler32, %(now)s
                     FROM unnest(%(sizes)s::bigint[], %(digests)s::text[]) WITH ORDINALITY AS f (size_bytes, adler32, n)
                    ORDER BY n RETURNING id""",
                prefix=prefix,
                sizes=[len(content) for content in contents],
                digests=digests,
            )
        return [row.id for row in rows]

    def replicas(self, dids: Sequence[int], storage_id: int, state: str = "available") -> None:
        """Rows that say the files are there."""
        with self.database.begin("yard") as tx:
            tx.run(
                """WITH put AS (
                       INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at,
                                            next_check_at)
                       SELECT id, %(storage)s, %(state)s::replica_state, size_bytes, %(now)s,
                              CASE WHEN %(state)s = 'available' THEN %(now)s::timestamptz END,
                              CASE WHEN %(state)s = 'available' THEN %(now)s + interval '30 days' END
                         FROM did WHERE id = ANY (%(dids)s::bigint[]) RETURNING size_bytes)
                   UPDATE storage_usage SET used_bytes = used_bytes + (SELECT sum(size_bytes) FROM put),
                                            used_files = used_files + (SELECT count(*) FROM put)
                    WHERE storage_id = %(storage)s AND %(state)s <> 'lost'""",
                dids=list(dids),
                storage=storage_id,
                state=state,
            )

    def put(self, dids: Sequence[int], contents: Sequence[bytes], storage_id: int, prefix: str = "f") -> None:
        """Real bytes below the storage's root, for files of `files(prefix)` numbered from 1."""
        paths = derived_paths("demo", [f"{prefix}{number}" for number in range(1, len(dids) + 1)])
        for path, content in zip(paths, contents, strict=True):
            target = Path(self.refs[storage_id].prefix, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def stored(self, contents: Sequence[bytes], storage_id: int, prefix: str = "f", **files: Any) -> list[int]:
        """Files that are at the storage, in the catalogue and in truth."""
        dids = self.files(contents, prefix, **files)
        self.put(dids, contents, storage_id, prefix)
        self.replicas(dids, storage_id)
        return dids

    def wish(self, dids: Sequence[int], storage_id: int, priority: int = 3, source_ids: list[int] | None = None) -> int:
        """A rule with a lock on each file at the storage, its replicas and requests; the rule's id."""
        with self.database.begin("yard") as tx:
            expression = self._expression(tx, source_ids)
            rule = tx.scalar(
                """INSERT INTO rule (did_id, account_id, copies, expression_id, source_expression_id, created_at,
                                     state_since)
                   VALUES (%(did)s, 1, (SELECT count(*) + 1 FROM rule), 1, %(expression)s, %(now)s, %(now)s)
                   RETURNING id""",
                did=dids[0],
                expression=expression,
            )
            tx.run(
                """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, fill_after, created_at)
                   SELECT id, %(storage)s, %(rule)s, 1, size_bytes, NULL, %(now)s
                     FROM did WHERE id = ANY (%(dids)s::bigint[])""",
                dids=list(dids),
                storage=storage_id,
                rule=rule,
            )
        self.request(dids, storage_id, priority)
        return rule

    @staticmethod
    def _expression(tx: Tx, source_ids: list[int] | None) -> int | None:
        if source_ids is None:
            return None
        return tx.scalar(
            "INSERT INTO expression (canonical, storage_ids) VALUES (%(text)s, %(ids)s::int[]) RETURNING id",
            text=f"sources {source_ids}",
            ids=source_ids,
        )

    def request(self, dids: Sequence[int], storage_id: int, priority: int = 3) -> None:
        """Copying replicas and queued requests, with their bytes reserved, held by no lock."""
        with self.database.begin("yard") as tx:
            tx.run(
                """WITH made AS (
                       INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
                       SELECT id, %(storage)s, 'copying', size_bytes, %(now)s
                         FROM did WHERE id = ANY (%(dids)s::bigint[])
                       RETURNING did_id, size_bytes),
                   asked AS (
                       INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
                       SELECT did_id, %(storage)s, size_bytes, %(now)s, %(now)s, %(priority)s FROM made ORDER BY did_id)
                   UPDATE storage_usage SET reserved_bytes = reserved_bytes + (SELECT sum(size_bytes) FROM made)
                    WHERE storage_id = %(storage)s""",
                dids=list(dids),
                storage=storage_id,
                priority=priority,
            )

    def conveyor(self, stop: Callable[[], bool] = lambda: False, **settings: Any) -> Conveyor:
        values = {name: getattr(SETTINGS, name) for name in SETTINGS.__slots__} | settings
        return Conveyor(self.database, Settings(**values), stop)

    def run(self, sql: str, **values: Any) -> None:
        with self.database.begin("yard") as tx:
            tx.run(sql, **values)

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.database.begin("yard") as tx:
            return [tuple(row) for row in tx.rows(sql, **values)]

    def row(self, sql: str, **values: Any) -> tuple[Any, ...]:
        (row,) = self.rows(sql, **values)
        return row

    def path(self, storage_id: int, name: str) -> Path:
        return Path(self.refs[storage_id].prefix, derived_path("demo", name))

    def found(self, storage_id: int) -> int:
        """How many files of dlm's are really there."""
        return sum(1 for _ in open_protocol(self.refs[storage_id]).list())

    def temporaries(self, storage_id: int) -> list[str]:
        directory = Path(self.refs[storage_id].prefix, ".dlm-tmp")
        return sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []

    def check(self) -> None:
        """What holds in every world: usage is the sum of its rows, and a request's replica is copying."""
        wrong = self.rows(
            """SELECT u.storage_id, u.reserved_bytes, u.used_bytes, u.used_files, r.* FROM storage_usage u
                 JOIN LATERAL (SELECT coalesce(sum(size_bytes) FILTER (WHERE state = 'copying'), 0) AS reserved,
                                      coalesce(sum(size_bytes)
                                               FILTER (WHERE state NOT IN ('copying', 'lost')), 0) AS used,
                                      count(*) FILTER (WHERE state NOT IN ('copying', 'lost')) AS files
                                 FROM replica WHERE storage_id = u.storage_id) r ON true
                WHERE (u.reserved_bytes, u.used_bytes, u.used_files) IS DISTINCT FROM (r.reserved, r.used, r.files)"""
        )
        assert wrong == []
        assert self.rows(
            """SELECT * FROM request q FULL JOIN (SELECT did_id, storage_id FROM replica WHERE state = 'copying') r
                      USING (did_id, storage_id) WHERE q.id IS NULL OR r.did_id IS NULL"""
        ) == []  # fmt: skip
