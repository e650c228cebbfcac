"""A client's engine among several gateways: a packet core, networks and gateways as small as they can be.

Gateways share one record: whoever grants a reattach owns the session from then on. Each (interface, gateway) may be
blocked alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Epoch, Instant, Now, SessionId, TransportId, Version

START = 1_000 * SECOND
RTT = 20 * MILLISECOND
RESEND = 100 * MILLISECOND
ID = SessionId(bytes(range(16)))


@dataclass(slots=True)
class Gateway:
    """One gateway as the client meets it. ``denies``: the reason with which it refuses every request."""

    name: str
    alive: bool = True
    draining: bool = False
    denies: Reason | None = None
    asked: int = 0


@dataclass(slots=True)
class Path:
    """One open path of the packet core."""

    transport: TransportId
    index: int
    opened: int
    limits: out.TuneLiveness | None = None
    owed: int | None = None  # since when an answer or a report is missing
    state: str = "new"  # new: its next answer is a fact; alive, silent, dead


@dataclass(slots=True)
class Fleet:
    """``run`` lets time pass; tests kill, drain and block, then look at the session and at ``orders``."""

    interfaces: tuple[str, ...] = ("wlan0",)
    names: tuple[str, ...] = ("gw1", "gw2")
    rules: Policy = field(default_factory=Policy)
    now: int = START
    traffic: bool = True
    home: str = ""
    active: TransportId | None = None
    blocked: set[TransportId] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)
    events: list[tuple[int, DomainEvent]] = field(default_factory=list)
    orders: list[tuple[int, Any]] = field(default_factory=list)
    paths: dict[TransportId, Path] = field(default_factory=dict)
    version: int = 1
    epoch: int = 1

    engine: ClientEngine = field(init=False)
    gateways: dict[str, Gateway] = field(init=False)
    _queue: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _request: out.AskReattach | None = None
    _committed: out.AskReattach | None = None

    def __post_init__(self) -> None:
        self.engine = ClientEngine(self.rules)
        self.gateways = {name: Gateway(name) for name in self.names}

    # --- what tests do -----------------------------------------------------------------------------------------------

    def start(self, first: str = "wlan0/udp/gw1") -> Fleet:
        """Born on ``first``; every other transport is proven a second later."""
        self.tell_network()
        transport = TransportId(first)
        self.home, self.active = transport.split("/")[2], transport
        answered = inp.HandshakeAnswered(ID, transport, _peer(transport), "c0ffee", self.rules, Version(1))
        self.feed(answered)
        for path in self.paths.values():  # the packet core knows the session's paths only now
            path.index = self._index(path.transport)
            path.opened, path.state, path.owed = self.now, "new", None
            self._probe(path)
        self.run(1)
        return self

    def tell_network(self, evidence: dict[TransportId, str] | None = None) -> None:
        """Which transports there are now."""
        usable = [
            inp.Reachable(t, *t.split("/"), _peer(t), "10.0.0.2") for t in self.transports()
        ]  # fmt: skip
        self.feed(inp.TransportsChanged(tuple(usable), evidence or {}))

    def transports(self) -> list[TransportId]:
        """Those whose interface is here and whose gateway is wanted."""
        interfaces = [name for name in self.interfaces if name not in self.gone]
        names = [name for name in self.gateways if name not in self.unwanted]
        return [TransportId(f"{interface}/udp/{name}") for interface in interfaces for name in names]

    def down(self, interface: str) -> None:
        """An interface vanishes; netlink tells."""
        self.gone.add(interface)
        self.tell_network()

    def block(self, interface: str) -> None:
        """Nothing passes over an interface any more, and nobody says so."""
        self.blocked |= {TransportId(f"{interface}/udp/{name}") for name in self.gateways}

    def kill(self, name: str) -> None:
        """A gateway dies without a word."""
        self.gateways[name].alive = False

    def drain(self, name: str, *, on: bool = True) -> None:
        """A gateway tells its clients, and whoever asks, that it leaves."""
        self.gateways[name].draining = on
        if self.home == name and self.active is not None:
            self.feed(inp.DrainTold(ID.uid, self.active, on))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.until(lambda: False, seconds, must=False)

    def until(self, done: Callable[[], bool], seconds: float, *, must: bool = True) -> float:
        """Let time pass until ``done``; how long (s) it took."""
        begin, end = self.now, self.now + int(seconds * SECOND)
        while not done():
            due = min((self._queue[0][0] if self._queue else end + 1, self.engine.next_wakeup() or end + 1))
            if due > end:
                self.now = end
                break
            self.now = max(self.now, due)
            if self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            else:
                self.feed(inp.Tick())
        assert done() or not must, f"not within {seconds} s: {self.changes()}, {self.engine.transports}"
        return (self.now - begin) / SECOND

    # --- what tests look at ------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The client's record."""
        assert self.engine.session is not None
        return self.engine.session

    def is_on(self, transport: str) -> bool:
        """Whether the session is ATTACHED to ``transport``, and the packet core as well."""
        bound = self.session.binding
        attached = self.session.state.value == "ATTACHED" and bound is not None and bound.transport == transport
        return attached and self.active == transport

    def named(self, name: str) -> list[DomainEvent]:
        """All events of a kind."""
        return [event for _, event in self.events if event.name == name]

    def changes(self) -> list[str]:
        """Every change of state, in words."""
        found = self.named("session.state_change")
        return [f"{e.prev_state}>{e.state} {e.reason}" for e in found]

    def ordered(self, kind: type) -> list[Any]:
        """All orders of a kind."""
        return [order for _, order in self.orders if isinstance(order, kind)]

    # --- the engine --------------------------------------------------------------------------------------------------

    def feed(self, event: Any) -> None:
        """One input; its orders are carried out, its commits succeed."""
        for order in self.engine.handle(event, Now(Instant(self.now), 0)):
            self._carry_out(order)

    def _carry_out(self, order: Any) -> None:
        self.orders.append((self.now, order))
        match order:
            case out.Commit():
                self.events += [(self.now, event) for event in order.events]
                self.feed(inp.CommitEnded(order.uid, order.serial, "committed"))
            case out.Emit():
                self.events += [(self.now, event) for event in order.events]
            case out.OpenPath():
                self._open(order)
            case out.ClosePath():
                del self.paths[order.transport]
                self.active = None if self.active == order.transport else self.active
            case out.TuneLiveness() if order.transport in self.paths:
                self.paths[order.transport].limits = order
            case out.ChallengePath() if order.transport in self.paths:
                self._ask_path(self.paths[order.transport])
            case out.Activate():
                self.active = order.transport
            case out.Deactivate():
                self.active = None
            case _:
                self._reattach(order)

    def _reattach(self, order: Any) -> None:
        match order:
            case out.AskReattach():
                assert order.epoch > self.epoch, "an epoch is never asked for twice"
                assert order.transport in self.paths, "a request needs a path"
                self._request = order
                self._send(order)
            case out.AbandonReattach():
                self._request = self._committed = None
            case out.FinishReattach():
                self._finish(order)

    def _finish(self, order: out.FinishReattach) -> None:
        assert self._committed is not None, "there is an answer to finish"
        assert self._committed.transport == order.transport
        self._committed = None
        before, self.home = self.home, order.transport.split("/")[2]
        assert (order.handover == "same") == (before == self.home), "the packet core has to know that it moved"
        self.active = order.transport
        for path in self.paths.values():  # the ways are set anew
            path.owed = None
            if before != self.home:
                path.state = "new"

    # --- paths -------------------------------------------------------------------------------------------------------

    def _open(self, order: out.OpenPath) -> None:
        assert 0 <= order.path < 8, "a path index has three bits"
        assert order.transport not in self.paths, "one socket per transport"
        assert all(path.index != order.path for path in self.paths.values()), "one transport per path index"
        path = Path(order.transport, order.path, self.now)
        self.paths[order.transport] = path
        if self.home:
            self._probe(path)

    def _index(self, transport: TransportId) -> int:
        index = self.engine.transports[transport].path
        assert index is not None
        return index

    def _passes(self, transport: TransportId) -> bool:
        interface, _, name = transport.split("/")
        return self.gateways[name].alive and transport not in self.blocked and interface not in self.gone

    def _is_current(self, path: Path) -> bool:
        return self.paths.get(path.transport) is path

    def _probe(self, path: Path) -> None:
        """The next of the probes that every path sends."""
        if not self._is_current(path):
            return
        self._ask_path(path, told=False)
        busy = self.traffic or self.active is None
        interval = path.limits is None or (path.limits.probe_busy if busy else path.limits.probe_idle)
        self._after(interval if interval is not True else RTT, lambda: self._probe(path))

    def _ask_path(self, path: Path, *, told: bool = True) -> None:
        sent = self.now
        path.owed = self.now if path.owed is None else path.owed
        self._watch(path)
        if self._passes(path.transport):
            self._after(RTT, lambda: self._answered(path, sent, told=told))

    def _watch(self, path: Path) -> None:
        if path.limits is not None and path.owed is not None:
            begin, limits = path.owed, path.limits
            carries = path.transport == self.active and self.traffic
            limit = limits.silence_busy if carries else limits.silence_idle
            self._after(begin + limit - self.now, lambda: self._silent(path, begin, limit))
            self._after(begin + limit * limits.dead_factor - self.now, lambda: self._dead(path, begin))

    def _silent(self, path: Path, begin: int, limit: int) -> None:
        if self._is_current(path) and path.owed == begin and path.state in ("new", "alive"):
            path.state = "silent"
            self.feed(inp.PathSilent(ID.uid, path.transport, self.now - begin, limit))

    def _dead(self, path: Path, begin: int) -> None:
        if self._is_current(path) and path.owed == begin and path.state == "silent":
            path.state = "dead"
            self.feed(inp.PathDead(ID.uid, path.transport, self.now - begin))

    def _answered(self, path: Path, sent: int, *, told: bool) -> None:
        if not self._is_current(path) or not self._passes(path.transport):
            return
        if path.owed is not None and path.owed <= sent:
            path.owed = None
        quiet, path.state = path.state, "alive"
        name = path.transport.split("/")[2]
        if not told and quiet == "alive":
            return
        if name == self.home:
            self.feed(inp.PathValidated(ID.uid, path.transport, _peer(path.transport), RTT))
            self.feed(inp.PathMeasured(ID.uid, path.transport, RTT, RTT // 8, 0.0, 0.0))
            if quiet in ("silent", "dead"):
                self.feed(inp.PathHeard(ID.uid, path.transport))
        else:
            self.feed(inp.StandbyAnswered(ID.uid, path.transport, RTT, self.gateways[name].draining))

    # --- reattach ----------------------------------------------------------------------------------------------------

    def _send(self, order: out.AskReattach) -> None:
        if self._request is not order:
            return
        if self._passes(order.transport):
            self._after(RTT, lambda: self._decide(order))
        self._after(RESEND, lambda: self._send(order))

    def _decide(self, order: out.AskReattach) -> None:
        if self._request is not order or not self._passes(order.transport):
            return
        self._request = None
        gateway = self.gateways[order.transport.split("/")[2]]
        gateway.asked += 1
        leaves = gateway.draining and gateway.name != self.home
        refusal = gateway.denies or (Reason.GATEWAY_DRAIN if leaves else None)
        if refusal is not None:
            self._tell(order, "denied", refusal)
            return
        assert order.epoch > self.epoch
        self.version, self.epoch, self._committed = self.version + 1, order.epoch, order
        self._tell(order, "committed", Reason.REATTACH_SUCCESS)

    def _tell(self, order: out.AskReattach, status: str, reason: Reason) -> None:
        epoch, version = Epoch(order.epoch), Version(self.version)
        self.feed(inp.ReattachAnswered(order.transport, f"{self.now}", status, epoch, version, reason))

    def _after(self, delay: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0, delay), self._count, action))


def _peer(transport: TransportId) -> str:
    return f"{transport.split('/')[2]}:51900"
