"""What happened to each session, told from its events alone: states, transports, owners, switches, denials, the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.auditor.chains import Chain
from jumpvpn.audit.auditor.owners import Tenure
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.table import CHANGE
from jumpvpn.audit.auditor.track import Track

STORIES_MAX = 1_000  # sessions told at once
ROWS_MAX = 20_000  # rows of one story
LETTERS = {"BIRTH": "b", "ATTACHED": "A", "VOLATILE": "V", "RECOVERING": "R", "DEGRADED": "D", "TERMINATED": "T"}
GRAVITY = ("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "DEGRADED", "TERMINATED")
_ENDS = {"c": "client", "s": "gateway"}


@dataclass(frozen=True, slots=True)
class Span:
    """One stay in a state: wall-clock start (Unix ms) and length (ms, by the node's own clock); None while it lasts."""

    state: str
    start_ms: int
    length_ms: float | None
    reason: str | None
    transport: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened: wall-clock time (Unix ms), time since the session began (ms), where, in words."""

    time_ms: int
    since_ms: float
    record: str
    event: str
    text: str


@dataclass(slots=True)
class Story:
    """One session as one end recorded it."""

    uid: str
    end: str
    spans: list[Span] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    dropped: int = 0
    switches: int = 0
    denials: int = 0
    owners: list[int] = field(default_factory=list)
    transports: list[str] = field(default_factory=list)
    cause: str | None = None
    tenures: list[Tenure] = field(default_factory=list)
    _begun: float = 0.0  # since when the present stay lasts, from the session's beginning (ms)
    _state: tuple[str, int, str | None, str | None] | None = None
    _last: float = 0.0  # of the newest record, from the session's beginning (ms)
    _clock: tuple[str, str] = ("", "")
    _origin: float = 0.0  # the session's beginning by that clock
    _first_ms: int = 0

    def take(self, record: Record) -> None:
        """One record, in order."""
        if self._state is None:
            self._first_ms = record.time_ms
            self._state = (record.state or "BIRTH", record.time_ms, record.reason, None)
        self._last = self._since(record)
        if not self.owners or self.owners[-1] != record.owner_epoch:
            self.owners.append(record.owner_epoch)
        if record.event == CHANGE:
            self._moved(record)
        self._counted(record)
        text = words(record)
        if text is None:
            return
        if len(self.moments) >= ROWS_MAX:
            self.dropped += 1
            return
        since = self._last
        where = f"{record.chain}/{record.seq}"
        self.moments.append(Moment(record.time_ms, since, where, record.event, text))

    def _since(self, record: Record) -> float:
        """Time from the session's beginning: by the node's own clock, between nodes by the wall, never backwards."""
        clock = (record.node_id, record.boot_id)
        if clock != self._clock:
            self._clock = clock
            self._origin = record.mono_ms - max(self._last, record.time_ms - self._first_ms)
        return record.mono_ms - self._origin

    def _moved(self, record: Record) -> None:
        assert self._state is not None
        state, start, reason, transport = self._state
        length = record.data.dwell_ms
        length = self._last - self._begun if length is None else length
        if len(self.spans) < ROWS_MAX:
            self.spans.append(Span(state, start, max(0.0, length), reason, transport))
        bound = record.transport.id if record.transport is not None else transport
        self._state = (record.state or "", record.time_ms, record.reason, bound)
        self._begun = self._last
        if record.state == "TERMINATED":
            self.cause = record.reason

    def _counted(self, record: Record) -> None:
        self.switches += record.event == "transport.switch"
        denied = record.event == "transport.switch_denied" or record.data.status == "DENIED"
        self.denials += denied
        bound = record.transport if record.event in ("transport.attached", "transport.switch") else None
        if bound is not None and bound.id not in self.transports:
            self.transports.append(bound.id)

    def all_spans(self) -> list[Span]:
        """All stays; the last one is open unless the session ended."""
        if self._state is None:
            return list(self.spans)
        state, start, reason, transport = self._state
        lasted = None if state == "TERMINATED" else self._last - self._begun
        return [*self.spans, Span(state, start, lasted, reason, transport)]

    def bar(self, width: int) -> list[str]:
        """The states over time in ``width`` columns; each shows the gravest state within its share of the time."""
        spans = self.all_spans()
        total = sum(span.length_ms or 0 for span in spans) or 1.0
        columns = [0] * width
        at = 0.0
        for span in spans:
            rank = GRAVITY.index(span.state) if span.state in GRAVITY else 0
            first = min(width - 1, int(at / total * width))
            at += span.length_ms or 0
            last = min(width - 1, max(first, int(at / total * width) - 1))
            for column in range(first, last + 1):
                columns[column] = max(columns[column], rank)
        return [GRAVITY[rank] for rank in columns]

    def windows(self, *states: str) -> list[tuple[int, float]]:
        """Start (Unix ms) and length (ms) of every stay in ``states``."""
        return [(span.start_ms, span.length_ms or 0.0) for span in self.all_spans() if span.state in states]

    def as_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "session": self.uid, "end": self.end, "cause": self.cause, "switches": self.switches,
            "denials": self.denials, "owner_epochs": self.owners, "transports": self.transports,
            "owners": [tenure.as_json() for tenure in self.tenures],
            "states": [
                {
                    "state": s.state, "start_ms": s.start_ms, "length_ms": s.length_ms, "reason": s.reason,
                    "transport": s.transport,
                }
                for s in self.all_spans()
            ],
            "degraded": [{"start_ms": at, "length_ms": length} for at, length in self.windows("DEGRADED")],
            "moments": [
                {"time_ms": m.time_ms, "since_ms": m.since_ms, "record": m.record, "event": m.event, "text": m.text}
                for m in self.moments
            ],
            "moments_not_shown": self.dropped,
        }  # fmt: skip


class Timeline:
    """An observer of the audit that tells sessions' stories: of those whose uid begins with ``wanted``."""

    def __init__(self, wanted: str = "") -> None:
        self._wanted = wanted
        self.stories: dict[str, Story] = {}
        self.not_told = 0

    def record(self, chain: Chain, record: Record) -> None:
        """One accepted record."""
        if chain.kind in _ENDS:
            self._tell(chain.name, record, chain.tenures)

    def noted(self, track: Track, record: Record) -> None:
        """A node-lane record about a session."""
        self._tell(f"{track.role}:{track.uid}", record)

    def _tell(self, name: str, record: Record, tenures: list[Tenure] | None = None) -> None:
        kind, _, uid = name.partition(":")
        if not uid.startswith(self._wanted):
            return
        story = self.stories.get(name)
        if story is None:
            if len(self.stories) >= STORIES_MAX:
                self.not_told += record.event == "session.created"
                return
            story = self.stories[name] = Story(uid, _ENDS[kind])
        story.tenures = story.tenures if tenures is None else tenures
        story.take(record)


def words(record: Record) -> str | None:
    """One record in words, None for one that only repeats what its neighbours say."""
    data = record.data
    transport = record.transport.id if record.transport is not None else ""
    if record.event == CHANGE:
        others = f" (with {', '.join(record.contributing)})" if record.contributing else ""
        stayed = f" after {span(data.dwell_ms)}" if data.dwell_ms is not None else ""
        return f"{record.prev_state} > {record.state}{stayed}: {record.reason}{others}"
    telling = _WORDS.get(record.event)
    if telling is None:
        return f"{record.event}: {record.reason}" if record.event.startswith("security.") else None
    said = telling(record, transport)
    return said or None


def span(length_ms: float | None) -> str:
    """``412 ms``, ``3.21 s``, ``5 min 10 s``, ``2 h 5 min``."""
    if length_ms is None:
        return "?"
    if length_ms < 1000:
        return f"{length_ms:.0f} ms"
    seconds = length_ms / 1000
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _switch(record: Record, transport: str) -> str:
    gap = record.data.interruption_ms
    lost = f", {span(gap)} without transport" if gap else ""
    return f"switch {record.data.from_id} > {transport}{lost}, number {record.data.switch_count_60s} in 60 s"


def _denied(record: Record, transport: str) -> str:
    data = record.data
    to = f" to {data.to_id}" if data.to_id else ""
    rule = f", rule {data.rule}" if data.rule else ""
    by = " by the gateway" if data.by == "gateway" else ""
    wait = f", {span(data.cooldown_left_ms)} of hold-down left" if data.cooldown_left_ms else ""
    return f"switch{to} denied{by}: {record.reason}{rule}{wait}"


def _result(record: Record, transport: str) -> str:
    data = record.data
    if data.status == "SUCCESS":
        return f"reattach accepted on {transport}, epoch {data.epoch}"
    times = f", {data.count} times" if data.first_ms is not None else ""
    return f"reattach denied at check {data.step}: {record.reason}{times}"


def _acquired(record: Record, transport: str) -> str:
    data = record.data
    if record.reason != "owner_changed":
        return ""
    if data.from_node in (None, "", record.node_id):
        return f"owner epoch {record.owner_epoch} acquired"
    known = f", version {data.floor} was known to the client alone" if data.floor else ""
    return f"{record.node_id} goes on for {data.from_node}, owner epoch {record.owner_epoch}{known}"


_WORDS: dict[str, Callable[[Record, str], str]] = {
    "session.created": lambda r, t: f"created as {r.data.role or '?'}, policy {r.policy_digest[:12]}",
    "session.terminated": lambda r, t: f"ended after {span(r.data.session_age_ms)}",
    "transport.attached": lambda r, t: f"bound to {t}, epoch {r.data.epoch}",
    "transport.dead": lambda r, t: f"{t} died ({r.data.evidence or 'unknown'})",
    "transport.rebound": lambda r, t: f"{t} rebound to a new address",
    "transport.revalidated": lambda r, t: f"{t} answered a fresh challenge",
    "transport.switch": _switch,
    "transport.switch_denied": _denied,
    "transport.switch_failed": lambda r, t: f"attempt on {r.data.to_id} failed: {r.reason}",
    "reattach.attempt": lambda r, t: f"attempt {r.data.attempt} ({r.data.kind}) on {t}",
    "reattach.result": _result,
    "ownership.acquired": _acquired,
    "ownership.lost": lambda r, t: f"{r.node_id} owns it no more: {r.data.code or r.reason}",
    "ownership.rejected": lambda r, t: f"{r.node_id} does not own it: {r.reason}",
    "ownership.store_unavailable": lambda r, t: "the store did not answer",
    "key.rotated": lambda r, t: f"fresh keys, epoch {r.data.key_epoch}",
    "policy.applied": lambda r, t: f"policy {r.data.version} applies",
}
