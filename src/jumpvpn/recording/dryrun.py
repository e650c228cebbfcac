"""What another policy would have made of a recording, beside what happened and what the model makes of the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.outputs import Output
from jumpvpn.policy.model import Policy
from jumpvpn.recording.entries import BadRecording, Header, Shown, State, read
from jumpvpn.recording.ledger import Ledger, Stretches
from jumpvpn.recording.model import ASSUMPTIONS, Model, Restless
from jumpvpn.recording.replay import UNFIT, Watcher, replay, words_of
from jumpvpn.recording.snapshot import Engine, Restoring
from jumpvpn.recording.trace import Trace
from jumpvpn.recording.veil import ReaderSight
from jumpvpn.values import SECOND, DomainEvent, Now

Lines = Callable[[], Iterable[bytes]]
"""The lines of one segment, as often as they are asked for."""

SHARED = (
    ("session", "max_lifetime"), ("session", "transport_ttl"), ("security", "key_max_age"), ("security", "rekey_after"),
    ("switching", "max_per_minute"), ("recovery", "episode_max"),
)  # fmt: skip
"""The bounds that a gateway tells its clients (wire.welcome): the smaller one counts."""


class Unsuitable(Exception):
    """The recording does not serve for a dry-run; the text says why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Three ledgers side by side, and what has to be said about them."""

    recorded: Ledger
    same: Ledger
    new: Ledger
    policies: tuple[str, str]
    trace: Trace
    began_alive: bool

    def columns(self) -> tuple[tuple[str, Ledger], ...]:
        """Titles and ledgers."""
        return ("recorded", self.recorded), ("same policy in the model", self.same), ("new policy", self.new)

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Labels and one text per column."""
        ledgers = [ledger for _, ledger in self.columns()]
        for label, pick in _OUTAGES:
            yield f"{label}: times", [str(pick(ledger).count) for ledger in ledgers]
            yield f"{label}: total / longest", [_pair(pick(ledger)) for ledger in ledgers]
        yield "switches", [str(ledger.switches) for ledger in ledgers]
        yield "episodes closed", [str(ledger.episodes) for ledger in ledgers]
        for reason in sorted({reason for ledger in ledgers for reason in ledger.denials}) or ["any reason"]:
            yield f"denials: {reason}", [str(ledger.denials[reason]) for ledger in ledgers]
        for state in sorted({state for ledger in ledgers for state in ledger.states}):
            yield f"time in {state}", [f"{ledger.states[state] / SECOND:.3f} s" for ledger in ledgers]
        yield "final state", [ledger.final for ledger in ledgers]

    def remarks(self) -> Iterator[str]:
        """How far the model can be trusted."""
        apart = [f"{label} {_difference(pick(self.recorded), pick(self.same))}" for label, pick in _OUTAGES]
        apart.append(f"switches {self.same.switches - self.recorded.switches:+d}")
        yield f"policies: recorded {self.policies[0][:16]}, new {self.policies[1][:16]} (digests)"
        yield f"calibration, the same policy in the model against the recording: {', '.join(apart)}"
        if self.same.final != self.recorded.final:
            yield f"  and it ends in {self.same.final} instead of {self.recorded.final}: trust the comparison little"
        if self.trace.denied_by_gateway:
            yield f"  the gateway refused {self.trace.denied_by_gateway} requests, which the model grants"
        if self.trace.told_policies:
            yield f"  {self.trace.told_policies} recorded changes of policy count for the same policy only"
        if self.began_alive:
            yield "  the recording begins with a session: the new policy is in force from its first input on"
        yield "assumptions of the model:"
        for text in ASSUMPTIONS:
            yield f"  - {text}"

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "recorded": self.recorded.document(), "same_policy_in_model": self.same.document(),
            "new_policy_in_model": self.new.document(),
            "policy_digests": {"recorded": self.policies[0], "new": self.policies[1]},
            "denied_by_gateway": self.trace.denied_by_gateway, "policy_changes": self.trace.told_policies,
            "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip


def compare(segments: Sequence[Lines], policy: Policy, progress: Callable[[int], None] = lambda _n: None) -> Comparison:
    """Try ``policy`` on consecutive segments of one client. Raises Unsuitable, BadRecording, Difference."""
    beginning = _beginning(segments[0]())
    began_alive = beginning.session is not None
    trace = Trace()
    trace.begin(beginning)
    recorded = Ledger(trace)
    reader = _Reader(trace)
    for lines in segments:
        for run in replay(lines(), reader):
            progress(run.counts.inputs)
    trace.close()
    for looked, session, events in reader.story:
        recorded.happened(events)
        recorded.look(looked, session)
    digest = beginning.policy.digest()
    same = _modelled(_beginning(segments[0]()), trace, lambda event: event, progress)
    engine = _beginning(segments[0]())
    new = _modelled(_under(engine, policy), trace, _Adapter(policy, beginning.policy), progress)
    return Comparison(recorded, same, new, (digest, policy.digest()), trace, began_alive)


