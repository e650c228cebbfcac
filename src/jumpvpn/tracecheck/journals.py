"""Reads event journals: chooses sessions, and puts each one's events into the order in which they happened.

Journals come from anywhere: whatever is no event record is counted and left out, and nothing in a record is trusted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from jumpvpn.audit.envelope import LONGEST_LINE

LINES_MAX = 2_000  # of one trace: TLC explains that many in some seconds; the rest is left out, with a note
ATTEMPT_LINES_MAX = 4 * LINES_MAX  # kept of one node lane before they are merged; a stay in RECOVERING has a few
TRACES_MAX = 256  # of one call: with LINES_MAX this bounds memory whatever the journals hold

_CHAIN = re.compile(r"[cs]:[0-9a-f]{16}")
_ATTEMPTS = {"17.start": "reattach.attempt", "17": "transport.switch_failed"}


class UnreadableJournal(Exception):
    """A journal that cannot be opened; the text says which and why."""


class Seen(msgspec.Struct):
    """What the checker reads of an event record. Everything but chain, seq and event may be of any kind."""

    chain: str
    seq: int
    event: str
    session_uid: Any = None
    state_version: Any = None
    owner_epoch: Any = None
    prev_state: Any = None
    state: Any = None
    reason: Any = None
    node_id: Any = None
    transport: Any = None
    data: Any = None
    hash: Any = None

    def told(self, name: str) -> Any:
        """One field of its data, or None."""
        return self.data.get(name) if isinstance(self.data, dict) else None


@dataclass(slots=True)
class Trace:
    """One session's record at one end, in order. ``total`` counts its lines, also those beyond the bound.

    ``silent`` says that attempts may have begun and ended without a line (their lane is not here, or was cut by a
    restart). ``forked`` is the first sequence number that has two different records.
    """

    chain: str
    lines: list[Seen] = field(default_factory=list)
    total: int = 0
    limits: set[int] = field(default_factory=set)
    silent: bool = False
    forked: int | None = None

    @property
    def cut(self) -> bool:
        """Whether lines were left out at the end."""
        return self.total > len(self.lines)

    @property
    def first(self) -> int:
        """The number of the first record that is here, 0 if there is none."""
        return next((line.seq for line in self.lines if line.chain == self.chain), 0)


@dataclass(slots=True)
class Reading:
    """The chosen traces, and what was met besides: sessions in all, lines that are no records."""

    traces: list[Trace]
    sessions: int
    unreadable: int


def read(paths: Iterable[Path], *, session: str | None, sample: int | None, seed: int) -> Reading:
    """Choose at most ``sample`` records of sessions (all, up to TRACES_MAX, if None) and read them.

    The choice depends on names and ``seed`` only. Raises UnreadableJournal.
    """
    files = tuple(paths)
    keep = min(sample if sample is not None else TRACES_MAX, TRACES_MAX)
    chosen, sessions, unreadable = _choose(files, session, keep, seed)
    shelf = _Shelf(chosen)
    for path in files:
        shelf.open()
        for record in _records(path):
            if record is not None:
                shelf.put(record)
    return Reading(shelf.traces(), sessions, unreadable)


def _choose(files: tuple[Path, ...], session: str | None, keep: int, seed: int) -> tuple[list[str], int, int]:
    """The chains to read (those of the smallest hashes), the number of all chains, of lines that are no records."""
    names: set[str] = set()
    unreadable = 0
    for path in files:
        for record in _records(path):
            if record is None:
                unreadable += 1
            elif _CHAIN.fullmatch(record.chain) and session in (None, record.chain[2:]):
                names.add(record.chain)
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return sorted(ranked[:keep]), len(names), unreadable


def _records(path: Path) -> Iterator[Seen | None]:
    """Each line's record, None for a line that has none."""
    decoder = msgspec.json.Decoder(Seen)
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                    yield None
                else:
                    yield _record(decoder, line)
    except OSError as error:
        raise UnreadableJournal(f"cannot read {path}: {error.strerror}; name a readable event journal") from error


