"""The lab's network as data, and the scripts that build it.

::

    client                 wifi (router, NAT)                 gateway                  server
    wlan0 192.168.10.2 ──── lan0 .1 │ wan0 203.0.113.2 ──── pub0 203.0.113.1
                  (emulator)                                lo   192.0.2.1   in0 ──── eth0 10.99.0.2
    wwan0 192.168.20.2 ──── lan0 .1 │ wan0 198.51.100.2 ─── pub1 198.51.100.1  10.99.0.1   192.0.2.2
                           lte  (router, NAT)

The gateway is reached at 192.0.2.1 through both routers. The server is a private host (10.99.0.2) that only the tunnel
reaches, and also a public one (192.0.2.2), to compare with traffic that uses no tunnel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GATEWAY_PUBLIC = "192.0.2.1"
SERVER_PUBLIC = "192.0.2.2"
INNER_NETWORK = "10.99.0.0/24"
GATEWAY_INNER = "10.99.0.1"
SERVER_INNER = "10.99.0.2"

NAMESPACES = ("client", "wifi", "lte", "gateway", "server", "air")

# Two halves of the port space, used in turn, so that a new NAT mapping never repeats the old port.
_PORT_HALVES = ("1024-32767", "32768-65535")


@dataclass(frozen=True, slots=True)
class Uplink:
    """One way out of the client: its interface, the router behind it, and the router's public side."""

    name: str
    interface: str
    client_address: str
    router_address: str
    metric: int
    nat_addresses: tuple[str, str]
    gateway_interface: str
    gateway_address: str

    @property
    def default_route(self) -> str:
        return f"default via {self.router_address} dev {self.interface} metric {self.metric}"


UPLINKS: Mapping[str, Uplink] = {
    "wifi": Uplink(
        "wifi", "wlan0", "192.168.10.2", "192.168.10.1", 100, ("203.0.113.2", "203.0.113.3"), "pub0", "203.0.113.1"
    ),
    "lte": Uplink(
        "lte", "wwan0", "192.168.20.2", "192.168.20.1", 200, ("198.51.100.2", "198.51.100.3"), "pub1", "198.51.100.1"
    ),
}

# Common to every host: loose reverse-path checks as distributions set them, no IPv6 chatter on our links.
HOST = """
ip link set lo up
for key in ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter; do echo 2 > /proc/sys/net/$key; done
for key in all default; do
    if [ -e /proc/sys/net/ipv6/conf/$key/accept_dad ]; then echo 0 > /proc/sys/net/ipv6/conf/$key/accept_dad; fi
done
"""

# Chains that a scenario fills stand ready and empty: to make or remove one costs the kernel 15 ms, a rule costs one.
_ROUTER_TABLES = """
table netdev blackhole {
    chain up { type filter hook ingress device lan0 priority -500; }
    chain down { type filter hook egress device lan0 priority -500; }
}
table ip nat {
    chain outgoing { type nat hook postrouting priority srcnat; }
}
table ip firewall {
    chain unsolicited {
        type filter hook input priority filter
        iifname wan0 meta l4proto { tcp, udp } ct state { new, invalid } drop
    }
    chain forwarded {
        type filter hook forward priority filter
        iifname wan0 ct state { new, invalid } drop
    }
}
"""


def wiring(paths: Mapping[str, str], emulated: Mapping[str, bool], mtu: Mapping[str, int]) -> dict[str, str]:
    """Return, per namespace, the shell script that creates the cables which begin there."""
    inner = f"ip link add in0 type veth peer name eth0 netns {paths['server']}\n"
    scripts = {"gateway": inner, **client_cables(paths, emulated, mtu)}
    for uplink in UPLINKS.values():
        far = paths[uplink.name]
        scripts["gateway"] += f"ip link add {uplink.gateway_interface} type veth peer name wan0 netns {far}\n"
    return scripts


def client_cables(paths: Mapping[str, str], emulated: Mapping[str, bool], mtu: Mapping[str, int]) -> dict[str, str]:
    """Return the scripts of "client" and "air" that lay the cables between the client and its two routers."""
    scripts = {"client": "", "air": ""}
    for uplink in UPLINKS.values():
        name, size = uplink.name, mtu[uplink.name]
        if emulated[name]:
            for end, near, host in (("c", uplink.interface, "client"), ("r", "lan0", name)):
                scripts["air"] += air_cable(air_interface(uplink, end), near, paths[host], size)
        else:
            scripts["client"] += (
                f"ip link add {uplink.interface} mtu {size} type veth peer name lan0 mtu {size} netns {paths[name]}\n"
            )
    return scripts


