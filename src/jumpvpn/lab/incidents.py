"""What can happen to a session, one function per incident, and what each one did to the session and its traffic.

Each function causes its incident, waits until the session has dealt with it, and returns an `Incident`. Definitions
of the figures: docs/measuring.md.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from jumpvpn.lab.deployment import SIDES, Deployment, interface_of
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.journals import Record, Wanted
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Logs

# Messages on their way when the cause strikes belong to the incident: more than a round trip of the slowest uplink.
IN_FLIGHT_NS = 150_000_000
# What is sent again after a switch arrives within some round trips; later losses have another cause.
AFTERMATH_NS = 300_000_000

OUTAGE_S = 5.0
# A supervisor restarts a crashed service after a moment; systemd's default is 100 ms.
RESTART_S = 0.1


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident of one session. Instants are boot time in ns.

    `cause_ns` is taken just before the operation that causes it; `detected` is the first event record, of either side,
    that names it; `reason` is why the session left ATTACHED (for a denial or the end: the record's own reason);
    `settled_ns` is when the last side was ATTACHED again (for a denial or the end: when it was on record).
    `returned_ns` is when a network or the gateway was back, if the incident took all of them away.
    """

    name: str
    cause_ns: int
    detected: Record
    reason: str
    settled: Record
    settled_ns: int
    transport: str
    returned_ns: int | None = None

    @property
    def detection_ms(self) -> float:
        """From the cause to the first record that names it; at most 1 ms too short, records carry whole ms."""
        return max(0.0, (self.detected.at_ns - self.cause_ns) / 1e6)

    @property
    def settled_ms(self) -> float:
        """From the cause until the session had dealt with it."""
        return max(0.0, (self.settled_ns - self.cause_ns) / 1e6)

    @property
    def outcome(self) -> str:
        """The reason of the record that settled it; for a standby, what became of it."""
        return self.settled.reason or f"candidate_{self.settled.data['change']}"


@dataclass(frozen=True, slots=True)
class Effect:
    """What an incident did to the traffic; None where there was no such traffic.

    `undelivered_ms`, `lost` and `duplicated` are of the UDP echo, `tcp_undelivered_ms` of the TCP echo,
    `download_undelivered_ms` of the download. `resumed_ms` is from `returned_ns` to the first TCP delivery after it.
    """

    undelivered_ms: float | None = None
    tcp_undelivered_ms: float | None = None
    download_undelivered_ms: float | None = None
    lost: int | None = None
    duplicated: int | None = None
    resumed_ms: float | None = None


def effect(incident: Incident, logs: Logs) -> Effect:
    """What the incident did to the traffic that ran meanwhile."""
    start, end = incident.cause_ns - IN_FLIGHT_NS, incident.settled_ns + AFTERMATH_NS
    udp, tcp = logs.echoes.get("udp"), logs.echoes.get("tcp")
    packets = udp.window(start, end) if udp is not None else None
    stream = tcp.window(start, end) if tcp is not None else None
    download = logs.download.window(start, end) if logs.download is not None else None
    resumed = None
    if stream is not None and incident.returned_ns is not None and stream.gap_end_ns > incident.returned_ns:
        resumed = (stream.gap_end_ns - incident.returned_ns) / 1e6
    return Effect(
        undelivered_ms=packets.undelivered_ms if packets is not None else None,
        tcp_undelivered_ms=stream.undelivered_ms if stream is not None else None,
        download_undelivered_ms=download.undelivered_ms if download is not None else None,
        lost=packets.lost if packets is not None else None,
        duplicated=packets.duplicated if packets is not None else None,
        resumed_ms=resumed,
    )


async def link_down(vpn: Deployment, uplink: str = "wifi", name: str = "wifi_link_down") -> Incident:
    """The active uplink's interface goes down; the kernel says so at once."""
    change = await asyncio.to_thread(vpn.lab.down, uplink)
    return await _moved(vpn, name, change.before_ns, _troubled(interface_of(uplink)))


