"""One gateway's machine and the processes that run on it: the shell as shipped over a packet core of the simulation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, cast

import msgspec

from jumpvpn.config import GatewayConfig
from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.gateway.cluster import Cluster
from jumpvpn.gateway.executor import Admitted, GatewayExecutor
from jumpvpn.gateway.returning import Returning
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.driver import Driver
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.journal import export_outbox
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.stores.base import StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.membership import Member, Serving
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.session.records import FORMAT
from jumpvpn.sim.cluster.etcd import Joined, NodeLeases, Records, Sightings
from jumpvpn.sim.cluster.loop import PROCESS, Process
from jumpvpn.sim.cluster.machines import HERE, Machine
from jumpvpn.sim.cluster.plane import Hosted, NodePlane
from jumpvpn.sim.link import Link
from jumpvpn.values import SECOND, DomainEvent, TransportId
from jumpvpn.wire.welcome import Limits, Welcome, encode_welcome

if TYPE_CHECKING:
    from jumpvpn.sim.cluster.world import ClusterWorld

START_AGAIN = SECOND // 2  # a start that fails is tried again by whoever supervises the process


class Lines:
    """The journal's file."""

    def __init__(self, let_go: Callable[[str, int, str], None]) -> None:
        self.lines: list[bytes] = []
        self._let_go = let_go

    def append(self, lines: Sequence[bytes]) -> None:
        """All of them."""
        self.lines += lines
        for line in lines:
            if b'"event":"ownership.lost"' in line:
                told = msgspec.json.decode(line)
                self._let_go(told["session_uid"], told["owner_epoch"], told["data"]["code"])


class LocalFile(MemoryStore):
    """The file of sessions, which outlives its process."""

    def row(self, session_id: bytes) -> StoredSession | None:
        """What it has of a session."""
        return self._sessions.get(session_id)


class Disk:
    """The state directory: one small text file by name."""

    def __init__(self) -> None:
        self._text: str | None = None

    def __truediv__(self, _name: str) -> Disk:
        return self

    def read_text(self, **_how: str) -> str:
        """What was written last. Raises OSError."""
        if self._text is None:
            raise FileNotFoundError
        return self._text

    def write_text(self, text: str, **_how: str) -> None:
        """Keep it."""
        self._text = text

    def stat(self) -> os.stat_result:
        """Nobody copies it: one directory for ever."""
        return os.stat_result((0,) * 10)

    def unlink(self, **_how: bool) -> None:
        """Forget it."""
        self._text = None


