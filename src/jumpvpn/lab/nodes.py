"""Real nodes inside a lab: started from files as on machines of their own, watched by their journals, and judged."""

import asyncio
import contextlib
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Self, TypeVar

from jumpvpn.audit.auditor import Report, audit_files
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.journals import Journals, Record, Wanted
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.control import ControlClient, NotRunning

Result = TypeVar("Result")

# Two interpreters start, exchange a handshake and configure interfaces; a loaded machine may need many times the 1 s.
START_S = 20.0
# A node tears down in well under a second.
STOP_S = 5.0
# No incident takes longer to settle than the recovery window (8 s) and one retry; more means that it never will.
SETTLE_S = 25.0
_LOG_TAIL = 1500


@dataclass(slots=True)
class Node:
    """One running process of ours."""

    process: Process
    ended: asyncio.Task[int]


class NodeSet(ABC):
    """Some nodes of one lab; use as ``async with``. A node is called after its side, and its files too: configuration
    (`SIDE.toml`), control socket (`SIDE.sock`), journal, and what it says (`SIDE.log`), all in `directory`.

    When it is closed, the auditor judges all journals together; what it found is in `verdict`, and an error unless
    `demand_verdict` is off. With `archive` set, the journals of every set are copied there.
    """

    archive: ClassVar[Path | None] = None

    def __init__(
        self, lab: Lab, directory: Path, roles: Mapping[str, str], journals: Mapping[str, str], *, demand_verdict: bool
    ) -> None:
        """`roles` says of each side whether it is a "gateway" or a "client", gateways first."""
        self.lab = lab
        self.directory = directory
        self.roles = roles
        self.journals = Journals(directory, journals)
        self._nodes: dict[str, Node] = {}
        self._killed = False
        self._demand_verdict = demand_verdict
        self.verdict: Report | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @abstractmethod
    async def start(self) -> None:
        """Start the nodes and return when they are ready. Raises LabError."""

    async def close(self) -> None:
        """End all nodes in order, the clients first, follow their journals no more, and have them judged; idempotent.

        Raises LabError when the journals break a rule, or are incomplete although no node was killed.
        """
        for side in reversed(list(self.roles)):
            await self.stop_node(side)
        self.journals.close()
        if self.verdict is None:
            self._judge()

    def _judge(self) -> None:
        logs = [path for path in self.journals.paths.values() if path.exists() and path.stat().st_size]
        anchors = [path.read_text().strip() for side in self.roles for path in self._state(side).glob("*audit.pub")]
        self.verdict = audit_files(logs, anchors=anchors)
        if self.archive is not None:
            for path in logs:
                shutil.copy(path, self.archive / f"{len(list(self.archive.iterdir())):04}-{path.name}")
        good = self.verdict.sound if self._killed or not logs else self.verdict.ok
        if self._demand_verdict and not good:
            raise LabError(f"the auditor does not accept the journals: {self.verdict.explain()}")

    def config(self, side: str) -> Path:
        """The configuration file of one side."""
        return self.directory / f"{side}.toml"

    async def start_node(self, side: str) -> None:
        """Start the command that an administrator would start: ``jumpvpn gateway`` or ``jumpvpn up``."""
        command = "gateway" if self.roles[side] == "gateway" else "up"
        argv = [sys.executable, "-P", "-m", "jumpvpn.cli.main", command, "--config", str(self.config(side))]
        with self._log(side) as log:
            process = await self._launch(side, argv, stdin=DEVNULL, stdout=log, stderr=log)
        self._nodes[side] = Node(process, asyncio.create_task(process.wait()))

    async def _launch(self, side: str, argv: Sequence[str], **options: Any) -> Process:
        return await self.lab.exec_async(side, argv, **options)

    async def stop_node(self, side: str) -> int | None:
        """Ask a node to stop, with force if it does not; its exit status, or None if it was not running."""
        node = self._nodes.pop(side, None)
        if node is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            node.process.terminate()
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(node.ended), STOP_S)
        node.process.kill()
        return await node.ended

    async def kill_node(self, side: str) -> int:
        """End a node by SIGKILL, as a crash would; the boot time (ns) just before."""
        node = self._nodes.pop(side)
        self._killed = True
        before = boot_ns()
        node.process.send_signal(signal.SIGKILL)
        await node.ended
        return before

    async def ended(self, side: str, within_s: float = SETTLE_S) -> int:
        """Wait until a node ends by itself; its exit status. Raises LabError."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._nodes[side].ended), within_s)
        raise LabError(f"the {side} still runs after {within_s:.0f} s")

    def reload(self, side: str) -> None:
        """Make a node read its configuration's policy again (SIGHUP)."""
        self._nodes[side].process.send_signal(signal.SIGHUP)

    async def status(self, side: str) -> dict[str, Any]:
        """The status document of a node. Raises LabError."""
        document: dict[str, Any] = await self._ask(side, "status")
        return document

    async def event(self, wanted: Wanted, since_ns: int = 0, within_s: float = SETTLE_S) -> Record:
        """The first record from `since_ns` on that is wanted, now or when it comes.

        Raises LabError when it does not come in time, or when a node has crashed meanwhile.
        """
        try:
            return await self.while_healthy(self.journals.next(wanted, since_ns), within_s)
        except TimeoutError:
            raise LabError(f"what was awaited did not happen within {within_s:.0f} s; {self._story()}") from None

    async def while_healthy(self, awaited: Coroutine[Any, Any, Result], within_s: float) -> Result:
        """Wait for something of another kind. Raises TimeoutError, and LabError when a node crashes meanwhile."""
        waiting = asyncio.ensure_future(awaited)
        try:
            async with asyncio.timeout(within_s):
                while not waiting.done():
                    running = {node.ended for node in self._nodes.values() if not node.ended.done()}
                    await asyncio.wait({waiting, *running}, return_when=asyncio.FIRST_COMPLETED)
                    self.journals.read()
                    self._demand_health()
                    await asyncio.sleep(0)
                return await waiting
        finally:
            waiting.cancel()

    def said(self, side: str) -> str:
        """The end of what a node wrote to its terminal."""
        try:
            return (self.directory / f"{side}.log").read_text(errors="replace")[-_LOG_TAIL:].strip()
        except FileNotFoundError:
            return ""

    def _log(self, side: str) -> IO[bytes]:
        return (self.directory / f"{side}.log").open("ab")

    def _state(self, side: str) -> Path:
        return self.directory / side

    async def _ask(self, side: str, command: str, **args: Any) -> Any:
        try:
            async with ControlClient(self.directory / f"{side}.sock") as node:
                return await node.request(command, **args)
        except NotRunning as error:
            raise LabError(f"{error}; it said: {self.said(side)}") from None

    def _demand_health(self) -> None:
        """Raises LabError if a node ended without saying that it stopped: it crashed or never started."""
        for side, node in self._nodes.items():
            if not node.ended.done() or self._stopped(side):
                continue
            raise LabError(f"the {side} ended with status {node.ended.result()}: {self.said(side)}")

    def _stopped(self, side: str) -> bool:
        mine = [record for record in self.journals.records if record.side == side]
        return bool(mine) and mine[-1].event == "node.stopped"

    def _story(self) -> str:
        last = [
            f"{r.side} {r.event} {r.fields['state'] or ''} {r.reason} {r.transport}" for r in self.journals.records[-6:]
        ]
        said = {side: self.said(side)[-300:] for side in self.roles}
        return f"last events: {'; '.join(last) or 'none'}; the nodes said: {said}"
