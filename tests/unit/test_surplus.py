"""Which locks go when fewer copies are asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dlm.core.placement import Wish
from dlm.core.surplus import Held, Surplus, choose, tiers
from dlm.types import Storage


def storage(id_: int, site: str = "perth", *, is_available: bool = True) -> Storage:
    return Storage(id_, f"s{id_}", site, "AU", "disk", "gas", None, True, True, True, is_available, {})


def held(id_: int, files_ok: int = 5, site: str = "perth", *, is_available: bool = True, is_filled: bool = True) -> Held:
    return Held(storage(id_, site, is_available=is_available), 5, files_ok, is_filled)


def chosen(copies: int | None, *locks: Held, spread: str | None = None, matching: set[int] | None = None) -> Surplus:
    known = {each.storage.id for each in locks} if matching is None else matching
    return choose(Wish(7, copies, spread), 1, locks, known)


def test_what_no_longer_matches_goes_first_however_complete_it_is() -> None:
    found = chosen(2, held(1), held(2, 4), held(3, 3), matching={2, 3})
    assert found.going == {1: "no longer matches"} and set(found.kept) == {2, 3}


def test_then_what_is_unavailable_and_then_where_least_is_verified() -> None:
    assert chosen(2, held(1, is_available=False), held(2, 4), held(3, 3)).going == {1: "unavailable"}
    assert chosen(2, held(1, 3), held(2, 4), held(3, 5)).going == {1: "3 of 5 files verified there"}


def test_nothing_is_due_before_all_that_stays_is_complete() -> None:
    for waiting in (held(2, 4), held(2, is_filled=False)):
        found = chosen(2, held(1, 0), waiting, held(3))
        assert found.awaited == (2,) and not found.is_due and found.is_waiting
    assert chosen(2, held(1, 0), held(2), held(3)).is_due


def test_what_stays_obeys_the_spread() -> None:
    found = chosen(2, held(1), held(2), held(3, 3, "bern"), spread="site")
    assert 3 in found.kept and len(found.kept) == 2
    assert list(found.going.values()) in (["same site as s1"], ["same site as s2"])
    assert not found.is_due


def test_nothing_goes_from_what_lacks_a_copy_by_spread() -> None:
    found = chosen(2, held(1), held(2), held(3), spread="site")
    assert found.is_short and not found.going and found.is_waiting


def test_a_storage_without_a_spread_value_shares_it_with_none_whose_value_is_its_id() -> None:
    found = tiers(Wish(7, 2, "country"), [replace(storage(1), country=None), replace(storage(2), country="1")], {1, 2})
    assert len({each.domain for each in found}) == 2


def test_all_that_match_are_never_too_many() -> None:
    found = chosen(None, held(1), held(2))
    assert not found.going and not found.is_waiting


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_choice_is_the_best_there_is_and_the_same_in_any_order(
    facts: list[tuple[str, int, bool, bool]], copies: int, is_spread: bool
) -> None:
    """Against all subsets: none of that size, spread as asked, is at better storages."""
    locks = [held(id_, ok, site, is_available=up) for id_, (site, ok, up, _) in enumerate(facts)]
    matching = {id_ for id_, fact in enumerate(facts) if fact[3]}
    spread = "site" if is_spread else None
    found = chosen(copies, *locks, spread=spread, matching=matching)
    assert found == chosen(copies, *reversed(locks), spread=spread, matching=matching)
    assert sorted([*found.kept, *found.going]) == list(range(len(locks)))
    rank = {each.storage.id: (each.storage.id not in matching, not each.storage.is_available, -each.files_ok) for each in locks}
    fitting = [
        each
        for each in itertools.combinations(range(len(locks)), copies)
        if spread is None or len({locks[id_].storage.site for id_ in each}) == copies
    ]
    if not fitting:
        assert not found.going
        return
    best = min(sorted(rank[id_] for id_ in each) for each in fitting)
    assert sorted(rank[id_] for id_ in found.kept) == best
