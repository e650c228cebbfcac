"""One seed: trouble, then calm, and a verdict."""

from __future__ import annotations

import random
from collections import Counter

from jumpvpn.properties import Property
from jumpvpn.session.state import State
from jumpvpn.sim import profiles
from jumpvpn.sim.coverage import counted
from jumpvpn.sim.faults import Trouble
from jumpvpn.sim.played import Judge, Played, judged, raised
from jumpvpn.sim.recovery import settle
from jumpvpn.sim.transcript import transcript
from jumpvpn.sim.world import START, World
from jumpvpn.values import MILLISECOND

FAULTS = (6, 12, 20, 30)
BIRTH_SECONDS = 3.0


def play(seed: int, judge: Judge | None = None, *, tell: bool = False) -> Played:
    """Play one seed. ``tell`` asks for the transcript even if nothing failed."""
    return Run(seed).play(judge, tell=tell)


class Run:
    """One seed's world. ``journals`` holds both ends' sealed lines once ``play`` has ended."""

    def __init__(self, seed: int, *, sealed: bool = True) -> None:
        self.seed = seed
        dice = random.Random(seed)  # noqa: S311 - a seed must replay
        self.profile = profiles.draw(dice)
        network = random.Random(dice.getrandbits(64))  # noqa: S311 - a seed must replay
        self.world = World(
            self.profile.client, gateway_rules=self.profile.gateway, links=self.profile.links, dice=network,
            journals=sealed,
        )  # fmt: skip
        self.trouble = Trouble(self.world, self.profile, dice)
        self._dice = dice
        self._outcome = Played(seed, self.trouble.theme)

    @property
    def journals(self) -> dict[str, list[bytes]]:
        """The lines of ``client`` and ``gateway``, as their journals hold them."""
        return {role: journal.lines for role, journal in self.world.journals.items()}

    def play(self, judge: Judge | None = None, *, tell: bool = False) -> Played:
        """Run to the end. ``tell`` asks for the transcript even if nothing failed."""
        outcome = self._outcome
        with counted(outcome.rows):
            try:
                self._live()
            except Exception as error:  # an engine that raises is a finding of this seed, not the end of the campaign
                outcome.failure = raised(error)
        self._close(judge)
        if tell or outcome.failure is not None:
            outcome.transcript = tuple(transcript(self))
        return outcome

    def _live(self) -> None:
        dice, world = self._dice, self.world
        world.measures = dice.random() < 0.8
        world.zero_rtt = dice.random() < 0.7
        world.traffic = dice.random() < 0.5
        world.gateway_store.delay = dice.choice((0, 1, 5, 50)) * MILLISECOND
        world.client_store.delay = dice.choice((0, 1)) * MILLISECOND
        if dice.random() < 0.15:
            self.trouble.strike()
        if world.handshake is None:
            world.be_born()
        world.run(dice.choice((0.0, 1.0, BIRTH_SECONDS)))
        for _ in range(dice.choice(FAULTS)):
            self.trouble.strike()
            self._again()
        self.trouble.heal()
        healed = settle(world)
        self._outcome.recovery_s = healed.took
        world.checker.checks[Property.MUST_RECOVER.name] += healed.owed
        if healed.rekey_halfway:
            self._outcome.notes["attached with a rekey that the client never heard of"] += 1

    def _again(self) -> None:
        """A client whose session ended is started again, sometimes."""
        session = self.world.client.session
        if session is not None and session.state is State.TERMINATED and self._dice.random() < 0.5:
            self.trouble.log.append((self.world.now, "the client is started again"))
            self.world.restart_client()

    def _close(self, judge: Judge | None) -> None:
        outcome, world = self._outcome, self.world
        outcome.virtual_ns, outcome.steps = world.now - START, world.turns
        outcome.ends = self._ends()
        outcome.checks = world.checker.checks
        outcome.reasons = Counter(event.reason for _, _, event in world.events if event.reason is not None)
        for journal in world.journals.values():
            journal.close(world.clock())
        outcome.journals = self.journals
        if judge is not None and outcome.failure is None:
            outcome.failure = judged(judge, outcome.journals)

    def _ends(self) -> tuple[str, str]:
        found = []
        for side in ("client", "gateway"):
            life = self.world.checker.lives.get((side, self.world.uid))
            record = self.world.client.session if side == "client" else life.record if life is not None else None
            ended = record is not None and record.state is State.TERMINATED
            reason = f" {record.reason.value}" if record is not None and ended and record.reason is not None else ""
            found.append(f"{record.state.value}{reason}" if record is not None else "-")
        return found[0], found[1]
