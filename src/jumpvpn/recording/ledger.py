"""What a run came to: outages, switches, denials, time per state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.recording.trace import Trace
from jumpvpn.session.state import Session, State
from jumpvpn.values import MILLISECOND, DomainEvent, TransportId


@dataclass(slots=True)
class Stretches:
    """Intervals in which something held: number, total and longest (ns); those that touch are one."""

    count: int = 0
    total: int = 0
    longest: int = 0
    _begin: int = 0
    _end: int = -1

    def add(self, begin: int, end: int) -> None:
        """It held from ``begin`` to ``end``; intervals come in order."""
        if end <= begin:
            return
        if begin > self._end or self._end < 0:
            self.count += 1
            self._begin = begin
        self._end = end
        self.total += end - begin
        self.longest = max(self.longest, end - self._begin)


@dataclass(slots=True)
class Ledger:
    """Follows one run of a client. Only the time in which there is a session counts, up to the recording's end."""

    trace: Trace
    unbound: Stretches = field(default_factory=Stretches)  # no transport carried the session
    unattached: Stretches = field(default_factory=Stretches)
    dark: Stretches = field(default_factory=Stretches)  # nothing could pass: unbound, or bound to a silent transport
    states: Counter[str] = field(default_factory=Counter)
    denials: Counter[str] = field(default_factory=Counter)
    switches: int = 0
    episodes: int = 0
    final: str = "no session"
    reason: str = ""
    _since: int = 0
    _state: State | None = None
    _bound: TransportId | None = None

    def happened(self, events: Iterable[DomainEvent]) -> None:
        """Events of the engine."""
        for event in events:
            self.switches += event.name == "transport.switch"
            self.episodes += event.name == "session.episode_closed"
            if event.name == "transport.switch_denied":
                self.denials[str(event.reason)] += 1

    def look(self, now: int, session: Session | None) -> None:
        """The committed session at ``now``."""
        self._count(now)
        self._since = now
        if session is not None:
            self._state = session.state
            self._bound = session.binding.transport if session.binding is not None else None
            self.final = session.state.value
            self.reason = session.reason.value if session.reason is not None else ""

    def _count(self, now: int) -> None:
        begin, state = self._since, self._state
        if state is None or now <= begin:
            return
        self.states[state.value] += now - begin
        if state in (State.TERMINATED, State.BIRTH):
            return
        if state is not State.ATTACHED:
            self.unattached.add(begin, now)
        if self._bound is None:
            self.unbound.add(begin, now)
            self.dark.add(begin, now)
            return
        for silent_from, silent_to in self.trace.silent_within(self._bound, begin, now):
            self.dark.add(silent_from, silent_to)

    def document(self) -> dict[str, Any]:
        """For programs; times in ms."""
        return {
            "unable_to_pass": _stretches(self.dark), "transportless": _stretches(self.unbound),
            "not_attached": _stretches(self.unattached), "switches": self.switches,
            "denials": dict(sorted(self.denials.items())), "episodes": self.episodes,
            "state_ms": {state: _ms(spent) for state, spent in sorted(self.states.items())},
            "final_state": self.final, "final_reason": self.reason,
        }  # fmt: skip


def _stretches(found: Stretches) -> dict[str, Any]:
    return {"count": found.count, "total_ms": _ms(found.total), "longest_ms": _ms(found.longest)}


def _ms(spent: int) -> float:
    return round(spent / MILLISECOND, 3)
