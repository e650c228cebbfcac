"""Return traffic on a shared segment: this gateway answers for its inner addresses, and says so unasked.

An address that is here has a proxy neighbour entry on the inside interface, so that the kernel answers ARP requests and
neighbour solicitations for it; three announcements make neighbours with an older entry change it at once. IPv4 entries
need no ``proxy_arp``: the kernel answers for an entry if it forwards and its route to the address leaves by another
interface. IPv6 entries need ``proxy_ndp``.

The pool's route leads into the segment, in two halves, because the tunnel's own address brings a route for the whole;
an address that is here has a host route into the tunnel. So the kernel knows by its routes alone what is here: what
arrives for an address that is elsewhere is passed on to the gateway that answers for it, what our clients send to it
goes there, and ``nat`` tells by the same routes whether an inner source may come from the segment. While the segment is
down, the route for the whole leaves everything to the packet core. When this process is killed, the tunnel takes its
routes along: the kernel then answers no ARP for entries that were left (the route leaves by the interface on which was
asked), and what neighbours still send here is passed on.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import ParamSpec, Self, TypeVar

from jumpvpn.runtime.bulk import BulkRtnl, Change, carries, link_states, proxy, route
from jumpvpn.runtime.cleanup import Ownership, SegmentEntries, read_sysctl, set_sysctl
from jumpvpn.runtime.errors import RtnlFailed, StartFailed
from jumpvpn.runtime.gratuitous import Herald
from jumpvpn.runtime.nat import refuse_redirects
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
# The thread is done with a full batch in some milliseconds; a kernel that takes longer must not cost the lease.
READY_S = 0.1
_RTMGRP_LINK = 0x1
_LARGEST_DATAGRAM = 1 << 18
_ABSENT = (0, errno.ENOENT, errno.ESRCH)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Repeat = tuple[float, int, tuple[str, ...]]  # when (loop time), which, what


class ArpBackend:
    """One inside interface. Kernel calls that may block run in one thread, in order."""

    most = MOST_PER_TURN

    def __init__(
        self, interface: str, tunnel: str, pools: Sequence[str], owner: Ownership, failed: Callable[[str], None]
    ) -> None:
        self._interface = interface
        self._tunnel = tunnel
        self._pools = tuple(ipaddress.ip_network(pool) for pool in pools)
        self._owner = owner
        self._failed = failed
        self._note = SegmentEntries(interface, tuple(str(pool) for pool in self._pools), tunnel)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="announce")
        self._herald = Herald(interface)
        self._here: set[str] = set()  # has a route into the tunnel, an entry, or one of them; used by the thread only
        self._silent: set[str] = set()  # of these, what is claimed no more or not yet; used by the thread only
        self._coming: deque[str] = deque()  # to be routed into the tunnel
        self._expected: dict[str, Future[None]] = {}  # when that will have been done
        self._is_hushed = False
        self._repeats: list[_Repeat] = []
        self._repeats_there = asyncio.Event()
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._link = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)

    @classmethod
    def create(
        cls, interface: str, tunnel: str, pools: Sequence[str], owner: Ownership, failed: Callable[[str], None]
    ) -> Self:
        """Prepare the interface. Raises RtnlFailed, StartFailed, OSError."""
        backend = cls(interface, tunnel, pools, owner, failed)
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

    def expect(self, addresses: Sequence[str]) -> None:
        """Install the routes into the tunnel, without entries."""
        self._coming.extend(addresses)
        routing = self._thread.submit(self._route_coming)
        self._expected.update(dict.fromkeys(addresses, routing))

    def ready(self, addresses: Sequence[str]) -> None:
        """Wait for the routes. What has failed is tried again, and told, when the addresses are acquired."""
        routing = {future for address in addresses if (future := self._expected.pop(address, None)) is not None}
        wait(routing, READY_S)

    def hush(self, *, on: bool) -> None:
        """Leave repeats out while it is on."""
        self._is_hushed = on

    def leave(self, addresses: Sequence[str]) -> None:
        """Remove the entries, and keep the routes. What fails is tried again, and told, when they are released."""
        self._thread.submit(self._fall_silent, {address: _packed(address) for address in addresses})

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
        refuse_redirects(owner, name)  # packets that we pass on leave as they came; nobody needs a better router
        set_sysctl(owner, f"net/ipv4/neigh/{name}/proxy_delay", "0")  # else an answer waits for up to 0.8 s
        if self._has_ipv6():
            set_sysctl(owner, f"net/ipv6/conf/{name}/proxy_ndp", "1")
            set_sysctl(owner, f"net/ipv6/neigh/{name}/proxy_delay", "0")
        owner.note(self._note)

    def _route_pools(self) -> None:
        index = index_of(self._interface)
        halves = [half for pool in self._pools for half in _halves(pool)]
        changes = [route(index, half.network_address.packed, half.prefixlen, add=True) for half in halves]
        with BulkRtnl() as bulk:
            codes = bulk.apply(changes)
        for half, code in zip(halves, codes, strict=True):
            if code != 0:
                raise RtnlFailed(f"cannot route {half} into {self._interface}: {os.strerror(code)}")

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
        """The route first: it needs no segment, and without it the kernel answers nobody."""
        self._silent.difference_update(packed)
        unrouted = self._route_here(packed)
        index = index_of(self._interface)
        routed = {address: raw for address, raw in packed.items() if address not in unrouted}
        silent = self._changed(routed, self._interface, lambda raw: proxy(index, raw, add=True))
        self._herald.announce((raw for address, raw in routed.items() if address not in silent), reply=False)
        return unrouted | silent

    def _route_here(self, packed: Mapping[str, bytes]) -> dict[str, str]:
        self._here.update(packed)
        tunnel = index_of(self._tunnel)
        return self._changed(packed, self._tunnel, lambda raw: route(tunnel, raw, len(raw) * 8, add=True))

    def _route_coming(self) -> None:
        """All that wait, at once: in a storm of takeovers that is many."""
        packed: dict[str, bytes] = {}
        while self._coming and len(packed) < MOST_PER_TURN:
            address = self._coming.popleft()
            packed[address] = _packed(address)
        self._silent.update(set(packed) - self._here)
        self._route_here(packed)

    def _fall_silent(self, packed: Mapping[str, bytes]) -> dict[str, str]:
        left = {address: raw for address, raw in packed.items() if address in self._here}
        self._silent.update(left)
        index = index_of(self._interface)
        return self._changed(left, self._interface, lambda raw: proxy(index, raw, add=False))

    def _hand_over(self, packed: Mapping[str, bytes]) -> dict[str, str]:
        """The route first: then the kernel answers nobody any more, and passes on what comes."""
        left = {address: raw for address, raw in packed.items() if address in self._here}
        tunnel = index_of(self._tunnel)
        routed = self._changed(left, self._tunnel, lambda raw: route(tunnel, raw, len(raw) * 8, add=False))
        index = index_of(self._interface)
        failures = routed | self._changed(left, self._interface, lambda raw: proxy(index, raw, add=False))
        self._here.difference_update(set(left) - set(failures))
        self._silent.difference_update(set(left) - set(failures))
        return failures

    def _changed(
        self, packed: Mapping[str, bytes], interface: str, change: Callable[[bytes], Change]
    ) -> dict[str, str]:
        """Carry out one change per address; why it failed, for those for which it did."""
        if not packed:
            return {}
        changes = [change(raw) for raw in packed.values()]
        with BulkRtnl() as bulk:
            codes = bulk.apply(changes)
        pairs = zip(packed, codes, strict=True)
        return {address: f"{interface}: {os.strerror(code)}" for address, code in pairs if code not in _ABSENT}

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
            if now() - due > LATE_S or self._is_hushed:
                continue
            why = await self._in_thread(self._announce_again, addresses, number)
            if why is not None and why != told:
                self._failed(f"cannot repeat announcements on {self._interface}: {why}")
            told = why
            await asyncio.sleep(PACE_S)

    def _announce_again(self, addresses: Sequence[str], number: int) -> str | None:
        try:
            here = (_packed(address) for address in addresses if address in self._here and address not in self._silent)
            self._herald.announce(here, reply=number % 2 == 0)
        except (RtnlFailed, OSError) as error:
            return _words(error)
        return None

    async def _watch(self, again: Callable[[], None]) -> None:
        """When a link is back, prepare it again and carry out all that stands: it took our routes along."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        was_up = {name: carries(name) for name in (self._interface, self._tunnel)}
        loop.add_reader(self._link.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                for name, is_up in _states(self._link, tuple(was_up)):
                    if is_up and not was_up[name]:
                        if name == self._interface:
                            await self._restore()
                        again()
                    was_up[name] = is_up
        finally:
            loop.remove_reader(self._link.fileno())

    async def _restore(self) -> None:
        try:
            await self._in_thread(self._herald.close)  # its sockets may belong to an interface that is gone
            self._prepare()
            await self._in_thread(self._route_pools)
        except (RtnlFailed, OSError) as error:
            self._failed(f"cannot use {self._interface} again: {_words(error)}")


def _states(link: socket.socket, interfaces: Sequence[str]) -> list[tuple[str, bool]]:
    """Which one carried or not, per message that waits; after a loss of messages, as if all had been away."""
    found: list[tuple[str, bool]] = []
    while True:
        try:
            found += link_states(link.recv(_LARGEST_DATAGRAM), interfaces)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found += [(name, is_up) for name in interfaces for is_up in (False, True)]


def _halves(pool: Network) -> list[Network]:
    """Two networks that together are the pool; one address alone has no halves."""
    return [pool] if pool.prefixlen == pool.max_prefixlen else list(pool.subnets())


def _words(error: RtnlFailed | OSError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
