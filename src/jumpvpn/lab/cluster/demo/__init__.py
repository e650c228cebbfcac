"""The cluster's demonstration: a download goes on while its gateway is killed, and moves back by a drain."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jumpvpn.lab.cluster.demo import report
from jumpvpn.lab.cluster.demo.result import verdict
from jumpvpn.lab.cluster.demo.run import perform
from jumpvpn.lab.demo.ending import endable, told
from jumpvpn.lab.traffic.pacing import boot_ns

# Lines of a log are not wrapped at the width of a terminal that is not there.
_PLAIN_WIDTH = 140


def main(argv: Sequence[str] | None = None) -> int:
    """Run one demonstration; 0 if everything held, 1 if something broke. Raises SystemExit: see `told`."""
    options = _options(argv)
    console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=_PLAIN_WIDTH)
    began_ns = boot_ns()

    def say(words: str) -> None:
        console.print(f"[{(boot_ns() - began_ns) / 1e9:6.2f} s] {words}", markup=False, highlight=False, soft_wrap=True)

    with told("make demo-cluster"):
        result = asyncio.run(endable(perform(options.seed, say)))
    findings = verdict(result)
    report.show(console, result, findings)
    for words in report.write(result, findings, options.output, options.json):
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    return 0 if all(finding.holds for finding in findings) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jumpvpn.lab.cluster.demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    output = Path("demo-output/cluster")
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="where the files go")
    parser.add_argument("--seed", type=int, default=1, help="of the content and of the emulated links")
    return parser.parse_args(argv)