def _record(decoder: msgspec.json.Decoder[Seen], line: bytes) -> Seen | None:
    try:
        record = decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return record if record.seq >= 1 else None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A line of the node's lane, and the number of the session's line before it in the same journal (0: none)."""

    line: Seen
    last: int


class _Shelf:
    """Collects the lines of the chosen chains."""

    def __init__(self, chosen: list[str]) -> None:
        self._traces = {chain: Trace(chain) for chain in chosen}
        self._lines: dict[str, dict[int, Seen]] = {chain: {} for chain in chosen}
        self._attempts: dict[str, list[_Attempt]] = {chain: [] for chain in chosen}
        self._last: dict[str, int] = {}
        self._nodes: set[str] = set()
        self._gaps: set[str] = set()
        self._limits: set[int] = set()

    def open(self) -> None:
        """Another journal begins."""
        self._last.clear()

    def put(self, record: Seen) -> None:
        """One record of whatever chain."""
        if record.chain in self._traces:
            self._state_lane(record)
        elif record.chain.startswith("n:"):
            self._node_lane(record)

    def _state_lane(self, record: Seen) -> None:
        trace, lines = self._traces[record.chain], self._lines[record.chain]
        self._last[record.chain] = record.seq
        known = lines.get(record.seq)
        if known is not None:
            if known != record and trace.forked is None:
                trace.forked = record.seq
            return
        trace.total += 1
        if record.seq <= LINES_MAX:
            lines[record.seq] = record
        bounds = record.told("bounds")
        _note_limit(trace.limits, bounds.get("attempts") if isinstance(bounds, dict) else None)

    def _node_lane(self, record: Seen) -> None:
        node = str(record.node_id)
        self._nodes.add(node)
        if record.event == "audit.gap":
            self._gaps.add(node)
        if record.event == "policy.applied":
            body = record.told("body")
            recovery = body.get("recovery") if isinstance(body, dict) else None
            _note_limit(self._limits, recovery.get("max_attempts") if isinstance(recovery, dict) else None)
        if _ATTEMPTS.get(str(record.told("row"))) == record.event:
            for chain in (f"c:{record.session_uid}", f"s:{record.session_uid}"):
                lane = self._attempts.get(chain)
                if lane is not None and len(lane) < ATTEMPT_LINES_MAX:
                    lane.append(_Attempt(record, self._last.get(chain, 0)))

    def traces(self) -> list[Trace]:
        """Every chosen chain with its lines in order."""
        for chain, trace in self._traces.items():
            ordered = [self._lines[chain][seq] for seq in sorted(self._lines[chain])]
            nodes = {str(line.node_id) for line in ordered}
            attempts = [attempt for attempt in self._attempts[chain] if str(attempt.line.node_id) in nodes]
            restarted = chain.startswith("s:") and any(line.told("row") in _TAKEOVERS for line in ordered)
            trace.silent = restarted or not nodes <= self._nodes or bool(nodes & self._gaps)
            trace.limits |= self._limits
            merged = _merged(ordered, attempts)
            trace.total += len(merged) - len(ordered)
            trace.lines = merged[:LINES_MAX]
        return list(self._traces.values())


_TAKEOVERS = {"8", "8.volatile", "8.same", "8.birth"}
LIMITS_MAX = 64  # each is a branch of the search at every policy and owner


def _note_limit(limits: set[int], value: Any) -> None:
    if type(value) is int and 1 <= value < 1 << 16 and len(limits) <= LIMITS_MAX:
        limits.add(value)


def _merged(ordered: list[Seen], attempts: list[_Attempt]) -> list[Seen]:
    """The state lane with the attempts in between, each after the last line of the version that it names.

    If no line has that version, something is wrong; then it stays where its journal has it.
    """
    places = {line.seq: place for place, line in enumerate(ordered, 1)}
    versions = {line.state_version: place for place, line in enumerate(ordered, 1) if type(line.state_version) is int}
    after: dict[int, list[Seen]] = {}
    for attempt in attempts:
        version = attempt.line.state_version
        place = (versions.get(version) if type(version) is int else None) or places.get(attempt.last, 0)
        after.setdefault(place, []).append(attempt.line)
    merged = list(after.get(0, ()))
    for place, line in enumerate(ordered, 1):
        merged += [line, *after.get(place, ())]
    return merged
