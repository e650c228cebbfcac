"""Breadth-first exploration of one role, from birth until nothing more is reached."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from jumpvpn.model import liveness, probes
from jumpvpn.model.bounds import Bounds
from jumpvpn.model.checks import Violation
from jumpvpn.model.environment import Move
from jumpvpn.model.graph import Graph
from jumpvpn.model.progress import Progress, silent
from jumpvpn.properties import Property
from jumpvpn.session.state import Role

REPORT_EVERY = 20_000  # worlds between two lines of progress
SHOWN = 3  # counterexamples per property; more say the same again


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A property that does not hold, and the shortest way from birth to where it does not."""

    property: Property
    text: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exploration:
    """What one role's exploration came to: counts by row, reason, property name and ``liveness.CONDITIONS``."""

    role: str
    nodes: int
    worlds: int
    edges: int
    seconds: float
    rows: Counter[str]
    reasons: Counter[str]
    checks: Counter[str]
    recoveries: Counter[str]
    found: tuple[Counterexample, ...] = ()


def explore(
    role: Role,
    bounds: Bounds,
    progress: Progress = silent,
    *,
    cut: int | None = None,
    first_only: bool = False,
) -> Exploration:
    """Explore ``role`` within ``bounds`` and report what does not hold, at most ``SHOWN`` times per property.

    More worlds than ``bounds.max_worlds`` violate PROGRESS: what is finite by design has become endless. ``cut`` ends
    the search after that many worlds without any verdict, and ``first_only`` at the first violation: both are for
    seeded faults, which show early.
    """
    started, collecting = perf_counter(), gc.isenabled()
    gc.disable()  # nothing that is made here dies before the end, so collecting is time lost
    try:
        search = _Search(role, bounds, progress, cut)
        search.run(1 if first_only else SHOWN)
    finally:
        if collecting:
            gc.enable()
    graph, watcher = search.graph, search.graph.watcher
    return Exploration(
        role.value, len(graph.sessions), len(search.parents), search.edges, perf_counter() - started, watcher.rows,
        watcher.reasons, watcher.checks.counts, search.ways.conditions, tuple(search.found),
    )  # fmt: skip


class _Search:
    """The frontier, and how each world was first reached."""

    def __init__(self, role: Role, bounds: Bounds, progress: Progress, cut: int | None) -> None:
        self.graph = Graph(role, bounds)
        self.bounds, self.progress, self.cut = bounds, progress, cut
        self.first = self.graph.birth()
        self.parents: dict[int, tuple[int, str]] = {self.first: (-1, "")}
        self.origins: list[tuple[int, str]] = [(self.first, "")]  # of each node: the world and move that first gave it
        self.ways = liveness.Ways()
        self.edges = 0
        self.found: list[Counterexample] = []

    def run(self, most: int) -> None:
        """Search, probe, judge the cycles, and keep up to ``most`` counterexamples per property (1: the very first)."""
        for broken, world, move, then in self._alarms():
            told = [one.text.split()[0] for one in self.found if one.property is broken.property]
            if len(told) < most and broken.text.split()[0] not in told:
                self.found.append(self._counterexample(broken, world, move, then))
            if most == 1 or broken.property is Property.PROGRESS:
                return  # what does not end is not searched further

    def _alarms(self) -> Iterator[tuple[Violation, int, str, str]]:
        """Each violation with the world and the move at which it shows, and what was probed there."""
        yield from self._search()
        role = self.graph.role.value
        self.progress(f"{role}: {len(self.parents)} worlds; single inputs and pairs of them in every kind of state")
        for node, broken, what in probes.probe(self.graph, len(self.origins)):
            yield broken, *self.origins[node], what
        self.progress(f"{role}: cycles, and recovery where it must succeed")
        for world, broken, what in liveness.judge(self.graph, self.ways):
            yield broken, world, "", what

    def _search(self) -> Iterator[tuple[Violation, int, str, str]]:
        frontier = [self.first]
        for world in frontier:  # grows while it is read
            if self.cut is not None and len(frontier) > self.cut:
                return
            moves = self.graph.moves(world)
            for move in moves:
                try:
                    self._expand(world, move, frontier)
                except Violation as broken:
                    yield broken, world, move.label, ""
            if moves:
                self._help(world, moves)

    def _expand(self, world: int, move: Move, frontier: list[int]) -> None:
        target, attached = self.graph.arrive(world, move)
        self.edges += 1
        self.ways.add(self.graph, world, target, move, attached)
        if target not in self.parents:
            self.parents[target] = (world, move.label)
            frontier.append(target)
            count = len(frontier)
            if count > self.bounds.max_worlds:
                text = f"more than {self.bounds.max_worlds} worlds: what these bounds keep finite does not end"
                raise Violation(Property.PROGRESS, text)
            if count % REPORT_EVERY == 0:
                self.progress(f"{self.graph.role.value}: {count} worlds, {self.edges} edges")
        nodes = len(self.graph.sessions)
        if len(self.origins) < nodes:
            self.origins += [(world, move.label)] * (nodes - len(self.origins))

    def _help(self, world: int, moves: list[Move]) -> None:
        session, _, paths = self.graph.seen(world)
        move = self.graph.environment.help(session, paths, moves)
        try:
            self.ways.help(world, *self.graph.arrive(world, move), move.time)
        except Violation:
            self.ways.help(world, world, attached=True, time=False)  # reported as a move; nothing is owed beyond it

    def _counterexample(self, broken: Violation, world: int, move: str, then: str = "") -> Counterexample:
        """The path to ``world``, ``move`` and what was probed ``then``, with the rows that applied on the way."""
        labels = [move] if move else []
        while world != self.first:
            world, label = self.parents[world]
            labels.append(label)
        lines: list[str] = []
        here = self.first
        for number, label in enumerate(reversed(labels), start=1):
            lines.append(f"{number}. {label}")
            here = self._replayed(here, label, lines)
        if then:
            lines.append(f"{len(labels) + 1}. {then}")
        return Counterexample(broken.property, broken.text, tuple(lines))

    def _replayed(self, world: int, label: str, lines: list[str]) -> int:
        move = next(move for move in self.graph.moves(world) if move.label == label)
        told: list[str] = []
        try:
            world, _ = self.graph.arrive(world, move, told)
        except Violation:
            told.append("here it breaks")
        lines += [f"     {line}" for line in told]
        return world
