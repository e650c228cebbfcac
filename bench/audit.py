"""How fast the auditor judges a log, and how much memory that takes: a valid log of any length, made while it is read.

``python -m bench.audit [--lines N]`` prints JSON. One session's story comes from the shipped machine and the shipped
sealer; the log repeats it for as many sessions as it takes, a thousand of them open at a time, with checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jumpvpn.audit.chain import GENESIS, Chain
from jumpvpn.audit.checkpoints import Link, checkpoint_data
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Epoch, Instant, Now, SessionId, TransportId, Version

LINES = 1_000_000
OPEN_AT_ONCE = 1_000
CHECKPOINT_EVERY = 1_000
WALL_MS = 1_700_000_000_000
START = 1_000 * SECOND
_UID = SessionId(bytes(16)).uid
_CLIENT = "c0ffee00c0ffee00"
_PEER = "192.0.2.1:51820"
_CHILD = """
import json, resource, sys, time
from jumpvpn.audit.auditor import audit_files
began = time.perf_counter()
report = audit_files(["-"])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "outcome": report.outcome.value, "events": report.events, "chains": dict(report.counts),
    "cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": time.perf_counter() - began,
    "peak_rss_mb": round(usage.ru_maxrss / 1024, 1), "explained": "" if report.ok else report.explain()[:2000],
}))
"""


def measure(lines: int = LINES, note: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """Judge a log of about ``lines`` records in a process of its own.

    ``events_per_s`` counts that process's CPU time, so it is per core, whatever the making of the log takes.
    """
    argv = [sys.executable, "-c", _CHILD]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        written, shown = 0, time.monotonic()
        for batch in log(lines):
            child.stdin.write(b"".join(batch))
            written += len(batch)
            if time.monotonic() - shown > 2:
                shown = time.monotonic()
                note(f"audit: {written} of {lines} lines")
        child.stdin.close()
        found = json.loads(child.stdout.read())
    assert found["outcome"] == "PASS", found["explained"]
    return {
        "lines": written,
        "events_per_s": round(found["events"] / found["cpu_s"]),
        "peak_rss_mb": found["peak_rss_mb"],
        "cpu_s": round(found["cpu_s"], 1),
        "wall_s": round(found["wall_s"], 1),
        "sessions": found["chains"]["PASS"] - 1,
    }


def log(lines: int) -> Iterator[list[bytes]]:
    """About ``lines`` lines of one gateway's journal, in batches."""
    return _Log(lines).batches()


@dataclass(slots=True)
class _Live:
    """One session that is being told: when it began, which commit comes next, its chain."""

    number: int
    began_ms: int
    commit: int = 0
    seq: int = 0
    head: str = GENESIS


