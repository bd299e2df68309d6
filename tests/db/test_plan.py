"""What `plan` says is what happens: to the file and the byte, for every grouping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlm.clock import ManualClock
from dlm.core import dids, plan, rules
from dlm.db.engine import Database
from dlm.errors import CannotPlace, Conflict, InvalidInput
from world import SCOPE, World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> World:
    world = World(database, clock, tmp_path)
    for name, site in (("perth-a", "perth"), ("perth-b", "perth"), ("bern-a", "bern"), ("bern-b", "bern"), ("cape-a", "cape")):
        world.add_storage(name, site, capacity_bytes=10**9)
    world.add_storage("origin", "perth", type="source")
    return world


def foretell(world: World, name: str, copies: int | None, on: str, **more: Any) -> dict[str, Any]:
    with world.begin() as tx:
        return plan.plan(tx, rules.Declaration(f"{SCOPE}:{name}", copies, on, **more))


def moved(world: World, since: int = 0) -> dict[str, tuple[int, int]]:
    """Files and bytes that were really copied, by destination."""
    with world.begin() as tx:
        rows = tx.rows(
            """SELECT s.name, count(*) AS files, sum(a.size_bytes)::bigint AS bytes FROM attempt a JOIN storage s ON s.id = a.storage_id
                WHERE a.outcome = 'done' AND a.request_id > %(since)s GROUP BY 1""",
            since=since,
        )
    return {row.name: (row.files, row.bytes) for row in rows}


def promised(answer: dict[str, Any]) -> dict[str, tuple[int, int]]:
    found = {d["storage"]: (d["to_copy"]["files"], d["to_copy"]["bytes"]) for d in answer["destinations"]}
    return {name: amount for name, amount in found.items() if amount[0]}


@pytest.mark.parametrize("grouping", ["all", "dataset", "none"])
@pytest.mark.parametrize(("copies", "spread"), [(1, None), (2, "site"), (3, "site"), (None, None)])
def test_a_plan_foretells_every_file_and_byte(world: World, grouping: str, copies: int | None, spread: str | None) -> None:
    for index in range(4):
        world.many("origin", 7, dataset=f"d{index}", prefix=f"p{index}.")
    world.container("box", *[f"d{index}" for index in range(4)])
    answer = foretell(world, "box", copies, "type=disk", spread=spread, grouping=grouping)
    rule = world.declare("box", copies, "type=disk", spread=spread, grouping=grouping)
    world.settle()
    assert world.state(rule) == "ok"
    assert promised(answer) == moved(world)
    assert answer["transfers"]["files"] == sum(files for files, _ in moved(world).values())
    assert {tuple(link["from"]) for link in answer["links"]} == {("origin",)}
    world.check()


def test_a_plan_counts_what_is_there_and_shows_the_space_after(world: World) -> None:
    world.many("origin", 10)
    world.declare("ds", 1, "bern-a")
    world.settle()
    world.many("origin", 5, prefix="new")
    with world.begin() as tx:
        last = tx.scalar("SELECT max(request_id) FROM attempt")
    answer = foretell(world, "ds", 2, "type=disk", spread="site")
    there = {d["storage"]: d["already_there"]["files"] for d in answer["destinations"]}
    assert there["bern-a"] == 10
    world.declare("ds", 2, "type=disk", spread="site")
    world.run(world.judge)
    world.settle()
    first_rule_too = {"bern-a": moved(world, last).pop("bern-a", (0, 0))}
    assert promised(answer) == {**moved(world, last), **first_rule_too}
    after = next(d for d in answer["destinations"] if d["storage"] != "bern-a")
    assert after["free_bytes_after"] == 10**9 - after["to_copy"]["bytes"]


def test_planning_writes_nothing(world: World) -> None:
    world.many("origin", 3)
    world.settle()

    def rows() -> list[Any]:
        with world.begin() as tx:
            return [tx.scalar(f"SELECT count(*) FROM {table}") for table in ("rule", "lock", "replica", "request", "event", "expression")]

    before = rows()
    foretell(world, "ds", 2, "type=disk")
    assert rows() == before
    assert not world.settle().counts


def test_a_plan_of_too_many_files_by_themselves_is_refused_and_says_what_can_be_planned(world: World) -> None:
    world.many("origin", 1)
    with world.begin() as tx:
        tx.run("INSERT INTO attachment (parent_id, child_id, size_bytes) SELECT id, 10^6 + g, 1 FROM did, generate_series(1, 100000) g WHERE name = 'ds'")
    with pytest.raises(InvalidInput, match="100,000") as many:
        foretell(world, "ds", 1, "perth-a", grouping="none")
    assert many.value.field == "grouping" and "grouping dataset" in many.value.hint
    assert foretell(world, "ds", 1, "perth-a", grouping="dataset")["copies"] == 1


def test_a_plan_with_a_key_foretells_as_one_without(world: World) -> None:
    world.many("origin", 1)
    foretell(world, "ds", 1, "perth-a", idempotency_key="k")
    rule = world.declare("ds", 1, "perth-a", idempotency_key="k")
    with pytest.raises(Conflict, match=rule):
        foretell(world, "ds", 1, "perth-a", idempotency_key="k")


def test_a_plan_says_what_is_impossible_and_why(world: World) -> None:
    world.add_storage("tiny", "oslo", type="small", capacity_bytes=3)
    world.many("origin", 3)
    answer = foretell(world, "ds", 1, "type=small")
    assert answer["impossible"]["copies"] == 1
    assert "full" in answer["impossible"]["reason"]
    assert [refused["storage"] for refused in answer["not_chosen"]] == ["tiny"]


def test_a_plan_of_a_container_counts_what_its_datasets_hold(world: World) -> None:
    world.many("origin", 4, "one")
    world.many("origin", 3, "two", prefix="g")
    world.container("inner", "one", "two")
    world.container("box", "inner")
    world.container("empty")
    answer = foretell(world, "box", 1, "bern-a")
    assert (answer["files"], answer["size_bytes"]) == (7, answer["transfers"]["bytes"])
    with world.begin() as tx:
        (row,) = dids.list_dids(tx, dids.Filter(SCOPE, pattern="empty"))[0]
        assert dids.totals_below(tx, [(row.id, row.kind)]) == {row.id: (0, 0)}


@pytest.mark.parametrize(
    ("more", "field", "message", "hint"),
    [
        ({"weight": "nosuch"}, "weight", "no storage that matches has 'nosuch'", "they have country, name, phase, shelf, site, type"),
        ({"weight": "shelf"}, "weight", "shelf='top' of storage shelf is no weight", "a number, 0 or more"),
        ({"weight": "shelf=3"}, "weight", "no storage that matches has 'shelf=3'", "the name of an attribute is wanted, without a value"),
        ({"sources": "nosuch"}, "sources", "no storage matches: 'nosuch' is no storage", "dlm-admin storage list"),
        ({"sources": "orign"}, "sources", "'origin'", "origin matches 1"),
    ],
)
def test_weights_and_sources_that_nothing_has_are_refused_by_plan_and_declaration_alike(
    world: World, more: dict[str, str], field: str, message: str, hint: str
) -> None:
    world.add_storage("shelf", "oslo", type="shelf", attributes={"shelf": "top"})
    world.many("origin", 1)
    for ask in (foretell, World.declare):
        with pytest.raises((CannotPlace, InvalidInput)) as refused:
            ask(world, "ds", 1, "shelf", **more)
        assert refused.value.field == field and message in refused.value.detail and hint in refused.value.hint


def test_a_plan_refuses_what_a_declaration_refuses(world: World) -> None:
    world.many("origin", 1)
    with pytest.raises(CannotPlace):
        foretell(world, "ds", 9, "type=disk")
    rule = world.declare("ds", 1, "type=disk")
    with pytest.raises(Conflict, match=rule):
        foretell(world, "ds", 1, "type=disk")
