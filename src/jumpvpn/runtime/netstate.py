"""What the kernel says about interfaces, addresses and routes, as values; everything here is pure."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Message = Mapping[str, Any]

_IFF_UP, _IFF_RUNNING, _IFF_LOWER_UP = 0x1, 0x40, 0x10000
_IFA_TENTATIVE, _IFA_DADFAILED, _IFA_DEPRECATED = 0x40, 0x08, 0x20
_SCOPE_LINK = 253  # link and host scope (254) cannot reach a gateway elsewhere
_ROUTE_UNICAST = 1
_ROUTE_CLONED = 0x200
_NEXTHOP_DEAD = 0x1
_TABLES = frozenset({253, 254})  # default and main: where routes to the outside live

FAMILY_OF_VERSION = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True, order=True)
class Interface:
    """One network interface. ``is_up``: administratively up and with carrier."""

    index: int
    name: str
    is_up: bool


@dataclass(frozen=True, slots=True)
class Address:
    """One address on one interface. ``is_usable``: of wide scope and not awaiting duplicate detection."""

    index: int
    ip: IPAddress
    prefix_length: int
    is_usable: bool
    is_deprecated: bool = False

    @property
    def network(self) -> IPNetwork:
        """The on-link network of this address."""
        return ipaddress.ip_network((self.ip, self.prefix_length), strict=False)


@dataclass(frozen=True, slots=True)
class Route:
    """One unicast route of the main tables through one interface."""

    network: IPNetwork
    index: int
    gateway: IPAddress | None
    source: IPAddress | None
    metric: int
    table: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it at one moment."""

    interfaces: Mapping[int, Interface] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()
    routes: frozenset[Route] = frozenset()

    def name_of(self, index: int) -> str:
        """Interface name, or ``#index`` for one that is not known."""
        found = self.interfaces.get(index)
        return f"#{index}" if found is None else found.name


@dataclass(frozen=True, slots=True)
class InterfaceAppeared:
    """An interface exists now."""

    interface: str


@dataclass(frozen=True, slots=True)
class InterfaceGone:
    """An interface exists no more."""

    interface: str


@dataclass(frozen=True, slots=True)
class InterfaceUp:
    """An interface can carry packets now."""

    interface: str


@dataclass(frozen=True, slots=True)
class InterfaceDown:
    """An interface can carry no packets: taken down, or without carrier."""

    interface: str


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """A usable address."""

    interface: str
    ip: IPAddress


@dataclass(frozen=True, slots=True)
class AddressRemoved:
    """An address is gone or no longer usable."""

    interface: str
    ip: IPAddress


@dataclass(frozen=True, slots=True)
class RouteAdded:
    """A route to ``network`` through ``interface``."""

    interface: str
    network: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class RouteRemoved:
    """A route is gone."""

    interface: str
    network: IPNetwork
    gateway: IPAddress | None


NetFact = (
    InterfaceAppeared
    | InterfaceGone
    | InterfaceUp
    | InterfaceDown
    | AddressAdded
    | AddressRemoved
    | RouteAdded
    | RouteRemoved
)


@dataclass(frozen=True, slots=True)
class Usable:
    """One way out: packets from ``source`` over ``interface`` have a route to the gateway's ``address``."""

    interface: str
    index: int
    source: IPAddress
    gateway: str
    address: IPAddress


def usable_transports(
    snapshot: Snapshot, gateways: Iterable[tuple[str, IPAddress]], is_allowed: Callable[[str], bool]
) -> tuple[Usable, ...]:
    """Every (interface, source, gateway address) that can carry packets now, in a stable order.

    ``gateways`` are (name, address) pairs; ``is_allowed`` tells by interface name (our own tunnel must be refused).
    """
    found = [
        usable
        for interface in sorted(snapshot.interfaces.values())
        if interface.is_up and is_allowed(interface.name)
        for name, address in gateways
        if (usable := _usable(snapshot, interface, name, address)) is not None
    ]
    return tuple(sorted(found, key=lambda u: (u.interface, u.gateway, u.address.version, u.address.packed)))


