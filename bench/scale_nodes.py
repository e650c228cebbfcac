"""Gateways as processes in a namespace, with files as an administrator would write them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpvpn.lab import LabError
from jumpvpn.lab.namespaces import NamespaceSet
from jumpvpn.runtime.keys import create_private_key

START_S = 120.0  # 65,000 devices are read, 10,000 sessions restored
STOP_S = 60.0
POOL = "10.64.0.0/16"
_READY = " listens on "
_TICKS = os.sysconf("SC_CLK_TCK")

_FILE = """\
name = "{name}"
private_key_file = "{name}.key"
listen = ["{address}:{port}"]
state_dir = "{name}"
control = "{name}.sock"
events = "{name}.jsonl"
{store}
[tunnel]
name = "{name}"
pool = "{pool}"

[forward]
masquerade = false

{more}
{devices}
"""


@dataclass(slots=True)
class Gateway:
    """One gateway: its files in ``directory``, its process in the namespace ``place``."""

    namespaces: NamespaceSet
    place: str
    directory: Path
    name: str
    port: int
    devices: str
    more: str = ""
    key: str = ""
    address: str = "127.0.0.1"
    process: Process | None = field(default=None)

    def write(self) -> None:
        """Write the configuration, with a fresh key unless it has one."""
        if not self.key:
            file = self.directory / f"{self.name}.key"
            file.unlink(missing_ok=True)
            self.key = create_private_key(file)
        store = "" if "[cluster]" in self.more else 'store = "sqlite"\n'
        text = _FILE.format(
            name=self.name, address=self.address, port=self.port, store=store, pool=POOL, more=self.more,
            devices=self.devices,
        )  # fmt: skip
        (self.directory / f"{self.name}.toml").write_text(text, encoding="utf-8")

    @property
    def endpoint(self) -> str:
        """As the load generator wants it."""
        return f"{self.address}:{self.port}={self.key}"

    async def start(self) -> float:
        """Start the process; seconds until it says that it listens, its sessions restored. Raises LabError."""
        argv = [sys.executable, "-P", "-m", "jumpvpn.cli.main", "gateway", "--config", f"{self.name}.toml"]
        began, heard = time.monotonic(), self.said(whole=True).count(_READY)
        with self._log.open("ab") as log:
            self.process = await self.namespaces.exec_async(
                self.place, argv, stdin=DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        while self.said(whole=True).count(_READY) == heard:
            if self.process.returncode is not None or time.monotonic() - began > START_S:
                raise LabError(f"gateway {self.name} does not start: {self.said()}")
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def kill(self) -> float:
        """SIGKILL; the monotonic time just before."""
        assert self.process is not None
        before = time.monotonic()
        self.process.kill()
        await self.process.wait()
        return before

    async def stop(self) -> None:
        """Ask it to end, with force if it does not."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def demand_life(self) -> None:
        """Raises LabError with the gateway's own words if it has ended."""
        if self.process is not None and self.process.returncode is not None:
            raise LabError(f"gateway {self.name} ended with {self.process.returncode}: {self.said()}")

    def usage(self) -> Usage:
        """CPU time and memory as the kernel counts them."""
        assert self.process is not None
        return Usage.of(self.process.pid)

    def said(self, *, whole: bool = False) -> str:
        """What it wrote to its log; only the end of it unless ``whole``."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return text if whole else text[-1500:].strip()

    @property
    def _log(self) -> Path:
        return self.directory / f"{self.name}.log"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since the start of the process, resident bytes, and when that was."""

    cpu_s: float
    rss: int
    at: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        """What /proc says of ``pid``."""
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        return cls(cpu, pages * os.sysconf("SC_PAGE_SIZE"), time.monotonic())

    def share_since(self, before: Usage) -> float:
        """Of one core, since ``before``."""
        return (self.cpu_s - before.cpu_s) / (self.at - before.at)


def open_place() -> NamespaceSet:
    """A namespace with a loopback interface and nothing else."""
    namespaces = NamespaceSet.create(["here"])
    namespaces.run("here", ["ip", "link", "set", "lo", "up"])
    return namespaces


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` with floats cut to what the measurement can tell."""
    return {
        key: figures(value) if isinstance(value, dict) else round(value, 3) if isinstance(value, float) else value
        for key, value in document.items()
    }
