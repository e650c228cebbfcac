"""BIRTH in the simulation: the client offers its key over one transport after the other; the gateway answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.policy.selection import Selected
from jumpvpn.session.reasons import Reason
from jumpvpn.values import MILLISECOND, SECOND, SessionId, TransportId, Version, later
from jumpvpn.wire.welcome import Limits

if TYPE_CHECKING:
    from jumpvpn.sim.world import World

RESEND = 500 * MILLISECOND
TRANSPORT_TIME = 2 * SECOND  # then the next transport gets its turn
IDLE = 200 * MILLISECOND  # nothing usable: look again
OFFER_LIFE = 10 * SECOND  # an undecided or answered offer is remembered for so long

DEVICE_KEY = b"device"
DEVICE_NAME = "c0ffee"
GATEWAY = "192.0.2.1:51820"


class Handshake:
    """The client's side, for one process; over once it is answered or out of time."""

    def __init__(self, world: World, only: TransportId | None = None) -> None:
        self.done = False
        self._world = world
        self._only = only
        self._tried: list[TransportId] = []
        self._offers: dict[int, TransportId] = {}
        self._deadline = later(world.clock().boot, world.client_rules.session.handshake_timeout)
        world.after(0, self._next)
        world.after(self._deadline - world.now, self._abandon)

    def _next(self) -> None:
        world = self._world
        if self.done:
            return
        transport = self._only
        if transport is None:
            choice = world.client.first_choice(world.clock().boot, tuple(self._tried))
            transport = choice.transport if isinstance(choice, Selected) else None
        if transport is None:
            self._tried.clear()
            world.after(IDLE, self._next)
            return
        self._tried.append(transport)
        number = world.number()
        self._offers[number] = transport
        self._send(number, world.stamp(), world.now + TRANSPORT_TIME)

    def _send(self, number: int, stamp: int, until: int) -> None:
        if self.done:
            return
        if self._world.now >= until:
            self._next()
            return
        self._world.carry(self._offers[number], "", "offer", 0, {"number": number, "stamp": stamp})
        self._world.after(RESEND, self._send, number, stamp, until)

    def _abandon(self) -> None:
        if not self.done:
            self.done = True
            world = self._world
            world.post("client", inp.HandshakeAbandoned(world.new_id(), DEVICE_NAME, Reason.HANDSHAKE_TIMEOUT))

    def answered(self, content: dict[str, Any]) -> None:
        """The gateway accepted an offer."""
        transport = self._offers.get(content["number"])
        if self.done or transport is None or transport not in self._world.client.transports:
            return
        self.done = True
        world = self._world
        if world.bad_welcome:  # another version's, or not a welcome at all
            world.bad_welcome = False
            world.post("client", inp.HandshakeAbandoned(world.new_id(), DEVICE_NAME, Reason.HANDSHAKE_FAILED))
            return
        session_id: SessionId = content["session"]
        limits: Limits = content["limits"]
        world.adopt(session_id.uid, transport)
        rules = limits.applied_to(world.client_rules)
        world.limits = limits
        world.post("client", inp.HandshakeAnswered(session_id, transport, GATEWAY, DEVICE_NAME, rules, Version(1)))


@dataclass(slots=True)
class _Offer:
    session_id: SessionId
    address: str
    since: int
    accepted: bool = False


class Reception:
    """The gateway's side, for one process: offers that wait, and answers that are sent again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offers: dict[int, _Offer] = {}

    def take(self, content: dict[str, Any], address: str) -> None:
        """An offer of the device, or its repetition."""
        number, world = content["number"], self._world
        for old in [n for n, offer in self._offers.items() if world.now - offer.since >= OFFER_LIFE]:
            del self._offers[old]
        known = self._offers.get(number)
        if known is None:
            self.offer(number, address, content["stamp"])
        elif known.accepted:
            self._answer(number, known)

    def offer(self, number: int, address: str, stamp: int) -> str:
        """Ask the engine; returns the uid that the session will have."""
        session_id = self._world.new_id()
        self._offers[number] = _Offer(session_id, address, self._world.now)
        offered = inp.HandshakeOffered(number, session_id, DEVICE_KEY, DEVICE_NAME, address, stamp)
        self._world.post("gateway", offered)
        return session_id.uid

    def execute(self, order: out.AcceptHandshake | out.RefuseHandshake) -> None:
        """The engine decided."""
        if isinstance(order, out.RefuseHandshake):
            self._offers.pop(order.handshake, None)
            return
        offer = self._offers.get(order.handshake)
        if offer is not None:  # else the client gave up long ago, and the birth times out
            offer.accepted = True
            self._world.gateway_born(order.uid, offer.address)
            self._answer(order.handshake, offer)

    def _answer(self, number: int, offer: _Offer) -> None:
        limits = Limits.of(self._world.gateway_rules)
        content = {"number": number, "session": offer.session_id, "limits": limits}
        self._world.carry_back("", "response", 0, offer.address, content)
