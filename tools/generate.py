"""Writes the documents that are told by the code: the transition table and the reasons. ``--check`` only compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jumpvpn.session.reasons import MEANINGS, Reason
from jumpvpn.session.transitions import OF_EVENT, TABLE, Row

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by tools/generate.py from the code; `make check` compares. -->\n\n"
SEVERITIES = {1: "informational", 2: "low", 3: "medium", 4: "high", 5: "critical"}


def transitions() -> str:
    """The transition table as Markdown."""
    lines = [
        "# Transitions\n",
        "Every row of `session/transitions.py`. A row without a next state keeps the state; `quiet` rows change",
        "nothing durable. For each state, event and facts exactly one row is enabled; any other pair is row 35",
        "(`invalid_event`), and after TERMINATED row 34 (`event_after_termination`).\n",
        "| row | states | event | guard | next | reason | further events |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return NOTE + "\n".join(lines + [_row(row) for row in TABLE]) + "\n"


def _row(row: Row) -> str:
    states = ", ".join(state.value for state in row.states)
    guard = "" if row.guard.__name__ == "always" else row.guard.__name__.replace("_", " ")
    following = row.next.value if row.next is not None else ("*same*" if row.mutates else "*quiet*")
    following += ", then the same event again" if row.again else ""
    reason = row.reason.value if isinstance(row.reason, Reason) else (row.reason or "")
    shown = reason if reason in ("", OF_EVENT) else f"`{reason}`"
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


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/reference/transitions.md": transitions,
    "docs/reference/reasons.md": reasons,
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
