"""What a campaign says: for people, for machines, and as the coverage table's source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jumpvpn.session.reasons import Reason
from jumpvpn.session.transitions import AFTER_TERMINATION, NOT_LISTED, TABLE
from jumpvpn.sim.campaign import Total
from jumpvpn.sim.run import Outcome
from jumpvpn.values import HOUR

ENDS_SHOWN = 12
COMMAND = "python -m jumpvpn.sim --seed {seed}"
ROW_IDS = tuple(row.id for row in (*TABLE, AFTER_TERMINATION, NOT_LISTED))


def text(total: Total) -> Iterator[str]:
    """Lines for people."""
    hours = total.virtual_ns / HOUR
    yield f"{total.seeds} seeds, {hours:.1f} virtual hours, {total.turns} turns, {sum(total.checks.values())} checks"
    yield "themes: " + _counts(total.themes)
    yield from _ends(total)
    if total.recoveries:
        ordered = sorted(total.recoveries)
        middle, late = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        yield f"settled after the heal: {middle:g} s in the middle, {late:g} s for 99 of 100, {ordered[-1]:g} s at most"
    for words, count in sorted(total.notes.items()):
        yield f"{words}: {count}"
    rows = [row for row in ROW_IDS if not total.rows[row]]
    reasons = [reason.value for reason in Reason if not total.reasons[reason.value]]
    yield f"rows reached: {len(ROW_IDS) - len(rows)} of {len(ROW_IDS)}; no seed reached {' '.join(rows) or 'none'}"
    yield f"reasons given: {len(Reason) - len(reasons)} of {len(Reason)}; never {' '.join(reasons) or 'none'}"
    yield "checks: " + _counts(total.checks)
    for outcome in total.failed:
        yield from failure(outcome)
    yield f"{len(total.failed)} of {total.seeds} seeds failed"


def failure(outcome: Outcome) -> Iterator[str]:
    """One failing seed: what broke, what led to it, how to see it again."""
    broken = outcome.failure
    assert broken is not None, "only failures are told here"
    yield ""
    yield f"FAILED {broken.prop}: expected {broken.expected}"
    yield f"       {broken.seen}"
    yield from outcome.transcript
    yield f"again: {COMMAND.format(seed=outcome.seed)}"


def summary(total: Total) -> dict[str, Any]:
    """Figures for machines: the same for the same seeds, whatever the machine."""
    return {
        "seeds": total.seeds,
        "virtual_s": total.virtual_ns // 1_000_000_000,
        "turns": total.turns,
        "rows": {row: total.rows[row] for row in ROW_IDS},
        "rows_not_reached": [row for row in ROW_IDS if not total.rows[row]],
        "reasons": {reason.value: total.reasons[reason.value] for reason in Reason},
        "properties": dict(sorted(total.checks.items())),
        "ends": {f"client {c}, gateway {g}": count for (c, g), count in sorted(total.ends.items())},
        "notes": dict(sorted(total.notes.items())),
        "failed": [of_failure(outcome) for outcome in total.failed],
    }


def of_failure(outcome: Outcome) -> dict[str, Any]:
    """One failing seed for machines."""
    broken = outcome.failure
    assert broken is not None, "only failures are told here"
    return {
        "seed": outcome.seed,
        "property": broken.prop,
        "expected": broken.expected,
        "seen": broken.seen,
        "command": COMMAND.format(seed=outcome.seed),
    }


def dumps(body: dict[str, Any]) -> str:
    """JSON as it is printed and written."""
    return json.dumps(body, indent=2) + "\n"


def _ends(total: Total) -> Iterator[str]:
    yield "ends (client, gateway):"
    ranked = sorted(total.ends.items(), key=lambda item: (-item[1], item[0]))
    for (client, gateway), count in ranked[:ENDS_SHOWN]:
        yield f"  {count:6d}  {client}, {gateway}"
    rest = sum(count for _, count in ranked[ENDS_SHOWN:])
    if rest:
        yield f"  {rest:6d}  in {len(ranked) - ENDS_SHOWN} other ways"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
