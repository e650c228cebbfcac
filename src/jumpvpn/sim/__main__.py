"""``python -m jumpvpn.sim``: play seeds, report, exit 0 (all promises held), 1 (a seed failed) or 2 (wrong use)."""

from __future__ import annotations

import argparse
import sys

from jumpvpn.leaving import quietly
from jumpvpn.sim import command, report
from jumpvpn.sim.played import Played
from jumpvpn.sim.run import play

EPILOG = """A seed decides everything: equal seeds give equal transcripts. Exit codes: 0 every promise held (rows that
no seed reached are listed), 1 a seed failed (its transcript and the command to see it again are printed), 2 wrong
use."""


def _closing(outcome: Played) -> str:
    return f"{command.held(outcome)}, ends {', '.join(outcome.ends)}"


SIMULATION = command.Simulation("jumpvpn sim", report.COMMAND, 2000, play, report.text, report.summary, _closing)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, play, print."""
    parser = command.parser(
        SIMULATION, "Both engines as shipped, under a virtual clock and a seeded network that breaks and heals.", EPILOG
    )
    return command.run(SIMULATION, parser, arguments, _act)


def _act(options: argparse.Namespace) -> int:
    if options.seed is not None:
        return command.one(SIMULATION, options, tell=True)
    return command.many(SIMULATION, options)


if __name__ == "__main__":
    sys.exit(quietly(SIMULATION.name, main))
