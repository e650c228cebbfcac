"""From a log, read backwards, to what one explanation needs: a window of bounded size that reaches back far enough.

Far enough is the last time that all was well: the entry into ATTACHED before the episode in question.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.envelope import LONGEST_LINE
from jumpvpn.explain.records import Record, parse
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.values import MILLISECOND, MINUTE

NEWEST_KEPT = 400  # records next to the moment; an episode of the default policy has fewer than 200
OLDEST_KEPT = 100  # records at the beginning of the episode, when it has more than fit
LATER_KEPT = 200  # records after the moment, for what then happened
TRANSPORTS_MAX = 64  # as many as anyone has interfaces
KNOWN_MAX = 50  # sessions named when it is not clear which one is meant: what fits a screen
REACH_BYTES = 256 << 20  # how far to read on for birth and policy when the window is complete: a second or two

SILENCE = frozenset({Reason.PROBE_TIMEOUT.value, Reason.CONSECUTIVE_DROP_EXCEEDED.value})

_UID = re.compile(rb'"session_uid":\s{0,8}"([^"\\]{1,64})"')
_NODE_LINES = (b'"event":"node.', b'"event":"policy.applied"')


class NoHistory(Exception):
    """The log does not hold what was asked for; the text says what it holds instead."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which moment: of session ``uid`` (whole), at wall time ``at_ms``, or at record ``seq`` of ``chain``.

    ``chain`` "" means the session's own chain. Without either the newest record is meant.
    """

    uid: str
    at_ms: int | None = None
    chain: str = ""
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """One session up to ``moment`` (oldest record first), and what came ``later``.

    ``transports`` has the newest word on each; ``switches`` the records of the last 60 s; ``left_out`` counts records
    between the oldest and the newest that were too many; ``skipped`` unreadable lines; ``end_ms`` is the log's end.
    """

    uid: str
    moment: Record
    records: tuple[Record, ...]
    later: tuple[Record, ...]
    created: Record | None
    bounds: Mapping[str, int]
    body: Mapping[str, Any] | None
    transports: Mapping[str, Record]
    switches: tuple[Record, ...]
    left_out: int
    skipped: int
    end_ms: int
    at_ms: int  # wall time of the moment: as asked for, or the moment's record's


@dataclass(slots=True)
class Seen:
    """One session that a log knows of, as its newest state-bearing record says."""

    uid: str
    time_ms: int
    state: str
    is_client: bool


def survey(lines: Iterable[bytes], prefix: str, at_ms: int | None = None) -> list[Seen]:
    """Sessions of a log whose uid begins with ``prefix``, newest first; ``lines`` newest first.

    Ends at the first session of a client (a client has one at a time, so its newest is meant), at the one whose uid
    ``prefix`` is, or at one more than ``KNOWN_MAX``.
    """
    found: dict[str, Seen] = {}
    wanted = prefix.encode()
    for line in lines:
        match = _UID.search(line) if len(line) <= LONGEST_LINE else None
        if match is None or not match[1].startswith(wanted) or match[1].decode("utf-8", "replace") in found:
            continue
        record = parse(line)
        if record is None or record.session is None or record.state is None or not record.mutates:
            continue
        if at_ms is not None and record.time_ms > at_ms:
            continue
        is_client = record.chain.startswith("c:")
        found[record.session] = Seen(record.session, record.time_ms, record.state, is_client)
        if is_client or len(found) > KNOWN_MAX or record.session == prefix:
            break
    return list(found.values())


@dataclass(slots=True)
class Collector:
    """Fed with lines, newest first, until ``feed`` says that it is enough; then ``history``."""

    wanted: Wanted
    chain: str = ""
    moment: Record | None = None
    created: Record | None = None
    bounds: Mapping[str, int] | None = None
    body: Mapping[str, Any] | None = None
    skipped: int = 0
    end_ms: int = 0
    begin_ms: int = 0
    _newest: dict[str, Record] = field(default_factory=dict)
    _oldest: deque[Record] = field(default_factory=lambda: deque(maxlen=OLDEST_KEPT))
    _later: deque[Record] = field(default_factory=lambda: deque(maxlen=LATER_KEPT))
    _transports: dict[str, Record] = field(default_factory=dict)
    _switches: dict[str, Record] = field(default_factory=dict)
    _episode_begun: bool = False
    _well: bool = False  # the entry into ATTACHED before the episode was reached
    _kept: int = 0
    _bytes_beyond: int = 0

    def feed(self, line: bytes) -> bool:
        """Take one line; True when older ones are not needed."""
        uid = self.wanted.uid.encode()
        if len(line) > LONGEST_LINE or not (line.startswith(b"{") and line.endswith(b"}")):
            self.skipped += 1
            return False
        if self.end_ms and uid not in line and not any(mark in line for mark in _NODE_LINES):
            return self._enough(len(line))
        record = parse(line)
        if record is None:
            self.skipped += 1
            return False
        self.end_ms = self.end_ms or record.time_ms
        self.begin_ms = record.time_ms
        if record.session in (self.wanted.uid, None):
            self._take(record)
        return self._enough(len(line))

    def history(self) -> History:
        """What was found. Raises NoHistory."""
        if self.moment is None:
            raise NoHistory(self._missing())
        mine = {r.node for r in (*self._newest.values(), *self._oldest) if r.chain == self.chain}
        records = [r for r in (*reversed(self._oldest), *reversed(self._newest.values())) if self._belongs(r, mine)]
        known = {record.ref for record in records}
        later = [r for r in reversed(self._later) if self._belongs(r, mine) and r.ref not in known]
        if not any(record.mutates for record in records):
            raise NoHistory(self._missing())
        while later and _same_row(later[0], self.moment):  # what one row made is one moment
            records.append(later.pop(0))
            if records[-1].transport and _tells(records[-1]):
                self._transports[records[-1].transport] = records[-1]
        return History(
            uid=self.wanted.uid, moment=self.moment, records=tuple(records), later=tuple(later), created=self.created,
            bounds=self.bounds or {}, body=self.body, transports=dict(self._transports),
            switches=tuple(reversed(self._switches.values())),
            left_out=max(0, self._kept - len(self._newest) - len(self._oldest)), skipped=self.skipped,
            end_ms=self.end_ms, at_ms=self.wanted.at_ms if self.wanted.at_ms is not None else self.moment.time_ms,
        )  # fmt: skip

    def _take(self, record: Record) -> None:
        if record.mutates and not self.chain and record.session == self.wanted.uid:
            self.chain = record.chain
        if record.mutates and record.chain != self.chain:
            return  # the other end's record of the same session
        if self.moment is None and not self._is_moment(record):
            self._later.append(record)
            return
        if self.moment is not None and record.ref == self.moment.ref:
            self._begin_again()
        self.moment = self.moment or record
        if not self._well:
            self._keep(record)
        self._note(record)

    def _begin_again(self) -> None:
        """The moment's record stands in the log twice; the older copy, which is read now, is in the right place."""
        assert self.moment is not None, "there is a moment that is repeated"
        between = [r for r in self._newest.values() if r.ref != self.moment.ref]
        kept: dict[str, Record] = {}
        for record in (*self._later, *between):
            if record.chain != self.chain or record.seq > self.moment.seq or self.moment.chain != self.chain:
                kept.pop(record.ref, None)
                kept[record.ref] = record
        self._later = deque(kept.values(), maxlen=LATER_KEPT)
        for seen in (self._newest, self._oldest, self._transports, self._switches):
            seen.clear()
        self.bounds = self.body = self.created = None
        self._episode_begun = self._well = False
        self._kept = 0

    def _is_moment(self, record: Record) -> bool:
        wanted = self.wanted
        if wanted.seq is not None:
            return record.seq == wanted.seq and record.chain == (wanted.chain or self.chain)
        return wanted.at_ms is None or record.time_ms <= wanted.at_ms

    def _keep(self, record: Record) -> None:
        if (
            record.ref in self._newest
        ):  # an export after a crash repeats lines; the older copy stands in the right place
            del self._newest[record.ref]
        else:
            self._kept += 1
        if len(self._newest) < NEWEST_KEPT:
            self._newest[record.ref] = record
        else:
            self._oldest.append(record)
        if record.mutates and record.event == "session.state_change":
            self._well = self._episode_begun and record.state == State.ATTACHED.value and self._is_whole()
            self._episode_begun = self._episode_begun or record.prev_state == State.ATTACHED.value

    def _is_whole(self) -> bool:
        """Whether the session's own chain has no gap in the window: else repeated lines hide what lies between."""
        numbers = {r.seq for r in (*self._newest.values(), *self._oldest) if r.chain == self.chain}
        return self._kept > NEWEST_KEPT or max(numbers) - min(numbers) + 1 == len(numbers)

    def _note(self, record: Record) -> None:
        """Facts whose newest word counts, however old."""
        if record.mutates:
            self.bounds = self.bounds if self.bounds is not None else record.bounds
            if record.event == "session.created":
                self.created = record
        if record.body is not None and self.body is None and self._is_in_force(record):
            self.body = record.body
        if record.event in ("transport.switch", "transport.rebound") and record.ref not in self._switches:
            assert self.moment is not None, "records are noted from the moment on"
            if (ago_ns(record, self.moment)) < MINUTE:
                self._switches[record.ref] = record
        named = record.transport
        is_told = record.session == self.wanted.uid and _tells(record)
        if named and is_told and named not in self._transports and len(self._transports) < TRANSPORTS_MAX:
            self._transports[named] = record

    def _is_in_force(self, record: Record) -> bool:
        digest = next((r.policy_digest for r in self._newest.values() if r.chain == self.chain), "")
        return not digest or record.data.get("digest") == digest

    def _belongs(self, record: Record, nodes: set[str]) -> bool:
        return record.chain == self.chain or (not record.mutates and record.node in nodes)

    def _enough(self, size: int) -> bool:
        if self.created is not None:
            return self.body is not None or self._beyond(size)
        return self._well and self._beyond(size)

    def _beyond(self, size: int) -> bool:
        self._bytes_beyond += size
        return self._bytes_beyond > REACH_BYTES

    def _missing(self) -> str:
        if not self.end_ms:
            return "the log holds no event record"
        if not self.chain:
            return f"the log holds no event of session {self.wanted.uid}"
        if self.wanted.seq is not None:
            return f"the log holds no event {self.wanted.chain or self.chain}/{self.wanted.seq}"
        return f"the log's first event of session {self.wanted.uid} is later than that"


def ago_ns(record: Record, moment: Record) -> int:
    """How long (ns) before ``moment`` it was: by the boot clock within one boot, else by the wall clock."""
    if record.boot_id == moment.boot_id:
        return (moment.mono_ms - record.mono_ms) * MILLISECOND
    return (moment.time_ms - record.time_ms) * MILLISECOND


def _same_row(record: Record, moment: Record) -> bool:
    ours, theirs = ((r.row, r.version, r.mono_ms) for r in (record, moment))
    return bool(record.row) and ours == theirs


def _tells(record: Record) -> bool:
    """Whether the record says something of the transport's own condition."""
    if record.event == "session.state_change":
        return record.reason in SILENCE
    return record.event in ("transport.candidate", "transport.dead", "transport.switch", "transport.attached",
                            "transport.revalidated", "transport.rebound", "transport.health",
                            "transport.switch_failed")  # fmt: skip
