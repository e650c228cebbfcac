"""Records beside the kept chain: what a former owner wrote behind, which its successor did not know.

Such a tail follows the head that the successor went on from, under the term and by the hand of the former owner. It is
lawful as far as the former owner could not know better: it holds nothing that has to be in the store first, it ends
when its writer learned that it owns the session no more, and what the client proved to know of it is respected.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jumpvpn.audit.auditor.chains import Chain, mark
from jumpvpn.audit.auditor.nodes import Node
from jumpvpn.audit.auditor.owners import ACQUIRED, Claim, Tenure
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.replay import Replay
from jumpvpn.audit.auditor.rules import Docket, Outcome, Rule, Verdict, counted
from jumpvpn.audit.auditor.track import Track
from jumpvpn.properties import Property

TAIL_MAX = 1024  # records of one tail: within a lease a session changes some dozen times
TAILS_MAX = 65_536  # records of all tails together
FORKS_MAX = 8_192  # changes of owner whose session is remembered as it was before them
LOST_MAX = 65_536  # losses of ownership that are remembered
KEPT_MAX = 256  # proofs of the kept chain that are held against a tail's
LONGEST_LEASE_MS = 60_000  # what a gateway may be set to, where it does not say what it has
_STORED_FIRST = {ACQUIRED: "a change of owner", "key.rotated": "a change of keys", "session.created": "a birth"}
_RESULT = "reattach.result"

Nodes = Callable[[Record], Node]


@dataclass(slots=True)
class Fork:
    """One change of owner: the session before it, what the former owner wrote beside it, what followed in the chain."""

    name: str
    claim: Claim
    track: Track | None = None  # None: the record that the claim goes on from was not seen
    head: str = ""
    seq: int = 0
    tenure: Tenure | None = None
    version: int = 0  # of the claim; 0 until it was seen
    floor: int = 0
    before: int = 0  # the version that the claim found in the store
    at: tuple[str, int] = ("", 0)  # boot and time of the claim
    records: dict[int, tuple[Record, bool]] = field(default_factory=dict)
    proofs: list[tuple[str, int, int]] = field(default_factory=list)  # of the kept chain: nonce, epoch, record
    crowded: bool = False
    forked: int = 0
    unknown: int = 0

    @property
    def promised(self) -> int:
        """The newest version of the former owner that the client proved to know and the store did not; 0 for none."""
        return self.floor if self.track is not None and self.floor > self.before else 0

    @property
    def last(self) -> int:
        """The newest version that the tail has."""
        return max((record.state_version for record, _ in self.records.values()), default=0)


class Tails:
    """All forks of a log, and where two owners claimed one term."""

    def __init__(self, replay: Replay, nodes: Nodes, tolerance_ms: int) -> None:
        self._replay = replay
        self._nodes = nodes
        self._tolerance = tolerance_ms
        self._forks: OrderedDict[tuple[str, int], Fork] = OrderedDict()
        self._of: dict[str, list[Fork]] = {}
        self._lost: OrderedDict[tuple[str, int, str, str], tuple[int, str]] = OrderedDict()
        self._by_lease: set[tuple[str, int, str, str]] = set()  # those losses that no other owner caused
        self._returned: OrderedDict[tuple[str, str], int] = OrderedDict()  # when a node last held a lease again
        self._rivals: dict[tuple[str, int, str], tuple[Claim, Claim, int]] = {}
        self._held = 0

    # --- collecting --------------------------------------------------------------------------------------------------

    def fork(self, chain: Chain, claim: Claim, tenure: Tenure | None) -> None:
        """The next record of ``chain`` begins the commit of ``claim``."""
        fork = self._fork(chain.name, claim)
        if chain.track is not None and fork.track is None and chain.track.synced:
            fork.track = chain.track.branched(Docket(f"{chain.name}@{chain.track.owner}"))
            fork.head, fork.seq, fork.tenure, fork.before = chain.head, chain.seq, tenure, chain.track.version

    def kept(self, record: Record) -> None:
        """A record of a kept chain that has changes of owner behind it."""
        for fork in self._of.get(record.chain, ()):
            if record.event == ACQUIRED and record.owner_epoch == fork.claim.term:
                fork.version, fork.floor = record.state_version, record.data.floor or 0
                fork.at = (record.boot_id, record.mono_ms)
            elif record.event == _RESULT and record.owner_epoch >= fork.claim.term and len(fork.proofs) < KEPT_MAX:
                fork.proofs.append((record.data.nonce_id or "", record.data.epoch or 0, record.seq))

    def take(self, record: Record, claim: Claim, *, intact: bool) -> None:
        """A record that stands beside the chain that ``claim`` went on with."""
        fork = self._fork(record.chain, claim)
        known = fork.records.get(record.seq)
        if known is not None:
            fork.forked = fork.forked or (record.seq if known[0].hash != record.hash else 0)
        elif len(fork.records) >= TAIL_MAX or self._held >= TAILS_MAX:
            fork.crowded = True
        else:
            fork.records[record.seq] = (record, intact)
            self._held += 1

    def rival(self, record: Record, claims: tuple[Claim, Claim]) -> None:
        """A record of an owner whose term another one has."""
        key = (record.chain, record.owner_epoch, record.node_id)
        if key in self._rivals or len(self._rivals) < FORKS_MAX:
            count = self._rivals[key][2] if key in self._rivals else 0
            self._rivals[key] = (*claims, count + 1)

    def lost(self, record: Record, row: str) -> None:
        """The node lane says that a node owns a session no more."""
        key = (record.session_uid or "", record.owner_epoch, record.node_id, record.boot_id)
        self._lost.setdefault(key, (record.mono_ms, row))
        if record.data.code == "lease_lost":
            self._by_lease.add(key)
        if len(self._lost) > LOST_MAX:
            self._by_lease.discard(self._lost.popitem(last=False)[0])

    def returned(self, record: Record) -> None:
        """The node says that it holds a lease again: what nobody took meanwhile is its own as before."""
        self._returned[record.node_id, record.boot_id] = record.mono_ms
        if len(self._returned) > LOST_MAX:
            self._returned.popitem(last=False)

    def loss_before(self, record: Record) -> str | None:
        """Where the writer of ``record`` had said that it owns the session no more."""
        key = (record.chain[2:], record.owner_epoch, record.node_id, record.boot_id)
        mono, where = self._lost.get(key, (record.mono_ms, ""))
        if key in self._by_lease and mono <= self._returned.get(key[2:], -1) <= record.mono_ms:
            return None
        return where if record.mono_ms > mono else None

    def _fork(self, name: str, claim: Claim) -> Fork:
        fork = self._forks.get((name, claim.term))
        if fork is None:
            fork = self._forks[name, claim.term] = Fork(name, claim)
            self._of.setdefault(name, []).append(fork)
            if len(self._forks) > FORKS_MAX:
                self._drop(next((f for f in self._forks.values() if not f.records), fork))
        return fork

    def _drop(self, fork: Fork) -> None:
        del self._forks[fork.name, fork.claim.term]
        self._of[fork.name].remove(fork)
        if not self._of[fork.name]:
            del self._of[fork.name]

    # --- what others ask ---------------------------------------------------------------------------------------------

    def has(self, name: str, seq: int, digest: str) -> bool:
        """Whether a tail of the chain has this record."""
        held = (fork.records.get(seq) for fork in self._of.get(name, ()))
        return any(known is not None and mark(known[0].hash) == mark(digest) for known in held)

    def epoch(self, name: str) -> int | None:
        """The highest epoch that a tail of the chain opened; None if records of a tail are missing."""
        forks = self._of.get(name, ())
        if any(fork.promised > fork.last for fork in forks):
            return None
        records = (record for fork in forks for record, _ in fork.records.values())
        return max((record.data.epoch or 0 for record in records if record.event == _RESULT), default=0)

    # --- judging -----------------------------------------------------------------------------------------------------

    def judged(self) -> Iterator[tuple[Verdict, int]]:
        """The verdicts on all tails, and on those that were and are not here; the number of versions nobody tells."""
        for key, found in self._rivals.items():
            yield _rival(key[0], *found), 0
        for fork in self._forks.values():
            verdict = self._judge(fork)
            if verdict is not None:
                yield verdict, fork.unknown

    def _judge(self, fork: Fork) -> Verdict | None:
        track = fork.track
        if track is None:
            return _unplaced(fork) if fork.records else None
        docket, before = track.docket, fork.before
        named = max(track.seen_version, fork.promised)
        if not fork.records and named <= before:
            return None
        records = [fork.records[seq] for seq in sorted(fork.records)]
        if records:
            self._check(fork, track, records)
            if docket.outcome is not Outcome.FAIL:
                self._beside(fork, docket, records[-1][0])
            _told(fork, docket)
        self._missing(fork, track, max(before, fork.last))
        return Verdict(
            docket.chain, docket.outcome, len(records), "written behind", tuple(docket.findings), tuple(docket.gaps),
            tuple(docket.notes), docket.failures, track.state, max(before, fork.last), track.reason,
        )  # fmt: skip

    def _check(self, fork: Fork, track: Track, records: list[tuple[Record, bool]]) -> None:
        docket, head, seq = track.docket, fork.head, fork.seq
        if fork.crowded:
            docket.fail(Rule.EPOCH, seq, f"more than {TAIL_MAX} records beside {_at(fork)}", Property.SINGLE_BINDING)
        if fork.forked:
            docket.fail(Rule.CHAIN, fork.forked, "two different records have this number: the tail is forked")
        self._written(fork, docket, records)
        for record, intact in records:
            if record.seq != seq + 1:
                docket.miss(f"what led to record {record.seq} is missing", seq + 1, record.seq - 1)
                return
            if not intact:
                docket.fail(Rule.CHAIN, record.seq, "the record was changed: its hash is not that of its content")
            if head and record.prev != head:
                where = f"{fork.name}/{fork.seq}, from which {fork.claim.node} went on" if seq == fork.seq else "it"
                docket.fail(Rule.CHAIN, record.seq, f"the record does not follow its predecessor: {where}")
                return
            self._one(fork, track, record)
            seq, head = record.seq, record.hash

    def _one(self, fork: Fork, track: Track, record: Record) -> None:
        docket = track.docket
        if record.owner_epoch != track.owner:
            text = f"owner epoch {record.owner_epoch} beside {_at(fork)}, which follows owner epoch {track.owner}"
            docket.fail(Rule.EPOCH, record.seq, text)
            return
        first = _STORED_FIRST.get(record.event)
        if first is not None:
            text = f"{first} that {_at(fork)} does not know: it has to be in the store before anybody acts on it"
            docket.fail(Rule.EPOCH, record.seq, text, Property.SINGLE_BINDING)
        elif record.event == "session.terminated":
            text = f"the session ended, and {fork.claim.node} goes on with it: {_at(fork)}"
            docket.fail(Rule.IDENTITY, record.seq, text, Property.ABSORBING)
        lost = self.loss_before(record)
        if lost is not None:
            text = f"{record.node_id} goes on after it owned the session no more ({lost})"
            docket.fail(Rule.EPOCH, record.seq, text, Property.SINGLE_BINDING)
        track.node = self._nodes(record)
        self._replay.take(track, record)

    def _written(self, fork: Fork, docket: Docket, records: list[tuple[Record, bool]]) -> None:
        """The tail is as short as a lease, and on the successor's own machine ends within one of the claim."""
        first, last = records[0][0], records[-1][0]
        lease = self._lease(last)
        if first.boot_id == last.boot_id and last.mono_ms - first.mono_ms > lease:
            text = f"changes wait {last.mono_ms - first.mono_ms} ms for the store, longer than a lease ({lease:.0f} ms)"
            docket.fail(Rule.EPOCH, last.seq, text, Property.SINGLE_BINDING)
        boot, at = fork.at
        if last.boot_id == boot and last.mono_ms - at > lease:
            text = f"{last.node_id} acts {last.mono_ms - at} ms after {_at(fork)}, a lease is {lease:.0f} ms"
            docket.fail(Rule.EPOCH, last.seq, text, Property.SINGLE_BINDING)

    def _beside(self, fork: Fork, docket: Docket, last: Record) -> None:
        """Versions as high as the claim's show that both wrote: the former owner must soon have learned, or ended."""
        if not fork.version or last.state_version < fork.version:
            return
        key = (last.chain[2:], last.owner_epoch, last.node_id, last.boot_id)
        node = self._nodes(last)
        beside = f"version {last.state_version} stands beside {_at(fork)} with version {fork.version}"
        if key in self._lost or node.stopped or node.started_between(last.mono_ms, float("inf")):
            return
        if not node.run:
            docket.miss(
                f"{beside}; whether {last.node_id} learned of it is in its own lane, which is not here", last.seq
            )
        elif node.latest - last.mono_ms > self._lease(last):
            text = f"{beside}, and {last.node_id} never learned that it owns the session no more"
            docket.fail(Rule.EPOCH, last.seq, text, Property.SINGLE_BINDING)

    def _lease(self, record: Record) -> float:
        return (self._nodes(record).lease_ms or LONGEST_LEASE_MS) + self._tolerance

    def _missing(self, fork: Fork, track: Track, last: int) -> None:
        owner, docket, promised = track.owner_node, track.docket, fork.promised
        fork.unknown = max(0, promised - last)
        if fork.tenure is not None:
            fork.tenure.behind, fork.tenure.unknown = len(fork.records), fork.unknown
        if promised > last:
            count = counted(promised - last, "version")
            text = f"{count} ({last + 1} to {promised}) known only to the journal of the previous owner {owner}"
            docket.miss(f"{text}: the client proved to know version {promised} at {_at(fork)}")
        elif track.seen_version > last:
            docket.miss(f"the node lane names version {track.seen_version}, the record of {owner} ends at {last}")


