"""A small world under a virtual clock: one client, one gateway (which may restart), links between them.

Commits are answered after a delay, in or out of turn, as ``client_store`` and ``gateway_store`` say. Every turn is
watched: versions and epochs rise, no wake-up stays in the past without progress.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from build import ID, policy
from net import ClientPlane, GatewayPlane, Link

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.policy.model import Policy
from jumpvpn.session import records
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, State
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, DomainEvent, Instant, Now, SessionId, TransportId, Version

LINKS = ("wlan0", "eth0")
GATEWAY = "192.0.2.1:51820"
WALL_MS = 1_700_000_000_000
PLANE_TICK = 50 * MILLISECOND
IDLE_TURNS = 16  # wake-ups at one instant that change nothing: more are a loop


@dataclass
class Wire(Link):
    """A link with loss that measurements show."""

    loss: float = 0.0
    local: str = ""


@dataclass
class StoreModel:
    """How commits end: ``verdict(order)`` gives the result, ``delay`` the time that it takes."""

    delay: int = 0
    verdict: Callable[[out.Commit], str] = lambda _order: "committed"
    rows: dict[str, bytes] = field(default_factory=dict)


class World:
    """``run(seconds)`` lets time pass; tests change links, post inputs, and look at sessions and events."""

    def __init__(
        self, rules: Policy | None = None, *, gateway_rules: Policy | None = None, links: tuple[str, ...] = LINKS
    ) -> None:
        self.now = 1_000 * SECOND
        self.client_rules, self.gateway_rules = rules or policy(), gateway_rules or rules or policy()
        self.skew_ms = 0
        self.traffic, self.zero_rtt, self.measures = True, True, False
        self.links: dict[TransportId, Wire] = {
            self.id(name): Wire(f"10.{i}.0.2:5000", local=f"10.{i}.0.2") for i, name in enumerate(links)
        }
        self.client = ClientEngine(self.client_rules)
        self.gateway: GatewayEngine | None = GatewayEngine(self.gateway_rules)
        self.client_plane = ClientPlane(self)
        self.gateway_planes: dict[str, GatewayPlane] = {}
        self.client_store, self.gateway_store = StoreModel(), StoreModel()
        self.events: list[tuple[str, int, DomainEvent]] = []
        self.turns: list[tuple[str, Any]] = []
        self.sealed: list[tuple[str, Session]] = []
        self.uid = ID.uid
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._idle = {"client": (0, 0), "gateway": (0, 0)}
        self.after(PLANE_TICK, self._plane_tick)

    @staticmethod
    def id(name: str) -> TransportId:
        """The transport over interface ``name``."""
        return TransportId(f"{name}/udp/gw1")

    # --- what tests do -----------------------------------------------------------------------------------------------

    def start(self, first: str = "wlan0") -> World:
        """Handshake on ``first``; returns once both sides are ATTACHED and all links validated."""
        self._netlink()
        transport = self.id(first)
        self._offer(ID, transport)
        self.run(0)
        assert self.client_plane.key is None
        self.client_plane.uid, self.client_plane.key = self.uid, 1
        self.client_plane.install(1)
        self._birth_path(transport)
        self.post("client", inp.HandshakeAnswered(ID, transport, GATEWAY, "c0ffee", self.client_rules, Version(1)))
        self.run(1)
        assert self.states() == ("ATTACHED", "ATTACHED")
        return self

    def _birth_path(self, transport: TransportId) -> None:
        paths = self.client_plane.paths
        mine = next(i for i, p in paths.items() if p.transport == transport)
        paths[0], paths[mine] = paths[mine], paths[0]
        self.client_plane.active = 0

    def _offer(self, session: SessionId, transport: TransportId, *, timestamp: int = 1) -> None:
        plane = GatewayPlane(self, session.uid)
        self.gateway_planes[session.uid] = plane
        address = self.links[transport].address
        self.post("gateway", inp.HandshakeOffered(1, session, b"device", "c0ffee", address, timestamp))
        plane.born(address, transport)

    def supersede(self, name: str) -> str:
        """The same device completes another handshake over ``name``; returns the newer session's uid."""
        newer = SessionId(b"\1" * 16)
        self._offer(newer, self.id(name), timestamp=2)
        return newer.uid

    def down(self, *names: str) -> None:
        """Interfaces vanish; netlink tells."""
        for name in names:
            self.links[self.id(name)].up = False
        self._netlink()

    def up(self, *names: str) -> None:
        """Interfaces are back."""
        for name in names:
            self.links[self.id(name)].up = True
        self._netlink()

    def blackhole(self, *names: str) -> None:
        """Packets vanish without a word."""
        for name in names:
            self.links[self.id(name)].passes = False

    def heal(self, *names: str) -> None:
        """Packets pass again."""
        for name in names:
            self.links[self.id(name)].passes = True

    def rebind(self, name: str, address: str) -> None:
        """A NAT forgets: the gateway sees another address from now on."""
        self.links[self.id(name)].address = address

    def stop_gateway(self) -> None:
        """The gateway's process is gone; its store stays."""
        self.gateway = None
        self.gateway_planes.clear()

    def start_gateway(self) -> None:
        """A new process reads the store."""
        self.gateway = GatewayEngine(self.gateway_rules)
        for uid, body in self.gateway_store.rows.items():
            session, kept = records.decode(body, self.gateway_rules, self.clock(), "boot")
            if session.state is State.TERMINATED:
                continue
            plane = self.gateway_planes[uid] = GatewayPlane(self, uid)
            plane.install(session.epoch)
            self.post("gateway", inp.SessionRestored(session, kept.device))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + int(seconds * SECOND)
        while (at := self._next()) is not None and at <= end:
            self.now = max(self.now, at)
            self._wake("client", self.client.next_wakeup())
            self._wake("gateway", self.gateway.next_wakeup() if self.gateway is not None else None)
            while self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
        self.now = end

    def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Let time pass until ``condition``; fails after ``seconds``. Returns how long it took."""
        begin = self.now
        while not condition():
            assert self.now - begin <= seconds * SECOND, f"still {self.states()} after {seconds} s"
            self.run(0.05)
        return (self.now - begin) / SECOND

    def states(self) -> tuple[str, str]:
        """State of both ends."""
        client, gateway = self.client.session, self.gateway_session
        return (client.state.value if client else "-", gateway.state.value if gateway else "-")

    @property
    def gateway_session(self) -> Session | None:
        """The gateway's committed record."""
        return self.gateway.session(self.uid) if self.gateway is not None else None

    @property
    def active(self) -> str | None:
        """Interface that carries the session, if both ends agree and it carries packets both ways."""
        plane, other = self.client_plane, self.gateway_planes.get(self.uid)
        if plane.active is None or other is None or other.active != plane.active or other.key not in plane.open:
            return None
        transport = plane.paths[plane.active].transport
        link = self.links[transport]
        works = link.up and link.passes and other.paths[other.active].peer == link.address
        return transport.split("/")[0] if works and plane.key in other.open else None

    def names(self, side: str, name: str) -> list[DomainEvent]:
        """Events of one kind from one end."""
        return [event for who, _, event in self.events if who == side and event.name == name]

    def changes(self, side: str) -> list[str]:
        """Every change of state of one end, in words."""
        found = self.names(side, "session.state_change")
        return [f"{e.prev_state}>{e.state} {e.reason}" for e in found if e.session == self.uid]

    # --- what planes do ----------------------------------------------------------------------------------------------

    def clock(self) -> Now:
        """The clocks as the gateway reads them."""
        return Now(Instant(self.now), WALL_MS + self.now // MILLISECOND)

    def clock_of(self, side: str) -> Now:
        """One side's reading: boot time runs alike everywhere, the client's wall clock may be off by ``skew_ms``."""
        now = self.clock()
        return replace(now, wall_ms=now.wall_ms + self.skew_ms) if side == "client" else now

    def number(self) -> int:
        """A fresh number."""
        self._count += 1
        return self._count

    def after(self, delay: int, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now + delay, self.number(), action))

    def post(self, side: str, event: Any) -> None:
        """Queue an input of one end's engine."""
        self.after(0, lambda: self._handle(side, event))

    def link(self, transport: TransportId) -> Wire:
        """The client's link, or (at the gateway) one with no loss of its own."""
        return self.links.get(transport, Wire(""))

    def opened(self, _transport: TransportId) -> None:
        """A socket was opened."""

    def carry(self, transport: TransportId, kind: str, _to: str, index: int, content: dict[str, Any]) -> None:
        """From the client to the gateway."""
        link = self.links[transport]
        if link.up and link.passes and not link.drop(kind):
            address = link.address
            self.after(link.delay, lambda: self._arrive(kind, index, address, content))

    def _arrive(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        plane = self.gateway_planes.get(self.uid)
        if plane is not None and self.gateway is not None:
            plane.receive(kind, index, address, content)

    def carry_back(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """From the gateway to the client."""
        link = next((link for link in self.links.values() if link.address == address), None)
        if link is not None and link.up and link.passes and not link.drop(kind):
            self.after(link.delay, lambda: self.client_plane.receive(kind, index, address, content))

    # --- turns -------------------------------------------------------------------------------------------------------

    def _next(self) -> int | None:
        wakeups = [self.client.next_wakeup(), self.gateway.next_wakeup() if self.gateway is not None else None]
        moments = [int(at) for at in wakeups if at is not None] + [at for at, _, _ in self._queue[:1]]
        return min(moments, default=None)

    def _wake(self, side: str, due: Instant | None) -> None:
        if due is None or due > self.now:
            return
        at, count = self._idle[side]
        self._idle[side] = (self.now, count + 1 if at == self.now else 1)
        assert self._idle[side][1] <= IDLE_TURNS, f"{side} wakes without progress in {self.states()}"
        self._handle(side, inp.Tick())

    def _handle(self, side: str, event: Any) -> None:
        engine = self.client if side == "client" else self.gateway
        if engine is None:
            return
        self.turns.append((side, event))
        for order in engine.handle(event, self.clock_of(side)):
            self._carry_out(side, order)

    def _carry_out(self, side: str, order: Any) -> None:
        if isinstance(order, out.Commit):
            self._commit(side, order)
        elif isinstance(order, out.Emit):
            self.events += [(side, self.now, event) for event in order.events]
        elif side == "client":
            self.client_plane.execute(order)
        else:
            uid = getattr(order, "uid", self.uid)
            if isinstance(order, (out.ChallengeReattach, out.RefuseReattach)):
                uid = next((u for u, p in self.gateway_planes.items() if order.request in p.pending), uid)
            if uid in self.gateway_planes:
                self.gateway_planes[uid].execute(order)

    def _commit(self, side: str, order: out.Commit) -> None:
        store = self.client_store if side == "client" else self.gateway_store
        result = store.verdict(order)
        if result == "committed":
            before = next((s for who, s in reversed(self.sealed) if who == side and s.id == order.session.id), None)
            self._lawful(order, before)
            self.sealed.append((side, order.session))
            kept = records.Kept(b"device", "c0ffee", ("10.9.0.2/32",))
            store.rows[order.uid] = records.encode(order.session, kept, self.clock(), "boot")
            self.events += [(side, self.now, event) for event in order.events]
        ended = inp.CommitEnded(order.uid, order.serial, result)
        process = self.gateway
        self.after(
            store.delay, lambda: self._handle(side, ended) if side == "client" or process is self.gateway else None
        )

    def _lawful(self, order: out.Commit, before: Session | None) -> None:
        after = order.session
        if before is None:
            assert order.expected_version is None
            return
        assert order.expected_version == before.version, "VERSION: the commit names the record it changes"
        assert after.version > before.version
        assert after.epoch >= before.epoch, "EPOCH never falls"
        assert before.state is not State.TERMINATED, "ABSORBING"
        recent = [at for at in after.switches if self.now - at < MINUTE]
        assert len(recent) <= max(after.policy.switching.max_per_minute, before.policy.switching.max_per_minute)

    def _netlink(self) -> None:
        reachable = tuple(
            inp.Reachable(t, t.split("/")[0], "udp", "gw1", GATEWAY, link.local)
            for t, link in self.links.items() if link.up
        )  # fmt: skip
        self.post("client", inp.TransportsChanged(reachable))

    def _plane_tick(self) -> None:
        self.after(PLANE_TICK, self._plane_tick)
        if self.client_plane.key is not None:
            self.client_plane.tick()
        if self.gateway is not None:
            for plane in self.gateway_planes.values():
                plane.tick()


__all__ = ["GATEWAY", "Reason", "World"]
