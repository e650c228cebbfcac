"""The facts that the environment can present, each under a label that people can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from jumpvpn.model.bounds import NOW, PEERS, SHORT, TRANSPORTS, Bounds
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Session
from jumpvpn.session.validation import ReattachRequest, validate
from jumpvpn.values import MILLISECOND, Epoch, Instant, Now, TransportId, Version, later

Builder = Callable[[Session], Any]

MINUTE_PASSES = "a minute has passed since the oldest switch"
TIME_PASSES = "one second passes"

REQUEST_FAULTS = (
    "of another owner", "with a bad proof", "with a used nonce", "of another time", "for an old version",
    "of an old epoch", "of an epoch far ahead", "from an unproved address",
)  # fmt: skip


def peer_of(session: Session) -> str:
    """The address that the session is bound to, or the first one."""
    return session.binding.peer if session.binding is not None else PEERS[0]


def other_peer(session: Session) -> str:
    """An address that the session is not bound to."""
    return PEERS[1] if peer_of(session) == PEERS[0] else PEERS[0]


def facts(bounds: Bounds) -> dict[str, Builder]:
    """Every fact by its label. A builder takes the session, because epochs and addresses follow from it."""
    found: dict[str, Builder] = {**_lonely(bounds)}
    for transport in TRANSPORTS:
        found |= {f"{label} {SHORT[transport]}": partial(make, transport) for label, make in _PER_TRANSPORT.items()}
    return found


def request(
    session: Session, transport: TransportId, fault: str = "", version: Version | None = None
) -> ReattachRequest:
    """A reattach request as the client would send it now, with one ``fault`` of ``REQUEST_FAULTS`` or none."""
    age_ms = (NOW - session.born_at) // MILLISECOND
    epoch = {"of an old epoch": session.epoch, "of an epoch far ahead": session.epoch + 65}.get(
        fault, session.epoch + 1
    )
    expected = session.bound_version if version is None else version
    return ReattachRequest(
        transport=transport, peer=peer_of(session), proof=fault != "with a bad proof",
        fresh_nonce=fault != "with a used nonce", nonce_id="00", epoch=Epoch(epoch),
        expected_version=expected - (1 if fault == "for an old version" else 0),
        age_ms=age_ms + (3600_000 if fault == "of another time" else 0), cause=Reason.TRANSPORT_DEAD,
        address_validated=fault != "from an unproved address",
    )  # fmt: skip


def answer_to(session: Session, asked: ReattachRequest, *, owned: bool = True) -> Any:
    """What the shipped validation makes of a request: the accepted or the refused fact."""
    verdict = validate(session, asked, Now(NOW, 0), owned=owned)
    if verdict.passed:
        return ev.ReattachAccepted(asked.transport, asked.peer, asked.epoch, asked.nonce_id, asked.cause)
    reason = verdict.reason
    assert reason is not None
    if reason is Reason.ADDRESS_UNVALIDATED:
        return None  # a challenge is asked for, which is no denial
    return ev.ReattachRefused(asked.transport, verdict.step, reason, asked.nonce_id, asked.proof)


def _attempt(kind: AttemptKind, transport: TransportId, session: Session) -> ev.AttemptStarted:
    limit = min(session.policy.recovery.attempt_timeout, session.policy.recovery.window)
    peer = None
    if kind is AttemptKind.REBIND:
        wanted = session.want.peer if session.want is not None else None
        peer = wanted or other_peer(session)
    return ev.AttemptStarted(kind, transport, later(NOW, limit), peer)


def _challenged(session: Session) -> str:
    attempt = session.attempt
    return attempt.peer if attempt is not None and attempt.peer is not None else peer_of(session)


_PER_TRANSPORT: dict[str, Callable[[TransportId, Session], Any]] = {
    "the handshake completes on": lambda t, s: ev.HandshakeCompleted(t, PEERS[0], Epoch(s.epoch + 1)),
    "instability of": lambda t, s: ev.InstabilitySeen(t, Reason.LOSS_THRESHOLD_EXCEEDED),
    "silence of": lambda t, s: ev.InstabilitySeen(t, Reason.PROBE_TIMEOUT),
    "lost probes in a row of": lambda t, s: ev.InstabilitySeen(t, Reason.CONSECUTIVE_DROP_EXCEEDED),
    "latency of": lambda t, s: ev.InstabilitySeen(t, Reason.LATENCY_THRESHOLD_EXCEEDED),
    "death of": lambda t, s: ev.TransportDied(t, "link"),
    "a new address under": lambda t, s: ev.PeerAddressChanged(t, peer_of(s), other_peer(s)),
    "the operator wants": lambda t, s: ev.SwitchForced(Reason.OPERATOR_SWITCH, t),
    "failback wants": lambda t, s: ev.SwitchForced(Reason.FAILBACK, t),
    "a valid reattach request on": lambda t, s: answer_to(s, request(s, t)),
    "an accepted request again on": lambda t, s: ev.ReattachAccepted(
        t, peer_of(s), s.epoch, "00", Reason.PROBE_TIMEOUT
    ),
    "an accepted request on": lambda t, s: ev.ReattachAccepted(
        t, peer_of(s), Epoch(s.epoch + 1), "00", Reason.PROBE_TIMEOUT
    ),
    "stability of": lambda t, s: ev.TransportStabilized(t),
    "a better candidate is": lambda t, s: ev.BetterCandidateSeen(t),
    "a switch is tried to": partial(_attempt, AttemptKind.SWITCH),
    "a proof is asked of": partial(_attempt, AttemptKind.REVALIDATE),
    "a rebinding is tried on": partial(_attempt, AttemptKind.REBIND),
    "the challenge is answered on": lambda t, s: ev.IncumbentRevalidated(t, peer_of(s), 1),
    "the new address answers on": lambda t, s: ev.RebindingValidated(t, _challenged(s), 1),
    "another address answers on": lambda t, s: ev.RebindingValidated(t, "203.0.113.9:1", 1),
    "the gateway grants": lambda t, s: ev.ReattachCommitted(t, PEERS[0], Epoch(s.epoch + 1), Version(9), "00"),
    "the gateway grants an old epoch on": lambda t, s: ev.ReattachCommitted(t, PEERS[0], s.epoch, Version(9), "00"),
    "the attempt runs out of time on": lambda t, s: ev.AttemptFailed(t, Reason.REATTACH_TIMEOUT),
    "the attempt dies with": lambda t, s: ev.AttemptFailed(t, Reason.TRANSPORT_DEAD),
    "the attempt is forbidden on": lambda t, s: ev.AttemptFailed(t, Reason.POLICY_DENIED),
    "the attempt is overtaken on": lambda t, s: ev.AttemptFailed(t, Reason.NAT_REBINDING),
    "the way is free for": lambda t, s: ev.ConditionMet(t, "ranked"),
}


def _lonely(bounds: Bounds) -> dict[str, Builder]:
    base, tight, loose = bounds.base(), bounds.tight(), bounds.loose()
    return {
        "the handshake fails": lambda s: ev.HandshakeFailed(Reason.HANDSHAKE_FAILED),
        "a drain is announced": lambda s: ev.SwitchForced(Reason.GATEWAY_DRAIN),
        "policy forbids the transport": lambda s: ev.SwitchForced(Reason.POLICY_FORCED),
        "another owner": lambda s: ev.OwnerChanged(s.owner_epoch + 1),
        "another owner, behind the client": lambda s: ev.OwnerChanged(
            s.owner_epoch + 1, "gw2", None, s.version + 3, s.epoch + 2, ev.OwnerCause.REQUEST
        ),
        "a former owner": lambda s: ev.OwnerChanged(s.owner_epoch),
        "the dwell is over": lambda s: ev.DwellPassed(),
        "nothing is left to try": lambda s: ev.NoCandidate(2),
        "the window is over": lambda s: ev.RecoveryWindowPassed(),
        "the transport TTL is over": lambda s: ev.TransportTtlPassed(),
        "the episode is over": lambda s: ev.EpisodePassed(),
        "the lifetime is over": lambda s: ev.LifetimePassed(),
        "the keys are over": lambda s: ev.KeysExpired(),
        "operator closes": lambda s: ev.CloseRequested(Reason.OPERATOR_TERMINATED),
        "peer closes": lambda s: ev.CloseRequested(Reason.PEER_CLOSED),
        "the device is superseded": lambda s: ev.CloseRequested(Reason.DEVICE_SUPERSEDED),
        "a compromise is seen": lambda s: ev.SecurityFailed("counter fork"),
        "a conflict is proved": lambda s: ev.OwnershipConflictProved("two commits"),
        "a tighter policy": lambda s: ev.PolicyReloaded(tight),
        "the first policy": lambda s: ev.PolicyReloaded(base),
        "a looser policy": lambda s: ev.PolicyReloaded(loose),
        "an invalid policy": lambda s: ev.PolicyRefused(("bad",)),
        "the lease is lost": lambda s: ev.LeaseLost(s.owner_epoch),
        "the store is unavailable": lambda s: ev.StoreUnavailable("commit"),
        "fresh keys": lambda s: ev.KeysRotated(Epoch(s.epoch + 1)),
        "fresh keys of an old epoch": lambda s: ev.KeysRotated(s.epoch),
        "the lifetime is near its end": lambda s: ev.LifetimeNear(1),
        "a cooldown denies the switch": lambda s: ev.SwitchDenied(Reason.COOLDOWN_ACTIVE),
        "the rate denies the switch": lambda s: ev.SwitchDenied(Reason.SWITCH_RATE_LIMITED),
        "the gateway denies the switch": lambda s: ev.SwitchDenied(Reason.POLICY_DENIED),
        "a refused request": lambda s: ev.ReattachRefused(None, 6, Reason.BAD_PROOF, "00", proven=False),
        "a replayed request": lambda s: ev.ReattachRefused(None, 7, Reason.REPLAY_DETECTED, "00", proven=True),
    }


def overdue_by(name: str, session: Session, beyond: int) -> Session:
    """``session`` with one of its clocks moved so far back that ``name``'s deadline lies ``beyond`` ns in the past."""
    policy, at = session.policy, NOW - beyond
    moved: dict[str, Any] = {
        "lifetime": {"born_at": at - policy.session.max_lifetime},
        "key_age": {"keys_at": at - policy.security.key_max_age},
        "handshake": {"entered_at": at - policy.session.handshake_timeout},
        "transport_ttl": {"transportless_at": at - policy.session.transport_ttl},
        "episode": {"episode_at": at - policy.recovery.episode_max},
        "volatile_dwell": {"entered_at": at - policy.volatility.volatile_max},
        "recovery_window": {"entered_at": at - policy.recovery.window},
        "attempt": {"attempt": session.attempt and replace(session.attempt, deadline=Instant(at))},
        "lifetime_warning": {"born_at": at - policy.session.max_lifetime + max(policy.session.lifetime_warnings)},
    }
    return replace(session, **moved[name])
