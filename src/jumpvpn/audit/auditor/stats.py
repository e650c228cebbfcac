"""Figures of a log: recovery, detection, stays in each state, switches, denials, causes of ends, rates."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from jumpvpn.audit.auditor.chains import Chain
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.table import CHANGE
from jumpvpn.audit.auditor.track import Track

NAMES_MAX = 4096  # distinct names in a counter; a hostile log may invent more
_STEPS = 100  # steps per factor e: neighbouring buckets are 1 % apart
_OTHERS = "(others)"
ENDS = {"c": "client", "s": "gateway"}


class Spread:
    """A distribution in constant memory: quantiles are exact to one per cent."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """One value, not negative."""
        value = max(0.0, value)
        self._buckets[round(math.log1p(value) * _STEPS)] += 1
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)

    def quantile(self, share: float) -> float | None:
        """Nearest rank, None without values."""
        rank = math.ceil(share * self.count)
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return round(min(math.expm1(bucket / _STEPS), self.largest), 1)
        return None

    def as_json(self) -> dict[str, float | int | None]:
        """Count, p50, p95, p99, maximum."""
        return {
            "count": self.count, "p50": self.quantile(0.50), "p95": self.quantile(0.95), "p99": self.quantile(0.99),
            "max": round(self.largest, 1) if self.count else None,
        }  # fmt: skip


class EndStats:
    """Figures of one end's records."""

    def __init__(self) -> None:
        self.sessions = 0
        self.live_ms = 0.0
        self.switches = 0
        self.recovery = Spread()
        self.detection = Spread()
        self.interruption = Spread()
        self.stays: dict[str, Spread] = {}
        self.stay_ms: Counter[str] = Counter()
        self.entries: Counter[str] = Counter()
        self.denials: Counter[str] = Counter()
        self.terminations: Counter[str] = Counter()
        self.attempts = 0
        self.failures = 0

    def change(self, record: Record) -> None:
        """A change of state."""
        data = record.data
        before, after = record.prev_state or "", record.state or ""
        if data.dwell_ms is not None:
            stay = self.stays.get(before)
            if stay is None:
                stay = self.stays[before] = Spread()
            stay.add(data.dwell_ms)
            self.stay_ms[before] += round(data.dwell_ms)
            self.live_ms += data.dwell_ms
        self.entries[f"{before}>{after}"] += 1
        if after == "ATTACHED" and before == "RECOVERING" and data.episode_ms is not None:
            self.recovery.add(data.episode_ms)
        if after == "TERMINATED":
            _count(self.terminations, record.reason)

    def as_json(self) -> dict[str, Any]:
        """One object."""
        minutes = self.live_ms / 60_000
        return {
            "sessions": self.sessions,
            "observed_minutes": round(minutes, 3),
            "recovery_ms": self.recovery.as_json(),
            "detection_ms": self.detection.as_json(),
            "interruption_ms": self.interruption.as_json(),
            "states": {
                state: {**stay.as_json(), "total_ms": self.stay_ms[state]} for state, stay in sorted(self.stays.items())
            },
            "transitions": dict(self.entries.most_common()),
            "switches": self.switches,
            "switches_per_minute": round(self.switches / minutes, 3) if minutes else None,
            "attempts": self.attempts,
            "failed_attempts": self.failures,
            "denials": dict(self.denials.most_common()),
            "terminations": dict(self.terminations.most_common()),
        }


class Stats:
    """An observer of the audit that keeps figures only; constant memory."""

    def __init__(self) -> None:
        self.ends = {"client": EndStats(), "gateway": EndStats()}
        self.events: Counter[str] = Counter()
        self.first_ms: int | None = None
        self.last_ms = 0

    def record(self, chain: Chain, record: Record) -> None:
        """One accepted record."""
        _count(self.events, record.event)
        self.first_ms = record.time_ms if self.first_ms is None else min(self.first_ms, record.time_ms)
        self.last_ms = max(self.last_ms, record.time_ms)
        end = ENDS.get(chain.kind)
        if end is not None:
            self._state_lane(self.ends[end], record)

    def noted(self, track: Track, record: Record) -> None:
        """A node-lane record about a session."""
        end = self.ends[ENDS[track.role]]
        weight = record.data.count if record.data.first_ms is not None and record.data.count else 1
        if record.event == "reattach.attempt":
            end.attempts += 1
        elif record.event == "transport.switch_failed":
            end.failures += 1
        elif record.event in ("reattach.result", "transport.switch_denied"):
            _count(end.denials, record.reason, weight)

    def _state_lane(self, end: EndStats, record: Record) -> None:
        event, data = record.event, record.data
        if event == CHANGE:
            end.change(record)
        elif event == "session.created":
            end.sessions += 1
        elif event == "transport.switch":
            end.switches += 1
            if data.interruption_ms is not None:
                end.interruption.add(data.interruption_ms)
        elif event == "transport.switch_denied":
            _count(end.denials, record.reason)
        if data.detect_ms is not None:
            end.detection.add(data.detect_ms)

    def as_json(self) -> dict[str, Any]:
        """One object; times in ms."""
        seconds = (self.last_ms - (self.first_ms or 0)) / 1000
        total = self.events.total()
        return {
            "span_s": round(seconds, 3),
            "events_total": total,
            "events_per_s": round(total / seconds, 3) if seconds > 0 else None,
            "events": dict(self.events.most_common()),
            **{name: end.as_json() for name, end in self.ends.items()},
        }


def _count(counter: Counter[str], name: str | None, weight: int = 1) -> None:
    word = name or "(none)"
    counter[word if word in counter or len(counter) < NAMES_MAX else _OTHERS] += weight
