"""A real gateway and a real client inside a lab: started from files as on two machines, watched by their journals."""

import asyncio
import contextlib
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Self, TypeVar

from jumpvpn.audit.auditor import Report, audit_files
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.journals import Journals, Record, Wanted
from jumpvpn.lab.lab import Lab
from jumpvpn.lab.topology import GATEWAY_PUBLIC, INNER_NETWORK, UPLINKS
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.control import ControlClient, NotRunning, Refused
from jumpvpn.runtime.keys import create_private_key

Result = TypeVar("Result")

GATEWAY_NAME = "gw1"
CLIENT_INNER = "10.77.0.2"
PORT = 51900
SIDES = ("gateway", "client")
JOURNALS = {side: f"{side}-events.jsonl" for side in SIDES}

# Two interpreters start, exchange a handshake and configure interfaces; a loaded machine may need many times the 1 s.
START_S = 20.0
# A node tears down in well under a second.
STOP_S = 5.0
# No incident takes longer to settle than the recovery window (8 s) and one retry; more means that it never will.
SETTLE_S = 25.0
_LOG_TAIL = 1500
# How often a wish that hold-down refuses is repeated.
_COOLDOWN_STEP_S = 0.2

_GATEWAY = """\
name = "{name}"
private_key_file = "gateway.key"
listen = ["0.0.0.0:{port}"]
state_dir = "gateway"
control = "gateway.sock"
events = "{events}"
store = "{store}"

[tunnel]
pool = "10.77.0.0/24"
routes = ["{network}"]

[forward]
masquerade = false

[[device]]
name = "laptop"
public_key = "{device_key}"
address = "{inner}"
"""

_CLIENT = """\
name = "laptop"
private_key_file = "client.key"
state_dir = "client"
control = "client.sock"
events = "{events}"

[interfaces]
deny = ["in0"]
prefer = [{preferred}]

[[gateway]]
name = "{name}"
address = "{address}:{port}"
public_key = "{gateway_key}"
"""


@dataclass(slots=True)
class _Node:
    """One running process of ours."""

    process: Process
    ended: asyncio.Task[int]


