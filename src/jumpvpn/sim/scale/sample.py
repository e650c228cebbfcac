"""One session's hour with the shipped engines at both ends: which commits the gateway makes, and how large they are."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.runtime.stores.etcd.records import encode_lines
from jumpvpn.session import records
from jumpvpn.sim.journals import BOOT
from jumpvpn.sim.scale.habits import HOUR_S, Habit
from jumpvpn.sim.world import KEPT, START, World
from jumpvpn.values import SECOND, DomainEvent

BIRTH, OWNER, REKEY, END = "birth", "owner change", "rekey", "end"
SWITCH, REBIND, REATTACH, OTHER = "switch", "rebinding", "reattach after a move", "other"
CAUSES = (BIRTH, OWNER, REKEY, END, SWITCH, REBIND, REATTACH, OTHER)
_AWAY_S = 15.0  # the preferred network is gone for so long; then it comes back, and failback follows
_FIRST, _SECOND = "wlan0", "wwan0"


@dataclass(frozen=True, slots=True)
class Deed:
    """One commit of the gateway. ``at`` is in s since the birth; sizes are in bytes, of lines as etcd has them."""

    at: float
    cause: str
    shared: bool
    events: int
    line_bytes: int
    record_bytes: int


class _Watched(World):
    """A world that remembers the gateway's commits."""

    def __init__(self, habit: Habit, dice: random.Random) -> None:
        self.deeds: list[Deed] = []
        super().__init__(habit.policy, links=(_FIRST, _SECOND), dice=dice, journals=True)

    def _commit(self, side: str, order: out.Commit) -> None:
        if side != "gateway":
            super()._commit(side, order)
            return
        before = len(self.journals[side].lines)
        super()._commit(side, order)
        written = len(encode_lines(tuple(self.journals[side].lines[before:])))
        body = records.encode(order.session, KEPT, self.clock_of(side), BOOT)
        lane = [event for event in order.events if event.lane == "S"]
        self.deeds.append(
            Deed((self.now - START) / SECOND, cause_of(order.events), order.shared, len(lane), written, len(body))
        )


def cause_of(events: Iterable[DomainEvent]) -> str:
    """What a commit is about, by the events in it."""
    names = {event.name for event in events}
    reasons = {event.reason for event in events}
    tests: tuple[tuple[str, bool], ...] = (
        (BIRTH, "session.created" in names or "handshake_ok" in reasons),
        (END, "session.terminated" in names),
        (REKEY, "key.rotated" in names),
        (OWNER, "ownership.acquired" in names),
        (SWITCH, "transport.switch" in names),
        (REBIND, "transport.rebound" in names or "nat_rebinding" in reasons),
        (REATTACH, "reattach.result" in names),
    )
    return next((cause for cause, is_it in tests if is_it), OTHER)


def live(habit: Habit, seed: int) -> list[Deed]:
    """The gateway's commits for one session from its birth through an hour to its end."""
    dice = random.Random(f"{habit.name} {seed}")  # noqa: S311 - a seed must replay
    world = _Watched(habit, random.Random(dice.getrandbits(64)))  # noqa: S311
    world.traffic = False
    world.start(_FIRST)
    begun = world.now
    for at, what in habit.happenings(dice):
        world.run(max(0.0, at - (world.now - begun) / SECOND))
        _happen(world, what, dice)
    world.run(max(0.0, HOUR_S - (world.now - begun) / SECOND))
    world.post("gateway", inp.OperatorTerminate(world.uid))
    world.run(1.0)
    return world.deeds


def _happen(world: World, what: str, dice: random.Random) -> None:
    if what == "switch":
        world.down(_FIRST)
        world.run(_AWAY_S)
        world.up(_FIRST)
    elif what == "rebind":
        bound: Any = world.active
        if bound is not None:
            world.rebind(bound, f"10.{dice.randrange(100, 200)}.9.9:{dice.randrange(1024, 65535)}")
    else:  # another process continues from the record, as another gateway does: the same rows, the same commits
        world.stop_gateway()
        world.start_gateway()
