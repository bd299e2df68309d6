"""`curve`: the time per file at 1 k, 10 k, 100 k and 1 M files, for the picture of the reference; each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from figures import evaluate, judge, judge_present, letgo, register, resync, worlds
from figures.drawing import PREFIX
from figures.measuring import Bench, Figure, Race

RULES = 5


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = partial(Race, unit="µs/file")
    races = (
        race(PREFIX + "judge", world=worlds.AT_ORIGIN, ours=judge.place),
        race(PREFIX + "register", world=register.PREPARED, ours=register.register),
        race(PREFIX + "judge-present", world=judge_present.THERE, ours=judge_present.judge),
        race(PREFIX + "letgo", world=resync.OK, ours=letgo.let_go),
    )
    for size in (files // 100, files // 10, files, 10 * files):
        for each in races:
            yield from bench.run(each, size, repeat=1)
        # what each of the files costs that are attached to a dataset of so many
        attached = race(PREFIX + "evaluate", world=evaluate.under(RULES), ours=evaluate.attach_and_judge)
        yield from (replace(found, n=size) for found in bench.run(attached, size, evaluate.NEW, repeat=1))
