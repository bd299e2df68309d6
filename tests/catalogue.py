"""A small catalogue for tests of single db and core modules: an account, a scope, two storages on real directories."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import accounts, dids, files, replicas, roots, sites, storages
from dlm.db.engine import Database, Tx
from dlm.types import DidKind


def fill(database: Database, root: Path) -> None:
    """Account ann with scope demo; site perth with perth-disk and perth-vault."""
    with database.begin("fill") as tx:
        accounts.add_account(tx, "ann")
        accounts.add_scope(tx, "demo", "ann")
        sites.add_site(tx, "perth", {"country": "AU"})
    for name in ("perth-disk", "perth-vault"):
        roots.add_storage(database.begin, new_storage(name, root / name))


def new_storage(name: str, root: Path, **facts: Any) -> storages.NewStorage:
    """A storage at perth on that directory."""
    return storages.NewStorage(name, "perth", [storages.NewProtocol("posix", str(root))], **facts)


def collect(tx: Tx, *names: str, kind: DidKind = DidKind.DATASET, **facts: Any) -> list[int]:
    """The ids of new collections in scope demo."""
    return dids.add_collections(tx, [dids.NewCollection("demo", name, kind, **facts) for name in names])


def columns(number: int, start: int = 0) -> files.Files:
    """Files f00000, f00001, … of 10 bytes each."""
    items = [
        {"name": f"f{index:05d}", "size_bytes": 10, "adler32": f"{index:08x}"} for index in range(start, start + number)
    ]
    return files.read(items, "demo")


def register(tx: Tx, number: int, start: int = 0, storage: str = "perth-disk", **facts: Any) -> replicas.Registered:
    """Register that many files."""
    return replicas.register(tx, storage, columns(number, start), **facts)


def refs(*names: str) -> list[dids.Ref]:
    return [("demo", name) for name in names]


def changes(tx: Tx) -> list[tuple[str, int | None, int | None, list[int] | None]]:
    """The change queue, emptied."""
    rows = tx.rows("DELETE FROM change RETURNING id, kind, did_id, storage_id, file_ids")
    return [(row.kind, row.did_id, row.storage_id, row.file_ids) for row in sorted(rows, key=lambda row: row.id)]


def last_event(tx: Tx) -> Row[Any]:
    row = tx.one("SELECT object, object_id, action, actor, before, after FROM event ORDER BY id DESC LIMIT 1")
    assert row is not None
    return row


def usage(tx: Tx, storage: str = "perth-disk") -> tuple[int, int]:
    """(used bytes, used files) of the storage, which must be what its replicas add up to."""
    row = tx.one(
        """SELECT u.used_bytes, u.used_files, coalesce(sum(r.size_bytes), 0) AS bytes, count(r.did_id) AS files
             FROM storage s JOIN storage_usage u ON u.storage_id = s.id
             LEFT JOIN replica r ON r.storage_id = s.id AND r.state IN ('available', 'unverified', 'bad', 'deleting')
            WHERE s.name = %(name)s GROUP BY u.storage_id""",
        name=storage,
    )
    assert row is not None
    assert (row.used_bytes, row.used_files) == (row.bytes, row.files)
    return row.used_bytes, row.used_files


class Beside:
    """An act in another thread, with connections of its own; `errors` says what it raised."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.errors: list[Exception] = []
        self._act = act
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._act()
        except Exception as error:  # noqa: BLE001  handed to the test, which judges it
            self.errors.append(error)

    def finish(self) -> list[type[Exception]]:
        """The kinds of its errors, when it has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return [type(error) for error in self.errors]


def wait_until_blocked(database: Database, number: int = 1) -> None:
    """Return once that many sessions of this database wait for a lock."""
    for _ in range(10_000):
        with database.begin("watch") as tx:
            waiting = tx.scalar(
                """SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
            )
        if waiting >= number:
            return
    raise AssertionError("nobody waits for a lock")
