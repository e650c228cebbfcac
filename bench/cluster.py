"""Time without delivery when a session moves between gateways: owner killed, drained, restarted in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bench.recovery import CALM_S, POLICY, delivery, links, quantiles
from jumpvpn.lab.cluster.deployment import ClusterDeployment, Options
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.topology import Shape
from jumpvpn.lab.incidents import Effect, Incident, effect
from jumpvpn.lab.journals import Record
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Workload

WITHIN_S = 15.0
LOOK_S = 0.1

Strike = Callable[[ClusterDeployment, str], Awaitable[int]]
Mend = Callable[[ClusterDeployment, str], Awaitable[Any]]


@dataclass(slots=True)
class Kind:
    """One way in which the owner goes, and how it comes back."""

    name: str
    strike: Strike
    mend: Mend
    found: list[tuple[Incident, Effect]] = field(default_factory=list)
    moved_ms: list[float] = field(default_factory=list)


async def _drain(vpn: ClusterDeployment, owner: str) -> int:
    before = boot_ns()
    await vpn.drain(owner)
    return before


async def _stop(vpn: ClusterDeployment, owner: str) -> int:
    before = boot_ns()
    await vpn.stop_node(owner)
    return before


async def _serve_again(vpn: ClusterDeployment, owner: str) -> None:
    await vpn.undrain(owner)
    await vpn.joined([owner])


def kinds() -> list[Kind]:
    """All kinds, in the order in which a round goes through them."""
    return [
        Kind("owner_killed", lambda vpn, owner: vpn.kill_node(owner), lambda vpn, owner: vpn.restart_node(owner)),
        Kind("owner_drained", _drain, _serve_again),
        Kind("owner_stopped", _stop, lambda vpn, owner: vpn.restart_node(owner)),
    ]


async def measure(rounds: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Two gateways, three etcd servers, one client with a 1 kHz echo; quantiles per kind in ms."""
    with ClusterLab(Shape(gateways=2), **links(), seed=1) as lab:
        async with ClusterDeployment(lab, Options(policy=POLICY, lease="5s", adopt_after="10s")) as vpn:
            await vpn.standbys()
            work = Workload(lab, Load(echo_rate=1000))
            await work.start()
            await asyncio.sleep(CALM_S)
            found = kinds()
            for turn in range(rounds):
                note(f"cluster: round {turn + 1} of {rounds}")
                for kind in found:
                    await _once(vpn, kind)
            logs = await work.finish()
    for kind in found:
        kind.found = [(incident, effect(incident, logs)) for incident, _ in kind.found]
    return {kind.name: summary(kind) for kind in found}


async def _once(vpn: ClusterDeployment, kind: Kind) -> None:
    owner = await vpn.gateway_of()
    before = await kind.strike(vpn, owner)
    left = await vpn.event(lambda r: r.side == "client" and r.turned("VOLATILE", "ATTACHED"), before, WITHIN_S)
    back = await vpn.event(lambda r: r.side == "client" and r.turned("ATTACHED"), left.at_ns, WITHIN_S)
    detected = vpn.journals.first(lambda r: r.side == "client" and r.event == "transport.dead", before) or left
    first = detected if detected.at_ns < left.at_ns else left
    kind.found.append((Incident(kind.name, before, first, left.reason, back, back.at_ns, back.transport), Effect()))
    asked = vpn.journals.first(lambda r: _asked(r, back.transport), before)
    if asked is not None and asked.at_ns < back.at_ns:
        kind.moved_ms.append((back.at_ns - asked.at_ns) / 1e6)
    await kind.mend(vpn, owner)
    await vpn.while_healthy(_standby(vpn, owner), WITHIN_S)
    await asyncio.sleep(CALM_S)


def _asked(record: Record, transport: str) -> bool:
    return record.side == "client" and record.event == "reattach.attempt" and record.transport == transport


async def _standby(vpn: ClusterDeployment, gateway: str) -> None:
    """Return when the client counts on ``gateway`` again; one that came back at once was never missed."""
    while True:
        known = (await vpn.status("client"))["gateways"]
        if any(one["name"] == gateway and one["state"] == "standby" for one in known):
            return
        await asyncio.sleep(LOOK_S)


def summary(kind: Kind) -> dict[str, Any]:
    """Quantiles of one kind; ``asked_to_attached_ms`` is from the client's request until it has the grant."""
    return {
        "runs": len(kind.found),
        **delivery([effect for _, effect in kind.found]),
        "asked_to_attached_ms": quantiles(kind.moved_ms),
    }
