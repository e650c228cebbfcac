"""The node lane: runs, announcements, denials and attempts, each held against the session that it names."""

from __future__ import annotations

import itertools

from jumpvpn.audit.auditor import clocks, effects, nodes
from jumpvpn.audit.auditor.chains import Chain
from jumpvpn.audit.auditor.checkpoints import KeyRing
from jumpvpn.audit.auditor.nodes import Node
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.rules import Rule
from jumpvpn.audit.auditor.table import Table
from jumpvpn.audit.auditor.track import DENIED_MAX, RULES, Track

_PROVEN_STEP = 7  # a nonce counts as used once the proof was verified: checks from here on come after it
_ATTEMPT, _FAILED, _RESULT = "reattach.attempt", "transport.switch_failed", "reattach.result"
_DENIED = "transport.switch_denied"
_TROUBLE = frozenset(
    {"ownership.store_unavailable", "ownership.rejected", "audit.journal_failed", "cluster.store", "ownership.lost"}
)


class NodeLane:
    """Judges records of node chains. ``rows`` and ``reasons`` count what was used."""

    def __init__(
        self, table: Table, ring: KeyRing, checks: list[int], rows: dict[str, int], reasons: dict[str, int],
        tolerance_ms: int,
    ) -> None:  # fmt: skip
        assert len(checks) == RULES
        self._ring = ring
        self._starts = itertools.count(1)
        self._table = table
        self._checks = checks
        self._rows = rows
        self._reasons = reasons
        self._tolerance = tolerance_ms

    def about_node(self, chain: Chain, node: Node, record: Record) -> None:
        """A record about the node itself, or about nobody's session."""
        event = record.event
        if chain.closed:
            chain.docket.fail(Rule.CHAIN, record.seq, "an event after node.stopped")
        if event == "node.started":
            self._started(chain, node, record)
        elif event == "node.stopped":
            chain.closed = node.stopped = True
        elif event == "policy.applied":
            self._announced(chain, node, record)
        elif event == "cluster.joined":
            node.lease_ms = record.data.lease_ms
        elif event == "cluster.drain":
            node.draining = record.data.state == "on"
        if event in _TROUBLE:
            node.trouble = max(node.trouble, record.mono_ms)

    def about_session(self, chain: Chain, node: Node, track: Track, record: Record) -> None:
        """A record that names a session of this node."""
        version = record.state_version
        if record.owner_epoch <= track.owner:  # journals may be told in another order than their owners came
            track.seen_version = max(track.seen_version, version)
        row_id = record.data.row
        if row_id is not None:
            self._row(chain, track, row_id, record)
        if record.data.first_ms is not None:  # a summary: what it counts happened earlier
            return
        if version == track.version:
            clocks.turned(track, record, self._tolerance)
        if version == track.version and track.synced and record.state not in (None, track.state):
            self._checks[2] += 1
            text = f"the node lane says {record.state} at version {version}, the session is in {track.state}"
            chain.docket.fail(Rule.REPLAY, record.seq, text)
        event = record.event
        if event == _RESULT:
            self._denial(chain, track, record)
        elif event == _ATTEMPT:
            self._attempt(chain, node, track, record)
        elif event == _FAILED:
            track.attempt_open = False
        elif event == _DENIED and version == track.version and not track.left:
            effects.rate_denied(track, record, chain.docket)

    def _started(self, chain: Chain, node: Node, record: Record) -> None:
        node.run = next(self._starts)
        node.last_run = chain.name
        node.stopped = False
        node.starts.append(record.mono_ms)
        node.role = record.data.role or node.role
        node.keys = self._ring.start(node.name, record.data.audit_key)
        node.announces(record.policy_digest, None)

    def _announced(self, chain: Chain, node: Node, record: Record) -> None:
        self._checks[13] += 1
        bounds, fault = nodes.body_of(record)
        if fault is not None:
            chain.docket.fail(Rule.POLICY, record.seq, fault)
        if record.data.digest is not None:
            node.announces(record.data.digest, bounds)

    def _row(self, chain: Chain, track: Track, row_id: str, record: Record) -> None:
        row = self._table.rows.get(row_id)
        self._checks[2] += 1
        if row is None:
            chain.docket.fail(Rule.REPLAY, record.seq, f"{record.event} names row {row_id}, which the table has not")
            return
        if not row.mutates:
            self._rows[row_id] = self._rows.get(row_id, 0) + 1
            reason = record.reason
            if reason is not None:
                self._reasons[reason] = self._reasons.get(reason, 0) + 1
                if reason not in row.reasons:
                    chain.docket.fail(Rule.REPLAY, record.seq, f"{reason} is no reason of row {row_id}")
            if record.state is not None and record.state not in row.states:
                chain.docket.fail(Rule.REPLAY, record.seq, f"row {row_id} does not apply in {record.state}")

    def _denial(self, chain: Chain, track: Track, record: Record) -> None:
        data = record.data
        if data.status == "SUCCESS":
            chain.docket.fail(Rule.DENIAL, record.seq, "a reattach succeeded without a mutation")
            return
        self._checks[7] += 1
        if data.nonce_id and isinstance(data.step, int) and data.step >= _PROVEN_STEP:
            if len(track.denied) >= DENIED_MAX:
                del track.denied[next(iter(track.denied))]
            track.denied.setdefault(data.nonce_id, record.state_version)
        if record.state_version == track.version and not track.left and track.role == "s":
            effects.rate_denied(track, record, chain.docket)

    def _attempt(self, chain: Chain, node: Node, track: Track, record: Record) -> None:
        """A second attempt in one stay needs the first one's end; a gap in the node's chain may have held it."""
        row = self._table.rows.get(record.data.row or "")
        if row is None or row.event != "AttemptStarted":
            return
        self._checks[14] += 1
        same_stay = track.attempt_open and track.attempt_version == record.state_version
        if same_stay and track.attempt_losses == node.losses:
            chain.docket.fail(Rule.PAIRING, record.seq, "an attempt begins while another of the same stay has no end")
        track.attempt_open = True
        track.attempt_version = record.state_version
        track.attempt_losses = node.losses
