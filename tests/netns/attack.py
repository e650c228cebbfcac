"""What an attacker on the network can do, as a program for one of a lab's namespaces; prints one JSON document.

``capture`` keeps datagrams of the VPN until its input ends; ``send`` sends those of its input (hex lines) once, in its
own name or in another's; ``flood`` sends random ones. What comes back is counted by AF_PACKET.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

VPN_PORT = 51900
ETH_P_ALL = 3
UDP_SEGMENT = 103
SEGMENTS = 64  # of one send; the kernel's own limit
KEPT = 200  # per kind and direction: enough of each, and bounded
LONGEST = 1500  # longer frames are segmented sends, which only a local capture sees
AFTERWARDS_S = 0.5  # answers to the last datagrams arrive within a round trip


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("capture")
    for name in ("send", "flood"):
        command = commands.add_parser(name)
        command.add_argument("target")
        command.add_argument("--source", help="address:port of somebody else")
        command.add_argument("--rate", type=float, default=20_000)
        command.add_argument("--seconds", type=float, default=3)
    chosen = parser.parse_args()
    if chosen.command == "capture":
        result = capture()
    elif chosen.command == "flood":
        result = attack(chosen.target, lambda sock: flood(sock, chosen.rate, chosen.seconds))
    else:
        datagrams = [bytes.fromhex(line) for line in sys.stdin]
        if chosen.source is None:
            result = attack(chosen.target, lambda sock: send(sock.send, datagrams, chosen.rate))
        else:
            result = forge(chosen.target, chosen.source, datagrams, chosen.rate)
    print(json.dumps(result))


def capture() -> list[dict[str, str]]:
    """Datagrams to and from the gateway's port, by interface."""
    kept: list[dict[str, str]] = []
    counts: dict[tuple[str, int, str], int] = {}
    with sniffer() as sock:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            if not select.select([sock], [], [], 0.05)[0]:
                continue
            packet, (interface, *_) = sock.recvfrom(LONGEST + 100)
            found = parse_udp(packet)
            if found is None or not found[2] or VPN_PORT not in (found[0][1], found[1][1]):
                continue
            source, target, payload = found
            kind = (interface, payload[0] >> 4, address(source))
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= KEPT:
                entry = {"interface": interface, "source": address(source), "target": address(target)}
                kept.append({**entry, "data": payload.hex()})
    return kept


def attack(target: str, act: Callable[[socket.socket], int]) -> dict[str, int]:
    """Run ``act`` with a socket to ``target``; how many were sent, and how many came back."""
    with sniffer() as ear, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(split(target))
        answers = Answers(ear, split(target), sock.getsockname())
        sent = act(sock)
        time.sleep(AFTERWARDS_S)
        return {"sent": sent, "answered": answers.stop()}


def forge(target: str, source: str, datagrams: list[bytes], rate: float) -> dict[str, int]:
    """Send in somebody else's name, by a raw socket: one that were bound there would take what he is sent.

    Answers go to him and cannot be told from the others that he gets. Longer than a packet cannot be forged this way.
    """
    (here, port), (there, to) = split(source), split(target)

    def one(datagram: bytes) -> None:
        addresses = socket.inet_aton(here) + socket.inet_aton(there)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(datagram), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        raw.sendto(head + struct.pack("!HHHH", port, to, 8 + len(datagram), 0) + datagram, (there, 0))

    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        return {"sent": send(one, datagrams, rate), "answered": 0}


def send(one: Callable[[bytes], object], datagrams: list[bytes], rate: float) -> int:
    started = time.monotonic()
    for number, datagram in enumerate(datagrams):
        with contextlib.suppress(OSError):
            one(datagram)
        if number % 64 == 0:
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
    return len(datagrams)


def flood(sock: socket.socket, rate: float, seconds: float) -> int:
    """Random bytes in datagrams of all sizes, by segmented sends, so that Python is no limit."""
    dice = random.Random(1)
    pool = memoryview(os.urandom(4 << 20))
    started, sent = time.monotonic(), 0
    while time.monotonic() < started + seconds:
        size = dice.randint(1, 1000)
        at = dice.randrange(len(pool) - SEGMENTS * size)
        with contextlib.suppress(OSError):
            sock.sendmsg([pool[at : at + SEGMENTS * size]], [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))])
            sent += SEGMENTS
        time.sleep(max(0.0, started + sent / rate - time.monotonic()))
    return sent


class Answers:
    """Counts the datagrams that ``target`` sends to ``mine`` while others are sent."""

    def __init__(self, ear: socket.socket, target: tuple[str, int], mine: tuple[str, int]) -> None:
        self._ear, self._target, self._mine = ear, target, mine
        self._count = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        return self._count

    def _run(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._ear], [], [], 0.05)[0]:
                packet, (_, _, kind, *_) = self._ear.recvfrom(256)
                found = parse_udp(packet) if kind != socket.PACKET_OUTGOING else None
                self._count += found is not None and found[:2] == (self._target, self._mine)


@contextlib.contextmanager
def sniffer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        yield sock


def parse_udp(packet: bytes) -> tuple[tuple[str, int], tuple[str, int], bytes] | None:
    """Source, target and payload of an IPv4 UDP packet that is whole and of ordinary length."""
    if len(packet) < 28 or packet[0] != 0x45 or packet[9] != socket.IPPROTO_UDP or len(packet) > LONGEST:
        return None
    source, target, length, _ = struct.unpack_from("!HHHH", packet, 20)
    ends = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    return (ends[0], source), (ends[1], target), packet[28 : 20 + length]


def split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def address(end: tuple[str, int]) -> str:
    return f"{end[0]}:{end[1]}"


if __name__ == "__main__":
    main()
