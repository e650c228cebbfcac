"""``python -m jumpvpn.sim``: play seeds, report, exit 0 (all promises held), 1 (a seed failed) or 2 (wrong use)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from jumpvpn.leaving import quietly
from jumpvpn.sim import report
from jumpvpn.sim.campaign import Total, campaign, play
from jumpvpn.sim.judge import journal_judge

SEEDS = 2000
SEEDS_MAX = 1_000_000  # days of work; more is a slip of the finger
SEED_LIMIT = 2**63
PROGRESS_SECONDS = 2.0
ESTIMATE_FROM = 50  # seeds: before that the start of the processes outweighs them

EPILOG = """A seed decides everything: equal seeds give equal transcripts. Exit codes: 0 every promise held (rows that
no seed reached are listed), 1 a seed failed (its transcript and the command to see it again are printed), 2 wrong
use."""


class Misused(Exception):
    """The command line asks for something that cannot be done; the text says what to do."""


class Progress:
    """One line every few seconds on standard error."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._begin = self._told = time.monotonic()

    def __call__(self, total: Total) -> None:
        """Hear of one more seed."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            if total.seeds < ESTIMATE_FROM:
                sys.stderr.write(f"jumpvpn sim: {total.seeds} of {self._seeds} seeds\n")
                return
            left = (now - self._begin) / total.seeds * (self._seeds - total.seeds)
            failed = f", {len(total.failed)} failed" if total.failed else ""
            sys.stderr.write(f"jumpvpn sim: {total.seeds} of {self._seeds} seeds{failed}, about {left:.0f} s left\n")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, play, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check(options)
        if options.seed is not None:
            return _one(options)
        return _many(options)
    except Misused as error:
        parser.error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"jumpvpn sim: cannot write {error.filename}: {error.strerror}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jumpvpn.sim", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Both engines as shipped, under a virtual clock and a seeded network that breaks and heals.",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"how many seeds (default {SEEDS})")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (default 0)")
    parser.add_argument("--seed", type=int, metavar="N", help="play exactly this one and print its transcript")
    parser.add_argument("--jobs", type=int, default=_cores(), metavar="N", help="processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, for the coverage table")
    parser.add_argument("--journal", type=Path, metavar="DIR", help="write both ends' event journals of every seed")
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _check(options: argparse.Namespace) -> None:
    bounds = {
        "--seeds": (options.seeds, 1, SEEDS_MAX),
        "--first": (options.first, 0, SEED_LIMIT - SEEDS_MAX),
        "--seed": (options.seed if options.seed is not None else 0, 0, SEED_LIMIT - 1),
        "--jobs": (options.jobs, 1, 256),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise Misused(f"argument {name}: must be between {least} and {most}, not {value}")
    if options.journal is not None:
        options.journal.mkdir(parents=True, exist_ok=True)


def _one(options: argparse.Namespace) -> int:
    outcome = play(options.seed, judge=journal_judge, directory=options.journal, tell=True)
    total = Total()
    total.add(outcome)
    if options.json:
        body = {**report.summary(total), "transcript": list(outcome.transcript)}
        sys.stdout.write(report.dumps(body))
    elif outcome.failure is not None:
        _print("\n".join(report.failure(outcome)).lstrip())
    else:
        _print("\n".join(outcome.transcript))
        _print(f"every promise held: {sum(outcome.checks.values())} checks, ends {', '.join(outcome.ends)}")
    _write(options.output, total)
    return 0 if outcome.failure is None else 1


def _many(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    total = campaign(
        seeds, options.jobs, Progress(options.seeds), judge=journal_judge, directory=options.journal
    )  # fmt: skip
    if options.json:
        sys.stdout.write(report.dumps(report.summary(total)))
    else:
        _print("\n".join(report.text(total)))
    _write(options.output, total)
    return 0 if not total.failed else 1


def _print(lines: str) -> None:
    sys.stdout.write(lines + "\n")


def _write(path: Path | None, total: Total) -> None:
    if path is not None:
        path.write_text(report.dumps(report.summary(total)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(quietly("jumpvpn sim", main))
