"""One client: the engine and the choice of gateways as shipped, a packet core and a handshake as models."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.client.gateways import PROTOCOL, Known, KnownGateways, Situation, chosen
from jumpvpn.config import GatewayPeer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Selected
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, State
from jumpvpn.sim.checker import Checker
from jumpvpn.sim.cluster.machines import Machine
from jumpvpn.sim.cluster.roaming import Roaming
from jumpvpn.sim.journals import _shown
from jumpvpn.sim.link import Link
from jumpvpn.sim.store import COMMITTED, Store
from jumpvpn.transports.state import Condition
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Instant, Now, SessionId, TransportId, Version, later
from jumpvpn.wire.gateways import Gateway
from jumpvpn.wire.welcome import decode_welcome

if TYPE_CHECKING:
    from jumpvpn.sim.cluster.world import ClusterWorld

OFFER_AGAIN = 500 * MILLISECOND
TRANSPORT_TIME = 2 * SECOND  # then the next transport gets its turn
IDLE = 200 * MILLISECOND  # nothing usable: look again
BIRTHS_GIVEN_UP = 8  # transports tried in vain before others get their turn


class ClientJournal:
    """The lines of one client over all runs of its process."""

    def __init__(self, name: str) -> None:
        self.lines: list[bytes] = []
        self._name = name
        self._runs = 0
        self._sealer: Sealer

    def start(self, policy: Policy, now: Now) -> None:
        """A process begins."""
        self._runs += 1
        origin = Origin(self._name, "standalone", f"{self._name}boot", f"run{self._runs}", "client")
        self._sealer = Sealer(origin, policy, _shown)
        data = {"role": "client", "boot_id": origin.boot_id}
        self.note((DomainEvent("node.started", "N", data=data),), now)
        self.lines += self._sealer.announce(policy, now, "start")

    def note(self, events: tuple[DomainEvent, ...], now: Now) -> None:
        """Node-lane events outside a commit."""
        self.lines += self._sealer.note(events, now)

    def commit(self, order: out.Commit, now: Now) -> None:
        """The lines of a commit that was kept."""
        draft = self._sealer.draft(order.uid, order.events, now)
        self.lines += self._sealer.settle(draft, ended=order.session.state is State.TERMINATED)

    def close(self, now: Now) -> None:
        """Summaries that are held back."""
        self.lines += self._sealer.due(now)


class ClientHost:
    """One client's machine. Its clock is the true one; its interfaces lead to every gateway."""

    def __init__(
        self, world: ClusterWorld, name: str, rules: Policy, interfaces: tuple[str, ...], known: tuple[GatewayPeer, ...]
    ) -> None:  # fmt: skip
        self.world, self.name, self.rules = world, name, rules
        self.device = f"device of {name}".encode()
        self.interfaces = dict.fromkeys(interfaces, True)
        self.links: dict[TransportId, Link] = {}
        self._configured = known
        self.machine = Machine(name, lambda: world.now)
        self.store = Store()
        self.journal = ClientJournal(name)
        self.events: list[tuple[int, DomainEvent]] = []
        self.zero_rtt, self.measures, self.asleep, self.uid = True, True, False, ""
        self.traffic = True
        self.gateway = None
        self.gateway_planes: dict[str, Any] = {}
        self.checker = Checker(self)  # type: ignore[arg-type]
        self.wishes_session = True
        self._lives = 0
        self._offers: dict[int, TransportId] = {}
        self._armed: int | None = None
        self.begin()

    # --- processes ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A process begins: it knows the gateways of its file, and offers its key."""
        self._lives += 1
        self.uid = ""
        self.client = ClientEngine(self.rules)
        self.client_plane = Roaming(self)
        self.gateways = KnownGateways(self._configured)
        self._seen: Any = ()
        self._leaving: set[str] = set()
        self._passed = 0
        self._tried: list[TransportId] = []
        self._offers.clear()
        self._until: Instant | None = later(Instant(self.now), self.rules.session.handshake_timeout)
        self.checker.started("client")
        self.journal.start(self.rules, self.clock())
        self.refresh()
        self.after(0, self._offer_next, self._lives)

    def _offer_next(self, life: int) -> None:
        """The next transport gets its turn."""
        if life != self._lives or self._until is None:
            return
        if self.now >= self._until:
            self._until = None
            self.post("client", inp.HandshakeAbandoned(self.world.new_id(), "c0ffee", Reason.HANDSHAKE_TIMEOUT))
            return
        choice = self.client.first_choice(Instant(self.now), tuple(self._tried))
        if not isinstance(choice, Selected):
            self._tried.clear()
            self._passed += 1
            self.refresh()
            self.after(IDLE, self._offer_next, life)
            return
        self._tried.append(choice.transport)
        number = self.world.number()
        self._offers[number] = choice.transport
        self._send_offer(life, number, self.world.number(), self.now + TRANSPORT_TIME)

    def _send_offer(self, life: int, number: int, stamp: int, until: int) -> None:
        if life != self._lives or self._until is None:
            return
        if self.now >= until:
            self._offer_next(life)
            return
        content = {"number": (self.name, number), "stamp": stamp, "device": self.device}
        self.carry(self._offers[number], "", "offer", 0, content)
        self.after(OFFER_AGAIN, self._send_offer, life, number, stamp, until)

    def answered(self, content: dict[str, Any]) -> None:
        """A gateway accepted an offer."""
        name, number = content["number"]
        transport = self._offers.get(number)
        known = self.client.transports.get(transport) if transport is not None else None
        if name != self.name or self._until is None or transport is None or known is None or known.path is None:
            return
        self._until = None
        session_id, welcome = SessionId(content["session"]), decode_welcome(content["welcome"])
        self.uid = session_id.uid
        self.client_plane.welcomed(self.uid, known.path, known.gateway, content["keys"])
        self.world.checker.born(self)
        self.learn(welcome.gateways)
        rules, peer = welcome.limits.applied_to(self.rules), self.peer(transport)
        self.post(
            "client", inp.HandshakeAnswered(session_id, transport, peer, "c0ffee", rules, Version(welcome.version))
        )

    # --- networks and gateways ---------------------------------------------------------------------------------------

    def peer(self, transport: TransportId) -> str:
        """The address of the gateway at its end."""
        return self.gateways.named(transport.split("/")[2]).address

    def learn(self, told: tuple[Gateway, ...]) -> None:
        """The cluster told its list."""
        if told and self.gateways.learn(told):
            self._leaving.clear()
            self.refresh()

    def refresh(self) -> None:
        """Tell the engine which transports there are, as the client's shell does."""
        up = tuple(sorted(name for name, there in self.interfaces.items() if there))
        wanted = self._wanted(up)
        every = [(interface, known) for interface in up for known in self.gateways.all]
        reachable = tuple(self._reachable(interface, known) for interface, known in every if known.name in wanted)
        lost = {t: inp.UNUSED for t, known in self.client.transports.items() if known.gateway not in wanted}
        self.post("client", inp.TransportsChanged(reachable, lost))

    def _wanted(self, up: tuple[str, ...]) -> tuple[str, ...]:
        used = {t.gateway for t in self.client.transports.values() if t.condition is not Condition.GONE}
        draining = frozenset(self.client.book.gateways.draining)
        self._leaving = (self._leaving | draining) - (used - draining)
        home = self.client.book.home(self.client.session)
        now = Situation(up, home, frozenset(self._leaving), self._passed)
        return chosen(self.gateways.all, self.client.policy.transports, now)

    def _reachable(self, interface: str, known: Known) -> inp.Reachable:
        transport = TransportId(f"{interface}/{PROTOCOL}/{known.name}")
        link = self.world.link(self, transport)
        return inp.Reachable(transport, interface, PROTOCOL, known.name, known.address, link.local)

    def _follow_session(self) -> None:
        home = self.client.book.home(self.client.session)
        seen = (home, frozenset(self.client.book.gateways.draining))
        if seen != self._seen:
            self._seen = seen
            self.gateways.hold(home)
            self.refresh()

    # --- what packet core and checker ask ----------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """True time (ns)."""
        return self.world.now

    @property
    def dice(self) -> random.Random:
        """What links draw from."""
        return self.world.network

    def clock(self) -> Now:
        """This machine's clocks."""
        return self.machine.now()

    def number(self) -> int:
        """A fresh number."""
        return self.world.number()

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Do something later."""
        self.world.loop.at(self.now + delay, action, *args, context=self.world.outside)

    def runs(self, plane: Any) -> bool:
        """Whether this packet core is the process's own."""
        return plane is self.client_plane

    def shown_loss(self, transport: TransportId) -> float:
        """The loss that reports show."""
        return self.world.link(self, transport).shown_loss

    def carry(self, transport: TransportId, uid: str, kind: str, index: int, content: dict[str, Any]) -> None:
        """Towards the gateway at the end of ``transport``."""
        content["uid"] = uid
        self.world.carry(self, transport, kind, index, content)

    @property
    def session(self) -> Session | None:
        """The client's record."""
        return self.client.session

    # --- turns -------------------------------------------------------------------------------------------------------

    def post(self, _side: str, event: Any) -> None:
        """Queue an input."""
        self.after(0, self._deliver, self.client, event)

    def _deliver(self, engine: ClientEngine, event: Any) -> None:
        if engine is self.client:
            self._handle(event)

    def _handle(self, event: Any) -> None:
        self.checker.before("client", event, self.client.next_wakeup())
        orders = self.client.handle(event, self.clock())
        for order in orders:
            self._carry_out(order)
        self.checker.after("client", event, orders)
        self._follow_session()
        self._arm()

    def _arm(self) -> None:
        due = self.client.next_wakeup()
        if due is not None and due != self._armed:
            self._armed = due
            self.after(max(0, due - self.now), self._wake, self.client, due)

    def _wake(self, engine: ClientEngine, due: int) -> None:
        if engine is self.client and due == self._armed:
            self._armed = None
            wanted = self.client.next_wakeup()
            if wanted is not None and wanted <= self.now:
                self.checker.woke("client")
                self._handle(inp.Tick())
            else:
                self._arm()

    def _carry_out(self, order: Any) -> None:
        if isinstance(order, out.Commit):
            self._commit(order)
        elif isinstance(order, out.Emit):
            self.events += [(self.now, event) for event in order.events]
            self.checker.emitted("client", order.events)
            self.journal.note(order.events, self.clock())
        else:
            self.client_plane.execute(order)

    def _commit(self, order: out.Commit) -> None:
        result = self.store.judge(order)
        self.checker.committed("client", order, result)
        if result == COMMITTED:
            self.journal.commit(order, self.clock())
            self.store.write(order, self.clock(), None)
            self.events += [(self.now, event) for event in order.events]
        self.after(0, self._commit_ended, self.client, order, result)

    def _commit_ended(self, engine: ClientEngine, order: out.Commit, result: str) -> None:
        if engine is self.client:
            self.checker.stored("client", order, result)
            self._handle(inp.CommitEnded(order.uid, order.serial, result))
