"""The status document: what the sender's side knows, computed from engine and packet core, never from config."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from jumpvpn.config import ClientConfig, GatewayConfig
from jumpvpn.engine import outlook
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.engine.gateway_loss import gateway_loss
from jumpvpn.engine.liveness import Liveness
from jumpvpn.engine.place import Place
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import Plane
from jumpvpn.session.deadlines import next_deadline
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import Instant, TransportId, milliseconds
from jumpvpn.wire.welcome import Welcome


def program_version() -> str:
    """The version of the installed program."""
    return version("jumpvpn")


def of_client(
    engine: ClientEngine,
    handle: int,
    plane: Plane,
    config: ClientConfig,
    welcome: Welcome | None,
    late: int,
    gateways: Sequence[tuple[str, str]] = (),
    malformed: int = 0,
) -> dict[str, Any]:
    """The client's document; ``late`` counts orders that the network overtook.

    ``gateways`` are name and address of those that the client knows; ``malformed`` counts control messages of theirs
    that could not be understood.
    """
    now = clock.boot_time()
    session = engine.session
    sessions = []
    if session is not None:
        limits = {name: engine.liveness(name) for name in engine.transports}
        transports = list(engine.transports.values())
        told = _session(session, transports, limits, _plane_view(plane, handle), now)
        sessions = [{**told, "gateway_loss": gateway_loss(engine.book, session, now)}]
    else:
        sessions = [_unborn(engine, now)]
    addresses = list(welcome.addresses) if welcome is not None else []
    document = _document(config, plane, addresses, sessions, late)
    document["counters"]["control_malformed"] = malformed
    seen = {found["name"]: found for found in outlook.gateways_of(engine)}
    unused = {"state": "unused", "rtt_ms": None}
    return {
        **document, "gateways": [{"name": name, "address": address, **seen.get(name, unused)}
                                 for name, address in gateways],
    }  # fmt: skip


def of_gateway(
    engine: GatewayEngine,
    handles: dict[str, int],
    plane: Plane,
    config: GatewayConfig,
    names: dict[str, str],
    late: int,
) -> dict[str, Any]:
    """The gateway's document: every live session."""
    now = clock.boot_time()
    sessions = [_place(uid, place, handles, plane, names, now) for uid, place in sorted(engine.places.items())]
    addresses = [str(address) for address in config.tunnel.gateway_addresses()]
    return _document(config, plane, addresses, sessions, late)


def _place(
    uid: str, place: Place, handles: dict[str, int], plane: Plane, names: dict[str, str], now: Instant
) -> dict[str, Any]:
    limits: dict[TransportId, Liveness | None] = dict(place.liveness)
    view = _plane_view(plane, handles.get(uid, 0))
    document = _session(place.seat.session, list(place.transports.values()), limits, view, now)
    return {**document, "device": names.get(uid, "")}


def _document(
    config: ClientConfig | GatewayConfig, plane: Plane, addresses: list[str], sessions: list[dict[str, Any]], late: int
) -> dict[str, Any]:
    return {
        "role": config.role, "node": config.name, "pid": os.getpid(), "version": program_version(),
        "tun": {"name": plane.tun_name, "mtu": config.tunnel.mtu, "addresses": addresses}, "sessions": sessions,
        "counters": {**plane.counters(), "order_overtaken": late}, "events_file": str(config.events),
    }  # fmt: skip


def _plane_view(plane: Plane, handle: int) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    if not handle:
        return {}, {}
    return dict(plane.session_stats(handle)), {stats["path"]: dict(stats) for stats in plane.path_stats(handle)}


def _unborn(engine: ClientEngine, now: Instant) -> dict[str, Any]:
    transports = [_transport(t, None, None, None, now) for _, t in sorted(engine.transports.items())]
    return {"uid": None, "state": "BIRTH", "transports": transports}


