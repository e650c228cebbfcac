"""One explanation: where the session is, why, by which rule, what comes next and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.explain import ahead, past, words
from jumpvpn.explain.ahead import Considered, Due
from jumpvpn.explain.causes import Name, Step, naming, steps
from jumpvpn.explain.history import History, ago_ns
from jumpvpn.explain.rebuild import Rebuilt, policy_of, rebuild
from jumpvpn.explain.records import Record
from jumpvpn.explain.units import count, span
from jumpvpn.policy.model import Policy
from jumpvpn.session.deadlines import deadlines
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.values import MILLISECOND

RECENT_MS = 600_000  # an incident is still asked about that long after it ended
STEPS_MAX = 16  # what fits half a screen; the rest is in the events
STEPS_SETTLED = 8  # when all is well again
LATER_MAX = 4  # what happened next is told as far as the next settled state
_NOTHING_KNOWN = "selection: no transport is known yet"
_HEALTHY = ("good", "candidate")
_ROUTINE = frozenset({"session.created", "key.rotated"})  # they go with every healthy session and explain nothing
_NOTABLE = frozenset(
    {
        "transport.switch_denied", "transport.dead", "policy.applied", "policy.rejected", "node.started",
        "node.stopped", "cluster.member", "cluster.store", "cluster.drain", "ownership.lost",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the deadline that ended a session had passed: ``passed_ms`` beyond the limit, None if unknown."""

    name: str
    policy: str
    value: str
    limit_time_ms: int | None
    passed_ms: float | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "policy": self.policy, "value": self.value, "limit_time_ms": self.limit_time_ms,
                "passed_ms": self.passed_ms}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Where the facts come from: ``text`` for people; ``live`` when a running node answered, as of ``now_ms``."""

    text: str
    node: str
    live: bool
    now_ms: int
    past: bool = False  # a moment was asked for, so there is no present


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything there is to say about one moment of one session; ``document`` is its JSON."""

    uid: str
    source: Source
    at_ms: int
    state: State
    role: str
    where: str
    calm: bool
    steps: tuple[Step, ...]
    left_out: int
    rules: tuple[str, ...]
    considered: tuple[Considered, ...]
    dues: tuple[Due, ...]
    later: tuple[Step, ...]
    changes: tuple[str, ...]
    verdict: Verdict | None
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        shown = {k: v for k, v in self.facts.items() if k not in ("policy", "uid")}
        return {
            "session": self.uid, "node": self.source.node, "role": self.role, "live": self.source.live,
            "source": self.source.text, "time_ms": self.at_ms, "state": self.state.value,
            "state_age_ms": self.facts["state_age_ms"], "where": self.where, "well": self.calm,
            "why": [step.document() for step in self.steps], "left_out": self.left_out, "rules": list(self.rules),
            "candidates": [c.document() for c in self.considered], "next": [due.document() for due in self.dues],
            "then": [step.document() for step in self.later],
            "verdict": self.verdict.document() if self.verdict is not None else None,
            ("would_have_saved" if self.state is State.TERMINATED else "would_change"): list(self.changes),
            "notes": list(self.notes), "facts": shown,
        }  # fmt: skip


def explain(history: History | None, outlook: Mapping[str, Any] | None, source: Source) -> Explanation:
    """Put together what the log (``history``) and a running node (``outlook``: one session's facts) tell.

    At least one is there; the outlook counts more, because it is the present.
    """
    rebuilt = rebuild(history) if history is not None else None
    if outlook is not None:
        facts, policy = outlook, policy_of(outlook["policy"], {})[0]
    else:
        assert history is not None, "without a node there is a log"
        assert rebuilt is not None, "it was rebuilt from the log"
        facts, policy = past.facts_of(history, rebuilt), rebuilt.session.policy
    state, name = State(facts["state"]), _names(history, facts)
    told, left_out = _told(history, facts, policy, name) if history is not None else ((), 0)
    ended = state is State.TERMINATED
    let_go = _let_go(history) if outlook is None else None
    over = ended or let_go is not None
    reason = words.reason_of(facts["reason"])
    return Explanation(
        uid=facts["uid"], source=source, at_ms=source.now_ms if outlook is not None else _moment_ms(history),
        state=state, role=facts["role"],
        where=let_go or _where(facts, state, name, policy), calm=let_go is None and _is_calm(facts, state),
        steps=told, left_out=left_out, rules=_rules(told, facts, policy, name),
        considered=() if over else ahead.considered(facts, policy, name),
        dues=() if let_go else ahead.dues(facts, policy, name),
        later=_later(history, policy, name) if source.past else (),
        changes=ahead.saved_by(reason, facts, policy) if ended else () if let_go else
        ahead.changes(facts, policy, name, live=source.live),
        verdict=_verdict(history, reason) if ended and history is not None else None,
        notes=_notes(history, rebuilt, outlook), facts=facts,
    )  # fmt: skip


