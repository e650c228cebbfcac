"""One seed: trouble, then calm, and a verdict."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from jumpvpn.sim.cluster import profiles
from jumpvpn.sim.cluster.faults import Trouble
from jumpvpn.sim.cluster.machines import replaced
from jumpvpn.sim.cluster.recovery import settle
from jumpvpn.sim.cluster.world import START, ClusterWorld
from jumpvpn.sim.played import Judge, Played, judged, raised
from jumpvpn.values import MILLISECOND, SECOND

FAULTS = (3, 5, 8)
UNJUDGED = "a disk with a journal was lost: not audited"
_TOLD = frozenset({"session.state_change", "reattach.attempt", "reattach.result", "transport.switch_denied"})


def play(seed: int, judge: Judge | None = None, *, tell: bool = False) -> Played:
    """Play one seed. ``tell`` asks for the transcript even if nothing failed."""
    return Run(seed).play(judge, tell=tell)


class Run:
    """One seed's world."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._dice = random.Random(f"cluster {seed}")  # noqa: S311 - a seed must replay
        self._outcome = Played(seed)
        self.world: ClusterWorld
        self.trouble: Trouble

    def play(self, judge: Judge | None = None, *, tell: bool = False) -> Played:
        """Run to the end."""
        dice = self._dice
        with replaced(random.Random(dice.getrandbits(64))):  # noqa: S311 - a seed must replay
            self.world = ClusterWorld(profiles.draw(dice), random.Random(dice.getrandbits(64)))  # noqa: S311
            self.trouble = Trouble(self.world, dice)
            self._outcome.theme = self.trouble.theme
            try:
                self._live()
            except Exception as error:  # a shell that raises is a finding of this seed, not the end of the campaign
                self._outcome.failure = raised(error)
            self._close(judge)
            if tell or self._outcome.failure is not None:
                self._outcome.transcript = tuple(self._transcript())
            self.world.close()
        return self._outcome

    def _live(self) -> None:
        dice, world = self._dice, self.world
        world.begin()
        world.traffic = dice.random() < 0.7
        world.run(dice.choice((0.0, 0.5, 2.0)))
        for _ in range(dice.choice(FAULTS)):
            self.trouble.strike()
            self.trouble.again()
        self.trouble.heal()
        self._outcome.recovery_s = settle(world, self.trouble.well)

    def _close(self, judge: Judge | None) -> None:
        outcome, world = self._outcome, self.world
        outcome.virtual_ns, outcome.steps = world.now - START, world.loop.steps
        outcome.ends = tuple(sorted(c.session.state.value if c.session is not None else "-" for c in world.clients))
        outcome.checks = Counter(world.checker.checks)
        for client in world.clients:
            outcome.checks.update(client.checker.checks)
        outcome.notes = Counter(world.checker.notes)
        world.settle_journals()
        outcome.journals = {
            **{host.name: host.journal.lines for host in world.gateways.values()},
            **{client.name: client.journal.lines for client in world.clients},
        }
        if any(host.disks_lost for host in world.gateways.values()):
            outcome.notes[UNJUDGED] += 1  # what a lost journal told of owners, nobody can know
        elif judge is not None and outcome.failure is None:
            outcome.failure = judged(judge, outcome.journals)
            outcome.checks["CHAIN"] += 1

    def _transcript(self) -> Iterator[str]:
        world = self.world
        yield f"seed {self.seed}: {self.trouble.theme}; {world.plan.text}"
        lines = [(at, number, words) for number, (at, words) in enumerate(world.log)]
        for client in world.clients:
            for at, event in client.events:
                if event.name in _TOLD:
                    on = f" on {event.transport.id}" if event.transport is not None else ""
                    edge = f"{event.prev_state} > {event.state}" if event.name == "session.state_change" else event.name
                    words = f"{client.name:<8} {(event.session or '-')[:4]} v{event.state_version} {edge}{on}"
                    lines.append((at, len(lines), f"{words}: {event.reason}"))
        for at, _, words in sorted(lines):
            yield f"{(at - START) // MILLISECOND / 1000:10.3f} s  {words}"
        yield f"{(world.now - START) / SECOND:10.3f} s  the end: {', '.join(self._outcome.ends)}"
