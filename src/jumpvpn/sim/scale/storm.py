"""Gateways die, and all their sessions ask the others at once: when the last one is back.

Discrete in time: clients notice by their silence limit, ask, and are answered by queues: each surviving gateway takes
sessions over as fast as its core allows, and all gateways of one etcd cluster share what that one commits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from jumpvpn.sim.scale.costs import Costs

STEP_S = 0.01
GIVEN_UP_S = 3600.0  # longer than any TTL worth having: the storm is then told as never over


@dataclass(frozen=True, slots=True)
class Storm:
    """``curve`` is (s after the death, share back) at each percent; ``last_s`` None: not within GIVEN_UP_S.

    ``gateway_s`` and ``etcd_s`` say how long each kind of queue alone would take, so that the narrow place is seen.
    """

    sessions: int
    survivors: int
    last_s: float | None
    curve: tuple[tuple[float, float], ...]
    gateway_s: float
    etcd_s: float


def takeover(
    sessions: int, survivors: int, costs: Costs, *, detect_s: float = 1.0, share: float = 0.8, seed: int = 1
) -> Storm:
    """``sessions`` whose gateways died move to ``survivors`` gateways of the same etcd cluster.

    ``detect_s``: clients notice within this, each at its own time (0: all at once). ``share`` of a gateway's core and
    of etcd is for the storm; the rest does what it did before. ``seed`` decides how unevenly clients choose.
    """
    each_s = share * 1e6 / costs.gateway.takeover_us  # sessions per second of one gateway
    store_s = share * costs.etcd.writes_per_s
    queues = _choices(sessions, survivors, seed)
    waiting = [0.0] * survivors
    back, at, percent, curve = 0.0, 0.0, 1, list[tuple[float, float]]()
    arrived = 0.0
    while back < sessions - 0.5 and at < GIVEN_UP_S:
        at += STEP_S
        noticed = 1.0 if detect_s <= 0 else min(1.0, at / detect_s)
        news, arrived = noticed - arrived, noticed
        waiting = [left + news * of for left, of in zip(waiting, queues, strict=True)]
        wanted = [min(left, each_s * STEP_S) for left in waiting]
        whole = sum(wanted)
        part = min(1.0, store_s * STEP_S / whole) if whole > 0 else 0.0
        waiting = [left - part * done for left, done in zip(waiting, wanted, strict=True)]
        back += part * whole
        while percent <= 100 and back >= sessions * percent / 100 - 0.5:
            curve.append((round(at + costs.etcd.latency_p50_ms / 1000, 3), percent / 100))
            percent += 1
    done = back >= sessions - 0.5
    return Storm(
        sessions, survivors, curve[-1][0] if done and curve else None, tuple(curve),
        gateway_s=max(queues) / each_s, etcd_s=sessions / store_s,
    )  # fmt: skip


def _choices(sessions: int, survivors: int, seed: int) -> list[float]:
    """How many sessions each survivor is asked for: every client takes the next of its own list, so nearly even."""
    dice = random.Random(f"storm {seed}")  # noqa: S311 - a seed must replay
    if sessions <= 100_000:
        counts = [0.0] * survivors
        for _ in range(sessions):
            counts[dice.randrange(survivors)] += 1
        return counts
    even = sessions / survivors  # a binomial's spread, by its normal form
    drawn = [max(0.0, dice.gauss(even, even**0.5)) for _ in range(survivors)]
    scale = sessions / sum(drawn)
    return [count * scale for count in drawn]
