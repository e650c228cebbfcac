"""Reads event journals: chooses sessions, and puts each one's events into the order in which they happened.

Journals come from anywhere: whatever is no event record is counted and left out, and nothing in a record is trusted.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from jumpvpn.audit.auditor import sources

LINES_MAX = 2_000  # of one trace: TLC explains that many in some seconds; the rest is left out, with a note
ATTEMPT_LINES_MAX = 4 * LINES_MAX  # kept of one node lane before they are merged; a stay in RECOVERING has a few
TRACES_MAX = 256  # of one call: with LINES_MAX this bounds memory whatever the journals hold

_CHAIN = re.compile(r"[cs]:[0-9a-f]{16}")
_NOTED = {"17.start": "reattach.attempt", "17": "transport.switch_failed", "32": "ownership.lost"}


class UnreadableJournal(Exception):
    """A journal that cannot be opened; the text says which and why."""


class Seen(msgspec.Struct):
    """What the checker reads of an event record. Everything but chain, seq and event may be of any kind."""

    chain: str
    seq: int
    event: str
    idx: Any = None
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
    boot_id: Any = None
    mono_ms: Any = None

    def told(self, name: str) -> Any:
        """One field of its data, or None."""
        return self.data.get(name) if isinstance(self.data, dict) else None


@dataclass(slots=True)
class Trace:
    """One session's record at one end, in order. ``total`` counts its lines, also those beyond the bound.

    ``silent`` says that attempts may have begun and ended without a line (their lane is not here, lacks lines, or was
    cut by a restart). ``forked`` is the first sequence number that has two different records, ``missing`` the first
    that has none, ``unclaimed`` an owner's term whose beginning is not here. What a former owner wrote behind is a
    trace of its own, named ``CHAIN@TERM``, with all that led to it.
    ``early`` are chain and number of lines that their node had decided before it lost the session, and which come
    after that loss here because they counted later. ``grants`` are what gateways granted of this session: the owner's
    term by nonce and epoch.
    """

    chain: str
    lines: list[Seen] = field(default_factory=list)
    total: int = 0
    limits: set[int] = field(default_factory=set)
    silent: bool = False
    forked: int | None = None
    missing: int | None = None
    unclaimed: int | None = None
    early: set[tuple[str, int]] = field(default_factory=set)
    grants: dict[tuple[str, int], int] = field(default_factory=dict)

    def is_early(self, line: Seen) -> bool:
        """Whether a ``line`` after an owner's loss was decided before it."""
        return (line.chain, line.seq) in self.early

    def granted(self, line: Seen) -> int | None:
        """The term whose owner granted what a client's ``line`` accepts; None if that is not in the journals."""
        if line.event != "reattach.result" or not line.chain.startswith("c:"):
            return None
        epoch = line.told("epoch")
        return self.grants.get((str(line.told("nonce_id")), epoch)) if type(epoch) is int else None

    @property
    def cut(self) -> bool:
        """Whether lines were left out at the end."""
        return self.total > len(self.lines)

    @property
    def first(self) -> int:
        """The number of the first record that is here, 0 if there is none."""
        return next((line.seq for line in self.lines if line.chain == self.chain.partition("@")[0]), 0)


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
    for line in sources.read(str(path)):
        if not isinstance(line, sources.Unreadable):
            yield _record(decoder, line[1])
        elif line.number:
            yield None
        else:  # nothing is judged by a part of a journal whose rest is damaged
            raise UnreadableJournal(f"cannot read {path}: {line.text}; name a readable event journal")


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


@dataclass(slots=True)
class _Lane:
    """The numbers that were met of one lane of a node: stretches without a gap, from their first to their last."""

    node: str
    stretches: list[list[int]] = field(default_factory=list)

    def put(self, seq: int) -> None:
        """One more. Rotated journals come in any order, and a lane may be in two of them."""
        for stretch in self.stretches:
            if stretch[0] - 1 <= seq <= stretch[1] + 1:
                stretch[0], stretch[1] = min(stretch[0], seq), max(stretch[1], seq)
                return
        if len(self.stretches) < STRETCHES_MAX:
            self.stretches.append([seq, seq])

    @property
    def whole(self) -> bool:
        """Whether all lines up to the last are here."""
        end = 0
        for first, last in sorted(self.stretches):
            if first > end + 1:
                return False
            end = max(end, last)
        return True


