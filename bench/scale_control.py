"""What the gateway's control path costs per event, without network and packet core: engine, sealing, record, store.

``python -m bench.scale_control [--sessions N] [--profile NAME]`` prints JSON: for birth, reattach, takeover and rekey
the operations per second of one core, microseconds per operation and their parts, and the cost of one ``step``.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jumpvpn.audit.addresses import shown_address
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Draft, Origin, Sealer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.policy.model import Policy
from jumpvpn.runtime.journal import Journal
from jumpvpn.runtime.stores.base import CommitResult, Write
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth, step
from jumpvpn.session.records import Kept, decode, encode
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import MILLISECOND, SECOND, Epoch, Instant, Now, SessionId, TransportId, Version

SESSIONS = 2_000
WALL_MS = 1_700_000_000_000
START = 1_000 * SECOND
BOOT = "6e1f0a5c-0000-4000-8000-000000000000"
SEALED = bytes(200)  # what the packet core seals for a record, WIRE-37
OPERATIONS = ("birth", "reattach", "takeover", "rekey")


def measure(sessions: int = SESSIONS, note: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """Each operation once for each of ``sessions`` sessions."""
    with tempfile.TemporaryDirectory(prefix="jumpvpn-bench-") as folder:
        control = Control(Path(folder))
        found = {}
        for name in OPERATIONS:
            note(f"control: {name}")
            found[name] = control.run(name, sessions)
    return {"sessions": sessions, "step_us": round(_step_cost(sessions), 2), "operations": found}


@dataclass(slots=True)
class Parts:
    """Seconds spent in each part of the path."""

    engine: float = 0.0
    draft: float = 0.0
    encode: float = 0.0
    store: float = 0.0
    settle: float = 0.0
    journal: float = 0.0
    commits: int = 0
    lines: int = 0
    line_bytes: int = 0
    record_bytes: int = 0


@dataclass(slots=True)
class Control:
    """One gateway's engine with everything that a commit passes through on its way to a store in memory."""

    folder: Path
    policy: Policy = field(default_factory=Policy)
    now_ns: int = START
    parts: Parts = field(default_factory=Parts)
    engine: GatewayEngine = field(init=False)
    sealer: Sealer = field(init=False)
    store: MemoryStore = field(init=False)
    journal: Journal = field(init=False)
    granted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryStore()
        self.journal = Journal(self.folder / "events.jsonl")
        self._start()

    def _start(self) -> None:
        """A process of the gateway: an engine that knows no session, and chains that begin with the store's heads."""
        self.engine = GatewayEngine(self.policy)
        origin = Origin("gw1", "standalone", BOOT, "run", "gateway")
        self.sealer = Sealer(origin, self.policy, partial(shown_address, key=bytes(32)))

    def run(self, name: str, sessions: int) -> dict[str, Any]:
        """``name`` for every session: microseconds of one operation, in all and by part."""
        self.parts = Parts()
        work = getattr(self, f"_{name}")
        prepared = list(self._prepared(name, sessions))
        gc.collect()
        began = time.process_time()
        for item in prepared:
            work(item)
        spent = time.process_time() - began
        return self._figures(spent, sessions)

    def _prepared(self, name: str, sessions: int) -> Iterator[Any]:
        if name != "takeover":
            yield from range(sessions)
            return
        stored = asyncio.run(self.store.load_all())
        self._start()
        yield from stored

    def _figures(self, spent: float, sessions: int) -> dict[str, Any]:
        parts, each = self.parts, 1e6 / sessions
        named = {
            name: round(getattr(parts, name) * each, 1)
            for name in ("engine", "draft", "encode", "store", "settle", "journal")
        }
        return {
            "per_second": round(sessions / spent), "us": round(spent * each, 1), "parts_us": named,
            "commits": parts.commits / sessions, "lines": parts.lines / sessions,
            "line_bytes": round(parts.line_bytes / sessions), "record_bytes": round(parts.record_bytes / sessions),
        }  # fmt: skip

    # --- operations --------------------------------------------------------------------------------------------------

    def _birth(self, number: int) -> None:
        raw = number.to_bytes(16, "big")
        uid = SessionId(raw).uid
        peer = _peer(number, 0)
        offer = inp.HandshakeOffered(number + 1, SessionId(raw), bytes(16) + raw, "c0ffee00c0ffee00", peer, number + 1)
        self.handle(offer)
        self.handle(inp.EpochProved(uid, Epoch(1), TransportId("path0/udp"), peer))
        self._expect(uid, State.ATTACHED, 1)

    def _reattach(self, number: int) -> None:
        uid = SessionId(number.to_bytes(16, "big")).uid
        asked = self._asked(self._session(uid), number, path=1)
        self.handle(asked)
        self._expect(uid, State.ATTACHED, asked.epoch)

    def _takeover(self, stored: Any) -> None:
        now = self._now()
        session, kept = decode(stored.body, self.policy, now, BOOT)
        self.sealer.resume(session.uid, Chain(stored.chain, stored.seq, stored.head))
        asked = self._asked(session, int.from_bytes(stored.session_id, "big"), path=2)
        self.handle(inp.TakeoverAsked(session, kept.device, "gw1", asked))
        self._expect(session.uid, State.ATTACHED, asked.epoch)

    def _rekey(self, number: int) -> None:
        uid = SessionId(number.to_bytes(16, "big")).uid
        session = self._session(uid)
        self.handle(inp.RekeyAsked(number + 1, uid, Epoch(session.epoch + 1)))
        self._expect(uid, State.ATTACHED, session.epoch + 1)

    def _asked(self, session: Session, number: int, path: int) -> inp.ReattachAsked:
        age = (self._now().boot - session.born_at) // MILLISECOND
        return inp.ReattachAsked(
            number + 1, session.uid, TransportId(f"path{path}/udp"), _peer(number, path), True, True, True,
            f"{number:08x}", Epoch(session.epoch + 1), int(session.bound_version), age, 0x0101,
        )  # fmt: skip

    def _session(self, uid: str) -> Session:
        session = self.engine.session(uid)
        assert session is not None
        return session

    def _expect(self, uid: str, state: State, epoch: int) -> None:
        session = self._session(uid)
        assert (session.state, session.epoch) == (state, epoch), f"{session.state.value} in epoch {session.epoch}"

    # --- the path of one input ---------------------------------------------------------------------------------------

    def handle(self, event: Any) -> None:
        """One input and everything that follows from it."""
        waiting = [event]
        while waiting:
            now = self._now()
            began = time.process_time()
            orders = self.engine.handle(waiting.pop(0), now)
            self.parts.engine += time.process_time() - began
            waiting += [self._commit(order, now) for order in orders if isinstance(order, out.Commit)]

    def _commit(self, order: out.Commit, now: Now) -> inp.CommitEnded:
        parts, clock = self.parts, time.process_time
        t0 = clock()
        draft = self.sealer.draft(order.uid, order.events, now)
        t1 = clock()
        body = encode(order.session, _kept(order.session), draft.now, BOOT)
        t2 = clock()
        result = _run(self.store.commit(_write(order, draft, body)))
        t3 = clock()
        lines = self.sealer.settle(draft, ended=order.session.state is State.TERMINATED)
        t4 = clock()
        self.journal.append(lines)
        t5 = clock()
        parts.draft += t1 - t0
        parts.encode += t2 - t1
        parts.store += t3 - t2
        parts.settle += t4 - t3
        parts.journal += t5 - t4
        parts.commits += 1
        parts.lines += len(lines)
        parts.line_bytes += sum(len(line) for line in lines)
        parts.record_bytes += len(body)
        assert result is CommitResult.COMMITTED, result
        return inp.CommitEnded(order.uid, order.serial, result.value)

    def _now(self) -> Now:
        self.now_ns += MILLISECOND
        return Now(Instant(self.now_ns), WALL_MS + (self.now_ns - START) // MILLISECOND)


def _kept(session: Session) -> Kept:
    return Kept(bytes(16) + session.id.raw, "laptop", ("10.8.0.2/32", "fd00:8::2/128"))


def _write(order: out.Commit, draft: Draft, body: bytes) -> Write:
    session, chain = order.session, draft.chain
    return Write(
        session_id=session.id.raw, expected_version=order.expected_version, version=int(session.version),
        state=session.state.value, epoch=int(session.epoch), body=body, sealed=SEALED, chain=chain.name,
        seq=chain.seq, head=chain.head, lines=draft.lines, device=order.device, write_id=f"{session.version:016x}",
    )  # fmt: skip


def _run(call: Any) -> CommitResult:
    """What a coroutine that never waits returns."""
    try:
        call.send(None)
    except StopIteration as done:
        result: CommitResult = done.value
        return result
    raise AssertionError("a store in memory never waits")


def _peer(number: int, path: int) -> str:
    return f"198.51.{number >> 8 & 255}.{number & 255}:{40_000 + path}"


def _step_cost(times: int) -> float:
    """Microseconds of one ``step`` of the machine, over the rows of an ordinary life."""
    first, second = TransportId("path0/udp"), TransportId("path1/udp")
    born = birth(SessionId(bytes(16)), Role.GATEWAY, Policy(), Instant(START), "c0ffee00c0ffee00").session
    life = (
        ev.HandshakeCompleted(first, "198.51.100.1:40000", Epoch(1), Version(1)),
        ev.TransportDied(first, "silence", 300),
        ev.NoCandidate(1),
        ev.KeysRotated(Epoch(2)),
    )
    began = time.process_time()
    for _ in range(times):
        session = born
        for at, event in enumerate(life):
            session = step(session, event, Instant(START + at * SECOND)).session
        assert session.incumbent == first
        assert second != first
    return (time.process_time() - began) * 1e6 / (times * len(life))


def profile(name: str, sessions: int) -> str:
    """The functions that ``name`` spends its time in, as cProfile tells."""
    with tempfile.TemporaryDirectory(prefix="jumpvpn-bench-") as folder:
        control = Control(Path(folder))
        for earlier in OPERATIONS[: OPERATIONS.index(name)]:
            control.run(earlier, sessions)
        profiler = cProfile.Profile()
        profiler.runcall(control.run, name, sessions)
    path = Path(tempfile.mkstemp(prefix="jumpvpn-profile-")[1])
    with path.open("w", encoding="utf-8") as stream:
        pstats.Stats(profiler, stream=stream).sort_stats("tottime").print_stats(45)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.scale_control", description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help=f"how many (default {SESSIONS})")
    parser.add_argument("--profile", choices=OPERATIONS, help="print where this operation spends its time instead")
    options = parser.parse_args()
    if options.profile:
        sys.stdout.write(profile(options.profile, options.sessions))
        return 0

    def note(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    sys.stdout.write(json.dumps(measure(options.sessions, note), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
