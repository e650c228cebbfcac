"""Traffic through the tunnel while things happen: one checksummed download, and a 1 kHz echo over UDP and over TCP."""

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.lab.errors import LabError
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.measure import DownloadLog, EchoLog, load_download, load_echo
from jumpvpn.lab.topology import SERVER_INNER
from jumpvpn.lab.traffic.serve import HTTP_PORT

# An interpreter starts, computes the expected checksum of some hundred megabytes, and connects.
_START_S = 20.0
# An echo waits two seconds for its last answers, then writes its log.
_FINISH_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: a download of `size` bytes at `rate` bytes/s (0: none / as fast as it goes), echoes per second."""

    size: int = 0
    rate: int = 0
    echo_rate: int = 1000
    protocols: tuple[str, ...] = ("udp", "tcp")
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Logs:
    """What the tools logged, for `jumpvpn.lab.measure`."""

    echoes: dict[str, EchoLog]
    download: DownloadLog | None


@dataclass(slots=True)
class _Tool:
    process: Process
    out: Path
    lines: asyncio.Task[None]
    first: asyncio.Future[dict[str, Any]]
    latest: dict[str, Any] = field(default_factory=dict)


class Workload:
    """The tools of one run. `start` returns when traffic flows; `finish` ends the echoes and reads all logs.

    `latest(name)` is the newest progress of "download", "udp" or "tcp"; `listener` is called with each.
    """

    def __init__(self, lab: Lab, load: Load, listener: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        self.load = load
        self._lab = lab
        self._listener = listener
        self._tools: dict[str, _Tool] = {}

    async def start(self) -> None:
        """Start the server, then the client's tools; raises LabError if one does not get through."""
        serve = await self._launch("server", "server", "serve", "--bind", SERVER_INNER)
        await self._first(serve, "the server")
        for protocol in self.load.protocols:
            await self._launch(
                protocol,
                "client",
                "echo",
                f"--{protocol}",
                "--server",
                SERVER_INNER,
                "--rate",
                str(self.load.echo_rate),
            )
        if self.load.size:
            await self._launch("download", "client", "download", *self._wanted())
        for name, tool in self._tools.items():
            await self._first(tool, name)

    def latest(self, name: str) -> dict[str, Any]:
        """The newest progress line of a tool, or nothing yet."""
        return self._tools[name].latest if name in self._tools else {}

    async def downloaded(self) -> None:
        """Wait until the download has ended, whatever its result."""
        await asyncio.shield(self._tools["download"].lines)

    async def finish(self) -> Logs:
        """End every tool in order (a download that still runs is cut short) and return their logs."""
        tools = {name: tool for name, tool in self._tools.items() if name != "server"}
        for tool in tools.values():
            _signal(tool.process, signal.SIGTERM)
        for name, tool in tools.items():
            await self._ended(tool, name)
        await self.aclose()
        return Logs(
            {name: load_echo(tools[name].out) for name in self.load.protocols},
            load_download(tools["download"].out) if "download" in tools else None,
        )

    async def aclose(self) -> None:
        """End whatever still runs; idempotent."""
        for tool in self._tools.values():
            _signal(tool.process, signal.SIGKILL)
        for tool in self._tools.values():
            await tool.lines
            if tool.first.done():
                tool.first.exception()  # whoever awaited it has been told

    def _wanted(self) -> list[str]:
        url = f"http://{SERVER_INNER}:{HTTP_PORT}"
        numbers = {"bytes": self.load.size, "rate": self.load.rate, "seed": self.load.seed}
        return ["--url", url, *(word for name, value in numbers.items() for word in (f"--{name}", str(value)))]

    async def _launch(self, name: str, namespace: str, module: str, *arguments: str) -> _Tool:
        out = self._lab.directory / f"{name}.log"
        argv = [sys.executable, "-P", "-m", f"jumpvpn.lab.traffic.{module}", *arguments]
        if namespace == "client":
            argv += ["--out", str(out)]
        with (self._lab.directory / "traffic.log").open("ab") as complaints:
            process = await self._lab.exec_async(namespace, argv, stdin=DEVNULL, stdout=PIPE, stderr=complaints)
        first: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        tool = _Tool(process, out, asyncio.create_task(self._follow(name, process, first)), first)
        self._tools[name] = tool
        return tool

    async def _follow(self, name: str, process: Process, first: asyncio.Future[dict[str, Any]]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            progress: dict[str, Any] = json.loads(line)
            self._tools[name].latest = progress
            if not first.done():
                first.set_result(progress)
            if self._listener is not None:
                self._listener(name, progress)
        await process.wait()
        if not first.done():
            first.set_exception(LabError(f"{name} ended before any traffic flowed"))

    async def _first(self, tool: _Tool, name: str) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(tool.first), _START_S)
        except TimeoutError:
            raise LabError(f"{name} did not start within {_START_S:.0f} s") from None

    async def _ended(self, tool: _Tool, name: str) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(tool.lines), _FINISH_S)
        except TimeoutError:
            raise LabError(f"{name} did not end within {_FINISH_S:.0f} s") from None


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
