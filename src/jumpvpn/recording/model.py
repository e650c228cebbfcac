"""A client's engine in the world of a trace: what it orders is answered by a small model of gateway and networks."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.recording.ledger import Ledger
from jumpvpn.recording.trace import NEVER, Trace
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.transports.state import Condition
from jumpvpn.values import MILLISECOND, SECOND, Epoch, Instant, Now, TransportId, Version

RESEND = 100 * MILLISECOND  # a client repeats its reattach request that often until it is answered or given up
REKEY_LIFE = 16 * SECOND  # then the packet core gives an unanswered rekey up
ANSWERS_MAX = 1 << 16  # under way at a time; an engine orders a handful
STILL_MAX = 64  # wake-ups at one instant: more are a loop

ASSUMPTIONS = (
    "commits succeed at once; the gateway grants whatever the client's policy allows",
    "a request, challenge or rekey is answered one round-trip time later (as last measured), or two if unvalidated",
    "only what is sent or repeated while the recording shows the transport alive is answered",
    "a transport is silent from its first unreported send until something comes back over it",
    "silence is noticed by this policy's limits: the busy one where only under this policy it carries the session",
    "silences shorter than the recorded limits are in no recording: a policy with shorter limits may notice more",
    "operators, netlink, the peer and measurements tell the same at the same time as recorded",
)


class Restless(Exception):
    """The engine asks for time again and again without end: the model does not fit the recording."""


@dataclass(slots=True)
class _Watch:
    """How far the silences of one transport have been told: the present one, and what the engine knows of it."""

    index: int = 0
    silent: bool = False
    dead: bool = False

    def next(self) -> None:
        """The present one is over."""
        self.index, self.silent, self.dead = self.index + 1, False, False


@dataclass(slots=True)
class Model:
    """``run`` feeds ``engine`` until the trace ends; ``ledger`` follows.

    ``adapt`` gives an observation as this policy would have got it, or None if it would not.
    """

    engine: ClientEngine
    trace: Trace
    ledger: Ledger
    adapt: Callable[[Any], Any]
    at: int = 0
    _watches: dict[TransportId, _Watch] = field(default_factory=dict)
    _answers: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _request: out.AskReattach | None = None
    _committed_at: int = -1

    def run(self, progress: Callable[[int], None]) -> None:
        """From the first input to the last. Raises Restless."""
        first, last = self.trace.first, self.trace.last
        if first is None or last is None:
            return
        self.at = first.boot
        for transport, known in self.engine.transports.items():
            lost = known.condition is Condition.DEAD
            self._watches[transport] = _Watch(0, lost or known.condition is Condition.SILENT, lost)
        self.ledger.look(self.at, self.engine.session)
        for number, (now, event) in enumerate(self.trace.seen):
            self._until(now.boot)
            self._observe(now, event)
            progress(number)
        self._until(last.boot)
        self.ledger.look(last.boot, self.engine.session)

    @property
    def _over(self) -> bool:
        session = self.engine.session
        return session is not None and session.state is State.TERMINATED

    # --- time --------------------------------------------------------------------------------------------------------

    def _until(self, end: int) -> None:
        """Let everything happen that happens by ``end``."""
        still = 0
        while not self._over:
            wakeup = self.engine.next_wakeup()
            silence = min(
                ((due, name) for name in self.trace.silences if (due := self._due(name)) != NEVER), default=None
            )
            answer = self._answers[0][0] if self._answers else NEVER
            due = min(NEVER if wakeup is None else wakeup, NEVER if silence is None else silence[0], answer)
            if due > end:
                break
            still = 0 if due > self.at else still + 1
            if still > STILL_MAX:
                raise Restless(f"the model does not come to rest at boot time {self.at / 1e9:.3f} s")
            self.at = max(self.at, due)
            if answer <= self.at:
                heapq.heappop(self._answers)[2]()
            elif silence is not None and silence[0] <= self.at:
                self._tell_silence(silence[1])
            else:
                self._feed(inp.Tick())
        self.at = max(self.at, end)

    def _after(self, delay: int, action: Callable[[], None]) -> None:
        self._count += 1
        if len(self._answers) < ANSWERS_MAX:
            heapq.heappush(self._answers, (self.at + delay, self._count, action))

    # --- silence -----------------------------------------------------------------------------------------------------

    def _due(self, transport: TransportId) -> int:
        """When something has to be told or noted of the transport's present silence."""
        found, watch = self.trace.silences[transport], self._watches.setdefault(transport, _Watch())
        if watch.index >= len(found):
            return NEVER
        silence, limits, session = found[watch.index], self.engine.liveness(transport), self.engine.session
        known = self.engine.book.here(transport)
        if limits is None or session is None or known is None or known.path is None or watch.dead:
            return silence.end
        carries = session.binding is not None and session.binding.transport == transport
        busy = silence.busy if carries == silence.carried else carries
        limit = limits.silence_busy if busy else limits.silence_idle
        return min(silence.begin + limit * (limits.dead_factor if watch.silent else 1), silence.end)

    def _tell_silence(self, transport: TransportId) -> None:
        silence, watch = self.trace.silences[transport][self._watches[transport].index], self._watches[transport]
        session, uid = self.engine.session, self._uid
        spent = self.at - silence.begin
        if self.at >= silence.end:
            told = watch.silent and silence.broken
            watch.next()
            if told and session is not None:
                self._feed(inp.PathValidated(uid, transport, self._peer(transport), self.trace.rtt(transport, self.at)))
                self._feed(inp.PathHeard(uid, transport))
        elif not watch.silent:
            watch.silent = True
            self._feed(inp.PathSilent(uid, transport, spent, spent))
        else:
            watch.dead = True
            self._feed(inp.PathDead(uid, transport, spent))

    def _alive(self, transport: TransportId) -> bool:
        return self.engine.book.here(transport) is not None and self.trace.silence(transport, self.at) is None

    # --- observations ------------------------------------------------------------------------------------------------

    def _observe(self, now: Now, recorded: Any) -> None:
        if self._over or isinstance(recorded, inp.PathHeard):  # told where this policy noticed the silence
            return
        known = self.engine.transports.get(getattr(recorded, "transport", TransportId("")))
        if isinstance(recorded, inp.PathValidated):
            if known is None or known.validated or not self._alive(known.id):
                return
        elif isinstance(recorded, inp.StandbyAnswered):
            if not self._alive(recorded.transport):
                return
        elif isinstance(recorded, inp.Hinted) and self._committed_at >= self.trace.hints[now.boot]:
            return  # here the gateway has been told the session's new epoch meanwhile
        event = self.adapt(recorded)
        if event is not None:
            self._feed(event)

    @property
    def _uid(self) -> str:
        session = self.engine.session
        return session.uid if session is not None else ""

    def _peer(self, transport: TransportId) -> str:
        return self.engine.transports[transport].peer

    # --- the engine --------------------------------------------------------------------------------------------------

    def _feed(self, event: Any) -> None:
        self._carry_out(self.engine.handle(event, self._now()))
        self.ledger.look(self.at, self.engine.session)

    def _carry_out(self, orders: list[out.Output]) -> None:
        for order in orders:
            if isinstance(order, out.Commit):
                self.ledger.happened(order.events)
                ended = inp.CommitEnded(order.uid, order.serial, "committed")
                self._carry_out(self.engine.handle(ended, self._now()))
            elif isinstance(order, out.Emit):
                self.ledger.happened(order.events)
            else:
                self._answer(order)

    def _answer(self, order: out.Output) -> None:
        match order:
            case out.ChallengePath() if self._alive(order.transport):
                self._after(self.trace.rtt(order.transport, self.at), lambda: self._prove(order.transport))
            case out.AskReattach():
                self._request = order
                self._ask(order)
            case out.AbandonReattach():
                self._request = None
            case out.OpenPath():
                watch = self._watches.setdefault(order.transport, _Watch())
                watch.silent = watch.dead = False
            case out.AskRekey():
                self._rekey(Instant(self.at))

    def _prove(self, transport: TransportId) -> None:
        if self._alive(transport):
            rtt, book = self.trace.rtt(transport, self.at), self.engine.book
            if book.is_away(self.engine.transports[transport], self.engine.session):
                draining = self.engine.transports[transport].gateway in book.gateways.draining
                self._feed(inp.StandbyAnswered(self._uid, transport, rtt, draining))
            else:
                self._feed(inp.PathValidated(self._uid, transport, self._peer(transport), rtt))

    def _ask(self, order: out.AskReattach) -> None:
        """Send the request, now and again."""
        if self._request is not order:
            return
        if not self._alive(order.transport):
            self._after(RESEND, lambda: self._ask(order))
            return
        trips = 1 if self.engine.transports[order.transport].validated else 2
        self._after(trips * self.trace.rtt(order.transport, self.at), lambda: self._grant(order))

    def _grant(self, order: out.AskReattach) -> None:
        if self._request is not order:
            return
        if not self._alive(order.transport):
            self._ask(order)
            return
        self._request, self._committed_at = None, self.at
        version = Version(order.expected_version + 1)
        self._feed(
            inp.ReattachAnswered(order.transport, "model", "committed", order.epoch, version, Reason.REATTACH_SUCCESS)
        )

    def _rekey(self, asked: Instant) -> None:
        session = self.engine.session
        if session is None or session.binding is None or self.at - asked > REKEY_LIFE:
            return
        transport = session.binding.transport
        if self._alive(transport):
            answer = inp.RekeyAnswered(Epoch(session.epoch + 1))
            self._after(self.trace.rtt(transport, self.at), lambda: self._rekeyed(answer))
        else:
            self._after(SECOND, lambda: self._rekey(asked))

    def _rekeyed(self, answer: inp.RekeyAnswered) -> None:
        session = self.engine.session
        if session is not None and session.state is State.ATTACHED and session.epoch + 1 == answer.epoch:
            self._feed(answer)

    def _now(self) -> Now:
        first = self.trace.first
        assert first is not None, "a model runs from the first input on"
        return Now(Instant(self.at), first.wall_ms + (self.at - first.boot) // MILLISECOND)
