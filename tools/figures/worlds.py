"""Catalogues to measure on, made with plain SQL: no files on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from dlm import config
from dlm.core import rules, sites, storages
from dlm.core.storages import NewProtocol, NewStorage
from dlm.daemons.judge import Judge
from dlm.db.engine import Database, Tx
from dlm.rooted import MARKER
from dlm.types import Identity
from figures.measuring import Place, World

SMALL_BYTES = 1 << 20  # content is written for files up to here only
ACTOR = Identity(1, "bench", frozenset({"admin"}))


def base(tx: Tx, storages: int = 4, site_number: int = 2) -> None:
    """An account, a scope, sites and `storages` storages of different weights, plus `origin` as the last."""
    person(tx)
    tx.run(
        """INSERT INTO site (name, country, created_at)
           SELECT 'site' || i, CASE i %% 3 WHEN 0 THEN 'AU' WHEN 1 THEN 'CH' ELSE 'ZA' END, %(now)s
             FROM generate_series(1, %(n)s) i""",
        n=site_number,
    )
    tx.run(
        """INSERT INTO storage (name, site_id, type, attributes, created_at)
           SELECT 's' || i, 1 + i %% %(sites)s, 'disk', jsonb_build_object('share', (1 + i %% 5)::text), %(now)s
             FROM generate_series(1, %(n)s) i
           UNION ALL SELECT 'origin', 1, 'source', '{}', %(now)s""",
        n=storages,
        sites=site_number,
    )
    tx.run("INSERT INTO storage_usage (storage_id) SELECT id FROM storage")


def person(tx: Tx) -> None:
    tx.run("INSERT INTO account (name, kind, roles, created_at) VALUES ('bench', 'service', '{admin}', %(now)s)")
    tx.run("INSERT INTO scope (name, account_id, created_at) VALUES ('bench', 1, %(now)s)")


def on_disk(tx: Tx, directory: Path, number: int = 2) -> None:
    """The same account and scope, and storages s1, s2 … and `origin` on directories below `directory`/files."""
    person(tx)
    for name in [*(f"s{i}" for i in range(1, number + 1)), "origin"]:
        sites.add_site(tx, f"site-{name}")
        root = directory / "files" / name
        root.mkdir(parents=True, exist_ok=True)
        kind = "source" if name == "origin" else "disk"
        new = NewStorage(name, f"site-{name}", [NewProtocol("posix", str(root))], type=kind)
        storages.finish_adding(tx, storages.begin_adding(tx, new), None)  # `take_roots` puts the markers there


def take_roots(place: Place) -> None:
    """Make the storages' directories anew, empty, with their markers."""
    with place.database.begin("bench.roots") as tx:
        for row in tx.rows("SELECT s.name, s.uuid, p.prefix FROM storage s JOIN protocol p ON p.storage_id = s.id"):
            root = Path(row.prefix)
            root.mkdir(parents=True, exist_ok=True)
            (root / MARKER).write_text(json.dumps({"id": row.uuid, "name": row.name}) + "\n")


def write_files(root: Path, paths: Sequence[str], content: bytes) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def declare(database: Database, did: str, copies: int, on: str) -> str:
    """The id of a new rule."""
    with database.begin("bench.declare", ACTOR) as tx:
        return rules.declare(tx, [rules.Declaration(did, copies, on)])[0].id


def judge_all(database: Database, **settings: object) -> None:
    """Run the judge until nothing is due."""
    judge = Judge(database, config.load(None, {}, {name: str(value) for name, value in settings.items()}))
    done = judge.run_once()
    while done.is_full or done.counts:  # what one pass did may be what the next has to look at
        done = judge.run_once()