def _session(
    session: Session,
    transports: list[Transport],
    limits: dict[TransportId, Liveness | None],
    view: tuple[dict[str, Any], dict[int, dict[str, Any]]],
    now: Instant,
) -> dict[str, Any]:
    stats, paths = view
    bound = session.binding
    active = bound.transport if bound is not None else None
    return {
        "uid": session.uid,
        "state": session.state.value,
        "state_age_ms": milliseconds(now - session.entered_at),
        "version": int(session.version),
        "epoch": int(session.epoch),
        "last_reason": session.reason.value if session.reason is not None else None,
        "binding": None
        if bound is None
        else {"transport": bound.transport, "peer": bound.peer, "since_ms": milliseconds(now - bound.since)},
        **_limits(session, now),
        "transports": [
            _transport(t, active, limits.get(t.id), _stats_of(t, paths), now)
            for t in sorted(transports, key=lambda t: t.id)
        ],
        "traffic": {
            name: stats.get(name, 0) for name in ("tx_bytes", "rx_bytes", "queued", "shed", "resent", "duplicates")
        },
    }


def _limits(session: Session, now: Instant) -> dict[str, Any]:
    """How far the session is from each of its bounds."""
    policy, lost, nearest = session.policy, session.transportless_at, next_deadline(session)
    budget = session.budget
    ttl_left = lost + policy.session.transport_ttl - now if lost is not None else None
    return {
        "transportless_ms": milliseconds(now - lost) if lost is not None else None,
        "transport_ttl_left_ms": milliseconds(ttl_left) if ttl_left is not None else None,
        "transport_ttl_ms": milliseconds(policy.session.transport_ttl),
        "lifetime_left_ms": milliseconds(session.born_at + policy.session.max_lifetime - now),
        "switches_used": budget.used(now),
        "switches_max": policy.switching.max_per_minute,
        "hold_down_left_ms": milliseconds(budget.hold_left(now)),
        "attempts": session.attempts,
        "attempts_max": policy.recovery.max_attempts,
        "next_deadline": None if nearest is None else {"name": nearest.name, "in_ms": milliseconds(nearest.at - now)},
        "silence_formula": policy.volatility.silence_formula(),
    }


