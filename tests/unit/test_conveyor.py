"""The conveyor's planner: which source, which next step, whose turn."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.core.conveyor import (
    JITTER,
    STEPS,
    SUSPICIONS,
    Cancel,
    Candidate,
    Lane,
    Next,
    Park,
    Patience,
    Step,
    Transfer,
    Wait,
    Wish,
    after_failure,
    backoff_s,
    decide,
    next_check_s,
    request_id_from_uuid,
    request_uuid,
    shares,
)
from dlm.errors import InvalidInput
from dlm.types import ErrorClass, ReplicaState, Storage

PATIENCE = Patience()
AVAILABLE, UNVERIFIED, COPYING = ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED, ReplicaState.COPYING


def storage(number: int, site: str = "perth", country: str | None = "AU", **values: object) -> Storage:
    usual = Storage(
        id=number,
        name=f"s{number}",
        site=site,
        country=country,
        type="disk",
        phase="gas",
        free_bytes=None,
        can_read=True,
        can_write=True,
        can_delete=True,
        is_available=True,
        attributes={},
    )
    return replace(usual, **values)


def wish(*replicas: Candidate, **values: object) -> Wish:
    usual = Wish(request_id=7, did_id=70, storage_id=1, age_s=10, is_held=True, source_ids=None, replicas=replicas)
    return replace(usual, **values)


def decided(wanted: Wish, *storages: Storage) -> Transfer | Wait | Park | Cancel:
    everything = {1: storage(1)} | {each.id: each for each in storages}
    (action,) = decide([wanted], everything, PATIENCE)
    return action


# --- sources


def test_the_nearest_source_is_taken() -> None:
    far, same_country, same_site = storage(2, "bern", "CH"), storage(3, "sydney"), storage(4)
    replicas = [Candidate(number, AVAILABLE) for number in (2, 3, 4)]
    assert decided(wish(*replicas), far, same_country, same_site) == Transfer(7, 4, has_other=True)
    assert decided(wish(*replicas[:2]), far, same_country) == Transfer(7, 3, has_other=True)


def test_a_verified_source_goes_before_a_nearer_one_that_nobody_read() -> None:
    action = decided(wish(Candidate(2, AVAILABLE), Candidate(3, UNVERIFIED)), storage(2, "bern", "CH"), storage(3))
    assert action == Transfer(7, 2, has_other=True)


def test_a_source_that_failed_goes_after_one_that_did_not() -> None:
    action = decided(wish(Candidate(2, AVAILABLE, failures=1), Candidate(3, UNVERIFIED)), storage(2), storage(3))
    assert action == Transfer(7, 3, has_other=False)


def test_sites_without_a_country_are_not_in_the_same_one() -> None:
    here = storage(1, "a", None)
    action = decided(
        wish(Candidate(2, AVAILABLE), Candidate(3, AVAILABLE)), here, storage(2, "b", None), storage(3, "a")
    )
    assert action == Transfer(7, 3, has_other=True)


def test_equal_sources_share_the_load_and_each_request_keeps_its_choice() -> None:
    replicas = (Candidate(2, AVAILABLE), Candidate(3, AVAILABLE))
    wishes = [wish(*replicas, request_id=number) for number in range(1, 401)]
    everything = {number: storage(number) for number in (1, 2, 3)}
    first = decide(wishes, everything, PATIENCE)
    assert first == decide(wishes, everything, PATIENCE)
    assert 150 < sum(action.source_id == 2 for action in first) < 250


def test_only_what_a_source_expression_matches_is_a_source() -> None:
    replicas = (Candidate(2, AVAILABLE), Candidate(3, AVAILABLE))
    allowed = wish(*replicas, source_ids=frozenset({3}))
    assert decided(allowed, storage(2), storage(3, "bern", "CH")) == Transfer(7, 3, has_other=False)


# --- no source


def test_no_source_comes_with_its_arithmetic() -> None:
    replicas = (Candidate(2, ReplicaState.BAD), Candidate(3, AVAILABLE), Candidate(4, AVAILABLE))
    action = decided(
        wish(*replicas),
        storage(2),
        storage(3, is_available=False, reason="no marker"),
        storage(4, can_read=False, reason="disk replacement"),
    )
    assert isinstance(action, Wait)
    assert action.error_class is ErrorClass.SOURCE_UNAVAILABLE
    assert action.reason == (
        "no source: 3 replicas exist, 1 bad on s2, 1 on s3 which is unavailable (no marker), "
        "1 on s4 which has read switched off (disk replacement)"
    )


def test_without_any_other_replica_the_request_is_parked() -> None:
    assert decided(wish()) == Park(7, ErrorClass.NO_SOURCE, "no source: no other replica exists")


def test_bad_and_lost_replicas_are_no_sources() -> None:
    action = decided(wish(Candidate(2, ReplicaState.LOST)), storage(2))
    assert action == Park(7, ErrorClass.NO_SOURCE, "no source: 1 replica exists, 1 lost on s2")


def test_a_replica_that_the_rule_does_not_allow_is_named() -> None:
    action = decided(wish(Candidate(2, AVAILABLE), source_ids=frozenset({3})), storage(2))
    assert action == Park(
        7, ErrorClass.NO_SOURCE, "no source: 1 replica exists, 1 on s2 which no source expression matches"
    )


def test_a_source_that_is_on_its_way_is_waited_for() -> None:
    chain = wish(Candidate(2, AVAILABLE), Candidate(3, COPYING), source_ids=frozenset({3}))
    assert isinstance(decided(chain, storage(2), storage(3)), Wait)


def test_two_copies_that_wait_for_each_other_are_no_sources() -> None:
    assert isinstance(decided(wish(Candidate(3, COPYING)), storage(3)), Park)


def test_what_no_lock_holds_is_cancelled_whatever_its_sources() -> None:
    assert decided(wish(Candidate(2, AVAILABLE), is_held=False), storage(2)) == Cancel(7, "no lock holds it any more")


@pytest.mark.parametrize("switch", ["is_available", "can_write"])
def test_a_destination_that_takes_nothing_is_waited_for(switch: str) -> None:
    action = decided(wish(Candidate(2, AVAILABLE)), storage(1, **{switch: False}), storage(2))
    assert isinstance(action, Wait)
    assert action.error_class is ErrorClass.DESTINATION_UNAVAILABLE


def test_waiting_grows_with_age_and_is_bounded() -> None:
    unavailable = storage(2, is_available=False)
    waits = [decided(wish(Candidate(2, AVAILABLE), age_s=age), unavailable).delay_s for age in (0, 300, 10**7)]
    assert waits == sorted(waits)
    assert PATIENCE.wait_base_s * (1 - JITTER) <= waits[0] and waits[-1] <= PATIENCE.wait_max_s * (1 + JITTER)


# --- what follows a failure


def test_every_class_of_error_has_one_next_step() -> None:
    assert set(STEPS) == set(ErrorClass)
    assert {error for error, step in STEPS.items() if step is Step.HARM} == set(SUSPICIONS)


@pytest.mark.parametrize("error_class", list(ErrorClass))
@pytest.mark.parametrize("attempts", [1, PATIENCE.max_attempts, 1000])
@pytest.mark.parametrize("has_other", [False, True])
def test_every_failure_has_a_next_time(error_class: ErrorClass, attempts: int, has_other: bool) -> None:
    following = after_failure(error_class, wish(), attempts, has_other, PATIENCE)
    step = STEPS[error_class]
    if step is Step.WAIT:
        assert not following.is_parked and not following.is_counted and following.delay_s > 0
    elif step is Step.PARK or attempts >= PATIENCE.max_attempts:
        assert following == Next(is_parked=True, delay_s=PATIENCE.parked_retry_s)
    else:
        at_once = has_other and step in (Step.NEXT_SOURCE, Step.HARM)
        assert not following.is_parked and (following.delay_s == 0) == at_once


def test_credentials_that_expired_never_park_a_request() -> None:
    assert not after_failure(ErrorClass.PERMISSION, wish(), 1000, False, PATIENCE).is_parked


def test_backoff_doubles_to_its_most() -> None:
    patience = Patience(backoff_base_s=10, backoff_max_s=100)
    for attempts, middle in ((1, 10), (2, 20), (3, 40), (5, 100), (1000, 100)):
        assert middle * (1 - JITTER) <= backoff_s(attempts, 7, patience) <= middle * (1 + JITTER)


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_checks_are_spread_about_the_cycle(did_id: int, storage_id: int) -> None:
    assert 90 <= next_check_s(100, did_id, storage_id) <= 110


# --- shares

LANES = st.lists(
    st.builds(Lane, st.integers(1, 6), st.integers(1, 5), st.integers(1, 50), st.integers(1, 60)),
    max_size=20,
    unique_by=lambda lane: (lane.storage_id, lane.priority),
)


def one_room(lanes: list[Lane]) -> list[Lane]:
    rooms = {lane.storage_id: lane.room for lane in lanes}
    return [replace(lane, room=rooms[lane.storage_id]) for lane in lanes]


@given(LANES.map(one_room), st.integers(1, 100))
def test_shares_use_the_batch_and_respect_room_and_fairness(lanes: list[Lane], batch: int) -> None:
    taken: dict[int, int] = {}
    for storage_id, priority, take in shares(lanes, batch):
        (lane,) = (lane for lane in lanes if (lane.storage_id, lane.priority) == (storage_id, priority))
        assert 0 < take <= lane.waiting
        taken[storage_id] = taken.get(storage_id, 0) + take
    needs = {
        lane.storage_id: min(lane.room, sum(other.waiting for other in lanes if other.storage_id == lane.storage_id))
        for lane in lanes
    }
    assert sum(taken.values()) == min(batch, sum(needs.values()))
    assert all(taken.get(each, 0) <= need for each, need in needs.items())
    least_unmet = min((taken.get(each, 0) for each, need in needs.items() if taken.get(each, 0) < need), default=None)
    if least_unmet is not None:
        assert max(taken.values()) <= least_unmet + 1


def test_within_a_storage_the_urgent_come_first() -> None:
    assert shares([Lane(1, 2, 10, 99), Lane(1, 5, 3, 99)], 5) == [(1, 5, 3), (1, 2, 2)]


def test_a_long_queue_leaves_a_short_one_its_place() -> None:
    assert sorted(shares([Lane(1, 3, 1000, 1000), Lane(2, 3, 2, 1000)], 100)) == [(1, 3, 98), (2, 3, 2)]


# --- public ids


@given(st.integers(1, 2**62 - 1))
def test_a_request_uuid_leads_back_to_its_request(request_id: int) -> None:
    text = request_uuid(request_id)
    assert uuid.UUID(text).version == 8 and uuid.UUID(text).variant == uuid.RFC_4122
    assert request_id_from_uuid(text) == request_id
    assert request_id_from_uuid(text.upper()) == request_id


@pytest.mark.parametrize("text", ["", "7", str(uuid.UUID(int=7)), "00000000-0000-4000-8000-000000000007", "x" * 10**6])
def test_any_other_text_is_no_request(text: str) -> None:
    with pytest.raises(InvalidInput):
        request_id_from_uuid(text)


@pytest.mark.parametrize("request_id", [0, -1, 2**62])
def test_an_id_out_of_range_has_no_uuid(request_id: int) -> None:
    with pytest.raises(InvalidInput):
        request_uuid(request_id)
