"""The judge: every rule has the locks and requests it needs; what ended lets go.

Nothing it does has an effect outside the database, so each step is one transaction that claims, decides and writes:
a kill rolls it back and the next judge finds it as it was. Leases are for work whose effect is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from dlm.config import Settings
from dlm.core import consequences, folding, moving, placing
from dlm.core import rules as rule_cases
from dlm.core.ledger import Replan
from dlm.core.placing import Limits
from dlm.daemons.loop import Pass
from dlm.db import judging
from dlm.db.engine import Database, Tx

REPLANS = 2  # a judge that loses the race for space this often judges the rule that is due longest alone


class Judge:
    name = "judge"

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.interval_s = settings.judge_interval_s
        self.batch_changes = settings.judge_batch_changes
        self.undo_window_s = settings.reaper_undo_window_s
        self.limits = Limits(
            batch_rules=settings.judge_batch_rules,
            chunk_files=settings.judge_chunk_files,
            resync_interval_s=settings.judge_resync_interval_s,
            trust_unverified=settings.judge_trust_unverified,
        )

    def run_once(self, *, dry_run: bool = False) -> Pass:
        """End what is over, fold changes, place and grade due rules, then one chunk of consequences."""
        done = Pass()
        limits, window = self.limits, self.undo_window_s
        self._step(done, "judge.end", "ended", self._end, dry_run)
        self._step(done, "judge.fold", "changes", lambda tx: folding.fold(tx, self.batch_changes, window), dry_run)
        self._place(done, dry_run)
        self._step(done, "judge.fill", "replicas", lambda tx: consequences.fill_small(tx, limits), dry_run)
        self._step(done, "judge.fill", "replicas", lambda tx: consequences.fill_large(tx, limits), dry_run)
        self._step(done, "judge.fill-parcels", "replicas", lambda tx: consequences.fill_parcels(tx, limits), dry_run)
        self._step(done, "judge.let-go", "let_go", lambda tx: consequences.let_go_small(tx, limits, window), dry_run)
        self._step(done, "judge.let-go", "let_go", lambda tx: consequences.let_go_large(tx, limits, window), dry_run)
        if not done.is_full:
            with self.database.begin("judge.due") as tx:
                done.next_due_s = judging.next_due_s(tx)
        return done

    def _end(self, tx: Tx) -> tuple[int, bool]:
        """What is over, and what moved."""
        over, more_over = rule_cases.end_due(tx, self.limits.batch_rules)
        moved, more_moved = moving.end_moved(tx, self.limits.batch_rules)
        return over + moved, more_over or more_moved

    def _step(self, done: Pass, name: str, noun: str, act: Callable[[Tx], tuple[int, bool]], dry_run: bool) -> None:
        with self.database.begin(name, commit=not dry_run) as tx:
            count, is_full = act(tx)
        done.merge(Pass({noun: count} if count else {}, is_full))

    def _place(self, done: Pass, dry_run: bool) -> None:
        for attempt in range(REPLANS + 1):
            judge = placing.judge_due if attempt < REPLANS else placing.judge_next
            try:
                with self.database.begin("judge.place", commit=not dry_run) as tx:
                    judged = judge(tx, self.limits)
            except Replan:
                done.is_full = True
                continue
            done.merge(Pass({}, judged.is_full or bool(judged.locks)))
            done.count("rules", judged.rules)
            done.count("locks", judged.locks)
            for state, number in judged.states.items():
                done.count(state, number)
            return
