"""The link emulator: a process that carries frames between two interfaces and impairs them on the way.

Runs in a namespace of its own between the two ends of a link, on two AF_PACKET sockets. PACKET_VNET_HDR keeps
checksum and segmentation offload intact, so one turn of the loop may carry a super-packet of 64 KiB; whoever asks for
effects per packet turns segmentation off at the ends of the link (`Lab.impair` does).

Control: JSON lines on a unix socket, one answer per line. {"set": {direction: {field: value}}} changes parameters,
{"stats": true} returns counters; directions are "up" (client to router) and "down".
"""

import argparse
import contextlib
import gc
import heapq
import json
import os
import select
import socket
import struct
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.link import DIRECTIONS, Impairment
from jumpvpn.lab.linux import set_timer_slack
from jumpvpn.lab.shaper import Shaper

# linux/if_packet.h, linux/virtio_net.h
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_GSO_HEADER = struct.Struct("=BBHHHH")
_VNET_BYTES, _ETHERNET_BYTES = 10, 14
_GSO_UDP_L4 = 5
_LARGEST_FRAME = 65536 + 128
_ETHERTYPE, _ARP = slice(22, 24), b"\x08\x06"

# Standard input: a pipe whose other end the owner holds.
_OWNER = 0

# Kernel memory for frames that wait for a turn of this loop: 20 ms at 1.5 Gbit/s.
_SOCKET_BYTES = 4 << 20
# Frames taken from one socket before the other gets its turn: bounds the delay that one direction adds to the other.
_BATCH = 32
# Sleeping longer than this needs no precision; it also bounds how long a clock step could hold a frame.
_LONGEST_SLEEP_S = 1.0
# Frames of this span share one turn of the loop, as a network card moderates its interrupts: it halves the CPU time of
# steady traffic and makes a frame at most this much late.
_MODERATION_S = 100e-6
# The emulator stands for the network, which the load under test must not slow down.
_NICENESS = -10


