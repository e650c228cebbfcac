"""The session as its events tell: enough of the record to ask the machine's own deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from jumpvpn.explain.history import History, ago_ns
from jumpvpn.explain.records import Record
from jumpvpn.policy.model import Policy
from jumpvpn.session import actions as do
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt, AttemptKind, Binding, Role, Session, State
from jumpvpn.session.transitions import ROWS
from jumpvpn.values import MILLISECOND, Epoch, Instant, SessionId, TransportId, Version, later

NAMELESS = SessionId(bytes(16))  # a log holds no routing secret; the uid is the history's
_BOUNDS = {
    "lifetime_ms": ("session", "max_lifetime"),
    "transport_ttl_ms": ("session", "transport_ttl"),
    "key_age_ms": ("security", "key_max_age"),
    "episode_ms": ("recovery", "episode_max"),
    "window_ms": ("recovery", "window"),
    "volatile_ms": ("volatility", "volatile_max"),
    "hold_down_ms": ("switching", "hold_down"),
    "switches_60s": ("switching", "max_per_minute"),
    "attempts": ("recovery", "max_attempts"),
}


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """``session`` as of its newest event, on the boot clock of ``now``, the moment in question.

    ``whole`` says that its birth is in the log, so that lifetime and key age are right; ``policy_known`` that the
    policy is the log's own and not the default.
    """

    session: Session
    now: Instant
    whole: bool
    policy_known: bool


def rebuild(history: History) -> Rebuilt:
    """The session at the history's moment."""
    moment = history.moment
    passed = max(0, history.at_ms - moment.time_ms) * MILLISECOND
    here = Instant(moment.mono_ms * MILLISECOND)
    policy, known = policy_of(history.body, history.bounds)
    born = history.created if history.created is not None else history.records[0]
    session = Session(
        id=NAMELESS, role=Role.CLIENT if _is_client(history) else Role.GATEWAY, policy=policy, state=State.BIRTH,
        version=Version(0), epoch=Epoch(0), born_at=_at(born, moment, here), entered_at=_at(born, moment, here),
        keys_at=_at(born, moment, here),
    )  # fmt: skip
    for record in history.records:
        session = _followed(session, record, _at(record, moment, here))
    switches = tuple(sorted(_at(record, moment, here) for record in history.switches))
    session = replace(session, switches=switches, hold_until=_hold_until(history, moment, here, policy))
    return Rebuilt(session, later(here, passed), history.created is not None, known)


def policy_of(body: Mapping[str, Any] | None, bounds: Mapping[str, int]) -> tuple[Policy, bool]:
    """The policy that a log or a node tells, with the session's own bounds; whether it is more than the default."""
    try:
        policy, known = (Policy.from_body(body), True) if body is not None else (Policy(), False)
    except (ValidationError, ValueError, TypeError, RecursionError):
        policy, known = Policy(), False
    for name, (section, key) in _BOUNDS.items():
        if name in bounds:
            value = bounds[name] * (MILLISECOND if name.endswith("_ms") else 1)
            part = getattr(policy, section).model_copy(update={key: value})
            policy = policy.model_copy(update={section: part})
    return policy, known or bool(bounds)


def _is_client(history: History) -> bool:
    return any(record.chain.startswith("c:") for record in history.records)


def _at(record: Record, moment: Record, here: Instant) -> Instant:
    return later(here, -ago_ns(record, moment))


def _hold_until(history: History, moment: Record, here: Instant, policy: Policy) -> Instant | None:
    switched = [r for r in history.switches if r.event == "transport.switch"]
    return later(_at(switched[-1], moment, here), policy.switching.hold_down) if switched else None


def _followed(session: Session, record: Record, at: Instant) -> Session:
    """The session after one more record."""
    if record.state is None or record.session is None:
        return session
    if record.event == "reattach.attempt" and State(record.state) is State.RECOVERING and record.transport:
        return replace(session, attempt=_attempt(record, at), attempts=_whole(record, "attempt", session.attempts))
    if record.event == "transport.switch_failed":
        return replace(session, attempt=None, tried=(*session.tried, TransportId(record.transport or "")))
    if not record.mutates:
        return session
    session = replace(session, state=State(record.state), version=Version(record.version))
    if record.epoch:
        session = replace(session, epoch=Epoch(record.epoch))
    if record.event == "key.rotated":
        session = replace(session, keys_at=at, epoch=Epoch(_whole(record, "key_epoch", session.epoch)))
    session = _bound(session, record, at)
    return _changed(session, record, at) if record.event == "session.state_change" else session


def _bound(session: Session, record: Record, at: Instant) -> Session:
    """Binding and its clocks, as the row says."""
    row = ROWS.get(record.row)
    if row is not None and row.orders is do.unbind and session.binding is not None:
        started = at if session.transportless_at is None else session.transportless_at
        return replace(session, binding=None, transportless_at=started)
    if record.state == State.ATTACHED.value and record.event == "session.state_change" and record.transport:
        carrier = TransportId(record.transport)
        binding = Binding(carrier, "", Epoch(record.epoch), at)
        return replace(session, binding=binding, incumbent=carrier, transportless_at=None, episode_at=None,
                       attempts=0, tried=())  # fmt: skip
    return session


def _changed(session: Session, record: Record, at: Instant) -> Session:
    """One change of state: the clocks that the event itself reports are exact, so they count more than ours."""
    reason = Reason(record.reason) if record.reason in _REASONS else None
    session = replace(session, entered_at=at, reason=reason, attempt=None)
    if record.prev_state == State.BIRTH.value:
        session = replace(session, keys_at=at)
    if record.prev_state == State.ATTACHED.value:
        session = replace(session, episode_at=at)
    if record.state == State.RECOVERING.value:
        session = replace(session, tried=())
    if record.state != State.ATTACHED.value:
        session = replace(session, attempts=_whole(record, "attempts", session.attempts))
        session = replace(session, transportless_at=_since(record, "transportless_ms", at, session.transportless_at),
                          episode_at=_since(record, "episode_ms", at, session.episode_at))  # fmt: skip
        if session.transportless_at is not None:
            session = replace(session, binding=None)
        elif session.binding is None and record.transport and record.state != State.TERMINATED.value:
            carrier = TransportId(record.transport)  # the log begins within the episode; the transport still carries
            session = replace(session, binding=Binding(carrier, "", Epoch(record.epoch), at), incumbent=carrier)
    return session


def _attempt(record: Record, at: Instant) -> Attempt:
    kinds = {kind.value: kind for kind in AttemptKind}
    kind = kinds.get(str(record.data.get("kind")), AttemptKind.SWITCH)
    left = record.data.get("deadline_ms", 0)
    span = int(left * MILLISECOND) if isinstance(left, int | float) else 0
    return Attempt(kind, TransportId(record.transport or ""), at, later(at, span))


def _since(record: Record, name: str, at: Instant, known: Instant | None) -> Instant | None:
    value = record.data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return known
    return later(at, -int(value * MILLISECOND))


def _whole(record: Record, name: str, otherwise: int) -> int:
    value = record.data.get(name)
    return value if type(value) is int and value >= 0 else otherwise


_REASONS = frozenset(reason.value for reason in Reason)
