"""The server side of all traffic: HTTP download on port 8080, echo over UDP and TCP on port 7007."""

import argparse
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from jumpvpn.lab.linux import set_timer_slack
from jumpvpn.lab.traffic.pacing import Pacer, boot_ns
from jumpvpn.lab.traffic.pattern import blocks

HTTP_PORT, ECHO_PORT = 8080, 7007

# A paced download sends this often: below the 10 ms buckets of the client's log.
_PACE_NS = 2_000_000
# Four missed beats (8 ms) are made up for at once; longer stalls are TCP's to recover.
_PACE_ALLOWANCE = 4
_REQUEST_LIMIT = 8192
_IP_PKTINFO = 8
_PACKET_INFO = struct.Struct("=i4s4s")
# The UDP echo's kernel buffer holds several seconds of 1 kHz traffic that an outage releases at once.
_DATAGRAM_BUFFER = 4 << 20


def main() -> None:
    """Run as `python -m jumpvpn.lab.traffic.serve`; prints {"ready": true}, and one JSON line per finished download."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bind", default="0.0.0.0", help="address to listen on")  # noqa: S104 - inside a lab namespace
    options = parser.parse_args()
    set_timer_slack(1)
    web = _listen(options.bind, HTTP_PORT)
    echo = _listen(options.bind, ECHO_PORT)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DATAGRAM_BUFFER)
    datagrams.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    datagrams.bind((options.bind, ECHO_PORT))
    for serve in (lambda: _accept(web, _Downloads().serve), lambda: _accept(echo, _echo_stream)):
        threading.Thread(target=serve, daemon=True).start()
    _print({"ready": True})
    _echo_datagrams(datagrams)


class _Downloads:
    """HTTP/1.1 GET of the seeded pattern: /?bytes=N&seed=S&rate=BYTES_PER_SECOND; counts its TCP connections."""

    def __init__(self) -> None:
        self._connections = 0

    def serve(self, connection: socket.socket) -> None:
        self._connections += 1
        number = self._connections
        query = parse_qs(urlsplit(_request_target(connection)).query)
        size, seed, rate = (int(query.get(name, ["0"])[0]) for name in ("bytes", "seed", "rate"))
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n"
            f"Content-Length: {size}\r\nX-Connection: {number}\r\n\r\n"
        )
        connection.sendall(head.encode())
        started = boot_ns()
        send = _paced(connection, rate) if rate else connection.sendall
        for piece in blocks(seed, size):
            send(piece)
        connection.shutdown(socket.SHUT_WR)
        _print({"download": size, "connections": self._connections, "seconds": (boot_ns() - started) / 1e9})
        while connection.recv(4096):  # the client closes once it has everything
            pass


def _paced(connection: socket.socket, rate: int) -> Callable[[bytes | memoryview], None]:
    """Return a `sendall` that keeps to `rate` bytes per second."""
    share = max(1, rate * _PACE_NS // 1_000_000_000)
    pacer = Pacer(_PACE_NS, boot_ns(), _PACE_ALLOWANCE)
    credit = 0

    def send(piece: bytes | memoryview) -> None:
        nonlocal credit
        view = memoryview(piece)
        while view:
            while credit <= 0:
                now = boot_ns()
                credit += share * pacer.due(now)
                if credit <= 0:
                    time.sleep(pacer.wait_s(now))
            connection.sendall(view[:credit])
            view, credit = view[credit:], credit - len(view[:credit])

    return send


def _echo_datagrams(datagrams: socket.socket) -> None:
    """Answer each datagram from the address that it was sent to; source: ip(7), IP_PKTINFO."""
    while True:
        with contextlib.suppress(OSError):  # an ICMP error or a full queue concerns one packet
            data, ancillary, _, sender = datagrams.recvmsg(65536, 64)
            _, source, _ = _PACKET_INFO.unpack(ancillary[0][2])
            answer = _PACKET_INFO.pack(0, source, bytes(4))
            datagrams.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, answer)], 0, sender)


def _echo_stream(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def _accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_guarded, args=(serve, connection), daemon=True).start()


def _guarded(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection:
        try:
            serve(connection)
        except (OSError, ValueError) as error:
            print(f"connection ended: {error}", file=sys.stderr, flush=True)


def _request_target(connection: socket.socket) -> str:
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(_REQUEST_LIMIT)
        if not part or len(request) > _REQUEST_LIMIT:
            raise ValueError("not an HTTP request")
        request += part
    method, target, _ = request.split(b"\r\n", 1)[0].decode("ascii").split(" ")
    if method != "GET":
        raise ValueError(f"{method} is not served")
    return target


def _listen(address: str, port: int) -> socket.socket:
    """Listen with Linux's default congestion control: BBR's PROBE_RTT (each 10 s) would read as an outage."""
    listener = socket.create_server((address, port), backlog=64)
    with contextlib.suppress(OSError):  # a kernel without it keeps its own choice
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return listener


def _print(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
