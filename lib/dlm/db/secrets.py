"""Secrets: their rows, whose values only core/credentials.py and core/secrets.py can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx
from dlm.vault import Sealed

_COLUMNS = """s.id, s.name, a.name AS owner, s.keys, s.version, s.key_id, s.created_at, s.set_at, s.rotated_at,
              ARRAY(SELECT DISTINCT t.name FROM protocol p JOIN storage t ON t.id = p.storage_id
                     WHERE p.credentials = s.name AND t.deleted_at IS NULL ORDER BY 1) AS storages"""
_FROM = "secret s LEFT JOIN account a ON a.id = s.account_id"


def insert(tx: Tx, name: str, keys: Iterable[str], sealed: Sealed) -> int | None:
    """The id of the new secret of the transaction's actor; None when there is one of that name; one statement."""
    return tx.scalar(
        """INSERT INTO secret (name, account_id, keys, version, key_id, ciphertext, created_at, set_at)
           VALUES (%(name)s, %(account_id)s, %(keys)s::text[], 1, %(key_id)s, %(ciphertext)s, %(now)s, %(now)s)
           ON CONFLICT (name) DO NOTHING RETURNING id""",
        name=name,
        account_id=tx.actor.account_id,
        keys=list(keys),
        key_id=sealed.key_id,
        ciphertext=sealed.ciphertext,
    )


def get(tx: Tx, name: str) -> Row[Any] | None:
    """What may be told of the secret, with the storages that name it; one statement."""
    return tx.one(f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name = %(name)s", name=name)


def list_page(tx: Tx, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` secrets by name, after the name `after`; one statement."""
    return tx.rows(
        f"SELECT {_COLUMNS} FROM {_FROM} WHERE s.name > %(after)s ORDER BY s.name LIMIT %(limit)s",
        after=after,
        limit=limit,
    )


def hold(tx: Tx, name: str) -> bool:
    """Lock the secret to change or remove it; False when there is none; one statement."""
    return tx.one("SELECT FROM secret WHERE name = %(name)s FOR UPDATE", name=name) is not None


def keep(tx: Tx, name: str) -> bool:
    """Lock the secret against being changed or removed, while a storage comes to name it; one statement."""
    return tx.one("SELECT FROM secret WHERE name = %(name)s FOR SHARE", name=name) is not None


def update(tx: Tx, secret_id: int, keys: Iterable[str], sealed: Sealed) -> None:
    """Set the values anew; one statement."""
    tx.run(
        """UPDATE secret SET keys = %(keys)s::text[], key_id = %(key_id)s, ciphertext = %(ciphertext)s,
                             version = version + 1, set_at = %(now)s, rotated_at = NULL
            WHERE id = %(id)s""",
        id=secret_id,
        keys=list(keys),
        key_id=sealed.key_id,
        ciphertext=sealed.ciphertext,
    )


def delete(tx: Tx, secret_id: int) -> None:
    """Remove the secret; one statement. Its row goes: nothing else refers to it, and its values have no other use."""
    tx.run("DELETE FROM secret WHERE id = %(id)s", id=secret_id)


def users(tx: Tx, name: str) -> Sequence[Row[Any]]:
    """(storage, scheme) of the protocols that name the secret, of storages that are not retired; one statement."""
    return tx.rows(
        """SELECT s.name AS storage, p.scheme FROM protocol p JOIN storage s ON s.id = p.storage_id
            WHERE p.credentials = %(name)s AND s.deleted_at IS NULL ORDER BY s.name, p.scheme""",
        name=name,
    )


def sealed(tx: Tx, names: Iterable[str]) -> dict[str, tuple[int, Sealed]]:
    """(version, encrypted values) of these secrets by name; one statement."""
    rows = tx.rows(
        "SELECT name, version, key_id, ciphertext FROM secret WHERE name = ANY (%(names)s::text[])",
        names=sorted(set(names)),
    )
    return {row.name: (row.version, Sealed(row.key_id, bytes(row.ciphertext))) for row in rows}


# ------------------------------------------------------------------------------------------------------ rotating


def count_by_key(tx: Tx) -> dict[str, int]:
    """How many secrets are encrypted under each key, by its id; one statement."""
    return {row.key_id: row.secrets for row in tx.rows("SELECT key_id, count(*) AS secrets FROM secret GROUP BY 1")}


def hold_old(tx: Tx, key_ids: Iterable[str], after: int, limit: int) -> Sequence[Row[Any]]:
    """(id, name, key_id, ciphertext) of `limit` secrets under these keys, ids beyond `after`, locked; one statement."""
    return tx.rows(
        """SELECT id, name, key_id, ciphertext FROM secret
            WHERE key_id = ANY (%(key_ids)s::text[]) AND id > %(after)s ORDER BY id LIMIT %(limit)s FOR UPDATE""",
        key_ids=list(key_ids),
        after=after,
        limit=limit,
    )


def reseal(tx: Tx, fresh: Mapping[int, Sealed]) -> None:
    """Set the encrypted values of these secrets, whose rows are held; the values are as they were; one statement."""
    tx.run(
        """UPDATE secret s SET key_id = f.key_id, ciphertext = f.ciphertext, rotated_at = %(now)s
             FROM unnest(%(ids)s::int[], %(key_ids)s::text[], %(ciphertexts)s::bytea[]) AS f (id, key_id, ciphertext)
            WHERE s.id = f.id""",
        ids=list(fresh),
        key_ids=[one.key_id for one in fresh.values()],
        ciphertexts=[one.ciphertext for one in fresh.values()],
    )
