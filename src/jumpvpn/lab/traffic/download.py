"""The download: one TCP connection, every delivery timed, the content proven by its SHA-256."""

import argparse
import hashlib
import json
import signal
import socket
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jumpvpn.lab.records import write_result
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.traffic.pattern import expected_sha256

BUCKET_NS = 10_000_000
# Pauses from this length on are logged one by one; shorter ones are ordinary spacing of a paced stream.
PAUSE_NS = 5_000_000
_PROGRESS_NS = 200_000_000
_READ_BYTES = 1 << 18
# A read returns at least this often, so that progress and an end by signal are never held up by an outage.
_TURN_S = 0.1


@dataclass
class Delivery:
    """What arrived when: bytes per bucket, and each pause as the instants of the deliveries around it."""

    started_ns: int
    last_ns: int
    received: int = 0
    buckets: "array[int]" = field(default_factory=lambda: array("I"))
    pause_starts: "array[int]" = field(default_factory=lambda: array("q"))
    pause_ends: "array[int]" = field(default_factory=lambda: array("q"))
    longest_ns: int = 0

    def add(self, now_ns: int, count: int) -> None:
        """Log the delivery of `count` bytes."""
        pause = now_ns - self.last_ns
        if pause >= PAUSE_NS:
            self.pause_starts.append(self.last_ns)
            self.pause_ends.append(now_ns)
        self.longest_ns = max(self.longest_ns, pause)
        self.last_ns = now_ns
        self.received += count
        missing = (now_ns - self.started_ns) // BUCKET_NS + 1 - len(self.buckets)
        if missing > 0:
            self.buckets.extend((0,) * missing)
        self.buckets[-1] += count


def main() -> None:
    """Run as `python -m jumpvpn.lab.traffic.download`; exit status 0 only if the content was complete and right."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", required=True, help="such as http://10.99.0.2:8080")
    parser.add_argument("--bytes", required=True, type=int)
    parser.add_argument("--rate", type=int, default=0, help="bytes per second that the server keeps to; 0: full speed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path, help="file for the result")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    wanted = expected_sha256(options.seed, options.bytes)
    facts: dict[str, Any] = {"kind": "download", "bytes": options.bytes, "connections": 0, "error": None}
    digest = hashlib.sha256()
    delivery = Delivery(boot_ns(), boot_ns())
    try:
        connection, rest = _open(options.url, options.bytes, options.seed, options.rate, facts)
        delivery.started_ns = delivery.last_ns = boot_ns()
        with connection:
            _receive(connection, rest, options.bytes, digest, delivery)
    except (OSError, ValueError) as error:
        facts["error"] = str(error) or type(error).__name__
    except KeyboardInterrupt:
        facts["error"] = "ended by signal"
    facts |= {
        "received": delivery.received,
        "sha256": digest.hexdigest(),
        "sha256_expected": wanted,
        "checksum_ok": digest.hexdigest() == wanted and delivery.received == options.bytes,
        "started_ns": delivery.started_ns,
        "ended_ns": boot_ns(),
        "longest_pause_ms": delivery.longest_ns / 1e6,
        "bucket_ns": BUCKET_NS,
    }
    write_result(
        options.out,
        facts,
        {"buckets": delivery.buckets, "pause_starts": delivery.pause_starts, "pause_ends": delivery.pause_ends},
    )
    print(json.dumps({"done": True, **facts}), flush=True)
    sys.exit(0 if facts["checksum_ok"] else 1)


def _open(url: str, size: int, seed: int, rate: int, facts: dict[str, Any]) -> tuple[socket.socket, bytes]:
    """Return the one connection and what came with the answer's head; raises OSError or ValueError."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port or 80))
    facts["connections"] += 1
    facts["local"], facts["remote"] = connection.getsockname(), connection.getpeername()
    target = f"/?bytes={size}&seed={seed}&rate={rate}"
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(4096)
        if not part:
            raise ValueError("the server closed before it answered")
        answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("ascii").split("\r\n")
    if " 200 " not in status:
        raise ValueError(f"the server answered {status}")
    named = dict(header.lower().split(": ", 1) for header in headers)
    facts["server_connections"] = int(named["x-connection"])
    return connection, rest


def _receive(connection: socket.socket, rest: bytes, size: int, digest: Any, delivery: Delivery) -> None:
    connection.settimeout(_TURN_S)
    buffer = memoryview(bytearray(_READ_BYTES))
    report_ns, reported = delivery.started_ns + _PROGRESS_NS, 0
    if rest:
        digest.update(rest)
        delivery.add(boot_ns(), len(rest))
    while delivery.received < size:
        try:
            count = connection.recv_into(buffer)
            now = boot_ns()
            if not count:
                raise ValueError(f"the connection ended after {delivery.received} of {size} bytes")
            delivery.add(now, count)
            digest.update(buffer[:count])
        except TimeoutError:
            now = boot_ns()
        if now >= report_ns:
            rate = (delivery.received - reported) * 8e3 / (now - report_ns + _PROGRESS_NS)
            print(
                json.dumps(
                    {
                        "t_ns": now,
                        "bytes": delivery.received,
                        "mbit_s": round(rate, 3),
                        "silent_ms": round((now - delivery.last_ns) / 1e6, 1),
                        "longest_pause_ms": round(max(delivery.longest_ns, now - delivery.last_ns) / 1e6, 1),
                    }
                ),
                flush=True,
            )
            report_ns, reported = now + _PROGRESS_NS, delivery.received


if __name__ == "__main__":
    main()
