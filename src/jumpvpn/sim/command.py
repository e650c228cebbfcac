"""The command line of a simulation: what each has in common. Exit codes: 0 all held, 1 a seed failed, 2 wrong use."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.sim.campaign import Tally, campaign, play_one
from jumpvpn.sim.judge import journal_judge
from jumpvpn.sim.played import Play, Played
from jumpvpn.sim.report import dumps, failure

SEEDS_MAX = 1_000_000  # days of work; more is a slip of the finger
SEED_LIMIT = 2**63
JOBS_MAX = 256
PROGRESS_SECONDS = 2.0
ESTIMATE_FROM = 50  # seeds: before that the start of the processes outweighs them


class Misused(Exception):
    """The command line asks for something that cannot be done; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What differs: ``name`` in messages, ``command`` that plays it, ``seeds`` if no number is asked for.

    ``closing`` is the last line about a seed that held every promise.
    """

    name: str
    command: str
    seeds: int
    play: Play
    text: Callable[[Tally], Iterator[str]]
    summary: Callable[[Tally], dict[str, Any]]
    closing: Callable[[Played], str]


class Progress:
    """One line every few seconds on standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin = self._told = time.monotonic()

    def __call__(self, words: Callable[[float], str]) -> None:
        """Hear how far it is: ``words`` of the seconds since the beginning."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            sys.stderr.write(f"{self._name}: {words(now - self._begin)}\n")


def parser(simulation: Simulation, description: str, epilog: str) -> argparse.ArgumentParser:
    """The options that every simulation has."""
    made = argparse.ArgumentParser(
        prog=simulation.command, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--seeds", type=int, metavar="N", help=f"how many seeds (default {simulation.seeds})")
    made.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (default 0)")
    made.add_argument("--seed", type=int, metavar="N", help="play exactly this one")
    made.add_argument("--jobs", type=int, default=cores, metavar="N", help="processes (default: one per core)")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    made.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    made.add_argument("--journal", type=Path, metavar="DIR", help="write every node's event journal of every seed")
    return made


def run(
    simulation: Simulation,
    options_of: argparse.ArgumentParser,
    arguments: list[str] | None,
    act: Callable[[argparse.Namespace], int],
) -> int:
    """Parse, check and ``act``; the exit code. What cannot be written, and what ``act`` calls misused, is wrong use."""
    options = options_of.parse_args(arguments)
    try:
        _check(options)
        return act(options)
    except Misused as error:
        options_of.error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"{simulation.name}: cannot write {error.filename}: {error.strerror}\n")
        return 2


def one(simulation: Simulation, options: argparse.Namespace, *, tell: bool) -> int:
    """Play the seed that was asked for and print it; 1 if it failed."""
    outcome = play_one(simulation.play, options.seed, judge=journal_judge, directory=_journals(options), tell=tell)
    tally = Tally()
    tally.add(outcome)
    body = simulation.summary(tally)
    if options.json:
        sys.stdout.write(dumps({**body, "transcript": list(outcome.transcript)}))
    elif outcome.failure is not None:
        say("\n".join(failure(outcome, simulation.command)).lstrip())
    else:
        say("\n".join([*outcome.transcript, simulation.closing(outcome)]))
    write(options.output, body)
    return 0 if outcome.failure is None else 1


def many(simulation: Simulation, options: argparse.Namespace) -> int:
    """Play a campaign and print its report; 1 if a seed failed."""
    count = options.seeds if options.seeds is not None else simulation.seeds
    progress = Progress(simulation.name)
    tally = campaign(
        simulation.play, range(options.first, options.first + count), options.jobs,
        lambda tally: progress(lambda spent: _so_far(tally, count, spent)),
        judge=journal_judge, directory=_journals(options),
    )  # fmt: skip
    body = simulation.summary(tally)
    if options.json:
        sys.stdout.write(dumps(body))
    else:
        say("\n".join(simulation.text(tally)))
    write(options.output, body)
    return 0 if not tally.failed else 1


def held(outcome: Played) -> str:
    """That a seed held every promise."""
    return f"every promise held: {outcome.checks.total()} checks"


def say(lines: str) -> None:
    """Print to standard output."""
    sys.stdout.write(lines + "\n")


def write(path: Path | None, body: dict[str, Any]) -> None:
    """Write the figures to the file that was asked for, if any. Raises OSError."""
    if path is not None:
        path.write_text(dumps(body), encoding="utf-8")


def _so_far(tally: Tally, count: int, spent: float) -> str:
    if tally.seeds < ESTIMATE_FROM:
        return f"{tally.seeds} of {count} seeds"
    left = spent / tally.seeds * (count - tally.seeds)
    failed = f", {len(tally.failed)} failed" if tally.failed else ""
    return f"{tally.seeds} of {count} seeds{failed}, about {left:.0f} s left"


def _check(options: argparse.Namespace) -> None:
    bounds = {
        "--seeds": (options.seeds, 1, SEEDS_MAX),
        "--first": (options.first, 0, SEED_LIMIT - SEEDS_MAX),
        "--seed": (options.seed, 0, SEED_LIMIT - 1),
        "--jobs": (options.jobs, 1, JOBS_MAX),
    }
    for name, (value, least, most) in bounds.items():
        if value is not None and not least <= value <= most:
            raise Misused(f"argument {name}: must be between {least} and {most}, not {value}")


def _journals(options: argparse.Namespace) -> Path | None:
    directory: Path | None = options.journal
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    return directory
