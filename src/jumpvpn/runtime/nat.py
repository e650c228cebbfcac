"""Forwarding and address translation at the gateway, in one nftables table of our own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.runtime import nft
from jumpvpn.runtime.cleanup import Ownership, install_table, read_sysctl, set_sysctl
from jumpvpn.runtime.routing import table_name

_FORWARD4 = "net/ipv4/ip_forward"
_FORWARD6 = "net/ipv6/conf/all/forwarding"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What the gateway forwards: inner ``pools`` of ``tunnel`` out of ``interfaces`` (empty = any other)."""

    instance: str
    tunnel: str
    pools: tuple[str, ...]
    masquerade: bool
    interfaces: tuple[str, ...] = ()


async def enable_forwarding(owner: Ownership, forwarding: Forwarding) -> None:
    """Install the table, then let the kernel forward. Raises NftFailed, OSError."""
    name = table_name(forwarding.instance)
    await install_table(owner, name, ruleset(forwarding))
    set_sysctl(owner, _FORWARD4, "1")
    if any(":" in pool for pool in forwarding.pools):
        _keep_router_advertisements(owner)
        set_sysctl(owner, _FORWARD6, "1")


def ruleset(forwarding: Forwarding) -> list[nft.Command]:
    """The content of our table: refuse forged inner sources, clamp TCP's segment size, translate if wanted."""
    table = table_name(forwarding.instance)
    commands = [
        _chain(table, "forward", "filter", "forward", 0),
        _rule(table, "forward", [*_syn(), {"mangle": {"key": _maxseg(), "value": {"rt": {"key": "mtu"}}}}]),
    ]
    for pool in forwarding.pools:
        forged = [_match("!=", _meta("iifname"), forwarding.tunnel), _from(pool), {"drop": None}]
        commands.append(_rule(table, "forward", forged))
    if not forwarding.masquerade:
        return commands
    commands.append(_chain(table, "postrouting", "nat", "postrouting", 100))
    outward = _match("!=", _meta("oifname"), forwarding.tunnel)
    if forwarding.interfaces:
        outward = _match("==", _meta("oifname"), {"set": list(forwarding.interfaces)})
    commands += [_rule(table, "postrouting", [_from(pool), outward, {"masquerade": None}]) for pool in forwarding.pools]
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
    protocol = "ip6" if ":" in pool else "ip"
    address, _, length = pool.partition("/")
    prefix = {"prefix": {"addr": address, "len": int(length)}}
    return _match("==", {"payload": {"protocol": protocol, "field": "saddr"}}, prefix)


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _match(operator: str, left: object, right: object) -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}
