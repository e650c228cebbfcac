"""Flood control for denials: the first of a kind at once, what follows within the interval as one event with a count.

Kind = name, reason, session, source prefix. Only node-lane events may be coalesced; the state lane never is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jumpvpn.values import DomainEvent, Now

COALESCED = frozenset(
    {
        "reattach.result", "session.input_rejected", "security.replay_detected", "security.validation_failed",
        "security.fixation_attempt", "security.rate_limited", "security.downgrade_attempt",
    }
)  # fmt: skip
KINDS_MAX = 1024  # a flood with many prefixes shares one further kind, so memory stays flat

Kind = tuple[str, str | None, str | None, str]


@dataclass(slots=True)
class _Window:
    first: DomainEvent
    opened_ns: int
    held: int = 0
    first_ms: int = 0
    last_ms: int = 0


class Coalescer:
    """Holds back repeated denials; ``interval`` in ns."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._windows: dict[Kind, _Window] = {}

    def offer(self, event: DomainEvent, now: Now) -> DomainEvent | None:
        """The event to record now, or None if it is counted into a later one."""
        if event.lane != "N" or event.name not in COALESCED:
            return event
        kind = self._kind(event)
        window = self._windows.get(kind)
        if window is None:
            self._windows[kind] = _Window(event, now.boot)
            return event
        if not window.held:
            window.first_ms = now.wall_ms
        window.held += 1
        window.last_ms = now.wall_ms
        return None

    def due(self, now: Now) -> list[DomainEvent]:
        """The summaries of windows that have ended."""
        ended = [kind for kind, window in self._windows.items() if now.boot - window.opened_ns >= self._interval]
        summaries = []
        for kind in ended:
            window = self._windows.pop(kind)
            if window.held:
                counts = {"count": window.held, "first_ms": window.first_ms, "last_ms": window.last_ms}
                summaries.append(replace(window.first, data={**window.first.data, **counts}))
        return summaries

    def _kind(self, event: DomainEvent) -> Kind:
        prefix = str(event.data.get("source_prefix", ""))
        kind = (event.name, event.reason, event.session, prefix)
        if kind in self._windows or len(self._windows) < KINDS_MAX:
            return kind
        return (event.name, event.reason, None, "others")
