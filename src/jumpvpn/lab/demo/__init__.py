"""The demonstration: a real download through a real tunnel while everything under it fails."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jumpvpn.lab.demo import report
from jumpvpn.lab.demo.result import Result, verdict
from jumpvpn.lab.demo.run import FULL, QUICK, perform
from jumpvpn.lab.demo.view import LiveView, PlainView
from jumpvpn.lab.errors import LabError

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# Lines of a log are not wrapped at the width of a terminal that is not there.
_PLAIN_WIDTH = 140


def main(argv: Sequence[str]) -> int:
    """Run one demonstration; 0 if everything held, 1 if something broke, 130 after Ctrl-C."""
    options = _options(argv)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    live = console.is_terminal and not options.plain
    pace = QUICK if options.quick else FULL
    try:
        with LiveView(console) if live else PlainView(console) as view:
            result = asyncio.run(_endable(perform(pace, options.seed, view, quick=options.quick)))
    except LabError as error:
        sys.stderr.write(f"jumpvpn: error: {error}{_advice()}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("jumpvpn: interrupted; the lab is gone\n")
        return _INTERRUPTED
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


async def _endable(running: Coroutine[Any, Any, Result]) -> Result:
    """Let SIGTERM end the run as Ctrl-C does, with everything cleaned up."""
    task = asyncio.ensure_future(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jumpvpn demo", description=__doc__)
    quick = f"under 25 s, {QUICK.size / 1e6:.0f} MB instead of {FULL.size / 1e6:.0f} MB"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="where the files go")
    parser.add_argument("--seed", type=int, default=1, help="of the content and of the emulated links")
    parser.add_argument("--plain", action="store_true", help="plain lines, even on a terminal")
    return parser.parse_args(argv)


def _advice() -> str:
    return "" if os.geteuid() == 0 else "; as root ('sudo make demo') it works on every kernel"
