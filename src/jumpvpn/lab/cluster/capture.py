"""Who carried which message of the UDP echo: seen from outside all nodes, and what that shows.

A capture in a gateway's namespace sees what its process is given to seal and what it has opened; one in the client's
namespace sees what the client accepted. Messages are numbered, so that each one accepted can be traced to the gateway
that carried it, whatever way it took behind the gateways. A capture in the server's namespace sees who claims which
inner address.
"""

from __future__ import annotations

import argparse
import signal
import socket
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
_ARP = b"\x08\x06"
_UDP = 17
_LONGEST = 1 << 16
_FOREVER = 1 << 62
_SOCKET_BYTES = 8 << 20
_ETHER, _TUNNEL = 1, 65534  # ARPHRD_ETHER, ARPHRD_NONE; source: linux/if_arp.h


class Sight(IntEnum):
    """What was seen: where, and what it is of. `number` is that of the message, or the inner address of a claim."""

    GIVEN = 1  # the server's echo goes into the tunnel's interface, at a gateway: its process may seal it
    OPENED = 2  # a client's message comes out of it, at a gateway: its process took it for current
    ACCEPTED = 3  # the server's echo comes out of it, at the client: the client took it for current
    CLAIMED = 4  # a gateway says that an inner address is its own (ARP)


@dataclass(frozen=True, slots=True)
class Seen:
    """One sighting (boot ns); `number` is that of the message. A claim's are the hardware and the inner address."""

    sight: Sight
    at_ns: int
    number: int
    claimant: int = 0


class Capture:
    """All sightings in one network namespace, until SIGTERM."""

    def __init__(self, pool: bytes, *, at_gateway: bool) -> None:
        self._pool = pool
        self._out = Sight.OPENED if at_gateway else Sight.ACCEPTED
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
        names = ("sights", "at", "numbers", "claimants")
        write_result(out, {"kind": "capture"}, dict(zip(names, self._rows, strict=True)))

    def _look(self, frame: bytes, outgoing: bool, kind: int) -> None:
        if kind == _TUNNEL:
            # What the process opened comes in; echoes are from the server's port, messages to it.
            wanted = Sight.GIVEN if outgoing else self._out
            for number in self._echoes(frame, from_server=wanted is not Sight.OPENED):
                self._note(wanted, number, 0)
        elif kind == _ETHER and frame[12:14] == _ARP and not outgoing and frame[28:31] == self._pool:
            self._note(Sight.CLAIMED, _number(frame[28:32]), _number(frame[22:28]))

    def _echoes(self, packet: bytes, *, from_server: bool) -> Iterable[int]:
        """The numbers of the echo's messages in an IPv4 packet; several where the kernel has joined datagrams."""
        if packet[0] >> 4 != 4 or packet[9] != _UDP:
            return
        start = (packet[0] & 15) * 4
        at = start if from_server else start + 2
        if int.from_bytes(packet[at : at + 2], "big") != ECHO_PORT:
            return
        for place in range(start + 8, len(packet) - MESSAGE_BYTES + 1, MESSAGE_BYTES):
            yield _number(packet[place : place + 8])

    def _note(self, sight: Sight, number: int, claimant: int) -> None:
        for column, value in zip(self._rows, (sight, boot_ns(), number, claimant), strict=True):
            column.append(value)


def load(path: Path) -> list[Seen]:
    """The sightings of a capture, in their order. Raises LabError."""
    _, arrays = read_result(path)
    rows = zip(arrays["sights"], arrays["at"], arrays["numbers"], arrays["claimants"], strict=True)
    return [Seen(Sight(sight), at, number, claimant) for sight, at, number, claimant in rows]


@dataclass(frozen=True, slots=True)
class Carriage:
    """Consecutive messages that one gateway carried; instants are of the first and the last acceptance (boot ns)."""

    gateway: str
    first_ns: int
    last_ns: int
    messages: int


Sightings = Mapping[str, Sequence[Seen]]


def accepted(seen: Sightings) -> list[Carriage]:
    """Who carried what the client accepted, in the order of acceptance. `seen` is by namespace.

    A message that was given to several gateways is left out: which of them carried it cannot be told.
    """
    given: dict[int, set[str]] = {}
    for gateway, sightings in seen.items():
        for one in sightings:
            if one.sight is Sight.GIVEN:
                given.setdefault(one.number, set()).add(gateway)
    return _runs(
        (one.at_ns, next(iter(given[one.number])))
        for one in seen["client"]
        if one.sight is Sight.ACCEPTED and len(given.get(one.number, ())) == 1
    )


def opened(seen: Sightings) -> list[Carriage]:
    """Who opened what the client sent, in the order in which the client sent it (instants are of opening).

    A message that several gateways opened was sent again after a switch, and is left out.
    """
    by: dict[int, dict[str, int]] = {}
    for gateway, sightings in seen.items():
        for one in sightings:
            if one.sight is Sight.OPENED:
                by.setdefault(one.number, {}).setdefault(gateway, one.at_ns)
    alone = [by[number] for number in sorted(by) if len(by[number]) == 1]
    return _runs((at, gateway) for openers in alone for gateway, at in openers.items())


@dataclass(frozen=True, slots=True)
class Reign:
    """One owner of a session, from when the store said so (boot ns)."""

    since_ns: int
    gateway: str


def false_claims(
    seen: Sequence[Seen], address: int, reigns: Sequence[Reign], gateways: Mapping[int, str], grace_ns: int
) -> list[str]:
    """Gateways that claimed an inner address although another has owned its session for longer than `grace_ns`."""
    ends = [*(reign.since_ns for reign in reigns[1:]), _FOREVER]
    found: list[str] = []
    for one in seen:
        if one.sight is Sight.CLAIMED and one.number == address:
            claimant = gateways.get(one.claimant, "?")
            allowed = [
                reign.gateway
                for reign, end_ns in zip(reigns, ends, strict=True)
                if reign.since_ns - grace_ns <= one.at_ns <= end_ns + grace_ns
            ]
            if claimant not in allowed:
                words = ", ".join(dict.fromkeys(allowed)) or "nobody"
                found.append(f"{claimant} claims the inner address at {one.at_ns} ns; its owner is {words}")
    return found


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
    parser.add_argument("--gateway", action="store_true", help="the namespace is a gateway's")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    pool = bytes(int(part) for part in options.pool.split("."))
    Capture(pool, at_gateway=options.gateway).run(options.out)


if __name__ == "__main__":
    main()