@dataclass(slots=True)
class Direction:
    """One way through the link: where frames come from, what happens to them, where they go."""

    source: socket.socket
    target: socket.socket
    shaper: Shaper
    waiting: list[tuple[int, int, bytes]] = field(default_factory=list)
    serial: int = 0

    def receive(self) -> None:
        """Take up to one batch of frames, and send at once what is not delayed."""
        for _ in range(_BATCH):
            try:
                frame = self.source.recv(_LARGEST_FRAME, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # the interface went down; frames come again when it is up
                self.shaper.counters["interface_down"] += 1
                return
            now = time.monotonic_ns()
            ordinary = frame[_ETHERTYPE] != _ARP
            for due in self.shaper.admit(now, *frame_sizes(frame)) if ordinary else self.shaper.admit_arp(now):
                if due <= now and not self.waiting:
                    self._send(frame)
                else:
                    self.serial += 1
                    heapq.heappush(self.waiting, (due, self.serial, frame))

    def deliver(self, now_ns: int) -> None:
        """Send every frame whose time has come."""
        while self.waiting and self.waiting[0][0] <= now_ns:
            self._send(heapq.heappop(self.waiting)[2])

    def _send(self, frame: bytes) -> None:
        try:
            self.target.send(frame)
            self.shaper.counters["delivered"] += 1
        except OSError:  # interface down, or its queue full: a real link would lose the frame as well
            self.shaper.counters["unsendable"] += 1


def frame_sizes(frame: bytes) -> tuple[int, int]:
    """Return (bytes on the wire, bytes of the largest IP packet) of a frame that begins with its virtio-net header."""
    _, gso_type, _, gso_size, checksum_start, _ = _GSO_HEADER.unpack_from(frame)
    length = len(frame) - _VNET_BYTES
    kind = gso_type & 0x7F  # without the ECN bit
    if not kind:
        return length, length - _ETHERNET_BYTES
    transport = 8 if kind == _GSO_UDP_L4 else frame[_VNET_BYTES + checksum_start + 12] >> 4 << 2
    headers = checksum_start + transport
    segments = max(1, -(-(length - headers) // gso_size))
    return length + (segments - 1) * headers, min(length, headers + gso_size) - _ETHERNET_BYTES


class Emulator:
    """Both directions of one link, and the control socket."""

    def __init__(self, client: str, router: str, control: Path, seed: int, impairments: dict[str, Impairment]) -> None:
        ends = _open_interface(client), _open_interface(router)
        # Two streams of chance from one seed, so that traffic one way never changes the fate of traffic the other way.
        self.directions = {
            name: Direction(ends[i], ends[1 - i], Shaper(impairments[name], 2 * seed + i))
            for i, name in enumerate(DIRECTIONS)
        }
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(control))
        self._listener.listen()
        self._controllers: dict[socket.socket, bytes] = {}

    def run(self) -> None:
        """Carry frames until standard input ends, which it does when the owner of the lab is gone."""
        by_socket = {direction.source: direction for direction in self.directions.values()}
        while True:
            time.sleep(_MODERATION_S)
            readers: list[Any] = [_OWNER, *by_socket, self._listener, *self._controllers]
            ready, _, _ = select.select(readers, [], [], self._sleep_s())
            for reader in ready:
                if reader == _OWNER:
                    if not os.read(_OWNER, 4096):
                        return
                elif direction := by_socket.get(reader):
                    direction.receive()
                elif reader is self._listener:
                    self._controllers[self._listener.accept()[0]] = b""
                else:
                    self._converse(reader)
            now = time.monotonic_ns()
            for direction in by_socket.values():
                direction.deliver(now)

    def _sleep_s(self) -> float:
        due = [direction.waiting[0][0] for direction in self.directions.values() if direction.waiting]
        if not due:
            return _LONGEST_SLEEP_S
        return min(_LONGEST_SLEEP_S, max(0, min(due) - time.monotonic_ns()) / 1e9)

    def _converse(self, controller: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = controller.recv(65536)
        if not data:
            del self._controllers[controller]
            controller.close()
            return
        *lines, self._controllers[controller] = (self._controllers[controller] + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(OSError):
                controller.sendall(json.dumps(self._answer(line)).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            changed = {
                name: self.directions[name].shaper.impairment.changed(**fields)
                for name, fields in request.get("set", {}).items()
            }
        except (ValueError, TypeError, AttributeError, KeyError, LabError) as error:
            return {"error": str(error)}
        for name, impairment in changed.items():
            self.directions[name].shaper.change(impairment)
        return {
            "impairments": {name: asdict(direction.shaper.impairment) for name, direction in self.directions.items()},
            "stats": {
                name: dict(direction.shaper.counters) | {"waiting": len(direction.waiting)}
                for name, direction in self.directions.items()
            },
        }


def main() -> None:
    """Run as `python -m jumpvpn.lab.emulator`; prints {"ready": true} once frames are carried."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--client", required=True, help="interface towards the client")
    parser.add_argument("--router", required=True, help="interface towards the router")
    parser.add_argument("--control", required=True, type=Path, help="path of the control socket")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--impairments", required=True, help="JSON object: direction to parameters")
    options = parser.parse_args()
    given = json.loads(options.impairments)
    impairments = {name: Impairment().changed(**given.get(name, {})) for name in DIRECTIONS}
    with contextlib.suppress(PermissionError):
        os.nice(_NICENESS)
    set_timer_slack(1)
    emulator = Emulator(options.client, options.router, options.control, options.seed, impairments)
    gc.freeze()
    gc.disable()  # the loop makes no cycles, and a collection would delay frames
    print(json.dumps({"ready": True}), flush=True)
    emulator.run()


def _open_interface(name: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    link.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    link.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            link.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BYTES)
        except PermissionError:  # in a user namespace the system's limit holds
            link.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BYTES)
    link.bind((name, _ETH_P_ALL))
    return link


if __name__ == "__main__":
    main()
