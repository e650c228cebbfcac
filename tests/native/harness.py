"""Two planes in one process, joined over loopback; inner packets go through socket pairs instead of TUN interfaces."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from jumpvpn._native import Plane, generate_private_key, public_key

CLIENT_INNER = "10.9.0.2"
SERVER_INNER = "10.9.0.1"
CREDENTIAL = b"enrolled"
WELCOME = b"welcome"
MS = 1_000_000


def wait_for(plane: Plane, name: str, seconds: float = 3) -> tuple[Any, ...]:
    """Takes the first fact called `name` and forgets those before it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for fact in plane.drain(4096):
            if fact[0] == name:
                return fact
        time.sleep(0.005)
    raise AssertionError(f"no {name} within {seconds} s")


class Node:
    """One plane with the other end of its inner device; facts are kept until a test asks for them."""

    def __init__(
        self,
        role: Literal["client", "gateway"],
        cluster_key: bytes = b"",
        *,
        private_key: bytes | None = None,
        **options: Any,
    ) -> None:
        self.device, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.setblocking(False)
        self.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.private_key = private_key or generate_private_key()
        self.facts: list[tuple[Any, ...]] = []
        arguments: dict[str, Any] = {
            "mtu": 1400,
            "queue_bytes": 1 << 20,
            "replay_bytes": 1 << 20,
            "replay_ms": 2000,
        } | options
        self.plane = Plane(
            role=role,
            private_key=self.private_key,
            cluster_key=cluster_key,
            tun="",
            tun_fd=inner.fileno(),
            **arguments,
        )
        inner.close()

    def open(self, bind: str = "127.0.0.1:0") -> tuple[int, str]:
        return self.plane.open_socket(bind=bind)

    def collect(self) -> None:
        self.facts += self.plane.drain(4096)

    def wait(
        self, name: str, where: Callable[[tuple[Any, ...]], bool] = lambda _: True, seconds: float = 3
    ) -> tuple[Any, ...]:
        """Takes the first fact called `name`; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self.collect()
            for fact in self.facts:
                if fact[0] == name and where(fact):
                    self.facts.remove(fact)
                    return fact
            left = deadline - time.monotonic()
            assert left > 0, f"no {name} within {seconds} s; facts: {self.facts}; counters: {self.busy_counters()}"
            select.select([self.plane.fact_fd], [], [], left)

    def none(self, name: str, seconds: float = 0.2) -> None:
        """Fails if a fact called `name` comes within `seconds`."""
        time.sleep(seconds)
        self.collect()
        assert not [fact for fact in self.facts if fact[0] == name]

    def send(self, packet: bytes) -> None:
        self.device.send(packet)

    def receive(self, seconds: float = 2) -> bytes:
        ready, _, _ = select.select([self.device], [], [], seconds)
        assert ready, f"no packet within {seconds} s; counters: {self.busy_counters()}"
        return self.device.recv(65536)

    def received(self, seconds: float = 0.2) -> list[bytes]:
        """Everything that comes until nothing came for `seconds`."""
        packets = []
        while select.select([self.device], [], [], seconds)[0]:
            packets.append(self.device.recv(65536))
        return packets

    def counter(self, name: str) -> int:
        return self.plane.counters()[name]

    def busy_counters(self) -> dict[str, int]:
        return {name: value for name, value in self.plane.counters().items() if value}

    def stop(self) -> None:
        self.plane.stop()
        self.device.close()


class Pair:
    """A client and a gateway with one session on path 0."""

    def __init__(
        self, *, client_options: dict[str, Any] | None = None, gateway_options: dict[str, Any] | None = None
    ) -> None:
        self.cluster_key = secrets.token_bytes(32)
        self.client = Node("client", **(client_options or {}))
        self.gateway = Node("gateway", self.cluster_key, **(gateway_options or {}))
        self.gateway_socket, self.gateway_address = self.gateway.open()
        self.client_socket, self.client_address = self.client.open()
        self.session_id = secrets.token_bytes(16)
        self.epoch = 1
        self.version = 1
        self.sealed = b""
        self.client_session = 0
        self.gateway_session = 0

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop()
        self.gateway.stop()

    def begin_handshake(self) -> int:
        return self.client.plane.begin_handshake(
            socket=self.client_socket,
            gateway=self.gateway_address,
            gateway_key=public_key(self.gateway.private_key),
            timestamp_ns=time.time_ns(),
            credential=CREDENTIAL,
        )

    def establish(self) -> Pair:
        self.begin_handshake()
        request = self.gateway.wait("handshake_request")
        self.sealed = self.gateway.plane.prepare_accept(request[1], self.session_id, [CLIENT_INNER], WELCOME)
        self.gateway_session = self.gateway.plane.finish_accept(request[1])
        response = self.client.wait("handshake_response")
        self.client_session = response[2]
        self.client.plane.set_path(self.client_session, 0, self.client_socket, self.gateway_address)
        self.client.plane.activate(self.client_session, 0)
        self.client.plane.probe_now(self.client_session, 0)
        self.gateway.wait("epoch_confirmed")
        self.client.wait("path_validated")
        return self

    def second_path(self, path: int = 1) -> str:
        """Adds a path from a new local socket; returns its address."""
        number, address = self.client.open()
        self.client.plane.set_path(self.client_session, path, number, self.gateway_address)
        return address

    def path_through(self, proxy: Proxy, path: int) -> None:
        """Moves the session to a path that runs through `proxy`."""
        number, _ = self.client.open()
        self.client.plane.set_path(self.client_session, path, number, proxy.address)
        self.reattach(path)

    def ask(self, path: int, *, zero_rtt: bool = False, token: bytes = b"", leaving: bool = False) -> str:
        return self.client.plane.begin_reattach(
            self.client_session,
            path=path,
            next_epoch=self.epoch + 1,
            expected_version=self.version,
            age_ms=time.time_ns() // MS,
            cause=3,
            token=token,
            zero_rtt=zero_rtt,
            leaving=leaving,
        )

    def commit(self, request: tuple[Any, ...]) -> None:
        self.sealed = self.gateway.plane.prepare_reattach(request[1])
        self.gateway.plane.commit_reattach(request[1], self.version + 1)

    def reattach(self, path: int, *, zero_rtt: bool = False) -> None:
        self.ask(path, zero_rtt=zero_rtt)
        self.commit(self.gateway.wait("reattach_request"))
        reply = self.client.wait("reattach_reply")
        assert reply[3] == 0
        self.client.plane.finish_reattach(self.client_session)
        self.epoch += 1
        self.version += 1
        self.gateway.wait("epoch_confirmed", lambda fact: fact[2] == self.epoch)


class Proxy:
    """A UDP forwarder in front of a gateway that can lose, record and remap: a network that misbehaves on order."""

    def __init__(self, gateway: str) -> None:
        host, port = gateway.split(":")
        self.gateway = (host, int(port))
        self.blackhole = False
        self.passes: set[int] = set()  # kinds of datagrams (high nibble) that pass a blackhole all the same
        self.drop_up = False
        self.kept_down: list[bytes] | None = None  # while a list: what comes from the gateway waits for ``release``
        self.record: list[bytes] | None = None
        self.forwarded = 0
        self._client: tuple[str, int] | None = None
        self._down = self._bound()
        self._up = self._bound()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._down.close()
        self._up.close()

    def release(self) -> None:
        """Sends on what was kept and came first to last, in one go; what comes later is kept again."""
        assert self._client is not None
        assert self.kept_down is not None
        kept, self.kept_down = self.kept_down, []
        for datagram in kept:
            self._down.sendto(datagram, self._client)

    @property
    def address(self) -> str:
        """Where clients send."""
        return "{}:{}".format(*self._down.getsockname())

    @property
    def upstream_address(self) -> str:
        """What the gateway sees."""
        return "{}:{}".format(*self._up.getsockname())

    def rebind(self) -> None:
        """Gives the client another address, as a NAT does that lost its mapping."""
        old, self._up = self._up, self._bound()
        old.close()

    @staticmethod
    def _bound() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def _run(self) -> None:
        while not self._stop.is_set():
            upstream = self._up
            with contextlib.suppress(OSError, ValueError):
                ready, _, _ = select.select([self._down, upstream], [], [], 0.02)
                for sock in ready:
                    self._forward(sock, is_up=sock is self._down)

    def _forward(self, sock: socket.socket, *, is_up: bool) -> None:
        datagram, source = sock.recvfrom(65536)
        if is_up:
            self._client = source
        if (self.blackhole and datagram[0] & 0xF0 not in self.passes) or (is_up and self.drop_up):
            return
        if is_up and self.record is not None:
            self.record.append(datagram)
        self.forwarded += 1
        if not is_up and self.kept_down is not None:
            self.kept_down.append(datagram)
            return
        if is_up:
            self._up.sendto(datagram, self.gateway)
        elif self._client:
            self._down.sendto(datagram, self._client)


class Second:
    """Another gateway of a pair's cluster, with a path of the client to it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.node = Node("gateway", pair.cluster_key)
        self.key = public_key(self.node.private_key)
        self.socket, self.address = self.node.open()
        self.session = 0

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.stop()

    def path(self, path: int = 1, *, standby: bool = False, through: str = "") -> str:
        """Opens a path of the client to this gateway; returns the client's address."""
        number, address = self.pair.client.open()
        session, peer = self.pair.client_session, through or self.address
        self.pair.client.plane.set_path(session, path, number, peer, gateway_key=self.key, standby=standby)
        return address

    def candidate(self) -> int:
        """Restores the session from its record, without routes."""
        self.session = self.node.plane.restore(self.pair.session_id, self.pair.sealed, [CLIENT_INNER], routed=False)
        return self.session

    def grant(self, *, zero_rtt: bool = False, leaving: bool = False) -> tuple[Any, ...]:
        """The client asks on path 1 and this gateway takes the session over; returns the request with its proof."""
        self.pair.ask(1, zero_rtt=zero_rtt, leaving=leaving)
        unknown = self.node.wait("reattach_request")
        self.candidate()
        self.node.plane.retry_reattach(unknown[1])
        request = self.node.wait("reattach_request")
        self.node.plane.prepare_reattach(request[1])
        self.node.plane.commit_reattach(request[1], self.pair.version + 1)
        assert self.pair.client.wait("reattach_reply")[3] == 0
        return request

    def take_over(self, handover: Literal["same", "lost", "drained"], *, zero_rtt: bool = False) -> None:
        """All of a move to this gateway."""
        self.grant(zero_rtt=zero_rtt)
        self.pair.client.plane.finish_reattach(self.pair.client_session, handover)
        self.node.wait("epoch_confirmed")


def liveness(node: Node, session: int, path: int, **limits_ms: float) -> None:
    """Sets limits in ms: probe_busy, probe_idle, silence_busy, silence_idle, and dead_factor."""
    limits = {
        "probe_busy": 20,
        "probe_idle": 1000,
        "silence_busy": 80,
        "silence_idle": 200,
        "loss_window": 0,
    } | limits_ms
    dead_factor = limits.pop("dead_factor", 2.0)
    values = {f"{name}_ns": int(value * MS) for name, value in limits.items()}
    node.plane.set_liveness(session, path, dead_factor=dead_factor, **values)


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071), by its definition."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_packet(source: str, destination: str, payload: bytes, *, number: int = 0) -> bytes:
    """An IPv4 UDP packet; `number` goes into the IP identification."""
    length = 8 + len(payload)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    udp = struct.pack("!HHHH", 4000, 5000, length, 0) + payload
    check = checksum(addresses + struct.pack("!HH", 17, length) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", check) + udp[8:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, number & 0xFFFF, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return header + udp


def up(payload: bytes) -> bytes:
    return udp_packet(CLIENT_INNER, SERVER_INNER, payload)


def down(payload: bytes) -> bytes:
    return udp_packet(SERVER_INNER, CLIENT_INNER, payload)
