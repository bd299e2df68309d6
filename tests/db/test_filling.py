"""Large datasets are filled and let go in pieces of bounded size."""

from __future__ import annotations

import pytest

from dlm.core import consequences
from dlm.core.placing import Limits
from dlm.daemons.loop import Pass
from world import DAY, World


def test_a_large_dataset_is_filled_and_let_go_in_chunks(world: World) -> None:
    world.many("origin", 2500)
    world.judge.limits = Limits(chunk_files=700)
    rule = world.declare("ds", 2, "a|b")
    for _ in range(3):
        world.judge.run_once()
    with world.begin() as tx:
        assert 0 < tx.scalar("SELECT count(*) FROM replica WHERE state = 'copying'") < 5000
    world.check()
    world.many("origin", 3, prefix="during")
    world.run(world.judge)
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM replica WHERE state = 'copying'") == 5006
    world.check()
    world.cancel(rule)
    world.run(world.judge)
    with world.begin() as tx:
        assert tx.scalar("SELECT count(*) FROM replica WHERE state = 'copying'") == 0
    world.check()


@pytest.mark.parametrize("content", [b"", b"x"])
def test_what_promises_nothing_and_is_not_there_is_filled_in_chunks(world: World, content: bytes) -> None:
    """Empty files promise nothing, nor do files that another rule has coming already."""
    world.put("origin", {f"same{index}": content for index in range(1100)}, "ds")
    world.run(world.judge)
    if content:
        world.declare("ds", None, "a")
        world.run(world.judge)
    world.judge.limits = Limits(chunk_files=400)
    rule = world.declare("ds", 1, "a")
    cursors = []
    while world.judge.run_once().is_full:
        with world.begin() as tx:
            cursors.append(
                tx.scalar(
                    """SELECT count(a.child_id) FROM lock l JOIN rule r ON r.id = l.rule_id AND r.uuid = %(uuid)s::uuid
                         LEFT JOIN attachment a ON a.parent_id = l.did_id AND a.child_id <= coalesce(l.fill_after, a.child_id)""",
                    uuid=rule,
                )
            )
    assert cursors == [400, 800, 1100]
    world.check()


def test_a_judge_of_small_chunks_says_that_more_locks_wait(world: World) -> None:
    made = [world.declare(name, 1, "a") for name in world.many("origin", 5)]
    world.run(world.judge)
    limits = Limits(chunk_files=2)
    for rule in made:
        world.cancel(rule)
    world.judge._place(Pass(), False)
    with world.begin() as tx:
        assert [consequences.let_go_small(tx, limits, DAY) for _ in range(3)] == [(2, True), (2, True), (1, False)]
    for name in ("f0", "f1", "f2"):
        world.declare(name, 1, "a|b")
    world.judge._place(Pass(), False)
    with world.begin() as tx:
        assert [consequences.fill_small(tx, limits)[1] for _ in range(2)] == [True, False]
