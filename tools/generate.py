"""Writes what the code tells: the table of the session as documents, JSON and TLA+. ``--check`` only compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session.deadlines import CAUSE, POLICY_KEY, PRIORITY, cause_of, deadlines
from jumpvpn.session.emissions import announced
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import MEANINGS, Reason
from jumpvpn.session.state import Attempt, AttemptKind, Role, State
from jumpvpn.session.transitions import AFTER_TERMINATION, NOT_LISTED, TABLE, Row
from jumpvpn.values import Instant, SessionId, TransportId

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1  # of transitions.json; raised when a reader of the old form would misread it
NOTE = "<!-- Written by tools/generate.py from the code; `make check` compares. -->\n\n"
LABEL_REASONS = 5  # a label of more lines hides the picture
SEVERITIES = {1: "informational", 2: "low", 3: "medium", 4: "high", 5: "critical"}


def edges() -> list[tuple[State, State]]:
    """Every change of state in the table, in the order of the states."""
    found = {(state, row.next) for row in TABLE if row.next is not None for state in row.states}
    order = list(State)
    return sorted(found, key=lambda edge: (order.index(edge[0]), order.index(edge[1])))


# --- Markdown --------------------------------------------------------------------------------------------------------


def transitions() -> str:
    """The transition table as a picture (Mermaid) and as Markdown."""
    lines = [
        "# Transitions\n",
        "Every edge carries the first reasons that lead along it (the rows below have all of them); any live state may",
        "also end.\n",
        *_diagram(),
        "",
        "Every row of `session/transitions.py`. A row without a next state keeps the state; `quiet` rows change",
        "nothing durable. For each state, event and facts exactly one row is enabled; any other pair is row 35",
        "(`invalid_event`), and after TERMINATED row 34 (`event_after_termination`).\n",
        "| row | states | event | guard | next | reason | further events |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return NOTE + "\n".join(lines + [_row(row) for row in TABLE]) + "\n"


def _diagram() -> list[str]:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> BIRTH"]
    ends: list[Reason] = []
    for before, after in edges():
        rows = [row for row in TABLE if before in row.states and row.next is after]
        reasons = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
        if after is State.TERMINATED:
            ends += [reason for reason in reasons if reason not in ends]
            lines.append(f"    {before.value} --> TERMINATED")
        else:
            more = len(reasons) - LABEL_REASONS
            label = [reason.value for reason in reasons[:LABEL_REASONS]] + ([f"and {more} more"] if more > 0 else [])
            lines.append(f"    {before.value} --> {after.value}: {'<br/>'.join(label)}")
    lines += ["    TERMINATED --> [*]", "    note right of TERMINATED"]
    lines += [f"        {reason.value}" for reason in ends]
    return [*lines, "    end note", "```"]


def _row(row: Row) -> str:
    states = ", ".join(state.value for state in row.states)
    guard = "" if row.guard.__name__ == "always" else row.guard.__name__.replace("_", " ")
    following = row.next.value if row.next is not None else ("*same*" if row.mutates else "*quiet*")
    following += ", then the same event again" if row.again else ""
    shown = " ".join(f"`{reason.value}`" for reason in row.reasons)
    events = ", ".join(f"`{name}`" for name in row.emits)
    return f"| {row.id} | {states} | {row.event.__name__} | {guard} | {following} | {shown} | {events} |"


def reasons() -> str:
    """The registry of reasons as Markdown."""
    lines = [
        "# Reasons\n",
        "Stable codes; the number is the one on the wire (reattach reply).\n",
        "| number | reason | severity | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for reason in Reason:
        meaning = MEANINGS[reason]
        lines.append(f"| {reason.code} | `{reason.value}` | {SEVERITIES[meaning.severity]} | {meaning.text} |")
    return NOTE + "\n".join(lines) + "\n"


# --- JSON ------------------------------------------------------------------------------------------------------------


def exported() -> str:
    """The table for readers that do not share our code (the auditor, other tools), as JSON."""
    causes = _deadline_causes()
    table = {
        "format": FORMAT,
        "states": [state.value for state in State],
        "edges": [[before.value, after.value] for before, after in edges()],
        "rows": [_row_of(row) for row in (*TABLE, AFTER_TERMINATION, NOT_LISTED)],
        "priority": [{"event": event.__name__, "reasons": _values(_reasons_of(event))} for event in PRIORITY],
        "deadlines": [
            {"name": name, "policy": key, "reasons": _values(causes[name])} for name, key in POLICY_KEY.items()
        ],
        "reasons": [
            {"reason": reason.value, "code": reason.code, "severity": meaning.severity, "meaning": meaning.text}
            for reason, meaning in MEANINGS.items()
        ],
    }
    lists = {name: value for name, value in table.items() if isinstance(value, list) and name != "states"}
    plain = {name: value for name, value in table.items() if name not in lists}
    parts = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items()]
    for name, items in lists.items():  # one item per line: a change of the table reads as a change of lines
        parts.append(f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(item)}" for item in items) + "\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _row_of(row: Row) -> dict[str, Any]:
    emits = [announced(name, mutates=row.mutates) for name in row.emits]
    return {
        "id": row.id,
        "states": [state.value for state in row.states],
        "event": "*" if row.event is object else row.event.__name__,
        "guard": row.guard.__name__,
        "next": row.next.value if row.next is not None else None,
        "reasons": _values(row.reasons),
        "emits": [{"event": name, "lane": lane} for name, lane in emits],
        "again": row.again,
        "mutates": row.mutates,
    }


def _reasons_of(event: type) -> list[Reason]:
    """What an event can give as its cause: its own reason where it has one, else the fixed one."""
    own = [reason for row in TABLE if row.event is event and isinstance(row.reason, tuple) for reason in row.reasons]
    return list(dict.fromkeys(own or ([CAUSE[event]] if event in CAUSE else [])))


def _deadline_causes() -> dict[str, tuple[Reason, ...]]:
    """The reason that each deadline gives, asked of sessions for which all of them run; a warning gives none."""
    at, transport = Instant(0), TransportId("")
    born = birth(SessionId(bytes(16)), Role.CLIENT, Policy(), at, "").session
    unbound = replace(born, transportless_at=at, episode_at=at, attempt=Attempt(AttemptKind.SWITCH, transport, at, at))
    running = [d for state in State for d in deadlines(replace(unbound, state=state))]
    causes = {deadline.name: cause_of(deadline.event) for deadline in running}
    return {name: () if cause is None else (cause,) for name, cause in causes.items()}


def _values(found: Iterable[Reason]) -> list[str]:
    return [reason.value for reason in found]


# --- TLA+ ------------------------------------------------------------------------------------------------------------


def tla() -> str:
    """The table as a TLA+ module: what ``Session.tla`` and the trace checker are built on."""
    rows = ",\n".join(_tla_row(row) for row in TABLE)
    pairs = ", ".join(f"<<{_quoted(before.value)}, {_quoted(after.value)}>>" for before, after in edges())
    order = ", ".join(_quoted(event.__name__) for event in PRIORITY)
    return (
        "---- MODULE SessionTable ----\n"
        "\\* Written by tools/generate.py from src/jumpvpn/session/transitions.py; `make check` compares.\n"
        f"States == {_set(state.value for state in State)}\n"
        f"Edges == {{{pairs}}}\n"
        '\\* next = "" keeps the state; mutates raises the version; again feeds the event to the next state at once.\n'
        f"Rows == {{\n{rows}\n}}\n"
        f"Priority == <<{order}>>\n"
        "====\n"
    )


def _tla_row(row: Row) -> str:
    emits = _set(name for name, lane in (announced(name, mutates=row.mutates) for name in row.emits) if lane == "S")
    fields = {
        "id": _quoted(row.id),
        "from": _set(state.value for state in row.states),
        "event": _quoted(row.event.__name__),
        "guard": _quoted(row.guard.__name__),
        "next": _quoted(row.next.value if row.next is not None else ""),
        "reasons": _set(_values(row.reasons)),
        "emits": emits,
        "again": str(row.again).upper(),
        "mutates": str(row.mutates).upper(),
    }
    return "  [" + ", ".join(f"{name} |-> {value}" for name, value in fields.items()) + "]"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _set(texts: Iterable[str]) -> str:
    return "{" + ", ".join(_quoted(text) for text in texts) + "}"


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/reference/transitions.md": transitions,
    "docs/reference/reasons.md": reasons,
    "spec/generated/transitions.json": exported,
    "src/jumpvpn/audit/transitions.json": exported,  # a link to the one above: the auditor's copy in the package
    "spec/tla/generated/SessionTable.tla": tla,
}


def main() -> int:
    """Write or compare all documents; 1 if a comparison failed."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, tell in DOCUMENTS.items():
        path = ROOT / name
        text = tell()
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        sys.stderr.write(f"{name} is not what the code says; run: .venv/bin/python tools/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
