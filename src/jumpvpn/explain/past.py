"""What an engine would have said at a moment of the past, as far as events tell: the facts that ``ahead`` reads."""

from __future__ import annotations

from jumpvpn.explain.history import SILENCE, History, ago_ns
from jumpvpn.explain.rebuild import Rebuilt
from jumpvpn.explain.records import Record
from jumpvpn.explain.words import forbidding
from jumpvpn.session.deadlines import deadlines
from jumpvpn.session.facts import Facts, record_facts
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import MILLISECOND, Instant, milliseconds

_CONDITIONS = {"added": "candidate", "validated": "good", "heard": "good", "removed": "gone"}
_HEALTHY = frozenset({"transport.switch", "transport.attached", "transport.revalidated", "transport.rebound"})
_BIRTH_BOUND = frozenset({"lifetime", "key_age", "lifetime_warning"})  # deadlines that count from the birth


def facts_of(history: History, rebuilt: Rebuilt) -> Facts:
    """The session at the moment, in the form of ``engine.outlook``; what events do not tell is None or missing."""
    session, now = rebuilt.session, rebuilt.now
    running = [d for d in deadlines(session) if rebuilt.whole or d.name not in _BIRTH_BOUND]
    facts = record_facts(session, running, now)
    return {
        **facts, "uid": history.uid, "age_ms": facts["age_ms"] if rebuilt.whole else None,
        "waits": _waits(session, now), "candidates": _candidates(history, session), "decision": _decision(history),
        "successor": None, "policy_waiting": False,
    }  # fmt: skip


def _waits(session: Session, now: Instant) -> list[Facts]:
    """The waits whose instants follow from the record alone."""
    found: list[Facts] = []
    hold = session.hold_until
    if hold is not None and hold > now and session.state is not State.TERMINATED:
        found.append({"name": "hold_down", "at_ns": int(hold), "left_ms": milliseconds(hold - now)})
    return found


def _candidates(history: History, session: Session) -> list[Facts]:
    """Each transport by the newest event about it."""
    found = []
    begun = _process_begun(history)
    for transport, record in sorted(history.transports.items()):
        if begun is not None and ago_ns(record, history.moment) > begun:
            continue  # of another process: this one has not heard of it
        condition = _condition(record)
        allowed = session.role is Role.GATEWAY or forbidding(session.policy, transport) is None
        lacks = [
            *(["allowed"] if not allowed else []),
            *([condition] if condition in ("gone", "dead", "silent") else []),
            *(["proof"] if condition == "candidate" else []),
        ]
        age = milliseconds(ago_ns(record, history.moment) + (history.at_ms - history.moment.time_ms) * MILLISECOND)
        found.append({
            "id": transport, "condition": condition, "condition_ms": age, "validated": condition == "good",
            "allowed": allowed, "usable": condition in ("good", "candidate"), "lacks": lacks,
        })  # fmt: skip
    return found


def _process_begun(history: History) -> int | None:
    """How long (ns) before the moment the node's process started, if it did since all was well."""
    mine = history.moment.node
    starts = (r for r in history.records if r.event == "node.started" and r.node == mine)
    return min((ago_ns(start, history.moment) for start in starts), default=None)


def _condition(record: Record) -> str:
    if record.event == "transport.candidate":
        return _CONDITIONS.get(str(record.data.get("change")), "candidate")
    if record.event == "transport.dead":
        return "gone" if record.data.get("evidence") in ("link", "address", "route", "gateway") else "dead"
    if record.event == "transport.switch_failed":
        return "dead"
    silent = record.reason in SILENCE
    return "silent" if silent and record.event not in _HEALTHY else "good"


def _decision(history: History) -> Facts | None:
    """The refusal that the session is in DEGRADED for."""
    for record in reversed(history.records):
        if record.event == "transport.switch_denied" and record.mutates:
            refused = record.reason != Reason.NO_CANDIDATE_TRANSPORTS.value
            return {"kind": "refused" if refused else "nothing", "transport": None, "rule": record.reason,
                    "detail": dict(record.data)}  # fmt: skip
        if record.event == "session.state_change" and record.state != State.DEGRADED.value:
            return None
    return None
