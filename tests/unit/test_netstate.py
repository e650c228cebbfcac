"""Network state as values: what counts as usable, and facts as the difference of two snapshots."""

from __future__ import annotations

import ipaddress
from typing import Any

from jumpvpn.runtime.netstate import (
    Address,
    AddressAdded,
    AddressRemoved,
    Interface,
    InterfaceAppeared,
    InterfaceDown,
    InterfaceGone,
    InterfaceUp,
    Route,
    RouteAdded,
    RouteRemoved,
    Snapshot,
    Usable,
    apply,
    differences,
    needs_resync,
    usable_transports,
)

ip = ipaddress.ip_address
net = ipaddress.ip_network
GATEWAY = ip("203.0.113.1")
UP = 0x1 | 0x40 | 0x10000


def address(index: int, text: str, **changes: Any) -> Address:
    parsed = ipaddress.ip_interface(text)
    return Address(index, parsed.ip, parsed.network.prefixlen, **{"is_usable": True, **changes})


def route(index: int, network: str, via: str | None = None, metric: int = 0, source: str | None = None) -> Route:
    return Route(net(network), index, ip(via) if via else None, ip(source) if source else None, metric, 254)


def world() -> Snapshot:
    return Snapshot(
        {1: Interface(1, "wlan0", True), 2: Interface(2, "lte0", True), 3: Interface(3, "jumpvpn0", True)},
        frozenset({address(1, "192.168.1.5/24"), address(2, "10.64.0.9/30"), address(3, "10.77.0.2/24")}),
        frozenset(
            {
                route(1, "0.0.0.0/0", "192.168.1.1", 100),
                route(2, "0.0.0.0/0", "10.64.0.10", 200),
                route(3, "0.0.0.0/0"),
            }
        ),
    )


def usable(snapshot: Snapshot, gateway: Any = GATEWAY) -> tuple[Usable, ...]:
    return usable_transports(snapshot, [("gw1", gateway)], lambda name: name != "jumpvpn0")


def test_every_interface_with_a_route_and_a_source_is_usable_whatever_the_metric() -> None:
    assert usable(world()) == (
        Usable("lte0", 2, ip("10.64.0.9"), "gw1", GATEWAY),
        Usable("wlan0", 1, ip("192.168.1.5"), "gw1", GATEWAY),
    )


def test_our_own_tunnel_is_never_a_transport() -> None:
    assert all(u.interface != "jumpvpn0" for u in usable(world()))


def test_down_routeless_addressless_and_tentative_interfaces_are_not_usable() -> None:
    whole = world()
    down = Snapshot({**whole.interfaces, 1: Interface(1, "wlan0", False)}, whole.addresses, whole.routes)
    routeless = Snapshot(whole.interfaces, whole.addresses, frozenset({route(2, "0.0.0.0/0", "10.64.0.10")}))
    addressless = Snapshot(whole.interfaces, frozenset({address(2, "10.64.0.9/30")}), whole.routes)
    tentative = Snapshot(
        whole.interfaces,
        frozenset({address(2, "10.64.0.9/30"), address(1, "192.168.1.5/24", is_usable=False)}),
        whole.routes,
    )
    for snapshot in (down, routeless, addressless, tentative):
        assert [u.interface for u in usable(snapshot)] == ["lte0"]


def test_families_do_not_mix() -> None:
    assert usable(world(), ip("2001:db8::1")) == ()


def test_source_is_the_routes_own_then_the_next_hops_network_then_a_fresh_one() -> None:
    interfaces = {1: Interface(1, "wlan0", True)}
    several = frozenset({address(1, "192.168.1.5/24"), address(1, "172.16.0.5/24"), address(1, "10.0.0.5/8")})
    by_hop = Snapshot(interfaces, several, frozenset({route(1, "0.0.0.0/0", "192.168.1.1")}))
    by_route = Snapshot(interfaces, several, frozenset({route(1, "0.0.0.0/0", "192.168.1.1", source="172.16.0.5")}))
    assert usable(by_hop)[0].source == ip("192.168.1.5")
    assert usable(by_route)[0].source == ip("172.16.0.5")
    old = address(1, "2001:db8:1::1/64", is_deprecated=True)
    new = address(1, "2001:db8:1::2/64")
    six = Snapshot(interfaces, frozenset({old, new}), frozenset({route(1, "::/0", "fe80::1")}))
    assert usable(six, ip("2001:db8:9::1"))[0].source == ip("2001:db8:1::2")


