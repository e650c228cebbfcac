"""What can go wrong in a cluster, one method a fault; a seed's theme says which of them come often."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from jumpvpn.engine import inputs as inp
from jumpvpn.session.state import State
from jumpvpn.sim.cluster.client import ClientHost
from jumpvpn.sim.cluster.gateway import GatewayHost
from jumpvpn.sim.cluster.world import ClusterWorld
from jumpvpn.sim.link import Link
from jumpvpn.values import MILLISECOND, SECOND, SessionId

PROCESSES = ("kill", "kill_at_a_grant", "stop", "pause", "drain")
STORE = ("cut_store", "outage", "slow_store", "lost_answers", "late_watch", "compacts", "clock_jumps", "late_claim")
NETWORK = ("cut_clients", "one_way", "slow_link", "swallow", "rebind", "link_down")
PEOPLE = ("replay", "operator_switch", "back_and_forth", "operator_ends", "crash_client", "traffic")

THEMES: Mapping[str, Mapping[str, int]] = {
    "everything": dict.fromkeys((*PROCESSES, *STORE, *NETWORK, *PEOPLE), 2) | {"operator_ends": 1, "crash_client": 1},
    "crashes": {"kill": 4, "kill_at_a_grant": 4, "stop": 2, "cut_clients": 2, "traffic": 1, "replay": 2,
                "lost_answers": 1},
    "stops": {"pause": 6, "kill": 1, "slow_link": 1, "swallow": 1, "cut_clients": 2, "drain": 1},
    "partitions": {"cut_store": 6, "cut_clients": 4, "outage": 1, "late_watch": 2, "one_way": 2},
    "store": {"outage": 3, "slow_store": 3, "lost_answers": 4, "late_watch": 3, "compacts": 1, "kill": 2,
              "cut_clients": 3},
    "moves": {"cut_clients": 4, "operator_switch": 4, "back_and_forth": 3, "drain": 4, "link_down": 2, "slow_link": 2,
              "swallow": 3, "stop": 2},
    "attack": {"replay": 8, "kill_at_a_grant": 2, "cut_clients": 3, "kill": 3, "operator_switch": 2, "slow_link": 2,
               "swallow": 2},
    "late claims": {"late_claim": 6, "kill": 1, "cut_store": 1, "operator_switch": 2, "crash_client": 1, "drain": 1},
    "clocks": {"clock_jumps": 4, "kill": 3, "cut_clients": 3, "cut_store": 2, "pause": 1},
}  # fmt: skip
"""Weights by theme."""

RESTART_SECONDS = 0.3  # of a process that died and is started again at once
PAUSES = (0.0, 0.05, 0.3, 1.0, 2.0, 4.0)
KINDS = ("committed", "challenge", "request", "denied", "hint", "report", "standby_reply", "close", "drain", "gateways")
SMALL_JUMPS, LARGE_JUMPS = (-5_000, -500, 500, 5_000), (-86_400_000, 86_400_000)


class Trouble:
    """Strikes ``world`` with one fault after the other; what it breaks for a while heals by itself."""

    def __init__(self, world: ClusterWorld, dice: random.Random) -> None:
        self.world, self.dice = world, dice
        self.theme = dice.choice(tuple(THEMES))
        self.over = False
        self.well: tuple[str, ...] = ()
        weights = THEMES[self.theme]
        self._names, self._weights = tuple(weights), tuple(weights.values())

    def strike(self) -> None:
        """One fault, then some time."""
        name = self.dice.choices(self._names, self._weights)[0]
        fault: Callable[[GatewayHost, ClientHost], None] = getattr(self, name)
        client = self.dice.choice(self.world.clients)
        home = client.client_plane.home
        hosts = list(self.world.gateways.values())
        host = self.world.gateways[home] if home and self.dice.random() < 0.6 else self.dice.choice(hosts)
        fault(host, client)
        self.world.run(self.dice.choice(PAUSES))

    def _note(self, words: str) -> None:
        self.world.note(f"fault    {words}")

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it then, unless everything has been healed meanwhile."""
        self.world.later(int(seconds * SECOND), self._unless_over, action)

    def _unless_over(self, action: Callable[[], None]) -> None:
        if not self.over:
            action()

    def _span(self, host: GatewayHost) -> float:
        """Shorter than a lease, about as long, or longer than it and than what adoption waits for."""
        lease = host.config.lease / SECOND
        return self.dice.choice((0.3, 0.8 * lease, 1.2 * lease, 2.0 * lease + 2, 3 * lease + 6))

    # --- processes ---------------------------------------------------------------------------------------------------

    def kill(self, host: GatewayHost, _client: ClientHost) -> None:
        """SIGKILL, with or without what the machine has on disk."""
        lose = self.dice.random() < 0.3
        span = self.dice.choice((0.0, 0.5, self._span(host)))
        self._note(f"{host.name} dies{' and loses its disk' if lose else ''}, back in {span:.1f} s")
        host.wanted = False
        host.kill(lose_disk=lose)
        self._later(span, host.start)

    def kill_at_a_grant(self, _host: GatewayHost, client: ClientHost) -> None:
        """Whichever gateway grants next dies before the store has that; its client is silent for a while."""
        wait, silent = self.dice.choice((0.0, 0.05, 0.3)), self.dice.choice((0.0, 0.0, 2.0, 12.0))
        span = self.dice.choice((0.5, 8.0, 20.0))
        self._note("the next gateway that grants a request dies")

        def granted(name: str) -> None:
            self.world.later(int(wait * SECOND), self._unless_over, lambda: self._struck(name, client, silent, span))

        self.world.checker.at_grant = granted
        self.operator_switch(self.dice.choice(list(self.world.gateways.values())), client)

    def _struck(self, name: str, client: ClientHost, silent: float, span: float) -> None:
        host = self.world.gateways[name]
        self._note(f"{name} dies, back in {span} s, and {client.name} is silent for {silent} s")
        host.wanted = False
        host.kill()
        self._later(span, host.start)
        if silent:
            self._silence(client, silent)

    def stop(self, host: GatewayHost, _client: ClientHost) -> None:
        """SIGTERM: sessions are sent away, the lease is given back; then it starts again."""
        span = self.dice.choice((6.0, 7.0 + self._span(host)))
        self._note(f"{host.name} is asked to stop, back in {span:.1f} s")
        host.leave()
        self._later(span, lambda: self._restart(host))

    def _restart(self, host: GatewayHost) -> None:
        host.kill()
        host.start()

    def pause(self, host: GatewayHost, _client: ClientHost) -> None:
        """SIGSTOP, and SIGCONT later."""
        span = self._span(host)
        self._note(f"{host.name} is stopped for {span:.1f} s")
        host.pause()
        self._later(span, host.resume)

    def drain(self, host: GatewayHost, _client: ClientHost) -> None:
        """Asked to be left; taken back later."""
        self._note(f"{host.name} drains")
        host.drain(on=True)
        self._later(self.dice.choice((2.0, 8.0)), lambda: host.drain(on=False))

    # --- the store ---------------------------------------------------------------------------------------------------

    def cut_store(self, host: GatewayHost, _client: ClientHost) -> None:
        """A gateway does not reach the store, or only one way."""
        way, span = self.world.server.way(host.name), self._span(host)
        kind = self.dice.choice(("both", "both", "up", "down", "watch", "watch"))
        way.cut_up, way.cut_down = kind in ("both", "up"), kind in ("both", "down")
        way.cut_watch = kind in ("both", "watch")
        self._note(f"{host.name} is cut from the store ({kind}) for {span:.1f} s")
        self._later(span, lambda: self._rejoin(host))

    def _rejoin(self, host: GatewayHost) -> None:
        self.world.server.way(host.name).heal()
        self.world.server.moved()

    def outage(self, host: GatewayHost, _client: ClientHost) -> None:
        """The store answers nobody, for less or more than lease and transport TTL."""
        ttl = self.world.plan.rules.session.transport_ttl / SECOND
        span = self.dice.choice((self._span(host), self._span(host), ttl + 2))
        self._note(f"the store is down for {span:.1f} s")
        self.world.server.down = True
        self._later(span, self._up)

    def _up(self) -> None:
        self.world.server.down = False
        self.world.server.moved()

    def slow_store(self, host: GatewayHost, _client: ClientHost) -> None:
        """Requests and answers take long, some longer than their sender waits."""
        way = self.world.server.way(host.name)
        way.delay = self.dice.choice((50, 300, 900)) * MILLISECOND
        self._note(f"{host.name} has {way.delay // MILLISECOND} ms to the store")

    def lost_answers(self, host: GatewayHost, _client: ClientHost) -> None:
        """What was carried out is not answered."""
        way = self.world.server.way(host.name)
        way.lose_answers = self.dice.choice((0.1, 0.3, 0.6, 0.0))
        self._note(f"the store's answers to {host.name} are lost, {way.lose_answers:.0%} of them")

    def late_watch(self, host: GatewayHost, _client: ClientHost) -> None:
        """Changes are told late."""
        way = self.world.server.way(host.name)
        way.watch_delay = self.dice.choice((3, 200, 1000, 4000)) * MILLISECOND
        self._note(f"{host.name} hears of changes after {way.watch_delay // MILLISECOND} ms")

    def compacts(self, _host: GatewayHost, _client: ClientHost) -> None:
        """The store forgets its history."""
        self._note("the store forgets its history")
        self.world.server.compact(self.world.server.revision)

    def clock_jumps(self, host: GatewayHost, _client: ClientHost) -> None:
        """A gateway's wall clock jumps."""
        jump = self.dice.choice(SMALL_JUMPS if self.dice.random() < 0.8 else LARGE_JUMPS)
        self._note(f"{host.name}'s wall clock jumps by {jump / 1000:g} s")
        host.machine.skew_ms += jump
        skews = [0, *(other.machine.skew_ms for other in self.world.gateways.values())]
        self.world.checker.skew_ms = max(self.world.checker.skew_ms, max(skews) - min(skews))

    def late_claim(self, _host: GatewayHost, client: ClientHost) -> None:
        """A gateway dies; the next claim of a session is held up, and whoever asked for it gets into trouble, too.

        The claim may take place when its gateway is back and has listed what it owns, its client being silent.
        """
        silent = self.dice.choice((0.0, 3.0, 12.0, 30.0))
        cut = self.dice.choice((None, 1.0, 1.5))  # leases for which the gateway is cut from the store; None: it dies
        after = self.dice.choice((0.1, 0.2, 0.5, 1.0, 2.0))  # s after it is back

        def claims(name: str, session_id: bytes) -> int:
            struck = self.world.gateways[name]
            span = RESTART_SECONDS if cut is None else cut * struck.config.lease / SECOND
            self.world.later(0, self._unless_over, lambda: self._held_up(struck, session_id, span, silent, cut is None))
            return int((span + after) * SECOND)

        self._note("the next claim of a session is held up")
        self.world.server.at_claim = claims
        home = self.world.gateways.get(client.client_plane.home)
        if home is not None:
            self._note(f"{home.name} dies, back in 20 s")
            home.wanted = False
            home.kill()
            self._later(20.0, home.start)

    def _held_up(self, host: GatewayHost, session_id: bytes, span: float, silent: float, dies: bool) -> None:
        self._note(
            f"{host.name}, whose claim is on its way, {'dies' if dies else 'is cut from the store'} for {span} s"
        )
        if dies:
            host.wanted = False
            host.kill()
            self._later(span, host.start)
        else:
            way = self.world.server.way(host.name)
            way.cut_up = way.cut_down = True
            self._later(span, lambda: self._rejoin(host))
        for client in self.world.clients:
            if silent and client.uid in ("", SessionId(session_id).uid):
                self._silence(client, silent)

    def _silence(self, client: ClientHost, seconds: float) -> None:
        self._note(f"{client.name} is silent for {seconds} s")
        for interface in client.interfaces:
            self._interface(client, interface, up=False)
        self._later(seconds, lambda: self._all_up(client))

    # --- the network -------------------------------------------------------------------------------------------------

    def _links(self, host: GatewayHost, client: ClientHost) -> list[Link]:
        clients = self.world.clients if self.dice.random() < 0.5 else [client]
        ways = [(c, t) for c in clients for t in list(c.client.transports) if t.endswith(f"/{host.name}")]
        return [self.world.link(found, transport) for found, transport in ways]

    def _calm(self, links: list[Link]) -> None:
        for link in links:
            link.calm()

    def cut_clients(self, host: GatewayHost, client: ClientHost) -> None:
        """Between one gateway and one or all clients nothing passes."""
        links, span = self._links(host, client), self._span(host)
        self._note(f"{host.name} is cut from {len(links)} ways of clients for {span:.1f} s")
        for link in links:
            link.passes = False
        self._later(span, lambda: self._calm(links))

    def one_way(self, host: GatewayHost, client: ClientHost) -> None:
        """One direction is gone."""
        up = self.dice.random() < 0.5
        links = self._links(host, client)
        self._note(f"{len(links)} ways pass only {'towards' if up else 'from'} {host.name}")
        for link in links:
            link.passes_up, link.passes_down = up, not up
        self._later(self._span(host), lambda: self._calm(links))

    def slow_link(self, host: GatewayHost, client: ClientHost) -> None:
        """Answers come when their asker has gone on: two requests are in flight at two gateways."""
        delay = self.dice.choice((100, 300, 700)) * MILLISECOND
        links = self._links(host, client)
        self._note(f"{len(links)} ways to {host.name} take {delay // MILLISECOND} ms")
        for link in links:
            link.delay = delay
        self._later(self._span(host), lambda: self._calm(links))

    def swallow(self, host: GatewayHost, client: ClientHost) -> None:
        """A middlebox swallows one kind of message."""
        kind = self.dice.choice(KINDS)
        links = self._links(host, client)
        self._note(f"each {kind} between {host.name} and {len(links)} ways is swallowed")
        for link in links:
            link.drop = lambda sent: sent == kind
        self._later(self._span(host), lambda: self._calm(links))

    def rebind(self, _host: GatewayHost, client: ClientHost) -> None:
        """A NAT forgets."""
        for transport in list(client.client.transports):
            address = f"10.{self.dice.randrange(100, 200)}.9.{self.dice.randrange(250)}:{self.world.number()}"
            self.world.rebind(client, transport, address)
        self._note(f"{client.name} is seen under other addresses")

    def link_down(self, _host: GatewayHost, client: ClientHost) -> None:
        """An interface vanishes, and is back later."""
        name = self.dice.choice(tuple(client.interfaces))
        span = self.dice.choice((0.5, 3.0, 8.0))
        self._note(f"{client.name}'s {name} is down for {span} s")
        self._interface(client, name, up=False)
        self._later(span, lambda: self._interface(client, name, up=True))

    def _all_up(self, client: ClientHost) -> None:
        for interface in client.interfaces:
            self._interface(client, interface, up=True)

    def _interface(self, client: ClientHost, name: str, *, up: bool) -> None:
        client.interfaces[name] = up
        client.refresh()

    # --- people and attackers ----------------------------------------------------------------------------------------

    def replay(self, _host: GatewayHost, _client: ClientHost) -> None:
        """Copies of requests reach any gateway, from their address or another."""
        for request, raw, source in self.dice.choices(self.world.requests, k=3) if self.world.requests else ():
            host = self.dice.choice(list(self.world.gateways.values()))
            address = source if self.dice.random() < 0.6 else "203.0.113.66:6666"
            self._note(f"a copy of request {request.nonce} reaches {host.name} from {address}")
            self.world.inject(host, request, raw, address)

    def operator_switch(self, host: GatewayHost, client: ClientHost) -> None:
        """An operator asks for a transport, mostly to another gateway."""
        wanted = [t for t in client.client.transports if t.endswith(f"/{host.name}")]
        if wanted:
            transport = self.dice.choice(wanted)
            self._note(f"{client.name} is asked to use {transport}")
            client.post("client", inp.OperatorSwitch(transport))

    def back_and_forth(self, host: GatewayHost, client: ClientHost) -> None:
        """A session leaves its gateway and is back before that one has heard of it."""
        home = client.client_plane.home
        others = [name for name in self.world.gateways if name != home]
        if not home or client.session is None:
            return
        self.world.server.way(home).watch_delay = self.dice.choice((500, 1000, 1500)) * MILLISECOND
        self._note(f"{client.name} goes to {others[0]} and back to {home}, which hears late")
        self.operator_switch(self.world.gateways[others[0]], client)
        self._later(0.2, lambda: self.operator_switch(self.world.gateways[home], client))

    def operator_ends(self, host: GatewayHost, client: ClientHost) -> None:
        """An operator ends a session, at either end."""
        if self.dice.random() < 0.5 and client.session is not None:
            self._note(f"{client.name}'s session is ended by its operator")
            client.checker.ending.add(("client", client.uid))
            client.post("client", inp.OperatorTerminate(client.uid))
        elif host.running and client.uid:
            self._note(f"{client.name}'s session is ended at {host.name}")
            host.terminate(client.uid)

    def crash_client(self, _host: GatewayHost, client: ClientHost) -> None:
        """A client's process dies and begins anew: its former session is superseded."""
        self._note(f"{client.name} begins anew")
        client.begin()

    def traffic(self, _host: GatewayHost, _client: ClientHost) -> None:
        """Inner packets begin or cease."""
        self.world.traffic = not self.world.traffic

    def again(self) -> None:
        """Clients whose sessions ended are started again, sometimes."""
        for client in self.world.clients:
            session = client.session
            if session is not None and session.state is State.TERMINATED and self.dice.random() < 0.3:
                self._note(f"{client.name} is started again")
                client.begin()

    # --- the end -----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Some gateways, one at least, are reachable from everywhere for good; the others stay as they are."""
        self.over = True
        world, names = self.world, list(self.world.gateways)
        known = world.plan.configured
        first = self.dice.choice(known)
        self.well = tuple(n for n in names if n == first or self.dice.random() < 0.5)
        self._note(f"{' and '.join(self.well)} work for good")
        world.server.down = False
        for name in self.well:
            host = world.gateways[name]
            world.server.way(name).heal()
            if host.leaving:
                host.kill()
            host.resume()
            host.start()
            host.drain(on=False)
        world.server.moved()
        for client in world.clients:
            for name in client.interfaces:
                client.interfaces[name] = True
            for transport, link in client.links.items():
                if transport.split("/")[2] in self.well:
                    link.calm()
            client.refresh()
        world.traffic = True