class Deployment:
    """A gateway and a client with one session between them; use as ``async with``, inside a lab that is open.

    `policy` is TOML (tables `[policy.…]`) for both nodes, `client_policy` for the client alone; `prefer` orders the
    client's interfaces. Files live in `directory` (the lab's own by default): configurations, keys, control sockets,
    journals, and what each node says (`gateway.log`, `client.log`). Raises LabError with a node's own words.

    When it is closed, the auditor judges both journals; what it found is in `verdict`, and an error unless
    `demand_verdict` is off. With `archive` set, the journals of every deployment are copied there.
    """

    archive: ClassVar[Path | None] = None

    def __init__(
        self,
        lab: Lab,
        *,
        policy: str = "",
        client_policy: str = "",
        prefer: tuple[str, ...] = ("wlan*", "wwan*"),
        store: str = "sqlite",
        directory: Path | None = None,
        demand_verdict: bool = True,
    ) -> None:
        self.lab = lab
        self.directory = directory or lab.directory
        self.journals = Journals(self.directory, JOURNALS)
        self._policies = {"gateway": policy, "client": policy + client_policy}
        self._prefer = prefer
        self._store = store
        self._nodes: dict[str, _Node] = {}
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

    async def start(self) -> None:
        """Write the files, start both nodes side by side, and return when both call the session ATTACHED."""
        if (missing := self.lab.missing_tun()) is not None:
            raise LabError(missing)
        self.write_configuration()
        self.journals.open()
        since = boot_ns()
        for side in SIDES:
            await self.start_node(side)
        for side in SIDES:
            await self.event(lambda r, side=side: r.side == side and r.turned("ATTACHED"), since, START_S)  # type: ignore[misc]

    async def close(self) -> None:
        """End both nodes in order, the client first, follow their journals no more, and have them judged; idempotent.

        Raises LabError when the journals break a rule, or are incomplete although no node was killed.
        """
        for side in reversed(SIDES):
            await self.stop_node(side)
        self.journals.close()
        if self.verdict is None:
            self._judge()

    def _judge(self) -> None:
        logs = [path for path in self.journals.paths.values() if path.exists() and path.stat().st_size]
        anchors = [path.read_text().strip() for side in SIDES for path in (self.directory / side).glob("*audit.pub")]
        self.verdict = audit_files(logs, anchors=anchors)
        if self.archive is not None:
            for path in logs:
                shutil.copy(path, self.archive / f"{len(list(self.archive.iterdir())):04}-{path.name}")
        good = self.verdict.sound if self._killed or not logs else self.verdict.ok
        if self._demand_verdict and not good:
            raise LabError(f"the auditor does not accept the journals: {self.verdict.explain()}")

    def write_configuration(self) -> None:
        """Write both configurations, with fresh keys if there are none yet."""
        keys = {side: self._public_key(side) for side in SIDES}
        gateway = _GATEWAY.format(
            name=GATEWAY_NAME,
            port=PORT,
            events=JOURNALS["gateway"],
            store=self._store,
            network=INNER_NETWORK,
            device_key=keys["client"],
            inner=CLIENT_INNER,
        )
        client = _CLIENT.format(
            events=JOURNALS["client"],
            preferred=", ".join(f'"{pattern}"' for pattern in self._prefer),
            name=GATEWAY_NAME,
            address=GATEWAY_PUBLIC,
            port=PORT,
            gateway_key=keys["gateway"],
        )
        for side, text in (("gateway", gateway), ("client", client)):
            self.config(side).write_text(f"{text}\n{self._policies[side]}")

    def config(self, side: str) -> Path:
        """The configuration file of one side."""
        return self.directory / f"{side}.toml"

    async def start_node(self, side: str) -> None:
        """Start the command that an administrator would start: ``jumpvpn gateway`` or ``jumpvpn up``."""
        command = "gateway" if side == "gateway" else "up"
        argv = [sys.executable, "-P", "-m", "jumpvpn.cli.main", command, "--config", str(self.config(side))]
        with self._log(side) as log:
            process = await self.lab.exec_async(side, argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
        self._nodes[side] = _Node(process, asyncio.create_task(process.wait()))

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

    async def switch(self, target: str) -> Refused | None:
        """Ask the client for another transport, as ``jumpvpn switch --to``; the refusal if it declines."""
        try:
            await self._ask("client", "switch", to=target)
        except Refused as refused:
            return refused
        return None

    async def terminate(self, side: str = "gateway") -> None:
        """End the session as an operator, as ``jumpvpn terminate``."""
        document = await self.status(side)
        await self._ask(side, "terminate", session=document["sessions"][0]["uid"])

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

    async def attached(self, since_ns: int = 0, *, on: str = "", sides: tuple[str, ...] = SIDES) -> int:
        """Wait until each side enters ATTACHED at or after `since_ns`; the later instant (ns). `on` is a transport."""
        latest = 0
        for side in sides:
            binding = on if side == "client" else ""  # the gateway names transports by their path index
            record = await self.event(
                lambda r, side=side, binding=binding: (  # type: ignore[misc]
                    r.side == side and r.turned("ATTACHED") and r.transport.startswith(binding)
                ),
                since_ns,
            )
            latest = max(latest, record.at_ns)
        return latest

    async def carried_by(self, interface: str) -> None:
        """See to it, as an operator, that the client's active transport is one of `interface` ("": any).

        Raises LabError if policy does not let it be within the time that an incident may take.
        """
        until = boot_ns() + int(SETTLE_S * 1e9)
        while not await self._is_carried_by(interface):
            before = boot_ns()
            refusal = await self.switch(interface)
            if refusal is None:
                await self.attached(before, on=interface)
            elif boot_ns() > until:
                raise LabError(f"the session cannot be brought to {interface}: {refusal}")
            else:
                await asyncio.sleep(_COOLDOWN_STEP_S)

    async def _is_carried_by(self, interface: str) -> bool:
        session = (await self.status("client"))["sessions"][0]
        binding = session["binding"]
        return binding is not None and session["state"] == "ATTACHED" and binding["transport"].startswith(interface)

    def said(self, side: str) -> str:
        """The end of what a node wrote to its terminal."""
        try:
            return (self.directory / f"{side}.log").read_text(errors="replace")[-_LOG_TAIL:].strip()
        except FileNotFoundError:
            return ""

    def _public_key(self, side: str) -> str:
        file = self.directory / f"{side}.key"
        file.unlink(missing_ok=True)
        return create_private_key(file)

    def _log(self, side: str) -> IO[bytes]:
        return (self.directory / f"{side}.log").open("ab")

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
        said = {side: self.said(side)[-300:] for side in SIDES}
        return f"last events: {'; '.join(last) or 'none'}; the nodes said: {said}"


def lay_roaming_cable(lab: Lab) -> str:
    """Give the client a third uplink that works, behind the LTE router; the name of its interface."""
    interface, network = "roam0", "192.168.30"
    lab.cable("client", interface, "lte", "lan1")
    behind = f"ip link set lan1 up; ip address add {network}.1/24 dev lan1"
    here = f"""
ip link set {interface} up
ip address add {network}.2/24 dev {interface}
ip route add default via {network}.1 dev {interface} metric 300
"""
    lab.run("lte", ["sh", "-ec", behind])
    lab.run("client", ["sh", "-ec", here])
    return interface


def interface_of(uplink: str) -> str:
    """The client's interface of an uplink: "wlan0" for "wifi"."""
    return UPLINKS[uplink].interface
