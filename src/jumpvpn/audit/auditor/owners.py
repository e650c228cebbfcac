"""Who owned a session when: the changes of owner in a log, and which records stand beside the chain that was kept.

The records of a session's chain come from the journals of several gateways. What orders them is the owner's term
(``owner_epoch``) and the number in the chain, never a clock. A new owner goes on from the head that it found in the
store; what the former owner had written behind, and not stored yet, has the same numbers and a lower term.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jumpvpn.audit.auditor.records import BadLine, Record, decode, sealed

if TYPE_CHECKING:
    from jumpvpn.audit.auditor.nodes import Node

ACQUIRED = "ownership.acquired"
CLAIMS_MAX = 1 << 20  # changes of owner in all logs together, of some 200 bytes each
TENURES_MAX = 1024  # of one session: the newest and the first are told
_AT_ONCE_MS = 2_000  # a takeover's request is answered in the commit behind it; who adopts waits for the client
_BEGUN = {"request": "takeover", "orphan": "adopted", "superseded": "superseded", "restart": "restart"}  # by cause
_BY_THE_NEXT = ("", *_BEGUN.values())  # a drain or the end of a lease says more
_RESULT = "reattach.result"
_MARK = b'"ownership.acquired"'


class Placed(Protocol):
    """What tells the place of a record."""

    chain: str
    seq: int
    owner_epoch: int
    node_id: str


class Claim(NamedTuple):
    """A change of owner: its term, the first and the telling record of its commit, who claimed, under which hash."""

    term: int
    first: int
    seq: int
    node: str
    hash: str


@dataclass(slots=True)
class Tenure:
    """One owner's time: versions and wall-clock times (Unix ms) of its first and last record, and how it ended.

    ``begun`` is birth, takeover, adopted, superseded or restart; ``ended`` is takeover, drain, lease, adopted,
    superseded, restart, terminated or "" while it lasts. ``behind`` counts records that the next owner did not know,
    ``unknown`` the versions of this owner that no record tells. ``since`` is the boot clock (ms) of its first record;
    ``told`` says that a record gave the cause, so that it need not be guessed.
    """

    node: str
    term: int
    first_version: int
    last_version: int
    from_ms: int
    to_ms: int
    begun: str = "birth"
    ended: str = ""
    behind: int = 0
    unknown: int = 0
    since: int = 0
    told: bool = False

    def as_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "node": self.node, "term": self.term, "from_version": self.first_version, "to_version": self.last_version,
            "from_ms": self.from_ms, "to_ms": self.to_ms, "begun": self.begun, "ended": self.ended or None,
            "written_behind": self.behind, "unknown_versions": self.unknown,
        }  # fmt: skip


def follow(tenures: list[Tenure], record: Record, former: Node | None) -> None:
    """One record of a session's kept chain. ``former`` is the node that wrote the record before."""
    now = tenures[-1] if tenures else None
    if now is None or now.term != record.owner_epoch:
        version, time = record.state_version, record.time_ms
        if now is not None and not now.ended and former is not None and former.draining:
            now.ended = "drain"
        if len(tenures) >= TENURES_MAX:
            del tenures[1]
        now = Tenure(record.node_id, record.owner_epoch, version, version, time, time, since=record.mono_ms)
        tenures.append(now)
        if len(tenures) > 1:
            _begun(tenures, "adopted")
    now.last_version, now.to_ms = max(now.last_version, record.state_version), record.time_ms
    if record.event == ACQUIRED and len(tenures) > 1:
        _begun(tenures, _BEGUN.get(record.data.cause or "") or _guessed(record))
        now.told = record.data.cause is not None
    elif record.event == _RESULT and not now.told and _in_time(now, record):
        _begun(tenures, "takeover")
    elif record.state == "TERMINATED":
        now.ended = "terminated"


