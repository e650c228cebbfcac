"""What a campaign says: for people, for machines, and as the coverage table's source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jumpvpn.session.reasons import Reason
from jumpvpn.session.transitions import AFTER_TERMINATION, NOT_LISTED, TABLE
from jumpvpn.sim.campaign import Tally
from jumpvpn.sim.played import Played
from jumpvpn.values import HOUR

ENDS_SHOWN = 12
COMMAND = "python -m jumpvpn.sim"
ROW_IDS = tuple(row.id for row in (*TABLE, AFTER_TERMINATION, NOT_LISTED))


def text(tally: Tally) -> Iterator[str]:
    """Lines for people."""
    yield extent(tally, "turns")
    yield "themes: " + counts(tally.themes)
    yield from _ends(tally)
    if tally.recoveries:
        yield f"{settled(tally)}, {max(tally.recoveries):g} s at most"
    for words, count in sorted(tally.notes.items()):
        yield f"{words}: {count}"
    rows = [row for row in ROW_IDS if not tally.rows[row]]
    reasons = [reason.value for reason in Reason if not tally.reasons[reason.value]]
    yield f"rows reached: {len(ROW_IDS) - len(rows)} of {len(ROW_IDS)}; no seed reached {' '.join(rows) or 'none'}"
    yield f"reasons given: {len(Reason) - len(reasons)} of {len(Reason)}; never {' '.join(reasons) or 'none'}"
    yield "checks: " + counts(tally.checks)
    yield from failures(tally, COMMAND)


def summary(tally: Tally) -> dict[str, Any]:
    """Figures for machines: the same for the same seeds, whatever the machine."""
    return {
        "seeds": tally.seeds,
        "virtual_s": tally.virtual_ns // 1_000_000_000,
        "turns": tally.steps,
        "rows": {row: tally.rows[row] for row in ROW_IDS},
        "rows_not_reached": [row for row in ROW_IDS if not tally.rows[row]],
        "reasons": {reason.value: tally.reasons[reason.value] for reason in Reason},
        "properties": dict(sorted(tally.checks.items())),
        "ends": {f"client {c}, gateway {g}": count for (c, g), count in sorted(tally.ends.items())},
        "notes": dict(sorted(tally.notes.items())),
        "failed": [of_failure(outcome, COMMAND) for outcome in tally.failed],
    }


def extent(tally: Tally, steps: str) -> str:
    """How much was played; ``steps`` is what they are called."""
    hours = tally.virtual_ns / HOUR
    return f"{tally.seeds} seeds, {hours:.1f} virtual hours, {tally.steps} {steps}, {tally.checks.total()} checks"


def settled(tally: Tally) -> str:
    """How long it took from the heal until all was well, or over; for some seeds at least this has to be known."""
    ordered = sorted(tally.recoveries)
    middle, late = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"settled after the heal: {middle:g} s in the middle, {late:g} s for 99 of 100"


def failures(tally: Tally, command: str) -> Iterator[str]:
    """The failing seeds one by one, and how many they are."""
    for outcome in tally.failed:
        yield from failure(outcome, command)
    yield f"{len(tally.failed)} of {tally.seeds} seeds failed"


def failure(outcome: Played, command: str) -> Iterator[str]:
    """One failing seed: what broke, what led to it, how ``command`` shows it again."""
    broken = outcome.failure
    assert broken is not None, "only failures are told here"
    yield ""
    yield f"FAILED {broken.prop}: expected {broken.expected}"
    yield f"       {broken.seen}"
    yield from outcome.transcript
    yield f"again: {command} --seed {outcome.seed}"


def of_failure(outcome: Played, command: str) -> dict[str, Any]:
    """One failing seed for machines."""
    broken = outcome.failure
    assert broken is not None, "only failures are told here"
    return {
        "seed": outcome.seed,
        "property": broken.prop,
        "expected": broken.expected,
        "seen": broken.seen,
        "command": f"{command} --seed {outcome.seed}",
    }


def counts(counted: dict[str, int]) -> str:
    """Names with their counts, by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))


def dumps(body: dict[str, Any]) -> str:
    """JSON as it is printed and written."""
    return json.dumps(body, indent=2) + "\n"


def _ends(tally: Tally) -> Iterator[str]:
    yield "ends (client, gateway):"
    ranked = sorted(tally.ends.items(), key=lambda item: (-item[1], item[0]))
    for (client, gateway), count in ranked[:ENDS_SHOWN]:
        yield f"  {count:6d}  {client}, {gateway}"
    rest = sum(count for _, count in ranked[ENDS_SHOWN:])
    if rest:
        yield f"  {rest:6d}  in {len(ranked) - ENDS_SHOWN} other ways"
