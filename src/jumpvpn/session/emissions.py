"""The events that a row emits besides ``session.state_change``: one builder per catalogue name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from jumpvpn.policy.model import Policy
from jumpvpn.session.events import OwnerCause, OwnerChanged
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, Totals
from jumpvpn.values import MILLISECOND, DomainEvent, Instant, TransportId, TransportView, dataclass, milliseconds


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a builder may look at: the row, the session before and after it, the event, and when."""

    row: str
    before: Session
    after: Session
    event: Any
    now: Instant
    reason: Reason | None
    mutates: bool


Built = tuple[str, Mapping[str, Any], TransportId | None]


def further_event(name: str, occasion: Occasion) -> tuple[DomainEvent, ...]:
    """The events behind one name in a row's ``emits`` (a refused proof gives two)."""
    return tuple(
        _sealable(occasion, built_name, data, transport) for built_name, data, transport in _BUILDERS[name](occasion)
    )


def bounds(policy: Policy) -> dict[str, int]:
    """The bounds that a session runs under (ms, counts), for whoever judges its events without its policy."""
    spans = {
        "lifetime_ms": policy.session.max_lifetime,
        "key_age_ms": policy.security.key_max_age,
        "transport_ttl_ms": policy.session.transport_ttl,
        "episode_ms": policy.recovery.episode_max,
        "window_ms": policy.recovery.window,
        "volatile_ms": policy.volatility.volatile_max,
        "hold_down_ms": policy.switching.hold_down,
    }
    counts = {"switches_60s": policy.switching.max_per_minute, "attempts": policy.recovery.max_attempts}
    return {name: span // MILLISECOND for name, span in spans.items()} | counts


def state_change(occasion: Occasion, contributing: tuple[str, ...]) -> DomainEvent:
    """``session.state_change``: the one event that every change of state has."""
    before, after, now = occasion.before, occasion.after, occasion.now
    data: dict[str, Any] = {
        "dwell_ms": milliseconds(now - before.entered_at),
        "transportless_ms": _since(before.transportless_at, now),
        "episode_ms": _since(before.episode_at, now),
        "attempts": after.attempts or before.attempts,
    }
    if after.policy is not before.policy:  # one that waited for the end of the episode
        data["bounds"] = bounds(after.policy)
    bound = after.binding or before.binding
    transport = bound.transport if bound is not None else after.incumbent
    event = _sealable(occasion, "session.state_change", data, transport)
    return DomainEvent(
        name=event.name, lane="S", session=event.session, state_version=event.state_version,
        owner_epoch=event.owner_epoch, prev_state=before.state.value, state=after.state.value, reason=event.reason,
        contributing=contributing, transport=event.transport, data=event.data,
    )  # fmt: skip


def announced(name: str, *, mutates: bool) -> tuple[str, str]:
    """The catalogue name and the lane of one name in a row's ``emits``."""
    shown = "reattach.result" if name == "reattach.denied" else name
    return shown, _lane(shown, mutates=mutates)


def _lane(name: str, *, mutates: bool) -> Literal["S", "N"]:
    return "S" if mutates and name not in _NODE_LANE else "N"


def _sealable(occasion: Occasion, name: str, data: Mapping[str, Any], transport: TransportId | None) -> DomainEvent:
    after = occasion.after
    view = None if transport is None else _view(after, occasion.before, transport)
    return DomainEvent(
        name=name, lane=_lane(name, mutates=occasion.mutates), session=after.uid,
        state_version=after.version, owner_epoch=after.owner_epoch, prev_state=after.state.value,
        state=after.state.value, reason=occasion.reason.value if occasion.reason is not None else None,
        transport=view, data={"row": occasion.row, **data},
    )  # fmt: skip


_NODE_LANE = frozenset({"reattach.attempt", "transport.health", "security.validation_failed"})


def _view(after: Session, before: Session, transport: TransportId) -> TransportView:
    binding = next((b for b in (after.binding, before.binding) if b is not None and b.transport == transport), None)
    peer = binding.peer if binding is not None else ""
    return TransportView(id=transport, proto=_protocol(transport), peer=peer, binding_gen=int(after.epoch))


def _protocol(transport: TransportId) -> str:
    parts = transport.split("/")
    return parts[1] if len(parts) > 1 else "udp"


def _since(start: Instant | None, now: Instant) -> float:
    return milliseconds(now - start) if start is not None else 0.0


def _one(name: str, data: Mapping[str, Any], transport: TransportId | None = None) -> tuple[Built, ...]:
    return ((name, data, transport),)


def _attached(o: Occasion) -> tuple[Built, ...]:
    assert o.after.binding is not None
    return _one("transport.attached", {"epoch": int(o.after.epoch)}, o.after.binding.transport)


def _retired(o: Occasion) -> tuple[Built, ...]:
    return _one("transport.retired", {"epoch": int(o.before.epoch)}, o.before.incumbent)


def _acquired(o: Occasion) -> tuple[Built, ...]:
    cause = o.event.cause if isinstance(o.event, OwnerChanged) else OwnerCause.BIRTH
    data: dict[str, Any] = {"epoch": o.after.owner_epoch, "version": int(o.after.version), "cause": cause.value}
    if isinstance(o.event, OwnerChanged):
        proven = o.event.proven_version
        data |= {"from_node": o.event.from_node, "floor": proven if proven > o.before.version else 0}
    return _one("ownership.acquired", data)


def _owner_rejected(o: Occasion) -> tuple[Built, ...]:
    return _one("ownership.rejected", {"seen_epoch": o.event.owner_epoch, "seen_version": int(o.after.version)})


def _dead(o: Occasion) -> tuple[Built, ...]:
    evidence = getattr(o.event, "evidence", "")
    data = {"evidence": evidence, "age_ms": getattr(o.event, "age_ms", 0), "was_active": True}
    return _one("transport.dead", data, o.event.transport)


def _health(o: Occasion) -> tuple[Built, ...]:
    return _one("transport.health", dict(getattr(o.event, "measured", {})), o.event.transport)


def _attempt(o: Occasion) -> tuple[Built, ...]:
    event = o.event
    deadline = getattr(event, "deadline", None)
    data: dict[str, Any] = {
        "attempt": o.after.attempts,
        "kind": getattr(getattr(event, "kind", None), "value", "switch"),
    }
    data["deadline_ms"] = milliseconds(deadline - o.now) if deadline is not None else 0
    nonce = getattr(event, "nonce_id", None)
    if nonce is not None:
        data["nonce_id"] = nonce
    data.update(getattr(event, "measured", {}))
    return _one("reattach.attempt", data, event.transport)


def _result(o: Occasion) -> tuple[Built, ...]:
    data = {
        "status": "SUCCESS",
        "nonce_id": o.event.nonce_id,
        "epoch": int(o.event.epoch),
        "attempt": o.before.attempts,
    }
    return _one("reattach.result", data, o.event.transport)


def _denied(o: Occasion) -> tuple[Built, ...]:
    step = getattr(o.event, "step", 8)
    data = {"status": "DENIED", "step": step, "nonce_id": o.event.nonce_id}
    result = _one("reattach.result", data, o.event.transport)
    if o.reason is Reason.REPLAY_DETECTED:
        return (*result, *_one("security.replay_detected", {"step": step, "nonce_id": o.event.nonce_id, "count": 1}))
    if o.reason is Reason.BAD_PROOF:
        return (*result, *_one("security.validation_failed", {"step": step, "nonce_id": o.event.nonce_id, "count": 1}))
    return result


def _switch(o: Occasion) -> tuple[Built, ...]:
    data = {
        "from_id": o.before.incumbent or "",
        "to_id": o.event.transport,
        "switch_count_60s": o.after.budget.used(o.now),
        "explicit": True,
        "interruption_ms": _since(o.before.transportless_at, o.now),
    }
    return _one("transport.switch", data, o.event.transport)


def _switch_failed(o: Occasion) -> tuple[Built, ...]:
    started = o.before.attempt.started if o.before.attempt is not None else o.now
    data = {"to_id": o.event.transport, "elapsed_ms": milliseconds(o.now - started)}
    return _one("transport.switch_failed", data, o.event.transport)


def _switch_denied(o: Occasion) -> tuple[Built, ...]:
    detail = dict(getattr(o.event, "detail", {}))
    detail.setdefault("candidate_count", getattr(o.event, "considered", 0))
    detail["switch_count_60s"] = o.after.budget.used(o.now)
    return _one("transport.switch_denied", detail, o.after.incumbent)


def _revalidated(o: Occasion) -> tuple[Built, ...]:
    return _one("transport.revalidated", {"rtt_ms": milliseconds(o.event.rtt_ns)}, o.event.transport)


def _rebound(o: Occasion) -> tuple[Built, ...]:
    old = o.before.binding.peer if o.before.binding is not None else ""
    data = {"old_peer": old, "new_peer": o.event.peer, "rtt_ms": milliseconds(o.event.rtt_ns)}
    return _one("transport.rebound", data, o.event.transport)


def _episode_closed(o: Occasion) -> tuple[Built, ...]:
    totals = o.after.totals
    data = {
        "recovery_ms": _since(o.before.episode_at, o.now),
        "degraded_ms": milliseconds(totals.episode_degraded),
        "transportless_ms": _since(o.before.transportless_at, o.now),
        "attempts": o.before.attempts,
        "denials": totals.episode_denials,
        "outcome": o.after.state.value,
        **_detection(totals),
    }
    return _one("session.episode_closed", data)


def _detection(totals: Totals) -> dict[str, float]:
    return {} if totals.episode_unseen is None else {"detect_ms": milliseconds(totals.episode_unseen)}


def _terminated(o: Occasion) -> tuple[Built, ...]:
    totals = o.after.totals
    data: dict[str, Any] = {
        "session_age_ms": milliseconds(o.now - o.before.born_at),
        "transportless_ms": milliseconds(totals.transportless),
        "volatile_ms": milliseconds(totals.volatile),
        "recovering_ms": milliseconds(totals.recovering),
        "degraded_ms": milliseconds(totals.degraded),
        "switches_total": totals.switches,
        "episodes_total": totals.episodes,
        "last_epoch": int(o.before.epoch),
    }
    if o.before.episode_at is not None:  # no session.episode_closed comes: the episode ends here
        data["episode_ms"] = _since(o.before.episode_at, o.now)
        data["episode_degraded_ms"] = milliseconds(totals.episode_degraded)
        data |= {"attempts": o.before.attempts, "denials": totals.episode_denials} | _detection(totals)
    return _one("session.terminated", data, o.before.incumbent)


def _rejected_input(o: Occasion) -> tuple[Built, ...]:
    return _one("session.input_rejected", {"input": type(o.event).__name__})


def _rotated(o: Occasion) -> tuple[Built, ...]:
    data = {"key_epoch": int(o.event.epoch), "age_ms": milliseconds(o.now - o.before.keys_at)}
    return _one("key.rotated", data, o.after.incumbent)


def _key_expired(o: Occasion) -> tuple[Built, ...]:
    return _one("key.expired", {"age_ms": milliseconds(o.now - o.before.keys_at)})


def _policy_applied(o: Occasion) -> tuple[Built, ...]:
    policy = o.event.policy
    return _one(
        "policy.applied",
        {"version": policy.version, "digest": policy.digest(), "mode": "reload", "bounds": bounds(o.after.policy)},
    )


def _policy_rejected(o: Occasion) -> tuple[Built, ...]:
    return _one("policy.rejected", {"errors": list(o.event.errors)})


def _evidence(name: str) -> Callable[[Occasion], tuple[Built, ...]]:
    return lambda o: _one(name, {"evidence": o.event.evidence})


_BUILDERS: dict[str, Callable[[Occasion], tuple[Built, ...]]] = {
    "transport.attached": _attached,
    "transport.retired": _retired,
    "ownership.acquired": _acquired,
    "ownership.rejected": _owner_rejected,
    "ownership.lost": lambda o: _one("ownership.lost", {"epoch": o.event.owner_epoch}),
    "ownership.store_unavailable": lambda o: _one("ownership.store_unavailable", {"op": o.event.operation}),
    "ownership.conflict": _evidence("ownership.conflict"),
    "security.key_compromise_suspected": _evidence("security.key_compromise_suspected"),
    "transport.dead": _dead,
    "transport.health": _health,
    "transport.switch": _switch,
    "transport.switch_failed": _switch_failed,
    "transport.switch_denied": _switch_denied,
    "transport.revalidated": _revalidated,
    "transport.rebound": _rebound,
    "reattach.attempt": _attempt,
    "reattach.result": _result,
    "reattach.denied": _denied,
    "session.episode_closed": _episode_closed,
    "session.terminated": _terminated,
    "session.input_rejected": _rejected_input,
    "session.lifetime_warning": lambda o: _one("session.lifetime_warning", {"left_ms": o.event.left_ms}),
    "key.rotated": _rotated,
    "key.expired": _key_expired,
    "policy.applied": _policy_applied,
    "policy.rejected": _policy_rejected,
}
