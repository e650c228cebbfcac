"""What the gateway makes of facts about a client's paths."""

from __future__ import annotations

from typing import Any

from jumpvpn.engine import gateway_plans as plans
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.liveness import silence_reason
from jumpvpn.engine.outputs import Output
from jumpvpn.engine.place import Place
from jumpvpn.engine.seat import Turn
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, State
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Transport
from jumpvpn.values import MILLISECOND, Instant


def path_validated(place: Place, fact: inp.PathValidated, turn: Turn) -> None:
    """A path answered a challenge: it may be the proof that the session waits for."""
    known = place.see(fact.transport, fact.peer, turn.now)
    place.validate(known, fact.peer, fact.rtt_ns, turn.now)
    turn.outputs += place.tune(known.id, turn.session)
    _return_by(fact, turn, known)
    attempt = turn.session.attempt
    if (
        attempt is None
        or attempt.transport != fact.transport
        or plans.asked_address(turn.session) not in (None, fact.peer)
    ):
        turn.feed()
    elif attempt.kind is AttemptKind.REVALIDATE:
        turn.feed(ev.IncumbentRevalidated(fact.transport, fact.peer, fact.rtt_ns))
    elif plans.may_rebind(turn.session, turn.now):
        turn.feed(ev.RebindingValidated(fact.transport, fact.peer, fact.rtt_ns))
    else:
        turn.feed(ev.SwitchDenied(Reason.SWITCH_RATE_LIMITED, {"to_id": fact.transport, "rule": "rebinding"}))


def _return_by(fact: inp.PathValidated, turn: Turn, known: Transport) -> None:
    """Begin the attempt that this proof answers, if the session waits for it and none runs."""
    session = turn.session
    bound = session.binding
    if session.incumbent != fact.transport or known.needs_epoch:
        return
    if bound is not None and bound.peer != fact.peer:
        _return_elsewhere(fact, bound.peer, turn)
    elif bound is None and session.state is State.DEGRADED:
        turn.feed(ev.ConditionMet(fact.transport, "incumbent_answers"))
        if turn.session.state is State.RECOVERING:
            turn.feed(plans.attempt(turn.session, AttemptKind.REVALIDATE, fact.transport, turn.now))


def _return_elsewhere(fact: inp.PathValidated, old: str, turn: Turn) -> None:
    """The bound transport answers from a new address: that is a rebinding, whatever was being proved."""
    if not plans.may_rebind(turn.session, turn.now):
        return
    if turn.session.state in (State.ATTACHED, State.VOLATILE):
        turn.feed(ev.PeerAddressChanged(fact.transport, old, fact.peer))
    elif turn.session.state is State.DEGRADED:
        turn.feed(ev.ConditionMet(fact.transport, "rebinding_answers"))
    attempt = turn.session.attempt
    if attempt is not None and attempt.transport == fact.transport and attempt.peer != fact.peer:
        turn.feed(ev.AttemptFailed(attempt.transport, Reason.NAT_REBINDING))
    if turn.session.state is State.RECOVERING and turn.session.attempt is None:
        turn.feed(plans.attempt(turn.session, AttemptKind.REBIND, fact.transport, turn.now, fact.peer))


def path_measured(place: Place, fact: inp.PathMeasured, now: Instant) -> list[Output]:
    """New figures of a path. They move no session, so they begin no turn: there is one for each probe of each path."""
    known = place.see(fact.transport, "", now)
    updated = transport_facts.measured(known, fact.rtt_ns, fact.rtt_dev_ns, fact.loss_up, fact.loss_down)
    place.transports[known.id] = updated
    return place.tune(known.id, place.seat.session)


def liveness_fact(place: Place, fact: Any, turn: Turn) -> None:
    """A path fell silent, died, or is heard again."""
    known = place.see(fact.transport, "", turn.now)
    now, switching = turn.now, turn.session.policy.switching
    match fact:
        case inp.PathSilent():
            place.transports[known.id] = transport_facts.fell_silent(known, now)
            data = {"silent_ms": fact.silent_ns / MILLISECOND, "limit_ms": fact.limit_ns / MILLISECOND}
            turn.feed(ev.InstabilitySeen(known.id, silence_reason(turn.session.policy, fact.limit_ns), data))
        case inp.PathDead():
            place.transports[known.id] = transport_facts.died(known, now, switching)
            attempt = turn.session.attempt
            if attempt is not None and attempt.transport == known.id:
                turn.feed(ev.AttemptFailed(known.id, Reason.TRANSPORT_DEAD))
            bound = turn.session.binding
            dead = ev.TransportDied(known.id, "silence", fact.silent_ns // MILLISECOND)
            turn.feed(*([dead] if bound is not None and bound.transport == known.id else []))
        case _:
            place.transports[known.id] = transport_facts.heard(known, now)
            turn.feed()
