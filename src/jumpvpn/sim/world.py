"""One client, one gateway (which may restart), links between them, one virtual clock.

Commits are answered after a delay, in or out of turn, as ``client_store`` and ``gateway_store`` say. Every turn is
watched by ``checker``.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.policy.model import Policy
from jumpvpn.session import records
from jumpvpn.session.state import Session, State
from jumpvpn.sim.birth import DEVICE_KEY, DEVICE_NAME, GATEWAY, Handshake, Reception
from jumpvpn.sim.checker import Checker
from jumpvpn.sim.client_plane import ClientPlane, Request
from jumpvpn.sim.gateway_plane import GatewayPlane
from jumpvpn.sim.journals import BOOT, Journal
from jumpvpn.sim.link import Link
from jumpvpn.sim.plane import Side
from jumpvpn.sim.store import COMMITTED, CONFLICT, Store
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Epoch, Instant, Now, SessionId, TransportId
from jumpvpn.wire.welcome import Limits

LINKS = ("wlan0", "eth0")
START = 1_000 * SECOND  # boot time of machines that have run for a while
WALL_MS = 1_700_000_000_000
KEPT = records.Kept(DEVICE_KEY, DEVICE_NAME, ("10.9.0.2/32",))
ID_BYTES = 16


class World:
    """``run(seconds)`` lets time pass; whoever drives it changes links, posts inputs, looks at sessions and events.

    ``dice`` decides what links with loss, jitter or copies do to a datagram; ``journals`` keeps sealed event lines.
    """

    def __init__(
        self,
        rules: Policy | None = None,
        *,
        gateway_rules: Policy | None = None,
        links: tuple[str, ...] = LINKS,
        dice: random.Random | None = None,
        journals: bool = False,
    ) -> None:
        self.now: int = START
        self.dice = dice
        self.client_rules = rules or Policy()
        self.gateway_rules = gateway_rules or rules or Policy()
        self.limits: Limits | None = None  # what the gateway told with the welcome
        self.skew_ms = {"client": 0, "gateway": 0}
        self.zero_rtt, self.measures, self.asleep = True, False, False
        self.bad_welcome = False  # the next welcome cannot be read
        self.links = {self.id(n): Link(f"10.{i}.0.2:5000", f"10.{i}.0.2") for i, n in enumerate(links)}
        self.client_store, self.gateway_store = Store(), Store()
        self.events: list[tuple[str, int, DomainEvent]] = []
        self.requests: list[tuple[Request, str]] = []  # what an attacker on the way could copy
        self.turns = 0
        self.uid = ""
        self.checker = Checker(self)
        self.journals = {role: Journal(role) for role in ("client", "gateway")} if journals else {}
        self._traffic = True
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = self._ids = self._stamps = 0
        self._held: list[Any] = []
        self._due: dict[str, int | None] = {}
        self.handshake: Handshake | None = None
        self.gateway: GatewayEngine | None = None
        self.gateway_planes: dict[str, GatewayPlane] = {}
        self._begin_client()
        self.start_gateway()

    @staticmethod
    def id(name: str) -> TransportId:
        """The transport over interface ``name``."""
        return TransportId(f"{name}/udp/gw1")

    # --- processes ---------------------------------------------------------------------------------------------------

    def _begin_client(self) -> None:
        self.client = ClientEngine(self.client_rules)
        self.client_plane = ClientPlane(self)
        if self.handshake is not None:
            self.handshake.done = True
        self.handshake = None
        self._held.clear()
        self._due.pop("client", None)
        self.checker.started("client")
        if self.journals:
            self.journals["client"].start(self.client_rules, self.clock_of("client"))

    def be_born(self, only: TransportId | None = None) -> None:
        """The client looks at its interfaces and offers its key, over ``only`` or over what it chooses."""
        if self.handshake is not None:
            self.handshake.done = True
        self.tell_network()
        self.handshake = Handshake(self, only)

    def restart_client(self) -> None:
        """The client's process dies without a word; a new one begins anew."""
        self._begin_client()
        self.uid = ""
        self.be_born()

    def start(self, first: str = "wlan0") -> World:
        """Handshake on ``first``; returns once both sides are ATTACHED and all links validated."""
        self.tell_network()
        self.run(0)
        self.be_born(self.id(first))
        self.until(lambda: self.client.session is not None, 5)
        self.run(1)
        assert self.states() == ("ATTACHED", "ATTACHED"), self.states()
        return self

    def adopt(self, uid: str, transport: TransportId) -> None:
        """The client's packet core has the session's keys."""
        path = self.client.transports[transport].path
        assert path is not None, "a transport that carried a handshake has a path index"
        self.uid = uid
        self.client_plane.born(uid, path)

    def gateway_born(self, uid: str, address: str) -> None:
        """The gateway's packet core has the session's keys."""
        plane = self.gateway_planes[uid] = GatewayPlane(self, uid)
        plane.born(address)

    def supersede(self, name: str) -> str:
        """The same device completes another handshake over ``name``; returns the newer session's uid."""
        return self.reception.offer(self.number(), self.links[self.id(name)].address, self.stamp())

    def stop_gateway(self) -> None:
        """The gateway's process is gone; its store stays."""
        self.gateway = None
        self.gateway_planes.clear()

    def start_gateway(self) -> None:
        """A new process reads the store."""
        self.gateway = GatewayEngine(self.gateway_rules)
        self.reception = Reception(self)
        self._due.pop("gateway", None)
        self.checker.started("gateway")
        now = self.clock_of("gateway")
        if self.journals:
            self.journals["gateway"].start(self.gateway_rules, now)
        for uid, row in self.gateway_store.rows.items():
            if row.session.state is State.TERMINATED:
                continue
            body = records.encode(row.session, KEPT, row.written, BOOT)
            session, kept = records.decode(body, self.gateway_rules, now, BOOT)
            plane = self.gateway_planes[uid] = GatewayPlane(self, uid)
            plane.restore(session.epoch)
            if self.journals and row.chain is not None:
                self.journals["gateway"].resume(uid, row.chain)
            self.checker.restored(session)
            self.post("gateway", inp.SessionRestored(session, kept.device))

    # --- network -----------------------------------------------------------------------------------------------------

    def down(self, *names: str) -> None:
        """Interfaces vanish; netlink tells."""
        for name in names:
            self.links[self.id(name)].up = False
        self.tell_network()

    def up(self, *names: str) -> None:
        """Interfaces are back."""
        for name in names:
            self.links[self.id(name)].up = True
        self.tell_network()

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

    def readdress(self, name: str, local: str) -> None:
        """The interface gets another address of its own; netlink tells."""
        link = self.links[self.id(name)]
        link.local, link.address = local, f"{local}:5000"
        self.tell_network()

    def suspend(self) -> None:
        """The client's machine sleeps: nothing is handled, nothing arrives, boot time runs on."""
        self.asleep = True

    def resume(self, *, clocks_first: bool = False) -> None:
        """It wakes: what waited and what time did come at once, ``clocks_first`` or after what waited."""
        self.asleep = False
        if clocks_first:
            self._wake("client")
            self.client_plane.look()
        held, self._held = self._held, []
        for event in held:
            self.post("client", event)
        self.after(0, self.client_plane.look)

    @property
    def traffic(self) -> bool:
        """Whether inner packets flow both ways."""
        return self._traffic

    @traffic.setter
    def traffic(self, flows: bool) -> None:
        self._traffic = flows
        for plane in (self.client_plane, *self.gateway_planes.values()):
            plane.arm(self.now)

    def tell_network(self) -> None:
        """Netlink's present view goes to the client."""
        reachable = tuple(
            inp.Reachable(t, t.split("/")[0], "udp", "gw1", GATEWAY, link.local)
            for t, link in self.links.items() if link.up
        )  # fmt: skip
        self.post("client", inp.TransportsChanged(reachable))

    # --- time --------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + int(seconds * SECOND)
        self._due.clear()
        queue = self._queue
        while (at := self._next()) is not None and at <= end:
            self.now = max(self.now, at)
            self._wake("client")
            self._wake("gateway")
            self.checker.overdue()
            while queue and queue[0][0] <= self.now:
                _, _, action, args = heapq.heappop(queue)
                action(*args)
        self.now = end

    def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Let time pass until ``condition``; fails after ``seconds``. Returns how long it took."""
        begin = self.now
        while not condition():
            assert self.now - begin <= seconds * SECOND, f"still {self.states()} after {seconds} s"
            self.run(0.05)
        return (self.now - begin) / SECOND

    def clock(self) -> Now:
        """The true clocks."""
        return Now(Instant(self.now), WALL_MS + self.now // MILLISECOND)

    def clock_of(self, side: str) -> Now:
        """One side's reading: boot time runs alike everywhere, wall clocks may be off by ``skew_ms``."""
        now = self.clock()
        return replace(now, wall_ms=now.wall_ms + self.skew_ms[side])

    def number(self) -> int:
        """A fresh number."""
        self._count += 1
        return self._count

    def new_id(self) -> SessionId:
        """A fresh session identifier."""
        self._ids += 1
        return SessionId(bytes((self._ids - 1 + place) % 256 for place in range(ID_BYTES)))

    def stamp(self) -> int:
        """The device's next handshake timestamp: always above the last."""
        self._stamps += 1
        return self._stamps

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now + delay, self.number(), action, args))

    def _next(self) -> int | None:
        moments = [self._wakeup("gateway"), self._queue[0][0] if self._queue else None]
        if not self.asleep:
            moments.append(self._wakeup("client"))
        return min((at for at in moments if at is not None), default=None)

    def _engine(self, side: str) -> Any:
        return self.client if side == "client" else self.gateway

    def _wakeup(self, side: str) -> int | None:
        if side not in self._due:
            engine = self._engine(side)
            self._due[side] = engine.next_wakeup() if engine is not None else None
        return self._due[side]

    def _wake(self, side: str) -> None:
        due = self._wakeup(side)
        if due is not None and due <= self.now and not (side == "client" and self.asleep):
            self.checker.woke(side)
            self._handle(side, inp.Tick())

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def runs(self, plane: Side) -> bool:
        """Whether the process behind ``plane`` handles anything now."""
        if plane is self.client_plane:
            return not self.asleep
        return self.gateway_planes.get(plane.uid) is plane

    def shown_loss(self, transport: TransportId) -> float:
        """The loss that reports show on the client's transport; the gateway knows none of its own."""
        link = self.links.get(transport)
        return link.shown_loss if link is not None else 0.0

    def carry(self, transport: TransportId, uid: str, kind: str, index: int, content: dict[str, Any]) -> None:
        """From the client to the gateway."""
        link = self.links[transport]
        if not self.asleep:
            for delay in link.flights(kind, link.passes_up, self.dice):
                self.after(delay, self._arrive, uid, kind, index, link.address, content)

    def _arrive(self, uid: str, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        if self.gateway is None:
            return
        if kind == "offer":
            self.reception.take(content, address)
        elif kind == "request":
            self.requests.append((content["request"], address))
            self.inject(content["request"], address)
        elif (plane := self.gateway_planes.get(uid)) is not None:
            plane.receive(kind, index, address, content)

    def inject(self, request: Request, address: str, *, copied: bool = False) -> None:
        """A reattach request reaches the gateway, from its maker or (``copied``) from anybody."""
        plane = self.gateway_planes.get(request.uid)
        if plane is not None:
            plane.take_request(request, address, copied=copied)
            return
        self.post(
            "gateway",
            inp.ReattachAsked(
                self.number(), None, TransportId(f"path{request.path}/udp"), address, False, True, False,
                request.nonce, Epoch(0), 0, 0, 0,
            ),
        )  # fmt: skip

    def carry_back(self, uid: str, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """From the gateway to the client."""
        link = next((link for link in self.links.values() if link.address == address), None)
        if link is not None:
            for delay in link.flights(kind, link.passes_down, self.dice):
                self.after(delay, self._arrive_back, uid, kind, index, content)

    def _arrive_back(self, uid: str, kind: str, index: int, content: dict[str, Any]) -> None:
        if self.asleep:
            return
        if kind == "response":
            if self.handshake is not None:
                self.handshake.answered(content)
        elif uid == self.client_plane.uid:
            self.client_plane.receive(kind, index, content)

    # --- turns -------------------------------------------------------------------------------------------------------

    def post(self, side: str, event: Any) -> None:
        """Queue an input of one end's engine."""
        self.after(0, self._deliver, side, event, self._engine(side))

    def _deliver(self, side: str, event: Any, engine: Any) -> None:
        if engine is self._engine(side):
            self._handle(side, event)

    def _handle(self, side: str, event: Any) -> None:
        engine = self._engine(side)
        if engine is None:
            return
        if side == "client" and self.asleep:
            self._held.append(event)
            return
        self.turns += 1
        if isinstance(event, inp.PolicyOffered) and event.policy is not None and self.journals:
            rules = self.client_rules if side == "client" else self.gateway_rules
            self.journals[side].use_policy(rules, self.clock_of(side))
        self.checker.before(side, event, self._due.get(side))
        orders = engine.handle(event, self.clock_of(side))
        self._due.pop(side, None)
        for order in orders:
            self._carry_out(side, order)
        self.checker.after(side, event, orders)

    def offer_policy(self, side: str, rules: Policy | None, errors: tuple[str, ...] = ()) -> None:
        """One end reloads its policy; None is an invalid one. The client's stays within what the gateway told."""
        offered = rules
        if rules is not None and side == "client":
            self.client_rules = rules
            offered = self.limits.applied_to(rules) if self.limits is not None else rules
        elif rules is not None:
            self.gateway_rules = rules
        self.post(side, inp.PolicyOffered(offered, errors))

    def _carry_out(self, side: str, order: Any) -> None:
        if isinstance(order, out.Commit):
            self._commit(side, order)
        elif isinstance(order, out.Emit):
            self.events += [(side, self.now, event) for event in order.events]
            self.checker.emitted(side, order.events)
            if self.journals:
                self.journals[side].note(order.events, self.clock_of(side))
        elif side == "client":
            self.client_plane.execute(order)
        elif isinstance(order, (out.AcceptHandshake, out.RefuseHandshake)):
            self.reception.execute(order)
        else:
            self._at_gateway(order)

    def _at_gateway(self, order: Any) -> None:
        uid = getattr(order, "uid", self.uid)
        if isinstance(order, (out.ChallengeReattach, out.RefuseReattach)):
            uid = next((u for u, p in self.gateway_planes.items() if order.request in p.pending), uid)
        plane = self.gateway_planes.get(uid)
        if plane is not None:
            plane.execute(order)
            if isinstance(order, out.EndSession):
                del self.gateway_planes[uid]

    def _commit(self, side: str, order: out.Commit) -> None:
        store = self.client_store if side == "client" else self.gateway_store
        plane = self.gateway_planes.get(order.uid) if side == "gateway" else None
        lost = plane is not None and not plane.sealable(order.secret)
        result = CONFLICT if lost else store.judge(order)
        self.checker.committed(side, order, result)
        if result == COMMITTED:
            now = self.clock_of(side)
            chain = self.journals[side].commit(order, now) if self.journals else None
            store.write(order, now, chain)
            self.events += [(side, self.now, event) for event in order.events]
        self.after(store.delay, self._commit_ended, side, self._engine(side), order, result)

    def _commit_ended(self, side: str, engine: Any, order: out.Commit, result: str) -> None:
        if engine is self._engine(side):
            self.checker.stored(side, order, result)
            self._handle(side, inp.CommitEnded(order.uid, order.serial, result))

    # --- what there is to see ----------------------------------------------------------------------------------------

    def states(self) -> tuple[str, str]:
        """State of both ends of the client's session."""
        client, gateway = self.client.session, self.gateway_session
        return (client.state.value if client else "-", gateway.state.value if gateway else "-")

    @property
    def gateway_session(self) -> Session | None:
        """The gateway's committed record of the client's session."""
        return self.gateway.session(self.uid) if self.gateway is not None else None

    @property
    def active(self) -> str | None:
        """Interface that carries the session, if both ends agree and it carries packets both ways."""
        plane, other = self.client_plane, self.gateway_planes.get(self.uid)
        if plane.active is None or other is None or other.active != plane.active or not plane.opens(other.key):
            return None
        link = self.links[plane.paths[plane.active].transport]
        works = link.up and link.passes and link.passes_up and link.passes_down and not self.asleep
        leads = other.paths[other.active].peer == link.address and other.opens(plane.key)
        return plane.paths[plane.active].transport.split("/")[0] if works and leads else None

    def names(self, side: str, name: str) -> list[DomainEvent]:
        """Events of one kind from one end."""
        return [event for who, _, event in self.events if who == side and event.name == name]

    def changes(self, side: str) -> list[str]:
        """Every change of state of one end, in words."""
        found = self.names(side, "session.state_change")
        return [f"{e.prev_state}>{e.state} {e.reason}" for e in found if e.session == self.uid]
