"""Several logs as one stream in which no record of a chain comes before its predecessor, as far as the logs hold it.

What orders the records of one log is the log. Between logs a record waits for the one before it in its chain; clocks
only choose among records that wait for nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from jumpvpn.audit.auditor.owners import Claims
from jumpvpn.audit.auditor.sources import STDIN, Unreadable, in_order, read

TOGETHER_MAX = 256  # logs that are open at once; what comes beyond is read behind them
KNOWN_MAX = 1 << 20  # chains whose newest record is remembered

Item = tuple[int, bytes] | Unreadable
Line = tuple[str, Item]


class _Stamp(msgspec.Struct, gc=False):
    """What decides the place of a line; the names are those of a record."""

    chain: str
    seq: int
    time_ms: int
    owner_epoch: int = 0
    node_id: str = ""


_decode = msgspec.json.Decoder(_Stamp).decode
_Place = tuple[int, int]  # time, log


def claims_in(names: Sequence[str]) -> Claims:
    """The changes of owner in these logs. Standard input and pipes can be read but once, so they are left out."""
    claims = Claims()
    for name in names:
        if name == STDIN or not Path(name).is_file():
            continue
        for item in read(name):
            if not isinstance(item, Unreadable):
                claims.note(item[1])
    return claims


def merged(names: Sequence[str], claims: Claims) -> Iterator[Line]:
    """Every line of every log with the log's name; those of one log in its order."""
    ordered = in_order(names)
    yield from _Merge(ordered[:TOGETHER_MAX], claims).lines()
    for name in ordered[TOGETHER_MAX:]:
        yield from ((name, item) for item in read(name))


class _Merge:
    def __init__(self, names: Sequence[str], claims: Claims) -> None:
        self._names = names
        self._claims = claims
        self._logs = [read(name) for name in names]
        self._next: list[Item | None] = [None] * len(names)
        self._stamps: list[_Stamp | None] = [None] * len(names)
        self._time = [0] * len(names)
        self._ready: list[_Place] = []
        self._waiting: dict[str, list[tuple[int, _Place]]] = {}  # by chain, with the number of the record that waits
        self._known: dict[str, int] = {}
        self._forgot = False

    def lines(self) -> Iterator[Line]:
        """All lines."""
        if len(self._names) == 1:
            yield from ((self._names[0], item) for item in self._logs[0])
            return
        for number in range(len(self._names)):
            self._advance(number)
        while (log := self._chosen()) is not None:
            item, stamp = self._next[log], self._stamps[log]
            assert item is not None, "a log without a next line is not chosen"
            yield self._names[log], item
            if stamp is not None:
                self._taken(stamp)
            self._advance(log)

    def _chosen(self) -> int | None:
        """The log that goes on; one whose record waits for a record that is nowhere, if there is no other."""
        if self._ready:
            return heapq.heappop(self._ready)[1]
        if not self._waiting:
            return None
        place, name = min((place, name) for name, kept in self._waiting.items() for _, place in kept)
        self._waiting[name] = [(seq, other) for seq, other in self._waiting[name] if other != place]
        if not self._waiting[name]:
            del self._waiting[name]
        return place[1]

    def _advance(self, log: int) -> None:
        item = self._next[log] = next(self._logs[log], None)
        if item is None:
            return
        stamp = self._stamps[log] = None if isinstance(item, Unreadable) else _stamp(item[1])
        if stamp is not None:
            self._time[log] = stamp.time_ms
        place = (self._time[log], log)
        if stamp is None or not self._waits(stamp):
            heapq.heappush(self._ready, place)
        else:
            self._waiting.setdefault(stamp.chain, []).append((stamp.seq, place))

    def _waits(self, stamp: _Stamp) -> bool:
        newest = self._known.get(stamp.chain)
        if newest is None and self._forgot:
            return False
        return stamp.seq > (newest or 0) + 1 and self._is_kept(stamp)

    def _taken(self, stamp: _Stamp) -> None:
        if not self._is_kept(stamp):
            return
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
            self._forgot = True
        newest = self._known[stamp.chain] = max(stamp.seq, self._known.get(stamp.chain, 0))
        self._wake(stamp.chain, newest + 1)

    def _wake(self, name: str, newest: int) -> None:
        """Records of the chain up to ``newest`` wait no more."""
        waiting = self._waiting.pop(name, [])
        for seq, place in waiting:
            if seq <= newest:
                heapq.heappush(self._ready, place)
            else:
                self._waiting.setdefault(name, []).append((seq, place))

    def _is_kept(self, stamp: _Stamp) -> bool:
        return self._claims.over(stamp) is None and self._claims.rival(stamp) is None


def _stamp(line: bytes) -> _Stamp | None:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
