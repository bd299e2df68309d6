"""Releasing what rules hold beyond the copies they ask for, once what stays is complete.

Only rules whose number of copies was lowered come here: what a rule holds otherwise it keeps. The check and the release
are one transaction; harm that commits after it is met as after any let-go: the released copy waits in its undo window,
is a source for the repair, and goes only with the reaper's proof that the copies wanted stand elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy.engine import Row

from dlm.core import judge, surplus
from dlm.core.ledger import Ledger
from dlm.core.surplus import Held, Surplus
from dlm.core.view import World, wish_of
from dlm.db import events
from dlm.db import surplus as rows
from dlm.db.engine import Tx
from dlm.types import Grouping


class _Unit(NamedTuple):
    """What a rule gives up as one: a dataset or file, or all below its DID."""

    rule_id: int
    did_ids: tuple[int, ...]
    surplus: Surplus


def trim(tx: Tx, due: Sequence[Row[Any]], world: World, ledger: Ledger, limit: int) -> dict[int, float]:
    """Release surplus locks of these rules, which the caller has locked; in how many seconds to look again, by rule that
    holds some still; at most four statements, and two for each rule of grouping none, which is at most `limit` files."""
    whole = [row for row in due if row.grouping != Grouping.NONE]
    again = _trim_units(tx, whole, world, ledger) if whole else {}
    cursors: list[tuple[int, int | None]] = [(row.id, 0 if row.id in again else None) for row in whole]
    for row in due:
        if row.grouping == Grouping.NONE:
            cursor = _trim_files(tx, row, world, ledger, limit)
            cursors.append((row.id, cursor))
            if cursor is not None:
                again[row.id] = 0 if cursor else judge.watch_s(row.files)
    if cursors:
        rows.set_cursors(tx, cursors)
    return again


# --- units as a whole --------------------------------------------------------------------------------------------


def _trim_units(tx: Tx, due: Sequence[Row[Any]], world: World, ledger: Ledger) -> dict[int, float]:
    """Three statements at most."""
    found: dict[int, list[Row[Any]]] = defaultdict(list)
    for lock in rows.count_locks(tx, [row.id for row in due]):
        found[lock.rule_id].append(lock)
    units = [unit for row in due for unit in _units(row, found[row.id], world)]
    ready = [unit for unit in units if unit.surplus.is_due]
    keys = sorted((did, storage, unit.rule_id) for unit in ready for did in unit.did_ids for storage in unit.surplus.going)
    released = ledger.release(tx, keys=keys) if keys else 0
    _record(tx, ready, world)
    waiting = {unit.rule_id for unit in units if unit.surplus.is_waiting}
    if released < len(keys):  # some are being filled this moment
        waiting |= {unit.rule_id for unit in ready}
    return {row.id: judge.watch_s(row.files) for row in due if row.id in waiting}


def _units(row: Row[Any], locks: Sequence[Row[Any]], world: World) -> Iterator[_Unit]:
    """The rule's units, with what of them is surplus."""
    groups: dict[int, list[Row[Any]]] = defaultdict(list)
    for lock in locks:
        groups[row.did_id if row.grouping == Grouping.ALL else lock.did_id].append(lock)
    matching = {storage.id for storage in world.matching(row.canonical)}
    for unit_id, group in groups.items():
        held = list(_held(group, world))
        yield _Unit(row.id, tuple({lock.did_id for lock in group}), surplus.choose(wish_of(row), unit_id, held, matching))


def _held(locks: Sequence[Row[Any]], world: World) -> Iterator[Held]:
    """What a unit's locks come to by storage. A storage that misses a dataset of the unit is not complete."""
    files = sum({lock.did_id: lock.files for lock in locks}.values())
    datasets = {lock.did_id for lock in locks}
    by_storage: dict[int, list[Row[Any]]] = defaultdict(list)
    for lock in locks:
        if lock.storage_id in world.storages:
            by_storage[lock.storage_id].append(lock)
    for storage_id, here in by_storage.items():
        is_filled = len(here) == len(datasets) and all(lock.is_filled for lock in here)
        yield Held(world.storages[storage_id], files, sum(lock.files_ok for lock in here), is_filled)


def _record(tx: Tx, units: Sequence[_Unit], world: World) -> None:
    """One event per rule: what went and why, what stays; one statement."""
    facts: dict[int, dict[str, Any]] = {}
    for unit in units:
        after = facts.setdefault(unit.rule_id, {"released": {}, "kept": [], "locks": 0})
        for storage_id, reason in unit.surplus.going.items():
            after["released"].setdefault(world.storages[storage_id].name, reason)
            after["locks"] += len(unit.did_ids)
        after["kept"] = sorted({*after["kept"], *(world.storages[id_].name for id_ in unit.surplus.kept)})
    events.record_many(tx, "rule", "surplus", [(id_, None, after) for id_, after in facts.items()], cause="copies")


# --- grouping none -----------------------------------------------------------------------------------------------


def _trim_files(tx: Tx, row: Row[Any], world: World, ledger: Ledger, limit: int) -> int | None:
    """Release surplus locks of the rule's next files; where to go on: 0 from the start, None: nowhere; two statements.

    The files that wait for a copy are passed over, so that others need not wait for them; the next round finds them.
    """
    if row.copies is None:
        return None
    matching = {storage.id for storage in world.matching(row.canonical)}
    tiers = surplus.tiers(wish_of(row), world.storages.values(), matching)
    seen, *gone = rows.release_files(tx, row.id, row.copies, tiers, row.surplus_after, limit)
    for each in gone:
        ledger.storages.add(each.storage_id, reserved_bytes=-each.promised_bytes)
        ledger.charges.add(row.account_id, each.storage_id, -each.bytes, -each.locks)
    if gone:
        released = {world.storages[each.storage_id].name: f"{each.locks:,} files" for each in gone}
        events.record(tx, "rule", row.id, "surplus", cause="copies", after={"released": released})
    if seen.files == limit:
        return int(seen.last)
    is_all = row.surplus_after == 0 and seen.locks == sum(each.locks for each in gone)
    return None if is_all else 0