async def blackhole(
    vpn: Deployment, uplink: str = "lte", direction: str = "both", name: str = "lte_blackholed"
) -> Incident:
    """The active uplink swallows everything in a direction ("up", "down", "both") and says nothing."""
    change = await asyncio.to_thread(vpn.lab.blackhole, uplink, direction)
    return await _moved(vpn, name, change.before_ns, _troubled(interface_of(uplink)))


async def address_gone(vpn: Deployment, uplink: str = "wifi") -> Incident:
    """The active uplink loses its address."""
    change = await asyncio.to_thread(vpn.lab.address_gone, uplink)
    return await _moved(vpn, "address_gone", change.before_ns, _troubled(interface_of(uplink)))


async def route_gone(vpn: Deployment, uplink: str = "wifi") -> Incident:
    """The active uplink loses its default route."""
    change = await asyncio.to_thread(vpn.lab.route_gone, uplink)
    return await _moved(vpn, "route_gone", change.before_ns, _troubled(interface_of(uplink)))


async def restored(vpn: Deployment, uplink: str = "wifi", name: str = "wifi_restored") -> Incident:
    """An uplink comes back while another one carries the session: it proves itself and becomes a standby again."""
    change = await asyncio.to_thread(vpn.lab.restore, uplink)
    interface = interface_of(uplink)
    seen = await vpn.event(lambda r: _is_candidate(r, interface), change.before_ns)
    proved = await vpn.event(lambda r: _is_candidate(r, interface, "validated"), change.before_ns)
    return Incident(name, change.before_ns, seen, "candidate_added", proved, proved.at_ns, await _carrier(vpn))


async def failback(vpn: Deployment, uplink: str = "wifi", name: str = "failback") -> Incident:
    """The preferred uplink comes back, proves itself for as long as policy asks, and gets the session again."""
    change = await asyncio.to_thread(vpn.lab.restore, uplink)
    interface = interface_of(uplink)
    return await _moved(vpn, name, change.before_ns, lambda r: _is_candidate(r, interface), on=interface)


async def operator_switch(vpn: Deployment, uplink: str = "lte", name: str = "operator_switch") -> Incident:
    """An operator moves the session to another uplink, as ``jumpvpn switch --to``."""
    before = boot_ns()
    interface = interface_of(uplink)
    refusal = await vpn.switch(interface)
    if refusal is not None:
        raise LabError(f"the operator's switch was refused: {refusal}")
    return await _moved(vpn, name, before, lambda r: r.reason == "operator_switch", on=interface)


async def denied_switch(vpn: Deployment, interface: str, name: str = "switch_denied") -> Incident:
    """An operator asks for a transport that policy denies at this moment: the answer says so, nothing moves."""
    before = boot_ns()
    refusal = await vpn.switch(interface)
    if refusal is None:
        raise LabError(f"the switch to {interface} was granted, policy should have denied it")
    record = await vpn.event(lambda r: r.event == "transport.switch_denied", before)
    return Incident(name, before, record, record.reason, record, record.at_ns, await _carrier(vpn))


async def nat_rebinding(vpn: Deployment, uplink: str = "wifi", *, address: bool = False) -> Incident:
    """The active uplink's NAT router forgets its mappings: the next packet reaches the gateway from a new port."""
    change = await asyncio.to_thread(vpn.lab.rebind, uplink, address)
    noticed = await vpn.event(lambda r: r.reason == "nat_rebinding", change.before_ns)
    settled_ns = await vpn.attached(noticed.at_ns, sides=("gateway",))
    incident = _incident(vpn, "nat_rebinding", change.before_ns, noticed, noticed.at_ns, settled_ns, sides=("gateway",))
    return replace(incident, transport=await _carrier(vpn))