class _Reader(Watcher):
    """Collects the trace, and what has to go into the recorded ledger once the trace is complete."""

    def __init__(self, trace: Trace) -> None:
        self.story: list[tuple[int, Any, tuple[DomainEvent, ...]]] = []
        self._trace = trace
        self._at = 0

    def told(self, event: Any, now: Now, engine: Engine, orders: list[Output]) -> None:
        """One input for the trace."""
        assert isinstance(engine, ClientEngine)
        self._at = now.boot
        self._trace.add(event, now, engine, orders)
        self.story.append((now.boot, engine.session, ()))

    def happened(self, events: tuple[DomainEvent, ...], now: Now) -> None:
        """Events for the ledger."""
        self.story.append((self._at, None, events))


class _Adapter:
    """Observations as a client with the new policy would have got them."""

    def __init__(self, policy: Policy, recorded: Policy) -> None:
        self._policy = policy
        self._recorded = recorded

    def __call__(self, event: Any) -> Any:
        if isinstance(event, inp.PolicyOffered):
            return None
        if isinstance(event, inp.HandshakeAnswered):
            return replace(event, policy=bounded(self._policy, event.policy, self._recorded))
        return event


def bounded(policy: Policy, applied: Policy, own: Policy) -> Policy:
    """``policy`` within the gateway's bounds, which the recording shows where ``applied`` is below ``own``."""
    update: dict[str, dict[str, Any]] = {}
    for section, key in SHARED:
        theirs = getattr(getattr(applied, section), key)
        if theirs < getattr(getattr(own, section), key):
            mine = getattr(getattr(policy, section), key)
            update.setdefault(section, {})[key] = min(mine, theirs)
    parts = {section: getattr(policy, section).model_copy(update=values) for section, values in update.items()}
    return policy.model_copy(update=parts)


def _under(engine: ClientEngine, policy: Policy) -> ClientEngine:
    """The engine as if ``policy`` had just come into force, without an event about it."""
    own, engine.policy = engine.policy, policy
    if engine.seat is not None:
        session = engine.seat.session
        fresh = replace(session, policy=bounded(policy, session.policy, own), next_policy=None)
        engine.seat.session = fresh
        engine.book.tune_all(fresh)
    return engine


def _modelled(
    engine: ClientEngine, trace: Trace, adapt: Callable[[Any], Any], progress: Callable[[int], None]
) -> Ledger:
    ledger = Ledger(trace)
    try:
        Model(engine, trace, ledger, adapt).run(progress)
    except Restless as error:
        raise Unsuitable(str(error)) from None
    except UNFIT as error:
        raise Unsuitable(f"the engine fails in the model: {words_of(error)}") from error
    return ledger


def _beginning(lines: Iterable[bytes]) -> ClientEngine:
    """A fresh engine in the state in which the recording begins. Raises BadRecording, Unsuitable."""
    sight = ReaderSight()
    restoring: Restoring | None = None
    for number, entry in read(lines, sight):
        if isinstance(entry, Header):
            if entry.role != "client":
                raise Unsuitable(
                    "a gateway's recording: which transports there are is the client's to know; use its recording"
                )
            restoring = Restoring(entry.role, entry.origin, sight)
        elif isinstance(entry, State):
            assert restoring is not None
            try:
                restoring.take(*entry.part)
            except ValueError as error:
                raise BadRecording(f"state {entry.part[0]}: {error}", number) from None
        elif not isinstance(entry, Shown):
            break
    try:
        engine = restoring.engine if restoring is not None else None
    except ValueError as error:
        raise BadRecording(str(error)) from None
    if not isinstance(engine, ClientEngine):
        raise BadRecording("has no state to begin with")
    return engine


_OUTAGES: tuple[tuple[str, Callable[[Ledger], Stretches]], ...] = (
    ("nothing could pass", lambda ledger: ledger.dark),
    ("no transport bound", lambda ledger: ledger.unbound),
    ("not ATTACHED", lambda ledger: ledger.unattached),
)


def _pair(found: Stretches) -> str:
    return f"{found.total / SECOND:.3f} s / {found.longest / SECOND:.3f} s"


def _difference(recorded: Stretches, modelled: Stretches) -> str:
    apart = (modelled.total - recorded.total) / SECOND
    return f"{apart:+.3f} s in {modelled.count - recorded.count:+d} times"
