"""The append-only record of what happened: audit, outbox, and what `why` reads. Written in the transaction of the fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx, json


def record(
    tx: Tx,
    object_: str,
    object_id: int,
    action: str,
    *,
    cause: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write one event by the transaction's actor; one statement."""
    record_many(tx, object_, action, [(object_id, before, after)], cause=cause)


def record_many(
    tx: Tx,
    object_: str,
    action: str,
    rows: Sequence[tuple[int, Mapping[str, Any] | None, Mapping[str, Any] | None]],
    *,
    cause: str | None = None,
    request_ids: Sequence[str] | None = None,
) -> None:
    """Write one event per (object id, before, after), each under its request id, else the actor's; at most one statement."""
    if not rows:
        return
    tx.run(
        """INSERT INTO event (at, object, object_id, action, actor, request_id, cause, before, after)
           SELECT %(now)s, %(object)s, id, %(action)s, %(actor)s, coalesce(request_id, %(request_id)s), %(cause)s, before,
                  after
             FROM unnest(%(ids)s::bigint[], %(befores)s::jsonb[], %(afters)s::jsonb[], %(request_ids)s::text[])
                  AS e (id, before, after, request_id)""",
        object=object_,
        action=action,
        actor=tx.actor.account,
        request_id=tx.actor.request_id or None,
        cause=cause,
        ids=[row[0] for row in rows],
        request_ids=None if request_ids is None else list(request_ids),
        befores=[json(row[1]) for row in rows],
        afters=[json(row[2]) for row in rows],
    )


def list_for(tx: Tx, object_: str, object_id: int, limit: int = 100, before_id: int | None = None) -> Sequence[Row[Any]]:
    """The newest events of one object, newest first; one statement."""
    return tx.rows(
        """SELECT id, at, object, object_id, action, actor, request_id, cause, before, after
             FROM event
            WHERE object = %(object)s AND object_id = %(object_id)s AND (%(before_id)s::bigint IS NULL OR id < %(before_id)s)
            ORDER BY at DESC, id DESC LIMIT %(limit)s""",
        object=object_,
        object_id=object_id,
        limit=limit,
        before_id=before_id,
    )


def list_page(
    tx: Tx,
    object_: str | None,
    object_id: int | None,
    actor: str | None,
    only_account: int | None,
    before_id: int | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """At most `limit` events, newest first, before that id, of an object or an actor if given; one statement.

    With `only_account`, events of other accounts are left out; what happened to other things is not.
    `name` is what people call the object, null where it has none.
    """
    return tx.rows(
        """SELECT e.id, e.at, e.object, e.object_id, CASE e.object
                    WHEN 'storage' THEN (SELECT name FROM storage WHERE id = e.object_id)
                    WHEN 'rule' THEN (SELECT uuid::text FROM rule WHERE id = e.object_id)
                    WHEN 'did' THEN (SELECT s.name || ':' || d.name FROM did d JOIN scope s ON s.id = d.scope_id
                                      WHERE d.id = e.object_id)
                    WHEN 'site' THEN (SELECT name FROM site WHERE id = e.object_id)
                    WHEN 'secret' THEN (SELECT name FROM secret WHERE id = e.object_id)
                    WHEN 'scope' THEN (SELECT name FROM scope WHERE id = e.object_id)
                    WHEN 'account' THEN (SELECT name FROM account WHERE id = e.object_id) END AS name,
                  e.action, e.actor, e.request_id, e.cause, e.before, e.after
             FROM (SELECT * FROM event
            WHERE (%(before_id)s::bigint IS NULL OR id < %(before_id)s)
              AND (%(object)s::text IS NULL OR object = %(object)s)
              AND (%(object_id)s::bigint IS NULL OR object_id = %(object_id)s)
              AND (%(only_account)s::int IS NULL OR object <> 'account' OR object_id = %(only_account)s)
              AND (%(actor)s::text IS NULL OR actor = %(actor)s)
            ORDER BY id DESC LIMIT %(limit)s) e ORDER BY e.id DESC""",
        object=object_,
        object_id=object_id,
        actor=actor,
        only_account=only_account,
        before_id=before_id,
        limit=limit,
    )
