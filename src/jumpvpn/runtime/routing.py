"""Puts the tunnel into the system's routing while our own packets keep going around it.

Inner routes other than a default go to the main table, where the longest prefix wins as everywhere. A default goes to
a table of our own behind two rules (the scheme of wg-quick): ``lookup main suppress_prefixlength 0``, then
``not fwmark MARK lookup TABLE``. Each transport's socket carries the mark and is bound to its interface, so its packets
take that interface's own route, whatever the metrics of others say (SO_BINDTODEVICE restricts the lookup).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from jumpvpn.runtime import nft
from jumpvpn.runtime.cleanup import (
    MainRoute,
    Ownership,
    PolicyRule,
    RoutingTable,
    TunInterface,
    install_table,
    read_sysctl,
    set_sysctl,
)
from jumpvpn.runtime.rtnl import (
    MAIN_TABLE,
    add_address,
    add_route,
    add_specific_first_rule,
    add_unmarked_rule,
    bring_up,
    family_of,
    index_of,
)

# Before the main table (32766) and after whatever the administrator put in front.
SPECIFIC_FIRST_PRIORITY = 30100
TUNNEL_PRIORITY = 30101
_STRICT, _LOOSE = "1", "2"  # rp_filter (RFC 3704)


async def configure_tunnel(owner: Ownership, interface: str, addresses: Iterable[str], mtu: int) -> None:
    """Give the tunnel its MTU and inner addresses (with prefix length) and bring it up. Raises RtnlFailed."""
    owner.note(TunInterface(interface, index_of(interface)))
    await bring_up(interface, mtu)
    for address in addresses:
        await add_address(interface, address)


async def route_into_tunnel(owner: Ownership, interface: str, networks: Iterable[str], mark: int, table: int) -> None:
    """Send ``networks`` into the tunnel, our own marked packets excepted. Raises RtnlFailed, ValueError."""
    for text in networks:
        network = ipaddress.ip_network(text)
        if network.prefixlen > 0:
            owner.note(MainRoute(str(network), interface))
            await add_route(str(network), interface)
            continue
        await _route_default(owner, interface, network, mark, table)


async def protect_inner_addresses(owner: Ownership, instance: str, interface: str, addresses: Iterable[str]) -> None:
    """Drop packets to our inner addresses that come from outside the tunnel (CVE-2019-14899). Raises NftFailed."""
    name = table_name(instance)
    await install_table(owner, name, _protection(name, interface, addresses))


def loosen_source_check(owner: Ownership, interface: str) -> None:
    """Let replies of a standby in: strict reverse-path filtering looks only at the best route. Raises OSError.

    The kernel uses the larger of the interface's value and ``all``'s; only a strict result is changed.
    """
    own = f"net/ipv4/conf/{interface}/rp_filter"
    in_force = max(read_sysctl("net/ipv4/conf/all/rp_filter") or "0", read_sysctl(own) or "0")
    if in_force == _STRICT:
        set_sysctl(owner, own, _LOOSE)


def table_name(instance: str) -> str:
    """Name of our nftables table; ``instance`` keeps two nodes of one machine apart, as their tunnels' names do."""
    return "jumpvpn_" + "".join(c if c.isalnum() else "_" for c in instance)


async def _route_default(
    owner: Ownership, interface: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network, mark: int, table: int
) -> None:
    family = family_of(network)
    owner.note(RoutingTable(family, table))
    await add_route(str(network), interface, table)
    owner.note(PolicyRule(family, SPECIFIC_FIRST_PRIORITY, MAIN_TABLE))
    await add_specific_first_rule(family, SPECIFIC_FIRST_PRIORITY)
    owner.note(PolicyRule(family, TUNNEL_PRIORITY, table))
    await add_unmarked_rule(family, TUNNEL_PRIORITY, mark, table)


def _protection(name: str, interface: str, addresses: Iterable[str]) -> list[nft.Command]:
    chain = {"family": nft.FAMILY, "table": name, "name": "inner"}
    hook = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}
    commands: list[nft.Command] = [{"add": {"chain": {**chain, **hook}}}]
    for text in addresses:
        address = ipaddress.ip_interface(text).ip
        protocol = "ip" if address.version == 4 else "ip6"
        expression = [
            _match("!=", {"meta": {"key": "iifname"}}, {"set": [interface, "lo"]}),
            _match("==", {"payload": {"protocol": protocol, "field": "daddr"}}, str(address)),
            {"drop": None},
        ]
        rule = {"family": nft.FAMILY, "table": name, "chain": "inner", "expr": expression}
        commands.append({"add": {"rule": rule}})
    return commands


def _match(operator: str, left: object, right: object) -> dict[str, object]:
    return {"match": {"op": operator, "left": left, "right": right}}
