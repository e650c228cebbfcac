"""What the shipped engines write under trouble: honest logs never fail, and neither does what is left of them."""

from __future__ import annotations

import random
from functools import cache

import pytest
from audit_logs import judged, rules

from jumpvpn.audit.auditor import Outcome
from jumpvpn.sim.run import Run

SEEDS = range(40)
UNVOUCHED = ("not covered by a checkpoint", "slept or waited for its store")


@cache
def _journals(seed: int) -> tuple[tuple[bytes, ...], ...]:
    return tuple(tuple(lines) for lines in Run(seed).play().journals.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_an_honest_log_breaks_no_rule(seed: int) -> None:
    report = judged(line for journal in _journals(seed) for line in journal)
    assert not rules(report), report.explain()
    assert not report.unreadable
    gaps = [gap.text for verdict in report.faults for gap in verdict.gaps]
    assert all(any(words in gap for words in UNVOUCHED) for gap in gaps), gaps


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_disorder_break_no_rule_either(seed: int) -> None:
    """Whatever is missing, in whatever order the rest comes: nothing that is left may look like a fault."""
    dice = random.Random(seed)
    for loss in (0.02, 0.1, 0.5):
        left: list[bytes] = []
        for journal in _journals(seed):
            end = dice.randrange(len(journal) + 1)
            left += [line for line in journal[:end] if dice.random() > loss]
        for start in range(0, len(left), 30):
            part = left[start : start + 30]
            dice.shuffle(part)
            left[start : start + 30] = part
        report = judged(left)
        assert report.outcome is not Outcome.FAIL, report.explain()
        assert not rules(report)


def test_the_seeds_exercise_most_of_the_table() -> None:
    """So that the tests above say something."""
    covered: set[str] = set()
    for seed in SEEDS:
        report = judged(line for journal in _journals(seed) for line in journal)
        covered |= {row for row, count in report.coverage["rows"].items() if count}
    wanted = {"0", "1", "3", "4", "7", "8", "10", "11", "14", "16", "16.client", "17", "19", "20", "21", "23", "24"}
    assert wanted <= covered, wanted - covered
