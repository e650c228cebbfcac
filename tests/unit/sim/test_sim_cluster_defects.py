"""A defect that somebody builds into the cluster's shell or engines is found within some hundred seeds."""

from __future__ import annotations

import pytest

from jumpvpn.sim.cluster.mutants import MUTANTS, SEEDS, built_in, hunt
from jumpvpn.sim.judge import journal_judge

EXPECTED = {
    "deadline ignored": {"SINGLE_BINDING", "EPOCH", "CHAIN"},
    "beat not awaited": {"SINGLE_BINDING"},
    "claim not fenced by version": {"EPOCH", "VERSION", "SINGLE_BINDING", "CHAIN", "ABSORBING", "TOTALITY", "FINITE"},
    "adoption resets the transport clock": {"CLOCKS"},
    "old epoch kept open after a lost gateway": {"SINGLE_BINDING"},
    "late writes of its own not seen to": {"FINITE"},
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_defect_is_found(name: str) -> None:
    found = hunt(name, journal_judge)
    assert found.outcome is not None, f"not within {SEEDS} seeds"
    assert found.outcome.failure is not None
    assert found.outcome.failure.prop in EXPECTED.get(name, {found.outcome.failure.prop})


@pytest.mark.parametrize("name", MUTANTS)
def test_the_defect_is_gone_afterwards(name: str) -> None:
    swaps = MUTANTS[name]()
    before = [vars(owner)[attribute] for owner, attribute, _ in swaps]
    with built_in(name):
        assert all(vars(owner)[attribute] is not was for (owner, attribute, _), was in zip(swaps, before, strict=True))
    assert [vars(owner)[attribute] for owner, attribute, _ in swaps] == before
