"""The demonstration: a real download through a real tunnel while everything under it fails."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jumpvpn.lab.demo import report
from jumpvpn.lab.demo.ending import endable, told
from jumpvpn.lab.demo.result import verdict
from jumpvpn.lab.demo.run import FULL, QUICK, perform
from jumpvpn.lab.demo.view import LiveView, PlainView

# Lines of a log are not wrapped at the width of a terminal that is not there.
_PLAIN_WIDTH = 140


def main(argv: Sequence[str]) -> int:
    """Run one demonstration; 0 if everything held, 1 if something broke. Raises SystemExit: see `told`."""
    options = _options(argv)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    live = console.is_terminal and not options.plain
    pace = QUICK if options.quick else FULL
    with told("make demo"), LiveView(console) if live else PlainView(console) as view:
        result = asyncio.run(endable(perform(pace, options.seed, view, quick=options.quick)))
    findings = verdict(result)
    report.show_table(console, result)
    report.show_findings(console, findings)
    written, hint = report.write_files(result, findings, options.output)
    if options.json is not None:
        written.append(report.write_json(result, findings, options.json))
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    if hint:
        console.print(hint, style="yellow")
    return 0 if all(finding.holds for finding in findings) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jumpvpn demo", description=__doc__)
    quick = f"under 25 s, {QUICK.size / 1e6:.0f} MB instead of {FULL.size / 1e6:.0f} MB"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="where the files go")
    parser.add_argument("--seed", type=int, default=1, help="of the content and of the emulated links")
    parser.add_argument("--plain", action="store_true", help="plain lines, even on a terminal")
    return parser.parse_args(argv)