class _Shelf:
    """Collects the lines of the chosen chains."""

    def __init__(self, chosen: list[str]) -> None:
        self._traces = {chain: Trace(chain) for chain in chosen}
        self._lines: dict[str, dict[int, list[Seen]]] = {chain: {} for chain in chosen}
        self._attempts: dict[str, list[_Attempt]] = {chain: [] for chain in chosen}
        self._grants: dict[str, dict[tuple[str, int], int]] = {chain[2:]: {} for chain in chosen}
        self._last: dict[str, int] = {}
        self._nodes: set[str] = set()
        self._gaps: set[str] = set()
        self._lanes: dict[str, _Lane] = {}
        self._limits: set[int] = set()

    def open(self) -> None:
        """Another journal begins."""
        self._last.clear()

    def put(self, record: Seen) -> None:
        """One record of whatever chain."""
        if record.event == "reattach.result" and record.chain.startswith("s:"):
            self._grant(record)
        if record.chain in self._traces:
            self._state_lane(record)
        elif record.chain.startswith("n:"):
            self._node_lane(record)

    def _grant(self, record: Seen) -> None:
        grants, epoch = self._grants.get(record.chain[2:]), record.told("epoch")
        if grants is not None and len(grants) < LINES_MAX and type(epoch) is int:
            grants.setdefault((str(record.told("nonce_id")), epoch), _term(record))

    def _state_lane(self, record: Seen) -> None:
        trace, lines = self._traces[record.chain], self._lines[record.chain]
        self._last[record.chain] = record.seq
        known = lines.get(record.seq, [])
        if record in known:
            return
        trace.total += not known
        if record.seq <= LINES_MAX and len(known) < BRANCHES_MAX:
            lines[record.seq] = [*known, record]
        bounds = record.told("bounds")
        _note_limit(trace.limits, bounds.get("attempts") if isinstance(bounds, dict) else None)

    def _node_lane(self, record: Seen) -> None:
        node = str(record.node_id)
        self._nodes.add(node)
        if record.chain in self._lanes or len(self._lanes) < LANES_MAX:
            self._lanes.setdefault(record.chain, _Lane(node)).put(record.seq)
        else:
            self._gaps.add(node)
        if record.event == "audit.gap":
            self._gaps.add(node)
        if record.event == "policy.applied":
            body = record.told("body")
            recovery = body.get("recovery") if isinstance(body, dict) else None
            _note_limit(self._limits, recovery.get("max_attempts") if isinstance(recovery, dict) else None)
        if _NOTED.get(str(record.told("row"))) == record.event:
            for chain in (f"c:{record.session_uid}", f"s:{record.session_uid}"):
                lane = self._attempts.get(chain)
                if lane is not None and len(lane) < ATTEMPT_LINES_MAX:
                    lane.append(_Attempt(record, self._last.get(chain, 0)))

    def traces(self) -> list[Trace]:
        """Every chosen chain with its lines in order, then the tails that were written beside it."""
        self._gaps |= {lane.node for lane in self._lanes.values() if not lane.whole}
        found = []
        for chain, trace in self._traces.items():
            kept, tails = _branches([line for seq in sorted(self._lines[chain]) for line in self._lines[chain][seq]])
            ordered, trace.forked = _single(kept)
            trace.unclaimed = _unclaimed(kept) if chain.startswith("s:") else None
            found.append(self._filled(trace, ordered, chain))
            for term, first, lines in tails:
                behind, forked = _single(lines)
                ordered_tail = [line for line in ordered if line.seq < first] + behind
                tail = Trace(f"{chain}@{term}", total=len(ordered_tail), limits=set(trace.limits), forked=forked)
                found.append(self._filled(tail, ordered_tail, chain))
        return found

    def _filled(self, trace: Trace, ordered: list[Seen], chain: str) -> Trace:
        nodes = {str(line.node_id) for line in ordered}
        attempts = [attempt for attempt in self._attempts[chain] if str(attempt.line.node_id) in nodes]
        restarted = chain.startswith("s:") and any(line.told("row") in _TAKEOVERS for line in ordered)
        trace.silent = restarted or not nodes <= self._nodes or bool(nodes & self._gaps)
        trace.limits |= self._limits
        trace.grants = self._grants[chain[2:]]
        trace.missing = next(
            (n for n, line in enumerate(ordered, ordered[0].seq if ordered else 0) if n != line.seq), None
        )
        merged = _merged(ordered, attempts, tail="@" in trace.chain)
        trace.total += len(merged) - len(ordered)
        trace.lines = merged[:LINES_MAX]
        trace.early = set(_early(trace.lines))
        return trace


