"""The audit: lines in, verdicts out. Streaming; memory is bounded by open sessions and the constants named here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from jumpvpn.audit.auditor.chains import HELD_MAX, Chain, Ended
from jumpvpn.audit.auditor.checkpoints import CheckpointFailed, CheckpointUnsure, KeyRing
from jumpvpn.audit.auditor.endings import Ending, doubt_of_ended, ending_of
from jumpvpn.audit.auditor.lanes import NodeLane
from jumpvpn.audit.auditor.nodes import Node
from jumpvpn.audit.auditor.owners import Claims, follow
from jumpvpn.audit.auditor.records import BadLine, Record, decode, sealed
from jumpvpn.audit.auditor.replay import Replay
from jumpvpn.audit.auditor.report import Report
from jumpvpn.audit.auditor.rules import Docket, Outcome, Rule, Verdict
from jumpvpn.audit.auditor.sources import Unreadable
from jumpvpn.audit.auditor.table import Table, load_table
from jumpvpn.audit.auditor.tails import Tails
from jumpvpn.audit.auditor.track import RULES, Track
from jumpvpn.properties import Property

CLOSED_MAX = 65_536  # ended chains that are remembered, so that a record after the end is recognised
HELD_TOTAL_MAX = 16_384  # out-of-order records of all chains together
NODES_MAX = 65_536
NAMED_MAX = 65_536  # heads of chains that no record of was seen yet
TOLERANCE_MS = 2_000  # how late a node may act: one turn that waits for its store, on a machine that is busy
KINDS = ("s", "c", "n")
_ENDED = Ending("ended")
_UNDECIDED = "the policy in force is not in the log: limits and deadlines were not all checked"
_UNDECIDED_AFTER_LOSS = "the bounds in force behind that are not known: limits and deadlines were not all checked"


class Observer(Protocol):
    """Whoever wants to see the records that were accepted, in each chain's order."""

    def record(self, chain: Chain, record: Record) -> None:
        """One record; ``chain.track`` is its session after it, None in a node's chain."""

    def noted(self, track: Track, record: Record) -> None:
        """A node-lane record that names a session."""


