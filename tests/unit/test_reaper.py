"""What may go, and what may not: decisions on hand-made views, and the rule stated once more as an oracle."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.core.reaper import REAPABLE, Cause, Copy, Drop, DropProof, File, Keep, KeepAction, decide, prove
from dlm.errors import UnsafeDrop
from dlm.types import ReplicaState

AVAILABLE = ReplicaState.AVAILABLE


def copy(storage_id: int, state: ReplicaState = AVAILABLE, **facts: bool) -> Copy:
    plain = Copy(7, storage_id, state, 1, False, False, False, False, True)
    return dataclasses.replace(plain, **facts)


def due(storage_id: int, state: ReplicaState = AVAILABLE, **facts: bool) -> Copy:
    return copy(storage_id, state, has_tombstone=True, **facts)


def file(wanted: int, *copies: Copy) -> File:
    return File(7, wanted, copies, frozenset(c.storage_id for c in copies if c.has_tombstone))


def dropped(verdicts: list[Drop | Keep]) -> list[int]:
    return [verdict.proof.storage_id for verdict in verdicts if isinstance(verdict, Drop)]


def test_a_file_that_nobody_wants_goes_without_witnesses() -> None:
    (verdict,) = decide([file(0, due(1))])
    assert isinstance(verdict, Drop)
    assert (verdict.proof.cause, verdict.proof.wanted, verdict.proof.witnesses) == (Cause.UNWANTED, 0, ())


def test_a_surplus_copy_goes_when_the_wanted_copies_stay_elsewhere() -> None:
    (verdict,) = decide([file(2, copy(1, is_locked=True), due(2), copy(3))])
    assert isinstance(verdict, Drop)
    assert (verdict.proof.cause, verdict.proof.witnesses, verdict.proof.fence) == (Cause.SURPLUS, (1, 3), 2)


def test_a_locked_copy_is_kept_and_its_stale_tombstone_cleared() -> None:
    (verdict,) = decide([file(0, due(1, is_locked=True))])
    assert isinstance(verdict, Keep)
    assert verdict.action is KeepAction.CLEAR


def test_a_copy_that_a_request_will_make_is_kept() -> None:
    (verdict,) = decide([file(0, due(1, has_request=True))])
    assert isinstance(verdict, Keep)
    assert verdict.action is KeepAction.LATER


@pytest.mark.parametrize(
    "other",
    [
        copy(2, ReplicaState.UNVERIFIED),
        copy(2, ReplicaState.BAD),
        copy(2, ReplicaState.LOST),
        copy(2, ReplicaState.COPYING),
        copy(2, ReplicaState.DELETING),
        copy(2, is_doubted=True),
        copy(2, is_reachable=False),
        copy(2, is_doubted=True, is_locked=True),
    ],
)
def test_what_is_not_a_good_copy_that_stays_is_no_witness(other: Copy) -> None:
    (verdict,) = decide([file(1, due(1), other)])
    assert isinstance(verdict, Keep)
    assert verdict.reason == "1 copies are wanted, 0 verified ones stay elsewhere"


def test_two_copies_with_tombstones_do_not_witness_each_other() -> None:
    assert dropped(decide([file(1, due(1), due(2))])) == []


def test_a_copy_with_a_later_tombstone_is_no_witness() -> None:
    view = File(7, 1, (due(1), due(2)), frozenset({1}))
    assert dropped(decide([view])) == []


def test_all_surplus_copies_go_in_one_pass_when_enough_stay() -> None:
    assert dropped(decide([file(1, due(1), due(2), copy(3))])) == [1, 2]


def test_a_copy_in_another_workers_state_is_left() -> None:
    (verdict,) = decide([file(0, due(1, ReplicaState.COPYING))])
    assert isinstance(verdict, Keep)
    assert verdict.action is KeepAction.LEAVE


def test_a_proof_cannot_be_made_by_hand() -> None:
    with pytest.raises(UnsafeDrop):
        DropProof(7, 1, 0, (), Cause.UNWANTED, 1)


def test_a_proof_cannot_be_altered_into_another() -> None:
    proof = prove(file(0, due(1)), due(1))
    with pytest.raises((UnsafeDrop, ValueError)):
        dataclasses.replace(proof, storage_id=2)


@pytest.mark.parametrize(
    ("wanted", "target"), [(0, due(1, is_locked=True)), (0, due(1, has_request=True)), (1, due(1))]
)
def test_proving_what_may_not_go_is_a_bug(wanted: int, target: Copy) -> None:
    with pytest.raises(UnsafeDrop):
        prove(file(wanted, target), target)


def test_a_proof_is_about_a_copy_of_that_file() -> None:
    with pytest.raises(UnsafeDrop):
        prove(file(0, due(1)), due(2))


COPIES = st.lists(
    st.builds(
        copy,
        st.integers(1, 6),
        st.sampled_from(list(ReplicaState)),
        has_tombstone=st.booleans(),
        is_locked=st.booleans(),
        has_request=st.booleans(),
        is_doubted=st.booleans(),
        is_reachable=st.booleans(),
    ),
    unique_by=lambda c: c.storage_id,
    max_size=6,
)


@given(wanted=st.integers(0, 4), copies=COPIES)
def test_however_it_looks_the_wanted_verified_copies_are_left(wanted: int, copies: list[Copy]) -> None:
    view = file(wanted, *copies)
    gone = set(dropped(decide([view])))
    left = [c for c in copies if c.storage_id not in gone]
    reachable = [c for c in left if c.state is AVAILABLE and c.is_reachable and not c.is_doubted]
    assert not gone or len(reachable) >= wanted
    assert not any(c.is_locked or c.has_request for c in copies if c.storage_id in gone)


@given(wanted=st.integers(0, 4), copies=COPIES)
def test_every_candidate_has_exactly_one_verdict(wanted: int, copies: list[Copy]) -> None:
    view = file(wanted, *copies)
    assert len(decide([view])) == len(view.candidates)
    assert all(c.state in (*REAPABLE, ReplicaState.DELETING) for c in copies if c.storage_id in dropped(decide([view])))
