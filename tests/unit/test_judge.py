"""What the judge decides, as pure functions: states, messages, placements of rules; nothing is by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.core import judge
from dlm.core.judge import Copies, Decision, RuleView, UnitView, decide, grade, watch_s
from dlm.core.placement import Budget, Present, Wish
from dlm.types import Grouping, RuleState, Storage

# --- states ------------------------------------------------------------------------------------------------------

COPIES = st.builds(
    Copies,
    files=st.integers(0, 5),
    ok=st.integers(0, 5),
    harmed=st.integers(0, 3),
    parked=st.integers(0, 3),
    unverified=st.integers(0, 3),
    is_filled=st.booleans(),
    parked_reason=st.none() | st.just("b: disk full"),
)


@given(COPIES, st.none() | st.just("1 of 2 copies has no storage"))
def test_the_state_is_the_first_that_holds(copies: Copies, message: str | None) -> None:
    state = grade(copies, message).state
    if message is not None:
        assert state is RuleState.IMPOSSIBLE
    elif copies.parked or copies.harmed:
        assert state is RuleState.STUCK
    elif copies.is_filled and copies.ok == copies.files:
        assert state is RuleState.OK
    else:
        assert state is RuleState.REPLICATING


@given(COPIES, st.none() | st.just("why"))
def test_what_is_not_ok_is_looked_at_again_and_tells_why_unless_it_just_takes_time(
    copies: Copies, message: str | None
) -> None:
    found = grade(copies, message)
    assert (found.look_again_s > 0) == (found.state is not RuleState.OK)
    if found.state in (RuleState.IMPOSSIBLE, RuleState.STUCK):
        assert found.reason
    if found.state is RuleState.OK:
        assert found.reason is None


def test_a_rule_over_nothing_is_ok() -> None:
    assert grade(Copies(), None).state is RuleState.OK


def test_locks_that_are_not_filled_yet_are_not_ok_however_much_is_there() -> None:
    assert grade(Copies(files=3, ok=3, is_filled=False), None).state is RuleState.REPLICATING


def test_a_stuck_rule_says_how_much_and_repeats_a_stored_reason() -> None:
    reason = grade(Copies(files=9, ok=5, parked=2, harmed=1, parked_reason="b: disk full"), None).reason
    assert reason is not None
    assert "2 of 9 replicas cannot be made (b: disk full)" in reason
    assert "1 of 9 replicas are bad or lost: no good copy is left" in reason
    assert "see request list" in (grade(Copies(files=1, parked=1), None).reason or "")


def test_files_that_wait_for_their_first_verification_are_named() -> None:
    assert grade(Copies(files=3, ok=1, unverified=2), None).reason == "2 files wait for their first verification"


@given(st.integers(0, 10**10))
def test_a_full_count_is_never_frequent_and_never_far(files: int) -> None:
    assert judge.WATCH_MIN_S <= watch_s(files) <= judge.WATCH_MAX_S
    assert watch_s(files) <= watch_s(files + 1000)


def test_the_resync_of_rules_is_spread_about_the_interval() -> None:
    delays = [judge.resync_delay(rule, 86_400) for rule in range(1000)]
    assert min(delays) >= timedelta(hours=18) and max(delays) <= timedelta(hours=30)
    assert len({delay // timedelta(hours=1) for delay in delays}) == 12
    assert judge.resync_delay(7, 86_400) == judge.resync_delay(7, 86_400)


def test_the_seed_is_that_of_the_wish_and_stays_so_for_ever() -> None:
    assert judge.seed(1, 2, "tier=1", 2) == 5_147_769_900_849_116_280
    others = [(2, 2, "tier=1", 2), (1, 3, "tier=1", 2), (1, 2, "tier=2", 2), (1, 2, "tier=1", None)]
    assert len({judge.seed(*wish) for wish in others} | {judge.seed(1, 2, "tier=1", 2)}) == 5
    assert all(0 <= judge.seed(n, n, "x", n) < 2**63 for n in range(100))


# --- placements --------------------------------------------------------------------------------------------------


def storage(id_: int, free_bytes: int | None = None, **switches: bool) -> Storage:
    facts = {"can_read": True, "can_write": True, "can_delete": True, "is_available": True} | switches
    return Storage(
        id=id_, name=f"s{id_}", site=f"site{id_ % 2}", country="AU", type="disk", phase="gas", free_bytes=free_bytes,
        attributes={}, **facts,
    )  # fmt: skip


FOUR = tuple(storage(id_) for id_ in range(1, 5))


def unit(did_id: int, *held: Storage, size_bytes: int = 100, present: Mapping[int, int] | None = None) -> UnitView:
    """A dataset of ten files; `present` are bytes by storage, a tenth of the files for each tenth of the bytes."""
    there = {id_: Present(id_, size, size * 10 // size_bytes) for id_, size in (present or {}).items()}
    return UnitView(did_id, 10, size_bytes, held, there)


def rule(
    *units: UnitView, grouping: Grouping = Grouping.ALL, copies: int | None = 2, id_: int = 1, **more: object
) -> RuleView:
    matching = more.pop("matching", FOUR)
    return RuleView(id_, 1, grouping, Wish(id_, copies, **more), tuple(matching), units)  # type: ignore[arg-type]


def places(decision: Decision) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for placement in decision.placements:
        found.setdefault(placement.did_id, set()).add(placement.storage_id)
    return found


@given(st.sampled_from([Grouping.ALL, Grouping.DATASET]), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_the_same_view_gives_the_same_decision_whatever_the_order(
    grouping: Grouping, copies: int, number: int, seed: int
) -> None:
    units = [unit(did) for did in range(10, 10 + number)]
    view = rule(*units, grouping=grouping, copies=copies, id_=seed)
    first, _ = decide(view, Budget.of(FOUR))
    assert decide(view, Budget.of(FOUR))[0] == first
    turned = replace(view, units=view.units[::-1], matching=view.matching[::-1])
    assert places(decide(turned, Budget.of(FOUR[::-1]))[0]) == places(first)
    assert all(len(storages) == copies for storages in places(first).values())


def test_all_makes_one_choice_and_dataset_a_choice_for_each() -> None:
    units = [unit(did) for did in range(10, 40)]
    together = places(decide(rule(*units, copies=1), Budget.of(FOUR))[0])
    assert len({frozenset(found) for found in together.values()}) == 1 and together.keys() == {u.did_id for u in units}
    apart = places(decide(rule(*units, copies=1, grouping=Grouping.DATASET), Budget.of(FOUR))[0])
    assert len({frozenset(found) for found in apart.values()}) > 1 and apart.keys() == together.keys()


def test_what_joins_later_follows_the_others() -> None:
    held = [unit(10, FOUR[0], FOUR[2]), unit(11, FOUR[0], FOUR[2])]
    decision, _ = decide(rule(*held, unit(12)), Budget.of(FOUR))
    assert places(decision) == {12: {1, 3}}
    assert not decision.missing and decision.message is None


def test_what_joins_later_follows_even_where_the_storage_matches_no_more() -> None:
    decision, _ = decide(rule(unit(10, FOUR[0], FOUR[2]), unit(12), matching=FOUR[1:2]), Budget.of(FOUR))
    assert places(decision) == {12: {1, 3}}
    assert decision.choices[0][1].unmatched == (1, 3)


def test_what_joins_later_is_missed_where_there_is_no_room_for_it() -> None:
    small = (storage(1, free_bytes=50), *FOUR[1:])
    decision, _ = decide(rule(unit(10, small[0], small[2]), unit(12), matching=small), Budget.of(small))
    assert places(decision) == {12: {3}}
    assert decision.missing == 1
    assert "s1" in (decision.message or "") and "full" in (decision.message or "")


def test_what_joins_later_takes_its_space_once() -> None:
    small = (storage(1, free_bytes=150), *FOUR[1:])
    decision, budget = decide(rule(unit(10, small[0]), unit(12), unit(13), copies=1, matching=small), Budget.of(small))
    assert [p.did_id for p in decision.placements] == [12]
    assert budget.free_bytes[1] == 50


def test_a_held_storage_stays_though_another_would_be_better() -> None:
    view = rule(unit(10, FOUR[3], present={1: 100, 2: 100}), copies=1)
    assert decide(view, Budget.of(FOUR))[0].placements == ()


@pytest.mark.parametrize("grouping", [Grouping.ALL, Grouping.DATASET])
def test_a_held_storage_that_matches_no_more_counts_still(grouping: Grouping) -> None:
    decision, _ = decide(rule(unit(10, FOUR[3]), copies=1, matching=FOUR[:2], grouping=grouping), Budget.of(FOUR))
    assert decision.placements == () and decision.message is None
    assert decision.choices[0][1].unmatched == (4,)


def test_only_what_is_not_there_yet_is_promised() -> None:
    decision, budget = decide(
        rule(unit(10, present={2: 60}), copies=1), Budget.of([replace(s, free_bytes=100) for s in FOUR])
    )
    (placement,) = decision.placements
    assert (placement.storage_id, placement.size_bytes, placement.promised_bytes) == (2, 100, 40)
    assert budget.free_bytes[2] == 60


def test_what_one_rule_takes_is_gone_for_the_next() -> None:
    world = [replace(s, free_bytes=100) for s in FOUR[:2]]
    budget, chosen = Budget.of(world), []
    for number in range(3):
        decision, budget = decide(rule(unit(10 + number), copies=1, id_=number, matching=tuple(world)), budget)
        chosen.append({p.storage_id for p in decision.placements})
    assert chosen[0] | chosen[1] == {1, 2} and chosen[2] == set()
    assert decision.missing == 1
    assert "1 of 1 copy has no storage: 2 match, 2 full" in (decision.message or "")
    assert set(budget.free_bytes.values()) == {0}


def test_the_accounts_limit_is_spent_from_rule_to_rule() -> None:
    budget = Budget.of(FOUR[:1], {1: 150})
    first, budget = decide(rule(unit(10), copies=1, matching=FOUR[:1]), budget)
    second, budget = decide(rule(unit(11), copies=1, matching=FOUR[:1]), budget)
    assert (len(first.placements), len(second.placements)) == (1, 0)
    assert "over quota" in (second.message or "")


def test_of_many_datasets_the_message_tells_of_the_first_that_is_short_and_how_many_are() -> None:
    world = tuple(replace(s, free_bytes=100) for s in FOUR[:2])
    units = [unit(did) for did in range(10, 15)]
    decision, _ = decide(rule(*units, copies=1, grouping=Grouping.DATASET, matching=world), Budget.of(world))
    assert len(decision.placements) == 2 and decision.missing == 3
    assert (decision.message or "").startswith("3 of 5 datasets: 1 of 1 copy has no storage")


def test_a_rule_over_nothing_needs_nothing() -> None:
    for grouping in (Grouping.ALL, Grouping.DATASET):
        decision, _ = decide(rule(grouping=grouping), Budget.of(FOUR))
        assert decision.placements == () and decision.message is None
