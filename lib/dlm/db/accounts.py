"""Accounts, their tokens and limits, and the scopes they own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx

_ACCOUNT = "id, name, kind, email, roles, created_at, closed_at"
_TOKEN = "id, account_id, label, created_at, expires_at, revoked_at"


def insert(tx: Tx, name: str, kind: str, email: str | None, roles: Sequence[str]) -> Row[Any] | None:
    """The new account, None when the name is taken; one statement."""
    return tx.one(
        f"""INSERT INTO account (name, kind, email, roles, created_at)
            VALUES (%(name)s, %(kind)s, %(email)s, %(roles)s::text[], %(now)s)
            ON CONFLICT (name) DO NOTHING RETURNING {_ACCOUNT}""",
        name=name,
        kind=kind,
        email=email,
        roles=sorted(set(roles)),
    )


def get(tx: Tx, name: str) -> Row[Any] | None:
    """The account, closed or not; one statement."""
    return tx.one(f"SELECT {_ACCOUNT} FROM account WHERE name = %(name)s", name=name)


def list_page(tx: Tx, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` accounts by name, after the name `after`; one statement."""
    return tx.rows(
        f"SELECT {_ACCOUNT} FROM account WHERE name > %(after)s ORDER BY name LIMIT %(limit)s", after=after, limit=limit
    )


def hold(tx: Tx, name: str) -> Row[Any] | None:
    """The account, its row locked; one statement."""
    return tx.one(f"SELECT {_ACCOUNT} FROM account WHERE name = %(name)s FOR UPDATE", name=name)


def update(
    tx: Tx, account_id: int, email: str | None, roles: Sequence[str], closed_at: datetime | None
) -> Row[Any] | None:
    """The account with these values; one statement."""
    return tx.one(
        f"""UPDATE account SET email = %(email)s, roles = %(roles)s::text[], closed_at = %(closed_at)s
             WHERE id = %(id)s RETURNING {_ACCOUNT}""",
        id=account_id,
        email=email,
        roles=sorted(set(roles)),
        closed_at=closed_at,
    )


# ------------------------------------------------------------------------------------------------------ tokens


def insert_token(tx: Tx, account_id: int, digest: bytes, label: str, expires_at: datetime | None) -> Row[Any]:
    """The new token's row; one statement."""
    row = tx.one(
        f"""INSERT INTO token (account_id, hash, label, created_at, expires_at)
            VALUES (%(account_id)s, %(hash)s, %(label)s, %(now)s, %(expires_at)s) RETURNING {_TOKEN}""",
        account_id=account_id,
        hash=digest,
        label=label,
        expires_at=expires_at,
    )
    assert row is not None
    return row


def holder(tx: Tx, digest: bytes) -> Row[Any] | None:
    """(id, name, roles, expires_at) of the open account whose token, neither expired nor revoked, has this hash.

    One statement.
    """
    return tx.one(
        """SELECT a.id, a.name, a.roles, t.expires_at FROM token t JOIN account a ON a.id = t.account_id
            WHERE t.hash = %(hash)s AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > %(now)s)
              AND a.closed_at IS NULL""",
        hash=digest,
    )


def list_tokens(tx: Tx, account_id: int | None = None) -> Sequence[Row[Any]]:
    """The tokens of one account, or of all, newest first, with `account`; hashes stay here; one statement."""
    columns = ", ".join(f"t.{column}" for column in _TOKEN.split(", "))
    return tx.rows(
        f"""SELECT {columns}, a.name AS account FROM token t JOIN account a ON a.id = t.account_id
             WHERE %(account_id)s::int IS NULL OR t.account_id = %(account_id)s ORDER BY t.id DESC""",
        account_id=account_id,
    )


def revoke_token(tx: Tx, token_id: int, account_id: int | None = None) -> Row[Any] | None:
    """The token, revoked now or before; None if there is none, or the account given has none; one statement."""
    return tx.one(
        f"""UPDATE token SET revoked_at = coalesce(revoked_at, %(now)s)
             WHERE id = %(id)s AND (%(account_id)s::int IS NULL OR account_id = %(account_id)s) RETURNING {_TOKEN}""",
        id=token_id,
        account_id=account_id,
    )


# ------------------------------------------------------------------------------------------------------ scopes


def insert_scope(tx: Tx, name: str, account_id: int) -> Row[Any] | None:
    """(id, name, account_id, created_at) of the new scope, None when the name is taken; one statement."""
    return tx.one(
        """INSERT INTO scope (name, account_id, created_at) VALUES (%(name)s, %(account_id)s, %(now)s)
           ON CONFLICT (name) DO NOTHING RETURNING id, name, account_id, created_at""",
        name=name,
        account_id=account_id,
    )


def scopes(tx: Tx, names: Sequence[str]) -> dict[str, Row[Any]]:
    """(id, name, account_id, account, created_at) by name of those scopes that exist; one statement."""
    rows = tx.rows(
        """SELECT s.id, s.name, s.account_id, a.name AS account, s.created_at
             FROM scope s JOIN account a ON a.id = s.account_id WHERE s.name = ANY (%(names)s::text[])""",
        names=list(names),
    )
    return {row.name: row for row in rows}


def list_scopes(tx: Tx, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` scopes by name, after the name `after`; one statement."""
    return tx.rows(
        """SELECT s.id, s.name, s.account_id, a.name AS account, s.created_at
             FROM scope s JOIN account a ON a.id = s.account_id
            WHERE s.name > %(after)s ORDER BY s.name LIMIT %(limit)s""",
        after=after,
        limit=limit,
    )


# ------------------------------------------------------------------------------------------------------ limits


def set_limit(tx: Tx, account_id: int, storage_id: int, limit_bytes: int | None) -> int | None:
    """Set what the account may be charged at the storage (None: no limit); the limit before; one statement."""
    return tx.scalar(
        """WITH before AS (SELECT limit_bytes FROM account_usage
                            WHERE account_id = %(account_id)s AND storage_id = %(storage_id)s),
                done AS (INSERT INTO account_usage (account_id, storage_id, limit_bytes)
                         VALUES (%(account_id)s, %(storage_id)s, %(limit_bytes)s)
                         ON CONFLICT (account_id, storage_id) DO UPDATE SET limit_bytes = excluded.limit_bytes)
           SELECT limit_bytes FROM before""",
        account_id=account_id,
        storage_id=storage_id,
        limit_bytes=limit_bytes,
    )
