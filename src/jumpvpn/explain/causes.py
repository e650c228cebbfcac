"""What happened, step by step: records of one session become sentences, each with its reason, row and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.explain import words
from jumpvpn.explain.records import Record
from jumpvpn.explain.units import span
from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State

ECHO_MS = 1_000  # netlink tells of a link's end several times within that
ECHO_STEPS = 4

Name = Callable[[str | None], str]
"""How a transport is called: by its interface where that is unique."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. ``into`` is the state that it led to, ``through`` those on the way at one instant.

    ``times`` counts repetitions, ``ref`` names the (last) record.
    """

    time_ms: int
    text: str
    ref: str
    into: str | None = None
    through: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    times: int = 1
    measured: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "time_ms": self.time_ms, "event": self.ref, "text": self.text, "into": self.into,
            "through": list(self.through), "reasons": list(self.reasons), "rows": list(self.rows),
            "times": self.times, "measured": dict(self.measured or {}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Happening:
    """The records of one row of one commit: the first names it, ``data`` has everything they carry.

    ``toward`` is the transport that the event speaks of, where it is not the session's own.
    """

    first: Record
    names: tuple[str, ...]
    data: Mapping[str, Any]
    toward: str | None = None


def naming(transports: Iterable[str]) -> Name:
    """Names for these transports: ``wlan0`` for ``wlan0/udp/gw1`` unless two share the interface."""
    known = {t for t in transports if t}
    short = [t.split("/")[0] for t in known]

    def name(transport: str | None) -> str:
        if not transport:
            return "no transport"
        interface = transport.split("/")[0]
        return interface if short.count(interface) <= 1 else transport

    return name


def steps(records: Sequence[Record], name: Name, policy: Policy) -> tuple[Step, ...]:
    """What ``records`` (oldest first) tell, without what only accompanies something else."""
    found: list[Step] = []
    for happening in happenings(records):
        step = _step(happening, name, policy)
        if step is None or _is_echo(happening, found, name):
            continue
        last = found[-1] if found else None
        if last is not None and _continues(last, step):
            found[-1] = _joined(last, step)
        elif last is not None and _begins(last, step):
            found[-1] = replace(last, text=step.text, rows=(*last.rows, *step.rows), measured=step.measured)
        elif last is not None and _fails(happening, last, name):
            found[-1] = replace(last, text=f"{last.text}; {step.text}", rows=(*last.rows, *step.rows), ref=step.ref)
        elif last is not None and last.text == step.text and last.into is None and step.into is None:
            found[-1] = replace(last, times=last.times + 1)
        else:
            found.append(step)
    return tuple(found)


def _continues(last: Step, step: Step) -> bool:
    """Whether ``step`` is the same event fed to the state that it led to (``again`` in the table)."""
    row = words.row_of(last.rows[-1]) if last.rows else None
    again = row is not None and row.again and last.time_ms == step.time_ms
    return again and last.into is not None and step.into in (State.VOLATILE.value, State.RECOVERING.value)


def _begins(last: Step, step: Step) -> bool:
    """Whether ``step`` is the attempt for which ``last`` went back to RECOVERING."""
    retry = last.reasons == (Reason.RECOVERY_RETRY.value,) and last.time_ms == step.time_ms
    return retry and step.text.startswith("attempt ") and step.into is None


def _fails(happening: Happening, last: Step, name: Name) -> bool:
    """Whether it ends the attempt that ``last`` tells of."""
    failed = happening.first.event == "transport.switch_failed"
    return (
        failed
        and last.into is None
        and last.text.startswith("attempt ")
        and f" {name(happening.first.transport)}" in last.text
    )


def _joined(last: Step, step: Step) -> Step:
    reasons = last.reasons if step.reasons[-1:] == last.reasons[-1:] else (*last.reasons, *step.reasons)
    return replace(last, into=step.into, through=(*last.through, str(last.into)), reasons=reasons,
                   rows=(*last.rows, *step.rows), ref=step.ref)  # fmt: skip


def _is_echo(happening: Happening, found: Sequence[Step], name: Name) -> bool:
    """Whether it says of a transport's end what a death just before has said."""
    record = happening.first
    if record.event != "transport.candidate" or happening.data.get("change") != "removed":
        return False
    died = f"{name(record.transport)} died"
    return any(s.text.startswith(died) and record.time_ms - s.time_ms <= ECHO_MS for s in found[-ECHO_STEPS:])


def happenings(records: Sequence[Record]) -> list[Happening]:
    """Records that one row made together, as one."""
    found: list[Happening] = []
    for record in records:
        last = found[-1] if found else None
        if last is not None and _accompanies(record, last):
            toward = record.transport if record.event == "transport.health" else last.toward
            found[-1] = Happening(last.first, (*last.names, record.event), {**record.data, **last.data}, toward)
        else:
            found.append(Happening(record, (record.event,), record.data))
    return found


