"""Three etcd servers in their namespaces, mutual TLS, and what an observer sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.lab.cluster.history import StoreChange, StoreRead
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.topology import MEMBERS, OBSERVER, member_address
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.traffic.pacing import boot_ns

CLUSTER = "lab"
_CLIENT_PORT = 2379
# Three servers elect a leader within two election timeouts of 1 s; a loaded machine needs several rounds.
SERVE_S = 30.0
_LOG_TAIL = 1500
# The longest line of the observer: one record without its body.
_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """What the observer last saw of a server."""

    serves: bool = False
    leads: bool = False


class EtcdServers:
    """The store of a cluster, inside a lab that is open, from the files of ``jumpvpn cluster init`` in `files`.

    `changes` is the history of the cluster's keys from the first revision on, `reads` what linearizable reads of
    sessions returned, `leaders` who led from when on (boot ns; "": nobody that is known).
    """

    def __init__(self, lab: ClusterLab, files: Path) -> None:
        self.lab = lab
        self.files = files
        self.changes: list[StoreChange] = []
        self.reads: list[StoreRead] = []
        self.members: dict[str, Member] = dict.fromkeys(MEMBERS, Member())
        self.leaders: list[tuple[int, str]] = []
        self._directory = lab.directory / "etcd"
        self._processes: dict[str, Process] = {}
        self._observer: Process | None = None
        self._following: asyncio.Task[None] | None = None
        self._seen: set[tuple[int, str]] = set()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @property
    def endpoints(self) -> tuple[str, ...]:
        """HOST:PORT of the servers."""
        return tuple(f"{member_address(name)}:{_CLIENT_PORT}" for name in MEMBERS)

    @property
    def leader(self) -> str:
        """Who leads, as far as the observer knows; empty if nobody does."""
        return next((name for name, member in self.members.items() if member.leads and member.serves), "")

    async def start(self) -> None:
        """Start servers and observer; returns when all serve. Raises LabError with etcd's words."""
        if shutil.which("etcd") is None:
            raise LabError("the cluster's store needs etcd; install: apt-get install etcd-server")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for name in MEMBERS:
            await self.start_member(name)
        await self._observe()
        await self.until(lambda: all(member.serves for member in self.members.values()), SERVE_S)

    async def close(self) -> None:
        """End servers and observer; idempotent."""
        for process in (*self._processes.values(), self._observer):
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._processes.clear()
        if self._following is not None:
            await self._following
            self._following = None

    async def start_member(self, name: str) -> None:
        """Start a server, with what it had on disk before."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = await self.lab.exec_async(
                name, self._command(name), stdin=DEVNULL, stdout=log, stderr=log, env=environment
            )

    async def kill_member(self, name: str) -> int:
        """SIGKILL; the boot time (ns) just before."""
        before, process = boot_ns(), self._processes.pop(name)
        process.kill()
        await process.wait()
        return before

    def pause_member(self, name: str) -> int:
        """SIGSTOP; the boot time (ns) just before."""
        before = boot_ns()
        self._processes[name].send_signal(signal.SIGSTOP)
        return before

    def resume_member(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].send_signal(signal.SIGCONT)

    async def until(self, holds: Callable[[], bool], within_s: float = SERVE_S) -> None:
        """Wait until something holds of what the observer has told. Raises LabError."""
        if holds():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (holds, future)
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(future, within_s)
        except TimeoutError:
            raise LabError(f"the store did not get there within {within_s:.0f} s: {self._story()}") from None
        finally:
            self._waiting.remove(entry)

    async def serves(self) -> None:
        """Wait until a majority serves and one member leads."""
        await self.until(lambda: bool(self.leader) and sum(m.serves for m in self.members.values()) > len(MEMBERS) // 2)

    async def caught_up(self) -> None:
        """Wait until the history holds everything that a read which begins here returns."""
        since = boot_ns()

        def read() -> int:
            return max((r.revision for r in self.reads if r.invoked_ns >= since), default=0)

        def told() -> bool:
            live = {change.name: change for change in self.changes if change.name.startswith("live/")}
            some_live = any(not change.gone for change in live.values())
            return not some_live or 0 < read() <= max(change.revision for change in self.changes)

        await self.until(told)

    def holders(self) -> dict[str, StoreChange]:
        """The newest membership records by node, as far as the observer knows."""
        found: dict[str, StoreChange] = {}
        for change in self.changes:
            if change.name.startswith("held/"):
                found[change.name.partition("/")[2]] = change
        return {name: change for name, change in found.items() if not change.gone}

    async def _observe(self) -> None:
        pair = self.files / f"gateway-{self.lab.shape.gateway_names[0]}"
        files = {"ca": "ca.pem", "certificate": "etcd-client.pem", "key": "etcd-client.key"}
        argv = [sys.executable, "-P", "-m", "jumpvpn.lab.cluster.observer", "--cluster", CLUSTER]
        argv += [word for name, path in files.items() for word in (f"--{name}", str(pair / path))]
        argv += [f"--member={name}={endpoint}" for name, endpoint in zip(MEMBERS, self.endpoints, strict=True)]
        with (self._directory / "observer.log").open("ab") as log:
            self._observer = await self.lab.exec_async(
                OBSERVER, argv, stdin=DEVNULL, stdout=PIPE, stderr=log, limit=_LINE_BYTES
            )
        self._following = asyncio.create_task(self._follow(self._observer))

    async def _follow(self, observer: Process) -> None:
        assert observer.stdout is not None
        async for line in observer.stdout:
            self._take(json.loads(line))
            for holds, future in self._waiting:
                if not future.done() and holds():
                    future.set_result(None)

    def _take(self, told: Mapping[str, Any]) -> None:
        if "member" in told:
            self.members[told["member"]] = Member(told["serves"], told["leader"])
            if self.leader != (self.leaders[-1][1] if self.leaders else ""):
                self.leaders.append((boot_ns(), self.leader))
        elif "read" in told:
            self.reads.append(StoreRead.of(told))
        elif (told["revision"], told["change"]) not in self._seen:
            self._seen.add((told["revision"], told["change"]))
            self.changes.append(StoreChange.of(told))

    def _command(self, name: str) -> list[str]:
        """etcd with the file that was made for this server, whose paths are those of a machine of its own."""
        made = self.files / f"etcd-{name}"
        text = (made / "etcd.yaml").read_text()
        moved = re.sub(r"/var/lib/etcd/\S+?(?=\")", str(self._directory / name), text).replace("/etc/etcd", str(made))
        config = made / "lab.yaml"
        config.write_text(moved)
        return ["etcd", f"--config-file={config}"]

    def _story(self) -> str:
        said = {name: _tail(self._directory / f"{name}.log")[-300:] for name in (*MEMBERS, "observer")}
        return f"members {self.members}; they said: {said}"


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-_LOG_TAIL:].strip()
    except FileNotFoundError:
        return ""
