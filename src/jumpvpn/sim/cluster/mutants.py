"""Defects built into the shipped code, one at a time: each has to be found, or the simulation shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.engine import takeover
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.gateway.cluster import Cluster
from jumpvpn.gateway.lease import LeaseKeeper
from jumpvpn.gateway.strays import Strays
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.sim.cluster.plane import NodePlane
from jumpvpn.sim.cluster.roaming import Roaming
from jumpvpn.sim.cluster.run import play
from jumpvpn.sim.played import Judge, Played

Swap = tuple[Any, str, Any]
SEEDS = 700  # within so many each is found


@dataclass(frozen=True, slots=True)
class Found:
    """The first seed that showed a defect; ``outcome`` None: none of the ``seeds`` played did."""

    name: str
    seeds: int
    outcome: Played | None


def _deadline_ignored() -> list[Swap]:
    """The packet core forwards on, whatever its clock says."""
    return [(NodePlane, "fenced", property(lambda _plane: False))]


def _beat_not_awaited() -> list[Swap]:
    """A renewal counts when it is answered, not when its beat was seen in the watch."""
    beat = LeaseKeeper._beat

    async def hasty(keeper: LeaseKeeper) -> bool:
        renewed = await beat(keeper)
        if renewed:
            keeper.seen(keeper.member)
        return renewed

    return [(LeaseKeeper, "_beat", hasty)]


def _term_not_compared() -> list[Swap]:
    """Old news of another owner, told late, count as new."""
    elsewhere = GatewayEngine._owner_elsewhere

    def believed(engine: GatewayEngine, seen: Any, now: Any) -> Any:
        return elsewhere(engine, replace(seen, owner_epoch=1 << 62), now)

    return [(GatewayEngine, "_owner_elsewhere", believed)]


def _claim_not_fenced() -> list[Swap]:
    """A claim writes over whatever is there."""
    settle = ClusterStore._settle

    async def chosen(store: ClusterStore, write: Any, held: Any) -> Any:
        base = held.base.session
        if base is not None and write.term > base.term:
            found = await store._shared.find(write.session_id)
            known = found.session.version if found.session is not None else None
            write = replace(write, expected_version=known, version=max(write.version, (known or 0) + 1))
            held.base = found
        return await settle(store, write, held)

    return [(ClusterStore, "_settle", chosen)]


def _floor_ignored() -> list[Swap]:
    """What the client knows beyond the record is not heeded."""
    change = takeover._proven_change
    return [(takeover, "_proven_change", lambda *known: replace(change(*known), proven_version=0, proven_epoch=0))]


def _adoption_resets_the_clock() -> list[Swap]:
    """The transport TTL of an adopted session begins when it is adopted."""
    restore = Cluster._restore

    def forgetful(cluster: Cluster, stored: Any, owner: str, lost_at: Any = None, *, superseded: bool = False) -> None:
        restore(cluster, stored, owner, None, superseded=superseded)

    return [(Cluster, "_restore", forgetful)]


def _old_epoch_kept_open() -> list[Swap]:
    """The client goes on to hear a gateway that it took for lost."""
    handover = ClientEngine._handover

    def kind(engine: ClientEngine, here: str, left: str | None) -> str:
        return "drained" if handover(engine, here, left) == "lost" else handover(engine, here, left)

    return [(ClientEngine, "_handover", kind), (Roaming, "_close_older", lambda _plane: None)]


def _strays_ignored() -> list[Swap]:
    """What this node had given up takes place, and nobody looks."""
    return [(Strays, "noticed", lambda _strays, _session_id: None)]


MUTANTS: Mapping[str, Callable[[], list[Swap]]] = {
    "deadline ignored": _deadline_ignored,
    "beat not awaited": _beat_not_awaited,
    "term not compared": _term_not_compared,
    "claim not fenced by version": _claim_not_fenced,
    "floor ignored": _floor_ignored,
    "adoption resets the transport clock": _adoption_resets_the_clock,
    "old epoch kept open after a lost gateway": _old_epoch_kept_open,
    "late writes of its own not seen to": _strays_ignored,
}
"""By name: what to put in the place of what."""


@contextmanager
def built_in(name: str) -> Iterator[None]:
    """Within this block the defect is there."""
    swaps = MUTANTS[name]()
    before = [(owner, attribute, vars(owner)[attribute]) for owner, attribute, _ in swaps]
    try:
        for owner, attribute, value in swaps:
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)


def hunt(
    name: str, judge: Judge | None, seeds: int = SEEDS, tell: Callable[[str], None] = lambda _words: None
) -> Found:
    """Play seeds until the defect is found."""
    with built_in(name):
        for seed in range(seeds):
            tell(f"{name}: seed {seed}")
            outcome = play(seed, judge)
            if outcome.failure is not None:
                return Found(name, seed + 1, outcome)
    return Found(name, seeds, None)
