"""What a campaign of clusters says: for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jumpvpn.sim.campaign import Tally
from jumpvpn.sim.report import counts, extent, failures, of_failure, settled

COMMAND = "python -m jumpvpn.sim.cluster"


def text(tally: Tally) -> Iterator[str]:
    """Lines for people."""
    yield extent(tally, "steps")
    yield "themes: " + counts(tally.themes)
    yield "clients at the end: " + counts(_ends(tally))
    if tally.recoveries:
        yield settled(tally)
    yield "notes (samples with more than one gateway acting, seeds not audited): " + counts(tally.notes)
    yield "checks: " + counts(tally.checks)
    yield from failures(tally, COMMAND)


def summary(tally: Tally) -> dict[str, Any]:
    """Figures for machines: the same for the same seeds, whatever the machine."""
    return {
        "seeds": tally.seeds, "virtual_s": tally.virtual_ns // 1_000_000_000, "steps": tally.steps,
        "themes": dict(sorted(tally.themes.items())), "properties": dict(sorted(tally.checks.items())),
        "ends": dict(sorted(_ends(tally).items())), "notes": dict(sorted(tally.notes.items())),
        "failed": [of_failure(outcome, COMMAND) for outcome in tally.failed],
    }  # fmt: skip


def _ends(tally: Tally) -> Counter[str]:
    """How many clients ended in each state, whichever cluster they were in."""
    clients = Counter[str]()
    for ends, seeds in tally.ends.items():
        for state in ends:
            clients[state] += seeds
    return clients
