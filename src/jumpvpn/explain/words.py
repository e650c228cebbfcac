"""Words for what the code calls by codes: reasons from their registry, rows from the table, measurements with units."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jumpvpn.explain.units import count, percent, span
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selectors import Selector
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.session.transitions import AFTER_TERMINATION, LISTED, NOT_LISTED, ROWS, Row
from jumpvpn.values import MILLISECOND

Data = Mapping[str, Any]

BY_GATEWAY = "denied by the gateway"

RULES = {
    "only_candidate": "the only usable and allowed one",
    "ranked": "ranked first",
    "incumbent_while_limited": "a better one exists, but the switch limits keep the session where it is",
    "incumbent_within_policy": "the transport in use is within policy and no other beats it by the hysteresis",
    "incumbent_answers": "the transport bound last answers again",
    "incumbent_stable": "the transport bound last answers again",
    "rebinding_answers": "the peer's new address answers",
    "without_evidence": "nothing answers, so one attempt is made without evidence",
    "transports.allow/deny": "transports.allow, transports.deny",
    "switching.flap_suppress": "what is usable flapped too often, switching.flap_suppress",
    BY_GATEWAY: "the gateway refused a moment ago; it is not asked again at once",
    "already active": "it is the transport in use",
    "rebinding": "too many changes of address in 60 s (switching.max_per_minute)",
}
"""What selection's rules mean."""

_EVIDENCE = {
    "link": "its interface is down or gone",
    "address": "its address was removed or changed",
    "route": "its route was removed",
    "gateway": "its gateway is no longer among those in use",
    "silence": "it stayed silent too long",
    "lost": "it was lost while the session was busy with another commit",
    "policy": "policy no longer allows it",
    "binding_cleared": "its binding was cleared",
}

KEYS: dict[Reason, tuple[str, ...]] = {
    Reason.LOSS_THRESHOLD_EXCEEDED: ("volatility.loss_threshold", "volatility.loss_window"),
    Reason.CONSECUTIVE_DROP_EXCEEDED: ("volatility.consecutive_drops", "volatility.probe_interval_idle"),
    Reason.PROBE_TIMEOUT: ("volatility.silence_floor", "volatility.silence_margin", "volatility.silence_ceiling"),
    Reason.LATENCY_THRESHOLD_EXCEEDED: ("volatility.latency_p95",),
    Reason.PATH_STABILIZED: ("volatility.stability_window",),
    Reason.VOLATILE_PERSISTED: ("volatility.volatile_max",),
    Reason.LOSS_RECOVERY: ("switching.hysteresis",),
    Reason.FAILBACK: ("switching.failback", "transports.prefer"),
    Reason.POLICY_FORCED: ("transports.allow", "transports.deny"),
    Reason.COOLDOWN_ACTIVE: ("switching.hold_down",),
    Reason.SWITCH_RATE_LIMITED: ("switching.max_per_minute",),
    Reason.POLICY_DENIED: ("transports.allow", "transports.deny"),
    Reason.RECOVERY_WINDOW_EXCEEDED: ("recovery.window",),
    Reason.REATTACH_TIMEOUT: ("recovery.attempt_timeout",),
    Reason.RECOVERY_ATTEMPTS_EXHAUSTED: ("recovery.max_attempts",),
    Reason.TRANSPORT_TTL_EXCEEDED: ("session.transport_ttl",),
    Reason.EPISODE_BOUND_EXCEEDED: ("recovery.episode_max",),
    Reason.SESSION_LIFETIME_EXCEEDED: ("session.max_lifetime",),
    Reason.KEY_EXPIRED: ("security.key_max_age",),
    Reason.HANDSHAKE_TIMEOUT: ("session.handshake_timeout",),
    Reason.STALE_REQUEST: ("security.reattach_max_age",),
}
"""The policy keys behind a reason."""

ENDS_BY: dict[Reason, str] = {
    Reason.TRANSPORT_TTL_EXCEEDED: "transport_ttl",
    Reason.EPISODE_BOUND_EXCEEDED: "episode",
    Reason.SESSION_LIFETIME_EXCEEDED: "lifetime",
    Reason.KEY_EXPIRED: "key_age",
    Reason.HANDSHAKE_TIMEOUT: "handshake",
}
"""Which deadline must have passed when a session ends for this reason."""

_COUNTS = ("max_attempts", "max_per_minute", "consecutive_drops", "dead_factor")


def reason_of(code: str | None) -> Reason | None:
    """The registered reason, or None for a code of another version."""
    return _REASONS.get(code or "")


def meaning(code: str | None) -> str:
    """A reason in words; an unknown one (a newer program's log) is shown as it is."""
    reason = reason_of(code)
    return reason.meaning.text if reason is not None else (code or "no reason given").replace("_", " ")


def row_of(row_id: str) -> Row | None:
    """The row of the table by its id."""
    return {**ROWS, AFTER_TERMINATION.id: AFTER_TERMINATION, NOT_LISTED.id: NOT_LISTED}.get(row_id)