class _Log:
    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._sealer = Sealer(Origin("gw1", "standalone", "boot", "run", "gateway"), Policy(), lambda a, _m: a)
        self._commits = [(at, [_template(line) for line in made]) for at, made in _story(self._sealer)]
        per_session = sum(len(commit) for _, commit in self._commits)
        self._sessions = max(1, lines // per_session)
        length_ms = self._commits[-1][0]
        self._step_ms = max(1, length_ms // OPEN_AT_ONCE)
        self._node = Chain("n:gw1:run")
        self._key = _key(0)
        self._number, self._previous = 0, GENESIS
        self._grown: dict[str, str] = {}
        self._now_ms = START // MILLISECOND

    def batches(self) -> Iterator[list[bytes]]:
        policy = Policy()
        started = {"role": "gateway", "boot_id": "boot", "audit_key": self._key.public_key().public_bytes_raw().hex()}
        applied = {"version": "1.0", "digest": policy.digest(), "body": policy.body(), "mode": "start"}
        out = [self._note("node.started", started), self._note("policy.applied", applied)]
        agenda = [(self._now_ms, 0, _Live(0, self._now_ms))]
        begun = 1
        while agenda:
            self._now_ms, _, live = heapq.heappop(agenda)
            if live.commit == 0 and begun < self._sessions:
                at = live.began_ms + self._step_ms
                heapq.heappush(agenda, (at, begun, _Live(begun, at)))
                begun += 1
            out += self._tell(live)
            if live.commit < len(self._commits):
                heapq.heappush(agenda, (live.began_ms + self._commits[live.commit][0], live.number, live))
            if len(out) >= CHECKPOINT_EVERY:
                out.append(self._checkpoint())
                yield out
                out = []
        yield [*out, self._checkpoint(), self._note("node.stopped", {"cause": "asked"})]

    def _tell(self, live: _Live) -> list[bytes]:
        lines = []
        uid = b"%016x" % live.number
        mono, wall = b"%d" % self._now_ms, b"%d" % (WALL_MS + self._now_ms)
        for before, after in self._commits[live.commit][1]:
            live.seq += 1
            fields = {
                b"uid": uid, b"mono": mono, b"wall": wall, b"seq": b"%d" % live.seq, b"prev": live.head.encode(),
            }  # fmt: skip
            head, tail = before % fields, after % fields
            live.head = hashlib.sha256(head + tail).hexdigest()
            lines.append(b'%s,"hash":"%s"%s\n' % (head, live.head.encode(), tail))
        live.commit += 1
        self._grown[f"s:{live.number:016x}"] = f"{live.seq}:{live.head}"
        return lines

    def _note(self, event: str, data: dict[str, Any]) -> bytes:
        self._sealer.node = self._node
        now = Now(Instant(self._now_ms * MILLISECOND), WALL_MS + self._now_ms)
        (line,) = self._sealer.note([DomainEvent(event, "N", data=data)], now)
        self._node = self._sealer.node
        return line

    def _checkpoint(self) -> bytes:
        self._number += 1
        following = _key(self._number)
        heads = {**self._grown, self._node.name: f"{self._node.seq}:{self._node.head}"}
        link = Link(self._number, self._previous, following.public_key().public_bytes_raw().hex())
        counts = {"events": CHECKPOINT_EVERY, "chains": len(heads)}
        line = self._note("audit.checkpoint", checkpoint_data(self._node.name, link, heads, counts, self._key.sign))
        self._key, self._previous, self._grown = following, self._node.head, {}
        return line


def _key(number: int) -> Ed25519PrivateKey:
    """Keys of a log that nobody has to trust: made of their number, so that the log is the same each time."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"bench %d" % number).digest())


def _story(sealer: Sealer) -> list[tuple[int, list[bytes]]]:
    """One gateway session from birth to end: when each commit comes (ms after birth), and its state-lane lines."""
    first, second = TransportId("path0/udp"), TransportId("path1/udp")
    happened: list[tuple[int, tuple[Any, ...]]] = [
        (50, (ev.HandshakeCompleted(first, _PEER, Epoch(1), Version(1)),)),
        (4_000, (ev.InstabilitySeen(first, Reason.PROBE_TIMEOUT),)),
        (4_300, (ev.TransportDied(first, "silence", 300), ev.NoCandidate(1))),
        (4_900, (ev.ReattachAccepted(second, _PEER, Epoch(2), "00000001", Reason.TRANSPORT_DEAD),)),
        (9_000, (ev.KeysRotated(Epoch(3)),)),
        (12_000, (ev.ReattachAccepted(first, _PEER, Epoch(4), "00000002", Reason.TRANSPORT_DEAD),)),
        (20_000, (ev.CloseRequested(Reason.PEER_CLOSED),)),
    ]  # fmt: skip
    born = birth(SessionId(bytes(16)), Role.GATEWAY, Policy(), Instant(START), _CLIENT)
    session, told = born.session, [(0, _sealed(sealer, list(born.events), 0))]
    for at, inputs in happened:
        events: list[DomainEvent] = []
        for event in inputs:
            taken = step(session, event, Instant(START + at * MILLISECOND))
            session, events = taken.session, [*events, *taken.events]
        told.append((at, _sealed(sealer, events, at)))
    return told


def _sealed(sealer: Sealer, events: list[DomainEvent], at: int) -> list[bytes]:
    now = Now(Instant(START + at * MILLISECOND), WALL_MS)
    draft = sealer.draft(_UID, events, now)
    sealer.settle(draft, ended=False)
    return list(draft.lines)


def _template(line: bytes) -> tuple[bytes, bytes]:
    """The canonical bytes before and after the member ``hash``, with places for what differs between sessions."""
    record = json.loads(line)
    cause = record["cause"] and f"s:@uid@/{record['cause'].rpartition('/')[2]}"
    record |= {"chain": "s:@uid@", "session_uid": "@uid@", "seq": "@seq@", "prev": "@prev@", "mono_ms": "@mono@"}
    record |= {"time_ms": "@wall@", "cause": cause}
    del record["hash"]
    text = rfc8785.dumps(record).replace(b"%", b"%%").replace(_CLIENT.encode(), b"@uid@")
    for name in (b"seq", b"mono", b"wall"):
        text = text.replace(b'"@%s@"' % name, b"%%(%s)s" % name)
    for name in (b"uid", b"prev"):
        text = text.replace(b"@%s@" % name, b"%%(%s)s" % name)
    before, found, after = text.partition(b',"idx":')
    assert found, "the members of a record are in the order of their names"
    return before, found + after


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.audit", description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES, help=f"about how many (default {LINES})")
    options = parser.parse_args()

    def note(text: str) -> None:
        sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()

    sys.stdout.write(json.dumps(measure(options.lines, note), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
