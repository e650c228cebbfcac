"""What follows at the gateway from where a session is. The client moves sessions; here they are proved or bounded."""

from __future__ import annotations

from jumpvpn.engine import outputs as out
from jumpvpn.engine.liveness import CHALLENGE_AGAIN
from jumpvpn.engine.place import Place
from jumpvpn.engine.seat import Turn
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Session, State
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import Instant, TransportId, later


def owed_claim(place: Place, session: Session) -> ev.OwnerChanged | None:
    """The change of owner that is to be recorded before anything else is done for the session."""
    claim = place.claim
    return claim if claim is not None and claim.owner_epoch > session.owner_epoch else None


def next_event(place: Place, session: Session, now: Instant, *, superseded: bool) -> ev.Event | None:
    """The one event that follows from the present facts; None when the session is at rest.

    What a failed commit undid, follows again. ``superseded`` says that the device has a newer session.
    """
    if not session.state.live:
        return None
    claim = place.claim
    if (owed := owed_claim(place, session)) is not None:
        return owed
    if superseded:
        return ev.CloseRequested(Reason.DEVICE_SUPERSEDED)
    if claim is not None and session.state is State.BIRTH:  # the handshake died with whoever began it
        return ev.HandshakeFailed(Reason.HANDSHAKE_TIMEOUT)
    bound = session.binding
    known = place.transports.get(bound.transport) if bound is not None else None
    if known is not None and known.condition is Condition.DEAD:
        return ev.TransportDied(known.id, "silence")
    return _in_state(place, session, known, now)


def _in_state(place: Place, session: Session, bound: Transport | None, now: Instant) -> ev.Event | None:
    if session.state is State.ATTACHED and bound is not None and bound.condition is Condition.SILENT:
        return ev.InstabilitySeen(bound.id, Reason.PROBE_TIMEOUT)
    if session.state is State.VOLATILE:
        if session.binding is None:
            assert session.incumbent is not None
            return ev.TransportDied(session.incumbent, "binding_cleared")
        due = stable_at(place, session)
        return ev.TransportStabilized(session.binding.transport) if due is not None and now >= due else None
    if session.state is State.RECOVERING and session.attempt is None:
        return _next_attempt(place, session, now)
    incumbent = place.incumbent(session)
    if session.state is State.DEGRADED and incumbent is not None and incumbent.validated:
        return ev.ConditionMet(incumbent.id, "incumbent_stable")
    return None


def _next_attempt(place: Place, session: Session, now: Instant) -> ev.Event:
    """The gateway never moves a session by itself: it lets the incumbent prove itself, or waits for the client."""
    wish = session.want
    if wish is not None and wish.kind is AttemptKind.REBIND and wish.target not in session.tried:
        assert wish.target is not None
        return attempt(session, AttemptKind.REBIND, wish.target, now, wish.peer)
    known = place.incumbent(session)
    if known is not None and known.id not in session.tried and (session.binding is not None or known.validated):
        return attempt(session, AttemptKind.REVALIDATE, known.id, now)
    return ev.NoCandidate(len(place.transports))


def attempt(
    session: Session, kind: AttemptKind, transport: TransportId, now: Instant, peer: str | None = None
) -> ev.AttemptStarted:
    """An attempt that begins now, with its deadline."""
    limit = min(session.policy.recovery.attempt_timeout, session.policy.recovery.window)
    return ev.AttemptStarted(kind, transport, later(now, limit), peer)


def may_rebind(session: Session, now: Instant) -> bool:
    """Whether the switch budget, which a rebinding spends too, has room."""
    return session.budget.used(now) < session.policy.switching.max_per_minute


def asked_address(session: Session) -> str | None:
    """The address that the running attempt challenges, or None if any will do: nothing is bound."""
    if session.attempt is not None and session.attempt.peer is not None:
        return session.attempt.peer
    return session.binding.peer if session.binding is not None else None


def doubt_unanswered(place: Place, turn: Turn) -> None:
    """A challenge that ran out of time is silence: the transport has to answer before it is asked again."""
    while turn.unanswered:
        known = place.transports.get(turn.unanswered.pop().transport)
        if known is not None:
            place.transports[known.id] = transport_facts.fell_silent(known, turn.now)


def challenge_silent(place: Place, turn: Turn) -> None:
    """In DEGRADED, ask an incumbent that fell silent whether it is back."""
    due = challenge_due(place, turn.session)
    if due is not None and turn.now >= due:
        assert turn.session.incumbent is not None
        place.challenged_at = turn.now
        turn.outputs.append(out.ChallengePath(turn.session.uid, turn.session.incumbent))


def challenge_due(place: Place, session: Session) -> Instant | None:
    """When a silent incumbent is asked again, while DEGRADED waits; never before this process had its keys."""
    known = place.incumbent(session)
    if session.state is not State.DEGRADED or known is None or known.validated or known.validated_at is None:
        return None
    return later(place.challenged_at, CHALLENGE_AGAIN)


def stable_at(place: Place, session: Session) -> Instant | None:
    """When the incumbent will have been good for the stability window, or None."""
    if session.state is not State.VOLATILE or session.binding is None:
        return None
    known = place.transports.get(session.binding.transport)
    if known is None or not known.validated:
        return None
    window = session.policy.volatility.stability_after(len(session.volatile_entries))
    return later(max(known.since, session.entered_at), window)


def moments(place: Place) -> list[Instant]:
    """When the session wants to be looked at although nothing happened."""
    session = place.seat.session
    waits = (stable_at(place, session), challenge_due(place, session))
    return place.seat.wakeups([at for at in waits if at is not None])
