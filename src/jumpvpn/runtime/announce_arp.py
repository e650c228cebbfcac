"""Return traffic on a shared segment: this gateway answers for its inner addresses, and says so unasked.

An address that is here has a proxy neighbour entry on the inside interface, so that the kernel answers ARP requests and
neighbour solicitations for it; three announcements make neighbours with an older entry change it at once. IPv4 entries
need no ``proxy_arp``: the kernel answers for an entry if it forwards and its route to the address leaves by another
interface. IPv6 entries need ``proxy_ndp``.

An address that was given up has a host route into the segment instead: what still arrives for it is passed on to
the gateway that answers for it, not into our tunnel. The same holds for the whole pool, behind every other route to it,
when our tunnel is gone because this process was killed: the kernel then answers no ARP for entries that were left
(the route leaves by the interface on which was asked), and what neighbours still send here is passed on.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Self, TypeVar

from jumpvpn.runtime.bulk import BulkRtnl, Change, carries, link_states, proxy, route
from jumpvpn.runtime.cleanup import Ownership, SegmentEntries, read_sysctl, set_sysctl
from jumpvpn.runtime.errors import RtnlFailed, StartFailed
from jumpvpn.runtime.gratuitous import Herald
from jumpvpn.runtime.rtnl import index_of
from jumpvpn.runtime.wishes import Batch

P = ParamSpec("P")
R = TypeVar("R")

MOST_PER_TURN = 256  # announcements in a row; a neighbour's input queue holds 1000 (netdev_max_backlog)
PACE_S = 0.004  # between turns: at most some 60,000 announcements, 30 Mbit/s, per second
# When the second and third announcement follow the first: a lost one costs a quarter of a second, and a switch that
# comes out of a storm later than that gets one more.
REPEATS_S = (0.25, 1.0)
# A repeat that is due for longer than this is left out: no storm delays one that long, so this process was stopped, and
# may have lost the address meanwhile without knowing it yet.
LATE_S = 1.0
_RTMGRP_LINK = 0x1
_LARGEST_DATAGRAM = 1 << 18
_ABSENT = (0, errno.ENOENT, errno.ESRCH)
_Repeat = tuple[float, int, tuple[str, ...]]  # when (loop time), which, what


class ArpBackend:
    """One inside interface. Kernel calls that may block run in one thread, in order."""

    most = MOST_PER_TURN

    def __init__(self, interface: str, pools: Sequence[str], owner: Ownership, failed: Callable[[str], None]) -> None:
        self._interface = interface
        self._pools = tuple(ipaddress.ip_network(pool) for pool in pools)
        self._owner = owner
        self._failed = failed
        self._note = SegmentEntries(interface, tuple(str(pool) for pool in self._pools))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="announce")
        self._herald = Herald(interface)
        self._answering: set[str] = set()  # used by the thread only, as is _passing
        self._passing: set[str] = set()
        self._repeats: list[_Repeat] = []
        self._repeats_there = asyncio.Event()
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._link = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)

    @classmethod
    def create(cls, interface: str, pools: Sequence[str], owner: Ownership, failed: Callable[[str], None]) -> Self:
        """Prepare the interface. Raises RtnlFailed, StartFailed, OSError."""
        backend = cls(interface, pools, owner, failed)
        try:
            index_of(interface)
            backend._link.bind((0, _RTMGRP_LINK))
            backend._herald.hardware_address()
            backend._require_forwarding()
            backend._prepare()
            backend._route_pools()
        except BaseException:
            backend._close_sockets()
            raise
        return backend

    async def start(self) -> None:
        """Nothing: what a killed predecessor left went with its notes."""

    async def carry_out(self, batch: Batch) -> Mapping[str, str]:
        """Install and announce, or hand over. A failure says what the kernel refused."""
        failures = await self._in_thread(self._carry_out, batch)
        announced = tuple(address for address in batch.addresses if address not in failures)
        if batch.acquire and announced:
            now = asyncio.get_running_loop().time()
            for number, delay in enumerate(REPEATS_S):
                heapq.heappush(self._repeats, (now + delay, number, announced))
            self._repeats_there.set()
        await asyncio.sleep(PACE_S)
        return failures

    async def run(self, again: Callable[[], None]) -> None:
        """Repeat announcements, and watch the link: one that went down took our entries along."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat())
            group.create_task(self._watch(again))

    async def close(self, held: Sequence[str]) -> Sequence[str]:
        """Remove all entries and routes, also those of a batch that was cancelled halfway."""
        del held  # the kernel knows
        await self._in_thread(self._close_sockets)  # after whatever the thread still does
        self._thread.shutdown(wait=False)
        try:
            await self._owner.undo(self._note)
        except (RtnlFailed, OSError) as error:
            return (str(error),)
        return ()

    def _close_sockets(self) -> None:
        self._herald.close()
        self._link.close()

    # --- the interface -----------------------------------------------------------------------------------------------

    def _require_forwarding(self) -> None:
        needed = [f"net/ipv4/conf/{self._interface}/forwarding"]
        if self._has_ipv6():
            needed += [f"net/ipv6/conf/{self._interface}/forwarding", "net/ipv6/conf/all/forwarding"]
        for setting in needed:
            value = read_sysctl(setting)
            if value is None:
                raise StartFailed(f"{self._interface} has no IPv6; enable it there, or remove tunnel.pool6")
            if value == "0":
                raise StartFailed(
                    f'announce.mode = "arp" needs a kernel that forwards, but {setting} is 0; '
                    "set forward.enabled = true, or turn forwarding on"
                )

    def _prepare(self) -> None:
        """Settings of the interface, noted to be restored. Raises OSError."""
        name, owner = self._interface, self._owner
        for where in ("all", name):  # packets that we pass on leave as they came; nobody needs a better router
            set_sysctl(owner, f"net/ipv4/conf/{where}/send_redirects", "0")
        set_sysctl(owner, f"net/ipv4/neigh/{name}/proxy_delay", "0")  # else an answer waits for up to 0.8 s
        if self._has_ipv6():
            set_sysctl(owner, f"net/ipv6/conf/{name}/proxy_ndp", "1")
            set_sysctl(owner, f"net/ipv6/neigh/{name}/proxy_delay", "0")
        owner.note(self._note)

    def _route_pools(self) -> None:
        index = index_of(self._interface)
        changes = [route(index, pool.network_address.packed, pool.prefixlen, add=True) for pool in self._pools]
        with BulkRtnl() as bulk:
            codes = bulk.apply(changes)
        for pool, code in zip(self._pools, codes, strict=True):
            if code != 0:
                raise RtnlFailed(f"cannot route {pool} into {self._interface}: {os.strerror(code)}")

    def _has_ipv6(self) -> bool:
        return any(pool.version == 6 for pool in self._pools)

    # --- addresses (in the thread) -----------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

    def _carry_out(self, batch: Batch) -> dict[str, str]:
        packed = {address: _packed(address) for address in batch.addresses}
        try:
            return self._take(packed) if batch.acquire else self._hand_over(packed)
        except (RtnlFailed, OSError) as error:
            return dict.fromkeys(batch.addresses, f"{self._interface}: {_words(error)}")

    def _take(self, packed: Mapping[str, bytes]) -> dict[str, str]:
        index = index_of(self._interface)
        passed = {address: raw for address, raw in packed.items() if address in self._passing}
        gone = self._changed(passed, lambda raw: route(index, raw, len(raw) * 8, add=False))
        self._passing.difference_update(set(passed) - set(gone))
        wanted = {address: raw for address, raw in packed.items() if address not in gone}
        self._answering.update(wanted)
        failures = gone | self._changed(wanted, lambda raw: proxy(index, raw, add=True))
        self._herald.announce((raw for address, raw in packed.items() if address not in failures), reply=False)
        return failures

    def _hand_over(self, packed: Mapping[str, bytes]) -> dict[str, str]:
        index = index_of(self._interface)
        self._passing.update(packed)
        failures = self._changed(packed, lambda raw: route(index, raw, len(raw) * 8, add=True))
        answered = {address: raw for address, raw in packed.items() if address in self._answering}
        still = self._changed(answered, lambda raw: proxy(index, raw, add=False))
        self._answering.difference_update(set(answered) - set(still))
        return failures | still

    def _changed(self, packed: Mapping[str, bytes], change: Callable[[bytes], Change]) -> dict[str, str]:
        """Carry out one change per address; why it failed, for those for which it did."""
        if not packed:
            return {}
        changes = [change(raw) for raw in packed.values()]
        with BulkRtnl() as bulk:
            codes = bulk.apply(changes)
        pairs = zip(packed, codes, strict=True)
        return {address: f"{self._interface}: {os.strerror(code)}" for address, code in pairs if code not in _ABSENT}

    # --- beside ------------------------------------------------------------------------------------------------------

    async def _repeat(self) -> None:
        now = asyncio.get_running_loop().time
        told: str | None = None
        while True:
            if not self._repeats:
                self._repeats_there.clear()
                await self._repeats_there.wait()
            await asyncio.sleep(max(self._repeats[0][0] - now(), 0))
            due, number, addresses = heapq.heappop(self._repeats)
            if now() - due > LATE_S:
                continue
            why = await self._in_thread(self._announce_again, addresses, number)
            if why is not None and why != told:
                self._failed(f"cannot repeat announcements on {self._interface}: {why}")
            told = why
            await asyncio.sleep(PACE_S)

    def _announce_again(self, addresses: Sequence[str], number: int) -> str | None:
        try:
            here = (_packed(address) for address in addresses if address in self._answering)
            self._herald.announce(here, reply=number % 2 == 0)
        except (RtnlFailed, OSError) as error:
            return _words(error)
        return None

    async def _watch(self, again: Callable[[], None]) -> None:
        """When the link is back, prepare it again and carry out all that stands."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        was_down = not carries(self._interface)
        loop.add_reader(self._link.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                for is_up in _states(self._link, self._interface):
                    if was_down and is_up:
                        await self._restore(again)
                    was_down = not is_up
        finally:
            loop.remove_reader(self._link.fileno())

    async def _restore(self, again: Callable[[], None]) -> None:
        try:
            await self._in_thread(self._herald.close)  # its sockets may belong to an interface that is gone
            self._prepare()
            await self._in_thread(self._route_pools)
        except (RtnlFailed, OSError) as error:
            self._failed(f"cannot use {self._interface} again: {_words(error)}")
        again()


def _states(link: socket.socket, interface: str) -> list[bool]:
    """Whether the interface carried, per message that waits; after a loss of messages, as if it had been away."""
    found: list[bool] = []
    while True:
        try:
            found += link_states(link.recv(_LARGEST_DATAGRAM), interface)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found += [False, True]


def _words(error: RtnlFailed | OSError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
