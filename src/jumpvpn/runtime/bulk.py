"""Many changes of rtnetlink in few system calls: proxy neighbour entries and routes of ours, by the hundred.

With one request and one answer per message, ten thousand addresses that change hands at once would keep the node busy
for seconds. Here a change is packed in microseconds, and ``MOST_PER_CALL`` of them go to the kernel in one call. All
calls block for as long as the kernel works: use them from a thread, or for few messages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from jumpvpn.runtime.errors import RtnlFailed
from jumpvpn.runtime.rtnl import MAIN_TABLE

PROTOCOL = 74  # who made an entry, as routing daemons mark theirs; no number of iproute2's rt_protos
METRIC = 1 << 31  # any other route to the same network wins over ours
MOST_PER_CALL = 256  # some 15 kB to the kernel, and at worst as many refusals back, which the receive buffer holds

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_ERROR, _DONE = 2, 3
_PROXY = 0x08  # NTF_PROXY
_PERMANENT = 0x80  # NUD_PERMANENT
_IFLA_IFNAME = 3
_NDA_DST, _NDA_IFINDEX, _NDA_PROTOCOL = 1, 8, 12
_RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 4, 6
_CARRIES = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 0, 253, 1
_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12
_SO_RCVBUFFORCE = 33
_SIOCGIFFLAGS = 0x8913
_RECEIVE_BUFFER = 1 << 20
_LARGEST_DATAGRAM = 1 << 18
_ANSWER_SECONDS = 10  # the kernel answers before the call returns; this ends the wait for an answer that was lost
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NEIGHBOUR = struct.Struct("=B3xiHBB")
_ROUTE = struct.Struct("=8BI")
_LINK = struct.Struct("=8xI4x")  # ifinfomsg: of it, the flags


@dataclass(frozen=True, slots=True)
class Change:
    """One request without its header: ``message`` and ``flags`` as rtnetlink numbers them."""

    message: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One of our entries as the kernel lists it: network (packed address, prefix length)."""

    address: bytes
    prefix: int


def proxy(index: int, address: bytes, *, add: bool) -> Change:
    """The proxy neighbour entry of ``address`` (packed) on the interface; there already, or gone already, is fine."""
    body = _NEIGHBOUR.pack(_family(address), index, _PERMANENT, _PROXY, 0) + _attribute(_NDA_DST, address)
    if not add:
        return Change(_RTM_DELNEIGH, 0, body)
    return Change(_RTM_NEWNEIGH, _CREATE | _REPLACE, body + _attribute(_NDA_PROTOCOL, bytes((PROTOCOL,))))


def route(index: int, address: bytes, prefix: int, *, add: bool) -> Change:
    """Our route to the network, on-link at the interface, in the main table; as tolerant as ``proxy``."""
    family = _family(address)
    scope = _SCOPE_LINK if family == socket.AF_INET else _SCOPE_UNIVERSE
    head = _ROUTE.pack(family, prefix, 0, 0, MAIN_TABLE, PROTOCOL, scope, _UNICAST, 0)
    numbers = _attribute(_RTA_OIF, struct.pack("=i", index)) + _attribute(_RTA_PRIORITY, struct.pack("=I", METRIC))
    body = head + _attribute(_RTA_DST, address) + numbers
    return Change(_RTM_NEWROUTE, _CREATE | _REPLACE, body) if add else Change(_RTM_DELROUTE, 0, body)


