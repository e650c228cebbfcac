"""A real cluster inside a lab: etcd servers, gateways, clients; started from files, watched, judged at the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpvpn.lab.cluster import capture, configuration
from jumpvpn.lab.cluster.clocks import LyingClock
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.store import EtcdServers
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.journals import Record
from jumpvpn.lab.nodes import START_S, NodeSet
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.runtime.control import Refused

# Interpreters that start side by side share the machine's cores.
_START_EACH_S = 2.0
_CAPTURE_S = 10.0
# A full disk refuses the smallest write; the filling is written in pieces of this size, then in single bytes.
_FILLING_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Options:
    """What differs between deployments.

    `policy` is TOML for every node, `lease`, `margin` and `adopt_after` are durations as configurations have them.
    `liars` are nodes whose wall clock can jump, `small_disks` gateways whose state directory is a disk of
    `disk_bytes`; `first` says which gateway a client lists first ("gw1" otherwise).
    """

    policy: str = ""
    lease: str = "2s"
    margin: str = "500ms"
    adopt_after: str = "3s"
    liars: tuple[str, ...] = ()
    small_disks: tuple[str, ...] = ()
    disk_bytes: int = 4 << 20
    first: Mapping[str, str] | None = None


class ClusterDeployment(NodeSet):
    """Gateways and clients of a lab's shape, each client with one session; use as ``async with``.

    Sides are "gw1", …, "client" (the roaming one), "c1", …. Raises LabError with a node's own words.
    """

    def __init__(self, lab: ClusterLab, options: Options | None = None, *, demand_verdict: bool = True) -> None:
        shape = lab.shape
        self.gateways: tuple[str, ...] = shape.gateway_names
        self.clients: tuple[str, ...] = ("client", *shape.crowd_names)
        roles = dict.fromkeys(self.gateways, "gateway") | dict.fromkeys(self.clients, "client")
        journals = {side: f"{side}-events.jsonl" for side in roles}
        super().__init__(lab, lab.directory, roles, journals, demand_verdict=demand_verdict)
        self.cluster_lab = lab
        self.options = options or Options()
        self.store = EtcdServers(lab, lab.directory / "cluster")
        self.clocks: Mapping[str, LyingClock] = {}
        self._captures: dict[str, Process] = {}
        self._stopped_by_us: set[str] = set()
        self._past_runs: set[str] = set()
        self.may_end: set[str] = set()  # gateways that may stop by themselves at the moment

    async def start(self) -> None:
        """Start the store, then gateways, then clients; returns when every session is ATTACHED at both ends."""
        if (missing := self.lab.missing_tun()) is not None:
            raise LabError(missing)
        self.clocks = {side: LyingClock(self.directory, side) for side in self.options.liars}
        await asyncio.to_thread(configuration.init, self.cluster_lab.shape, self.store.files)
        configuration.write(self)
        self.journals.open()
        await self.store.start()
        for namespace in ("server", "client", *self.gateways):
            await self._capture(namespace)
        for gateway in self.gateways:
            await self.start_node(gateway)
        await self.joined(self.gateways)
        since = boot_ns()
        for client in self.clients:
            await self.start_node(client)
        patience = START_S + _START_EACH_S * len(self.clients)
        for client in self.clients:
            settled = await self.event(lambda r, c=client: r.side == c and _begun(r), since, patience)  # type: ignore[misc]
            if not settled.turned("ATTACHED"):
                raise LabError(f"{client} got no session: {self.said(client)}")

    async def close(self) -> None:
        """End everything, clients first, then have all journals judged together; idempotent. Raises LabError."""
        for side in list(self._stopped_by_us):
            self.resume_node(side)
        try:
            await super().close()
        finally:
            await self._end_captures()
            await self.store.close()

    async def standbys(self) -> None:
        """Wait until the roaming client has proved a transport to every gateway that it is not bound to."""
        bound = await self.gateway_of()
        for gateway in self.gateways:
            if gateway != bound:
                await self.event(lambda r, g=gateway: _proved(r, g))  # type: ignore[misc]

    async def joined(self, gateways: Sequence[str], within_s: float = START_S) -> None:
        """Wait until the store knows these gateways' newest processes as members that serve.

        Raises LabError when one ends instead.
        """
        wanted = set(gateways)
        waiting = self.store.until(lambda: wanted <= self._serving(), within_s)
        try:
            await self.while_healthy(waiting, within_s + 1.0)
            for gateway in wanted & set(self.options.small_disks):
                self._keep_anchor(gateway)
        except LabError as error:
            said = {gateway: self.said(gateway)[-300:] for gateway in wanted - self._serving()}
            raise LabError(f"not in the cluster: {said}; {error}") from None

    async def restart_node(self, side: str) -> int:
        """Start a node that has ended, and for a gateway wait until it serves again; when it does (boot ns)."""
        if side in self.store.holders():
            self._past_runs.add(str(self.store.holders()[side].record.get("run")))
        await self.start_node(side)
        if self.roles[side] == "gateway":
            await self.joined([side])
        return boot_ns()

    def pause_node(self, side: str) -> int:
        """SIGSTOP: the process takes no step until `resume_node`; the boot time (ns) just before."""
        before = boot_ns()
        self._nodes[side].process.send_signal(signal.SIGSTOP)
        self._stopped_by_us.add(side)
        return before

    def resume_node(self, side: str) -> int:
        """SIGCONT; the boot time (ns) just before."""
        before = boot_ns()
        self._stopped_by_us.discard(side)
        if side in self._nodes:
            with contextlib.suppress(ProcessLookupError):
                self._nodes[side].process.send_signal(signal.SIGCONT)
        return before

    def runs(self, side: str) -> bool:
        """Whether a node's process was started and has not ended."""
        return side in self._nodes and not self._nodes[side].ended.done()

    def forget(self, side: str) -> None:
        """Take note that a node has ended by itself, as it may: its journal may lack its last lines."""
        self._nodes.pop(side, None)
        self._killed = True

    async def drain(self, gateway: str) -> int:
        """Ask a gateway to send its clients elsewhere, as ``jumpvpn drain``; how many it still has."""
        return int((await self._ask(gateway, "drain", set="on"))["sessions"])

    async def undrain(self, gateway: str) -> None:
        """Let a gateway take sessions again."""
        await self._ask(gateway, "drain", set="off")

    async def left(self, gateway: str) -> int:
        """How many living sessions a gateway still owns."""
        return int((await self._ask(gateway, "drain"))["sessions"])

    async def sessions(self, side: str) -> list[dict[str, Any]]:
        """The sessions of a node, as its status tells."""
        found: list[dict[str, Any]] = (await self.status(side))["sessions"]
        return [session for session in found if session["uid"]]

    async def uids(self) -> dict[str, str]:
        """The name of each client's session."""
        return {client: str((await self.sessions(client))[0]["uid"]) for client in self.clients}

    async def gateway_of(self, client: str = "client") -> str:
        """Which gateway carries a client's session, by the client's own words; empty if none does."""
        sessions = await self.sessions(client)
        binding = sessions[0]["binding"] if sessions else None
        return str(binding["transport"]).rpartition("/")[2] if binding else ""

    def reigns(self, uid: str) -> list[capture.Reign]:
        """The owners of a session in the store's order, one for each term."""
        found: list[capture.Reign] = []
        term = 0
        for change in sorted(self.store.changes, key=lambda change: change.revision):
            record = change.record
            if change.session and record.get("chain", "").endswith(uid) and record.get("term", 0) > term:
                term = record["term"]
                found.append(capture.Reign(change.at_ns, record["owner"]))
        return found

    def owners(self, uid: str) -> list[str]:
        """Their names."""
        return [reign.gateway for reign in self.reigns(uid)]

    async def move(self, client: str, gateway: str) -> None:
        """Bring a client's session to a gateway, as ``jumpvpn switch --to``. Raises LabError when it is refused."""
        for transport in (await self.sessions(client))[0]["transports"]:
            if transport["gateway"] == gateway and transport["state"] in ("standby", "candidate"):
                try:
                    await self._ask(client, "switch", to=transport["id"])
                except Refused as refused:
                    raise LabError(f"{client} cannot move to {gateway}: {refused}") from None
                return
        raise LabError(f"{client} has no standby at {gateway}")

    async def revive(self, gateway: str) -> None:
        """Start a gateway anew if it has stopped by itself, as it might."""
        if gateway in self.may_end and not self.runs(gateway):
            self.forget(gateway)
            await self.restart_node(gateway)

    def fill_disk(self, gateway: str) -> None:
        """Fill the small disk that holds a gateway's state directory."""
        with self._filling(gateway).open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(_FILLING_BYTES)):
                pass
        with self._filling(gateway).open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1)):
                pass

    def free_disk(self, gateway: str) -> None:
        """Give the gateway its space back."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended, and its disk with it
            self._filling(gateway).unlink(missing_ok=True)

    async def captured(self) -> capture.Sightings:
        """End the captures; what was seen, by namespace: "client", "server", and each gateway."""
        namespaces = list(self._captures)
        await self._end_captures()
        return {namespace: capture.load(self.directory / f"{namespace}.seen") for namespace in namespaces}

    def births(self) -> list[Record]:
        """The handshakes that gateways completed."""
        return [
            record for record in self.journals.records
            if self.roles[record.side] == "gateway" and record.turned("ATTACHED") and record.reason == "handshake_ok"
        ]  # fmt: skip

    async def _launch(self, side: str, argv: Sequence[str], **options: Any) -> Process:
        if side in self.clocks:
            options["env"] = dict(os.environ) | self.clocks[side].environment
        if side in self.options.small_disks:
            mount = f'mount -t tmpfs -o size={self.options.disk_bytes},mode=700 disk "$0" && exec "$@"'
            self._state(side).mkdir(mode=0o700, exist_ok=True)
            argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, str(self._state(side)), *argv]
        return await super()._launch(side, argv, **options)

    def _demand_health(self) -> None:
        for side in [side for side in self.may_end if side in self._nodes and self._nodes[side].ended.done()]:
            self.forget(side)
        super()._demand_health()

    def _serving(self) -> set[str]:
        """Members that serve; what a dead process held until its lease ended does not count."""
        held = {node: change.record for node, change in self.store.holders().items()}
        return {
            node
            for node, record in held.items()
            if record.get("state") == "serving" and record.get("run") not in self._past_runs
        }

    def _filling(self, gateway: str) -> Path:
        """Our file on the gateway's disk, by way of the process that has it mounted."""
        if gateway not in self.options.small_disks:
            raise LabError(f"{gateway} has no disk of its own: name it in small_disks")
        return Path(f"/proc/{self._nodes[gateway].process.pid}/root") / str(self._state(gateway))[1:] / "filling"

    def _keep_anchor(self, gateway: str) -> None:
        """Keep the key that verifies a gateway's events beside its disk, which ends with the process."""
        for number in itertools.count():
            kept = self._state(gateway) / f"{number}-audit.pub"
            if not kept.exists():
                kept.write_bytes(self._filling(gateway).with_name("audit.pub").read_bytes())
                return

    async def _capture(self, namespace: str) -> None:
        pool = configuration.POOL_PREFIX
        out = self.directory / f"{namespace}.seen"
        argv = [sys.executable, "-P", "-m", "jumpvpn.lab.cluster.capture", "--pool", pool, "--out", str(out)]
        argv += ["--gateway"] if namespace in self.gateways else []
        with (self.directory / "capture.log").open("ab") as log:
            process = await self.lab.exec_async(namespace, argv, stdin=DEVNULL, stdout=PIPE, stderr=log)
        self._captures[namespace] = process
        assert process.stdout is not None
        if not await asyncio.wait_for(process.stdout.readline(), _CAPTURE_S):
            raise LabError(f"no capture in {namespace}: {(self.directory / 'capture.log').read_text()[-300:]}")

    async def _end_captures(self) -> None:
        for process in self._captures.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        self._captures.clear()


def _begun(record: Record) -> bool:
    return record.turned("ATTACHED") or record.turned("TERMINATED")


def _proved(record: Record, gateway: str) -> bool:
    proved = record.event == "transport.candidate" and record.data.get("change") == "validated"
    return proved and record.side == "client" and record.transport.endswith(f"/{gateway}")
