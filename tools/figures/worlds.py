"""Catalogues to measure on, made with plain SQL: no files on disk."""

from __future__ import annotations

from dlm.db.engine import Database, Tx
from dlm.types import Identity

ACTOR = Identity(1, "bench", frozenset({"admin"}))


def base(tx: Tx, storages: int = 4) -> None:
    """An account, a scope, two sites and `storages` storages, plus `origin` as the last."""
    tx.run("INSERT INTO account (name, kind, roles, created_at) VALUES ('bench', 'service', '{admin}', %(now)s)")
    tx.run("INSERT INTO scope (name, account_id, created_at) VALUES ('bench', 1, %(now)s)")
    tx.run("INSERT INTO site (name, country, created_at) VALUES ('perth', 'AU', %(now)s), ('bern', 'CH', %(now)s)")
    tx.run(
        """INSERT INTO storage (name, site_id, type, created_at)
           SELECT 's' || i, 1 + i %% 2, 'disk', %(now)s FROM generate_series(1, %(n)s) i
           UNION ALL SELECT 'origin', 1, 'source', %(now)s""",
        n=storages,
    )
    tx.run("INSERT INTO storage_usage (storage_id) SELECT id FROM storage")


def files(tx: Tx, number: int, dataset: str = "ds", at: str | None = "origin") -> None:
    """`number` files of 1,000 bytes in a dataset, with a verified replica at `at`."""
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, created_at)
           SELECT 1, 'file', %(ds)s || '.' || i, 1, 1000, 1, '00000001', %(now)s FROM generate_series(1, %(n)s) i""",
        ds=dataset,
        n=number,
    )
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
           VALUES (1, 'dataset', %(ds)s, 1, 1000::bigint * %(n)s, %(n)s, %(now)s)""",
        ds=dataset,
        n=number,
    )
    tx.run(
        """INSERT INTO attachment (parent_id, child_id, size_bytes)
           SELECT (SELECT id FROM did WHERE name = %(ds)s), id, 1000 FROM did WHERE kind = 'file' AND name LIKE %(ds)s || '.%%' ORDER BY did.id""",
        ds=dataset,
    )
    if at is not None:
        replicas(tx, dataset, at)


def replicas(tx: Tx, dataset: str, at: str) -> None:
    """Verified replicas of the dataset's files at a storage."""
    tx.run(
        """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at)
           SELECT child_id, (SELECT id FROM storage WHERE name = %(at)s), 'available', 1000, %(now)s, %(now)s, %(now)s + interval '30 days'
             FROM attachment WHERE parent_id = (SELECT id FROM did WHERE name = %(ds)s) ORDER BY child_id""",
        at=at,
        ds=dataset,
    )
    tx.run(
        """UPDATE storage_usage SET used_files = n, used_bytes = n * 1000
             FROM (SELECT count(*) AS n FROM replica r JOIN storage s ON s.id = r.storage_id WHERE s.name = %(at)s) r
            WHERE storage_id = (SELECT id FROM storage WHERE name = %(at)s)""",
        at=at,
    )


def dataset_at_origin(database: Database, number: int) -> None:
    with database.begin("bench.prepare") as tx:
        base(tx)
        files(tx, number)