class Auditor:
    """``feed`` lines, then ``finish``."""

    def __init__(
        self, table: Table | None = None, anchors: Iterable[str] = (), heads: dict[str, tuple[int, str]] | None = None,
        tolerance_ms: int = TOLERANCE_MS, observer: Observer | None = None, claims: Claims | None = None,
    ) -> None:  # fmt: skip
        self._table = table or load_table()
        self._ring = KeyRing(frozenset(anchors))
        self._tolerance = tolerance_ms
        self._observer = observer
        checks = [0] * RULES
        self._checks = checks
        self._replay = Replay(self._table, checks, tolerance_ms)
        self._lane = NodeLane(self._table, self._ring, checks, self._replay.rows, self._replay.reasons, tolerance_ms)
        self._claims = claims or Claims()
        self._tails = Tails(self._replay, self._node, tolerance_ms)
        self._chains: dict[str, Chain] = {}
        self._closed: OrderedDict[str, Ended] = OrderedDict()
        self._nodes: dict[tuple[str, str], Node] = {}
        self._live: dict[str, Track] = {}  # the live session of each device, at the gateways
        self._named: dict[str, list[tuple[int, str]]] = {}
        self._held = 0
        self.report = Report(self._table, checks, self._replay.rows, self._replay.reasons)
        for name, (seq, digest) in (heads or {}).items():
            self._vouch(name, seq, digest)

    # --- lines -------------------------------------------------------------------------------------------------------

    def expect(self, claims: Claims) -> None:
        """The changes of owner in what will be fed; without them a tail written behind looks like a forked chain."""
        self._claims = claims

    def feed(self, line: bytes, source: str = "", number: int = 0) -> bool:
        """Judge one line; whether it was an event record."""
        self.report.lines += 1
        try:
            record = decode(line)
        except BadLine as bad:
            if line.strip():
                self.report.unreadable_line(Unreadable(source, number, str(bad)))
                return False
            return True
        intact = sealed(line, record)
        if record.chain.startswith("s:") and self._beside(record, intact):
            return True
        chain = self._chains.get(record.chain)
        if chain is None:
            closed = self._closed.get(record.chain)
            if closed is not None:
                self._after_the_end(closed, record, intact)
                return True
            chain = self._open(record)
            if chain is None:
                self.report.unreadable_line(Unreadable(source, number, f"{record.chain[:64]} is no name of a chain"))
                return False
        if record.seq == chain.seq + 1:
            self._accept(chain, record, intact)
            if chain.held:
                self._release(chain)
        elif record.seq <= chain.seq:
            self._repeated(chain, record, intact)
        else:
            self._hold(chain, record, intact)
        return True

    def _beside(self, record: Record, intact: bool) -> bool:
        """Whether the record belongs to a former owner's tail, or to one of two owners of one term."""
        claim, rivals = self._claims.over(record), self._claims.rival(record)
        if claim is None and rivals is None:
            return False
        node = self._node(record)
        node.latest = max(node.latest, record.mono_ms)
        if record.policy_digest not in node.announced:
            node.uses(record)
        self.report.events += 1
        if rivals is not None:
            self._tails.rival(record, rivals)
        elif claim is not None:
            self._tails.take(record, claim, intact=intact)
        return True

    def unreadable(self, what: Unreadable) -> None:
        """Something of the input could not be read."""
        self.report.unreadable_line(what)

    def _open(self, record: Record) -> Chain | None:
        name = record.chain
        kind, _, rest = name.partition(":")
        if kind not in KINDS or not rest:
            return None
        chain = Chain(name)
        for seq, digest in self._named.pop(name, ()):
            chain.vouch(seq, digest)
        chain.node = self._node(record)
        if kind != "n":
            chain.track = Track(rest, kind, chain.docket, self._checks)
            chain.track.node = chain.node
            chain.track.run = chain.node.run
        self._chains[name] = chain
        return chain

    def _after_the_end(self, ended: Ended, record: Record, intact: bool) -> None:
        """A record of a chain that has ended: a repeat is harmless, anything else is not."""
        chain = ended.revived(record.chain)
        failures = chain.docket.failures
        if record.seq > chain.seq:
            chain.docket.fail(Rule.IDENTITY, record.seq, "an event after the session ended", Property.ABSORBING)
        else:
            self._repeated(chain, record, intact)
        if chain.docket.failures > failures:
            self._revise(chain, ended)

    def _revise(self, chain: Chain, ended: Ended) -> None:
        self._closed[chain.name] = ended._replace(docket=chain.docket)
        self.report.revise(self._verdict(chain, _ENDED))

    def _node(self, record: Record) -> Node:
        key = (record.node_id, record.boot_id)
        node = self._nodes.get(key)
        if node is None:
            node = Node(*key)
            if len(self._nodes) < NODES_MAX:
                self._nodes[key] = node
        return node

    # --- order -------------------------------------------------------------------------------------------------------

    def _hold(self, chain: Chain, record: Record, intact: bool) -> None:
        before = len(chain.held)
        chain.hold(record, intact=intact)
        self._held += len(chain.held) - before
        if len(chain.held) > HELD_MAX:
            self._skip(chain)
        elif self._held > HELD_TOTAL_MAX:
            self._skip(max(self._chains.values(), key=lambda c: len(c.held)))

    def _skip(self, chain: Chain) -> None:
        """The missing records do not come: go on behind the gap."""
        chain.skip()
        if chain.track is not None:
            chain.track.lost()
        elif chain.node is not None:
            chain.node.losses += 1
        self._release(chain)

    def _release(self, chain: Chain) -> None:
        held = chain.held
        while held and (waiting := held.pop(chain.seq + 1, None)) is not None:
            self._held -= 1
            self._accept(chain, *waiting)

    def _repeated(self, chain: Chain, record: Record, intact: bool) -> None:
        same = chain.repeat(record, intact=intact)
        self.report.old_repeats += same is None
        self.report.repeats += same is True

    def _accept(self, chain: Chain, record: Record, intact: bool) -> None:
        """The record is next in its chain."""
        if chain.kind == "s":
            self._owned(chain, record)
        chain.extend(record, intact=intact)
        self.report.events += 1
        node = chain.node
        if node is None or node.boot != record.boot_id or node.name != record.node_id:
            node = chain.node = self._node(record)
        node.latest = max(node.latest, record.mono_ms)
        if record.policy_digest not in node.announced:
            node.uses(record)
        track = chain.track
        if track is None:
            self._in_node_chain(chain, node, record, intact)
            return
        if not intact:
            track.lost()
            return
        if record.session_uid != track.uid:
            track.fail(Rule.IDENTITY, record.seq, f"a record of session {record.session_uid} in the chain {chain.name}")
        track.node = node
        self._replay.take(track, record)
        if track.client is not None and not track.left:
            self._one_live_session(track, record)
        if self._observer is not None:
            self._observer.record(chain, record)
        if track.ended and not track.left:
            self._end(chain, _ENDED)

    def _owned(self, chain: Chain, record: Record) -> None:
        """Who owns the session with this record, which is about to extend its chain."""
        claim = self._claims.at(record)
        if claim is not None:
            self._tails.fork(chain, claim, chain.tenures[-1] if chain.tenures else None)
            if chain.track is not None:
                chain.track.claimant = claim.node
        self._tails.kept(record)
        follow(chain.tenures, record, chain.node)
        lost = self._tails.loss_before(record)
        if lost is not None:
            text = f"{record.node_id} acts under owner epoch {record.owner_epoch}, which it lost at {lost}"
            chain.docket.fail(Rule.EPOCH, record.seq, text, Property.SINGLE_BINDING)

    def _lost(self, record: Record) -> None:
        """A node says that it owns a session no more."""
        self._tails.lost(record, f"{record.chain}/{record.seq}")
        chain = self._chains.get(f"s:{record.session_uid}")
        for tenure in chain.tenures if chain is not None else ():
            if (tenure.term, tenure.node) == (record.owner_epoch, record.node_id) and record.data.code == "lease_lost":
                tenure.ended = "lease"

    def _in_node_chain(self, chain: Chain, node: Node, record: Record, intact: bool) -> None:
        if not intact:
            node.losses += 1
            return
        if not chain.name.startswith(f"n:{record.node_id}:"):
            chain.docket.fail(Rule.CHAIN, record.seq, f"a record of node {record.node_id} in the chain {chain.name}")
        self._lane.about_node(chain, node, record)
        if record.event == "audit.checkpoint":
            self._checkpoint(chain, node, record)
        if record.event == "ownership.lost":
            self._lost(record)
        elif record.event == "cluster.joined":
            self._tails.returned(record)
        if record.session_uid is not None:
            track = self._session_at(node, record.session_uid)
            if track is not None:
                self._lane.about_session(chain, node, track, record)
                if self._observer is not None:
                    self._observer.noted(track, record)
        if self._observer is not None:
            self._observer.record(chain, record)

    def _session_at(self, node: Node, uid: str) -> Track | None:
        kinds = ("c", "s") if node.role == "client" else ("s", "c")
        for kind in kinds:
            chain = self._chains.get(f"{kind}:{uid}")
            if chain is not None and chain.node is node:
                return chain.track
        return None

    # --- across chains -----------------------------------------------------------------------------------------------

    def _one_live_session(self, track: Track, record: Record) -> None:
        """One device, one live session at the gateways.

        The older ends at the first turn after the newer is durable, which is certain once the newer does something.
        """
        if track.role != "s":
            return
        if record.event == "session.created":
            track.client = f"{record.cluster_id}/{track.client}"
            other = self._live.get(track.client)
            if other is not None and other.clock == track.clock and (other.born or 0) > record.mono_ms:
                other.older = track  # told in another order than it happened
                return
            track.older = other
            self._live[track.client] = track
        elif track.older is not None:
            older = track.older
            if not track.ended and older.superseded_on in (None, track.clock):
                older.superseded, older.superseded_on = min(older.superseded, record.mono_ms), track.clock
            track.older = None
        self._checks[Rule.IDENTITY.number] += 1
        late = track.superseded_on == track.clock and record.mono_ms > track.superseded + self._tolerance
        if late and not track.ended:
            track.fail(Rule.IDENTITY, record.seq, "the session lives on although its device began a newer one")

    def _checkpoint(self, chain: Chain, node: Node, record: Record) -> None:
        try:
            heads = self._ring.verify(node.keys, record)
        except CheckpointFailed as fault:
            chain.docket.fail(Rule.CHAIN, record.seq, str(fault))
            return
        except CheckpointUnsure as doubt:
            chain.docket.miss(str(doubt), record.seq)
            return
        self._checks[1] += 1
        chain.vouch(record.seq, record.hash)
        for name, (seq, digest) in heads.items():
            self._vouch(name, seq, digest)

    def _vouch(self, name: str, seq: int, digest: str) -> None:
        if self._tails.has(name, seq, digest):
            return
        chain = self._chains.get(name)
        closed = self._closed.get(name)
        if chain is not None:
            chain.vouch(seq, digest)
        elif closed is not None:
            self._vouch_ended(closed.revived(name), closed, seq, digest)
        elif len(self._named) < NAMED_MAX:
            self._named.setdefault(name, []).append((seq, digest))

    def _vouch_ended(self, chain: Chain, ended: Ended, seq: int, digest: str) -> None:
        failures = chain.docket.failures
        chain.vouch(seq, digest)
        ended = self._closed[chain.name] = ended._replace(covered=chain.covered)
        if seq > chain.seq:
            text = f"a head vouches for record {seq}, behind the end of the session"
            chain.docket.fail(Rule.IDENTITY, chain.seq, text, Property.ABSORBING)
        if chain.docket.failures > failures:
            self._revise(chain, ended)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _end(self, chain: Chain, ending: Ending) -> None:
        """The chain is over: its verdict is given and all but a little of it forgotten."""
        track = chain.track
        assert track is not None
        if self._live.get(track.client or "") is track:
            del self._live[track.client or ""]
        if track.seen_version > track.version:
            text = f"the node lane names version {track.seen_version}, the last is {track.version}"
            track.fail(Rule.VERSION, chain.seq, text)
        beyond = min((*chain.held, *chain.expected), default=0)
        if beyond:
            text = f"record {beyond} comes after the end of the session"
            chain.docket.fail(Rule.IDENTITY, beyond, text, Property.ABSORBING)
        if track.undecided:
            chain.docket.miss(_UNDECIDED_AFTER_LOSS if chain.docket.failures or chain.docket.gaps else _UNDECIDED)
        self._pair(chain, track)
        self.report.owned(chain.tenures)
        self.report.add(self._verdict(chain, ending))
        self._closed[chain.name] = Ended.of(chain, track.epoch or 0)
        self._held -= len(chain.held)
        chain.held.clear()
        del self._chains[chain.name]
        if len(self._closed) > CLOSED_MAX:
            name, ended = self._closed.popitem(last=False)
            self._doubt(name, ended)

    def _doubt(self, name: str, ended: Ended) -> None:
        """No checkpoint can come any more that vouches for this ended session."""
        if not self._ring.anchors or ended.covered >= ended.seq:
            return
        chain = ended.revived(name)
        if chain.docket.failures:  # worse is known of it
            return
        doubt = doubt_of_ended(chain)
        if doubt:
            chain.docket.miss(doubt, min(ended.covered + 1, ended.seq), ended.seq)
            self.report.revise(self._verdict(chain, _ENDED))

    def _pair(self, chain: Chain, track: Track) -> None:
        """The client is never bound in an epoch that the gateways' whole record does not know."""
        epoch, whole = track.epoch or 0, not chain.docket.gaps
        if track.role == "c":
            other = self._closed.get(f"s:{track.uid}")
            if other is not None and other.whole and whole:
                self._same_epochs(chain, epoch, other.epoch)
            return
        other = self._closed.get(f"c:{track.uid}")
        if other is not None and other.whole and whole:
            client = other.revived(f"c:{track.uid}")
            if not self._same_epochs(client, other.epoch, epoch):
                self._revise(client, other)

    def _same_epochs(self, client: Chain, bound: int, known: int) -> bool:
        behind = self._tails.epoch(f"s:{client.name[2:]}")
        if behind is None:  # what the client was bound in may stand in a journal that is not here
            return True
        known = max(known, behind)
        self._checks[Rule.EPOCH.number] += 1
        if bound <= max(1, known):  # the first epoch is the handshake's, before the gateway hears of it
            return True
        text = f"the client was bound in epoch {bound}; the gateway's record ends in epoch {known}"
        client.docket.fail(Rule.EPOCH, client.seq, text)
        return False

    def finish(self) -> Report:
        """Everything was fed: the verdicts on what is still open."""
        while waiting := [chain for chain in self._chains.values() if chain.held]:
            for chain in waiting:
                self._skip(chain)
        for name, heads in self._named.items():
            text = "a checkpoint vouches for this chain, of which no record is here"
            self._missing(name, text, max(seq for seq, _ in heads))
        for key in sorted(self._ring.anchors - self._ring.used):
            self._missing(f"key {key[:16]}", "the key that was given verifies no checkpoint of this log")
        for name, ended in self._closed.items():
            self._doubt(name, ended)
        for chain in list(self._chains.values()):
            if chain.track is not None:
                self._finish_session(chain, chain.track)
        for verdict, unknown in self._tails.judged():
            self.report.behind(verdict, unknown)
        for chain in [c for c in self._chains.values() if c.kind == "n"]:
            self._finish_node(chain)
        self.report.finish(anchored=bool(self._ring.anchors))
        return self.report

    def _missing(self, name: str, text: str, last: int = 0) -> None:
        docket = Docket(name)
        docket.miss(text, min(1, last), last)
        self.report.add(Verdict(name, Outcome.INCOMPLETE, 0, "missing", gaps=tuple(docket.gaps)))

    def _finish_session(self, chain: Chain, track: Track) -> None:
        docket = chain.docket
        if track.left:
            docket.miss(
                f"the last commit shows {track.n - track.left} of {track.n} events",
                chain.seq + 1,
                chain.seq + track.left,
            )
        elif track.seen_version > track.version:
            docket.miss(f"the node lane names version {track.seen_version}, the chain ends at version {track.version}")
        if track.undecided:
            docket.miss(_UNDECIDED_AFTER_LOSS if docket.failures or docket.gaps else _UNDECIDED)
        self.report.owned(chain.tenures)
        self.report.add(self._verdict(chain, self._ending(chain)))

    def _finish_node(self, chain: Chain) -> None:
        node = chain.node
        if node is not None and node.last_run in (chain.name, ""):
            for digest, (name, seq, mono) in node.unannounced.items():
                text = f"{name}/{seq} works under policy {digest[:16]}, which the node never announced"
                later = chain.last_mono > mono  # so no cut can hold the announcement
                if node.run and later and not node.losses and not self.report.unreadable_count:
                    chain.docket.fail(Rule.POLICY, chain.seq, text)
                else:
                    chain.docket.miss(text)
        self.report.add(self._verdict(chain, self._ending(chain)))

    def _ending(self, chain: Chain) -> Ending:
        return ending_of(chain, anchored=bool(self._ring.anchors))

    def _verdict(self, chain: Chain, ending: Ending) -> Verdict:
        docket, track = chain.docket, chain.track
        if ending.doubt:
            docket.miss(ending.doubt, chain.seq)
        if ending.note:
            docket.note(ending.note)
        return Verdict(
            chain.name, docket.outcome, chain.records, ending.word, tuple(docket.findings), tuple(docket.gaps),
            tuple(docket.notes), docket.failures, track.state if track is not None else None,
            track.version if track is not None else 0, track.reason if track is not None else None,
            tuple(chain.tenures) if len(chain.tenures) > 1 else (),
        )  # fmt: skip
