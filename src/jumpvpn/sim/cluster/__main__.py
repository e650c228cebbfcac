"""``python -m jumpvpn.sim.cluster``: play seeds, report, exit 0 (all promises held), 1 (a seed failed), 2 (misused)."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jumpvpn.leaving import quietly
from jumpvpn.sim import command
from jumpvpn.sim.cluster import report
from jumpvpn.sim.cluster.mutants import MUTANTS, SEEDS, Found, hunt
from jumpvpn.sim.cluster.run import play
from jumpvpn.sim.judge import journal_judge
from jumpvpn.sim.report import dumps

EPILOG = """A seed decides everything: equal seeds give equal transcripts. Exit codes: 0 every promise held (with
--mutants: every defect was found), 1 a seed failed (its transcript and the command to see it again are printed) or a
defect was not found, 2 wrong use."""

SIMULATION = command.Simulation(
    "jumpvpn sim cluster", report.COMMAND, 500, play, report.text, report.summary, command.held
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, play, print."""
    parser = command.parser(
        SIMULATION,
        "A cluster's shell and engines as shipped, in virtual time; store and network break and heal.",
        EPILOG,
    )
    parser.add_argument("--trace", action="store_true", help="with --seed: print its transcript in any case")
    parser.add_argument(
        "--mutants", action="store_true", help=f"build defects in, one at a time, until each is found (seeds: {SEEDS})"
    )
    return command.run(SIMULATION, parser, arguments, _act)


def _act(options: argparse.Namespace) -> int:
    if options.mutants and (options.seed is not None or options.journal is not None or options.first):
        raise command.Misused("argument --mutants: goes with --seeds, --json and --output only")
    if options.trace and options.seed is None:
        raise command.Misused("argument --trace: name the seed with --seed")
    if options.mutants:
        return _mutants(options)
    if options.seed is not None:
        return command.one(SIMULATION, options, tell=options.trace)
    return command.many(SIMULATION, options)


def _mutants(options: argparse.Namespace) -> int:
    seeds, progress = options.seeds if options.seeds is not None else SEEDS, command.Progress(SIMULATION.name)

    def tell(words: str) -> None:
        progress(lambda spent: f"{words}, {spent:.0f} s")

    found = [hunt(name, journal_judge, seeds, tell) for name in MUTANTS]
    body = {"mutants": [_of(result) for result in found]}
    if options.json:
        sys.stdout.write(dumps(body))
    else:
        command.say("\n".join(_words(result) for result in found))
    command.write(options.output, body)
    return 0 if all(result.outcome is not None for result in found) else 1


def _of(found: Found) -> dict[str, Any]:
    broken = found.outcome.failure if found.outcome is not None else None
    seen = {"property": broken.prop, "expected": broken.expected, "seen": broken.seen} if broken is not None else None
    return {"mutant": found.name, "seeds": found.seeds, "found": seen}


def _words(found: Found) -> str:
    if found.outcome is None or found.outcome.failure is None:
        return f"NOT FOUND in {found.seeds} seeds: {found.name}"
    broken = found.outcome.failure
    shown = f"{broken.prop}: expected {broken.expected}; {broken.seen}"
    return f"found by seed {found.outcome.seed}: {found.name}\n    {shown}"


if __name__ == "__main__":
    sys.exit(quietly(SIMULATION.name, main))
