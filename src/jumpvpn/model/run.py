"""Runs explorations and seeded faults in processes of their own, and gathers the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter

from jumpvpn.model.bounds import TINY, Bounds
from jumpvpn.model.explorer import Exploration, explore
from jumpvpn.model.mutants import BY_NAME, MUTANTS
from jumpvpn.model.progress import Progress
from jumpvpn.model.report import MutantResult, Report
from jumpvpn.session.state import Role
from jumpvpn.workers import workers

CUT = 5_000  # worlds: every seeded fault shows nearer to birth than that


def run(bounds: Bounds, mutants: Sequence[str] | None = None, jobs: int = 2, progress: Progress = print) -> Report:
    """Explore both roles within ``bounds``, then the named seeded faults (None: all of them).

    Seeded faults mean something only in a machine that holds: they wait for an exploration without violation.
    """
    tasks = [(role, bounds, progress) for role in (Role.CLIENT, Role.GATEWAY)]
    with workers(min(jobs, len(tasks)), preload=[__name__]) as pool:
        explorations = tuple(pool.starmap(_explored, tasks, chunksize=1))
    names = [mutant.name for mutant in MUTANTS] if mutants is None else list(mutants)
    if names and any(exploration.found for exploration in explorations):
        return Report(bounds.name, explorations, skipped="the machine itself violates a property")
    return Report(bounds.name, explorations, run_mutants(names, jobs, progress))


def run_mutants(names: Sequence[str], jobs: int, progress: Progress, bounds: Bounds = TINY) -> tuple[MutantResult, ...]:
    """Seed each named fault in a process of its own and explore until something catches it."""
    if not names:
        return ()
    results = []
    # A seeded fault dies with its process.
    with workers(min(jobs, len(names)), preload=[__name__], tasks_each=1) as pool:
        for result in pool.imap(partial(judged, bounds=bounds), names):
            results.append(result)
            progress(f"seeded fault {result.name}: {result.caught_by or 'survived'} ({len(results)} of {len(names)})")
    return tuple(results)


def _explored(role: Role, bounds: Bounds, progress: Progress) -> Exploration:
    return explore(role, bounds, progress)


def judged(name: str, bounds: Bounds, cut: int = CUT) -> MutantResult:
    """Seed the named fault in this process, and explore up to ``cut`` worlds until something catches it."""
    mutant, started = BY_NAME[name], perf_counter()
    mutant.seed()
    expected = tuple(one.name for one in mutant.expected)
    for role in (Role.CLIENT, Role.GATEWAY):
        for found in explore(role, bounds, cut=cut, first_only=True).found:
            seconds = perf_counter() - started
            return MutantResult(name, expected, found.property.name, f"{role.value}: {found.text}", seconds)
    return MutantResult(name, expected, None, f"{mutant.text}: survived", perf_counter() - started)