def unborn(facts: Mapping[str, Any], source: Source) -> Explanation:
    """A client that has no session yet; ``facts`` are the outlook's ``unborn``."""
    policy = policy_of(facts["policy"], {})[0]
    name = naming(c["id"] for c in facts["candidates"])
    whole = {**facts, "binding": None, "tried": [], "state": State.BIRTH.value, "state_age_ms": None}
    limit = words.value(policy, "session.handshake_timeout")
    changes = [f"a gateway that answers within {limit} (session.handshake_timeout)"]
    if not any(c["usable"] and c["allowed"] for c in facts["candidates"]):
        changes.insert(0, "an interface with an address and a route to the gateway, allowed by policy")
    return Explanation(
        uid="none yet", source=source, at_ms=source.now_ms, state=State.BIRTH, role="client",
        where="the handshake is under way", calm=False, steps=(), left_out=0, rules=(),
        considered=ahead.considered(whole, policy, name), dues=(), later=(), changes=tuple(changes), verdict=None,
        notes=(), facts=whole,
    )  # fmt: skip


def _moment_ms(history: History | None) -> int:
    assert history is not None, "without a node there is a log"
    return history.at_ms


def _names(history: History | None, facts: Mapping[str, Any]) -> Name:
    known = {c["id"] for c in facts["candidates"]} | {str(facts["incumbent"] or "")}
    if history is not None:
        known |= {record.transport or "" for record in (*history.records, *history.later)}
        known |= {str(record.data.get("to_id") or "") for record in history.records}
    return naming(known)


# --- where -----------------------------------------------------------------------------------------------------------


def _let_go(history: History | None) -> str | None:
    """Words for a session whose gateway let it go and has not had it again: another gateway's log goes on."""
    records = history.records if history is not None else ()
    last = next((r for r in reversed(records) if r.mutates or r.event == "ownership.lost"), None)
    if last is None or last.event != "ownership.lost" or last.state == State.TERMINATED.value:
        return None
    return f"when gateway {last.node} let it go; how it goes on is told at the gateway that has it"


def _where(facts: Mapping[str, Any], state: State, name: Name, policy: Policy) -> str:
    """What the state means for the traffic."""
    bound = facts["binding"]["transport"] if facts["binding"] else None
    carried = f"data still goes over {name(bound)}" if bound else "nothing has carried the session"
    gone = facts["transportless_ms"]
    since = f" for {span(gone)}" if not bound and gone is not None else ""
    match state:
        case State.BIRTH:
            return "the handshake is under way"
        case State.ATTACHED:
            return f"on {name(bound)}" + ("" if _is_calm(facts, state) else f", which is {_condition(facts, bound)}")
        case State.VOLATILE:
            return f"unstable; {carried}{since}"
        case State.RECOVERING:
            tried = f"attempt {facts['attempts']} of {policy.recovery.max_attempts}"
            return f"{tried} is under way; {carried}{since}"
        case State.DEGRADED:
            return f"waiting; {carried}{since}; its identity and addresses are kept"
        case State.TERMINATED:
            return "ended for good; the next start makes a new session with a new identity"


def _is_calm(facts: Mapping[str, Any], state: State) -> bool:
    bound = facts["binding"]["transport"] if facts["binding"] else None
    return state is State.ATTACHED and _condition(facts, bound) in _HEALTHY


def _condition(facts: Mapping[str, Any], transport: str | None) -> str:
    found = (str(c["condition"]) for c in facts["candidates"] if c["id"] == transport)
    return next(found, "good")


# --- why -------------------------------------------------------------------------------------------------------------


def _told(history: History, facts: Mapping[str, Any], policy: Policy, name: Name) -> tuple[tuple[Step, ...], int]:
    """The chain of causes from the last time that all was well, and how many steps were left out of its middle."""
    records = [r for r in history.records if r.event not in _ROUTINE]
    settled = facts["state"] == State.ATTACHED.value
    begin = _episode(records)
    if settled and (begin is None or not _is_recent(records, history)):
        entry = _entry(records)
        records = _together(records, entry) + [r for r in records[entry:] if r.event in _NOTABLE]
    elif begin is not None:
        well = max((i for i, r in enumerate(records[:begin]) if _enters(r, State.ATTACHED)), default=None)
        before = [r for r in records[(well or 0) + 1 : begin] if _is_notable(r, records[begin])]
        end = _entry(records) + 1 if settled else len(records)
        after = [r for r in records[end:] if r.row or r.event in _NOTABLE]
        records = ([] if well is None else _together(records, well)) + before + records[begin:end] + after
    found = steps(records, name, policy)
    most = STEPS_SETTLED if settled else STEPS_MAX
    if len(found) <= most:
        return found, history.left_out
    more = len(found) - most
    return (*found[:2], *found[2 + more :]), more + history.left_out


def _is_notable(record: Record, later: Record) -> bool:
    return record.event in _NOTABLE and ago_ns(record, later) < RECENT_MS * MILLISECOND


def _episode(records: list[Record]) -> int | None:
    """Where the last episode begins: ATTACHED was left."""
    left = [i for i, r in enumerate(records) if _changes(r) and r.prev_state == State.ATTACHED.value]
    return left[-1] if left else None


