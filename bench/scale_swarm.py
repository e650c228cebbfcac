"""The load generator as a process: started in a namespace, told what to do, its lines read as they come."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.lab import LabError
from jumpvpn.lab.namespaces import NamespaceSet

ROOT = Path(__file__).parents[1]
PROGRAM = "jumpvpn-swarm"
LINE_MAX = 1 << 24  # the curve of 65,000 clients is one line of 700 KB
LINE_S = 20.0  # a line comes every second; a machine under full load may be late
BIND = tuple(f"127.0.0.{number}" for number in range(2, 18))  # gateways bound what comes from one source address


def program() -> Path:
    """The load generator, built if needed. Raises LabError with the compiler's words."""
    if (given := os.environ.get("JUMPVPN_SWARM")) is not None:
        return Path(given)
    argv = ["cargo", "build", "--release", "--locked", "--quiet", "-p", PROGRAM]
    built = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise LabError(f"the load generator could not be built: {built.stderr.strip()[-1500:]}")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / PROGRAM


def device_tables(clients: int, pool: str) -> str:
    """The ``[[device]]`` tables for a gateway's file, whose pool is ``pool``."""
    argv = [str(program()), "--list-keys", "--clients", str(clients), "--pool", pool]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@dataclass(slots=True)
class Swarm:
    """Clients of ``gateways`` (``address:port=key``); use as ``async with``.

    ``spread``: they begin at all gateways in turn, otherwise at the first. ``notice_ms``: within how long they notice
    a gateway's death. ``times`` (ms) replaces the shipped client's: ``attempt``, ``repeat``, ``probe-busy``.
    """

    namespaces: NamespaceSet
    place: str
    gateways: Sequence[str]
    clients: int
    births: int = 300
    flights: int = 512
    probe_ms: int = 5000
    silence_ms: int = 0
    spread: bool = False
    notice_ms: int = 0
    times: Mapping[str, int] = field(default_factory=dict)
    sources: Sequence[str] = BIND
    on_line: Callable[[dict[str, Any]], None] = lambda _line: None
    lines: list[dict[str, Any]] = field(default_factory=list)
    _process: Process | None = None

    async def __aenter__(self) -> Swarm:
        argv = [str(program())]
        for gateway in self.gateways:
            argv += ["--gateway", gateway]
        for address in self.sources:
            argv += ["--bind", address]
        argv += ["--clients", str(self.clients), "--births", str(self.births), "--flights", str(self.flights)]
        argv += ["--notice", str(self.notice_ms), *["--spread"] * self.spread]
        for name, value in self.times.items():
            argv += [f"--{name}", str(value)]
        argv += ["--probe", str(self.probe_ms), "--silence", str(self.silence_ms or 3 * self.probe_ms)]
        options = {"stdin": PIPE, "stdout": PIPE, "limit": LINE_MAX}
        self._process = await self.namespaces.exec_async(self.place, argv, **options)
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._running()
        if process.returncode is None:
            process.kill()
        await process.wait()

    @property
    def pid(self) -> int:
        """The process."""
        return self._running().pid

    async def tell(self, command: str) -> None:
        """Give a command."""
        stdin = self._running().stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        await stdin.drain()

    async def line(self) -> dict[str, Any]:
        """The next line. Raises LabError when none comes."""
        stdout = self._running().stdout
        assert stdout is not None
        try:
            raw = await asyncio.wait_for(stdout.readline(), LINE_S)
        except TimeoutError:
            raw = b""
        if not raw:
            raise LabError("the load generator stopped talking")
        line: dict[str, Any] = json.loads(raw)
        if "t" in line:
            self.lines.append(line)
            self.on_line(line)
        return line

    async def until(self, wanted: Callable[[dict[str, Any]], bool], within_s: float, what: str) -> dict[str, Any]:
        """The first line that is ``wanted``. Raises LabError after ``within_s``, saying ``what`` was waited for."""
        async with asyncio.timeout(within_s + LINE_S):
            first = None
            while True:
                line = await self.line()
                first = first if first is not None else line.get("t")
                if "t" in line and wanted(line):
                    return line
                if "t" in line and first is not None and line["t"] - first > within_s:
                    raise LabError(f"{what} did not happen within {within_s:.0f} s; the last line: {json.dumps(line)}")

    async def curve(self) -> list[float]:
        """When each client of the last loss came back (ms after it)."""
        await self.tell("curve")
        while "curve_ms" not in (line := await self.line()):
            pass
        found: list[float] = line["curve_ms"]
        return found

    def _running(self) -> Process:
        assert self._process is not None, "use as 'async with'"
        return self._process
