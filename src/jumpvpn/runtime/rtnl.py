"""Changes links, addresses, routes and rules through rtnetlink; deleting what is absent is fine everywhere."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from jumpvpn.runtime.errors import RtnlFailed

FR_ACT_TO_TBL = 1
FIB_RULE_INVERT = 0x2
MAIN_TABLE = 254
IFA_F_NODAD = 0x02  # a tunnel has no neighbour that could hold the same address
# Missing things on deletion, as the kernel names them for links, addresses, routes and rules.
_ABSENT = frozenset({errno.ENODEV, errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT})


@contextlib.asynccontextmanager
async def rtnl(what: str, *, absent_is_fine: bool = False) -> AsyncIterator[Any]:
    """A request socket; a refusal inside the block becomes RtnlFailed that names ``what``."""
    async with AsyncIPRoute() as route:
        try:
            yield route
        except NetlinkError as error:
            if not (absent_is_fine and error.code in _ABSENT):
                raise RtnlFailed(f"cannot {what}: {_words(error)}") from error


def index_of(interface: str) -> int:
    """Index of an interface by its name. Raises RtnlFailed."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise RtnlFailed(f"there is no interface {interface}") from None


async def bring_up(interface: str, mtu: int) -> None:
    """Set the MTU and bring the interface up. Raises RtnlFailed."""
    index = index_of(interface)
    async with rtnl(f"bring {interface} up") as route:
        await route.link("set", index=index, mtu=mtu, state="up")


async def add_address(interface: str, address: str) -> None:
    """Add ``address`` (with prefix length) to the interface; present already is fine. Raises RtnlFailed."""
    index, parsed = index_of(interface), ipaddress.ip_interface(address)
    options: dict[str, Any] = {"family": family_of(parsed), "prefixlen": parsed.network.prefixlen}
    if parsed.version == 6:
        options["flags"] = IFA_F_NODAD
    async with rtnl(f"add address {address} to {interface}") as route:
        await route.addr("replace", index=index, address=str(parsed.ip), **options)


async def add_route(network: str, interface: str, table: int = MAIN_TABLE, metric: int | None = None) -> None:
    """Route ``network`` into the interface; present already is fine. Raises RtnlFailed."""
    index, parsed = index_of(interface), ipaddress.ip_network(network)
    options = {} if metric is None else {"priority": metric}
    async with rtnl(f"route {network} into {interface}") as route:
        await route.route("replace", dst=str(parsed), oif=index, table=table, family=family_of(parsed), **options)


async def delete_route(network: str, interface: str, table: int = MAIN_TABLE) -> None:
    """Remove our route to ``network`` through ``interface``. Raises RtnlFailed."""
    parsed = ipaddress.ip_network(network)
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return
    async with rtnl(f"remove the route to {network}", absent_is_fine=True) as route:
        await route.route("del", dst=str(parsed), oif=index, table=table, family=family_of(parsed))


async def flush_table(family: int, table: int) -> None:
    """Remove every route of one family from ``table``. Raises RtnlFailed."""
    async with rtnl(f"flush routing table {table}", absent_is_fine=True) as route:
        await route.flush_routes(family=family, table=table)


async def add_unmarked_rule(family: int, priority: int, mark: int, table: int) -> None:
    """``not fwmark MARK lookup TABLE``: everything except our own packets. Raises RtnlFailed."""
    await delete_rule(family, priority, table)
    async with rtnl("add the routing rule for the tunnel") as route:
        await route.rule(
            "add", family=family, priority=priority, fwmark=mark, fwmask=0xFFFFFFFF, table=table,
            flags=FIB_RULE_INVERT, action=FR_ACT_TO_TBL,
        )  # fmt: skip


async def add_specific_first_rule(family: int, priority: int) -> None:
    """``lookup main suppress_prefixlength 0``: main's routes except its default come first. Raises RtnlFailed."""
    await delete_rule(family, priority, MAIN_TABLE)
    async with rtnl("add the routing rule for local networks") as route:
        await route.rule(
            "add", family=family, priority=priority, table=MAIN_TABLE, action=FR_ACT_TO_TBL, FRA_SUPPRESS_PREFIXLEN=0
        )


async def delete_rule(family: int, priority: int, table: int) -> None:
    """Remove the rule of this family, priority and table. Raises RtnlFailed."""
    async with rtnl(f"remove routing rule {priority}", absent_is_fine=True) as route:
        await route.rule("del", family=family, priority=priority, table=table)


async def delete_link(interface: str, index: int) -> None:
    """Remove the interface that has both this name and this index. Raises RtnlFailed."""
    try:
        found = socket.if_nametoindex(interface)
    except OSError:
        return
    if found == index:
        async with rtnl(f"remove interface {interface}", absent_is_fine=True) as route:
            await route.link("del", index=index)


def family_of(parsed: Any) -> int:
    """AF_INET or AF_INET6 of an ``ipaddress`` value."""
    return socket.AF_INET if parsed.version == 4 else socket.AF_INET6


def _words(error: NetlinkError) -> str:
    if error.code in (errno.EPERM, errno.EACCES):
        return "not permitted; run as root or with CAP_NET_ADMIN"
    return str(error.args[1]) if len(error.args) > 1 else errno.errorcode.get(error.code, str(error.code))
