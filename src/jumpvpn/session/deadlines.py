"""Deadlines are fields of the session: which is next, which have passed, and who wins when several things coincide.

``now`` equal to a deadline is still inside (strict ``>``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from jumpvpn.session import events as ev
from jumpvpn.session.events import Event
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, State
from jumpvpn.values import MILLISECOND, Duration, Instant, later

PRIORITY: tuple[type, ...] = (
    ev.LifetimePassed,
    ev.OwnershipConflictProved,
    ev.SecurityFailed,
    ev.CloseRequested,
    ev.KeysExpired,
    ev.TransportTtlPassed,
    ev.EpisodePassed,
    ev.HandshakeFailed,
    ev.OwnerChanged,
    ev.LeaseLost,
    ev.StoreUnavailable,
    ev.PolicyReloaded,
    ev.PolicyRefused,
    ev.TransportDied,
    ev.RecoveryWindowPassed,
    ev.HandshakeCompleted,
    ev.KeysRotated,
    ev.ReattachAccepted,
    ev.ReattachCommitted,
    ev.RebindingValidated,
    ev.IncumbentRevalidated,
    ev.ReattachRefused,
    ev.AttemptFailed,
    ev.SwitchDenied,
    ev.NoCandidate,
    ev.PeerAddressChanged,
    ev.SwitchForced,
    ev.InstabilitySeen,
    ev.DwellPassed,
    ev.BetterCandidateSeen,
    ev.TransportStabilized,
    ev.ConditionMet,
    ev.AttemptStarted,
    ev.LifetimeNear,
)
"""Simultaneous inputs, highest first. Attempts used up (row 26) is a guard on ``ConditionMet``, not an input."""

_RANK = {event: rank for rank, event in enumerate(PRIORITY)}

CAUSE: dict[type, Reason] = {
    ev.LifetimePassed: Reason.SESSION_LIFETIME_EXCEEDED,
    ev.OwnershipConflictProved: Reason.OWNERSHIP_CONFLICT,
    ev.SecurityFailed: Reason.SECURITY_FAILURE,
    ev.KeysExpired: Reason.KEY_EXPIRED,
    ev.TransportTtlPassed: Reason.TRANSPORT_TTL_EXCEEDED,
    ev.EpisodePassed: Reason.EPISODE_BOUND_EXCEEDED,
    ev.OwnerChanged: Reason.OWNER_CHANGED,
    ev.LeaseLost: Reason.LEASE_LOST,
    ev.StoreUnavailable: Reason.STORE_UNAVAILABLE,
    ev.PolicyReloaded: Reason.POLICY_APPLIED,
    ev.PolicyRefused: Reason.POLICY_REJECTED,
    ev.TransportDied: Reason.TRANSPORT_DEAD,
    ev.RecoveryWindowPassed: Reason.RECOVERY_WINDOW_EXCEEDED,
    ev.HandshakeCompleted: Reason.HANDSHAKE_OK,
    ev.KeysRotated: Reason.KEY_ROTATED,
    ev.ReattachAccepted: Reason.PEER_SIGNALLED,
    ev.ReattachCommitted: Reason.REATTACH_SUCCESS,
    ev.RebindingValidated: Reason.REBIND_VALIDATED,
    ev.IncumbentRevalidated: Reason.SAME_PATH_REVALIDATED,
    ev.NoCandidate: Reason.NO_CANDIDATE_TRANSPORTS,
    ev.PeerAddressChanged: Reason.NAT_REBINDING,
    ev.DwellPassed: Reason.VOLATILE_PERSISTED,
    ev.BetterCandidateSeen: Reason.LOSS_RECOVERY,
    ev.TransportStabilized: Reason.PATH_STABILIZED,
    ev.ConditionMet: Reason.RECOVERY_RETRY,
}


POLICY_KEY: dict[str, str] = {
    "lifetime": "session.max_lifetime",
    "key_age": "security.key_max_age",
    "lifetime_warning": "session.lifetime_warnings",
    "handshake": "session.handshake_timeout",
    "transport_ttl": "session.transport_ttl",
    "episode": "recovery.episode_max",
    "volatile_dwell": "volatility.volatile_max",
    "recovery_window": "recovery.window",
    "attempt": "recovery.attempt_timeout",
}
"""Every deadline by its name, and the policy key that sets its length."""


_LIFETIME, _KEY_AGE, _TRANSPORT_TTL, _EPISODE, _DWELL = (
    ev.LifetimePassed(),
    ev.KeysExpired(),
    ev.TransportTtlPassed(),
    ev.EpisodePassed(),
    ev.DwellPassed(),
)
_HANDSHAKE = ev.HandshakeFailed(Reason.HANDSHAKE_TIMEOUT)


class Deadline(NamedTuple):
    """A named instant after which ``event`` happens."""

    name: str
    at: Instant
    event: Event


def deadlines(session: Session) -> tuple[Deadline, ...]:
    """All deadlines that run for ``session``, in no particular order; none when TERMINATED."""
    if session.state is State.TERMINATED:
        return ()
    policy = session.policy
    born, entered = session.born_at, session.entered_at
    end = later(born, policy.session.max_lifetime)
    found = [
        Deadline("lifetime", end, _LIFETIME),
        Deadline("key_age", later(session.keys_at, policy.security.key_max_age), _KEY_AGE),
        *_warnings(session, end),
    ]
    if session.state is State.BIRTH:
        found.append(Deadline("handshake", later(entered, policy.session.handshake_timeout), _HANDSHAKE))
    if session.transportless_at is not None:
        ttl = later(session.transportless_at, policy.session.transport_ttl)
        found.append(Deadline("transport_ttl", ttl, _TRANSPORT_TTL))
    if session.episode_at is not None:
        found.append(Deadline("episode", later(session.episode_at, policy.recovery.episode_max), _EPISODE))
    if session.state is State.VOLATILE:
        found.append(Deadline("volatile_dwell", later(entered, policy.volatility.volatile_max), _DWELL))
    if session.state is State.RECOVERING:
        found += _recovery(session)
    return tuple(found)


def next_deadline(session: Session) -> Deadline | None:
    """The earliest deadline, or None."""
    return min(deadlines(session), key=lambda deadline: deadline.at, default=None)


def reached_deadlines(session: Session, now: Instant) -> tuple[Event, ...]:
    """Events of all deadlines that have passed, highest priority first."""
    return by_priority(tuple([deadline.event for deadline in deadlines(session) if now > deadline.at]))


def by_priority(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """Simultaneous events in the published order; equals keep their order."""
    return tuple(sorted(events, key=lambda event: _RANK[type(event)])) if len(events) > 1 else events


def cause_of(event: Event) -> Reason | None:
    """The reason that an event would give, for ``contributing``."""
    own = getattr(event, "reason", None)
    return own if isinstance(own, Reason) else CAUSE.get(type(event))


def _warnings(session: Session, end: Instant) -> list[Deadline]:
    limits = session.policy.session
    due = _lead_times(limits.lifetime_warnings, limits.max_lifetime)[session.warnings :]
    if not due:
        return []
    lead, warning = due[0]
    return [Deadline("lifetime_warning", later(end, -lead), warning)]


@lru_cache(maxsize=64)  # a policy, and the one that follows it, at each of a few clients in one process
def _lead_times(warnings: tuple[Duration, ...], lifetime: Duration) -> tuple[tuple[Duration, ev.LifetimeNear], ...]:
    times = (lead for lead in sorted(warnings, reverse=True) if lead < lifetime)
    return tuple((lead, ev.LifetimeNear(lead // MILLISECOND)) for lead in times)


def _recovery(session: Session) -> list[Deadline]:
    window = later(session.entered_at, session.policy.recovery.window)
    found = [Deadline("recovery_window", window, ev.RecoveryWindowPassed())]
    if session.attempt is not None:
        failed = ev.AttemptFailed(session.attempt.transport, Reason.REATTACH_TIMEOUT)
        found.append(Deadline("attempt", session.attempt.deadline, failed))
    return found
