"""Filters as SQL, and the rows that answer them.

`metadatum` has one row for each top-level key of a DID's metadata, written in the statement that writes the document. A
list, an object, null, and what has more than MAX_VALUE_CHARACTERS are there and equal nothing; true and false are
texts. The scope is the DID's, so that a condition is one range of one index; texts are in the order of code points
(COLLATE "C"), so that a prefix is a range as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from dlm.types import Condition, Query

Bind = Callable[[Any], str]  # gives the placeholder of a value

FEW = 10_000  # found in 3 ms; from more, a page by name is full soon
MAX_VALUE_CHARACTERS = 400  # with a key of 128 it fits into an index entry, whatever the characters

_CASTS: Mapping[str, str] = {"kind": "::did_kind", "created_at": "::timestamptz", "name": "::text"}
_WILD = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


def entries(source: str) -> str:
    """The SELECT of the metadatum rows that (id, scope_id, metadata) of the source stand for, in key order."""
    return f"""SELECT s.id, e.key, s.scope_id,
                      CASE WHEN v.length <= {MAX_VALUE_CHARACTERS} AND v.type = 'number' THEN v.text::numeric END,
                      CASE WHEN v.length <= {MAX_VALUE_CHARACTERS} AND v.type IN ('string', 'boolean') THEN v.text END
                 FROM {source} s
                CROSS JOIN LATERAL jsonb_each(s.metadata) AS e (key, value)
                CROSS JOIN LATERAL (SELECT jsonb_typeof(e.value), e.value #>> '{{}}', char_length(e.value #>> '{{}}'))
                           AS v (type, text, length)
                ORDER BY s.id, e.key"""


def insert_entries(source: str) -> str:
    """The INSERT of those rows, for DIDs that are new."""
    return f"INSERT INTO metadatum (did_id, key, scope_id, number, text) {entries(source)}"


def first_found(query: Query, base: str, bind: Bind) -> str:
    """The SELECT of (id, name) of the first `limit` rows `d` of did by name for which `base` and the query hold.

    PostgreSQL keeps no statistics of one key's values, and would now and then read a whole scope by name for a handful
    of DIDs. So each alternative is asked in two ways, of which one runs: where some condition holds of FEW DIDs at
    most, from those; else by the plan it prefers, as then pages by name fill fast. An alternative gives its own first
    rows, so that each has the plan that suits it.
    """
    few, branches = [], []
    for number, conditions in enumerate(query.alternatives):
        holds = " AND ".join([base, *(_holds(condition, bind) for condition in conditions)])
        narrow = _narrow(conditions)
        if not narrow:
            branches.append(_first(holds))
            continue
        found = ", ".join(f"(ARRAY({_few_entries(condition, bind)}))" for condition in narrow)
        few.append(
            f"""few{number} AS MATERIALIZED (SELECT ids FROM (VALUES {found} OFFSET 0) AS v (ids)
                 WHERE cardinality(ids) <= {FEW} ORDER BY cardinality(ids) LIMIT 1)"""
        )
        branches.append(_first(f"d.id = ANY ((SELECT ids FROM few{number})::bigint[]) AND {holds}"))
        branches.append(_first(f"NOT EXISTS (SELECT FROM few{number}) AND {holds}"))
    with_few = f"WITH {', '.join(few)} " if few else ""
    return f"{with_few}SELECT id, name FROM ({' UNION '.join(branches)}) AS first ORDER BY name LIMIT %(limit)s"


def _first(condition: str) -> str:
    return f"(SELECT d.id, d.name FROM did d WHERE {condition} ORDER BY d.name LIMIT %(limit)s)"


def _narrow(conditions: tuple[Condition, ...]) -> list[Condition]:
    """The conditions on metadata that are one range of an index; if there are none, those that filter a key's range."""
    asked = [condition for condition in conditions if not condition.is_built_in]
    ranges = [condition for condition in asked if condition.op != "!=" and not _is_infix(condition.value)]
    return ranges or asked


def _is_infix(value: object) -> bool:
    return isinstance(value, tuple) and not value[0]


def like(pieces: tuple[str, ...]) -> str:
    """The LIKE pattern of these texts with anything between them."""
    return "%".join(piece.translate(_WILD) for piece in pieces)


def _holds(condition: Condition, bind: Bind) -> str:
    if condition.is_built_in:
        return _built_in(condition, bind)
    return f"EXISTS ({_entries_of(condition, bind)} AND m.did_id = d.id)"


def _entries_of(condition: Condition, bind: Bind) -> str:
    """The SELECT of the scope's metadatum rows for which the condition holds."""
    test = f" AND {_test(condition, bind)}" if condition.op else ""
    return f"SELECT m.did_id FROM metadatum m WHERE m.scope_id = %(scope_id)s AND m.key = {bind(condition.key)}{test}"


def _few_entries(condition: Condition, bind: Bind) -> str:
    """The first of those rows in the order of their index, so that nothing else can look cheaper to read."""
    is_number = isinstance(condition.value, Decimal) and condition.op != "!="
    column = "number" if is_number else "text"
    return f"{_entries_of(condition, bind)} ORDER BY m.{column}, m.did_id LIMIT {FEW + 1}"


def _test(condition: Condition, bind: Bind) -> str:
    """What must hold of the key's row `m`. Whatever is there differs from a value that it does not equal."""
    value = condition.value
    if isinstance(value, tuple):
        pattern = bind(like(value))
        return f"m.text LIKE {pattern}" if condition.op == "=" else f"(m.text LIKE {pattern}) IS NOT TRUE"
    column, cast = ("m.number", "::numeric") if isinstance(value, Decimal) else ("m.text", "::text")
    op = "IS DISTINCT FROM" if condition.op == "!=" else condition.op
    return f"{column} {op} {bind(value)}{cast}"


def _built_in(condition: Condition, bind: Bind) -> str:
    """What must hold of dlm's own columns; each is always there."""
    value, op = condition.value, condition.op
    if not op:
        return "true"
    if isinstance(value, tuple):
        return f"d.name {'' if op == '=' else 'NOT '}LIKE {bind(like(value))}"
    return f"d.{condition.key} {op} {bind(value)}{_CASTS.get(condition.key, '::numeric')}"
