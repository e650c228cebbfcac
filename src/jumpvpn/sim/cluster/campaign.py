"""Many seeds, over processes; the result does not depend on how many or on who finished first."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jumpvpn.sim.cluster.run import Judge, Outcome, play
from jumpvpn.values import HOUR

CHUNK = 8  # seeds that a process takes at a time
TRANSCRIPTS_MAX = 10  # failing seeds whose transcripts are kept; the others can be played again
COMMAND = "python -m jumpvpn.sim.cluster --seed {seed}"


@dataclass(slots=True)
class Total:
    """What all seeds showed together."""

    seeds: int = 0
    virtual_ns: int = 0
    steps: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    themes: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        self.seeds += 1
        self.virtual_ns += outcome.virtual_ns
        self.steps += outcome.steps
        self.ends.update(outcome.ends)
        self.checks.update(outcome.checks)
        self.notes.update(outcome.notes)
        self.themes[outcome.theme] += 1
        if outcome.recovery_s is not None:
            self.recoveries.append(outcome.recovery_s)
        if outcome.failure is not None:
            if len(self.failed) >= TRANSCRIPTS_MAX:
                outcome.transcript = ()
            self.failed.append(outcome)


def play_one(seed: int, *, judge: Judge | None = None, directory: Path | None = None, tell: bool = False) -> Outcome:
    """One seed; its journals go to ``directory``: ``SEED-NODE.jsonl``. Raises OSError."""
    outcome = play(seed, judge, tell=tell)
    if directory is not None:
        for node, lines in outcome.journals.items():
            (directory / f"{seed}-{node}.jsonl").write_bytes(b"".join(lines))
    outcome.journals = {}
    return outcome


def campaign(
    seeds: Iterable[int], jobs: int, progress: Callable[[Total], None], *, judge: Judge | None = None,
    directory: Path | None = None,
) -> Total:  # fmt: skip
    """Play ``seeds`` in ``jobs`` processes (1: in this one). ``progress`` hears of every seed. Raises OSError."""
    total = Total()
    for outcome in _outcomes(partial(play_one, judge=judge, directory=directory), seeds, jobs):
        total.add(outcome)
        progress(total)
    return total


def _outcomes(one: Callable[[int], Outcome], seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    if jobs <= 1:
        yield from map(one, seeds)
        return
    # Fresh interpreters, deaf to Ctrl-C from their very beginning, which they inherit.
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        workers = multiprocessing.get_context("spawn").Pool(jobs)
    finally:
        signal.signal(signal.SIGINT, heard)
    with workers as pool:
        yield from pool.imap(one, seeds, chunksize=CHUNK)


def text(total: Total) -> Iterator[str]:
    """Lines for people."""
    hours = total.virtual_ns / HOUR
    yield f"{total.seeds} seeds, {hours:.1f} virtual hours, {total.steps} steps, {sum(total.checks.values())} checks"
    yield "themes: " + _counts(total.themes)
    yield "clients at the end: " + _counts(total.ends)
    if total.recoveries:
        ordered = sorted(total.recoveries)
        late = ordered[len(ordered) * 99 // 100]
        yield f"settled after the heal: {ordered[len(ordered) // 2]:g} s in the middle, {late:g} s for 99 of 100"
    yield "notes (samples with more than one gateway acting, seeds not audited): " + _counts(total.notes)
    yield "checks: " + _counts(total.checks)
    for outcome in total.failed:
        yield from failure(outcome)
    yield f"{len(total.failed)} of {total.seeds} seeds failed"


def failure(outcome: Outcome) -> Iterator[str]:
    """One failing seed: what broke, what led to it, how to see it again."""
    assert outcome.failure is not None, "only failures are told here"
    yield ""
    yield f"FAILED {outcome.failure.prop}: expected {outcome.failure.expected}"
    yield f"       {outcome.failure.seen}"
    yield from outcome.transcript
    yield f"again: {COMMAND.format(seed=outcome.seed)}"


def summary(total: Total) -> dict[str, Any]:
    """Figures for machines: the same for the same seeds, whatever the machine."""
    return {
        "seeds": total.seeds, "virtual_s": total.virtual_ns // 1_000_000_000, "steps": total.steps,
        "themes": dict(sorted(total.themes.items())), "properties": dict(sorted(total.checks.items())),
        "ends": dict(sorted(total.ends.items())), "notes": dict(sorted(total.notes.items())),
        "failed": [of_failure(outcome) for outcome in total.failed],
    }  # fmt: skip


def of_failure(outcome: Outcome) -> dict[str, Any]:
    """One failing seed for machines."""
    assert outcome.failure is not None, "only failures are told here"
    broken = outcome.failure
    return {
        "seed": outcome.seed, "property": broken.prop, "expected": broken.expected, "seen": broken.seen,
        "command": COMMAND.format(seed=outcome.seed),
    }  # fmt: skip


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
