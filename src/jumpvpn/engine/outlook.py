"""What an engine will do next, when, and what it waits for: facts for ``explain``, computed from what decides.

Nothing here changes an engine, and nothing is decided anew: choices, refusals and instants come from the code that the
engine itself asks. All answers are plain JSON values; instants are boot time (``_ns``), ``at_ns`` None means that time
alone will not bring it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jumpvpn.engine.book import TransportBook
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.engine.gateway_loss import gateway_loss, successor
from jumpvpn.engine.gateway_plans import challenge_due, stable_at
from jumpvpn.engine.liveness import Liveness
from jumpvpn.engine.place import Place
from jumpvpn.engine.plans import Plans
from jumpvpn.engine.seat import Seat
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Choice, Nothing, Refused, Selected
from jumpvpn.session.deadlines import deadlines
from jumpvpn.session.facts import Facts, record_facts
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, State
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import Instant, TransportId, later, milliseconds, replace

KNOWN_MAX = 50  # sessions that an answer lists when it cannot tell which one is meant: what fits a screen
LOOKS_MAX = 32  # moments at which a decision is tried ahead; each is one wake-up of the engine

BY_GATEWAY = "denied by the gateway"  # as ``Plans.switch_refusal`` calls it


def of_client(engine: ClientEngine, wanted: str, now: Instant) -> Facts:
    """``{"known": [...], "session": {...} | None}`` of the client; ``wanted`` is the beginning of a uid, "" any.

    Before the gateway answered, ``session`` is None and ``unborn`` tells which transports there are.
    """
    if engine.seat is None:
        candidates = [
            _candidate(t, engine.policy, engine.book, None, now) for _, t in sorted(engine.transports.items())
        ]
        return {"known": [], "session": None, "unborn": {"policy": engine.policy.body(), "candidates": candidates}}
    session = engine.seat.session
    facts = _client_session(engine, engine.seat, now) if session.uid.startswith(wanted) else None
    return {"known": [_name(session)], "session": facts}


def of_gateway(engine: GatewayEngine, wanted: str, now: Instant) -> Facts:
    """As ``of_client``, of the one live session whose uid begins with ``wanted``; None if there is not exactly one."""
    found = [uid for uid in sorted(engine.places) if uid.startswith(wanted)]
    known = [_name(engine.places[uid].seat.session) for uid in (found or sorted(engine.places))[:KNOWN_MAX]]
    facts = _gateway_session(engine.places[found[0]], now) if len(found) == 1 else None
    return {"known": known, "matches": len(found), "session": facts}


# --- both roles ------------------------------------------------------------------------------------------------------


def _name(session: Session) -> Facts:
    return {"uid": session.uid, "state": session.state.value}


def _record(seat: Seat, now: Instant) -> Facts:
    """What the committed record says, with every running deadline."""
    session = seat.session
    facts, want, frees = record_facts(session, deadlines(session), now), session.want, session.budget.frees_at(now)
    return {
        **facts, "budget": {**facts["budget"], "frees_at_ns": int(frees) if frees is not None else None},
        "want": None if want is None else {"kind": want.kind.value, "cause": want.cause.value, "target": want.target},
        "committing": seat.pending is not None, "policy": session.policy.body(),
        "policy_waiting": session.next_policy is not None,
    }  # fmt: skip


def _when(at: Instant | None, now: Instant) -> Facts:
    return {"at_ns": None, "left_ms": None} if at is None else {"at_ns": int(at), "left_ms": milliseconds(at - now)}


def _wait(name: str, at: Instant | None, now: Instant, **more: Any) -> Facts:
    return {"name": name, **_when(at, now), **more}


def _choice(choice: Choice | None) -> Facts | None:
    match choice:
        case None:
            return None
        case Selected():
            return {"kind": "selected", "transport": choice.transport, "rule": choice.rule, "detail": choice.measured}
        case Refused():
            return {"kind": "refused", "transport": None, "rule": choice.rule, "detail": choice.detail}
        case Nothing():
            detail = {"candidate_count": choice.considered}
            return {"kind": "nothing", "transport": None, "rule": Reason.NO_CANDIDATE_TRANSPORTS.value,
                    "detail": detail}  # fmt: skip


def _transport(transport: Transport, limits: Liveness | None, now: Instant) -> Facts:
    return {
        "id": transport.id, "condition": transport.condition.value,
        "condition_ms": milliseconds(now - transport.since), "validated": transport.validated,
        "needs_epoch": transport.needs_epoch, "loss": round(transport.loss, 4),
        "rtt_ms": milliseconds(transport.rtt_ns) if transport.rtt_ns else None,
        "silence_limit_ms": milliseconds(limits.silence_busy) if limits is not None else None,
        "silence_limit_idle_ms": milliseconds(limits.silence_idle) if limits is not None else None,
        "dead_factor": limits.dead_factor if limits is not None else None,
    }  # fmt: skip


# --- the client ------------------------------------------------------------------------------------------------------


def _client_session(engine: ClientEngine, seat: Seat, now: Instant) -> Facts:
    session, plans, book = seat.session, engine.plans, engine.book
    candidates = []
    for _, transport in sorted(book.transports.items()):
        seen = _candidate(transport, session.policy, book, session, now)
        refusal = plans.switch_refusal(session, transport.id, now) if session.state.live else None
        seen["tried"] = transport.id in session.tried
        seen["switch_refusal"] = None if refusal is None else {"reason": refusal[0], "detail": refusal[1]}
        candidates.append(seen)
    return {
        **_record(seat, now), "candidates": candidates, "decision": _choice(_decision(plans, session, now)),
        "successor": _choice(successor(book, session, now)), "gateways": gateways_of(engine),
        "successor_elsewhere": _choice(successor(book, session, now, elsewhere=True)),
        "gateway_loss": gateway_loss(book, session, now),
        "waits": _client_waits(plans, book, session, now),
    }  # fmt: skip


def gateways_of(engine: ClientEngine) -> list[Facts]:
    """``{name, state, rtt_ms}`` of each gateway to which there are transports, in order of name.

    State: ``draining`` (announced that it leaves), ``current`` (the session's own), ``standby`` (some transport to it
    is proven) or ``silent``.
    """
    book, found = engine.book, list[Facts]()
    here = [t for t in engine.transports.values() if t.condition is not Condition.GONE]
    home = book.home(engine.session)
    for name in sorted({t.gateway for t in here}):
        proven = [t for t in here if t.gateway == name and t.validated]
        state = "current" if name == home else "standby" if proven else "silent"
        rtt = min((t.rtt_ns for t in proven if t.rtt_ns), default=None)
        found.append({
            "name": name, "state": "draining" if name in book.gateways.draining else state,
            "rtt_ms": milliseconds(rtt) if rtt is not None else None,
        })  # fmt: skip
    return found


def _candidate(
    transport: Transport, policy: Policy, book: TransportBook, session: Session | None, now: Instant
) -> Facts:
    """One transport as selection sees it, with what it lacks."""
    seen = book.candidate(transport, policy, (), now, session)
    reuse = seen.reuse_at if seen.suppressed else None
    lacks = [
        *(["allowed"] if not seen.allowed else []),
        *([transport.condition.value] if not transport.usable else []),
        *(["path"] if transport.path is None and transport.usable else []),
        *(["proof"] if transport.condition is Condition.CANDIDATE else []),
        *(["calm"] if seen.suppressed else []),
    ]
    return {
        **_transport(transport, book.liveness(transport.id), now), "allowed": seen.allowed, "usable": seen.usable,
        "suppressed": seen.suppressed, "reuse_in_ms": milliseconds(reuse - now) if reuse is not None else None,
        "rank": seen.rank, "stable_ms": milliseconds(seen.stable_ns), "lacks": lacks,
    }  # fmt: skip


def _decision(plans: Plans, session: Session, now: Instant) -> Choice | None:
    """What selection answers in a state in which it is asked."""
    if session.state is State.DEGRADED:
        choice = _anew(plans, session, now)
        patient = isinstance(choice, Nothing) and plans.is_denied(session, now)
        return Refused(Reason.COOLDOWN_ACTIVE.value, {"rule": BY_GATEWAY}) if patient else choice
    if session.state is State.RECOVERING and session.attempt is None:
        return plans.choose(session, now)
    return None


def _anew(plans: Plans, session: Session, now: Instant) -> Choice:
    """Selection's answer for a new stay in RECOVERING."""
    return plans.choose(replace(session, tried=(), want=None), now)


