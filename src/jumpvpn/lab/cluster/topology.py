"""The cluster's network as data, and the scripts that build it.

::

    client   wifi (router, NAT)                      gw1, gw2, gw3                     server
    wlan0 ── lan0 │ wan0 203.0.113.2 ──┐         ┌── pub0 192.0.2.11…
    wwan0 ── lan0 │ wan0 198.51.100.2 ─┤ outside ┤
             lte  (router, NAT)        │ segment │   in0  10.99.0.11… ── inside ────── eth0 10.99.0.2
    c1, c2, …   eth0 192.0.2.101… ─────┘                                segment        10.77.0.0/24 on-link
                                                     st0  10.98.0.11… ── store ─┬──── eth0 10.98.0.1… (etcd1 … etcd3)
                                                                        segment └──── eth0 10.98.0.100 (observer)

The server has the inner addresses of all clients on its own segment: it asks by ARP who has them, and nobody translates
addresses, so its TCP connections find a client only through the gateway that owns the client's session.

Every segment is a bridge in the namespace "switch"; the store's is two bridges with a trunk between them (gateways on
one side, etcd and the observer on the other), so that one emulated link can make the store slow. A cut names a
source by its hardware address and a destination by its port, for all protocols, ARP included, and one way at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jumpvpn.lab.topology import (
    HOST,
    SERVER_INNER,
    UPLINKS,
    air_cable,
    bring_up,
    client_cables,
    client_uplink,
    here_document,
    router,
)

MEMBERS = ("etcd1", "etcd2", "etcd3")
MOST_GATEWAYS = 8
MOST_CROWD = 100  # addresses 192.0.2.101 to .200
OUTSIDE_NETWORK = "192.0.2.0/24"
INNER_POOL = "10.77.0.0/24"
OBSERVER = "observer"
SWITCH = "switch"
TRUNK = "trunk"  # the emulated link of the store's segment

_STORE_GATEWAYS, _STORE_MEMBERS = "store-g", "store-e"
_BRIDGES = ("outside", "inside", _STORE_GATEWAYS, _STORE_MEMBERS)
_CUTS = """
table bridge cuts {
    set pairs { type ether_addr . ifname; }
    chain forward { type filter hook forward priority 0; ether saddr . oifname @pairs counter drop; }
}
"""


@dataclass(frozen=True, slots=True)
class Port:
    """One cable of a host into the switch: the host's interface, its segment, and both ends' names."""

    host: str
    interface: str
    bridge: str
    name: str
    mac: str


@dataclass(frozen=True, slots=True)
class Shape:
    """How many gateways ("gw1", …) and clients with one plain uplink ("c1", …) there are beside the roaming client."""

    gateways: int = 2
    crowd: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.gateways <= MOST_GATEWAYS or not 0 <= self.crowd <= MOST_CROWD:
            raise ValueError(f"1 to {MOST_GATEWAYS} gateways and up to {MOST_CROWD} more clients")

    @property
    def gateway_names(self) -> tuple[str, ...]:
        """The gateways' namespaces and node names."""
        return tuple(f"gw{number}" for number in range(1, self.gateways + 1))

    @property
    def crowd_names(self) -> tuple[str, ...]:
        """The namespaces of the clients with one uplink."""
        return tuple(f"c{number}" for number in range(1, self.crowd + 1))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All namespaces of the lab."""
        hosts = ("client", "wifi", "lte", "air", SWITCH, "server", OBSERVER, *MEMBERS)
        return (*hosts, *self.gateway_names, *self.crowd_names)

    def ports(self) -> tuple[Port, ...]:
        """Every cable into the switch."""
        plan = [(uplink.name, "wan0", "outside") for uplink in UPLINKS.values()]
        plan += [("server", "eth0", "inside"), (OBSERVER, "eth0", _STORE_MEMBERS)]
        plan += [(member, "eth0", _STORE_MEMBERS) for member in MEMBERS]
        for gateway in self.gateway_names:
            plan += [(gateway, "pub0", "outside"), (gateway, "in0", "inside"), (gateway, "st0", _STORE_GATEWAYS)]
        plan += [(client, "eth0", "outside") for client in self.crowd_names]
        return tuple(
            Port(host, interface, bridge, f"{host}-{interface}", f"02:00:00:00:{index >> 8:02x}:{index & 255:02x}")
            for index, (host, interface, bridge) in enumerate(plan, 1)
        )


def gateway_public(name: str) -> str:
    """Where clients reach a gateway."""
    return f"192.0.2.{10 + _number(name)}"


def gateway_inside(name: str) -> str:
    """A gateway's address on the server's segment."""
    return f"10.99.0.{10 + _number(name)}"


def gateway_store(name: str) -> str:
    """A gateway's address on the store's segment."""
    return f"10.98.0.{10 + _number(name)}"


def member_address(name: str) -> str:
    """Where an etcd server listens."""
    return f"10.98.0.{_number(name)}"


def crowd_address(name: str) -> str:
    """The outer address of a client with one uplink."""
    return f"192.0.2.{100 + _number(name)}"


def wiring(
    shape: Shape,
    paths: Mapping[str, str],
    emulated: Mapping[str, bool],
    mtu: Mapping[str, int],
    *,
    slow_store: bool,
) -> dict[str, str]:
    """Return, per namespace, the script that lays the cables which begin there; `slow_store` emulates the trunk."""
    scripts = client_cables(paths, emulated, mtu)
    switch = "".join(
        f"ip link add {bridge} type bridge forward_delay 0 mcast_snooping 0\nip link set {bridge} addrgenmode none up\n"
        for bridge in _BRIDGES
    )
    for port in shape.ports():
        far = f"name {port.interface} address {port.mac} netns {paths[port.host]}"
        switch += f"ip link add {port.name} type veth peer {far}\n" + _plugged(port.name, port.bridge)
    if slow_store:
        scripts["air"] += "".join(air_cable(f"{TRUNK}-{end}", f"{TRUNK}-{end}", paths[SWITCH], 1500) for end in "ge")
    else:
        switch += f"ip link add {TRUNK}-g type veth peer name {TRUNK}-e\n"
        switch += _trunk()
    scripts[SWITCH] = switch + here_document("nft -f -", _CUTS)
    return scripts


def addressing(shape: Shape, *, slow_store: bool) -> dict[str, str]:
    """Return, per namespace, the script that gives its host addresses and routes."""
    scripts = {
        "client": HOST + "".join(client_uplink(uplink) for uplink in UPLINKS.values()),
        **{uplink.name: router(uplink, OUTSIDE_NETWORK) for uplink in UPLINKS.values()},
        "server": HOST + bring_up("eth0", SERVER_INNER) + f"ip route add {INNER_POOL} dev eth0 src {SERVER_INNER}\n",
        OBSERVER: HOST + bring_up("eth0", "10.98.0.100"),
        **{member: HOST + bring_up("eth0", member_address(member)) for member in MEMBERS},
        **{client: HOST + bring_up("eth0", crowd_address(client)) for client in shape.crowd_names},
        **{gateway: _gateway(gateway) for gateway in shape.gateway_names},
    }
    if slow_store:
        scripts[SWITCH] = _trunk()
    return scripts


def cut_element(source: Port, target: Port) -> str:
    """The element of the switch's set that stops what `source` sends to `target`."""
    return f'{source.mac} . "{target.name}"'


def _gateway(name: str) -> str:
    behind = "".join(
        f"ip route add {uplink.gateway_address.rpartition('.')[0]}.0/24 dev pub0\n" for uplink in UPLINKS.values()
    )
    ours = (("pub0", gateway_public(name)), ("in0", gateway_inside(name)), ("st0", gateway_store(name)))
    return HOST + "".join(bring_up(*one) for one in ours) + behind + "echo 1 > /proc/sys/net/ipv4/ip_forward\n"


def _trunk() -> str:
    return _plugged(f"{TRUNK}-g", _STORE_GATEWAYS) + _plugged(f"{TRUNK}-e", _STORE_MEMBERS)


def _plugged(port: str, bridge: str) -> str:
    return f"ip link set {port} master {bridge} addrgenmode none up\n"


def _number(name: str) -> int:
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
