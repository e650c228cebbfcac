"""Commands that look at a running node: status, cluster status, events, down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
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


@dataclass(frozen=True, slots=True)
class Question:
    """A command of the node that reports, with its arguments, and how its answer is shown."""

    command: str
    view: Callable[[Mapping[str, Any]], RenderableType]
    args: Mapping[str, Any] = field(default_factory=dict)

    async def ask(self, node: ControlClient) -> Any:
        """The node's answer. Raises Refused, NotRunning."""
        return await node.request(self.command, **self.args)


STATUS = Question("status", status_view)


def show(path: Path, question: Question, *, as_json: bool) -> None:
    """Print one answer."""
    document = with_node(path, question.ask)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _console().print(question.view(document))


def watch(path: Path, question: Question, interval: float, *, as_json: bool) -> None:
    """Show the answer again and again until interrupted or the node is gone."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch_json(path, question, interval) if as_json else _watch_live(path, question, interval))


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


async def _watch_live(path: Path, question: Question, interval: float) -> None:
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        async with ControlClient(path) as node:
            while True:
                try:
                    document = await question.ask(node)
                except NotRunning as gone:
                    live.update(Text(str(gone), style="red"), refresh=True)
                    raise
                hint = Text("Ctrl-C ends this view, not the node", style="dim")
                if console.is_terminal:
                    live.update(Group(question.view(document), Text(), hint), refresh=True)
                else:
                    console.print(question.view(document))
                await asyncio.sleep(interval)


async def _watch_json(path: Path, question: Question, interval: float) -> None:
    async with ControlClient(path) as node:
        while True:
            sys.stdout.write(json.dumps(await question.ask(node)) + "\n")
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
