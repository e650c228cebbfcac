"""``python -m jumpvpn.model``: explore the shipped session machine, then seed faults that must be caught."""

from __future__ import annotations

import argparse
import json
import sys
from os import cpu_count
from pathlib import Path

from jumpvpn.leaving import quietly
from jumpvpn.model import bounds as sizes
from jumpvpn.model.mutants import BY_NAME
from jumpvpn.model.progress import Told, silent
from jumpvpn.model.report import told
from jumpvpn.model.run import run

_SIZES = {one.name: one for one in (sizes.TINY, sizes.SMALL, sizes.NORMAL, sizes.DEEP)}
_EXIT = "exit code: 0 all properties hold, every row is covered, every seeded fault is caught; 1 not so; 2 wrong usage"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    bounds = sizes.DEEP if options.deep else _SIZES[options.bounds]
    wanted = [] if options.no_mutants else options.mutant or None
    report = run(bounds, wanted, options.jobs, silent if options.quiet else Told())
    body = json.dumps(report.body(), indent=1)
    if options.output is not None:
        try:
            options.output.write_text(body + "\n", encoding="utf-8")
        except OSError as error:
            print(f"cannot write {options.output}: {error.strerror}; name a writable file", file=sys.stderr)
            return 2
    print(body if options.json else told(report))
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jumpvpn.model", description=__doc__, epilog=_EXIT)
    parser.add_argument("--deep", action="store_true", help="larger bounds: several minutes")
    parser.add_argument("--bounds", choices=sorted(_SIZES), default="normal", help="the size of the explored world")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report as JSON to FILE as well")
    parser.add_argument("--no-mutants", action="store_true", help="explore only, seed no faults")
    parser.add_argument(
        "--mutant",
        action="append",
        choices=sorted(BY_NAME),
        metavar="NAME",
        help="seed only this fault, after the exploration (of seconds with --bounds tiny)",
    )
    parser.add_argument("--jobs", type=_positive, default=min(2, cpu_count() or 1), help="processes at a time")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(quietly("jumpvpn model", main))