def files(tx: Tx, number: int, dataset: str = "ds", at: str | None = "origin", size_bytes: int = 1000) -> None:
    """`number` files of one size and content in a dataset, with a verified replica at `at`."""
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, adler32, created_at)
           SELECT 1, 'file', %(ds)s || '.' || i, 1, %(size)s, 1, %(adler32)s, %(now)s
             FROM generate_series(1, %(n)s) i""",
        ds=dataset,
        size=size_bytes,
        adler32=f"{zlib.adler32(b'x' * min(size_bytes, SMALL_BYTES)):08x}",
        n=number,
    )
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, created_at)
           VALUES (1, 'dataset', %(ds)s, 1, %(size)s::bigint * %(n)s, %(n)s, %(now)s)""",
        ds=dataset,
        size=size_bytes,
        n=number,
    )
    tx.run(
        """INSERT INTO attachment (parent_id, child_id, size_bytes)
           SELECT (SELECT id FROM did WHERE name = %(ds)s), id, size_bytes
             FROM did WHERE kind = 'file' AND name LIKE %(ds)s || '.%%' ORDER BY did.id""",
        ds=dataset,
    )
    if at is not None:
        replicas(tx, dataset, at, size_bytes)


def replicas(tx: Tx, dataset: str, at: str, size_bytes: int = 1000) -> None:
    """Verified replicas of the dataset's files at a storage."""
    tx.run(
        """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, verified_at, next_check_at)
           SELECT child_id, (SELECT id FROM storage WHERE name = %(at)s), 'available', %(size)s, %(now)s, %(now)s,
                  %(now)s + interval '30 days'
             FROM attachment WHERE parent_id = (SELECT id FROM did WHERE name = %(ds)s) ORDER BY child_id""",
        at=at,
        ds=dataset,
        size=size_bytes,
    )
    tx.run(
        """UPDATE storage_usage SET used_files = n, used_bytes = n * %(size)s::bigint
             FROM (SELECT count(*) AS n FROM replica r JOIN storage s ON s.id = r.storage_id WHERE s.name = %(at)s) r
            WHERE storage_id = (SELECT id FROM storage WHERE name = %(at)s)""",
        at=at,
        size=size_bytes,
    )


def dataset_at_origin(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        base(tx)
        files(tx, place.size)


AT_ORIGIN = World("a dataset at origin", dataset_at_origin)


def count(tx: Tx) -> None:
    """Write every storage's usage from its replicas."""
    tx.run(
        """UPDATE storage_usage u SET used_files = n.files, used_bytes = n.used, reserved_bytes = n.reserved
             FROM (SELECT s.id, count(r.did_id) FILTER (WHERE r.state <> 'copying') AS files,
                          coalesce(sum(r.size_bytes) FILTER (WHERE r.state <> 'copying'), 0) AS used,
                          coalesce(sum(r.size_bytes) FILTER (WHERE r.state = 'copying'), 0) AS reserved
                     FROM storage s LEFT JOIN replica r ON r.storage_id = s.id GROUP BY s.id) n
            WHERE n.id = u.storage_id"""
    )


def arrive(tx: Tx) -> None:
    """Every copy under way arrives, as a conveyor records it in batches of 500."""
    arrive_between(tx, 0, 2**62)
    count(tx)


def arrive_between(tx: Tx, first_id: int, last_id: int) -> None:
    """The same for files of these ids, without the storages' usage."""
    span = {"first": first_id, "last": last_id}
    tx.run("DELETE FROM request WHERE did_id BETWEEN %(first)s AND %(last)s", **span)
    tx.run(
        """WITH arrived AS (
                UPDATE replica SET state = 'available', verified_at = %(now)s,
                       next_check_at = %(now)s + interval '30 days'
                 WHERE state = 'copying' AND did_id BETWEEN %(first)s AND %(last)s RETURNING did_id, storage_id),
            batched AS (
                SELECT did_id, storage_id, row_number() OVER (PARTITION BY storage_id ORDER BY did_id) / 500 AS batch
                  FROM arrived)
           INSERT INTO change (kind, storage_id, file_ids, created_at)
           SELECT 'arrived', storage_id, array_agg(did_id ORDER BY did_id), %(now)s
             FROM batched GROUP BY storage_id, batch""",
        **span,
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 of what was measured."""
    ordered = sorted(seconds)
    return {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 99)}
