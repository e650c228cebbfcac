"""Commands that look at a running node: status, events, down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from jumpvpn.cli.console import Console
from jumpvpn.cli.failures import Failure
from jumpvpn.cli.node import with_node
from jumpvpn.cli.show_event import event_line
from jumpvpn.cli.show_status import status_view
from jumpvpn.runtime.control import ControlClient, NotRunning, serving_process
from jumpvpn.runtime.journal import follow as follow_journal
from jumpvpn.runtime.journal import read_tail

STOP_SECONDS = 15.0  # a node takes down its tunnel in well under a second; more means that it hangs
_PLAIN_WIDTH = 140  # without a terminal nothing should be wrapped


def show_status(path: Path, *, as_json: bool) -> None:
    """Print one status document."""
    document = with_node(path, lambda node: node.request("status"))
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _console().print(status_view(document))


def watch_status(path: Path, interval: float, *, as_json: bool) -> None:
    """Show the status again and again until interrupted or the node is gone."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch_json(path, interval) if as_json else _watch_live(path, interval))


def show_events(path: Path, last: int, *, follow: bool, as_json: bool) -> None:
    """Print the newest ``last`` events, then those to come if ``follow``."""
    console = _console()
    offset = 0
    if path.exists():
        lines, offset = read_tail(path, last)
        for line in lines:
            _print_event(console, line, as_json=as_json)
    elif not follow:
        raise Failure(f"there is no event journal {path}")
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_follow(path, offset, console, as_json=as_json))


def stop(path: Path) -> None:
    """Ask the node to stop and wait until it is gone. Raises NotRunning, Failure."""
    pid = serving_process(path)
    process = _handle(pid)
    with_node(path, lambda node: node.request("down"))
    limit = time.monotonic() + STOP_SECONDS
    while _is_alive(process, path):
        if time.monotonic() > limit:
            raise Failure(f"process {pid} is still there after {STOP_SECONDS:.0f} s")
        time.sleep(0.05)


async def _watch_live(path: Path, interval: float) -> None:
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        async with ControlClient(path) as node:
            while True:
                try:
                    document = await node.request("status")
                except NotRunning as gone:
                    live.update(Text(str(gone), style="red"), refresh=True)
                    raise
                hint = Text("Ctrl-C ends this view, not the node", style="dim")
                if console.is_terminal:
                    live.update(Group(status_view(document), Text(), hint), refresh=True)
                else:
                    console.print(status_view(document))
                await asyncio.sleep(interval)


async def _watch_json(path: Path, interval: float) -> None:
    async with ControlClient(path) as node:
        while True:
            document: Any = await node.request("status")
            sys.stdout.write(json.dumps(document) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(interval)


async def _follow(path: Path, offset: int, console: Console, *, as_json: bool) -> None:
    async for line in follow_journal(path, offset=offset):
        _print_event(console, line, as_json=as_json)


def _print_event(console: Console, line: bytes, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(line.decode("utf-8", "replace"))
        sys.stdout.flush()
    else:
        console.print(event_line(line), soft_wrap=True)


def _handle(pid: int | None) -> int | None:
    """A descriptor of the process that is readable once it has ended, even if its parent does not look."""
    try:
        return os.pidfd_open(pid) if pid else None
    except OSError:
        return None


def _is_alive(process: int | None, path: Path) -> bool:
    """The socket goes before the last of the teardown, so the process itself is looked at where it is known."""
    if process is None:
        return serving_process(path) is not None
    return not select.select([process], [], [], 0)[0]


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
