"""Writes a recording while the node runs: what the engine is told, each moment of the sealer, the lines that follow.

The order of the lines is the order in which things happened. A segment begins with the whole state, so that it can be
replayed on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from jumpvpn.audit.chain import Chain
from jumpvpn.audit.checkpoints import Link, Sign
from jumpvpn.audit.sealing import Draft, Origin, Sealer, ShowAddress
from jumpvpn.engine.outputs import Emit
from jumpvpn.policy.model import Policy
from jumpvpn.recording.entries import DIGEST_DIGITS, FORMAT, Header, header_line, input_line, line_of, note_line
from jumpvpn.recording.snapshot import Engine, at_rest, capture
from jumpvpn.recording.veil import NodeVeil
from jumpvpn.values import DomainEvent, Now

RESERVE = 8  # a segment that has an eighth left waits for a moment at which no commit is under way
STATE_SHARE = 2  # the state at the beginning may fill half a segment: else hardly any inputs would fit
FLUSH_BYTES = 1 << 16  # handed over at once; what is less waits for the second


class Sink(Protocol):
    """Where segments go. A sink that cannot go on says so itself and answers False; it is asked no more."""

    def begin(self, number: int) -> bool:
        """The next segment; the one before is complete."""

    def write(self, data: bytes) -> bool:
        """Bytes of the present segment."""

    def too_big(self, state: int) -> None:
        """The state at the beginning (bytes) leaves no room for inputs: the recording ends."""

    def close(self) -> None:
        """Nothing more will come."""


class Tape:
    """One node's recording. ``size`` bounds a segment (bytes); ``salt`` is random and is kept nowhere else."""

    def __init__(self, sink: Sink, engine: Engine, *, salt: bytes, size: int, program: str) -> None:
        self._sink = sink
        self._engine = engine
        self._salt = salt
        self._size = size
        self._program = program
        self._sealer: TapedSealer
        self._veil: NodeVeil
        self._segment = 0
        self._running = False  # a segment is open
        self._over = False
        self._missed = 0  # inputs since the last segment was closed, because a commit was under way
        self._buffer: list[bytes] = []
        self._waiting = self._written = self._inputs = self._events = 0
        self._digest = hashlib.sha256()
        self._emitting: tuple[Sequence[DomainEvent], ...] = ()

    # --- what the node tells -----------------------------------------------------------------------------------------

    def sealer(self, origin: Origin, policy: Policy, show: ShowAddress) -> Sealer:
        """The node's sealer, under observation. To be called once, before anything is told."""
        self._veil = NodeVeil(self._salt, show, policy.observability.address_mode)
        self._sealer = TapedSealer(self, origin, policy, show)
        return self._sealer

    def heard(self, event: Any, now: Now) -> None:
        """The engine is about to be told ``event``."""
        self._emitting = ()
        if self._over:
            return
        self._turn_page(now)
        if self._running:
            self._inputs += 1
            self._put(input_line(event, now, self._veil))
        else:
            self._missed += 1

    def ordered(self, orders: Sequence[Any]) -> None:
        """What the engine answered: its events will be sealed as its own, not as the node's."""
        self._emitting = tuple(order.events for order in orders if isinstance(order, Emit))

    def flush(self) -> None:
        """Hand over what waits, with the sum of all before it."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._digest.update(data)
        seal = line_of("sum", self._digest.hexdigest()[:DIGEST_DIGITS])
        self._digest.update(seal)
        self._buffer.clear()
        self._written += len(seal)
        self._waiting = 0
        if not self._sink.write(data + seal):
            self._running, self._over = False, True

    def close(self) -> None:
        """The recording ends in order."""
        self._finish()
        self._over = True
        self._sink.close()

    # --- what the sealer tells ---------------------------------------------------------------------------------------

    def sealing(self, events: Sequence[DomainEvent], now: Now) -> None:
        """Node-lane events are about to be sealed: the engine's by reference, the node's own as they are."""
        if not self._segment and not self._over:
            self._begin(now)
        if any(events is mine for mine in self._emitting):
            self.moment("emit")
        elif self._running:
            self._put(note_line(events, now, self._veil))

    def moment(self, *entry: Any) -> None:
        """A moment of the sealer in plain values."""
        if self._running:
            self._put(line_of(*entry))

    def new_policy(self, policy: Policy) -> None:
        """Events name ``policy`` from here on, and show addresses as it says."""
        self._veil.use_mode(policy.observability.address_mode)
        if self._running:
            self._put(line_of("policy", self._veil.policy(policy), self._veil.shown()))

    def sealed(self, lines: Sequence[bytes]) -> None:
        """Lines that go to the journal now."""
        if self._running:
            self._events += len(lines)
            for line in lines:
                self._put(line)

    # --- segments ----------------------------------------------------------------------------------------------------

    def _turn_page(self, now: Now) -> None:
        """Begin a segment when there is none or the present one is full, and no commit is under way."""
        if self._running and self._written < self._size - self._size // RESERVE:
            return
        if at_rest(self._engine):
            self._finish()
            self._begin(now)
        elif self._written >= self._size:
            self._finish()

    def _begin(self, now: Now) -> None:
        self._segment += 1
        if not self._sink.begin(self._segment):
            self._over = True
            return
        self._running, self._digest = True, hashlib.sha256()
        self._written = self._inputs = self._events = 0
        self._veil.begin_segment()
        self._put(header_line(self._header(now)))
        for kind, value in capture(self._engine, self._sealer, self._veil):
            self._put(line_of("state", kind, value))
        self._veil.forget()
        if forms := self._veil.shown():
            self._put(line_of("shown", forms))
        self._missed = 0
        if self._written > self._size // STATE_SHARE:
            self._running, self._over = False, True
            self._sink.too_big(self._written)

    def _header(self, now: Now) -> Header:
        origin = self._sealer.origin
        return Header(
            format=FORMAT, program=self._program, role=origin.role, node_id=origin.node_id,
            cluster_id=origin.cluster_id, boot_id=origin.boot_id, run=origin.run, segment=self._segment,
            missed=self._missed, began_ms=now.wall_ms, address_mode=self._sealer.policy.observability.address_mode,
        )  # fmt: skip

    def _finish(self) -> None:
        if self._running:
            self.flush()
        if self._running:
            self._put(line_of("end", self._inputs, self._events))
            self.flush()
        self._running = False

    def _put(self, line: bytes) -> None:
        self._buffer.append(line)
        self._written += len(line)
        self._waiting += len(line)
        if self._waiting >= FLUSH_BYTES:
            self.flush()


class TapedSealer(Sealer):
    """A sealer whose every moment is on the tape."""

    def __init__(self, tape: Tape, origin: Origin, policy: Policy, show: ShowAddress) -> None:
        super().__init__(origin, policy, show)
        self._tape = tape

    def use_policy(self, policy: Policy) -> None:
        """As the sealer does."""
        super().use_policy(policy)
        self._tape.new_policy(policy)

    def resume(self, uid: str, chain: Chain) -> None:
        """As the sealer does."""
        super().resume(uid, chain)
        self._tape.moment("resume", uid, chain.name, chain.seq, chain.head)

    def note(self, events: Sequence[DomainEvent], now: Now) -> tuple[bytes, ...]:
        """As the sealer does."""
        self._tape.sealing(events, now)
        return self._told(super().note(events, now))

    def due(self, now: Now) -> tuple[bytes, ...]:
        """As the sealer does; a moment without open windows changes nothing."""
        if self._denials._windows:
            self._tape.moment("due", now.boot, now.wall_ms)
        return self._told(super().due(now))

    def checkpoint(self, link: Link, sign: Sign, now: Now) -> bytes:
        """As the sealer does; the tape has the signature, for there is no key where it is replayed."""
        made: list[bytes] = []

        def signed(message: bytes) -> bytes:
            made.append(sign(message))
            return made[-1]

        line = super().checkpoint(link, signed, now)
        self._tape.moment("vouch", now.boot, now.wall_ms, link.number, link.previous, link.next_key, made[-1].hex())
        return self._told((line,))[0]

    def settle(self, draft: Draft, *, ended: bool) -> tuple[bytes, ...]:
        """As the sealer does."""
        self._tape.moment("settle", draft.uid)
        return self._told(super().settle(draft, ended=ended))

    def _told(self, lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
        self._tape.sealed(lines)
        return lines
