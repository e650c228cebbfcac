"""Clients, gateways, the network between them, the store, and one virtual time."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from contextvars import Context
from typing import Any

from jumpvpn.config import GatewayPeer
from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.sim.client_plane import Request
from jumpvpn.sim.cluster.checker import ClusterChecker
from jumpvpn.sim.cluster.client import ClientHost
from jumpvpn.sim.cluster.etcd import StoreServer
from jumpvpn.sim.cluster.gateway import GatewayHost, link_between
from jumpvpn.sim.cluster.loop import Process, VirtualLoop
from jumpvpn.sim.cluster.machines import Machine
from jumpvpn.sim.cluster.profiles import Plan
from jumpvpn.sim.link import Link
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, SessionId, TransportId

START = 1_000 * SECOND  # true time of a world that has run for a while
SAMPLE = 100 * MILLISECOND  # how often everything is looked at, beside the moments at which it must be
ID_BYTES = 16
SEEN_REQUESTS = 16  # the last ones, which an attacker on the way has copied


class ClusterWorld:
    """``run(seconds)`` lets time pass. Everything is reached through ``gateways`` and ``clients``."""

    def __init__(self, plan: Plan, dice: random.Random) -> None:
        self.plan, self.network = plan, dice
        self.loop = VirtualLoop(START)  # type: ignore[abstract]  # nothing asks for its other methods
        self.outside = Context()
        self.processes: list[Process] = []
        self.server = StoreServer(self.loop, dice)
        self.log: list[tuple[int, str]] = []
        self.requests: list[tuple[Request, bytes, str]] = []
        self.raw: dict[str, bytes] = {}
        self.inner: dict[bytes, tuple[str, ...]] = {
            f"device of client{n}".encode(): (f"10.9.0.{n + 2}/32",) for n in range(plan.clients)
        }
        self._count = 0
        self._traffic = True
        self._addresses: dict[tuple[str, str], tuple[ClientHost, TransportId]] = {}
        self.gateways = {clock.name: self._gateway(clock.name, clock.offset, clock.ppm) for clock in plan.clocks}
        self.checker = ClusterChecker(self)
        self.server.watcher = self.checker.stored
        self.clients: list[ClientHost] = []
        self.begun = False

    def begin(self) -> None:
        """Gateways start, then clients."""
        for host in self.gateways.values():
            self.loop.at(self.now, host.start, context=self.outside)
        self._sample()
        self.run(1.0)
        for number in range(self.plan.clients):
            peers = tuple(self._peer(name) for name in self.plan.configured)
            self.clients.append(ClientHost(self, f"client{number}", self.plan.rules, self.plan.interfaces, peers))

    def _gateway(self, name: str, offset: int, ppm: int) -> GatewayHost:
        machine = Machine(name, lambda: self.loop.now, offset, ppm)
        config = ClusterConfig.model_validate({
            "name": "eu", "etcd": ("10.0.0.1:2379",), "ca": "ca.pem", "certificate": "gw.pem", "key": "gw.key",
            "advertise": self.address(name), "lease": f"{self.plan.lease_s}s", "margin": f"{self.plan.margin_ms}ms",
            "adopt_after": f"{self.plan.adopt_ms}ms",
        })  # fmt: skip
        return GatewayHost(self, machine, self.plan.rules, config)

    def _peer(self, name: str) -> GatewayPeer:
        return GatewayPeer.model_validate(
            {
                "name": name,
                "address": self.address(name),
                "public_key": base64.b64encode(self.public_key(name)).decode(),
            }
        )

    @staticmethod
    def address(name: str) -> str:
        """Where clients reach a gateway."""
        return f"192.0.2.{int(name.removeprefix('gw'))}:51900"

    @staticmethod
    def public_key(name: str) -> bytes:
        """A gateway's public key."""
        return hashlib.sha256(name.encode()).digest()

    # --- time --------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """True time (ns)."""
        return self.loop.now

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run(self.now + round(seconds * SECOND))

    def later(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Do something later, in no process."""
        self.loop.at(self.now + delay, action, *args, context=self.outside)

    def number(self) -> int:
        """A fresh number."""
        self._count += 1
        return self._count

    def new_id(self) -> SessionId:
        """A fresh session identifier."""
        return SessionId(hashlib.sha256(f"id{self.number()}".encode()).digest()[:ID_BYTES])

    def note(self, words: str) -> None:
        """For the transcript."""
        self.log.append((self.now, words))

    def told(self, node: str, events: tuple[DomainEvent, ...]) -> None:
        """A gateway said something outside a commit."""
        for event in events:
            if event.name.startswith("cluster.") and event.name != "cluster.store":
                words = " ".join(str(value) for key, value in event.data.items() if key in ("member", "state"))
                self.note(f"{node:<8} {event.name} {words}")

    def _sample(self) -> None:
        self.checker.sample()
        self.later(SAMPLE, self._sample)

    @property
    def traffic(self) -> bool:
        """Whether inner packets flow."""
        return self._traffic

    @traffic.setter
    def traffic(self, flows: bool) -> None:
        self._traffic = flows
        for client in self.clients:
            client.traffic = flows
            client.client_plane.arm(self.now)
        for host in self.gateways.values():
            for hosted in host.hosted():
                hosted.arm(self.now)

    # --- network -----------------------------------------------------------------------------------------------------

    def link(self, client: ClientHost, transport: TransportId) -> Link:
        """The way of ``transport``."""
        link = client.links.get(transport)
        if link is None:
            interface, _, gateway = transport.split("/")
            names, numbers = self.plan.interfaces, int(client.name.removeprefix("client"))
            link = link_between(numbers + 1, names.index(interface), int(gateway.removeprefix("gw")))
            client.links[transport] = link
            self._addresses[gateway, link.address] = (client, transport)
        return link

    def rebind(self, client: ClientHost, transport: TransportId, address: str) -> None:
        """A NAT forgets: another address is seen."""
        link = self.link(client, transport)
        gateway = transport.split("/")[2]
        self._addresses.pop((gateway, link.address), None)
        link.address = address
        self._addresses[gateway, address] = (client, transport)

    def carry(self, client: ClientHost, transport: TransportId, kind: str, index: int, content: dict[str, Any]) -> None:
        """From a client to the gateway at the end of ``transport``."""
        interface, _, name = transport.split("/")
        link = self.link(client, transport)
        if client.interfaces[interface] and name in self.gateways:
            for delay in link.flights(kind, link.passes_up, self.network):
                self.later(delay, self._arrive, self.gateways[name], kind, index, link.address, content)

    def _arrive(self, host: GatewayHost, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """The kernel keeps it while the process is stopped."""
        if host.process is not None:
            host.after(0, self._take, host, kind, index, address, content)

    def _take(self, host: GatewayHost, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        plane = host.plane
        if kind == "offer":
            plane.take_offer(content["number"], content["device"], content["stamp"], address)
        elif kind == "request":
            request = content["request"]
            raw = self.raw.get(request.uid, b"")
            self.requests = [*self.requests[-SEEN_REQUESTS:], (request, raw, address)]
            plane.take_request(request, raw, address, copied=False)
        elif kind == "standby":
            plane.take_standby(content["challenge"], address)
        else:
            hosted = plane.by_id.get(self.raw.get(content["uid"], b""))
            if hosted is not None:
                hosted.receive(kind, index, address, content)

    def inject(self, host: GatewayHost, request: Request, raw: bytes, address: str) -> None:
        """A copy of a request comes to any gateway."""
        if host.process is not None:
            host.after(0, lambda: host.plane.take_request(request, raw, address, copied=True))

    def carry_back(self, host: GatewayHost, kind: str, address: str, content: dict[str, Any]) -> None:
        """From a gateway to the client that has ``address``, if any has."""
        found = self._addresses.get((host.name, address))
        if found is None:
            return
        client, transport = found
        link = self.link(client, transport)
        if client.interfaces[transport.split("/")[0]]:
            content["node"] = host.name
            for delay in link.flights(kind, link.passes_down, self.network):
                self.later(delay, self._arrive_back, client, transport, kind, content)

    def _arrive_back(self, client: ClientHost, transport: TransportId, kind: str, content: dict[str, Any]) -> None:
        if kind == "response":
            client.answered(content)
            return
        plane = client.client_plane
        index = plane.index(transport)
        if index is not None and content.get("uid") in (None, "", plane.uid):
            plane.receive(kind, index if kind == "standby_reply" else content["path"], content)

    # --- the end -----------------------------------------------------------------------------------------------------

    def settle_journals(self) -> None:
        """Into the journals: what nodes hold back, and what the store keeps for them until their next start."""
        for host in self.gateways.values():
            host.close()
            for kept in self.server.outboxes.get(host.name, {}).values():
                host.journal.lines += kept.lines
        for client in self.clients:
            client.journal.close(client.clock())

    def close(self) -> None:
        """Everything ends; nothing that follows counts."""
        self.checker.over = True
        self.loop.dispose(self.processes)