def row_words(row_id: str, state: str | None) -> str:
    """A row as a sentence: ``row 4: in ATTACHED, transport died (on binding) leads to VOLATILE``."""
    row = row_of(row_id)
    if row is None:
        return f"row {row_id} of another version of the table" if row_id and row_id != "0" else "row 0: birth"
    where = state if state in {s.value for s in row.states} else " or ".join(s.value for s in row.states)
    event = camel_words(row.event.__name__) if row.event is not object else "this input"
    guard = row.guard.__name__.replace("_", " ")
    condition = "" if guard == "always" else f" ({guard})"
    leads = f"leads to {row.next.value}" if row.next is not None else "keeps the state"
    return f"row {row.id}: in {where}, {event}{condition} {leads}"


def camel_words(name: str) -> str:
    """``TransportDied`` as ``transport died``."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower().replace(" ttl ", " TTL ")


def consequence(state: State, name: str, event: type) -> str:
    """What happens when the deadline ``name`` passes in ``state`` and gives ``event``, as the table says."""
    rows = LISTED.get((state, event), ())
    leads = next((row.next for row in rows if row.next is not None), None)
    if leads is State.TERMINATED:
        return "the session ends"
    if leads is not None:
        return f"the session goes to {leads.value}"
    return _WITHOUT_ROW.get(name, "it is recorded")


_WITHOUT_ROW = {
    "attempt": "the next candidate is tried",
    "lifetime_warning": "the coming end of the session is announced",
}


def value(policy: Policy, key: str) -> str:
    """The value of one policy key in human units."""
    section, _, name = key.partition(".")
    found = getattr(getattr(policy, section), name)
    return _value(name, found)


def _value(name: str, found: Any) -> str:
    if isinstance(found, tuple | list):
        return ", ".join(_value(name, one) for one in found) if found else "none"
    if isinstance(found, str):
        return f'"{found}"' if name in ("allow", "deny", "prefer") else found
    if name == "loss_threshold":
        return percent(found)
    if isinstance(found, float):
        return f"x {found:g}"
    return str(found) if name in _COUNTS else span(found / MILLISECOND)


def forbidding(policy: Policy, transport: str) -> str | None:
    """The rule that keeps ``interface/protocol/gateway`` out, None if policy allows it or the name has another form."""
    parts = transport.split("/")
    if len(parts) != 3 or policy.transports.allows(*parts):
        return None
    interface, protocol, gateway = parts
    tags = policy.transports.tags_of(*parts)
    for text in policy.transports.deny:
        if Selector.parse(text).matches(interface=interface, protocol=protocol, gateway=gateway, tags=tags):
            return f'transports.deny "{text}"'
    return "transports.allow does not name it"


def evidence_words(evidence: str) -> str:
    """Why a transport was declared dead."""
    if evidence.startswith("socket:"):
        return f"its socket failed ({evidence.removeprefix('socket:')})"
    return _EVIDENCE.get(evidence, evidence)


def _silence(data: Data) -> str:
    limit = number(data, "limit_ms")
    against = f" against a limit of {span(limit)}" if limit is not None else ""
    return f"silence of {span(data['silent_ms'])}{against}"


_MEASURED: tuple[tuple[str, Callable[[Data], str]], ...] = (
    ("silent_ms", _silence),
    ("rtt_ms", lambda d: f"RTT {span(d['rtt_ms'])}" if d["rtt_ms"] else "RTT not measured"),
    ("rtt_p95_ms", lambda d: f"RTT p95 {span(d['rtt_p95_ms'])}"),
    ("loss_ratio", lambda d: f"loss {percent(d['loss_ratio'])}"),
    ("stable_ms", lambda d: f"good for {span(d['stable_ms'])}" if d["stable_ms"] else "not proved yet"),
    ("cooldown_left_ms", lambda d: f"hold-down {span(d['cooldown_left_ms'])} left"),
)


def measured(data: Data, policy: Policy | None = None) -> list[str]:
    """What an event measured, each with its limit where the event or the policy names one."""
    found = [words(data) for name, words in _MEASURED if _is_number(data.get(name))]
    if policy is not None:
        found = [_against(text, data, policy) for text in found]
    used, limit = number(data, "switch_count_60s"), number(data, "limit")
    if used is not None and limit is not None:
        found.append(f"{used:.0f} of {count(int(limit), 'switch', 'switches')} in 60 s used")
    return found


def _against(text: str, data: Data, policy: Policy) -> str:
    """``loss 31 %`` over the threshold becomes ``loss 31 % against 20 %``."""
    if text.startswith("loss") and data["loss_ratio"] > policy.volatility.loss_threshold:
        return f"{text} against {percent(policy.volatility.loss_threshold)}"
    limit = policy.volatility.latency_p95
    if text.startswith("RTT p95") and limit != "off" and data["rtt_p95_ms"] * MILLISECOND > limit:
        return f"{text} against {span(limit / MILLISECOND)}"
    return text


def number(data: Data, name: str) -> float | None:
    """A figure of an event, None if it is missing or no figure."""
    value = data.get(name)
    return value if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_REASONS = {reason.value: reason for reason in Reason}