def _stats_of(transport: Transport, paths: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    path = transport.path
    if path is None and transport.id.startswith("path"):
        path = int(transport.id.removeprefix("path").split("/", maxsplit=1)[0])
    return paths.get(path) if path is not None else None


_WORDS = {
    Condition.CANDIDATE: "candidate",
    Condition.GOOD: "standby",
    Condition.SILENT: "silent",
    Condition.DEAD: "dead",
    Condition.GONE: "gone",
}


def _transport(
    transport: Transport,
    active: TransportId | None,
    limits: Liveness | None,
    stats: dict[str, Any] | None,
    now: Instant,
) -> dict[str, Any]:
    word = "active" if transport.id == active and transport.usable else _WORDS[transport.condition]
    heard = stats.get("last_heard_ns") if stats else None
    rtt = stats["srtt_ns"] if stats else transport.rtt_ns
    deviation = stats["rttvar_ns"] if stats else transport.rtt_dev_ns
    return {
        "id": transport.id,
        "interface": transport.interface,
        "gateway": transport.gateway,
        "peer": transport.peer,
        "state": word,
        "rtt_ms": milliseconds(rtt) if rtt else None,
        "rtt_dev_ms": milliseconds(deviation) if rtt else None,
        "loss_up": stats["loss_up_ppm"] / 1e6 if stats else None,
        "loss_down": stats["loss_down_ppm"] / 1e6 if stats else None,
        "age_ms": milliseconds(now - transport.since),
        "last_heard_ms": milliseconds(heard) if heard is not None else None,
        "silence_limit_ms": milliseconds(limits.silence_busy) if limits is not None else None,
        "silence_limit_idle_ms": milliseconds(limits.silence_idle) if limits is not None else None,
    }


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One gateway of the cluster as this one sees it. ``lease_left`` (ns) None: not known here.

    ``fenced`` is what the gateway that answers says of itself while it has no lease.
    """

    node: str
    address: str
    state: Literal["serving", "draining", "fenced", "gone"]
    lease_left: int | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class OwnedSession:
    """One living session of the cluster, by its record. ``since``: how long (ns) it has had this owner, if known."""

    uid: str
    device: str
    state: str
    owner: str
    term: int
    since: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The shared store as this gateway sees it.

    ``endpoints``: ``HOST:PORT`` and whether it answered last (None: not tried). ``behind``: changes that are durable
    here and not yet there; ``oldest_behind`` (ns): how long the oldest of them has waited.
    """

    endpoints: tuple[tuple[str, bool | None], ...]
    revision: int
    behind: int = 0
    oldest_behind: int | None = None


MOST_SESSION_ROWS = 100_000  # some 15 MB of JSON, half of what the control socket carries in one answer


def of_cluster(
    cluster: str,
    node: str,
    members: Sequence[MemberFacts],
    sessions: Sequence[OwnedSession],
    store: StoreFacts,
    *,
    with_sessions: bool = False,
    adopted_after: int | None = None,
    transport_ttl: int | None = None,
) -> dict[str, Any]:
    """The document of ``jumpvpn cluster status`` (its shape: ``cli.cluster_status``), as ``node`` sees the cluster.

    Owners that are no members are listed as gone. ``sessions`` are all living ones. ``adopted_after`` and
    ``transport_ttl`` (ns): after the loss of a gateway, when others adopt what is left of its sessions, and how long
    those live without any; what is not given is not told.
    """
    serving = sorted(member.node for member in members if member.state == "serving")
    owned = Counter(session.owner for session in sessions)
    known = {member.node for member in members}
    gone = [MemberFacts(owner, "", "gone") for owner in owned if owner and owner not in known]
    rows = sorted(sessions, key=lambda session: session.uid)[:MOST_SESSION_ROWS] if with_sessions else []
    return {
        "cluster": cluster,
        "node": node,
        "members": [
            {
                "node": member.node,
                "address": member.address,
                "state": member.state,
                "lease_left_ms": _maybe_ms(member.lease_left),
                "sessions": owned[member.node],
                "version": member.version,
                "if_lost": _if_lost([node for node in serving if node != member.node], adopted_after, transport_ttl),
            }
            for member in sorted([*members, *gone], key=lambda member: member.node)
        ],
        "store": {
            "endpoints": [{"address": address, "reachable": reachable} for address, reachable in store.endpoints],
            "revision": store.revision,
            **_behind(store),
        },
        "owners": dict(sorted(owned.items())),
        "sessions": [_owned_row(session) for session in rows],
        "sessions_total": len(sessions),
    }


def _if_lost(heirs: list[str], adopted_after: int | None, transport_ttl: int | None) -> dict[str, Any]:
    """What becomes of a gateway's sessions if it dies: ``heirs`` serve in its place; without any, sessions end."""
    end = {"reason": Reason.TRANSPORT_TTL_EXCEEDED.value, "policy": "session.transport_ttl",
           "in_ms": _maybe_ms(transport_ttl)}  # fmt: skip
    return {"heirs": heirs, "adopted_after_ms": _maybe_ms(adopted_after) if heirs else None,
            "ends": None if heirs else end}  # fmt: skip


def cluster_part(
    name: str, state: Literal["serving", "draining", "fenced"], lease_left: int, sessions: int, store: StoreFacts
) -> dict[str, Any]:
    """What a gateway's own status says of its cluster, as ``document["cluster"]``; ``lease_left`` in ns.

    ``fenced``: the lease is over (or was never had), so nothing is forwarded.
    """
    return {
        "name": name,
        "state": state,
        "lease_left_ms": milliseconds(lease_left),
        "sessions": sessions,
        **_behind(store),
    }


def _behind(store: StoreFacts) -> dict[str, Any]:
    return {"behind": store.behind, "behind_oldest_ms": _maybe_ms(store.oldest_behind)}


def _owned_row(session: OwnedSession) -> dict[str, Any]:
    return {
        "uid": session.uid,
        "device": session.device,
        "state": session.state,
        "owner": session.owner,
        "term": session.term,
        "since_ms": _maybe_ms(session.since),
    }


def _maybe_ms(duration: int | None) -> float | None:
    return None if duration is None else milliseconds(duration)