def test_facts_are_the_difference_losses_first() -> None:
    whole = world()
    less = Snapshot(
        {1: Interface(1, "wlan0", False), 3: whole.interfaces[3]},
        frozenset(a for a in whole.addresses if a.index == 3),
        frozenset(r for r in whole.routes if r.index == 3),
    )
    assert differences(whole, less) == [
        InterfaceDown("wlan0"),
        InterfaceDown("lte0"),
        InterfaceGone("lte0"),
        AddressRemoved("wlan0", ip("192.168.1.5")),
        AddressRemoved("lte0", ip("10.64.0.9")),
        RouteRemoved("wlan0", net("0.0.0.0/0"), ip("192.168.1.1")),
        RouteRemoved("lte0", net("0.0.0.0/0"), ip("10.64.0.10")),
    ]
    assert differences(less, whole) == [
        InterfaceUp("wlan0"),
        InterfaceAppeared("lte0"),
        InterfaceUp("lte0"),
        AddressAdded("wlan0", ip("192.168.1.5")),
        AddressAdded("lte0", ip("10.64.0.9")),
        RouteAdded("wlan0", net("0.0.0.0/0"), ip("192.168.1.1")),
        RouteAdded("lte0", net("0.0.0.0/0"), ip("10.64.0.10")),
    ]
    assert differences(whole, whole) == []


def link(flags: int, event: str = "RTM_NEWLINK", family: int = 0) -> dict[str, Any]:
    attributes = [("IFLA_IFNAME", "wlan0")]
    return {"event": event, "family": family, "index": 1, "flags": flags, "attrs": attributes}


def test_taking_an_interface_down_drops_the_routes_the_kernel_drops_silently() -> None:
    after = apply(world(), link(0x0))
    assert not after.interfaces[1].is_up
    assert all(r.index != 1 for r in after.routes)
    assert needs_resync(link(0x0))
    without_carrier = apply(world(), link(0x1))
    assert not without_carrier.interfaces[1].is_up
    assert any(r.index == 1 for r in without_carrier.routes)
    assert apply(world(), link(UP)) == world()


def test_a_bridge_that_loses_a_port_does_not_lose_the_interface() -> None:
    assert apply(world(), link(UP, "RTM_DELLINK", family=7)) == world()


def a_route_message(**changes: Any) -> dict[str, Any]:
    message = {
        "event": "RTM_NEWROUTE",
        "family": 2,
        "type": 1,
        "table": 254,
        "flags": 0,
        "dst_len": 0,
        "attrs": [("RTA_OIF", 1), ("RTA_GATEWAY", "192.168.1.254")],
    }
    return {**message, **changes}


def test_local_cloned_and_foreign_table_routes_are_ignored() -> None:
    for changes in ({"type": 2}, {"flags": 0x200}, {"table": 255}, {"table": 100}, {"family": 28}):
        assert apply(Snapshot(), a_route_message(**changes)) == Snapshot()


def test_multipath_routes_count_once_per_interface() -> None:
    hops = [
        {"oif": 1, "flags": 0, "attrs": [("RTA_GATEWAY", "192.168.1.254")]},
        {"oif": 2, "flags": 0, "attrs": [("RTA_GATEWAY", "10.64.0.10")]},
        {"oif": 3, "flags": 1, "attrs": []},
    ]
    after = apply(Snapshot(), a_route_message(attrs=[("RTA_MULTIPATH", hops)]))
    assert {r.index for r in after.routes} == {1, 2}
    assert apply(after, a_route_message(event="RTM_DELROUTE", attrs=[("RTA_MULTIPATH", hops)])).routes == frozenset()
