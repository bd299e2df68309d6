"""Sites: where storages stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx

_COLUMNS = "id, uuid, name, country, city, latitude, longitude, created_at, deleted_at"


def insert(tx: Tx, name: str, values: Mapping[str, Any]) -> Row[Any] | None:
    """The new site, None when the name was ever used; one statement."""
    return tx.one(
        f"""INSERT INTO site (name, country, city, latitude, longitude, created_at)
            VALUES (%(name)s, %(country)s, %(city)s, %(latitude)s, %(longitude)s, %(now)s)
            ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}""",
        name=name,
        **values,
    )


def get(tx: Tx, name: str) -> Row[Any] | None:
    """The site of that name that is not deleted; one statement."""
    return tx.one(f"SELECT {_COLUMNS} FROM site WHERE name = %(name)s AND deleted_at IS NULL", name=name)


def hold(tx: Tx, name: str) -> Row[Any] | None:
    """The site of that name that is not deleted, its row locked; one statement."""
    return tx.one(f"SELECT {_COLUMNS} FROM site WHERE name = %(name)s AND deleted_at IS NULL FOR UPDATE", name=name)


def list_page(tx: Tx, after: str = "", limit: int = 100) -> Sequence[Row[Any]]:
    """At most `limit` sites that are not deleted by name, after the name `after`; one statement."""
    return tx.rows(
        f"""SELECT {_COLUMNS} FROM site WHERE name > %(after)s AND deleted_at IS NULL ORDER BY name LIMIT %(limit)s""",
        after=after,
        limit=limit,
    )


def update(tx: Tx, site_id: int, values: Mapping[str, Any]) -> Row[Any]:
    """The site with these values; one statement."""
    row = tx.one(
        f"""UPDATE site SET country = %(country)s, city = %(city)s, latitude = %(latitude)s, longitude = %(longitude)s
             WHERE id = %(id)s RETURNING {_COLUMNS}""",
        id=site_id,
        **values,
    )
    assert row is not None
    return row


def has_storage(tx: Tx, site_id: int) -> bool:
    """True while a storage that is not deleted stands at the site; one statement."""
    return bool(
        tx.scalar("SELECT EXISTS (SELECT FROM storage WHERE site_id = %(id)s AND deleted_at IS NULL)", id=site_id)
    )


def delete(tx: Tx, site_id: int) -> None:
    """Mark the site as deleted; one statement."""
    tx.run("UPDATE site SET deleted_at = %(now)s WHERE id = %(id)s", id=site_id)
