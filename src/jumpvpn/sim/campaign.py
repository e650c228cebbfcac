"""Many seeds, over processes; the result does not depend on how many or on who finished first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jumpvpn.sim.played import Judge, Play, Played
from jumpvpn.workers import workers

CHUNK = 8  # seeds that a process takes at a time: enough to hide the hand-over, few enough for a steady progress
TRANSCRIPTS_MAX = 10  # failing seeds whose transcripts are kept; the others can be played again


@dataclass(slots=True)
class Tally:
    """What all seeds showed together. ``failed`` keeps every failing outcome, in order of seed."""

    seeds: int = 0
    virtual_ns: int = 0
    steps: int = 0
    ends: Counter[tuple[str, ...]] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    themes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    failed: list[Played] = field(default_factory=list)

    def add(self, outcome: Played) -> None:
        """Count one seed."""
        self.seeds += 1
        self.virtual_ns += outcome.virtual_ns
        self.steps += outcome.steps
        self.ends[outcome.ends] += 1
        self.rows.update(outcome.rows)
        self.reasons.update(outcome.reasons)
        self.checks.update(outcome.checks)
        self.themes[outcome.theme] += 1
        self.notes.update(outcome.notes)
        if outcome.recovery_s is not None:
            self.recoveries.append(outcome.recovery_s)
        if outcome.failure is not None:
            if len(self.failed) >= TRANSCRIPTS_MAX:
                outcome.transcript = ()
            self.failed.append(outcome)


def play_one(
    play: Play, seed: int, *, judge: Judge | None = None, directory: Path | None = None, tell: bool = False
) -> Played:
    """One seed; its journals go to ``directory``, each as ``SEED-NODE.jsonl``. Raises OSError."""
    outcome = play(seed, judge, tell=tell)
    if directory is not None:
        for node, lines in outcome.journals.items():
            (directory / f"{seed}-{node}.jsonl").write_bytes(b"".join(lines))
    outcome.journals = {}
    return outcome


def campaign(
    play: Play,
    seeds: Iterable[int],
    jobs: int,
    progress: Callable[[Tally], None],
    *,
    judge: Judge | None = None,
    directory: Path | None = None,
) -> Tally:
    """Play ``seeds`` in ``jobs`` processes (1: in this one). ``progress`` hears of every seed. Raises OSError."""
    tally = Tally()
    one = partial(play_one, play, judge=judge, directory=directory)
    for outcome in _outcomes(one, seeds, jobs):
        tally.add(outcome)
        progress(tally)
    return tally


def _outcomes(one: Callable[[int], Played], seeds: Iterable[int], jobs: int) -> Iterator[Played]:
    if jobs <= 1:
        yield from map(one, seeds)
        return
    with workers(jobs) as pool:
        yield from pool.imap(one, seeds, chunksize=CHUNK)
