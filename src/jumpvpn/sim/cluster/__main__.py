"""``python -m jumpvpn.sim.cluster``: play seeds, report, exit 0 (all promises held), 1 (a seed failed), 2 (misused)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from jumpvpn.leaving import quietly
from jumpvpn.sim.cluster import campaign as told
from jumpvpn.sim.cluster.campaign import Total, campaign, play_one
from jumpvpn.sim.cluster.mutants import MUTANTS, SEEDS, Found, hunt
from jumpvpn.sim.judge import journal_judge
from jumpvpn.sim.report import dumps

DEFAULT_SEEDS = 500
SEEDS_MAX = 1_000_000  # days of work; more is a slip of the finger
SEED_LIMIT = 2**63
PROGRESS_SECONDS = 2.0

EPILOG = """A seed decides everything: equal seeds give equal transcripts. Exit codes: 0 every promise held (with
--mutants: every defect was found), 1 a seed failed (its transcript and the command to see it again are printed) or a
defect was not found, 2 wrong use."""


class Misused(Exception):
    """The command line asks for something that cannot be done; the text says what to do."""


class Progress:
    """One line every few seconds on standard error."""

    def __init__(self) -> None:
        self._begin = self._told = time.monotonic()

    def __call__(self, words: str) -> None:
        """Hear how far it is."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            sys.stderr.write(f"jumpvpn sim cluster: {words}, {now - self._begin:.0f} s\n")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, play, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check(options)
        if options.mutants:
            return _mutants(options)
        return _one(options) if options.seed is not None else _many(options)
    except Misused as error:
        parser.error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(f"jumpvpn sim cluster: cannot write {error.filename}: {error.strerror}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jumpvpn.sim.cluster", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A cluster's shell and engines as shipped, in virtual time; store and network break and heal.",
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--seeds", type=int, metavar="N", help=f"how many (default {DEFAULT_SEEDS}; mutants {SEEDS})")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first of them (default 0)")
    parser.add_argument("--seed", type=int, metavar="N", help="play exactly this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print its transcript in any case")
    parser.add_argument("--mutants", action="store_true", help="build defects in, one at a time, until each is found")
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--journal", type=Path, metavar="DIR", help="write every node's event journal of every seed")
    return parser


def _check(options: argparse.Namespace) -> None:
    bounds = {
        "--seeds": (options.seeds if options.seeds is not None else 1, 1, SEEDS_MAX),
        "--first": (options.first, 0, SEED_LIMIT - SEEDS_MAX),
        "--seed": (options.seed if options.seed is not None else 0, 0, SEED_LIMIT - 1),
        "--jobs": (options.jobs, 1, 256),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise Misused(f"argument {name}: must be between {least} and {most}, not {value}")
    if options.mutants and (options.seed is not None or options.journal is not None or options.first):
        raise Misused("argument --mutants: goes with --seeds, --json and --output only")
    if options.trace and options.seed is None:
        raise Misused("argument --trace: name the seed with --seed")
    if options.journal is not None:
        options.journal.mkdir(parents=True, exist_ok=True)


def _one(options: argparse.Namespace) -> int:
    outcome = play_one(options.seed, judge=journal_judge, directory=options.journal, tell=options.trace)
    total = Total()
    total.add(outcome)
    body = told.summary(total)
    if options.json:
        sys.stdout.write(dumps({**body, "transcript": list(outcome.transcript)}))
    elif outcome.failure is not None:
        _print("\n".join(told.failure(outcome)).lstrip())
    else:
        _print("\n".join([*outcome.transcript, f"every promise held: {sum(outcome.checks.values())} checks"]))
    _write(options.output, body)
    return 0 if outcome.failure is None else 1


def _many(options: argparse.Namespace) -> int:
    count = options.seeds if options.seeds is not None else DEFAULT_SEEDS
    progress = Progress()
    total = campaign(
        range(options.first, options.first + count), options.jobs,
        lambda total: progress(f"{total.seeds} of {count} seeds, {len(total.failed)} failed"),
        judge=journal_judge, directory=options.journal,
    )  # fmt: skip
    body = told.summary(total)
    if options.json:
        sys.stdout.write(dumps(body))
    else:
        _print("\n".join(told.text(total)))
    _write(options.output, body)
    return 0 if not total.failed else 1


def _mutants(options: argparse.Namespace) -> int:
    seeds, progress, found = options.seeds if options.seeds is not None else SEEDS, Progress(), list[Found]()
    for name in MUTANTS:
        found.append(hunt(name, journal_judge, seeds, progress))
    body = {"mutants": [_of(result) for result in found]}
    if options.json:
        sys.stdout.write(dumps(body))
    else:
        for result in found:
            _print(_words(result))
    _write(options.output, body)
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


def _print(lines: str) -> None:
    sys.stdout.write(lines + "\n")


def _write(path: Path | None, body: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(dumps(body), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(quietly("jumpvpn sim cluster", main))