def air_cable(air: str, interface: str, path: str, mtu: int) -> str:
    """Return the script that lays a cable from the emulator's interface `air` to `interface` of another namespace."""
    return (
        f"ip link add {air} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {path}\n"
        f"ip link set {air} addrgenmode none arp off up\n"
    )


def addressing() -> dict[str, str]:
    """Return, per namespace, the shell script that gives its host addresses, routes and NAT."""
    return {
        "client": HOST + "".join(client_uplink(uplink) for uplink in UPLINKS.values()),
        **{uplink.name: router(uplink, f"default via {uplink.gateway_address}") for uplink in UPLINKS.values()},
        "gateway": _gateway(),
        "server": HOST
        + bring_up("eth0", SERVER_INNER)
        + f"""
ip address add {SERVER_PUBLIC}/32 dev lo
ip route add default via {GATEWAY_INNER} dev eth0
""",
    }


def client_uplink(uplink: Uplink) -> str:
    """Return the script that brings an uplink of the client to its ordinary state, whatever was taken from it."""
    return f"""
ip link set {uplink.interface} addrgenmode none up
ip address replace {uplink.client_address}/24 dev {uplink.interface}
ip route replace {uplink.default_route}
"""


def nat_rules(mapping: int, address: str) -> str:
    """Return the nft transaction that gives every new flow a random port of one half of the port space.

    The rules go before those that are there, which takes effect at once; see `nat_rules_alone`.
    """
    ports = _PORT_HALVES[mapping % 2]
    return f"""
insert rule ip nat outgoing oifname wan0 snat to {address}
insert rule ip nat outgoing oifname wan0 meta l4proto {{ tcp, udp }} snat to {address}:{ports} fully-random
"""


def nat_rules_alone(mapping: int, address: str) -> str:
    """Return the nft transaction that also removes older rules, which the kernel takes 15 ms for."""
    return "flush chain ip nat outgoing\n" + nat_rules(mapping, address)


def blackhole_rules(direction: str) -> str:
    """Return the nft transaction that makes a router's client side drop frames silently; "none" ends it."""
    chains = {"up": ("up",), "down": ("down",), "both": ("up", "down"), "none": ()}[direction]
    return "flush table netdev blackhole\n" + "".join(
        f"add rule netdev blackhole {chain} counter drop\n" for chain in chains
    )


def air_interface(uplink: Uplink, end: str) -> str:
    """Return the emulator's interface towards the client (end "c") or the router (end "r")."""
    return f"{uplink.name}-{end}"


def here_document(command: str, text: str) -> str:
    """Return a shell command that is fed with `text`."""
    return f"{command} <<'END'\n{text}\nEND\n"


def router(uplink: Uplink, onward: str) -> str:
    """Return the script of an uplink's NAT router; `onward` is its route to the gateways, as ip(8) takes it."""
    first, second = uplink.nat_addresses
    return (
        HOST
        + bring_up("lan0", uplink.router_address)
        + bring_up("wan0", first)
        + f"""
ip address add {second}/24 dev wan0
ip route add {onward} dev wan0
ip route add blackhole 10.0.0.0/8
echo 1 > /proc/sys/net/ipv4/ip_forward
"""
        + here_document("nft -f -", _ROUTER_TABLES + nat_rules(0, first))
    )


def _gateway() -> str:
    """Give the gateway one public identity: it answers from the address that clients know, whichever way they came."""
    public = ""
    for uplink in UPLINKS.values():
        interface, address = uplink.gateway_interface, uplink.gateway_address
        network = f"{address.rpartition('.')[0]}.0/24"
        public += bring_up(interface, address) + f"ip route replace {network} dev {interface} src {GATEWAY_PUBLIC}\n"
    return (
        HOST
        + f"ip address add {GATEWAY_PUBLIC}/32 dev lo\n"
        + public
        + bring_up("in0", GATEWAY_INNER)
        + f"""
ip route add {SERVER_PUBLIC}/32 via {SERVER_INNER} dev in0
echo 1 > /proc/sys/net/ipv4/ip_forward
"""
    )


def bring_up(name: str, address: str) -> str:
    """Return the script that brings an interface up with one address of a /24."""
    return f"ip link set {name} addrgenmode none up\nip address add {address}/24 dev {name}\n"
