"""Replay of one session's chain through the exported table: commits, rows, versions (A-2, A-3, A-7, A-10, A-11)."""

from __future__ import annotations

from jumpvpn.audit.auditor import clocks, effects
from jumpvpn.audit.auditor.records import Record
from jumpvpn.audit.auditor.rules import Rule
from jumpvpn.audit.auditor.table import CHANGE, UNKNOWN_INPUT, Row, Table, unknown_row
from jumpvpn.audit.auditor.track import Track
from jumpvpn.properties import Property

_DEATH = "TransportDied"
_REFUSAL = "ReattachRefused"
_OWNER_CHANGED = "OwnerChanged"


class Replay:
    """Takes the records of all sessions, each in its chain's order. ``rows`` and ``reasons`` count what was used."""

    def __init__(self, table: Table, checks: list[int], tolerance_ms: int) -> None:
        self.table = table
        self.checks = checks
        self.tolerance = tolerance_ms
        self.rows: dict[str, int] = {}
        self.reasons: dict[str, int] = {}

    def take(self, track: Track, record: Record) -> None:
        """Judge one state-lane record."""
        if not track.synced and not self._resync(track, record):
            return
        self._frame(track, record)
        data = record.data
        row = track.row
        if row is not None and data.row == row.id and record.state_version == track.version:
            self._continue_row(track, row, record)
        else:
            self._open_row(track, record)
        effect = effects.ON.get(record.event)
        if effect is not None:
            effect(track, record)
        if not track.left:
            self._end_commit(track, record)

    # --- commits -----------------------------------------------------------------------------------------------------

    def _frame(self, track: Track, record: Record) -> None:
        """Records 1 to n of a commit follow each other; a new commit begins when the one before is complete."""
        if record.idx == 1:
            if track.left:
                track.fail(Rule.REPLAY, record.seq, f"a commit ends after {track.n - track.left} of {track.n} events")
                self._close_row(track, record)
            self._begin_commit(track, record)
            return
        if not track.left or record.n != track.n or record.idx != track.n - track.left + 1:
            track.fail(Rule.REPLAY, record.seq, f"event {record.idx} of {record.n} is out of place in its commit")
            track.n = record.n
            track.left = max(0, record.n - record.idx)
            return
        track.left -= 1

    def _begin_commit(self, track: Track, record: Record) -> None:
        track.n = record.n
        track.left = record.n - 1
        track.row = track.again = None
        if track.ended:
            track.docket.fail(Rule.IDENTITY, record.seq, "an event after the session ended", Property.ABSORBING)
        if not track.created and track.version == 0 and record.event != "session.created":
            track.fail(Rule.IDENTITY, record.seq, "the session's chain does not begin with session.created")
            track.created = True
        clocks.begin(track, record, self.tolerance)

    def _end_commit(self, track: Track, record: Record) -> None:
        self._close_row(track, record)
        if track.again is not None:
            row = track.again
            track.fail(Rule.REPLAY, record.seq, f"row {row.id} feeds {row.event} again, but the commit ends")
        track.row = track.again = None
        clocks.end(track, record)

    def _resync(self, track: Track, record: Record) -> bool:
        """After a loss: go on at the next commit, from what its first record claims."""
        if record.idx != 1:
            return False
        track.synced = True
        track.created = True
        track.version = record.state_version - 1
        track.state = (record.prev_state if record.event == CHANGE else record.state) or track.state
        if record.owner_epoch != track.owner or not track.owner_node:
            track.owner_node, track.owned_at = record.node_id, record.seq
        track.owner = record.owner_epoch
        track.row = track.again = None
        track.left = 0
        if track.state == "BIRTH":
            track.bound = False
        return True

    # --- rows --------------------------------------------------------------------------------------------------------

    def _continue_row(self, track: Track, row: Row, record: Record) -> None:
        expected = row.expected
        if row.event == UNKNOWN_INPUT:
            pass  # it was reported when the row began
        elif track.pos < len(expected) and expected[track.pos] == record.event:
            track.pos += 1
        elif record.event in expected[track.pos :]:
            place = expected.index(record.event, track.pos)
            track.fail(Rule.REPLAY, record.seq, f"row {row.id} lacks {', '.join(expected[track.pos : place])}")
            track.pos = place + 1
        else:
            track.fail(Rule.REPLAY, record.seq, f"row {row.id} has no further event {record.event}")
        if record.state != track.state or record.prev_state != track.state:
            track.fail(Rule.REPLAY, record.seq, f"the event says {record.state}, the session is in {track.state}")

    def _open_row(self, track: Track, record: Record) -> None:
        self._close_row(track, record)
        checks = self.checks
        checks[2] += 1
        checks[3] += 1
        row = self.table.rows.get(record.data.row or "")
        track.jumped_from = None
        if record.state_version != track.version + 1:
            self._wrong_version(track, row, record)
        track.version = record.state_version
        if row is None:
            track.fail(Rule.REPLAY, record.seq, f"{record.event} names no row of the table ({record.data.row})")
            row = unknown_row(record.data.row)
        else:
            self.rows[row.id] = self.rows.get(row.id, 0) + 1
            self._legal(track, row, record)
        track.row = row
        track.was_bound = track.bound
        track.proof = track.rebinds = track.reattached = False
        track.entering = None
        if record.owner_epoch != track.owner:
            effects.owner(track, record)
        effects.writer(track, record)
        before, after = track.state, record.state or track.state
        if record.event == CHANGE:
            self._moved(track, row, record, before, after)
        elif after != before and record.event != "session.created":
            track.fail(Rule.REPLAY, record.seq, f"the state is {after} after {before}, without session.state_change")
        track.state = after

    def _moved(self, track: Track, row: Row, record: Record, before: str, after: str) -> None:
        reason = record.reason
        if reason is not None:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            track.reason = reason
        if record.prev_state != before:
            track.fail(Rule.REPLAY, record.seq, f"the change is from {record.prev_state}, the session was in {before}")
        if (before, after) not in self.table.edges:
            track.fail(Rule.REPLAY, record.seq, f"there is no edge {before} > {after}")
        if record.contributing:
            self._ranked(track, row, record)
        if after == "ATTACHED":
            track.entering = before
        clocks.moved(track, record, before, after, self.table.deadline_of)

    def _legal(self, track: Track, row: Row, record: Record) -> None:
        """The row exists for the state, leads where the event says, for one of its reasons, and changes the record."""
        fault = None
        if not row.mutates:
            self._quiet_row(track, row, record)
        elif track.state not in row.states:
            fault = f"row {row.id} does not apply in {track.state}"
        elif record.state != (row.next or track.state):
            fault = f"row {row.id} leads to {row.next or track.state}, not to {record.state}"
        elif record.reason not in row.reasons:
            fault = f"{record.reason} is no reason of row {row.id}"
        if fault is not None:
            track.fail(Rule.REPLAY, record.seq, fault)
        track.pos = 1
        if row.expected[:1] != (record.event,) and row.mutates:
            self._late_start(track, row, record)
        self._sequence(track, row, record)

    def _late_start(self, track: Track, row: Row, record: Record) -> None:
        place = row.expected.index(record.event) if record.event in row.expected else len(row.expected)
        missing = ", ".join(row.expected[:place])
        track.fail(Rule.REPLAY, record.seq, f"row {row.id} begins with {record.event}; missing: {missing}")
        track.pos = place + 1

    def _quiet_row(self, track: Track, row: Row, record: Record) -> None:
        """A row that may change nothing stands in the state lane."""
        if row.event == _REFUSAL or record.data.status == "DENIED":
            track.fail(Rule.DENIAL, record.seq, f"a denial (row {row.id}) changed the record")
        else:
            track.fail(Rule.VERSION, record.seq, f"row {row.id} may change nothing, yet it is a mutation")

    def _sequence(self, track: Track, row: Row, record: Record) -> None:
        """What may come in one commit: the same input again, what a passed deadline leaves, no end by death alone."""
        if track.again is not None and row.event != track.again.event:
            track.fail(
                Rule.REPLAY, record.seq,
                f"row {track.again.id} feeds {track.again.event} again, but row {row.id} ({row.event}) follows",
            )  # fmt: skip
        track.again = row if row.again else None
        if track.overdue:
            clocks.first_row(track, record, row.event, self.table.rank)
        if row.event == _DEATH:
            self.checks[10] += 1
            if record.state == "TERMINATED":
                track.fail(Rule.LIVENESS, record.seq, "the death of a transport alone ended the session")

    def _close_row(self, track: Track, record: Record) -> None:
        row = track.row
        if row is None:
            return
        if track.pos < len(row.expected):
            missing = ", ".join(row.expected[track.pos :])
            track.fail(Rule.REPLAY, record.seq, f"row {row.id} lacks {missing}")
        if track.jumped_from is not None:
            text = f"version {track.version} after {track.jumped_from}, and nothing says why"
            track.fail(Rule.VERSION, record.seq, text)
            track.jumped_from = None
        if track.state == "ATTACHED":
            effects.attached(track, record, self.checks)
        elif track.reattached:
            track.fail(Rule.PROOF, record.seq, "a reattach succeeded, but the session is not ATTACHED")
        track.row = None

    def _wrong_version(self, track: Track, row: Row | None, record: Record) -> None:
        found, wanted = record.state_version, track.version + 1
        if row is not None and row.event == _OWNER_CHANGED and found > wanted and track.role == "s":
            track.jumped_from = track.version  # ownership.acquired has to say why
            return
        track.fail(Rule.VERSION, record.seq, f"version {found} where {wanted} was due")

    def _ranked(self, track: Track, row: Row, record: Record) -> None:
        """A contributing reason all of whose inputs outrank the row's input should have decided."""
        self.checks[11] += 1
        mine = self.table.rank.get(row.event)
        for other in record.contributing:
            best = self.table.lowest.get(other)
            if mine is not None and best is not None and best < mine:
                track.fail(Rule.PRIORITY, record.seq, f"{other} outranks {record.reason}, yet it is only contributing")
