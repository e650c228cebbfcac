"""Forwarding and address translation at the gateway, in one nftables table of our own.

An inner source address is believed when its packet comes out of the tunnel: the packet core has compared it with the
session. From anywhere else such packets are dropped, with one exception: other gateways of a cluster send what their
clients have for ours over the interface ``inside``. There a packet may have an inner source only if that address is not
here (the kernel's routes say so, no list is kept), and only on its way to an inner destination: into the tunnel, or
back out to the gateway that has taken the destination over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.runtime import nft
from jumpvpn.runtime.cleanup import Ownership, install_table, read_sysctl, set_sysctl
from jumpvpn.runtime.routing import table_name
from jumpvpn.runtime.rtnl import index_of

# What is passed on to another gateway of the segment has at most so many hops left: one for that gateway, the rest for
# what lies behind a client. Two gateways that each think the other has the address give it up after as many rounds.
PASSED_HOPS = 8
_FORWARD4 = "net/ipv4/ip_forward"
_FORWARD6 = "net/ipv6/conf/all/forwarding"
_RAW = -300  # before connection tracking: what is dropped costs nothing more


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What the gateway forwards: inner ``pools`` of ``tunnel`` out of ``interfaces`` (empty = any other).

    ``inside`` leads to other gateways whose clients may reach ours, and the other way round; with ``shares_segment``
    they are neighbours there, else routers may be between them.
    """

    instance: str
    tunnel: str
    pools: tuple[str, ...]
    masquerade: bool
    interfaces: tuple[str, ...] = ()
    inside: str | None = None
    shares_segment: bool = False


async def enable_forwarding(owner: Ownership, forwarding: Forwarding) -> None:
    """Install the table, then let the kernel forward. Raises NftFailed, RtnlFailed, OSError."""
    if forwarding.inside is not None:
        index_of(forwarding.inside)
    name = table_name(forwarding.instance)
    await install_table(owner, name, ruleset(forwarding))
    set_sysctl(owner, _FORWARD4, "1")
    if any(":" in pool for pool in forwarding.pools):
        _keep_router_advertisements(owner)
        set_sysctl(owner, _FORWARD6, "1")
    if forwarding.inside is not None:
        refuse_redirects(owner, forwarding.inside)


def refuse_redirects(owner: Ownership, interface: str) -> None:
    """Neither send ICMP redirects out of the interface nor follow them: routes of inner addresses change by the moment.

    IPv6 has no setting for sending; our table drops those. Raises OSError.
    """
    for where in ("all", interface):  # the kernel sends them if either says so
        set_sysctl(owner, f"net/ipv4/conf/{where}/send_redirects", "0")
    for family in ("ipv4", "ipv6"):
        setting = f"net/{family}/conf/{interface}/accept_redirects"
        if read_sysctl(setting) is not None:  # an interface may have no IPv6
            set_sysctl(owner, setting, "0")


def ruleset(forwarding: Forwarding) -> list[nft.Command]:
    """The content of our table: refuse forged inner sources, clamp TCP's segment size, translate if wanted."""
    table, tunnel = table_name(forwarding.instance), forwarding.tunnel
    commands = [
        _chain(table, "forward", "filter", "forward", 0),
        _rule(table, "forward", [*_syn(), {"mangle": {"key": _maxseg(), "value": {"rt": {"key": "mtu"}}}}]),
    ]
    if forwarding.inside is not None:
        commands += _between_gateways(table, forwarding, forwarding.inside)
    for pool in forwarding.pools:
        forged = [_match("!=", _meta("iifname"), tunnel), _from(pool), {"drop": None}]
        commands.append(_rule(table, "forward", forged))
    if not forwarding.masquerade:
        return commands
    commands.append(_chain(table, "postrouting", "nat", "postrouting", 100))
    outward = _match("!=", _meta("oifname"), tunnel)
    if forwarding.interfaces:
        outward = _match("==", _meta("oifname"), {"set": list(forwarding.interfaces)})
    commands += [_rule(table, "postrouting", [_from(pool), outward, {"masquerade": None}]) for pool in forwarding.pools]
    return commands


def _between_gateways(table: str, forwarding: Forwarding, inside: str) -> list[nft.Command]:
    """What comes from other gateways. The kernel routes an address that is here into the tunnel, others inside."""
    commands = [_chain(table, "arrival", "filter", "prerouting", _RAW), _chain(table, "output", "filter", "output", 0)]
    comes = _match("==", _meta("iifname"), inside)
    for pool in forwarding.pools:
        is_elsewhere = {"fib": {"result": "oifname", "flags": ["saddr"]}}
        commands.append(
            _rule(table, "arrival", [comes, _from(pool), _match("!=", is_elsewhere, inside), {"drop": None}])
        )
        if forwarding.shares_segment:
            hops = _hops(pool)
            passed = [comes, _match("==", _meta("oifname"), inside), _to(pool), _match(">", hops, PASSED_HOPS)]
            commands.append(_rule(table, "forward", [*passed, {"mangle": {"key": hops, "value": PASSED_HOPS}}]))
        onward = _match("==", _meta("oifname"), {"set": [forwarding.tunnel, inside]})
        commands.append(_rule(table, "forward", [comes, onward, _from(pool), _to(pool), {"accept": None}]))
    redirect = _match("==", {"payload": {"protocol": "icmpv6", "field": "type"}}, "nd-redirect")
    commands.append(_rule(table, "output", [_match("==", _meta("oifname"), inside), redirect, {"drop": None}]))
    return commands


def _keep_router_advertisements(owner: Ownership) -> None:
    """A forwarding host ignores router advertisements unless told otherwise: it would lose its own IPv6 default."""
    for directory in sorted(Path("/proc/sys/net/ipv6/conf").iterdir()):
        setting = f"net/ipv6/conf/{directory.name}/accept_ra"
        if directory.name != "all" and read_sysctl(setting) == "1":
            with contextlib.suppress(FileNotFoundError):  # interfaces come and go
                set_sysctl(owner, setting, "2")


def _chain(table: str, name: str, kind: str, hook: str, priority: int) -> nft.Command:
    chain = {
        "family": nft.FAMILY, "table": table, "name": name,
        "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    }  # fmt: skip
    return {"add": {"chain": chain}}


def _rule(table: str, chain: str, expression: Sequence[Any]) -> nft.Command:
    return {"add": {"rule": {"family": nft.FAMILY, "table": table, "chain": chain, "expr": list(expression)}}}


def _syn() -> list[dict[str, Any]]:
    flags = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]}
    return [_match("==", flags, "syn")]


def _maxseg() -> dict[str, Any]:
    return {"tcp option": {"name": "maxseg", "field": "size"}}


def _from(pool: str) -> dict[str, Any]:
    return _within(pool, "saddr")


def _to(pool: str) -> dict[str, Any]:
    return _within(pool, "daddr")


def _within(pool: str, field: str) -> dict[str, Any]:
    address, _, length = pool.partition("/")
    prefix = {"prefix": {"addr": address, "len": int(length)}}
    return _match("==", {"payload": {"protocol": _protocol(pool), "field": field}}, prefix)


def _hops(pool: str) -> dict[str, Any]:
    return {"payload": {"protocol": _protocol(pool), "field": "hoplimit" if ":" in pool else "ttl"}}


def _protocol(pool: str) -> str:
    return "ip6" if ":" in pool else "ip"


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _match(operator: str, left: object, right: object) -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}
