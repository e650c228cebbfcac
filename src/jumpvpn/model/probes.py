"""Every input at every kind of reached state, and every pair of inputs at once.

What the environment of ``environment`` never presents (late, unlisted, stale and forged inputs, deadlines at the very
instant, two things at one moment) is presented here, without following where it leads.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from jumpvpn.model import published
from jumpvpn.model.bounds import NOW, SHORT, TRANSPORTS
from jumpvpn.model.canon import Ghost
from jumpvpn.model.checks import Violation
from jumpvpn.model.facts import REQUEST_FAULTS, overdue_by, request
from jumpvpn.model.graph import Graph
from jumpvpn.properties import Property
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Session, State
from jumpvpn.session.transitions import LISTED
from jumpvpn.session.validation import validate
from jumpvpn.values import Now, Version

Alarm = tuple[int, Violation, str]  # the node, what does not hold, and what was presented


def probe(graph: Graph, nodes: int) -> Iterator[Alarm]:
    """Probe every kind of state among the first ``nodes``; each violation as it is found."""
    kinds: dict[Hashable, int] = {}
    shapes: dict[Hashable, int] = {}
    for node in range(nodes):
        session, ghost = graph.sessions[node], graph.ghosts[node]
        kinds.setdefault(_guarded(session), node)
        shapes.setdefault(_shape(session, ghost), node)
    prober, mirrored = _Prober(graph), set()
    for node in kinds.values():
        prober.exactly_one_row(node)
        yield from prober.alarms()
    for node in shapes.values():
        first = (graph.sessions[node].state, graph.sessions[node].binding is None)
        probings = (
            prober.single,
            prober.at_the_instant,
            prober.requests,
            prober.late_requests,
            prober.repeated_requests,
            prober.pairs,
            prober.late_pairs,
        )
        for probing in probings if first in mirrored else (*probings, prober.both_orders):
            probing(node)
            yield from prober.alarms()
        mirrored.add(first)


def _guarded(session: Session) -> Hashable:
    """Everything of a session but its clocks: what a guard may ask."""
    attempt, want, bound = session.attempt, session.want, session.binding
    return (
        session.state, bound and (bound.transport, bound.peer), session.incumbent, session.attempts,
        session.policy.version, session.next_policy is None, session.tried, len(session.switches),
        session.hold_until is None, attempt and (attempt.kind, attempt.transport, attempt.peer),
        want and (want.kind, want.target, want.avoid_incumbent),
    )  # fmt: skip


def _shape(session: Session, ghost: Ghost) -> Hashable:
    """What decides the kind of outcome: pairs of inputs are tried once per shape."""
    attempt = session.attempt
    limit = session.policy.recovery.max_attempts
    return (
        session.state, session.binding is None, attempt and (attempt.kind, attempt.transport == session.incumbent),
        session.attempts >= limit, ghost.switches >= session.policy.switching.max_per_minute,
    )  # fmt: skip


class _Prober:
    """Presents inputs to nodes."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._watcher = graph, graph.watcher
        self._checks = graph.watcher.checks
        self._alarms: list[Alarm] = []

    def alarms(self) -> list[Alarm]:
        """The violations since the last call."""
        found, self._alarms = self._alarms, []
        return found

    def exactly_one_row(self, node: int) -> None:
        """For each input that the state lists, one row and no other is enabled."""
        session = self._graph.sessions[node]
        for label, make in self._graph.facts.items():
            event = make(session)
            listed = LISTED.get((session.state, type(event)))
            if listed is None:
                continue
            try:
                enabled = [row.id for row in listed if row.guard(session, event)]
            except (AssertionError, AttributeError, TypeError) as error:
                self._alarms.append((node, Violation(Property.TOTALITY, f"a guard is undefined: {error!r}"), label))
                continue
            self._judge(len(enabled) == 1, Property.TOTALITY, f"rows {enabled} are enabled", node, label)

    def single(self, node: int) -> None:
        """Every input once, whether or not it could come here."""
        session = self._graph.sessions[node]
        for label, event in self._events(node):
            self._play(node, label, session, event)

    def at_the_instant(self, node: int) -> None:
        """Each running deadline at its very instant, when it is still inside, and 1 ns later; two and all at once."""
        session = self._graph.sessions[node]
        names = [bound.name for bound in published.running(session)]
        for name in names:
            at, past = overdue_by(name, session, 0), overdue_by(name, session, 1)
            self._play(node, f"the deadline {name} is now", at)
            self._play(node, f"the deadline {name} was 1 ns ago", past)
        for one, other in combinations(names, 2):
            both = overdue_by(other, overdue_by(one, session, 1), 1)
            self._play(node, f"the deadlines {one} and {other} were 1 ns ago", both)
        everything = session
        for name in names:
            everything = overdue_by(name, everything, 1)
        self._play(node, "all deadlines were 1 ns ago", everything)

    def requests(self, node: int) -> None:
        """Requests with up to two faults: the verdict is the first check that fails, in the published order."""
        session, ghost = self._graph.sessions[node], self._graph.ghosts[node]
        faults = [(), *((fault,) for fault in REQUEST_FAULTS), *combinations(REQUEST_FAULTS, 2)]
        for transport in TRANSPORTS:
            for pair in faults:
                asked = sound = request(session, transport)
                for fault in pair:
                    asked = _spoiled(asked, sound, request(session, transport, fault))
                verdict = validate(session, asked, Now(NOW, 0), owned="of another owner" not in pair)
                moves = transport != session.incumbent
                full = moves and ghost.switches >= session.policy.switching.max_per_minute
                wanted = published.verdict(session.state.value, pair, rate_used_up=full)
                got = (verdict.step, verdict.reason.value if verdict.reason is not None else None)
                what = f"a request on {SHORT[transport]} {' and '.join(pair) or 'without a fault'}"
                self._judge(got == wanted, Property.PROOF, f"the verdict is {got}, published is {wanted}", node, what)

    def late_requests(self, node: int) -> None:
        """Requests that come after the session's end: that is said before the proof is looked at."""
        session = self._graph.sessions[node]
        late = {"lifetime": (4, "session_expired"), "transport_ttl": (5, "transport_ttl_exceeded")}
        running = {bound.name for bound in published.running(session)}
        for name, wanted in late.items():
            if name not in running or session.state is State.BIRTH:
                continue
            for beyond in (0, 1):
                old = overdue_by(name, session, beyond)
                verdict = validate(old, request(old, TRANSPORTS[0], "with a bad proof"), Now(NOW, 0), owned=True)
                got = (verdict.step, verdict.reason.value if verdict.reason is not None else None)
                text = f"the verdict is {got}, {beyond} ns after the deadline {name}"
                right = got == (wanted if beyond else (6, "bad_proof"))
                self._judge(right, Property.PROOF, text, node, f"a request {beyond} ns after the deadline {name}")

    def repeated_requests(self, node: int) -> None:
        """A client that missed the answer names the version of before, which counts; an older one does not."""
        session = self._graph.sessions[node]
        before = Version(session.bound_version - 7)
        missed = replace(session, prior_bound_version=before)
        for version, sound in ((before, True), (Version(before - 1), False)):
            verdict = validate(missed, request(missed, TRANSPORTS[0], version=version), Now(NOW, 0), owned=True)
            stale = verdict.reason is Reason.STALE_STATE_VERSION
            text = f"the verdict on version {version} of {before} or {session.bound_version} is {verdict.reason}"
            right = session.state in (State.BIRTH, State.TERMINATED) or stale is not sound
            what = "a request of a client that missed the answer" if sound else "a request for a version before that"
            self._judge(right, Property.PAIRED if sound else Property.PROOF, text, node, what)

    def pairs(self, node: int) -> None:
        """Every two inputs at once; and every input together with a deadline that has passed."""
        session, events = self._graph.sessions[node], self._one_of_each(node)
        for (one, first), (two, second) in combinations(events, 2):
            self._play(node, f"at once: {one}, {two}", session, first, second)
        for bound in published.running(session):
            late = overdue_by(bound.name, session, 1)
            for label, event in events:
                self._play(node, f"{label}, and the deadline {bound.name} has passed", late, event)

    def both_orders(self, node: int) -> None:
        """Two inputs given in either order, which is the same input twice: the same comes out."""
        session = self._graph.sessions[node]
        for (one, first), (two, second) in combinations(self._one_of_each(node), 2):
            what = f"at once: {one}, {two}"
            there = self._play(node, what, session, first, second)
            back = self._play(node, what, session, second, first)
            text = "equal inputs gave other events, or the order in which they are given decides"
            self._judge(there == back, Property.TOTALITY, text, node, what)

    def late_pairs(self, node: int) -> None:
        """Two inputs at once when the stay in RECOVERING is overdue as well."""
        session = self._graph.sessions[node]
        if session.state is State.RECOVERING and session.attempt is not None:
            late = overdue_by("recovery_window", session, 1)
            for (one, first), (two, second) in combinations(self._one_of_each(node), 2):
                self._play(node, f"at once: {one}, {two}, and the recovery window has passed", late, first, second)

    def _events(self, node: int) -> Iterator[tuple[str, Any]]:
        session, ghost = self._graph.sessions[node], self._graph.ghosts[node]
        for label, make in self._graph.facts.items():
            event = make(session)
            if event is not None and not _barred(session, ghost, event):
                yield label, event

    def _one_of_each(self, node: int) -> list[tuple[str, Any]]:
        """One input of each type: the one about the attempt's transport, or the bound one, where there is a choice."""
        session = self._graph.sessions[node]
        about = session.attempt.transport if session.attempt is not None else session.incumbent
        found: dict[type, tuple[str, Any]] = {}
        for label, event in self._events(node):
            if type(event).__name__ in published.CLOCKWORK or _reason(event) == "reattach_timeout":
                continue  # time gives it, and is presented as time
            known = found.get(type(event))
            if known is None or (_subject(event) == about and _subject(known[1]) != about):
                found[type(event)] = (label, event)
        return list(found.values())

    def _play(self, node: int, what: str, session: Session, *events: Any) -> Any:
        try:
            played = self._watcher.play(session, self._graph.ghosts[node], *events)
        except Violation as broken:
            self._alarms.append((node, broken, what))
            return None
        return played.session, played.events

    def _judge(self, holds: bool, broken: Property, text: str, node: int, what: str) -> None:
        try:
            self._checks.demand(holds, broken, text)
        except Violation as violation:
            self._alarms.append((node, violation, what))


def _reason(event: Any) -> str | None:
    reason = getattr(event, "reason", None)
    return None if reason is None else str(reason.value)


def _subject(event: Any) -> Any:
    return getattr(event, "transport", None)


def _barred(session: Session, ghost: Ghost, event: Any) -> bool:
    """What a check in front of the machine keeps from it: what policy denies, the budget, or hold-down."""
    policy = session.policy.switching
    full = ghost.switches >= policy.max_per_minute
    match event:
        case ev.ReattachAccepted() | ev.ReattachCommitted():
            return full and event.transport != session.incumbent
        case ev.RebindingValidated():
            return full
        case ev.AttemptStarted():
            held = ghost.hold > 0 and session.binding is not None
            denied = not session.policy.transports.allows(event.transport.split("/")[0], "udp", "gw")
            return event.kind is AttemptKind.SWITCH and (full or held or denied)
    return False


def _spoiled(asked: Any, sound: Any, faulty: Any) -> Any:
    """``asked`` with those fields that the fault changed."""
    changed = {name: getattr(faulty, name) for name in sound.__dataclass_fields__}
    return replace(asked, **{name: value for name, value in changed.items() if value != getattr(sound, name)})
