"""Feeds recorded inputs to the shipped engine and sealer again; every event line has to come out byte for byte."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.sealing import Draft, Sealer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.client import ClientEngine
from jumpvpn.recording.codec import BadValue
from jumpvpn.recording.entries import (
    BadRecording,
    Due,
    Emitted,
    End,
    Entry,
    EventLine,
    Header,
    Input,
    Noted,
    PolicyUsed,
    Resumed,
    Settled,
    Shown,
    State,
    Sum,
    Vouched,
    read,
)
from jumpvpn.recording.snapshot import Engine, Restoring, capture
from jumpvpn.recording.veil import ReaderSight, ReaderVeil
from jumpvpn.session.state import Session
from jumpvpn.session.state import State as SessionState
from jumpvpn.values import DomainEvent, Now

UNFIT = (AssertionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
"""How the machine fails at values that no node would have told it, or by a defect of its own."""


def words_of(error: BaseException) -> str:
    """Kind and words of an error, in bounded length."""
    return f"{type(error).__name__}: {error}".strip(": ")[:300]


@dataclass(eq=False)
class Difference(Exception):
    """The first point at which the machine does not do what the recording says it did.

    ``line`` is the recording's, ``input`` the number of the last input (from 1) and ``now`` its time.
    """

    what: str
    line: int
    input: int
    kind: str
    now: Now | None
    recorded: bytes | None = None
    produced: bytes | None = None

    def fields(self) -> list[tuple[str, Any, Any]]:
        """(field, recorded, produced) of every field of the two event records that differs."""
        mine, theirs = _flat(self.recorded), _flat(self.produced)
        return [(key, mine.get(key), theirs.get(key)) for key in mine | theirs if mine.get(key) != theirs.get(key)]


@dataclass(slots=True)
class Counts:
    """What a replay went through. ``first`` and ``last`` are the times of the first and last input."""

    inputs: int = 0
    turns: int = 0  # inputs that made the engine order something
    commits: int = 0
    events: int = 0
    by_input: Counter[str] = field(default_factory=Counter)
    by_event: Counter[str] = field(default_factory=Counter)
    first: Now | None = None
    last: Now | None = None


@dataclass(slots=True)
class _Commit:
    order: out.Commit
    draft: Draft


class Watcher:
    """Looks on while a recording is replayed; does nothing by itself."""

    def told(self, event: Any, now: Now, engine: Engine, orders: list[out.Output]) -> None:
        """The engine has handled ``event`` and gave ``orders``."""

    def happened(self, events: tuple[DomainEvent, ...], now: Now) -> None:
        """The engine's events that counted: of commits that the store has, and of the node lane."""


