"""Who carried which message of the UDP echo: seen on the wire, from outside all nodes, and what that shows.

In the server's namespace a frame's hardware address names the gateway that sent it, or to which it goes; in the
client's namespace the tunnel's interface shows what the client accepted. Messages are numbered, so that each one
accepted by the client can be traced to the gateway that carried it.
"""

from __future__ import annotations

import argparse
import signal
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from jumpvpn.lab.records import read_result, write_result
from jumpvpn.lab.traffic.echo import MESSAGE_BYTES
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.traffic.serve import ECHO_PORT

_ETH_P_ALL = 0x0300  # in network order, as bind(2) takes it
_ETHERNET_BYTES = 14
_ARP, _IP4 = b"\x08\x06", b"\x08\x00"
_UDP = 17
_LONGEST = 1 << 16
_SOCKET_BYTES = 8 << 20
_ETHER, _TUNNEL = 1, 65534  # ARPHRD_ETHER, ARPHRD_NONE; source: linux/if_arp.h


class Sight(IntEnum):
    """What was seen: where, and what it is of. `number` is that of the message, or the inner address of a claim."""

    RETURNED = 1  # the server's echo goes to a gateway
    FORWARDED = 2  # a client's message comes from a gateway
    CLAIMED = 3  # a gateway says that an inner address is its own (ARP)
    ACCEPTED = 4  # the echo left the client's tunnel: the client took it for current


@dataclass(frozen=True, slots=True)
class Seen:
    """One sighting; `gateway` is a hardware address as a number, 0 where none can be told."""

    sight: Sight
    at_ns: int
    gateway: int
    number: int


class Capture:
    """All sightings in one network namespace, until SIGTERM."""

    def __init__(self, pool: bytes) -> None:
        self._pool = pool
        self._rows = array("B"), array("q"), array("q"), array("q")

    def run(self, out: Path) -> None:
        """Look at every frame of every interface; write what was seen when told to end."""
        ending: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ETH_P_ALL) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
            link.settimeout(0.1)
            print("{}", flush=True)
            while not ending:
                try:
                    frame, (_, _, direction, kind, _) = link.recvfrom(_LONGEST)
                except TimeoutError:
                    continue
                self._look(frame, direction == socket.PACKET_OUTGOING, kind)
        names = ("sights", "at", "gateways", "numbers")
        write_result(out, {"kind": "capture"}, dict(zip(names, self._rows, strict=True)))

    def _look(self, frame: bytes, outgoing: bool, kind: int) -> None:
        if kind == _TUNNEL and not outgoing:
            for number in self._echoes(frame, source_port=True):
                self._note(Sight.ACCEPTED, 0, number)
        elif kind == _ETHER and frame[12:14] == _IP4:
            packet = frame[_ETHERNET_BYTES:]
            peer = frame[0:6] if outgoing else frame[6:12]
            inner = packet[16:20] if outgoing else packet[12:16]
            if inner[:3] == self._pool:
                sight = Sight.RETURNED if outgoing else Sight.FORWARDED
                for number in self._echoes(packet, source_port=outgoing):
                    self._note(sight, _number(peer), number)
        elif kind == _ETHER and frame[12:14] == _ARP and not outgoing and frame[28:31] == self._pool:
            self._note(Sight.CLAIMED, _number(frame[22:28]), _number(frame[28:32]))

    def _echoes(self, packet: bytes, *, source_port: bool) -> Iterable[int]:
        """The numbers of the echo's messages in an IPv4 packet; several where the kernel has joined datagrams."""
        if packet[0] >> 4 != 4 or packet[9] != _UDP:
            return
        start = (packet[0] & 15) * 4
        at = start if source_port else start + 2
        if int.from_bytes(packet[at : at + 2], "big") != ECHO_PORT:
            return
        for place in range(start + 8, len(packet) - MESSAGE_BYTES + 1, MESSAGE_BYTES):
            yield _number(packet[place : place + 8])

    def _note(self, *row: int) -> None:
        sight, gateway, number = row
        for column, value in zip(self._rows, (sight, boot_ns(), gateway, number), strict=True):
            column.append(value)


def load(path: Path) -> list[Seen]:
    """The sightings of a capture, in their order. Raises LabError."""
    _, arrays = read_result(path)
    rows = zip(arrays["sights"], arrays["at"], arrays["gateways"], arrays["numbers"], strict=True)
    return [Seen(Sight(sight), at, gateway, number) for sight, at, gateway, number in rows]


@dataclass(frozen=True, slots=True)
class Carriage:
    """Consecutive messages that one gateway carried; instants are of the first and the last acceptance (boot ns)."""

    gateway: str
    first_ns: int
    last_ns: int
    messages: int


def carriages(client: Sequence[Seen], server: Sequence[Seen], gateways: Mapping[int, str]) -> list[Carriage]:
    """Who carried what the client accepted, in the order of acceptance. `gateways` maps hardware addresses to names.

    A message that the server sent towards several gateways is left out: which of them carried it cannot be told.
    """
    towards: dict[int, set[int]] = {}
    for seen in server:
        if seen.sight is Sight.RETURNED:
            towards.setdefault(seen.number, set()).add(seen.gateway)
    told = [
        (seen.at_ns, gateways.get(next(iter(towards[seen.number])), "?"))
        for seen in client
        if seen.sight is Sight.ACCEPTED and len(towards.get(seen.number, ())) == 1
    ]
    return _runs(told)


def forwarded(server: Sequence[Seen], gateways: Mapping[int, str]) -> list[Carriage]:
    """Who forwarded what the client sent, in the order in which the client sent it (instants are of forwarding).

    A message that several gateways forwarded was sent again after a switch, and is left out.
    """
    by: dict[int, list[Seen]] = {}
    for seen in server:
        if seen.sight is Sight.FORWARDED:
            by.setdefault(seen.number, []).append(seen)
    alone = [by[number][0] for number in sorted(by) if len({seen.gateway for seen in by[number]}) == 1]
    return _runs([(seen.at_ns, gateways.get(seen.gateway, "?")) for seen in alone])


def overlaps(runs: Sequence[Carriage], owners: Sequence[str]) -> list[str]:
    """What is wrong with who carried: `owners` is the session's owners in the store's order, one for each term.

    The carriers must be owners in that order: each may carry nothing, none may carry again after the next one has.
    """
    found: list[str] = []
    place = 0
    for run in runs:
        ahead = next((index for index in range(place, len(owners)) if owners[index] == run.gateway), None)
        if ahead is None:
            words = f"{run.messages} messages from {run.first_ns} ns on carried by {run.gateway}"
            found.append(f"{words} after its ownership: owners were {', '.join(owners)}")
        else:
            place = ahead
    return found


def _runs(told: Iterable[tuple[int, str]]) -> list[Carriage]:
    found: list[Carriage] = []
    for at, gateway in told:
        if found and found[-1].gateway == gateway:
            last = found[-1]
            found[-1] = Carriage(gateway, last.first_ns, at, last.messages + 1)
        else:
            found.append(Carriage(gateway, at, at, 1))
    return found


def hardware(address: str) -> int:
    """A hardware address as the number that sightings carry."""
    return int(address.replace(":", ""), 16)


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def main() -> None:
    """Run as ``python -m jumpvpn.lab.cluster.capture``; prints {} once it looks, writes when it is ended by SIGTERM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pool", required=True, help="the first three numbers of the clients' inner addresses")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    Capture(struct.pack("3B", *(int(part) for part in options.pool.split(".")))).run(options.out)


if __name__ == "__main__":
    main()
