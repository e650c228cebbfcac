"""When each session wants to be looked at: the next moment of thousands without asking each of them."""

from __future__ import annotations

import heapq

from jumpvpn.values import Instant


class Alarms:
    """One moment per session; setting it anew replaces it. Costs grow with the logarithm of the number of sessions."""

    def __init__(self) -> None:
        self._moments: dict[str, Instant] = {}
        self._heap: list[tuple[Instant, str]] = []

    def set(self, uid: str, at: Instant | None) -> None:
        """``uid`` wants to be looked at ``at``; None: not before something happens."""
        if at is None:
            self._moments.pop(uid, None)
        elif self._moments.get(uid) != at:
            self._moments[uid] = at
            heapq.heappush(self._heap, (at, uid))
            self._shrink()

    def next(self) -> Instant | None:
        """The earliest moment, or None."""
        while self._heap and self._moments.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: Instant) -> list[str]:
        """The sessions whose moment has come, earliest first; their moments are forgotten."""
        due: list[str] = []
        while (at := self.next()) is not None and at <= now:
            uid = heapq.heappop(self._heap)[1]
            del self._moments[uid]
            due.append(uid)
        return due

    def _shrink(self) -> None:
        """Replaced moments stay in the heap until they surface; they are never most of it for long."""
        if len(self._heap) > 64 + 4 * len(self._moments):
            self._heap = [(at, uid) for uid, at in self._moments.items()]
            heapq.heapify(self._heap)
