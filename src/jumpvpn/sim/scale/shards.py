"""How many sessions one etcd cluster bears, and how many clusters and gateways a population needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jumpvpn.sim.scale.costs import Costs
from jumpvpn.sim.scale.load import Cause, Load, load
from jumpvpn.sim.scale.storm import Storm, takeover

BUSY = 0.5  # of etcd's measured rate: the other half is for storms and for members that are away
CORE = 0.5  # of a gateway's control core
QUOTA = 0.5  # of etcd's quota: beyond it, it refuses writes
PER_GATEWAY = 10_000  # sessions of one gateway, as measured
MOST_GATEWAYS = 1_000  # of one etcd cluster: beyond it renewals alone would fill the watch


@dataclass(frozen=True, slots=True)
class Shard:
    """The most sessions that one etcd cluster bears with gateways of ``per_gateway`` sessions, and which limit it is.

    ``limits`` are the most sessions by each bound alone.
    """

    sessions: int
    gateways: int
    per_gateway: int
    binding: str
    limits: Mapping[str, int]
    load: Load
    storm: Storm


def largest(
    causes: Mapping[str, Cause], record_bytes: float, costs: Costs, *, per_gateway: int = PER_GATEWAY,
    lost_share: float = 0.0,
) -> Shard:  # fmt: skip
    """The largest shard, and the storm when one of its gateways (or ``lost_share`` of them) dies."""

    def at(gateways: int) -> Load:
        return load(causes, record_bytes, gateways * per_gateway, gateways, costs)

    def lost(gateways: int) -> Storm:
        gone = min(max(1, math.ceil(gateways * lost_share)), gateways - 1)
        return takeover(gone * per_gateway, gateways - gone, costs)

    bounds = {
        "etcd's writes": _most(lambda g: at(g).etcd_busy <= BUSY),
        "etcd's quota": _most(lambda g: at(g).etcd_bytes <= QUOTA * costs.etcd.quota_bytes),
        "a gateway's core (commits and the watch)": _most(lambda g: at(g).core <= CORE),
    }
    binding = min(bounds, key=lambda name: bounds[name])
    gateways = max(2, bounds[binding])
    limits = {name: count * per_gateway for name, count in bounds.items()}
    return Shard(gateways * per_gateway, gateways, per_gateway, binding, limits, at(gateways), lost(gateways))


def per_gateway(costs: Costs, gateways: int, *, back_within_s: float = 5.0) -> int:
    """The most sessions of one gateway of ``gateways`` that are all back in time when it dies, in hundreds."""

    def in_time(hundreds: int) -> bool:
        last = takeover(hundreds * 100, gateways - 1, costs).last_s
        return last is not None and last <= back_within_s

    return 100 * _most(in_time)


def _most(holds: Callable[[int], bool]) -> int:
    """The most gateways for which ``holds`` is true, given that it is true up to some number and then false."""
    low, high = 0, 1
    while high < MOST_GATEWAYS and holds(high):
        low, high = high, high * 2
    high = min(high, MOST_GATEWAYS)
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