def _accompanies(record: Record, last: Happening) -> bool:
    same = (record.session, record.row, record.version, record.mono_ms, record.state)
    first = last.first
    return bool(record.row) and same == (first.session, first.row, first.version, first.mono_ms, first.state) and (
        record.event not in last.names
    )  # fmt: skip


def _step(happening: Happening, name: Name, policy: Policy) -> Step | None:
    record = happening.first
    changed = record.event == "session.state_change"
    text = _changed(happening, name, policy) if changed else _told(happening, name, policy)
    if text is None:
        return None
    also = [meaning for meaning in map(words.meaning, record.contributing) if meaning]
    if also:
        text += f" (at the same time: {'; '.join(also)})"
    return Step(
        record.time_ms, text, record.ref, into=record.state if changed else None,
        reasons=(record.reason,) if record.reason else (), rows=(record.row,) if record.row else (),
        measured={k: v for k, v in happening.data.items() if k != "row" and isinstance(v, int | float | str)},
    )  # fmt: skip


# --- changes of state ------------------------------------------------------------------------------------------------


def _changed(happening: Happening, name: Name, policy: Policy) -> str:
    record, data = happening.first, happening.data
    where = name(record.transport)
    if record.state == State.TERMINATED.value:
        return f"ended: {words.meaning(record.reason)}"
    if record.state == State.ATTACHED.value:
        return _attached(happening, name)
    if "transport.dead" in happening.names:
        return f"{where} died: {_death(data)}"
    if "ownership.acquired" in happening.names and data.get("from_node"):
        return _acquired(record, data, name, policy)
    text = words.meaning(record.reason)
    if record.prev_state == State.ATTACHED.value and record.transport:
        text = f"{where}: {text}"
    elif happening.toward and happening.toward != record.transport:
        text = f"{text}: {name(happening.toward)}"
    return text + _figures(data, policy, name)


def _attached(happening: Happening, name: Name) -> str:
    record, data = happening.first, happening.data
    where = name(record.transport)
    gap = words.number(data, "interruption_ms") or words.number(data, "transportless_ms")
    pause = f"; nothing was carried for {span(gap)}" if gap else ""
    if "transport.switch" in happening.names:
        before = name(str(data.get("from_id") or ""))
        return f"moved from {before} to {where}, epoch {record.epoch}{pause}"
    if record.reason == Reason.REATTACH_SUCCESS.value:
        return f"bound to {where} again, epoch {record.epoch}{pause}"
    if record.reason == Reason.HANDSHAKE_OK.value:
        return f"born on {where}"
    return f"{where} carries on: {words.meaning(record.reason)}{pause}"


def _death(data: Mapping[str, Any]) -> str:
    evidence = str(data.get("evidence") or "")
    text = words.evidence_words(evidence) if evidence else words.meaning(Reason.TRANSPORT_DEAD.value)
    age = words.number(data, "age_ms")
    return f"{text} (silent for {span(age)})" if evidence == "silence" and age else text


def _figures(data: Mapping[str, Any], policy: Policy, name: Name) -> str:
    """The figures of an event, the transport asked for and the rule, in parentheses."""
    wanted, rule = data.get("to_id"), str(data.get("rule") or "")
    found = [f"wanted: {name(str(wanted))}"] if wanted else []
    found += [words.RULES.get(rule, rule)] if rule else []
    found += [", ".join(figures)] if (figures := words.measured(data, policy)) else []
    found += ["so said the gateway"] if data.get("by") == "gateway" else []
    return f" ({'; '.join(found)})" if found else ""


# --- everything else -------------------------------------------------------------------------------------------------


def _told(happening: Happening, name: Name, policy: Policy) -> str | None:
    record, data = happening.first, happening.data
    tell = _TELLERS.get(record.event)
    if tell is not None:
        return tell(record, data, name, policy)
    if record.event.startswith(("security.", "ownership.")):
        return f"{record.event.partition('.')[0]}: {words.meaning(record.reason)}{_counted(data)}"
    return None


def _dead(record: Record, data: Mapping[str, Any], name: Name, _policy: Policy) -> str:
    carried = "" if data.get("was_active") else ", which carried nothing,"
    return f"{name(record.transport)}{carried} died: {_death(data)}"


def _attempt(record: Record, data: Mapping[str, Any], name: Name, policy: Policy) -> str:
    kinds = {"switch": "reattach over", "revalidate": "ask for a fresh proof of", "rebind": "prove the new address of"}
    what = kinds.get(str(data.get("kind")), "try")
    return f"attempt {data.get('attempt', '?')}: {what} {name(record.transport)}{_figures(data, policy, name)}"


def _failed(record: Record, data: Mapping[str, Any], name: Name, _policy: Policy) -> str:
    took = words.number(data, "elapsed_ms")
    after = f" after {span(took)}" if took is not None else ""
    return f"{name(record.transport)} failed{after}: {words.meaning(record.reason)}"


