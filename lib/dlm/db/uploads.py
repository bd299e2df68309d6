"""A user's own bytes on their way in: a request that a web process holds, instead of a conveyor."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx
from dlm.types import Checksums

ACTIVITY = "upload"


def ensure_file(tx: Tx, scope: str, name: str, size_bytes: int, account_id: int | None) -> None:
    """Make the file's DID where there is none of this name, without digests: the bytes will tell. One statement."""
    tx.run(
        """INSERT INTO did (scope_id, kind, name, account_id, size_bytes, files, is_open, created_at)
           SELECT id, 'file', %(name)s, coalesce(%(account)s, account_id), %(size)s, 1, false, %(now)s
             FROM scope WHERE name = %(scope)s
           ON CONFLICT (scope_id, name) DO NOTHING""",
        scope=scope,
        name=name,
        size=size_bytes,
        account=account_id,
    )


def begin(tx: Tx, did_id: int, storage_id: int, size_bytes: int, lease_s: float) -> Row[Any] | None:
    """(id, fence) of the request under a lease, with its copying replica; None when a replica is there; one statement.

    It is born cancelled: when its web process dies, the lease ends and a conveyor asks the storage what is there, as
    for every cancelled request. A rule that wants the file meanwhile takes the flag away, as from every other one.
    """
    return tx.one(
        """WITH made AS (
               INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at, claimed_until, fence)
               VALUES (%(did)s, %(storage)s, 'copying', %(size)s, %(now)s,
                       %(now)s + make_interval(secs => %(lease_s)s), 1)
               ON CONFLICT DO NOTHING RETURNING did_id, storage_id, size_bytes, claimed_until)
           INSERT INTO request (did_id, storage_id, state, size_bytes, created_at, next_attempt_at, claimed_until,
                                fence, attempts, priority, activity, is_cancelled)
           SELECT did_id, storage_id, 'active', size_bytes, %(now)s, %(now)s, claimed_until, 1, 1, 3, %(activity)s, true
             FROM made RETURNING id, fence""",
        did=did_id,
        storage=storage_id,
        size=size_bytes,
        lease_s=lease_s,
        activity=ACTIVITY,
    )


def extend(tx: Tx, request_id: int, fence: int, lease_s: float) -> bool:
    """True when the lease was still ours, and is longer now; one statement."""
    done = tx.run(
        """WITH held AS (UPDATE request SET claimed_until = %(now)s + make_interval(secs => %(lease_s)s)
                          WHERE id = %(id)s AND fence = %(fence)s AND state = 'active'
                      RETURNING did_id, storage_id, claimed_until)
           UPDATE replica r SET claimed_until = held.claimed_until FROM held
            WHERE r.did_id = held.did_id AND r.storage_id = held.storage_id""",
        id=request_id,
        fence=fence,
        lease_s=lease_s,
    )
    return done.rowcount == 1


def keep(tx: Tx, request_id: int, fence: int) -> None:
    """Take the flag away from a request that is still ours: the file is there, and stays; one statement."""
    tx.run(
        "UPDATE request SET is_cancelled = false WHERE id = %(id)s AND fence = %(fence)s AND state = 'active'",
        id=request_id,
        fence=fence,
    )


def learn(tx: Tx, did_id: int, found: Checksums) -> Checksums:
    """What was known of the file's digests; those that were not are kept now. Two statements."""
    row = tx.one("SELECT adler32, md5, sha256 FROM did WHERE id = %(id)s FOR UPDATE", id=did_id)
    assert row is not None  # nothing deletes a DID's row
    tx.run(
        """UPDATE did SET adler32 = coalesce(adler32, %(adler32)s::text), md5 = coalesce(md5, %(md5)s::text),
                          sha256 = coalesce(sha256, %(sha256)s::text) WHERE id = %(id)s""",
        id=did_id,
        adler32=found.adler32,
        md5=found.md5,
        sha256=found.sha256,
    )
    return Checksums(*row)