def _client_waits(plans: Plans, book: TransportBook, session: Session, now: Instant) -> list[Facts]:
    """Moments at which time alone lets the client act, the nearest first; those without an instant last."""
    if not session.state.live:
        return []
    waits = [
        *(_wait("socket", at, now, transport=t) for t, at in sorted(book.reopen_at.items())),
        *([_wait("gateway_patience", plans.denied_until, now)] if plans.denied_until > now else []),
        *([_wait("hold_down", session.hold_until, now)] if session.hold_until and session.hold_until > now else []),
    ]
    match session.state:
        case State.ATTACHED:
            waits += [_wait("rekey", plans.rekey_due(session), now), *_failback(plans, book, session, now)]
        case State.VOLATILE:
            stable = plans.stable_at(session)
            waits += [_wait("stable", stable, now, transport=session.incumbent)]
        case State.DEGRADED:
            waits += [_retry(plans, book, session, now)]
            waits += [
                _wait("challenge", max(now, plans.challenge_due(t)), now, transport=t.id) for t in book.silent(session)
            ]
    if session.state is State.VOLATILE and session.binding is not None:
        waits += _death(book.transports[session.binding.transport], book, session.reason, now)
    return sorted(waits, key=lambda wait: (wait["at_ns"] is None, wait["at_ns"] or 0, wait["name"]))


