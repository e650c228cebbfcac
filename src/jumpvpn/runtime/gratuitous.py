"""Unasked announcements of addresses on a segment: who has a cached entry for the address changes it at once.

IPv4 (RFC 826, RFC 5227): broadcast ARP with the address as sender and target. Linux takes such a packet for an existing
entry in any state, within its lock time too, whatever ``arp_accept`` says. IPv6 (RFC 4861, 7.2.6): a Neighbour
Advertisement to all nodes with the override flag.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable

from jumpvpn.runtime.errors import RtnlFailed

_BROADCAST = b"\xff" * 6
_ETHERTYPE_ARP = b"\x08\x06"
_ARP_ETHERNET_IPV4 = b"\x00\x01\x08\x00\x06\x04"
_REQUEST, _REPLY = b"\x00\x01", b"\x00\x02"
_ARPHRD_ETHER = 1
_PADDING = bytes(18)  # an Ethernet frame has at least 60 bytes
_ALL_NODES = "ff02::1"
_NEIGHBOUR_ADVERTISEMENT = 136
_OVERRIDE = 0x20000000
_TARGET_LINK_LAYER = b"\x02\x01"
_HOPS = 255  # receivers refuse what could have crossed a router
_ICMP6_FILTER, _BLOCK_ALL = 1, b"\xff" * 32
_SEND_SECONDS = 1  # a full transmit queue; the announcement is tried again later


class Herald:
    """Announces addresses out of one Ethernet-like interface. Sockets open when needed, and anew after an error."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._ethernet: socket.socket | None = None
        self._icmp: socket.socket | None = None

    def announce(self, addresses: Iterable[bytes], *, reply: bool) -> None:
        """Send one announcement per packed address, IPv4 as an ARP reply or request: some devices heed only one.

        Raises OSError, RtnlFailed; blocks while the interface's queue is full.
        """
        try:
            hardware = self.hardware_address()
            for address in addresses:
                if len(address) == 4:
                    self._packets().send(arp_frame(hardware, address, reply=reply))
                else:
                    self._advertisements().send(advertisement(hardware, address))
        except OSError:
            self.close()
            raise

    def hardware_address(self) -> bytes:
        """The interface's Ethernet address, as it is at this moment. Raises RtnlFailed, OSError."""
        _, _, _, kind, address = self._packets().getsockname()
        if kind != _ARPHRD_ETHER or len(address) != 6:
            raise RtnlFailed(
                f"interface {self._interface} has no Ethernet address; "
                "announce.interface must be the one that leads to the servers behind the gateways"
            )
        return bytes(address)

    def close(self) -> None:
        """Close the sockets. May be called twice."""
        for sock in (self._ethernet, self._icmp):
            if sock is not None:
                sock.close()
        self._ethernet = self._icmp = None

    def _packets(self) -> socket.socket:
        if self._ethernet is None:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # 0: receives nothing
            try:
                sock.settimeout(_SEND_SECONDS)
                sock.bind((self._interface, 0))
            except OSError as error:
                sock.close()
                if error.errno == errno.ENODEV:
                    raise RtnlFailed(f"there is no interface {self._interface}") from None
                raise
            self._ethernet = sock
        return self._ethernet

    def _advertisements(self) -> socket.socket:
        if self._icmp is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            with contextlib.ExitStack() as stack:
                sock = stack.enter_context(socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6))
                sock.settimeout(_SEND_SECONDS)
                sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _BLOCK_ALL)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
                sock.connect((_ALL_NODES, 0, 0, socket.if_nametoindex(self._interface)))
                stack.pop_all()
            self._icmp = sock
        return self._icmp


def arp_frame(hardware: bytes, address: bytes, *, reply: bool) -> bytes:
    """A broadcast frame: ``address`` (4 bytes) is at ``hardware``.

    As a request its target hardware address is unknown; as a reply it must be the sender's, or Linux ignores it.
    """
    head = _BROADCAST + hardware + _ETHERTYPE_ARP + _ARP_ETHERNET_IPV4
    if reply:
        return head + _REPLY + hardware + address + hardware + address + _PADDING
    return head + _REQUEST + hardware + address + bytes(6) + address + _PADDING


def advertisement(hardware: bytes, address: bytes) -> bytes:
    """An ICMPv6 Neighbour Advertisement: ``address`` (16 bytes) is at ``hardware``; the kernel adds the checksum."""
    head = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE)
    return head + address + _TARGET_LINK_LAYER + hardware