def wrong_cause(record: Record) -> str | None:
    """What contradicts the cause that an ``ownership.acquired`` of a change of owner gives; None if nothing does."""
    cause, former, floor = record.data.cause, record.data.from_node or record.node_id, record.data.floor
    own = former == record.node_id
    if cause is None:  # of a version that did not tell
        return None
    if cause not in _BEGUN:
        return f"{cause!r} is no cause of a change of owner"
    if cause == "restart" and not own:
        return f"{record.node_id} takes the session from {former}, which no restart of its own explains"
    if cause in ("orphan", "superseded") and own:
        return f"{record.node_id} was the owner before, so it adopts nothing (cause {cause})"
    if floor and cause != "request":
        return f"the client proved to know version {floor}, which takes a request, and the cause is {cause}"
    return None


def _guessed(record: Record) -> str:
    """How an owner began whose ``ownership.acquired`` names no cause."""
    if record.data.from_node in (None, "", record.node_id):
        return "restart"
    return "takeover" if record.data.floor else "adopted"


def _in_time(tenure: Tenure, record: Record) -> bool:
    """Whether the request that ``record`` answers may have brought this owner, which names no cause."""
    return tenure.begun == "adopted" and record.mono_ms - tenure.since <= _AT_ONCE_MS


def _begun(tenures: list[Tenure], how: str) -> None:
    tenures[-1].begun = how
    if len(tenures) > 1 and tenures[-2].ended in _BY_THE_NEXT:
        tenures[-2].ended = how


class Claims:
    """All changes of owner in some logs, known before their records are judged."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Claim]] = {}  # by chain, in the order of terms
        self._rivals: dict[str, list[Claim]] = {}
        self._count = 0

    def note(self, line: bytes) -> None:
        """One line of a log, of whatever kind."""
        if _MARK not in line or self._count >= CLAIMS_MAX:
            return
        try:
            record = decode(line)
        except BadLine:
            return
        later = record.event == ACQUIRED and record.owner_epoch > 1  # the first owner acquires by the birth
        if later and record.chain.startswith("s:") and sealed(line, record):
            self._add(record)

    def note_all(self, lines: Iterable[bytes]) -> Claims:
        """``note`` for each."""
        for line in lines:
            self.note(line)
        return self

    def _add(self, record: Record) -> None:
        first = record.seq - record.idx + 1
        claim = Claim(record.owner_epoch, max(1, first), record.seq, record.node_id, record.hash)
        kept = self._kept.setdefault(record.chain, [])
        place = bisect_left(kept, claim.term, key=lambda known: known.term)
        if place == len(kept) or kept[place].term != claim.term:
            kept.insert(place, claim)
        elif kept[place].hash != claim.hash and claim not in self._rivals.get(record.chain, ()):
            self._rivals.setdefault(record.chain, []).append(claim)
        self._count += 1

    def at(self, record: Placed) -> Claim | None:
        """The claim whose commit begins with ``record``."""
        kept = self._kept.get(record.chain, ())
        return next((c for c in kept if c.first == record.seq and c.node == record.node_id), None)

    def over(self, record: Placed) -> Claim | None:
        """The claim that went on from before ``record`` without knowing it; None for a record of the kept chain."""
        kept = self._kept.get(record.chain)
        if kept is None:
            return None
        return next(
            (c for c in kept if c.term > record.owner_epoch and c.first <= record.seq and not _in(c, record)), None
        )

    def rival(self, record: Placed) -> tuple[Claim, Claim] | None:
        """Two claims to the term of ``record`` if it was written under the second of them: the first, the second."""
        for claim in self._rivals.get(record.chain, ()):
            if _by(claim, record) and claim.first <= record.seq:
                first = next(known for known in self._kept[record.chain] if known.term == claim.term)
                if first.node != claim.node or record.seq < first.first:
                    return first, claim
        return None


def _in(claim: Claim, record: Placed) -> bool:
    """Whether the record stands before the change of owner in its commit: some rows outrank it."""
    return record.seq < claim.seq and (record.node_id, record.owner_epoch) == (claim.node, claim.term - 1)


def _by(claim: Claim, record: Placed) -> bool:
    return claim.term == record.owner_epoch and claim.node == record.node_id