def _death(active: Transport, book: TransportBook, reason: Reason | None, now: Instant) -> list[Facts]:
    """When a bound transport that is silent will be declared dead: the packet core's limits, so about then.

    ``reason`` says which limit it was: the one under traffic, or the idle one.
    """
    limits = book.liveness(active.id)
    if active.condition is not Condition.SILENT or limits is None:
        return []
    limit = limits.silence_idle if reason is Reason.CONSECUTIVE_DROP_EXCEEDED else limits.silence_busy
    at = later(active.since, limit * (limits.dead_factor - 1))
    return [_wait("death", max(at, now), now, transport=active.id)]


def _failback(plans: Plans, book: TransportBook, session: Session, now: Instant) -> list[Facts]:
    assert session.binding is not None, "ATTACHED has a binding"
    active = book.transports[session.binding.transport]

    def decided(at: Instant) -> TransportId | None:
        return plans.failback_target(session, active, at)

    due = _first(decided, plans, session, now)
    return [] if due is None else [_wait("failback", due[0], now, transport=due[1])]


def _retry(plans: Plans, book: TransportBook, session: Session, now: Instant) -> Facts:
    """When DEGRADED is left if nothing but time changes, and for which transport."""

    def decided(at: Instant) -> tuple[TransportId, str] | None:
        choice, hoped = plans.degraded_choice(session, at)
        if not isinstance(choice, Selected):
            return None
        if hoped:
            return choice.transport, "without_evidence"
        due = plans.try_at(session, choice.transport)
        return (choice.transport, choice.rule) if due is not None and at >= due else None

    due = _first(decided, plans, session, now)
    if due is None:
        return _wait("retry", None, now)
    at, (transport, rule) = due
    return _wait("retry", at, now, transport=transport, rule=rule)


def _first(
    decided: Callable[[Instant], Any], plans: Plans, session: Session, now: Instant
) -> tuple[Instant, Any] | None:
    """The first of the engine's own wake-ups at which ``decided`` answers, and its answer."""
    at = now
    for _ in range(LOOKS_MAX):
        answer = decided(at)
        if answer is not None:
            return at, answer
        following = _after(plans.waits(session, at), at)
        if following is None:
            return None
        at = following
    return None


def _after(moments: Iterable[Instant], at: Instant) -> Instant | None:
    return min((moment for moment in moments if moment > at), default=None)


# --- the gateway -----------------------------------------------------------------------------------------------------


def _gateway_session(place: Place, now: Instant) -> Facts:
    session = place.seat.session
    stable, challenge = stable_at(place, session), challenge_due(place, session)
    waits = [_wait("stable", stable, now, transport=session.incumbent)] if session.state is State.VOLATILE else []
    if challenge is not None:
        waits.append(_wait("challenge", max(now, challenge), now, transport=session.incumbent))
    candidates = [
        {**_transport(t, place.liveness.get(t.id), now), "lacks": [] if t.usable else [t.condition.value]}
        for _, t in sorted(place.transports.items())
    ]
    return {
        **_record(place.seat, now), "candidates": candidates, "decision": None, "successor": None, "waits": waits,
    }  # fmt: skip