def _told(fork: Fork, docket: Docket) -> None:
    """What the client proved to know of the tail is respected by what followed, and no proof counts twice."""
    mine = {record.data.nonce_id or "": record for record, _ in fork.records.values() if record.event == _RESULT}
    for nonce, epoch, seq in fork.proofs:
        used = mine.get(nonce)
        if used is not None:
            docket.fail(Rule.PROOF, used.seq, f"nonce {nonce} counts here and at {fork.name}/{seq}")
        proven = [record for record in mine.values() if fork.before < record.state_version <= fork.floor]
        for record in proven:
            if epoch <= (record.data.epoch or 0):
                text = f"the client proved to know epoch {record.data.epoch}; {fork.name}/{seq} opens epoch {epoch}"
                docket.fail(Rule.EPOCH, record.seq, text)
    count = counted(len(fork.records), "record")
    docket.note(f"{count} written behind under owner epoch {fork.claim.term - 1}: not known at {_at(fork)}")


def _unplaced(fork: Fork) -> Verdict:
    """A tail of which the chain beside it is not here."""
    first, last = min(fork.records), max(fork.records)
    docket = Docket(f"{fork.name}@{fork.records[first][0].owner_epoch}")
    docket.miss(f"the chain that goes on at {_at(fork)} is not here up to there", first, last)
    return Verdict(docket.chain, docket.outcome, len(fork.records), "written behind", gaps=tuple(docket.gaps))


def _rival(name: str, first: Claim, second: Claim, count: int) -> Verdict:
    """Two owners of one term."""
    docket = Docket(f"{name}@{second.term}")
    text = f"{second.node} acquires owner epoch {second.term}, which {first.node} acquired at {name}/{first.seq}"
    docket.fail(Rule.EPOCH, second.seq, text, Property.SINGLE_BINDING)
    return Verdict(docket.chain, docket.outcome, count, "forked", tuple(docket.findings), failures=docket.failures)


def _at(fork: Fork) -> str:
    return f"{fork.name}/{fork.claim.seq} ({fork.claim.node}, owner epoch {fork.claim.term})"