class Replay:
    """One segment. ``feed`` every entry in order, then ``finish``; both raise Difference and BadRecording.

    ``on_line`` gets every produced event line; ``before`` is the state in which the segment before this one ended.
    """

    def __init__(
        self,
        sight: ReaderSight,
        watcher: Watcher | None = None,
        on_line: Callable[[bytes], None] | None = None,
        before: list[Any] | None = None,
    ) -> None:
        self.counts = Counts()
        self.header: Header | None = None
        self.ended = False
        self._sight = sight
        self._watcher = watcher or Watcher()
        self._on_line = on_line or (lambda _line: None)
        self._restoring: Restoring | None = None
        self._before = before
        self._line = 0
        self._kind = ""
        self._now: Now | None = None
        self._emits: deque[tuple[out.Emit, Now]] = deque()
        self._commits: dict[str, _Commit] = {}
        self._produced: deque[bytes] = deque()

    @property
    def engine(self) -> Engine:
        """The engine as it is. Raises BadRecording."""
        return self._ready().engine

    @property
    def settled(self) -> bool:
        """Whether all that the last input led to has been compared."""
        return not self._produced and not self._emits

    def sessions(self) -> dict[str, Session]:
        """The committed sessions by their public names; none before the state has been read."""
        if self._restoring is None or not self._restoring.complete:
            return {}
        engine = self.engine
        if isinstance(engine, ClientEngine):
            session = engine.session
            return {} if session is None else {session.uid: session}
        return {uid: place.seat.session for uid, place in engine.places.items()}

    def feed(self, number: int, entry: Entry) -> None:
        """One entry at line ``number``."""
        self._line = number
        if self._before is not None and not isinstance(entry, (Header, State, Shown)):
            self._continue()
        if isinstance(entry, EventLine):
            self._compare(entry.line)
            return
        if isinstance(entry, (Sum, End)):
            self.ended = self.ended or isinstance(entry, End)
            return
        if self._produced:
            raise self._difference("the machine produced an event that the recording lacks", None, self._produced[0])
        try:
            self._take(entry)
        except BadRecording:
            raise
        except UNFIT as error:
            raise BadRecording(f"does not fit what came before: {words_of(error)}", number) from error

    def finish(self) -> None:
        """All entries were fed; of a recording that breaks off, what follows its last line is unknown."""
        self._ready()
        if self.ended and self._produced:
            raise self._difference("the machine produced an event that the recording lacks", None, self._produced[0])

    def state(self) -> list[Any]:
        """The state reached, in a form that can be compared."""
        ready = self._ready()
        return [[kind, value] for kind, value in capture(ready.engine, ready.sealer, ReaderVeil())]

    def _continue(self) -> None:
        """The segment has to begin where the one before ended."""
        before, self._before = self._before or [], None
        here = self.state()
        if before != here:
            odd = next((kind for (kind, _), mine in zip(here, before, strict=False) if [kind, _] != mine), "size")
            what = f"the state in which this segment begins ({odd}) is not the one in which the segment before it ended"
            raise self._difference(what, None, None)

    # --- entries -----------------------------------------------------------------------------------------------------

    def _take(self, entry: Entry) -> None:
        match entry:
            case Header():
                self.header = entry
                self._restoring = Restoring(entry.role, entry.origin, self._sight)
            case State():
                self._restore(entry)
            case Shown():
                self._sight.learn(entry.forms)
            case Input():
                self._input(entry)
            case Emitted():
                self._emitted()
            case Noted():
                self._produce(self._sealer.note(entry.events, entry.now))
            case Settled():
                self._settled(entry.uid)
            case PolicyUsed():
                self._sight.learn(entry.forms)
                self._sealer.use_policy(entry.policy)
            case Resumed():
                self._sealer.resume(entry.uid, entry.chain)
            case Vouched():
                self._produce((self._sealer.checkpoint(entry.link, lambda _: entry.signature, entry.now),))
            case Due():
                self._produce(self._sealer.due(entry.now))

    def _restore(self, entry: State) -> None:
        if self.counts.inputs:
            raise BadRecording("a state after the first input", self._line)
        assert self._restoring is not None
        try:
            self._restoring.take(*entry.part)
        except BadValue as error:
            raise BadRecording(f"state {entry.part[0]}: {error}", self._line) from None

    def _input(self, entry: Input) -> None:
        if self._emits:
            raise self._difference("the engine ordered an event to be recorded, which the node did not", None, None)
        event, now = entry.event, entry.now
        self.counts.inputs += 1
        self.counts.by_input[type(event).__name__] += 1
        self.counts.first = self.counts.first or now
        self.counts.last = self._now = now
        self._kind = type(event).__name__
        if isinstance(event, inp.CommitEnded):
            self._ended_commit(event)
        try:
            orders = self.engine.handle(event, now)
            self._order(orders, now)
        except UNFIT as error:
            raise self._difference(f"the engine fails at this input: {words_of(error)}", None, None) from error
        self.counts.turns += bool(orders)
        self._watcher.told(event, now, self.engine, orders)

    def _order(self, orders: list[out.Output], now: Now) -> None:
        for order in orders:
            if isinstance(order, out.Commit):
                draft = self._sealer.draft(order.uid, order.events, now)
                self._commits[order.uid] = _Commit(order, draft)
            elif isinstance(order, out.Emit):
                self._emits.append((order, now))

    def _emitted(self) -> None:
        if not self._emits:
            raise self._difference("the node recorded an event that the engine does not order", None, None)
        order, now = self._emits.popleft()
        self._produce(self._sealer.note(order.events, now))
        self._watcher.happened(order.events, now)

    def _settled(self, uid: str) -> None:
        commit = self._commits.pop(uid, None)
        if commit is None:
            raise self._difference(f"the node committed session {uid[:40]}, the engine does not", None, None)
        self.counts.commits += 1
        ended = commit.order.session.state is SessionState.TERMINATED
        self._produce(self._sealer.settle(commit.draft, ended=ended))
        self._watcher.happened(commit.order.events, commit.draft.now)

    def _ended_commit(self, ended: inp.CommitEnded) -> None:
        open_still = ended.uid in self._commits
        if ended.result == "committed" and open_still:
            raise self._difference("a commit is said to have won, but the node never sealed it", None, None)
        self._commits.pop(ended.uid, None)

    # --- comparing ---------------------------------------------------------------------------------------------------

    def _produce(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.counts.events += 1
            self._produced.append(line)
            self._on_line(line)

    def _compare(self, recorded: bytes) -> None:
        if not self._produced:
            raise self._difference("the recording has an event that the machine does not produce", recorded, None)
        produced = self._produced.popleft()
        if produced != recorded:
            raise self._difference("the machine produced another event than the node recorded", recorded, produced)
        self.counts.by_event[str(_record(recorded).get("event"))] += 1

    def _difference(self, what: str, recorded: bytes | None, produced: bytes | None) -> Difference:
        return Difference(what, self._line, self.counts.inputs, self._kind, self._now, recorded, produced)

    @property
    def _sealer(self) -> Sealer:
        return self._ready().sealer

    def _ready(self) -> Restoring:
        if self._restoring is None:
            raise BadRecording("is empty")
        try:
            _ = self._restoring.engine, self._restoring.sealer
        except BadValue as error:
            raise BadRecording(str(error), self._line) from None
        return self._restoring


def replay(
    lines: Iterable[bytes],
    watcher: Watcher | None = None,
    on_line: Callable[[bytes], None] | None = None,
    before: list[Any] | None = None,
) -> Iterator[Replay]:
    """Replay one segment; yields the replay after every entry, and once more when it is complete.

    Raises Difference and BadRecording.
    """
    sight = ReaderSight()
    run = Replay(sight, watcher, on_line, before)
    for number, entry in read(lines, sight):
        run.feed(number, entry)
        yield run
    run.finish()
    yield run


def _record(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(line: bytes | None) -> dict[str, Any]:
    """An event record's fields; those of ``data`` and ``transport`` with their parent's name before them."""
    flat: dict[str, Any] = {}
    for key, value in (_record(line) if line else {}).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat
