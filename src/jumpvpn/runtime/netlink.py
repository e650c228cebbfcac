"""Watches the kernel's interfaces, addresses and routes, and turns changes into typed facts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from jumpvpn.runtime.netstate import Message, NetFact, Snapshot, apply, differences, needs_resync

# rtnetlink multicast groups (linux/rtnetlink.h): link, IPv4 address, IPv4 route, IPv6 address, IPv6 route
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_RECEIVE_BUFFER = 4 << 20  # some 10,000 messages; what does not fit is recovered by a fresh dump
_LARGEST_DATAGRAM = 1 << 18


class NetMonitor:
    """The present network state and its changes, for one network namespace (the calling thread's).

    Use as ``async with NetMonitor() as monitor``; then ``monitor.snapshot``, ``async for facts in monitor.changes()``.
    Subscribes before it dumps, so nothing falls between; an overrun (ENOBUFS) is answered by a new dump, and the
    facts are the difference of two snapshots: nothing is lost and nothing is told twice.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.overruns = 0
        self._marshal = MarshalRtnl()
        self._readable = asyncio.Event()
        self._socket: socket.socket | None = None
        self._route: AsyncIPRoute | None = None

    async def __aenter__(self) -> NetMonitor:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._enlarge_buffer(self._socket)
        self._socket.bind((0, _GROUPS))
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable.set)
        self._route = AsyncIPRoute()
        try:
            await self._route.setup_endpoint()
            self.snapshot = await self._dump()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._route is not None:
            self._route.close()
            self._route = None

    async def changes(self) -> AsyncIterator[list[NetFact]]:
        """Batches of facts, each not empty, for as long as the monitor is open. ``snapshot`` is already the new one."""
        while True:
            await self._readable.wait()
            self._readable.clear()
            after, is_stale = self._drain()
            facts = differences(self.snapshot, after)
            self.snapshot = after
            if facts:
                yield facts
            if is_stale:
                facts = await self.resync()
                if facts:
                    yield facts

    async def resync(self) -> list[NetFact]:
        """Replace the snapshot by a fresh dump; the facts that it brought."""
        before, self.snapshot = self.snapshot, await self._dump()
        return differences(before, self.snapshot)

    def _drain(self) -> tuple[Snapshot, bool]:
        """The snapshot after everything that waits in the socket, and whether only a dump can be trusted now."""
        assert self._socket is not None, "the monitor is open"
        after, is_stale = self.snapshot, False
        while True:
            try:
                data = self._socket.recv(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return after, is_stale
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                is_stale = True
                continue
            for message in self._marshal.parse(data):
                after = apply(after, message)
                is_stale = is_stale or needs_resync(message)

    async def _dump(self) -> Snapshot:
        assert self._route is not None, "the monitor is open"
        snapshot = Snapshot()
        for request in (self._route.get_links, self._route.get_addr, self._route.get_routes):
            snapshot = _applied(snapshot, [message async for message in await request()])
        return snapshot

    @staticmethod
    def _enlarge_buffer(sock: socket.socket) -> None:
        """Past the system's limit where we may (CAP_NET_ADMIN), else as far as it goes."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, 33, _RECEIVE_BUFFER)  # SO_RCVBUFFORCE


def _applied(snapshot: Snapshot, messages: Iterable[Message | Any]) -> Snapshot:
    for message in messages:
        snapshot = apply(snapshot, message)
    return snapshot