async def both_dead(vpn: Deployment, back: str = "lte", *, outage_s: float = OUTAGE_S) -> Incident:
    """Both uplinks go down for `outage_s`, then one comes back."""
    first = await asyncio.to_thread(vpn.lab.down, "wifi")
    second = await asyncio.to_thread(vpn.lab.down, "lte")
    await asyncio.sleep(outage_s - (second.after_ns - first.before_ns) / 1e9)
    returned = await asyncio.to_thread(vpn.lab.restore, back)
    settled_ns = await vpn.attached(returned.before_ns, on=interface_of(back))
    noticed = vpn.journals.first(_troubled(""), first.before_ns)
    assert noticed is not None, "a session that came back has left"
    return _incident(
        vpn, "both_dead", first.before_ns, noticed, returned.before_ns, settled_ns, returned_ns=returned.after_ns
    )


async def gateway_restart(vpn: Deployment, *, pause_s: float = RESTART_S) -> Incident:
    """The gateway process is killed (SIGKILL) and started again; it has only what it wrote down before."""
    killed = await vpn.kill_node("gateway")
    await asyncio.sleep(pause_s)
    started = boot_ns()
    await vpn.start_node("gateway")
    settled_ns = await vpn.attached(started)
    ready = await vpn.event(lambda r: r.side == "gateway" and r.event == "node.started", started)
    noticed = vpn.journals.first(_left_attached, killed)
    assert noticed is not None, "both sides left ATTACHED"
    return _incident(vpn, "gateway_restarted", killed, noticed, started, settled_ns, returned_ns=ready.at_ns)


async def terminated(vpn: Deployment, side: str = "gateway") -> Incident:
    """An operator ends the session; both sides record it for good."""
    before = boot_ns()
    await vpn.terminate(side)
    records = [await vpn.event(lambda r, s=s: r.side == s and r.turned("TERMINATED"), before) for s in SIDES]  # type: ignore[misc]
    mine = next(record for record in records if record.side == side)
    return Incident("terminated", before, mine, mine.reason, mine, max(r.at_ns for r in records), "")


Cause = Callable[[Deployment], Awaitable[Incident]]


async def _moved(vpn: Deployment, name: str, cause_ns: int, names_it: Wanted, on: str = "") -> Incident:
    """Wait until the session has left its transport for another one, on both sides."""
    left = await vpn.event(lambda r: r.side == "client" and _left_attached(r), cause_ns)
    settled_ns = await vpn.attached(left.at_ns, on=on)
    noticed = vpn.journals.first(names_it, cause_ns)
    assert noticed is not None, "a session that moved had a cause"
    return _incident(vpn, name, cause_ns, noticed, left.at_ns, settled_ns)


def _incident(
    vpn: Deployment,
    name: str,
    cause_ns: int,
    detected: Record,
    since_ns: int,
    settled_ns: int,
    *,
    sides: tuple[str, ...] = ("client",),
    returned_ns: int | None = None,
) -> Incident:
    settled = vpn.journals.first(lambda r: r.side in sides and r.turned("ATTACHED"), since_ns)
    left = vpn.journals.first(_left_attached, cause_ns)
    assert settled is not None, "the caller has awaited it"
    assert left is not None, "what came back has left"
    return Incident(name, cause_ns, detected, left.reason, settled, settled_ns, settled.transport, returned_ns)


async def _carrier(vpn: Deployment) -> str:
    """The transport that carries the session, as soon as the client is ATTACHED; nothing if it stays without one."""
    changes = [r for r in vpn.journals.records if r.side == "client" and r.event == "session.state_change"]
    if not changes[-1].turned("ATTACHED"):
        await vpn.attached(changes[-1].at_ns, sides=("client",))
    binding = (await vpn.status("client"))["sessions"][0]["binding"]
    return str(binding["transport"]) if binding else ""


def _troubled(interface: str) -> Wanted:
    """A record that names trouble: the session left ATTACHED, or a transport of the interface is dead."""
    return lambda r: _left_attached(r) or (r.event == "transport.dead" and r.transport.startswith(interface))


def _is_candidate(record: Record, interface: str, change: str = "") -> bool:
    told = str(record.data.get("change", ""))
    return record.event == "transport.candidate" and record.transport.startswith(interface) and change in ("", told)


def _left_attached(record: Record) -> bool:
    return record.turned("VOLATILE", "ATTACHED")
