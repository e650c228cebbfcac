"""One chain: order, links, forks, gaps, and how far checkpoints vouch for it (rule A-1)."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from jumpvpn.audit.auditor.rules import Docket, Rule

if TYPE_CHECKING:
    from jumpvpn.audit.auditor.nodes import Node
    from jumpvpn.audit.auditor.owners import Tenure
    from jumpvpn.audit.auditor.records import Record
    from jumpvpn.audit.auditor.track import Track

GENESIS = "0" * 64
HELD_MAX = 256  # records of one chain that wait for a missing one: reordering beyond this is a gap
RECENT = 128  # marks of the newest records that are kept (at most twice as many), to tell repeats from forks
RECENT_ENDED = 64  # of a chain that has ended
RECENT_NODE = 8192  # a node's chain is long, and a collector may repeat a whole batch
EXPECTED_MAX = 64  # heads from checkpoints that wait for their records


def mark(digest: str) -> int:
    """A quarter of a hash: enough to tell a repeat from a fork, in little memory."""
    try:
        return int(digest[:16], 16)
    except ValueError:
        return 0


class Chain:
    """The state of one open chain."""

    __slots__ = (
        "closed", "covered", "docket", "expected", "head", "held", "kind", "last_boot", "last_mono",
        "marks", "name", "node", "records", "seq", "tenures", "track", "vouched",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = name[:1]
        self.docket = Docket(name)
        self.seq = 0
        self.head = GENESIS
        self.records = 0
        self.marks = array("Q")
        self.held: dict[int, tuple[Record, bool]] = {}
        self.expected: dict[int, str] = {}
        self.covered = 0  # the newest record that a verified checkpoint vouches for
        self.vouched = 0  # the newest record that any head named, whether it was found or not
        self.closed = False
        self.track: Track | None = None
        self.node: Node | None = None
        self.last_boot = ""
        self.last_mono = 0
        self.tenures: list[Tenure] = []  # of a session at the gateways

    def extend(self, record: Record, *, intact: bool) -> None:
        """Take the record that follows the head."""
        if not intact:
            self.docket.fail(Rule.CHAIN, record.seq, "the record was changed: its hash is not that of its content")
        if record.prev != self.head and self.head:
            self.docket.fail(Rule.CHAIN, record.seq, "the record does not follow its predecessor")
        self.seq = record.seq
        self.head = record.hash
        self.records += 1
        self.last_boot, self.last_mono = record.boot_id, record.mono_ms
        marks = self.marks
        marks.append(mark(record.hash))
        keep = RECENT if self.kind != "n" else RECENT_NODE
        if len(marks) > 2 * keep:
            del marks[:keep]
        if self.expected and self.seq in self.expected:
            self.compare(self.seq, self.expected.pop(self.seq))

    def repeat(self, record: Record, *, intact: bool) -> bool | None:
        """Whether a record at or before the head is the one already seen; None when that is too long ago to tell."""
        known = self.mark_at(record.seq)
        if known is None:
            return None
        same = known == mark(record.hash)
        if not same:
            self.docket.fail(Rule.CHAIN, record.seq, "two different records have this number: the chain is forked")
        elif not intact:
            self.docket.fail(Rule.CHAIN, record.seq, "a repeated record was changed")
        return same

    def hold(self, record: Record, *, intact: bool) -> None:
        """Keep a record whose predecessor is missing."""
        known = self.held.get(record.seq)
        if known is None:
            self.held[record.seq] = (record, intact)
        elif known[0].hash != record.hash:
            self.docket.fail(Rule.CHAIN, record.seq, "two different records have this number: the chain is forked")

    def skip(self) -> None:
        """Give the missing records up and go on behind them."""
        first = min(self.held)
        last = first - 1
        text = f"records {self.seq + 1} to {last} are missing; what they" if last > self.seq + 1 else (
            f"record {last} is missing; what it")  # fmt: skip
        self.docket.miss(f"{text} changed can no longer be decided", self.seq + 1, last)
        self.seq, self.head = first - 1, ""
        self.marks = array("Q")

    def mark_at(self, seq: int) -> int | None:
        """The mark of a recent record, or None."""
        place = len(self.marks) - 1 - (self.seq - seq)
        return self.marks[place] if 0 <= place < len(self.marks) else None

    def vouch(self, seq: int, digest: str) -> None:
        """A verified checkpoint, or a head that was kept elsewhere, says that record ``seq`` has this hash."""
        self.vouched = max(self.vouched, seq)
        if seq <= self.seq:
            self.compare(seq, digest)
        elif len(self.expected) < EXPECTED_MAX:
            self.expected[seq] = digest

    def compare(self, seq: int, digest: str) -> None:
        """Hold a vouched head against the record."""
        known = self.mark_at(seq)
        if known is None:
            return
        if known == mark(digest):
            self.covered = max(self.covered, seq)
        else:
            self.docket.fail(
                Rule.CHAIN, seq, "a checkpoint vouches for another record with this number: the chain was rewritten"
            )


class Ended(NamedTuple):
    """What is remembered of a chain that has ended: enough to recognise what comes after."""

    seq: int
    marks: bytes
    epoch: int
    whole: bool
    records: int
    docket: Docket | None  # None: nothing was found
    covered: int
    node: Node | None
    last: tuple[str, int]  # boot and mono_ms of the last record

    @classmethod
    def of(cls, chain: Chain, epoch: int) -> Ended:
        """A chain that ends now."""
        docket = chain.docket
        found = docket.findings or docket.gaps or docket.notes
        return cls(
            chain.seq, chain.marks[-RECENT_ENDED:].tobytes(), epoch, not docket.gaps, chain.records,
            docket if found else None, chain.covered, chain.node, (chain.last_boot, chain.last_mono),
        )  # fmt: skip

    def revived(self, name: str) -> Chain:
        """The chain as it was, for one more look at it."""
        chain = Chain(name)
        chain.seq, chain.records = self.seq, self.records
        chain.marks.frombytes(self.marks)
        chain.docket = self.docket or chain.docket
        chain.covered, chain.node = self.covered, self.node
        chain.last_boot, chain.last_mono = self.last
        return chain