class GatewayHost:
    """One machine: what it has on disk outlives its processes."""

    def __init__(self, world: ClusterWorld, machine: Machine, rules: Policy, config: ClusterConfig) -> None:
        self.world, self.machine, self.rules, self.config = world, machine, rules, config
        self.name = machine.name
        self.journal, self.disk, self.local = Lines(self._let_go), Disk(), LocalFile()
        self.sightings = Sightings()
        self.process: Process | None = None
        self.plane: NodePlane
        self.engine: GatewayEngine
        self.cluster: Cluster | None = None
        self.recorder: Recorder | None = None
        self.driver: Driver
        self._executor: GatewayExecutor
        self.zero_rtt = self.measures = True
        self.wanted = True
        self.leaving = False
        self.started_at = 0
        self.confirmed_at: int | None = None
        self.recalled: list[tuple[Hosted, int, str]] = []  # one packet each that was checked before a pause
        self._context = Context()
        self._runs = 0
        self.disks_lost = 0

    def _let_go(self, uid: str, term: int, code: str) -> None:
        self.world.checker.let_go(self.name, uid, term, code)

    # --- processes ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a process exists and makes steps."""
        return self.process is not None and not self.process.paused

    def start(self) -> None:
        """A process begins, unless one runs."""
        self.wanted = True
        if self.process is not None:
            return
        self.leaving = False
        self._runs += 1
        self.process = Process(f"{self.name}.{self._runs}")
        self.world.processes.append(self.process)
        self._context = copy_context()
        self._context.run(HERE.set, self.machine)
        self._context.run(PROCESS.set, self.process)
        self.plane, self.engine, self.cluster = NodePlane(self), GatewayEngine(self.rules), None
        self.started_at, self.confirmed_at = self.world.now, None
        self.sightings.clear()
        task = self.world.loop.start(self.process, self._live(self.process), self._context)
        task.add_done_callback(self._ended)

    def kill(self, *, lose_disk: bool = False) -> None:
        """The process is gone without a word; ``lose_disk``: so is all that the machine had on disk."""
        if self.process is None:
            return
        self.process.dead = True
        self.process = None
        self.cluster = None
        self.recalled.clear()
        if lose_disk:
            self.disks_lost += 1
            self.local, self.disk, self.journal = LocalFile(), Disk(), Lines(self._let_go)

    def leave(self) -> None:
        """SIGTERM: clients are sent away, the lease is given back, the process ends."""
        if self.process is not None and self.cluster is not None and self.confirmed_at is not None:
            self.wanted, self.leaving = False, True
            work = self._leave(self.process, self.cluster)
            self.world.loop.start(self.process, work, self._context).add_done_callback(self._ended)

    async def _leave(self, process: Process, cluster: Cluster) -> None:
        await cluster.send_away(asyncio.get_running_loop().create_future())
        await cluster.leave()
        if self.process is process:
            self.kill()

    def pause(self) -> None:
        """SIGSTOP, at worst between the check of a packet and its sending."""
        if self.process is not None and not self.process.paused:
            self.recalled = [(s, s.key or 0, s.keys.get(s.key or 0, "")) for s in self.hosted() if s.forwards()]
            self.process.paused = True

    def resume(self) -> None:
        """SIGCONT: the packet that was checked leaves first."""
        if self.process is None or not self.process.paused:
            return
        for hosted, epoch, keys in self.recalled:
            if hosted.active is not None:
                peer = hosted.paths[hosted.active].peer
                content = {"epoch": epoch, "keys": keys, "data": True, "path": hosted.active}
                self.carry_back(hosted.uid, "data", peer, content)
        self.recalled.clear()
        self.world.loop.resume(self.process)

    def hosted(self) -> list[Hosted]:
        """The sessions in the packet core."""
        return list(self.plane.sessions.values()) if self.process is not None else []

    def lingers(self, hosted: Hosted) -> bool:
        """Whether a session that has left this gateway still has its keys here for a while."""
        return self._executor.handles.get(hosted.uid) != hosted.handle

    async def _live(self, process: Process) -> None:
        try:
            await self._run()
        except (StoreUnavailable, StartFailed):
            process.dead = True
            self.process = self.cluster = None
            self.world.later(START_AGAIN, self._again)

    def _again(self) -> None:
        if self.wanted:
            self.start()

    async def _run(self) -> None:
        server, machine = self.world.server, self.machine
        shared = Joined(NodeLeases(server, machine, self.sightings), self.world.inner)
        shared.store = await ClusterStore.open(
            self.local, Records(server, machine), self.name, give_up_at=shared.until, conflicts=shared.tell_lost,
            foreign=shared.tell,
        )  # fmt: skip
        journal = cast(Any, self.journal)
        await export_outbox(shared.store, journal)
        cluster_name = self.config.name
        recorder = self.recorder = Recorder.create(
            self.name, "gateway", journal, shared.store, self.rules, cast(Any, None), None, cluster_name
        )
        self.plane.set_deadline(0)
        plane = cast(Any, self.plane)
        devices = {key: Admitted("c0ffee", inner) for key, inner in self.world.inner.items()}
        executor = self._executor = GatewayExecutor(plane, devices, self._welcome, self._post)
        self.plane.consume = executor.consume
        self.driver = Driver(self.engine, executor, recorder)
        self.returning = Returning(self.driver.post, self.driver.rest, executor.admission.is_busy)
        self._note(DomainEvent("node.started", "N", data={"role": "gateway", "boot_id": machine.boot_id}))
        recorder.use_policy(self.rules, clock.now(), "start")
        config = GatewayConfig.model_construct(name=self.name, state_dir=cast(Any, self.disk), policy=self.rules)
        cluster = self.cluster = Cluster(
            config, self.config, cast(Any, shared), self._member(), self.engine, plane, executor, recorder, self._post,
            self._note, self.returning.rest,
        )  # fmt: skip
        await cluster.join()
        jobs = [self.driver.run(), self.returning.run(), recorder.forget_exported(), *cluster.jobs()]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        for task in tasks:
            task.add_done_callback(self._ended)
        await cluster.restore()
        self.confirmed_at = self.world.now

    def _ended(self, task: asyncio.Task[None]) -> None:
        """No job ends while its process runs."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.loop.defects.append(error)

    def _member(self) -> Member:
        return Member(
            self.name, self.config.advertise, self.world.public_key(self.name), f"run{self._runs}", Serving.SERVING,
            "0", (FORMAT,),
        )  # fmt: skip

    def _welcome(self, admitted: Admitted) -> bytes:
        assert self.cluster is not None, "births are decided by a cluster"
        return encode_welcome(
            Welcome(self.name, admitted.inner, (), 1400, Limits.of(self.engine.policy), 1, self.cluster.gateways())
        )

    def _post(self, event: Any) -> None:
        self.returning.post(event)

    def _note(self, event: DomainEvent) -> None:
        assert self.recorder is not None, "a process that runs has one"
        self.recorder.emit((event,), clock.now())
        self.world.told(self.name, (event,))

    # --- orders of people --------------------------------------------------------------------------------------------

    def within(self, action: Callable[..., Any], *args: Any) -> None:
        """Do something in the process, as a control socket would ask for it."""
        if self.process is not None:
            self.world.loop.at(self.world.now, action, *args, context=self._context)

    def drain(self, *, on: bool) -> None:
        """Ask to be left, or take that back."""
        if self.cluster is not None and self.confirmed_at is not None:
            cluster = self.cluster
            self.within(lambda: cluster.drain(on=on))

    def terminate(self, uid: str) -> None:
        """An operator ends a session here."""
        if self.cluster is not None and uid in self.engine.places:
            self.within(self._post, inp.OperatorTerminate(uid))

    def close(self) -> None:
        """The end of the run: summaries that are held back go to the journal."""
        if self.process is not None and self.recorder is not None:
            self.journal.append(self.recorder.sealer.due(self.machine.now()))

    # --- what the packet core asks -----------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """True time (ns): the packet core's intervals are too short for drift."""
        return self.world.now

    @property
    def traffic(self) -> bool:
        """Whether inner packets flow."""
        return self.world.traffic

    def number(self) -> int:
        """A fresh number."""
        return self.world.number()

    def draw(self) -> str:
        """A nonce of this gateway."""
        return f"{self.name}.{self.world.number():x}"

    def after(self, delay: int, action: Callable[..., None], *args: Any) -> None:
        """Do something later, in this process."""
        self.world.loop.at(self.world.now + delay, action, *args, context=self._context)

    def runs(self, plane: Hosted) -> bool:
        """Whether that session is still here."""
        return self.process is not None and self.plane.sessions.get(plane.handle) is plane

    def shown_loss(self, _transport: TransportId) -> float:
        """The gateway knows of none."""
        return 0.0

    def carry_back(self, uid: str, kind: str, address: str, content: dict[str, Any]) -> None:
        """Towards the client that has ``address``."""
        content["uid"] = uid
        self.world.carry_back(self, kind, address, content)


def link_between(host: int, interface: int, gateway: int) -> Link:
    """The way of one client's interface to one gateway, with an address of its own."""
    local = f"10.{host}.{interface}.2"
    return Link(f"{local}:{5000 + gateway}", local)