def apply(snapshot: Snapshot, message: Message) -> Snapshot:
    """``snapshot`` after one message of the kernel (parsed by pyroute2); messages of other kinds change nothing."""
    kind = message.get("event")
    if kind in ("RTM_NEWLINK", "RTM_DELLINK") and message["family"] != socket.AF_UNSPEC:
        return snapshot  # a bridge lost or gained a port: the interface itself is as it was
    if kind in ("RTM_NEWLINK", "RTM_DELLINK"):
        return _apply_link(snapshot, message, is_gone=kind == "RTM_DELLINK")
    if kind in ("RTM_NEWADDR", "RTM_DELADDR"):
        return _apply_address(snapshot, message, is_gone=kind == "RTM_DELADDR")
    if kind in ("RTM_NEWROUTE", "RTM_DELROUTE"):
        return _apply_route(snapshot, message, is_gone=kind == "RTM_DELROUTE")
    return snapshot


def needs_resync(message: Message) -> bool:
    """Whether the kernel may have dropped IPv4 routes along with this change without a message for each."""
    kind = message.get("event")
    return kind in ("RTM_DELADDR", "RTM_DELLINK") or (kind == "RTM_NEWLINK" and not message["flags"] & _IFF_UP)


def differences(old: Snapshot, new: Snapshot) -> list[NetFact]:
    """What changed, losses first: whoever acts on the facts in order never prefers what is already gone."""
    return [*_losses(old, new), *_gains(old, new)]


def _usable(snapshot: Snapshot, interface: Interface, gateway: str, address: IPAddress) -> Usable | None:
    route = _best_route(snapshot.routes, interface.index, address)
    if route is None:
        return None
    candidates = [
        a
        for a in snapshot.addresses
        if a.index == interface.index and a.is_usable and a.ip.version == address.version and a.ip != address
    ]
    if not candidates:
        return None
    next_hop = route.gateway or address

    def distance(a: Address) -> tuple[bool, bool, bool, bytes]:
        return a.ip != route.source, next_hop not in a.network, a.is_deprecated, a.ip.packed

    return Usable(interface.name, interface.index, min(candidates, key=distance).ip, gateway, address)


def _best_route(routes: Iterable[Route], index: int, address: IPAddress) -> Route | None:
    matching = [r for r in routes if r.index == index and r.network.version == address.version and address in r.network]
    return min(matching, key=lambda r: (-r.network.prefixlen, r.metric), default=None)


def _apply_link(snapshot: Snapshot, message: Message, *, is_gone: bool) -> Snapshot:
    index, flags = message["index"], message["flags"]
    interfaces = {i: interface for i, interface in snapshot.interfaces.items() if i != index}
    addresses, routes = snapshot.addresses, snapshot.routes
    if is_gone:
        addresses = frozenset(a for a in addresses if a.index != index)
    else:
        name = _attribute(message, "IFLA_IFNAME") or snapshot.name_of(index)
        wanted = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
        interfaces[index] = Interface(index, str(name), flags & wanted == wanted)
    if is_gone or not flags & _IFF_UP:
        routes = frozenset(r for r in routes if r.index != index)
    return Snapshot(interfaces, addresses, routes)


def _apply_address(snapshot: Snapshot, message: Message, *, is_gone: bool) -> Snapshot:
    text = _attribute(message, "IFA_LOCAL") or _attribute(message, "IFA_ADDRESS")
    if text is None:
        return snapshot
    flags = _attribute(message, "IFA_FLAGS") or message["flags"]
    ip = ipaddress.ip_address(text)
    address = Address(
        index=message["index"],
        ip=ip,
        prefix_length=message["prefixlen"],
        is_usable=message["scope"] < _SCOPE_LINK and not flags & (_IFA_TENTATIVE | _IFA_DADFAILED),
        is_deprecated=bool(flags & _IFA_DEPRECATED),
    )
    kept = frozenset(
        a
        for a in snapshot.addresses
        if (a.index, a.ip, a.prefix_length) != (address.index, address.ip, address.prefix_length)
    )
    return replace(snapshot, addresses=kept if is_gone else kept | {address})


