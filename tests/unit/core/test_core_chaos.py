"""A fixed range of the simulation's seeds: whatever happens to nodes, networks, stores, clocks, the promises hold."""

from __future__ import annotations

import pytest

from jumpvpn.sim.judge import journal_judge
from jumpvpn.sim.run import Run

SEEDS = 60
PER_TEST = 10


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_every_promise_holds_under_random_faults(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        outcome = Run(seed).play(journal_judge)
        assert outcome.failure is None, "\n".join([str(outcome.failure), *outcome.transcript])
