"""Spreading single files: never too full, never too few, even, in proportion, the same every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from dlm.core.placement import Budget, Cause, Wish
from dlm.core.sharing import FileClass, Sharing, shares
from dlm.types import Storage


def storage(id: int, site: str = "", free_bytes: int | None = None, **attributes: str) -> Storage:
    return Storage(
        id=id, name=f"s{id}", site=site or f"site{id}", country=None, type="disk", phase="gas", free_bytes=free_bytes,
        can_read=True, can_write=True, can_delete=True, is_available=True, attributes=attributes,
    )  # fmt: skip


def files(n: int, size_bytes: int = 0, holders: Sequence[int] = (), held: Sequence[int] = (), id: int = 1) -> FileClass:
    return FileClass(id, n, size_bytes or n * 10, frozenset(holders), frozenset(held))


def share(
    wish: Wish,
    classes: Sequence[FileClass],
    matching: Sequence[Storage],
    held: Sequence[Storage] = (),
    quota: Mapping[int, int | None] | None = None,
) -> Sharing:
    return shares(wish, classes, matching, held, Budget.of([*matching, *held], quota))


def per_storage(plan: Sharing) -> Counter[int]:
    """The number of files that each storage takes."""
    total: Counter[int] = Counter()
    for each in plan.shares:
        total.update(dict.fromkeys(each.storage_ids, each.files))
    return total


def copies_per_file(plan: Sharing, files: int) -> set[int]:
    """The numbers of new copies that single files get."""
    numbers = {len(s.storage_ids) for s in plan.shares}
    return numbers | {0} if sum(s.files for s in plan.shares) < files else numbers


def test_every_file_gets_its_copies_on_distinct_storages() -> None:
    plan = share(Wish(1, 2), [files(1000)], [storage(i) for i in range(5)])
    assert sum(s.files for s in plan.shares) == 1000 and copies_per_file(plan, 1000) == {2}
    assert set(per_storage(plan).values()) == {400}
    assert plan.missing == 0 and plan.message == ""


def test_a_million_files_take_few_shares() -> None:
    plan = share(Wish(1, 3, "site"), [files(10**6)], [storage(i, f"site{i % 7}") for i in range(50)])
    assert len(plan.shares) <= 51
    assert sum(s.files for s in plan.shares) == 10**6
    assert sum(s.size_bytes for s in plan.shares) == 10**7


def test_the_same_view_gives_the_same_shares_in_any_order() -> None:
    world = [storage(i, f"site{i % 3}", share=str(1 + i % 4)) for i in range(12)]
    wish = Wish(1, 2, "site", "share")
    assert share(wish, [files(999)], world) == share(wish, [files(999)], world[::-1])


def test_files_go_to_storages_in_proportion_to_their_weight() -> None:
    world = [storage(1, share="1"), storage(2, share="2"), storage(3, share="5"), storage(4, share="0"), storage(5)]
    plan = share(Wish(1, 1, weight="share"), [files(8000)], world)
    assert per_storage(plan) == {1: 1000, 2: 2000, 3: 5000}


def test_no_storage_takes_a_file_twice_however_heavy_it_is() -> None:
    world = [storage(1, share="1000"), storage(2, share="1"), storage(3, share="1")]
    plan = share(Wish(1, 2, weight="share"), [files(1000)], world)
    assert per_storage(plan) == {1: 1000, 2: 500, 3: 500}


def test_weight_zero_takes_what_the_others_cannot() -> None:
    world = [storage(1, free_bytes=3000, share="1"), storage(2, share="0")]
    assert per_storage(share(Wish(1, 1, weight="share"), [files(1000)], world)) == {1: 300, 2: 700}


def test_many_classes_of_one_file_are_in_proportion_too() -> None:
    world = [storage(1, share="1"), storage(2, share="3")]
    plan = share(Wish(1, 1, weight="share"), [files(1, id=i) for i in range(2000)], world)
    assert 420 < per_storage(plan)[1] < 580


def test_storages_where_the_files_are_come_first() -> None:
    world = [storage(1), storage(2), replace(storage(3, free_bytes=0), can_write=False)]
    plan = share(Wish(1, 2), [files(100, 1000, holders=[3])], world)
    assert per_storage(plan) == {3: 100, 1: 50, 2: 50}
    assert plan.promised[3] == 0 and plan.charged[3] == 1000
    assert plan.promised[1] + plan.promised[2] == 1000


def test_what_a_rule_holds_counts_and_takes_its_spread_value() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern")]
    plan = share(Wish(1, 2, "site"), [files(100, holders=[1], held=[1])], world, held=[world[0]])
    assert per_storage(plan) == {3: 100} and plan.missing == 0


def test_a_class_without_the_lock_of_another_class_is_placed_anew() -> None:
    gone = storage(9)
    plan = share(Wish(1, 1), [files(10, held=[9]), files(10, id=2)], [storage(1)], held=[gone])
    assert [(s.class_id, s.storage_ids, s.files) for s in plan.shares] == [(2, (1,), 10)]
    assert plan.unmatched == (9,)


def test_all_means_every_matching_storage() -> None:
    world = [storage(1, "perth"), storage(2, "perth"), storage(3, "bern")]
    assert per_storage(share(Wish(1, None), [files(10)], world)) == {1: 10, 2: 10, 3: 10}
    by_site = per_storage(share(Wish(1, None, "site"), [files(10)], world))
    assert by_site[3] == 10 and by_site[1] + by_site[2] == 10


def test_when_space_is_short_every_file_gets_one_copy_before_any_gets_two() -> None:
    world = [storage(1, free_bytes=800), storage(2, free_bytes=700)]
    plan = share(Wish(1, 2), [files(100)], world)
    assert per_storage(plan) == {1: 80, 2: 70} and copies_per_file(plan, 100) == {1, 2}
    assert plan.missing == 50
    assert plan.message == "50 of 200 copies have no storage: 2 match, 2 full, 2 can take it"
    reasons = {"s1 is full (room for 80 of 100 files)", "s2 is full (room for 70 of 100 files)"}
    assert {r.reason for r in plan.rejected} == reasons


def test_classes_share_one_budget() -> None:
    world = [storage(1, free_bytes=1500), storage(2, free_bytes=None)]
    plan = share(Wish(1, 1), [files(100, id=1), files(100, id=2), files(100, id=3)], world, quota={2: 1000})
    assert per_storage(plan) == {1: 150, 2: 100} and plan.missing == 50
    assert {r.cause for r in plan.rejected} == {Cause.FULL, Cause.OVER_QUOTA}
    assert Budget.of(world).spend(plan) == Budget({1: 0, 2: None})


def test_nothing_to_place_is_no_share() -> None:
    assert share(Wish(1, 2), [], [storage(1)]).shares == ()
    assert share(Wish(1, 2), [files(0)], [storage(1)]).shares == ()
    nowhere = share(Wish(1, 2), [files(5)], [])
    assert nowhere.missing == 10
    assert nowhere.message == "10 of 10 copies have no storage: no storage matches"


# Small worlds, held against every possible assignment of single files.

STORAGES = st.builds(
    lambda id, site, free, write, weight: replace(storage(id, site, free, share=weight), can_write=write),
    st.integers(1, 4), st.sampled_from("abc"), st.sampled_from([None, 0, 10, 25, 30]),
    st.integers(0, 3).map(bool), st.sampled_from(["0", "1", "2.5", "1e-300"]),
)  # fmt: skip
WORLDS = st.lists(STORAGES, max_size=4, unique_by=lambda s: s.id)
SUBSETS = st.sets(st.integers(1, 4), max_size=2)


def most_copies(world: Sequence[Storage], files: FileClass, copies: int, spread: bool) -> int:
    """The greatest number of copies that files of 10 bytes can get, by trying everything."""
    rooms = tuple(
        files.files if s.id in files.holders or (s.free_bytes is None and s.can_write)
        else (s.free_bytes or 0) // 10 if s.can_write else 0
        for s in world
    )  # fmt: skip

    @cache
    def best(left: int, rooms: tuple[int, ...]) -> int:
        if not left:
            return 0
        after = ((len(used), tuple(r - (i in used) for i, r in enumerate(rooms))) for used in subsets(rooms))
        return max(n + best(left - 1, rest) for n, rest in after)

    def subsets(rooms: tuple[int, ...]) -> list[frozenset[int]]:
        found = [frozenset[int]()]
        for i, room in enumerate(rooms):
            found += [used | {i} for used in found if room and len(used) < copies and free_of(i, used)]
        return found

    def free_of(i: int, used: frozenset[int]) -> bool:
        return not spread or all(world[i].site != world[j].site for j in used)

    return best(files.files, rooms)


@given(WORLDS, SUBSETS, st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(1, 50))
def test_no_assignment_of_single_files_has_more_copies(
    world: list[Storage], holders: set[int], n: int, copies: int, spread: bool, weighted: bool, seed: int
) -> None:
    group = files(n, n * 10, sorted(holders), id=seed)
    plan = share(Wish(seed, copies, "site" if spread else None, "share" if weighted else None), [group], world)
    placed = sum(len(s.storage_ids) * s.files for s in plan.shares)
    assert placed == most_copies(world, group, copies, spread)
    assert plan.missing == n * copies - placed and bool(plan.message) == bool(plan.missing)
    assert max(copies_per_file(plan, n)) - min(copies_per_file(plan, n)) <= 1 or not placed
    by_id = {s.id: s for s in world}
    for s in plan.shares:
        assert len(set(s.storage_ids)) == len(s.storage_ids) <= copies and s.files > 0
        assert not spread or len({by_id[i].site for i in s.storage_ids}) == len(s.storage_ids)


SIZES = st.integers(0, 10**13)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), SIZES, SUBSETS), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), SIZES), st.one_of(st.none(), SIZES)), max_size=6),
    st.integers(1, 4),
    st.booleans(),
)
def test_space_and_quota_are_never_exceeded_and_nothing_is_counted_twice(
    sizes: list[tuple[int, int, set[int]]],
    rooms: list[tuple[str, int | None, int | None]],
    copies: int,
    spread: bool,
) -> None:
    world = [storage(i, site, free) for i, (site, free, _) in enumerate(rooms, 1)]
    quota = {i: left for i, (_, _, left) in enumerate(rooms, 1)}
    classes = [FileClass(i, n, size, frozenset(holders)) for i, (n, size, holders) in enumerate(sizes)]
    plan = share(Wish(1, copies, "site" if spread else None), classes, world, quota=quota)
    left = Budget.of(world, quota).spend(plan)
    assert all(value is None or value >= 0 for value in [*left.free_bytes.values(), *left.quota_bytes.values()])
    for group in classes:
        mine = [s for s in plan.shares if s.class_id == group.id]
        assert len(mine) <= len(world) + 1
        assert sum(s.files for s in mine) <= group.files and sum(s.size_bytes for s in mine) <= group.size_bytes
    wanted = sum(group.files for group in classes) * copies
    assert plan.missing == wanted - sum(len(s.storage_ids) * s.files for s in plan.shares)
