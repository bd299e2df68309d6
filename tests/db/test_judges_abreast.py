"""Two and four judges on one dataset with many rules, while it changes: the end is as one judge would have left it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from catalogue import Beside
from dlm.clock import ManualClock
from dlm.core.judge import LOOK_AGAIN_S
from dlm.core.placing import Limits
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from gates import PATIENCE_S, racing_world, settled
from world import World

ON_ALL = (
    *((1, storage) for storage in "abcd"),
    *((copies, on) for copies in (1, 2) for on in ("a|b", "b|c", "c|d", "type=disk")),
    (3, "type=disk"),
)
FILES, PASSES = 12, 40
SMALL, LARGE = Limits(batch_rules=3, chunk_files=5), Limits(batch_rules=100, chunk_files=1000)


def abreast(world: World, limits: Limits, number: int) -> None:
    """So many judges start at the same moment, and none of them fails."""
    start = threading.Barrier(number)

    def judge(one: Judge) -> None:
        one.limits = limits
        start.wait(PATIENCE_S)
        for _ in range(PASSES):
            one.run_once()

    judges = [Judge(world.database, world.settings) for _ in range(number)]
    beside = [Beside(lambda one=one: judge(one)) for one in judges]  # type: ignore[misc]
    assert [each.finish() for each in beside] == [[]] * number, [each.errors for each in beside]


def states(world: World, made: Sequence[str]) -> set[str]:
    return {world.state(rule) for rule in made}


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("limits", [SMALL, LARGE], ids=["small-chunks", "large-chunks"])
def test_judges_on_one_dataset_and_many_rules_end_in_a_correct_state(
    database: Database, clock: ManualClock, tmp_path: Path, limits: Limits, number: int
) -> None:
    world = racing_world(database, clock, tmp_path)
    for name in "cd":
        world.add_storage(name, "cape")
    world.many("origin", FILES)
    kept = [world.declare("ds", copies, on) for copies, on in ON_ALL[::2]]
    kept += [world.declare(f"f{index}", 1, "type=disk") for index in range(FILES // 2)]
    ended = [world.declare("ds", copies, on) for copies, on in ON_ALL[1::2]]
    abreast(world, limits, number)
    world.check()
    world.run(world.conveyor)
    for rule in ended:
        world.cancel(rule)
    world.many("origin", 4, prefix="late")
    abreast(world, limits, number)
    world.check()
    settled(world)
    world.later(LOOK_AGAIN_S)  # a rule whose last lock went while it was judged is looked at again then
    world.check()
    assert (states(world, kept), states(world, ended)) == ({"ok"}, {"gone"})
    with world.begin() as tx:
        assert {row.files for row in tx.rows("SELECT files FROM lock WHERE files > 1")} == {FILES + 4}
