"""``python -m bench [--only NAME] [--quick] [--output FILE]``: runs the measurements and prints one JSON document."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from bench import audit, cluster, handshake, recovery, throughput
from jumpvpn.lab import LabError

NAMES = ("handshake", "recovery", "cluster", "throughput", "audit")


def main() -> int:
    """Run what was asked; 0, or 1 with one line on stderr when the lab cannot run."""
    options = _options()
    document: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "kernel": platform.release()}}
    try:
        for name in options.only or NAMES:
            document[name] = asyncio.run(_measure(name, options))
    except LabError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    text = json.dumps(document, indent=2)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


async def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    if name == "handshake":
        return await handshake.measure(3 if options.quick else 10, _note)
    if name == "recovery":
        rounds, outages = (3, 1) if options.quick else (options.rounds, options.outages)
        return await recovery.measure(rounds, outages, _note)
    if name == "cluster":
        return await cluster.measure(2 if options.quick else max(1, options.rounds // 2), _note)
    if name == "audit":
        return await asyncio.to_thread(audit.measure, 100_000 if options.quick else audit.LINES, _note)
    return await throughput.measure(1 if options.quick else 5, _note)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--rounds", type=int, default=25, help="recovery: times each short incident (default 25)")
    parser.add_argument("--outages", type=int, default=5, help="recovery: times each long outage (default 5)")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a look, not a figure")
    parser.add_argument("--output", metavar="FILE", help="write the JSON here too")
    return parser.parse_args()


def _note(text: str) -> None:
    sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
