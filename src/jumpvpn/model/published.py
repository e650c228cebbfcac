"""The lifecycle as published, written out a second time: what the explorer judges the machine by.

Nothing here is taken from the transition table, the guards or the deadlines of ``session``: a fault there has to
contradict this page to be seen. Events and states are named by their words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session.state import Session

Condition = Callable[[Session, Any], bool]

EDGES = frozenset(
    {
        ("BIRTH", "ATTACHED"),
        ("ATTACHED", "VOLATILE"),
        ("VOLATILE", "RECOVERING"),
        ("RECOVERING", "ATTACHED"),
        ("RECOVERING", "DEGRADED"),
        ("DEGRADED", "RECOVERING"),
        *((state, "TERMINATED") for state in ("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "DEGRADED")),
    }
)

PRIORITY = (
    "LifetimePassed", "OwnershipConflictProved", "SecurityFailed", "CloseRequested", "KeysExpired",
    "TransportTtlPassed", "EpisodePassed", "HandshakeFailed", "OwnerChanged", "LeaseLost", "StoreUnavailable",
    "PolicyReloaded", "PolicyRefused", "TransportDied", "RecoveryWindowPassed", "HandshakeCompleted", "KeysRotated",
    "ReattachAccepted", "ReattachCommitted", "RebindingValidated", "IncumbentRevalidated", "ReattachRefused",
    "AttemptFailed", "SwitchDenied", "NoCandidate", "PeerAddressChanged", "SwitchForced", "InstabilitySeen",
    "DwellPassed", "BetterCandidateSeen", "TransportStabilized", "ConditionMet", "AttemptStarted", "LifetimeNear",
)  # fmt: skip
"""Simultaneous inputs, highest first."""

RANK = {name: rank for rank, name in enumerate(PRIORITY)}

CAUSES = {
    "LifetimePassed": "session_lifetime_exceeded",
    "OwnershipConflictProved": "ownership_conflict",
    "SecurityFailed": "security_failure",
    "KeysExpired": "key_expired",
    "TransportTtlPassed": "transport_ttl_exceeded",
    "EpisodePassed": "episode_bound_exceeded",
    "OwnerChanged": "owner_changed",
    "LeaseLost": "lease_lost",
    "StoreUnavailable": "store_unavailable",
    "PolicyReloaded": "policy_applied",
    "PolicyRefused": "policy_rejected",
    "TransportDied": "transport_dead",
    "RecoveryWindowPassed": "recovery_window_exceeded",
    "HandshakeCompleted": "handshake_ok",
    "KeysRotated": "key_rotated",
    "ReattachAccepted": "peer_signalled",
    "ReattachCommitted": "reattach_success",
    "RebindingValidated": "rebind_validated",
    "IncumbentRevalidated": "same_path_revalidated",
    "NoCandidate": "no_candidate_transports",
    "PeerAddressChanged": "nat_rebinding",
    "DwellPassed": "volatile_persisted",
    "BetterCandidateSeen": "loss_recovery",
    "TransportStabilized": "path_stabilized",
    "ConditionMet": "recovery_retry",
}
"""What a loser is called in ``contributing``; events with a reason of their own bring it. The two that are missing
(an attempt that begins, a lifetime warning) are no causes."""

DURABLE = (
    "id", "role", "policy", "state", "epoch", "born_at", "entered_at", "keys_at", "reason", "binding", "incumbent",
    "transportless_at", "episode_at", "attempts", "bound_version", "prior_bound_version", "peer_version", "owner_epoch",
    "switches", "hold_until", "volatile_entries", "totals",
)  # fmt: skip
"""What only a commit may change, the version apart. The rest of a session are plans of the running process."""


@dataclass(frozen=True, slots=True)
class Line:
    """One published line. ``to`` None keeps the state; ``then`` feeds the event to the next state at once.

    ``quiet`` lines change nothing durable.
    """

    states: tuple[str, ...]
    event: str
    to: str | None
    reasons: frozenset[str]
    events: frozenset[str]
    when: Condition
    then: bool
    quiet: bool


def _always(_session: Session, _event: Any) -> bool:
    return True


def _active(session: Session, event: Any) -> bool:
    return session.binding is not None and session.binding.transport == event.transport


def _remembered(session: Session, event: Any) -> bool:
    return session.binding is None and session.incumbent == event.transport


def _fresh(session: Session, event: Any) -> bool:
    return bool(event.epoch > session.epoch)


def _attempts_left(session: Session, _event: Any) -> bool:
    return session.policy.recovery.max_attempts > session.attempts


def _asked(kind: str) -> Condition:
    def asked(session: Session, event: Any) -> bool:
        attempt = session.attempt
        return attempt is not None and attempt.kind.value == kind and attempt.transport == event.transport

    return asked


def _moves(session: Session, event: Any) -> bool:
    return bool(session.incumbent != event.transport)


def _newer_owner(session: Session, event: Any) -> bool:
    return bool(event.owner_epoch > session.owner_epoch)


def _bound(session: Session, _event: Any) -> bool:
    return session.binding is not None


def _trying(session: Session, event: Any) -> bool:
    return session.attempt is not None and session.attempt.transport == event.transport


def _idle(session: Session, _event: Any) -> bool:
    return session.attempt is None


def _same_address(session: Session, event: Any) -> bool:
    return session.attempt is not None and session.attempt.peer == event.peer


def _all(*parts: Condition) -> Condition:
    return lambda session, event: all(part(session, event) for part in parts)


def _not(part: Condition) -> Condition:
    return lambda session, event: not part(session, event)


_STATES = {"B": "BIRTH", "A": "ATTACHED", "V": "VOLATILE", "R": "RECOVERING", "D": "DEGRADED", "T": "TERMINATED"}


def _line(
    states: str, event: str, to: str, reasons: str = "", events: str = "", when: Condition = _always, *,
    then: bool = False,
) -> Line:  # fmt: skip
    return Line(
        tuple(_STATES[letter] for letter in states), event, _STATES.get(to), frozenset(reasons.split()),
        frozenset(events.split()), when, then, quiet=False,
    )  # fmt: skip


def _quiet(states: str, event: str, when: Condition = _always, reasons: str = "", events: str = "") -> Line:
    return Line(
        tuple(_STATES[letter] for letter in states), event, None, frozenset(reasons.split()), frozenset(events.split()),
        when, then=False, quiet=True,
    )  # fmt: skip


_END = "session.terminated"
_UNSTABLE = "loss_threshold_exceeded consecutive_drop_exceeded probe_timeout latency_threshold_exceeded"
_FORCED = "operator_switch gateway_drain policy_forced failback"
_CLOSED = "operator_terminated peer_closed device_superseded"
_REFUSED = (
    "unknown_session not_owner invalid_state_for_reattach session_expired transport_ttl_exceeded bad_proof"
    " replay_detected stale_request stale_state_version switch_rate_limited policy_denied invalid_transport_candidate"
)
_DENIED = f"cooldown_active {_REFUSED} store_unavailable atomicity_failed rate_limited unsupported_version"
_SWITCHED = "reattach.result transport.switch transport.retired session.episode_closed"
_REATTACHED = "reattach.result transport.attached session.episode_closed"
_LIVE = "BAVRD"
_BORN = "AVRD"
_OPEN = "VRD"

_switching = _all(_asked("switch"), _fresh)
_revalidating = _all(_asked("revalidate"), _not(_moves))
_rebinding = _all(_asked("rebind"), _not(_moves), _same_address)

LINES: tuple[Line, ...] = (
    _line("B", "HandshakeCompleted", "A", "handshake_ok", "transport.attached ownership.acquired"),
    _line("B", "HandshakeFailed", "T", "handshake_failed handshake_timeout", _END),
    _line("A", "InstabilitySeen", "V", _UNSTABLE, "", _active),
    _quiet("A", "InstabilitySeen", _not(_active)),
    _quiet(_OPEN, "InstabilitySeen", _always, _UNSTABLE, "transport.health"),
    _line("A", "TransportDied", "V", "transport_dead", "transport.dead", _active, then=True),
    _quiet("A", "TransportDied", _not(_active)),
    _line("V", "TransportDied", "R", "dead_transport_recovery", "transport.dead", _active),
    _line("V", "TransportDied", "R", "dead_transport_recovery", "", _remembered),
    _quiet("V", "TransportDied", _all(_not(_active), _not(_remembered))),
    _line("RD", "TransportDied", "", "transport_dead", "transport.dead", _active),
    _quiet("RD", "TransportDied", _not(_active)),
    _line("A", "PeerAddressChanged", "V", "nat_rebinding", "", _active, then=True),
    _line("V", "PeerAddressChanged", "R", "nat_rebinding", "", _active),
    _quiet("AV", "PeerAddressChanged", _not(_active)),
    _quiet("RD", "PeerAddressChanged"),
    _line("A", "SwitchForced", "V", _FORCED, then=True),
    _line("V", "SwitchForced", "R", _FORCED),
    _quiet("RD", "SwitchForced"),
    _line("A", "ReattachAccepted", "V", "peer_signalled", "reattach.attempt", _fresh, then=True),
    _line("V", "ReattachAccepted", "R", "peer_signalled", "", _fresh, then=True),
    _line("D", "ReattachAccepted", "R", "recovery_retry", "", _all(_fresh, _attempts_left), then=True),
    _line("D", "ReattachAccepted", "T", "recovery_attempts_exhausted", _END, _all(_fresh, _not(_attempts_left))),
    _line("R", "ReattachAccepted", "A", "reattach_success", _SWITCHED, _all(_fresh, _moves)),
    _line("R", "ReattachAccepted", "A", "reattach_success", _REATTACHED, _all(_fresh, _not(_moves))),
    _quiet(_BORN, "ReattachAccepted", _not(_fresh), "stale_state_version", "reattach.result"),
    _quiet(_LIVE, "ReattachRefused", _always, _REFUSED, "reattach.result"),
    _line("A", "OwnerChanged", "V", "owner_changed", "ownership.acquired", _newer_owner),
    _line("V", "OwnerChanged", "R", "owner_changed", "ownership.acquired", _newer_owner),
    _line("BRD", "OwnerChanged", "", "owner_changed", "ownership.acquired", _newer_owner),
    _quiet(_LIVE, "OwnerChanged", _not(_newer_owner), "not_owner", "ownership.rejected"),
    _line("V", "TransportStabilized", "R", "path_stabilized", "", _active),
    _quiet("V", "TransportStabilized", _not(_active)),
    _line("V", "DwellPassed", "R", "volatile_persisted"),
    _line("V", "BetterCandidateSeen", "R", "loss_recovery", "transport.health"),
    _line("R", "IncumbentRevalidated", "A", "same_path_revalidated", "transport.revalidated session.episode_closed",
          _revalidating),
    _quiet("R", "IncumbentRevalidated", _not(_revalidating)),
    _line("R", "RebindingValidated", "A", "rebind_validated", "transport.rebound session.episode_closed", _rebinding),
    _quiet("R", "RebindingValidated", _not(_rebinding)),
    _line("R", "ReattachCommitted", "A", "reattach_success", _SWITCHED, _all(_switching, _moves)),
    _line("R", "ReattachCommitted", "A", "reattach_success", _REATTACHED, _all(_switching, _not(_moves))),
    _quiet("R", "ReattachCommitted", _not(_switching)),
    _quiet("R", "AttemptFailed", _trying, "reattach_timeout transport_dead policy_denied nat_rebinding",
           "transport.switch_failed"),
    _quiet("R", "AttemptFailed", _not(_trying)),
    _quiet("R", "AttemptStarted", _idle, "", "reattach.attempt"),
    _quiet("R", "AttemptStarted", _not(_idle)),
    _line("R", "SwitchDenied", "D", _DENIED, "transport.switch_denied"),
    _line("R", "NoCandidate", "D", "no_candidate_transports", "transport.switch_denied"),
    _line("R", "RecoveryWindowPassed", "D", "recovery_window_exceeded"),
    _line("D", "ConditionMet", "R", "recovery_retry", "", _attempts_left),
    _line("D", "ConditionMet", "T", "recovery_attempts_exhausted", _END, _not(_attempts_left)),
    _line(_BORN, "TransportTtlPassed", "T", "transport_ttl_exceeded", _END, _not(_bound)),
    _quiet(_BORN, "TransportTtlPassed", _bound),
    _line(_OPEN, "EpisodePassed", "T", "episode_bound_exceeded", _END),
    _line(_LIVE, "LifetimePassed", "T", "session_lifetime_exceeded", _END),
    _line(_LIVE, "KeysExpired", "T", "key_expired", f"{_END} key.expired"),
    _line(_LIVE, "CloseRequested", "T", _CLOSED, _END),
    _line(_LIVE, "SecurityFailed", "T", "security_failure", f"{_END} security.key_compromise_suspected"),
    _line(_LIVE, "OwnershipConflictProved", "T", "ownership_conflict", f"{_END} ownership.conflict"),
    _line(_LIVE, "PolicyReloaded", "", "policy_applied", "policy.applied"),
    _quiet(_LIVE, "PolicyRefused", _always, "policy_rejected", "policy.rejected"),
    _quiet(_LIVE, "LeaseLost", _always, "lease_lost", "ownership.lost"),
    _quiet(_LIVE, "StoreUnavailable", _always, "store_unavailable", "ownership.store_unavailable"),
    _line(_BORN, "KeysRotated", "", "key_rotated", "key.rotated", _all(_fresh, _bound)),
    _quiet(_BORN, "KeysRotated", _not(_all(_fresh, _bound))),
    _quiet(_LIVE, "LifetimeNear", _always, "", "session.lifetime_warning"),
)  # fmt: skip

BY_PAIR: dict[tuple[str, str], tuple[Line, ...]] = {
    (state, event): tuple(line for line in LINES if state in line.states and line.event == event)
    for state, event in {(state, line.event) for line in LINES for state in line.states}
}


BOUNDS = (
    ("session", "max_lifetime"), ("session", "transport_ttl"), ("session", "handshake_timeout"),
    ("volatility", "volatile_max"), ("switching", "max_per_minute"), ("switching", "hold_down"),
    ("recovery", "window"), ("recovery", "episode_max"), ("recovery", "max_attempts"), ("security", "key_max_age"),
)  # fmt: skip
"""The policy keys that bound a session."""

LIFELONG = frozenset({("session", "max_lifetime"), ("security", "key_max_age")})
"""Bounds that run in every state."""

UNTIMED = frozenset({("switching", "hold_down")})
"""Bounds that the next switch reads: one that runs has its own instant."""


def in_force(old: Policy, new: Policy, *, calm: bool) -> dict[tuple[str, str], int]:
    """What each bound is once ``new`` came over ``old``: in a calm state (ATTACHED) the new one, else the smaller.

    Lifelong bounds never grow.
    """
    found = {}
    for section, key in BOUNDS:
        before, after = getattr(getattr(old, section), key), getattr(getattr(new, section), key)
        free = (section, key) in UNTIMED or (calm and (section, key) not in LIFELONG)
        found[section, key] = after if free else min(before, after)
    return found


@dataclass(frozen=True, slots=True)
class Bound:
    """A deadline that runs: past ``at`` (``now`` equal to it is still inside) ``event`` happens."""

    name: str
    event: str
    at: int
    cause: str | None


CLOCKWORK = frozenset(
    {
        "LifetimePassed", "KeysExpired", "TransportTtlPassed", "EpisodePassed", "DwellPassed", "RecoveryWindowPassed",
        "LifetimeNear",
    }
)  # fmt: skip
"""The events that only time gives."""

ENDS = frozenset({"lifetime", "key_age", "handshake", "transport_ttl", "episode"})
"""The deadlines that end a session."""


def running(session: Session) -> tuple[Bound, ...]:
    """Every deadline that the published policy keys give ``session``."""
    state, policy = session.state.value, session.policy
    if state == "TERMINATED":
        return ()
    found = [
        Bound("lifetime", "LifetimePassed", session.born_at + policy.session.max_lifetime, None),
        Bound("key_age", "KeysExpired", session.keys_at + policy.security.key_max_age, None),
    ]
    if state == "BIRTH":
        limit = session.entered_at + policy.session.handshake_timeout
        found.append(Bound("handshake", "HandshakeFailed", limit, "handshake_timeout"))
    if session.transportless_at is not None:
        limit = session.transportless_at + policy.session.transport_ttl
        found.append(Bound("transport_ttl", "TransportTtlPassed", limit, None))
    if session.episode_at is not None:
        found.append(Bound("episode", "EpisodePassed", session.episode_at + policy.recovery.episode_max, None))
    if state == "VOLATILE":
        limit = session.entered_at + policy.volatility.volatile_max
        found.append(Bound("volatile_dwell", "DwellPassed", limit, None))
    if state == "RECOVERING":
        limit = session.entered_at + policy.recovery.window
        found.append(Bound("recovery_window", "RecoveryWindowPassed", limit, None))
        if session.attempt is not None:
            found.append(Bound("attempt", "AttemptFailed", session.attempt.deadline, "reattach_timeout"))
    warnings = sorted(policy.session.lifetime_warnings, reverse=True)[session.warnings :]
    if warnings:
        limit = session.born_at + policy.session.max_lifetime - warnings[0]
        found.append(Bound("lifetime_warning", "LifetimeNear", limit, None))
    return tuple(found)


def overdue(session: Session, now: int) -> tuple[Bound, ...]:
    """The running deadlines that have passed, highest priority first."""
    passed = [bound for bound in running(session) if now > bound.at]
    return tuple(sorted(passed, key=lambda bound: RANK[bound.event]))


def verdict(state: str, faults: tuple[str, ...], *, rate_used_up: bool) -> tuple[int, str | None]:
    """The step and the reason that a reattach request with ``faults`` gets: the first check that fails decides."""
    checks = (
        (2, "not_owner", "of another owner" in faults),
        (3, "invalid_state_for_reattach", state in ("BIRTH", "TERMINATED")),
        (6, "bad_proof", "with a bad proof" in faults),
        (7, "replay_detected", "with a used nonce" in faults),
        (7, "stale_request", "of another time" in faults),
        (8, "stale_state_version", "for an old version" in faults),
        (8, "stale_state_version", "of an old epoch" in faults or "of an epoch far ahead" in faults),
        (9, "switch_rate_limited", rate_used_up),
        (10, "address_unvalidated", "from an unproved address" in faults),
    )
    return next(((step, reason) for step, reason, failed in checks if failed), (10, None))