def _apply_route(snapshot: Snapshot, message: Message, *, is_gone: bool) -> Snapshot:
    routes = frozenset(_routes_of(message))
    if not routes:
        return snapshot
    return replace(snapshot, routes=snapshot.routes - routes if is_gone else snapshot.routes | routes)


def _routes_of(message: Message) -> Iterator[Route]:
    family = message["family"]
    table = _attribute(message, "RTA_TABLE") or message["table"]
    is_ours = message["type"] == _ROUTE_UNICAST and table in _TABLES and not message["flags"] & _ROUTE_CLONED
    if not is_ours or family not in FAMILY_OF_VERSION.values():
        return
    default = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 (a route's destination, no listener)
    destination = _attribute(message, "RTA_DST") or default
    network = ipaddress.ip_network(f"{destination}/{message['dst_len']}", strict=False)
    source = _address(_attribute(message, "RTA_PREFSRC"))
    metric = _attribute(message, "RTA_PRIORITY") or 0
    for index, gateway in _next_hops(message):
        yield Route(network, index, gateway, source, metric, table)


def _next_hops(message: Message) -> Iterator[tuple[int, IPAddress | None]]:
    several: Sequence[Message] | None = _attribute(message, "RTA_MULTIPATH")
    if several:
        for hop in several:
            if not hop["flags"] & _NEXTHOP_DEAD:
                yield hop["oif"], _gateway(hop)
        return
    index = _attribute(message, "RTA_OIF")
    if index is not None and not message["flags"] & _NEXTHOP_DEAD:
        yield index, _gateway(message)


def _gateway(message: Message) -> IPAddress | None:
    via = _attribute(message, "RTA_VIA")
    return _address(_attribute(message, "RTA_GATEWAY") or (via.get("addr") if isinstance(via, dict) else None))


def _address(text: str | None) -> IPAddress | None:
    return None if text is None else ipaddress.ip_address(text)


def _attribute(message: Message, name: str) -> Any:
    for item in message.get("attrs", ()):
        if item[0] == name:
            return item[1]
    return None


def _losses(old: Snapshot, new: Snapshot) -> Iterator[NetFact]:
    for index, interface in sorted(old.interfaces.items()):
        after = new.interfaces.get(index)
        if interface.is_up and (after is None or not after.is_up):
            yield InterfaceDown(interface.name)
        if after is None:
            yield InterfaceGone(interface.name)
    for address in _ordered_addresses(_usable_addresses(old) - _usable_addresses(new)):
        yield AddressRemoved(old.name_of(address[0]), address[1])
    for route in _ordered_routes(old.routes - new.routes):
        yield RouteRemoved(old.name_of(route.index), route.network, route.gateway)


def _gains(old: Snapshot, new: Snapshot) -> Iterator[NetFact]:
    for index, interface in sorted(new.interfaces.items()):
        before = old.interfaces.get(index)
        if before is None:
            yield InterfaceAppeared(interface.name)
        if interface.is_up and (before is None or not before.is_up):
            yield InterfaceUp(interface.name)
    for address in _ordered_addresses(_usable_addresses(new) - _usable_addresses(old)):
        yield AddressAdded(new.name_of(address[0]), address[1])
    for route in _ordered_routes(new.routes - old.routes):
        yield RouteAdded(new.name_of(route.index), route.network, route.gateway)


def _usable_addresses(snapshot: Snapshot) -> set[tuple[int, IPAddress]]:
    return {(a.index, a.ip) for a in snapshot.addresses if a.is_usable}


def _ordered_addresses(addresses: Iterable[tuple[int, IPAddress]]) -> list[tuple[int, IPAddress]]:
    return sorted(addresses, key=lambda a: (a[0], a[1].version, a[1].packed))


def _ordered_routes(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda r: (r.index, r.network.version, r.network.network_address.packed, str(r)))
