"""Placing one unit: against brute force, and by the sentences that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.core.placement import Budget, Cause, Choice, Present, Unit, Wish, choose
from dlm.errors import InvalidInput
from dlm.types import Storage

UNIT = Unit(id=7, size_bytes=100, files=10)


def storage(id: int, site: str = "", country: str | None = "AU", **attributes: str) -> Storage:
    return Storage(
        id=id, name=f"s{id}", site=site or f"site{id}", country=country, type="disk", phase="gas", free_bytes=None,
        can_read=True, can_write=True, can_delete=True, is_available=True, attributes=attributes,
    )  # fmt: skip


def full(storage: Storage, free_bytes: int = 99) -> Storage:
    return replace(storage, free_bytes=free_bytes)


def read_only(storage: Storage, reason: str | None = None) -> Storage:
    return replace(storage, can_write=False, reason=reason)


def holds(storage_id: int, size_bytes: int = 100, files: int = 10) -> dict[int, Present]:
    return {storage_id: Present(storage_id, size_bytes, files)}


def place(
    wish: Wish,
    matching: Sequence[Storage],
    present: Mapping[int, Present] | None = None,
    held: Sequence[Storage] = (),
    quota: Mapping[int, int | None] | None = None,
    unit: Unit = UNIT,
) -> Choice:
    return choose(wish, unit, matching, present or {}, held, Budget.of([*matching, *held], quota))


def test_copies_go_to_distinct_storages() -> None:
    choice = place(Wish(1, 3), [storage(i) for i in range(5)])
    assert len(set(choice.chosen)) == 3 and not choice.missing and choice.message == ""
    assert choice.promised == choice.charged == dict.fromkeys(choice.chosen, 100)


def test_the_same_view_gives_the_same_choice_in_any_order() -> None:
    world = [storage(i) for i in range(20)]
    assert place(Wish(1, 3), world) == place(Wish(1, 3), world[::-1])


def test_a_storage_that_comes_takes_only_what_it_wins() -> None:
    world = [storage(i) for i in range(10)]
    units = [Unit(i, 100, 10) for i in range(200)]
    before = [set(place(Wish(1, 2), world, unit=unit).chosen) for unit in units]
    after = [set(place(Wish(1, 2), [*world, storage(99)], unit=unit).chosen) for unit in units]
    assert all(new == old or (99 in new and len(new & old) == 1) for old, new in zip(before, after, strict=True))
    assert 20 < sum(99 in new for new in after) < 60  # about 2/11 of 200


def test_what_a_rule_holds_it_keeps_even_if_it_no_longer_matches() -> None:
    world = [storage(1), storage(2)]
    choice = place(Wish(1, 2), world, held=[read_only(full(storage(9)))])
    assert choice.kept == choice.unmatched == (9,)
    assert len(choice.chosen) == 1 and not choice.missing
    assert 9 not in choice.promised


def test_nothing_is_chosen_when_enough_is_held() -> None:
    world = [storage(i) for i in range(4)]
    assert place(Wish(1, 2), world, held=world[:2]).chosen == ()
    assert place(Wish(1, 2), world, held=world[:3]).missing == 0


def test_storages_that_hold_the_bytes_come_first() -> None:
    world = [storage(i) for i in range(6)]
    present = holds(4, 60, 6) | holds(2, 100, 10) | holds(5, 10, 1)
    choice = place(Wish(1, 3), world, present)
    assert choice.chosen == (2, 4, 5)
    assert choice.promised == {2: 0, 4: 40, 5: 90}
    assert choice.charged == {2: 100, 4: 100, 5: 100}


def test_a_read_only_or_unavailable_storage_counts_when_it_holds_everything() -> None:
    world = [read_only(storage(1)), replace(storage(2), is_available=False), full(storage(3), 0)]
    assert set(place(Wish(1, 3), world, holds(1) | holds(2) | holds(3)).chosen) == {1, 2, 3}
    choice = place(Wish(1, 3), world, holds(1, 99, 9) | holds(2, 99, 9) | holds(3, 99, 9))
    assert [r.cause for r in choice.rejected] == [Cause.READ_ONLY, Cause.UNAVAILABLE, Cause.FULL]


def test_an_available_holder_comes_before_an_unavailable_one() -> None:
    for unit_id in range(20):
        world = [replace(storage(1), is_available=False), storage(2)]
        assert place(Wish(1, 1), world, holds(1) | holds(2), unit=Unit(unit_id, 100, 10)).chosen == (2,)


def test_an_empty_dataset_does_not_count_as_present_on_a_read_only_storage() -> None:
    choice = place(Wish(1, 1), [read_only(storage(1))], holds(1, 0, 0), unit=Unit(1, 0, 0))
    assert choice.missing == 1


def test_only_the_bytes_still_to_come_need_space() -> None:
    assert place(Wish(1, 1), [full(storage(1), 40)], holds(1, 60, 6)).chosen == (1,)
    assert place(Wish(1, 1), [full(storage(1), 39)], holds(1, 60, 6)).missing == 1


def test_a_quota_is_charged_in_full() -> None:
    world = [storage(1), storage(2)]
    assert place(Wish(1, 2), world, holds(1), quota={1: 100, 2: None}).missing == 0
    choice = place(Wish(1, 2), world, holds(1), quota={1: 99})
    assert choice.chosen == (2,)
    assert choice.rejected[0].reason == "s1 is over quota (99 B left, 100 B needed)"


def test_a_budget_counts_what_was_promised_before() -> None:
    world = [full(storage(1), 250), full(storage(2), 150)]
    budget = Budget.of(world, {1: 1000})
    placed: Counter[int] = Counter()
    for unit_id in range(5):
        choice = choose(Wish(1, 1), Unit(unit_id, 100, 10), world, {}, (), budget)
        placed.update(choice.chosen)
        budget = budget.spend(choice)
    assert placed == {1: 2, 2: 1} and choice.missing == 1
    assert budget == Budget({1: 50, 2: 50}, {1: 800})


def test_no_two_copies_share_the_spread_value() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern"), storage(4, "bern")]
    for unit_id in range(20):
        choice = place(Wish(1, 2, spread="site"), world, holds(2, 10, 1), unit=Unit(unit_id, 100, 10))
        assert choice.chosen[0] == 2 and choice.chosen[1] in (3, 4)


def test_a_held_copy_takes_its_spread_value() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern")]
    assert place(Wish(1, 2, spread="site"), world, holds(2), held=[world[0]]).chosen == (3,)


def test_held_copies_that_came_to_share_a_spread_value_count_once() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern")]
    choice = place(Wish(1, 2, spread="site"), world, held=world[:2])
    assert choice.kept == (1, 2) and choice.chosen == (3,)


def test_a_storage_without_the_spread_key_is_not_chosen() -> None:
    world = [storage(1, rack="a"), storage(2), storage(3, country=None)]
    choice = place(Wish(1, 2, spread="rack"), world)
    assert choice.chosen == (1,) and choice.missing == 1
    assert {r.storage_id for r in choice.rejected if r.cause == Cause.NO_SPREAD} == {2, 3}
    assert place(Wish(1, 3, spread="country"), world).missing == 2


def test_all_means_every_matching_storage() -> None:
    world = [storage(1), storage(2), read_only(storage(3))]
    choice = place(Wish(1, None), world, held=[storage(9)])
    assert set(choice.chosen) == {1, 2} and choice.kept == (9,) and choice.missing == 1
    assert choice.message.startswith("1 of 4 copies has no storage: 3 match, 1 read-only, 2 can take it")


def test_all_with_a_spread_means_one_per_value() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern"), read_only(storage(4, "cape"))]
    choice = place(Wish(1, None, spread="site"), world)
    assert len(choice.chosen) == 2 and choice.missing == 1


def test_units_go_to_storages_in_proportion_to_their_weight() -> None:
    world = [storage(1, share="1"), storage(2, share="3"), storage(3, share="0"), storage(4)]
    count = Counter(place(Wish(1, 1, weight="share"), world, unit=Unit(i, 100, 10)).chosen for i in range(2000))
    assert count.keys() == {(1,), (2,)} and 420 < count[(1,)] < 580


def test_weight_zero_is_used_when_all_others_are_used_up() -> None:
    world = [storage(1, share="1"), storage(3, share="0"), storage(4)]
    choice = place(Wish(1, 3, weight="share"), world, holds(3))
    assert choice.chosen == (1, 3) and choice.missing == 1
    assert [r.reason for r in choice.rejected] == ["s4 is without share"]


@pytest.mark.parametrize("weight", ["heavy", "-1", "nan", "inf", ""])
def test_a_weight_that_is_no_number_is_refused(weight: str) -> None:
    with pytest.raises(InvalidInput, match="of storage s1 is no weight") as caught:
        place(Wish(1, 1, weight="share"), [storage(1, share=weight)])
    assert caught.value.field == "weight"


@pytest.mark.parametrize(
    ("wish", "matching", "held", "message"),
    [
        (Wish(1, 1), [], [], "1 of 1 copy has no storage: no storage matches"),
        (
            Wish(1, 3),
            [storage(1), full(storage(2)), read_only(storage(3))],
            [1],
            "2 of 3 copies have no storage: 3 match, 1 read-only, 1 full, 1 already holds it",
        ),
        (
            Wish(1, 3, "site"),
            [storage(1, "perth"), storage(2, "perth"), storage(3, "bern"), storage(4, "bern")],
            [],
            "1 of 3 copies has no storage: 4 match, 2 with a site already used, 2 can take it",
        ),
        (
            Wish(1, 2),
            [replace(storage(1), is_available=False)],
            [9],
            "1 of 2 copies has no storage: 1 match, 1 unavailable, 1 more holds it without matching",
        ),
    ],
)
def test_what_is_missing_is_told_with_its_arithmetic(
    wish: Wish, matching: list[Storage], held: list[int], message: str
) -> None:
    known = {s.id: s for s in matching}
    assert place(wish, matching, held=[known.get(i, storage(i)) for i in held]).message == message


def test_a_rejection_names_the_storage_and_the_reason() -> None:
    world = [read_only(storage(1), "disk replacement"), full(storage(2), 3_100_000_000_000)]
    choice = place(Wish(1, 2), world, unit=Unit(1, 5 * 10**12, 10))
    assert [r.reason for r in choice.rejected] == [
        "s1 is read-only (disk replacement)",
        "s2 is full (3.1 TB free, 5.0 TB needed)",
    ]


# Small worlds, held against every possible choice.

STORAGES = st.builds(
    lambda id, site, free, write, up: replace(
        storage(id, site), free_bytes=free, can_write=write, is_available=up, country=None if site == "c" else site
    ),
    st.integers(1, 6), st.sampled_from("abc"), st.sampled_from([None, 0, 50, 100]),
    st.integers(0, 3).map(bool), st.integers(0, 3).map(bool),
)  # fmt: skip
WORLDS = st.lists(STORAGES, max_size=6, unique_by=lambda s: s.id)
FRACTIONS = st.dictionaries(st.integers(1, 6), st.integers(0, 10), max_size=4)


def can_take(s: Storage, files: int, quota: Mapping[int, int | None]) -> bool:
    left = quota.get(s.id)
    if left is not None and left < 100:
        return False
    fits = s.free_bytes is None or s.free_bytes >= 100 - files * 10
    return files == 10 or (s.can_write and s.is_available and fits)


@given(WORLDS, FRACTIONS, st.integers(0, 3), st.sampled_from([None, "site", "country"]), st.integers(1, 4), st.data())
def test_no_other_choice_has_more_copies_or_fewer_bytes_to_come(
    world: list[Storage], files: dict[int, int], n_held: int, spread: str | None, copies: int, data: st.DataObject
) -> None:
    quota = data.draw(st.dictionaries(st.integers(1, 6), st.sampled_from([None, 99, 100]), max_size=2))
    present = {i: Present(i, n * 10, n) for i, n in files.items()}
    held = world[:n_held]
    choice = place(Wish(data.draw(st.integers(1, 99)), copies, spread), world, present, held, quota)

    def value(s: Storage) -> object:
        return getattr(s, spread) if spread else s.id

    taken = {s.id if value(s) is None else value(s) for s in held}
    able = [s for s in world[n_held:] if value(s) is not None and can_take(s, files.get(s.id, 0), quota)]
    most = max(0, copies - len(taken))
    for n in range(most, -1, -1):
        feasible = [
            combination
            for combination in combinations(able, n)
            if len({value(s) for s in combination} - taken) == n
        ]  # fmt: skip
        if feasible:
            break
    assert len(choice.chosen) == n and choice.missing == most - n
    assert {s.id for s in able} >= set(choice.chosen)
    assert any(set(choice.chosen) == {s.id for s in combination} for combination in feasible)
    cheapest = min(sum(100 - 10 * files.get(s.id, 0) for s in combination) for combination in feasible)
    assert sum(choice.promised.values()) == cheapest
    assert bool(choice.message) == bool(choice.missing)
    if choice.missing:
        assert len(world) == len(held) + len(choice.chosen) + len(choice.rejected)
