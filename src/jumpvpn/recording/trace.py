"""What a client's recording tells of the world: which transports there were, when each was silent, how long it took."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.session.state import Session
from jumpvpn.transports.state import Condition
from jumpvpn.values import MILLISECOND, Instant, Now, TransportId

OWN_ORDERS = (inp.Tick, inp.CommitEnded, inp.ReattachAnswered, inp.RekeyAnswered, inp.PathSilent, inp.PathDead)
"""Inputs that depend on what the engine did or on its limits: the model makes its own."""

ALIVE = (inp.PathHeard, inp.PathValidated, inp.StandbyAnswered, inp.ReattachAnswered, inp.Hinted)
"""The transport brought something back."""

PATIENCE = 4  # round-trip times without an answer, of which a request that has to prove its address takes two
DEFAULT_RTT = 100 * MILLISECOND  # where the recording has measured none
NEVER = Instant(2**63 - 1)


@dataclass(slots=True)
class Silence:
    """From ``begin`` (the first send that was never reported) to ``end``; ``carried``: the session was bound to it.

    ``busy``: data was owed, not only the answer to a probe. ``broken``: it ended because something came back.
    """

    begin: int
    busy: bool
    carried: bool
    end: int = NEVER
    broken: bool = False


@dataclass(slots=True)
class Trace:
    """Everything that does not depend on policy. ``seen`` are the inputs that any policy would have got, in order."""

    seen: list[tuple[Now, Any]] = field(default_factory=list)
    silences: dict[TransportId, list[Silence]] = field(default_factory=dict)
    rtts: dict[TransportId, list[tuple[int, int]]] = field(default_factory=dict)  # (when, ns)
    hints: dict[int, int] = field(
        default_factory=dict
    )  # instant of a hint -> when the gateway is known to have forgotten
    first: Now | None = None
    last: Now | None = None
    told_policies: int = 0
    denied_by_gateway: int = 0
    _bound: TransportId | None = None
    _local: dict[TransportId, str] = field(default_factory=dict)
    _forgotten_at: int | None = None
    _asked: tuple[TransportId, int] | None = None
    _heard: dict[TransportId, int] = field(default_factory=dict)

    def begin(self, engine: ClientEngine) -> None:
        """Transports that are silent when the recording begins."""
        self._bound = _bound(engine.session)
        for known in engine.transports.values():
            self._local[known.id] = known.local
            self.rtts[known.id] = [(0, known.rtt_ns)] if known.rtt_ns else []
            if known.condition in (Condition.SILENT, Condition.DEAD):
                self.silences[known.id] = [Silence(known.since, busy=True, carried=known.id == self._bound)]

    def add(self, event: Any, now: Now, engine: ClientEngine, orders: list[out.Output]) -> None:
        """One input; ``engine`` as it is after it, and what it ordered."""
        session = engine.session
        self.first, self.last = self.first or now, now
        transport = getattr(event, "transport", None)
        if isinstance(event, inp.PathSilent):
            self._fell_silent(event, now, session)
        elif isinstance(event, inp.TransportsChanged):
            self._changed(event, now)
        elif isinstance(event, ALIVE) and transport is not None:
            self._answered(event, now)
        elif isinstance(event, inp.PathMeasured):
            self.rtts.setdefault(event.transport, []).append((now.boot, event.rtt_ns))
        self.told_policies += isinstance(event, inp.PolicyOffered) and event.policy is not None
        if not isinstance(event, OWN_ORDERS):
            self.seen.append((now, event))
        self._bound = _bound(session)
        for order in orders:
            if isinstance(order, out.AskReattach):
                self._asked = (order.transport, now.boot)
            elif isinstance(order, out.AbandonReattach):
                self._unanswered(engine.book.here, now)

    def close(self) -> None:
        """All inputs were added."""
        if self.last is not None:
            self._unanswered(lambda transport: transport in self._local, self.last)

    def silence(self, transport: TransportId, at: int) -> Silence | None:
        """The silence that covers ``at``, or None."""
        found = self.silences.get(transport, [])
        return next((silence for silence in reversed(found) if silence.begin <= at < silence.end), None)

    def silent_within(self, transport: TransportId, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts of ``begin``..``end`` in which nothing came back over the transport."""
        return [
            (max(begin, s.begin), min(end, s.end))
            for s in self.silences.get(transport, [])
            if s.begin < end and s.end > begin
        ]

    def rtt(self, transport: TransportId, at: int) -> int:
        """The round-trip time (ns) known last at ``at``, else the first one after it."""
        found = self.rtts.get(transport) or [(0, DEFAULT_RTT)]
        return found[max(0, bisect_right(found, (at, NEVER)) - 1)][1] or DEFAULT_RTT

    def _fell_silent(self, fact: inp.PathSilent, now: Now, session: Session | None) -> None:
        found = self.silences.setdefault(fact.transport, [])
        if found and found[-1].end == NEVER:
            return
        idle = session is not None and fact.limit_ns >= session.policy.volatility.silence_limit_idle()
        begin = max(now.boot - fact.silent_ns, found[-1].end if found else 0)
        found.append(Silence(begin, not idle, fact.transport == self._bound))

    def _unanswered(self, here: Callable[[TransportId], Any], now: Now) -> None:
        """A request that nothing answered, although the transport was there, shows it silent from then on."""
        asked, self._asked = self._asked, None
        if asked is None or not here(asked[0]):
            return
        transport, begin = asked
        found = self.silences.setdefault(transport, [])
        patient = now.boot - begin > PATIENCE * self.rtt(transport, now.boot)
        heard = self._heard.get(transport, 0) > begin
        if patient and not heard and not (found and found[-1].end > begin):
            found.append(Silence(begin, busy=True, carried=False))

    def _changed(self, event: inp.TransportsChanged, now: Now) -> None:
        here = {seen.id: seen.local for seen in event.reachable}
        for transport in self.silences:
            if here.get(transport) != self._local.get(transport):
                self._end(transport, now, broken=False)
        self._local = here

    def _answered(self, event: Any, now: Now) -> None:
        self._end(event.transport, now, broken=True)
        self._heard[event.transport] = now.boot
        if isinstance(event, inp.Hinted):
            self._forgotten_at = now.boot if self._forgotten_at is None else self._forgotten_at
            self.hints[now.boot] = self._forgotten_at
        elif isinstance(event, inp.PathValidated | inp.StandbyAnswered) and event.rtt_ns:
            self.rtts.setdefault(event.transport, []).append((now.boot, event.rtt_ns))
        elif isinstance(event, inp.ReattachAnswered):
            self._answered_request(event, now)
            self._forgotten_at = None if event.status == "committed" else self._forgotten_at
            self.denied_by_gateway += event.status == "denied"

    def _answered_request(self, event: inp.ReattachAnswered, now: Now) -> None:
        """How long a request took, at the moment of asking: figures measured before may be old."""
        asked, self._asked = self._asked, None
        if asked is not None and asked[0] == event.transport:
            insort(self.rtts.setdefault(event.transport, []), (asked[1], now.boot - asked[1]))

    def _end(self, transport: TransportId, now: Now, *, broken: bool) -> None:
        found = self.silences.get(transport)
        if found and found[-1].end == NEVER:
            found[-1].end, found[-1].broken = max(now.boot, found[-1].begin), broken


def _bound(session: Session | None) -> TransportId | None:
    return session.binding.transport if session is not None and session.binding is not None else None