class BulkRtnl:
    """A request socket for many changes. Use as ``with BulkRtnl() as bulk``."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        with contextlib.suppress(OSError):  # past the system's limit where we may (CAP_NET_ADMIN)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)  # the kernel picks what a dump asks for
        self._socket.settimeout(_ANSWER_SECONDS)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def apply(self, changes: Sequence[Change]) -> list[int]:
        """Carry out ``changes`` in order; per change 0 or the error number. Raises OSError when no answer comes."""
        results: list[int] = []
        for start in range(0, len(changes), MOST_PER_CALL):
            results += self._apply(changes[start : start + MOST_PER_CALL])
        return results

    def proxies(self, family: int, index: int) -> list[Entry]:
        """Our proxy neighbour entries on the interface. Raises OSError."""
        body = _NEIGHBOUR.pack(family, 0, 0, _PROXY, 0) + _attribute(_NDA_IFINDEX, struct.pack("=i", index))
        found = []
        for payload in self._dump(_RTM_GETNEIGH, body):
            _, at, _, flags, _ = _NEIGHBOUR.unpack_from(payload)
            attributes = _attributes(payload[_NEIGHBOUR.size :])
            if at == index and flags & _PROXY and attributes.get(_NDA_PROTOCOL, b"")[:1] == bytes((PROTOCOL,)):
                address = attributes[_NDA_DST]
                found.append(Entry(address, len(address) * 8))
        return found

    def routes(self, family: int, index: int) -> list[Entry]:
        """Our routes of the main table through the interface. Raises OSError."""
        head = _ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, PROTOCOL, 0, 0, 0)
        found = []
        for payload in self._dump(_RTM_GETROUTE, head + _attribute(_RTA_OIF, struct.pack("=i", index))):
            _, prefix, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(payload)
            attributes = _attributes(payload[_ROUTE.size :])
            through = attributes.get(_RTA_OIF) == struct.pack("=i", index)
            if through and table == MAIN_TABLE and protocol == PROTOCOL and _RTA_DST in attributes:
                found.append(Entry(attributes[_RTA_DST], prefix))
        return found

    def _apply(self, changes: Sequence[Change]) -> list[int]:
        first, last = self._sequence + 1, self._sequence + len(changes)
        self._sequence = last
        request = bytearray()
        for number, change in enumerate(changes, first):  # only a failure and the last one are answered
            flags = _REQUEST | change.flags | (_ACK if number == last else 0)
            request += _HEADER.pack(_HEADER.size + len(change.body), change.message, flags, number, 0) + change.body
        self._socket.send(request)
        results = [0] * len(changes)
        while True:
            for kind, number, payload in self._receive():
                if kind == _ERROR and first <= number <= last:
                    results[number - first] = -int(struct.unpack_from("=i", payload)[0])
                    if number == last:
                        return results

    def _dump(self, message: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), message, _REQUEST | _DUMP, self._sequence, 0) + body)
        while True:
            for kind, number, payload in self._receive():
                if number != self._sequence:
                    continue
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -int(struct.unpack_from("=i", payload)[0])
                    if code == errno.ENOENT:  # a table that nobody used yet holds nothing of ours
                        return
                    raise OSError(code, os.strerror(code))
                yield payload

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_LARGEST_DATAGRAM)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            yield kind, number, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


def withdraw(interface: str, networks: Sequence[tuple[bytes, int]]) -> None:
    """Remove our proxy entries and routes inside ``networks`` (packed address, prefix length) from the interface.

    They are found by listing, so one note serves for any number of addresses. An interface that is gone took them
    along. Raises RtnlFailed.
    """
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return
    try:
        with BulkRtnl() as bulk:
            changes = list(_removals(bulk, index, networks))
            failures = [code for code in bulk.apply(changes) if code not in (0, errno.ENOENT, errno.ESRCH)]
    except OSError as error:
        raise RtnlFailed(f"cannot remove announcements from {interface}: {error.strerror or error}") from error
    if failures:
        raise RtnlFailed(f"cannot remove {len(failures)} entries from {interface}: {os.strerror(failures[0])}")


def carries(interface: str) -> bool:
    """Whether the interface can carry packets; False if there is none of that name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", interface.encode(), 0))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return False
    return int(struct.unpack_from("16xH", answer)[0]) & _CARRIES == _CARRIES


def link_states(data: bytes, interfaces: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Which of the interfaces can carry packets or not, once per message about one in a datagram of RTNLGRP_LINK."""
    names = {name.encode(): name for name in interfaces}
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size + _LINK.size:
            return
        body = data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
        name = names.get(_attributes(body[_LINK.size :]).get(_IFLA_IFNAME, b"").rstrip(b"\0"))
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and name is not None:
            yield name, kind == _RTM_NEWLINK and _LINK.unpack_from(body)[0] & _CARRIES == _CARRIES


def _removals(bulk: BulkRtnl, index: int, networks: Sequence[tuple[bytes, int]]) -> Iterator[Change]:
    for family in sorted({_family(address) for address, _ in networks}):
        inside = [(int.from_bytes(a, "big"), p) for a, p in networks if _family(a) == family]
        for entry in bulk.proxies(family, index):
            if _is_in(entry, inside):
                yield proxy(index, entry.address, add=False)
        for entry in bulk.routes(family, index):
            if _is_in(entry, inside):
                yield route(index, entry.address, entry.prefix, add=False)


def _is_in(entry: Entry, networks: Sequence[tuple[int, int]]) -> bool:
    number, bits = int.from_bytes(entry.address, "big"), len(entry.address) * 8
    return any(
        prefix <= entry.prefix and number >> (bits - prefix) == network >> (bits - prefix)
        for network, prefix in networks
    )


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
