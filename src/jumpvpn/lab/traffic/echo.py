"""The echo: numbered messages at a steady rate over UDP or TCP, the fate and round-trip time of each one logged."""

import argparse
import contextlib
import gc
import json
import select
import signal
import socket
import struct
from array import array
from pathlib import Path
from typing import Any

from jumpvpn.lab.linux import set_timer_slack
from jumpvpn.lab.records import write_result
from jumpvpn.lab.traffic.pacing import Pacer, boot_ns
from jumpvpn.lab.traffic.serve import ECHO_PORT

MESSAGE_BYTES = 64
_NUMBER = struct.Struct(">Q")
_FILLING = bytes(MESSAGE_BYTES - _NUMBER.size)

_PROGRESS_NS = 200_000_000
# After the last message, answers are awaited this long: more than the longest outage that a scenario makes.
_DRAIN_NS = 2_000_000_000
_LONGEST_SLEEP_S = 0.1
# Messages taken per turn before the schedule is looked at again.
_BATCH = 64
# A TCP echo keeps at most this much behind a full kernel buffer: an hour of messages.
_BACKLOG_BYTES = 3600 * 1000 * MESSAGE_BYTES


class Log:
    """One row per message sent: when, when its first echo came (0: never), how many echoes came."""

    def __init__(self) -> None:
        self.sent, self.answered, self.copies = array("q"), array("q"), array("H")
        self.received = self.errors = self.last_ns = 0

    def send(self, now_ns: int) -> bytes:
        """Return the next message."""
        message = _NUMBER.pack(len(self.sent)) + _FILLING
        self.sent.append(now_ns)
        self.answered.append(0)
        self.copies.append(0)
        return message

    def receive(self, message: bytes | memoryview, now_ns: int) -> None:
        """Log an echo; one that answers nothing is counted as an error."""
        number = _NUMBER.unpack_from(message)[0]
        if number >= len(self.sent):
            self.errors += 1
            return
        self.received += 1
        self.last_ns = now_ns
        self.copies[number] = min(self.copies[number] + 1, 0xFFFF)
        if self.copies[number] == 1:
            self.answered[number] = now_ns

    @property
    def outstanding(self) -> bool:
        return 0 in self.copies[-10_000:]


class _Datagrams:
    """Messages as UDP datagrams: errors of single sends are losses, as a network would make them."""

    def __init__(self, address: tuple[str, int], log: Log) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.blocked = False
        self._log = log

    def send(self, message: bytes) -> None:
        try:
            self.socket.send(message)
        except OSError:
            self._log.errors += 1

    def receive(self) -> None:
        for _ in range(_BATCH):
            try:
                message = self.socket.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                self._log.errors += 1
                return
            if len(message) == MESSAGE_BYTES:
                self._log.receive(message, boot_ns())


class _Stream:
    """Messages in one TCP connection; raises ConnectionError when it ends."""

    def __init__(self, address: tuple[str, int], log: Log) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._log = log
        self._backlog, self._partial = bytearray(), b""

    @property
    def blocked(self) -> bool:
        return bool(self._backlog)

    def send(self, message: bytes) -> None:
        if len(self._backlog) > _BACKLOG_BYTES:
            raise ConnectionError("the connection is stuck")
        self._backlog += message
        with contextlib.suppress(BlockingIOError):
            del self._backlog[: self.socket.send(self._backlog)]

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.socket.recv(_BATCH * MESSAGE_BYTES)
            now = boot_ns()
            if not data:
                raise ConnectionError("the server closed the connection")
            view = memoryview(self._partial + data)
            whole = len(view) - len(view) % MESSAGE_BYTES
            for start in range(0, whole, MESSAGE_BYTES):
                self._log.receive(view[start:], now)
            self._partial = bytes(view[whole:])


def main() -> None:
    """Run as `python -m jumpvpn.lab.traffic.echo`; ends after --seconds or on SIGTERM, and waits for answers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    protocol = parser.add_mutually_exclusive_group(required=True)
    protocol.add_argument("--udp", action="store_const", dest="carrier", const=_Datagrams)
    protocol.add_argument("--tcp", action="store_const", dest="carrier", const=_Stream)
    parser.add_argument("--server", required=True)
    parser.add_argument("--port", type=int, default=ECHO_PORT)
    parser.add_argument("--rate", type=int, default=1000, help="messages per second")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", required=True, type=Path, help="file for the result")
    options = parser.parse_args()
    set_timer_slack(1)
    gc.disable()
    log, facts = (
        Log(),
        {
            "kind": "echo",
            "protocol": "udp" if options.carrier is _Datagrams else "tcp",
            "rate": options.rate,
            "error": None,
        },
    )
    try:
        carrier = options.carrier((options.server, options.port), log)
        with carrier.socket:
            _exchange(carrier, log, options.rate, options.seconds)
    except OSError as error:
        facts["error"] = str(error)
    facts |= {"sent": len(log.sent), "received": log.received, "errors": log.errors, "ended_ns": boot_ns()}
    write_result(options.out, facts, {"sent": log.sent, "answered": log.answered, "copies": log.copies})
    print(json.dumps({"done": True, **facts}), flush=True)


def _exchange(carrier: Any, log: Log, rate: int, seconds: float) -> None:
    """Send on schedule and log what returns, until the time is over and the answers are in."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    signal.signal(signal.SIGINT, lambda *_: ending.append(1))
    pacer = Pacer(1_000_000_000 // rate, boot_ns())
    begin = log.last_ns = report_ns = pacer.next_ns
    last_send_ns, reported = 0, 0
    while True:
        now = boot_ns()
        if not last_send_ns and (ending or now - begin > seconds * 1e9):
            last_send_ns = now
        if last_send_ns and (now > last_send_ns + _DRAIN_NS or not log.outstanding):
            return
        wait = _LONGEST_SLEEP_S if last_send_ns else min(_LONGEST_SLEEP_S, pacer.wait_s(now))
        readable, _, _ = select.select([carrier.socket], [carrier.socket] if carrier.blocked else [], [], wait)
        if readable:
            carrier.receive()
        now = boot_ns()
        for _ in range(0 if last_send_ns else pacer.due(now)):
            carrier.send(log.send(boot_ns()))
        if now >= report_ns:
            _report(log, now, reported)
            report_ns, reported = now + _PROGRESS_NS, len(log.sent)


def _report(log: Log, now_ns: int, since: int) -> None:
    """Print progress; round-trip times are those of messages sent since the last line."""
    times = sorted(answer - sent for sent, answer in zip(log.sent[since:], log.answered[since:], strict=True) if answer)
    print(
        json.dumps(
            {
                "t_ns": now_ns,
                "sent": len(log.sent),
                "received": log.received,
                "errors": log.errors,
                "silent_ms": round((now_ns - log.last_ns) / 1e6, 1),
                "rtt_ms": round(times[len(times) // 2] / 1e6, 3) if times else None,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