_TAKEOVERS = {"8", "8.volatile", "8.same", "8.birth"}
BRANCHES_MAX = 4  # records that share a number: the kept one, a tail's, and one more that shows a fork
TAILS_MAX = 8  # of one session that are judged
LANES_MAX = 4_096  # of all nodes: each process has its own; more are taken for incomplete
STRETCHES_MAX = 64  # of one lane; what has more gaps has one
LIMITS_MAX = 64  # each is a branch of the search at every policy and owner


def _branches(lines: list[Seen]) -> tuple[list[Seen], list[tuple[int, int, list[Seen]]]]:
    """The kept chain, and what owners before a change of owner wrote beside it: their terms, first numbers, lines.

    A tail begins where the change of owner does; an earlier term behind it is no tail, but a term that falls.
    """
    claims = [(term, _begin(line), line) for line in lines if (term := _claimed(line)) > 1]
    claims.sort(key=lambda claim: claim[:2])
    kept: list[Seen] = []
    tails: dict[int, tuple[int, int, list[Seen]]] = {}
    numbers = Counter(line.seq for line in lines)
    for line in lines:
        over = next((c for c in claims if c[0] > _term(line) and c[1] <= line.seq and not _within(line, c[2])), None)
        if over is None or (over[0] not in tails and line.seq != over[1] and numbers[line.seq] == 1):
            kept.append(line)
        elif over[0] in tails or len(tails) < TAILS_MAX:
            tails.setdefault(over[0], (over[0] - 1, over[1], []))[2].append(line)
    return kept, list(tails.values())


def _claimed(line: Seen) -> int:
    """The term that a line's owner acquires with it; 0 for other lines."""
    return _term(line) if line.event == "ownership.acquired" and line.chain.startswith("s:") else 0


def _begin(claim: Seen) -> int:
    """The number with which the commit of a change of owner begins."""
    return claim.seq - claim.idx + 1 if type(claim.idx) is int and 1 <= claim.idx <= claim.seq else claim.seq


def _term(line: Seen) -> int:
    return line.owner_epoch if type(line.owner_epoch) is int else 0


def _within(line: Seen, claim: Seen) -> bool:
    """Whether a line stands before the change of owner in its commit: some rows outrank it."""
    return line.seq < claim.seq and line.node_id == claim.node_id and _term(line) == _term(claim) - 1


def _single(lines: list[Seen]) -> tuple[list[Seen], int | None]:
    """One line for each number, and the first number that has two."""
    single: dict[int, Seen] = {}
    forked = None
    for line in lines:
        if single.setdefault(line.seq, line) is not line and forked is None:
            forked = line.seq
    return list(single.values()), forked


def _unclaimed(lines: list[Seen]) -> int | None:
    """The first term that somebody acts under without a record that it began."""
    claimed = {1, *map(_claimed, lines)}
    return next((term for line in lines if (term := _term(line)) > 0 and term not in claimed), None)


def _note_limit(limits: set[int], value: Any) -> None:
    if type(value) is int and 1 <= value < 1 << 16 and len(limits) <= LIMITS_MAX:
        limits.add(value)


def _early(lines: list[Seen]) -> Iterator[tuple[str, int]]:
    """Lines behind a node's loss of the session that this node decided before, by its own clock."""
    loss: Seen | None = None
    for line in lines:
        if line.event == "ownership.lost":
            loss = line
        elif loss is not None and (line.node_id, line.boot_id) == (loss.node_id, loss.boot_id):
            decided, lost = line.mono_ms, loss.mono_ms
            if type(decided) is int and type(lost) is int and decided <= lost:
                yield line.chain, line.seq


def _merged(ordered: list[Seen], attempts: list[_Attempt], *, tail: bool) -> list[Seen]:
    """The state lane with the node's lines in between, each after the last line of the term and version that it names.

    If no line has them, something is wrong; then it stays where its journal has it. What names a later version of a
    term than this trace has, while the trace goes on under another, belongs to a tail; what names a later term than a
    tail's own belongs to those that came after it.
    """
    places = {line.seq: place for place, line in enumerate(ordered, 1)}
    versions = {
        (_term(line), line.state_version): place
        for place, line in enumerate(ordered, 1)
        if type(line.state_version) is int
    }
    newest = max((_term(line) for line in ordered), default=0)
    after: dict[int, list[Seen]] = {}
    for attempt in attempts:
        term, version = _term(attempt.line), attempt.line.state_version
        place = versions.get((term, version)) if type(version) is int else None
        if place is None and (term < newest or (tail and term > newest)):
            continue
        after.setdefault(place or places.get(attempt.last, 0), []).append(attempt.line)
    merged = list(after.get(0, ()))
    for place, line in enumerate(ordered, 1):
        merged += [line, *after.get(place, ())]
    return merged
