"""A judge killed at any of its moments, time and again, comes to the same end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dlm import effects
from gates import emptied
from world import World

# --- killed ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The judge died here."""


def life(world: World, run: Callable[[], None]) -> None:
    """Something of everything that a judge does."""
    world.many("origin", 4)
    world.many("origin", 3, dataset="more", prefix="m")
    world.container("box", "ds")
    first = world.declare("ds", 2, "type=disk")
    run()
    world.declare("box", 1, "type=disk", grouping="none")
    world.many("origin", 2, prefix="late")
    run()
    world.attach("box", "more")
    world.detach("ds", "f0")
    run()
    world.cancel(first)
    run()
    mortal = world.declare("more", 1, "b", lifetime_s=60)
    run()
    world.clock.advance(61)
    run()
    assert (world.state(first), world.state(mortal)) == ("gone", "gone")


def end_state(world: World) -> list[Any]:
    """Everything that a judge writes, by names."""
    queries = (
        "SELECT d.name, s.name, r.state, r.tombstone_at IS NULL FROM replica r JOIN did d ON d.id = r.did_id"
        " JOIN storage s ON s.id = r.storage_id",
        "SELECT d.name, s.name, l.rule_id, l.files, l.size_bytes, l.promised_bytes, l.is_released, l.fill_after"
        " FROM lock l JOIN did d ON d.id = l.did_id JOIN storage s ON s.id = l.storage_id",
        "SELECT id, state, reason, place_after FROM rule",
        "SELECT storage_id, reserved_bytes, used_bytes, used_files FROM storage_usage",
        "SELECT storage_id, charged_bytes, charged_files FROM account_usage",
        "SELECT kind FROM change",
        "SELECT id FROM request",
    )
    with world.begin() as tx:
        return [sorted(map(tuple, tx.rows(query)), key=str) for query in queries]


STOPS = ("judge.end", "judge.fold", "judge.place", "judge.fill", "judge.fill-parcels", "judge.let-go", "judge.due")


def test_the_points_at_which_a_judge_is_killed_are_all_there_are(world: World) -> None:
    seen: set[str] = set()
    effects.install(seen.add)
    life(world, lambda: world.run(world.judge, world.conveyor))
    points = {f"{stop}:{when}" for stop in STOPS for when in ("before-commit", "after-commit")}
    assert {name for name in seen if name.startswith("judge.")} == points


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    """Where the end state of a life without kills is kept, once it is known."""
    return []


@pytest.mark.parametrize("when", ["before-commit", "after-commit"])
@pytest.mark.parametrize("stop", STOPS)
def test_a_judge_killed_time_and_again_comes_to_the_same_end(
    world: World, undisturbed: list[Any], stop: str, when: str
) -> None:
    """Killed at every third arrival at the point: some steps pass it twice."""
    arrivals = 0

    def kill(name: str) -> None:
        nonlocal arrivals
        if name == f"{stop}:{when}":
            arrivals += 1
            if arrivals % 3 == 1:
                raise Killed(name)

    def run() -> None:
        while True:
            try:
                world.run(world.judge, world.conveyor)
                return
            except Killed:
                continue

    effects.install(kill)
    life(world, run)
    assert arrivals > 1
    effects.install(None)
    emptied(world)
    if not undisturbed:
        undisturbed.extend(end_state(world))
    assert end_state(world) == undisturbed