def _denied(record: Record, data: Mapping[str, Any], name: Name, policy: Policy) -> str:
    target = name(str(data.get("to_id") or record.transport or ""))
    others = {k: v for k, v in data.items() if k != "to_id"}
    return f"a switch to {target} was refused: {words.meaning(record.reason)}{_figures(others, policy, name)}"


def _health(record: Record, data: Mapping[str, Any], name: Name, policy: Policy) -> str:
    return f"{name(record.transport)}: {words.meaning(record.reason)}{_figures(data, policy, name)}"


def _result(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str | None:
    if data.get("status") != "DENIED":
        return None
    step = data.get("step", "?")
    return f"a reattach request was refused at check {step}: {words.meaning(record.reason)}{_counted(data)}"


def _candidate(record: Record, data: Mapping[str, Any], name: Name, _policy: Policy) -> str | None:
    where, change = name(record.transport), data.get("change")
    if change == "removed":
        return f"{where} is no longer there: {words.evidence_words(str(data.get('code') or 'link'))}"
    told = {"added": "appeared", "validated": "answered a challenge", "heard": "answers again"}
    return f"{where} {told[str(change)]}" if change in told else None


def _node(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str:
    if record.event == "node.started":
        return f"the {data.get('role', 'node')} process {record.node} started"
    cause = data.get("cause")
    if cause == "start_failed":
        return f"the process {record.node} could not start: {data.get('error', 'no reason told')}"
    return f"the process {record.node} stopped" + (f" ({cause})" if cause else "")


def _policy_told(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str | None:
    if record.event == "policy.rejected":
        errors = data.get("errors")
        first = errors[0] if isinstance(errors, tuple) and errors else "no error named"
        return f"a new policy was refused, the last valid one stays: {first}"
    if data.get("mode") == "start" or record.session is None:
        return None
    return f"policy {data.get('version', '?')} is in force"


def _rejected(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str | None:
    if record.reason == Reason.EVENT_AFTER_TERMINATION.value:
        return None
    return f"an input was rejected: {words.meaning(record.reason)} ({words.camel_words(str(data.get('input', '?')))})"


def _warning(_record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str:
    return f"announced: the session ends in {span(words.number(data, 'left_ms') or 0)}"


def _counted(data: Mapping[str, Any]) -> str:
    number = data.get("count")
    return f" ({number} times)" if isinstance(number, int) and number > 1 else ""


def _acquired(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str:
    before = str(data.get("from_node") or record.node)
    floor, why = data.get("floor"), _TAKEN.get(str(data.get("cause")), "")
    known = f"; what {before} did up to version {floor} is in its own journal" if floor else ""
    if before == record.node and data.get("cause") == OWNED_ANEW:
        return f"gateway {record.node} owns it anew, after a restart or a lapsed lease; the binding was cleared{known}"
    if before == record.node:
        return f"another gateway process took over; the binding was cleared{known}"
    return f"gateway {record.node} took over from {before}{why}; the binding was cleared{known}"


OWNED_ANEW = "restart"
_TAKEN = {
    "request": ", because the client asked for it",
    "orphan": ", whose lease had ended and whose client went nowhere",
    "superseded": " to end it: its device has begun a newer session",
}


def _lost(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str:
    why = "another gateway owns the session" if data.get("code") == "not_owner" else "its lease ran out"
    return f"gateway {record.node} let the session go: {why}"


def _drain(record: Record, data: Mapping[str, Any], _name: Name, _policy: Policy) -> str:
    return f"gateway {record.node} {'drains: its clients move' if data.get('state') == 'on' else 'serves again'}"


_MEMBER = {"joined": "joined the cluster", "serving": "serves", "draining": "drains", "left": "left the cluster"}

_TELLERS: dict[str, Callable[[Record, Mapping[str, Any], Name, Policy], str | None]] = {
    "session.created": lambda *_: "birth: the handshake is under way",
    "session.input_rejected": _rejected,
    "session.lifetime_warning": _warning,
    "transport.dead": _dead,
    "transport.candidate": _candidate,
    "transport.health": _health,
    "transport.switch_failed": _failed,
    "transport.switch_denied": _denied,
    "reattach.attempt": _attempt,
    "reattach.result": _result,
    "key.rotated": lambda r, d, _n, _p: f"fresh keys, epoch {d.get('key_epoch', r.epoch)}",
    "policy.applied": _policy_told,
    "policy.rejected": _policy_told,
    "ownership.acquired": _acquired,
    "ownership.lost": _lost,
    "cluster.member": lambda _r, d, _n, _p: (
        f"gateway {d.get('member', '?')} {_MEMBER.get(str(d.get('state')), 'changed')}"
    ),
    "cluster.store": lambda r, d, _n, _p: f"the store of {r.node} is {str(d.get('state', '?')).replace('_', ' ')}",
    "cluster.drain": _drain,
    "node.started": _node,
    "node.stopped": _node,
}