def _entry(records: list[Record]) -> int:
    """Where the present stay in ATTACHED begins."""
    return max((i for i, r in enumerate(records) if _enters(r, State.ATTACHED)), default=0)


def _is_recent(records: list[Record], history: History) -> bool:
    since = ago_ns(records[_entry(records)], history.moment) // MILLISECOND
    return since + history.at_ms - history.moment.time_ms < RECENT_MS


def _together(records: list[Record], index: int) -> list[Record]:
    """The record at ``index`` with those of the same row and commit."""
    first = records[index]
    rest = (r for r in records[index + 1 : index + 8] if r.row and (r.row, r.version) == (first.row, first.version))
    return [first, *rest]


def _changes(record: Record) -> bool:
    return record.mutates and record.event == "session.state_change"


def _enters(record: Record, state: State) -> bool:
    return _changes(record) and record.state == state.value


def _later(history: History | None, policy: Policy, name: Name) -> tuple[Step, ...]:
    """What happened after the moment, as far as the next settled state."""
    if history is None:
        return ()
    found: list[Step] = []
    for step in steps([r for r in history.later if r.event not in _ROUTINE], name, policy):
        found.append(step)
        if step.into in (State.ATTACHED.value, State.TERMINATED.value) or len(found) >= LATER_MAX:
            break
    return tuple(found)


# --- by which rule ---------------------------------------------------------------------------------------------------


def _rules(told: tuple[Step, ...], facts: Mapping[str, Any], policy: Policy, name: Name) -> tuple[str, ...]:
    """The row, the policy keys behind its reason, and what selection answered."""
    last = next((step for step in reversed(told) if step.into is not None), None)
    found: list[str] = []
    if last is not None:
        before = next((s.into for s in reversed(told) if s.into is not None and s is not last), None)
        for row, state in zip(last.rows, (before, *last.through), strict=False):
            found.append(words.row_words(row, state))
    reason = words.reason_of(facts["reason"])
    keys = words.KEYS.get(reason, ()) if reason is not None else ()
    if last is not None and (last.measured or {}).get("by") == "gateway":
        found.append("policy: the gateway's, which may be stricter than the client's")
    elif keys:
        found.append("policy: " + ", ".join(f"{key} {words.value(policy, key)}" for key in keys))
    decision = facts["decision"]
    if decision is not None:
        found.append(_decision(decision, facts, name))
    return tuple(found)


def _decision(decision: Mapping[str, Any], facts: Mapping[str, Any], name: Name) -> str:
    detail = decision["detail"]
    if decision["kind"] == "selected":
        rule = words.RULES.get(decision["rule"], decision["rule"])
        return f"selection: {name(decision['transport'])}: {rule}"
    if decision["kind"] == "nothing":
        known = len(facts["candidates"])
        return f"selection: {count(known, 'transport')} known, none of them usable" if known else _NOTHING_KNOWN
    if detail.get("rule") == words.BY_GATEWAY:
        return f"selection: waits: {words.RULES[words.BY_GATEWAY]}"
    figures = words.measured(detail)
    rule = words.RULES.get(str(detail.get("rule")), "")
    more = [text for text in (rule, *figures) if text]
    return f"selection: refused: {words.meaning(decision['rule'])}" + (f" ({', '.join(more)})" if more else "")


# --- an end ----------------------------------------------------------------------------------------------------------


def _verdict(history: History, reason: Reason | None) -> Verdict | None:
    """Whether the deadline behind the end had passed, reckoned from the events before it."""
    name = words.ENDS_BY.get(reason) if reason is not None else None
    end = next((r for r in history.records if _enters(r, State.TERMINATED)), None)
    if name is None or end is None or reason is None:
        return None
    before = replace(history, moment=end, at_ms=end.time_ms, records=tuple(
        r for r in history.records if not (r.mutates and r.state == State.TERMINATED.value)))  # fmt: skip
    key = words.KEYS[reason][0]
    if not before.records:
        return Verdict(name, key, "", None, None)
    found = rebuild(before)
    at = next((d.at for d in deadlines(found.session) if d.name == name), None)
    shown = words.value(found.session.policy, key)
    if at is None or (name in ("lifetime", "key_age") and not found.whole):
        return Verdict(name, key, shown, None, None)
    over = (found.now - at) / MILLISECOND
    return Verdict(name, key, shown, round(end.time_ms - over), over)


def _notes(history: History | None, rebuilt: Rebuilt | None, outlook: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the reader should know of the sources."""
    found: list[str] = []
    if history is None:
        return ("the journal tells nothing of this session, so the causes are not known",)
    if history.skipped:
        found.append(f"{count(history.skipped, 'line')} of the log could not be read and were skipped")
    if rebuilt is not None and outlook is None:
        if not rebuilt.whole:
            found.append("the log does not reach back to the birth: lifetime and key age are not known")
        if not rebuilt.policy_known:
            found.append("the log does not tell the policy: the default values are assumed")
    return tuple(found)
