"""The exported transition table: the only thing that the auditor knows of the machine, and it may be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

FORMAT = 1
TABLE_FILE = Path(__file__).resolve().parent.parent / "transitions.json"
TABLE_BYTES_MAX = 1 << 22  # a table has some dozens of rows
STATES = ("BIRTH", "ATTACHED", "VOLATILE", "RECOVERING", "DEGRADED", "TERMINATED")
_LIVE_EDGES = {
    ("BIRTH", "ATTACHED"), ("ATTACHED", "VOLATILE"), ("VOLATILE", "RECOVERING"), ("RECOVERING", "ATTACHED"),
    ("RECOVERING", "DEGRADED"), ("DEGRADED", "RECOVERING"),
}  # fmt: skip
CHANGE = "session.state_change"


class BadTable(ValueError):
    """The file is no transition table; the text says why."""


class _Emit(msgspec.Struct, frozen=True):
    event: str
    lane: str


class _Row(msgspec.Struct, frozen=True):
    id: str
    states: tuple[str, ...]
    event: str
    next: str | None
    reasons: tuple[str, ...]
    emits: tuple[_Emit, ...]
    again: bool
    mutates: bool


class _Rank(msgspec.Struct, frozen=True):
    event: str
    reasons: tuple[str, ...]


class _Deadline(msgspec.Struct, frozen=True):
    name: str
    policy: str
    reasons: tuple[str, ...]


class _File(msgspec.Struct, frozen=True):
    format: int
    states: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    rows: tuple[_Row, ...]
    priority: tuple[_Rank, ...]
    deadlines: tuple[_Deadline, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``expected``: its state-lane events in order; ``noted``: its node-lane events."""

    id: str
    states: frozenset[str]
    event: str
    next: str | None
    reasons: frozenset[str | None]
    expected: tuple[str, ...]
    noted: frozenset[str]
    again: bool
    mutates: bool


BIRTH_ROW = Row(
    "0", frozenset({"BIRTH"}), "Birth", None, frozenset({None}), ("session.created",), frozenset(), again=False,
    mutates=True,
)  # fmt: skip

UNKNOWN_INPUT = ""


def unknown_row(name: str | None) -> Row:
    """What stands for a row that the table has not, so that what follows can be judged."""
    nothing: frozenset[str] = frozenset()
    return Row(name or "", nothing, UNKNOWN_INPUT, None, frozenset(), (), nothing, again=False, mutates=True)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by id, legal edges, rank of every input, the lowest rank that each reason may have, deadlines by reason."""

    rows: dict[str, Row]
    edges: frozenset[tuple[str, str]]
    rank: dict[str, int]
    lowest: dict[str, int]
    deadline_of: dict[str, str]


def load_table(path: Path | None = None) -> Table:
    """The table in ``path``, or the one that this version was built with. Raises BadTable."""
    file = path or TABLE_FILE
    try:
        with file.open("rb") as stream:
            text = stream.read(TABLE_BYTES_MAX + 1)
    except OSError as error:
        raise BadTable(f"cannot read the table {file}: {error.strerror}") from None
    if len(text) > TABLE_BYTES_MAX:
        raise BadTable(f"{file} is too long to be a transition table")
    try:
        parsed = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadTable(f"{file} is no transition table: {error}") from None
    _check(parsed, file)
    return _table(parsed)


def _check(parsed: _File, file: Path) -> None:
    if parsed.format != FORMAT:
        raise BadTable(f"{file} has format {parsed.format}; this auditor reads {FORMAT}")
    if set(parsed.states) != set(STATES):
        raise BadTable(f"{file} names other states than {', '.join(STATES)}")
    legal = _LIVE_EDGES | {(state, "TERMINATED") for state in STATES[:-1]}
    wrong = sorted(set(parsed.edges) - legal)
    if wrong:
        raise BadTable(f"{file} has an edge that no session may take: {' > '.join(wrong[0])}")
    ids = [row.id for row in parsed.rows]
    if not ids or len(set(ids)) != len(ids):
        raise BadTable(f"{file} has no rows, or two with the same id")
    for row in parsed.rows:
        if not {*row.states, row.next or STATES[0]} <= set(STATES):
            raise BadTable(f"{file}: row {row.id} names an unknown state")
        moves = {(state, row.next) for state in row.states if row.next is not None}
        if not moves <= set(parsed.edges):
            raise BadTable(f"{file}: row {row.id} moves along no edge of the table")


def _table(parsed: _File) -> Table:
    rows = {row.id: _row(row) for row in parsed.rows} | {BIRTH_ROW.id: BIRTH_ROW}
    rank = {entry.event: index for index, entry in enumerate(parsed.priority)}
    lowest: dict[str, int] = {}
    for index, entry in enumerate(parsed.priority):
        lowest.update(dict.fromkeys(entry.reasons, index))
    deadline_of = {reason: entry.name for entry in parsed.deadlines for reason in entry.reasons}
    return Table(rows, frozenset(parsed.edges), rank, lowest, deadline_of)


def _row(row: _Row) -> Row:
    first = (CHANGE,) if row.next is not None else ()
    state_lane = tuple(emit.event for emit in row.emits if emit.lane == "S")
    noted = frozenset(emit.event for emit in row.emits if emit.lane == "N")
    return Row(
        row.id, frozenset(row.states), row.event, row.next, frozenset(row.reasons or (None,)), first + state_lane,
        noted, row.again, row.mutates,
    )  # fmt: skip
