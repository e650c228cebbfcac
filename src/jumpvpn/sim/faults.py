"""What can go wrong, one method a fault; a seed's theme says which of them come often."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.sim.link import Link
from jumpvpn.sim.profiles import Profile
from jumpvpn.sim.store import COMMITTED, CONFLICT, UNAVAILABLE
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, SECOND, TransportId

NETWORK = (
    "down", "up", "blackhole", "passes", "one_way", "lossy", "slow", "jittery", "copies", "rebind", "readdress",
    "drop_kind", "flap", "blip", "shows_loss",
)  # fmt: skip
NODES = ("suspend", "crash_client", "restart_gateway", "socket_breaks", "icmp", "clock_jumps", "store",
         "bad_welcome")  # fmt: skip
ATTACKS = ("replay", "forge", "strange_session", "stranger")
PEOPLE = ("operator_switch", "operator_ends", "reload", "bad_reload", "supersede", "traffic")

THEMES: Mapping[str, Mapping[str, int]] = {
    "network": dict.fromkeys(NETWORK, 4) | dict.fromkeys(("suspend", "operator_switch", "traffic"), 1),
    "everything": dict.fromkeys((*NETWORK, *NODES, *ATTACKS, *PEOPLE), 3)
    | {"operator_ends": 1, "supersede": 1, "crash_client": 1},
    "blackout": {"down": 5, "blackhole": 8, "up": 2, "passes": 2, "one_way": 2, "restart_gateway": 1, "traffic": 1},
    "gateway": {"restart_gateway": 6, "store": 5, "blackhole": 2, "passes": 3, "rebind": 2, "down": 1, "up": 2,
                "suspend": 1, "replay": 2},
    "moves": {"rebind": 6, "readdress": 4, "flap": 3, "jittery": 2, "drop_kind": 2, "operator_switch": 2, "passes": 2},
    "attack": {"replay": 6, "forge": 4, "strange_session": 2, "stranger": 2, "supersede": 1, "down": 3, "up": 3,
               "restart_gateway": 2, "rebind": 2, "drop_kind": 2},
    "people": {"operator_switch": 6, "reload": 6, "bad_reload": 2, "operator_ends": 1, "crash_client": 2,
               "bad_welcome": 1, "down": 2, "up": 2, "shows_loss": 2, "clock_jumps": 2},
    "sleep": {"suspend": 6, "down": 2, "up": 2, "readdress": 2, "restart_gateway": 1, "clock_jumps": 1, "traffic": 1},
    "quality": {"lossy": 4, "slow": 4, "jittery": 4, "shows_loss": 4, "blip": 6, "one_way": 2, "passes": 3,
                "copies": 1},
}  # fmt: skip
"""Weights by theme."""

KINDS = ("committed", "challenge", "denied", "report", "probe", "request", "hint", "rekey_request", "rekey_reply",
         "close", "offer", "response")  # fmt: skip
ATTACKER = "203.0.113.66:6666"
PAUSES = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
PAUSE_WEIGHTS = (1, 3, 2, 3, 4, 4, 3, 2, 1)


class Trouble:
    """Strikes ``world`` with one fault after the other; ``log`` keeps (instant, words)."""

    def __init__(self, world: World, profile: Profile, dice: random.Random) -> None:
        self.world, self.profile, self.dice = world, profile, dice
        self.theme = dice.choice(tuple(THEMES))
        self.log: list[tuple[int, str]] = []
        self.over = False
        weights = THEMES[self.theme]
        self._names, self._weights = tuple(weights), tuple(weights.values())

    def strike(self) -> None:
        """One fault, then some time."""
        name = self.dice.choices(self._names, self._weights)[0]
        fault: Callable[[str, Link], None] = getattr(self, name)
        interface = self.dice.choice(self.profile.links)
        fault(interface, self.world.links[self.world.id(interface)])
        self.world.run(self.dice.choices(PAUSES, PAUSE_WEIGHTS)[0])

    def _note(self, words: str) -> None:
        self.log.append((self.world.now, words))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it then, unless everything has been healed meanwhile."""
        self.world.after(int(seconds * SECOND), self._unless_over, action)

    def _unless_over(self, action: Callable[[], None]) -> None:
        if not self.over:
            action()

    # --- network -----------------------------------------------------------------------------------------------------

    def down(self, name: str, _link: Link) -> None:
        """Interfaces vanish, one or all."""
        names = self.profile.links if self.dice.random() < 0.3 else (name,)
        self._note(f"{' '.join(names)} down")
        self.world.down(*names)

    def up(self, name: str, _link: Link) -> None:
        """An interface is back."""
        self._note(f"{name} up")
        self.world.up(name)

    def blackhole(self, name: str, _link: Link) -> None:
        """Networks swallow everything, one or all."""
        names = self.profile.links if self.dice.random() < 0.3 else (name,)
        self._note(f"{' '.join(names)} swallows everything")
        self.world.blackhole(*names)

    def passes(self, name: str, link: Link) -> None:
        """A network works as it should."""
        self._note(f"{name} passes")
        link.calm()

    def one_way(self, name: str, link: Link) -> None:
        """One direction is gone."""
        link.passes_up = self.dice.random() < 0.5
        link.passes_down = not link.passes_up
        self._note(f"{name} passes only {'towards the gateway' if link.passes_up else 'towards the client'}")

    def lossy(self, name: str, link: Link) -> None:
        """Datagrams are lost at random."""
        link.lose = self.dice.choice((0.0, 0.02, 0.1, 0.3, 0.6))
        self._note(f"{name} loses {link.lose:.0%}")

    def slow(self, name: str, link: Link) -> None:
        """Another delay."""
        link.delay = self.dice.choice((5, 40, 150, 300, 900)) * MILLISECOND
        self._note(f"{name} takes {link.delay // MILLISECOND} ms")

    def jittery(self, name: str, link: Link) -> None:
        """Datagrams overtake each other."""
        link.jitter = self.dice.choice((0, 5, 60, 250)) * MILLISECOND
        self._note(f"{name} varies by {link.jitter // MILLISECOND} ms")

    def copies(self, name: str, link: Link) -> None:
        """Some datagrams arrive twice."""
        link.twice = self.dice.choice((0.0, 0.1, 0.5))
        self._note(f"{name} copies {link.twice:.0%}")

    def rebind(self, name: str, _link: Link) -> None:
        """The NAT forgets."""
        address = f"10.{self.dice.randrange(100, 200)}.9.9:{self.dice.randrange(1024, 65535)}"
        self._note(f"{name} is seen as {address}")
        self.world.rebind(name, address)

    def readdress(self, name: str, _link: Link) -> None:
        """Another network behind the same interface."""
        local = f"10.{self.dice.randrange(200, 250)}.{self.dice.randrange(250)}.2"
        self._note(f"{name} has the address {local}")
        self.world.readdress(name, local)

    def drop_kind(self, name: str, link: Link) -> None:
        """A middlebox that swallows one kind of message."""
        kind = self.dice.choice((*KINDS, ""))
        link.drop = lambda sent: sent == kind
        self._note(f"{name} swallows each {kind or 'nothing'}")

    def flap(self, name: str, _link: Link) -> None:
        """Away and back several times."""
        silent, period = self.dice.random() < 0.5, self.dice.choice((0.1, 0.5, 1.5))
        away, back = (self.world.blackhole, self.world.heal) if silent else (self.world.down, self.world.up)
        times = self.dice.randrange(2, 6)
        self._note(f"{name} flaps {times} times, {period} s each, {'silently' if silent else 'told by netlink'}")
        for turn in range(times):
            self._later(2 * turn * period, lambda: away(name))
            self._later((2 * turn + 1) * period, lambda: back(name))

    def blip(self, name: str, link: Link) -> None:
        """Bad for a moment: silence or loss that passes before anybody has to leave."""
        span, silent = self.dice.choice((0.15, 0.4, 0.7)), self.dice.random() < 0.5
        self._note(f"{name} {'is silent' if silent else 'shows 50% loss'} for {span} s")
        if silent:
            self.world.blackhole(name)
            self._later(span, lambda: self.world.heal(name))
        else:
            link.loss = 0.5
            self._later(span, lambda: setattr(link, "loss", 0.0))

    def shows_loss(self, name: str, link: Link) -> None:
        """Reports show loss although probes pass."""
        link.loss = self.dice.choice((0.0, 0.1, 0.4))
        self._note(f"{name} shows {link.loss:.0%} loss")

    # --- nodes -------------------------------------------------------------------------------------------------------

    def suspend(self, _name: str, _link: Link) -> None:
        """The client's machine sleeps for a while."""
        if self.world.asleep:
            return
        span = self.dice.choice((0.3, 2.0, 6.0, 15.0, 40.0))
        clocks_first = self.dice.random() < 0.5
        self._note(f"the client sleeps for {span} s")
        self.world.suspend()
        self._later(span, lambda: self.world.resume(clocks_first=clocks_first))

    def crash_client(self, _name: str, _link: Link) -> None:
        """The client's process dies and begins anew."""
        if self.world.asleep:
            return
        self._note("the client's process dies and begins anew")
        self.world.restart_client()

    def restart_gateway(self, _name: str, _link: Link) -> None:
        """The gateway's process dies; it is back at once, or later."""
        if self.world.gateway is None:
            return
        self.world.stop_gateway()
        span = self.dice.choice((0.0, 0.0, 0.3, 3.0, 10.0))
        self._note(f"the gateway restarts, away for {span} s")
        self._later(span, self.world.start_gateway)

    def socket_breaks(self, name: str, _link: Link) -> None:
        """The kernel refuses to send."""
        self._note(f"the socket on {name} fails with ENETDOWN")
        self.world.post("client", inp.SocketFailed(self.world.id(name), "ENETDOWN", local=True))

    def icmp(self, name: str, _link: Link) -> None:
        """An error that anybody could have sent."""
        self._note(f"ICMP says {name} is refused")
        self.world.post("client", inp.SocketFailed(self.world.id(name), "ECONNREFUSED", local=False))

    def clock_jumps(self, _name: str, _link: Link) -> None:
        """A wall clock jumps."""
        side, jump = self.dice.choice(("client", "gateway")), self.dice.choice((-86_400_000, -5000, 5000, 86_400_000))
        self._note(f"the {side}'s wall clock jumps by {jump / 1000:g} s")
        self.world.skew_ms[side] += jump

    def store(self, _name: str, _link: Link) -> None:
        """The gateway's store is slow, away, lost to another writer, or fine."""
        store = self.world.gateway_store
        verdict = self.dice.choice((COMMITTED, COMMITTED, COMMITTED, UNAVAILABLE, CONFLICT))
        store.delay = self.dice.choice((0, 5, 200, 1000, 3000)) * MILLISECOND
        store.verdict = lambda _order: verdict
        self._note(f"the store answers {verdict} after {store.delay // MILLISECOND} ms")

    def bad_welcome(self, _name: str, _link: Link) -> None:
        """The next welcome that reaches the client cannot be read."""
        self._note("the next welcome is malformed")
        self.world.bad_welcome = True

    # --- attacks -----------------------------------------------------------------------------------------------------

    def replay(self, _name: str, _link: Link) -> None:
        """Copies of requests that were seen on the way, from the client's address or another."""
        recent = self.world.requests[-8:]
        for _ in range(self.dice.randrange(1, 4)):
            if recent:
                request, source = self.dice.choice(recent)
                address = source if self.dice.random() < 0.5 else ATTACKER
                self._note(f"a copy of request {request.nonce} comes from {address}")
                if self.world.gateway is not None:
                    self.world.inject(request, address, copied=True)

    def forge(self, name: str, link: Link) -> None:
        """A request for the live session whose proof is wrong."""
        session = self.world.client.session
        if session is None or not self.world.uid:
            return
        self._note(f"a forged request comes as if from {name}")
        made = inp.ReattachAsked(
            self.world.number(), self.world.uid, TransportId(f"path{self.dice.randrange(8)}/udp"), link.address,
            False, True, self.dice.random() < 0.5, f"forged{self.world.number()}", type(session.epoch)(
                session.epoch + self.dice.randrange(3)), int(session.peer_version), 1000, 0,
        )  # fmt: skip
        self.world.post("gateway", made)

    def strange_session(self, _name: str, _link: Link) -> None:
        """A request for a session that nobody knows."""
        self._note("a request for an unknown session")
        nonce = f"strange{self.world.number()}"
        epoch: Any = 1
        asked = inp.ReattachAsked(
            self.world.number(), None, TransportId("path0/udp"), ATTACKER, False, True, False, nonce, epoch, 1, 0, 0
        )
        self.world.post("gateway", asked)

    def stranger(self, _name: str, _link: Link) -> None:
        """A handshake with a key that is on no list."""
        self._note("a handshake of an unknown device")
        world = self.world
        offered = inp.HandshakeOffered(world.number(), world.new_id(), b"stranger", None, ATTACKER, world.stamp())
        world.post("gateway", offered)

    # --- people ------------------------------------------------------------------------------------------------------

    def operator_switch(self, name: str, _link: Link) -> None:
        """An operator asks for a transport."""
        self._note(f"the operator asks for {name}")
        self.world.post("client", inp.OperatorSwitch(self.world.id(name)))

    def operator_ends(self, _name: str, _link: Link) -> None:
        """An operator ends the session, at either end."""
        side = self.dice.choice(("client", "gateway"))
        self._note(f"the operator ends the session at the {side}")
        if self.world.uid:
            self.world.post(side, inp.OperatorTerminate(self.world.uid))

    def reload(self, _name: str, _link: Link) -> None:
        """Another policy, at either end."""
        side, rules = self.dice.choice(("client", "gateway")), self.dice.choice(self.profile.reloads)
        if side == "client" or self.world.gateway is not None:
            self._note(f"the {side} loads policy {rules.version}")
            self.world.offer_policy(side, rules)

    def bad_reload(self, _name: str, _link: Link) -> None:
        """A policy with errors."""
        side = self.dice.choice(("client", "gateway"))
        self._note(f"the {side} is offered a policy with errors")
        self.world.offer_policy(side, None, ("session.transport_ttl: must be a duration",))

    def supersede(self, name: str, _link: Link) -> None:
        """The same device completes a handshake elsewhere."""
        if self.world.gateway is not None:
            self._note(f"the device is used elsewhere, over {name}")
            self.world.supersede(name)

    def traffic(self, _name: str, _link: Link) -> None:
        """Inner packets begin or cease."""
        self.world.traffic = not self.world.traffic
        self._note(f"traffic {'begins' if self.world.traffic else 'ceases'}")

    # --- the end -----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything works again, and policy allows."""
        self.over = True
        world = self.world
        self._note("everything is healed")
        for link in world.links.values():
            link.calm()
        world.gateway_store.verdict, world.gateway_store.delay = (lambda _order: COMMITTED), 2 * MILLISECOND
        world.bad_welcome = False
        if world.asleep:
            world.resume()
        if world.gateway is None:
            world.start_gateway()
        world.traffic = True
        world.up(*self.profile.links)
        world.offer_policy("client", self.profile.healed[0])
        world.offer_policy("gateway", self.profile.healed[1])
