"""What the cluster's lab calls a history of one register, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.lab.cluster.history import Operation, StoreChange, StoreRead, disorder, linearizable, operations_of
from jumpvpn.lab.cluster.varints import fields_of

S = "ab" * 16


def change(revision: int, version: int, owner: str = "gw1", term: int = 1, **more: Any) -> StoreChange:
    record = {"version": version, "owner": owner, "term": term, "epoch": 1, "seq": version, "state": "ATTACHED"}
    name = "dead" if more.get("state") == "TERMINATED" else "live"
    return StoreChange(f"{name}/{S}", revision, revision * 10, False, {**record, **more})


def gone(revision: int) -> StoreChange:
    return StoreChange(f"live/{S}", revision, revision * 10, True, {})


GOOD = [
    change(2, 1), change(5, 4), change(6, 5, "gw2", 2), change(9, 8, "gw2", 2, epoch=3),
    change(11, 9, "gw2", 2, epoch=3, state="TERMINATED"), gone(11),
]  # fmt: skip


def test_a_life_across_two_owners_is_in_order() -> None:
    assert disorder(GOOD) == []
    assert disorder(reversed(GOOD)) == []  # the store's order is that of its revisions


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (change(7, 5, "gw2", 2), "version 5 follows 5"),
        (change(7, 4, "gw2", 2), "version 4 follows 5"),
        (change(7, 6, "gw1", 2), "owner gw2 became gw1 within term 2"),
        (change(7, 6, "gw1", 1), "term 1 follows 2"),
        (change(7, 6, "gw1", 4), "term 4 follows 2"),
        (change(10, 10, "gw2", 2, epoch=2), "epoch 2 follows 3"),
        (change(10, 10, "gw2", 2, epoch=3, seq=1), "seq 1 follows 8"),
        (change(12, 10, "gw2", 2, epoch=3), "after it was terminated"),
        (gone(10), "without being terminated"),
    ],
)
def test_each_broken_rule_is_named(wrong: StoreChange, words: str) -> None:
    assert any(words in fault for fault in disorder([*GOOD, wrong])), disorder([*GOOD, wrong])


def test_concurrent_operations_may_take_either_order() -> None:
    write = Operation(0, 100, 1, expected=0)
    assert linearizable([write, Operation(10, 20, 0), Operation(30, 40, 1)])
    assert not linearizable([write, Operation(10, 20, 1), Operation(30, 40, 0)])  # new, then old: a stale read


def test_a_read_after_the_return_of_a_write_may_not_miss_it() -> None:
    assert not linearizable([Operation(0, 10, 1, expected=0), Operation(11, 12, 0)])
    assert linearizable([Operation(0, 10, 1, expected=0), Operation(9, 12, 0)])


def test_two_takers_cannot_both_win_from_one_version() -> None:
    both = [Operation(0, 10, 2, expected=1), Operation(0, 10, 3, expected=1)]
    assert not linearizable(both, initial=1)
    assert linearizable(both[:1], initial=1)


def test_an_unanswered_write_may_or_may_not_have_happened() -> None:
    unknown = Operation(0, None, 1, expected=0)
    assert linearizable([unknown, Operation(50, 60, 0)])
    assert linearizable([unknown, Operation(50, 60, 1)])
    assert not linearizable([unknown, Operation(50, 60, 1), Operation(61, 70, 0)])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 8)), max_size=12))
def test_what_one_register_did_is_always_linearizable(plan: list[tuple[int, int, int]]) -> None:
    """Operations made by a real register, each widened by any amount around the moment when it took place."""
    value, operations = 0, []
    for moment, (kind, early, late) in enumerate(plan):
        if kind:
            operations.append(Operation(moment * 4 - early, moment * 4 + late, value))
        else:
            operations.append(Operation(moment * 4 - early, moment * 4 + late, value + 1, expected=value))
            value += 1
    assert linearizable(operations)


def test_reads_and_watched_writes_become_one_history() -> None:
    read = StoreRead(S, 45, 55, 5, 4)
    assert linearizable(operations_of(S, GOOD, [read]))
    stale = StoreRead(S, 100, 105, 9, 4)
    assert not linearizable(operations_of(S, GOOD, [stale]))
    assert operations_of("cd" * 16, GOOD, [stale]) == []


def test_small_messages_are_read_and_odd_ones_refused() -> None:
    assert fields_of(bytes.fromhex("0a0310960120ac02")) == {1: bytes.fromhex("109601"), 4: 300}
    for wrong in ("08", "0d00000000", "0880"):
        with pytest.raises(ValueError, match=r"number|wire type"):
            fields_of(bytes.fromhex(wrong))
