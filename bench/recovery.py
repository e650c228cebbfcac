"""Time without delivery per kind of incident: many repetitions on one live session, with one 1 kHz echo each way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.lab import Lab, Link, incidents
from jumpvpn.lab.deployment import Deployment
from jumpvpn.lab.incidents import Effect, Incident
from jumpvpn.lab.workload import Load, Workload

WIFI_ONE_WAY_MS, LTE_ONE_WAY_MS = 10, 30
# Repetitions follow each other quickly, so neither the budget nor the flap penalty may interfere.
POLICY = """
[policy.switching]
max_per_minute = 600
hold_down = "100ms"
failback = "1s"
flap_penalty = 0
"""
CALM_S = 0.5  # between incidents, so that the silence limits rest on settled round-trip times

Strike = Callable[[Deployment], Awaitable[Incident]]


@dataclass(slots=True)
class Kind:
    """One kind of incident: how it strikes, how things become good again."""

    name: str
    strike: Strike
    mend: str | None = "wifi"
    found: list[tuple[Incident, Effect]] = field(default_factory=list)


def links() -> dict[str, Link]:
    """What the client's uplinks are like."""
    return {"wifi": Link.with_delay(WIFI_ONE_WAY_MS), "lte": Link.with_delay(LTE_ONE_WAY_MS)}


def kinds() -> list[Kind]:
    """All kinds, in the order in which a round goes through them."""
    return [
        Kind("signalled_death", lambda vpn: incidents.link_down(vpn, "wifi")),
        Kind("silent_death", lambda vpn: incidents.blackhole(vpn, "wifi")),
        Kind("silent_death_up", lambda vpn: incidents.blackhole(vpn, "wifi", "up")),
        Kind("silent_death_down", lambda vpn: incidents.blackhole(vpn, "wifi", "down")),
        Kind("nat_rebinding", incidents.nat_rebinding, mend=None),
    ]


async def measure(rounds: int, outages: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; the document of all kinds with their quantiles in ms."""
    with Lab(**links(), seed=1) as lab:
        async with Deployment(lab, policy=POLICY) as vpn:
            work = Workload(lab, Load(echo_rate=1000))
            await work.start()
            await asyncio.sleep(CALM_S)
            found = kinds()
            for turn in range(rounds):
                note(f"recovery: round {turn + 1} of {rounds}")
                for kind in found:
                    await _once(vpn, kind)
            dead = Kind("both_dead_5s", incidents.both_dead, mend="wifi")
            for turn in range(outages):
                note(f"recovery: both dead, {turn + 1} of {outages}")
                await _once(vpn, dead)
            restart = Kind("gateway_restart", incidents.gateway_restart, mend=None)
            for turn in range(outages):
                note(f"recovery: gateway restart, {turn + 1} of {outages}")
                await _once(vpn, restart)
            logs = await work.finish()
    everything = [*found, dead, restart]
    for kind in everything:
        kind.found = [(incident, incidents.effect(incident, logs)) for incident, _ in kind.found]
    return {kind.name: summary(kind) for kind in everything if kind.found}


async def _once(vpn: Deployment, kind: Kind) -> None:
    incident = await kind.strike(vpn)
    kind.found.append((incident, Effect()))
    if kind.mend is not None:
        await incidents.failback(vpn, kind.mend)
    await asyncio.sleep(CALM_S)


def summary(kind: Kind) -> dict[str, Any]:
    """Quantiles of one kind."""
    effects = [effect for _, effect in kind.found]
    document: dict[str, Any] = {
        "runs": len(kind.found),
        "detection_ms": quantiles([incident.detection_ms for incident, _ in kind.found]),
        **delivery(effects),
    }
    resumed = [e.resumed_ms for e in effects if e.resumed_ms is not None]
    if resumed:
        document["tcp_resumed_after_return_ms"] = quantiles(resumed)
    return document


def delivery(effects: Sequence[Effect]) -> dict[str, Any]:
    """Quantiles of what the traffic felt."""
    return {
        "undelivered_ms": quantiles([e.undelivered_ms for e in effects if e.undelivered_ms is not None]),
        "tcp_undelivered_ms": quantiles([e.tcp_undelivered_ms for e in effects if e.tcp_undelivered_ms is not None]),
        "lost": quantiles([float(e.lost) for e in effects if e.lost is not None]),
        "duplicated": sum(e.duplicated or 0 for e in effects),
    }


def quantiles(values: list[float]) -> dict[str, float | None]:
    """Median, 99th percentile (nearest rank) and maximum, to 0.1."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    rank = lambda share: ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]  # noqa: E731
    return {"p50": round(rank(0.50), 1), "p99": round(rank(0.99), 1), "max": round(ordered[-1], 1)}
