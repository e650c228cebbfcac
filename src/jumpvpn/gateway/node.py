"""The gateway process: acquires what it needs in order, restores its sessions, runs the engine, gives all back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpvpn.audit.chain import Chain
from jumpvpn.config import GatewayConfig, load_gateway
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.gateway.addresses import admitted_devices
from jumpvpn.gateway.executor import Admitted, GatewayExecutor
from jumpvpn.gateway.returning import Returning
from jumpvpn.policy.problems import Rejected
from jumpvpn.runtime import clock, journal, node, status
from jumpvpn.runtime.announce import Announcer
from jumpvpn.runtime.checkpoints import CheckpointKeys
from jumpvpn.runtime.cleanup import Ownership, TunInterface
from jumpvpn.runtime.control import ControlServer, Refused
from jumpvpn.runtime.dataplane import Plane, drain, public_key
from jumpvpn.runtime.driver import Driver
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.keys import read_cluster_key, read_private_key
from jumpvpn.runtime.nat import Forwarding, enable_forwarding
from jumpvpn.runtime.recorder import STANDALONE_CLUSTER, Recorder
from jumpvpn.runtime.routing import configure_tunnel
from jumpvpn.runtime.stores.base import Store, StoreUnavailable
from jumpvpn.runtime.stores.membership import Member, Serving
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.runtime.stores.sqlite import SqliteStore
from jumpvpn.session.records import FORMAT, BadRecord, decode, is_of_boot
from jumpvpn.values import DomainEvent
from jumpvpn.wire.welcome import Limits, Welcome, encode_welcome

if TYPE_CHECKING:
    from jumpvpn.gateway.cluster import Cluster
    from jumpvpn.gateway.shared import Shared

CLUSTER_KEY_BYTES = 32
BIRTH_VERSION = 1  # of the record that a client is welcomed with


class GatewayNode:
    """One gateway. ``run`` returns the exit code; what a person can act on is raised, with words (``cli.failures``)."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._engine = GatewayEngine(config.policy)
        self._stopped: asyncio.Future[None]
        self._restored: asyncio.Event
        self._plane_handle: Plane
        self._recorder: Recorder
        self._executor: GatewayExecutor
        self._driver: Driver
        self._returning: Returning
        self._cluster: Cluster | None = None

    async def run(self) -> int:
        """Run until a signal or ``jumpvpn down``; the sessions stay in the store."""
        self._stopped = asyncio.get_running_loop().create_future()
        self._restored = asyncio.Event()
        node.on_defects(self._failed)
        node.require_privileges()
        key = read_private_key(self._config.private_key_file)
        devices = admitted_devices(self._config)
        node.make_private_directory(self._config.state_dir)
        async with contextlib.AsyncExitStack() as stack:
            return await self._run(stack, key, devices)

    async def _run(self, stack: contextlib.AsyncExitStack, key: bytes, devices: dict[bytes, Admitted]) -> int:
        config = self._config
        owner = await Ownership.claim(config.state_dir / "owned-gateway.json")
        stack.push_async_callback(node.release, owner)
        events = journal.Journal(config.events)
        stack.callback(events.close)
        shared = await self._open_shared()
        store = shared.store if shared is not None else await self._open_store()
        stack.push_async_callback(store.close)
        await journal.export_outbox(store, events)
        keys = CheckpointKeys.open(config.state_dir, config.name, "gateway", config.events)
        tape = node.start_recording(config.recording, self._engine, stack)
        name = config.cluster.name if config.cluster is not None else STANDALONE_CLUSTER
        self._recorder = Recorder.create(config.name, "gateway", events, store, config.policy, keys, tape, name)
        control = ControlServer(config.control, self._commands(), {"events": journal.stream(config.events)})
        await control.start()
        stack.push_async_callback(control.close)
        plane = self._plane_handle = self._plane(key, owner)
        stack.callback(plane.stop)
        self._executor = GatewayExecutor(plane, devices, self._welcome, self._post)
        self._driver = Driver(self._engine, self._executor, self._recorder)
        self._returning = Returning(self._driver.post, self._driver.rest, self._executor.admission.is_busy)
        node.on_signals(self._stop, self._reload)
        await self._connect_inside(owner)
        announcer = self._announcer(owner, stack)
        self._started()
        await self._take_up(shared, store, key)
        self._listen(plane)
        loop = asyncio.get_running_loop()
        loop.add_reader(plane.fact_fd, drain, plane, self._executor.consume)
        stack.callback(loop.remove_reader, plane.fact_fd)
        async with node.background(*self._jobs(announcer), on_failure=self._failed):
            await self._serve()
        self._recorder.stop({"cause": "asked"}, clock.now())
        return 0

    async def _take_up(self, shared: Shared | None, store: Store, key: bytes) -> None:
        """Join the cluster, or bring back what the store has; what prevents it is told in the journal, too."""
        try:
            if shared is not None:
                await self._join(shared, key)
            else:
                await self._restore(store)
        except (StartFailed, StoreUnavailable) as failure:
            self._recorder.stop({"cause": "start_failed", "error": str(failure)}, clock.now())
            raise

    async def _serve(self) -> None:
        """From the first restored session to the end."""
        if self._cluster is None:
            await self._ready()
            return
        try:
            restoring = asyncio.ensure_future(self._cluster.restore())
            await asyncio.wait((restoring, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if restoring.done():
                restoring.result()
            await self._ready()
            self._stopped = asyncio.get_running_loop().create_future()  # a second wish to stop does not wait
            await self._cluster.send_away(self._stopped)
            if self._stopped.done():
                self._stopped.result()
        finally:
            await self._cluster.leave()

    async def _ready(self) -> None:
        """Say so, and serve until somebody wants this node to stop."""
        self._restored.set()
        if not self._stopped.done():
            self._announce_ready()
        await self._stopped

    def _jobs(self, announcer: Announcer | None) -> tuple[Coroutine[Any, Any, None], ...]:
        """What runs beside the node until it ends."""
        announcing = (announcer.run(),) if announcer is not None else ()
        clustered = self._cluster.jobs() if self._cluster is not None else ()
        return self._driver.run(), self._returning.run(), *self._recorder.jobs(), *announcing, *clustered

    def _announcer(self, owner: Ownership, stack: contextlib.AsyncExitStack) -> Announcer | None:
        """Return traffic, as ``[announce]`` wishes; None if it wishes nothing."""
        wish, tunnel = self._config.announce, self._config.tunnel
        if wish.mode == "none":
            return None
        pools = [str(pool) for pool in (tunnel.pool, tunnel.pool6) if pool is not None]
        announcer = Announcer.create(
            wish.mode, wish.interface, wish.command, owner, self._complain, pools=pools, tunnel=tunnel.name
        )
        stack.push_async_callback(announcer.close)
        self._executor.announcing = announcer
        return announcer

    async def _join(self, shared: Shared, key: bytes) -> None:
        """Become a member of the cluster: until the lease is confirmed nothing is forwarded."""
        from jumpvpn.gateway.cluster import Cluster  # noqa: PLC0415 - as in _open_shared

        config = self._config
        assert config.cluster is not None
        self._plane_handle.set_deadline(0)
        member = Member(
            node=config.name, address=config.cluster.advertise, public_key=public_key(key), run=secrets.token_hex(4),
            state=Serving.SERVING, program_version=status.program_version(), formats=(FORMAT,),
        )  # fmt: skip
        self._cluster = Cluster(
            config, config.cluster, shared, member, self._engine, self._plane_handle, self._executor, self._recorder,
            self._post, self._emit, self._returning.rest,
        )  # fmt: skip
        await self._cluster.join()

    async def _open_shared(self) -> Shared | None:
        if self._config.cluster is None:
            return None
        from jumpvpn.gateway.shared import Shared  # noqa: PLC0415 - it loads etcd's client, and a start is awaited

        return await Shared.open(self._config, self._config.cluster)

    async def _open_store(self) -> Store:
        if self._config.store == "memory":
            return MemoryStore()
        return await SqliteStore.open(self._config.state_dir / "sessions.sqlite")

    def _plane(self, key: bytes, owner: Ownership) -> Plane:
        config, recovery = self._config, self._config.policy.recovery
        owner.note(TunInterface(config.tunnel.name))
        try:
            return Plane(
                role="gateway", private_key=key, cluster_key=self._key_of_cluster(),
                tun=config.tunnel.name, mtu=config.tunnel.mtu, queue_bytes=1 << 20,
                replay_bytes=recovery.replay_buffer, replay_ms=recovery.replay_time // 1_000_000,
            )  # fmt: skip
        except OSError as error:
            raise StartFailed(f"cannot create the tunnel interface {config.tunnel.name}: {error}") from error

    def _key_of_cluster(self) -> bytes:
        cluster = self._config.cluster
        if cluster is not None:
            return read_cluster_key(cluster.key_file)
        path = self._config.key_file or self._config.state_dir / "cluster.key"
        return read_cluster_key(path) if path.exists() else _made_cluster_key(path)

    def _listen(self, plane: Plane) -> None:
        for address in self._config.listen:
            try:
                plane.open_socket(bind=address, interface=None, mark=0)
            except OSError as error:
                text = error.strerror or str(error)
                raise StartFailed(
                    f"cannot listen on {address}: {text}; is another gateway running there, or is the address not ours?"
                ) from error

    async def _connect_inside(self, owner: Ownership) -> None:
        config, tunnel = self._config, self._config.tunnel
        addresses = [str(address) for address in tunnel.gateway_addresses()]
        await configure_tunnel(owner, tunnel.name, addresses, tunnel.mtu)
        if not config.forward.enabled:
            return
        pools = tuple(str(pool) for pool in (tunnel.pool, tunnel.pool6) if pool is not None)
        forwarding = Forwarding(
            instance=tunnel.name, tunnel=tunnel.name, pools=pools, masquerade=config.forward.masquerade,
            interfaces=config.forward.interfaces, inside=config.announce.interface,
            shares_segment=config.announce.mode == "arp",
        )  # fmt: skip
        await enable_forwarding(owner, forwarding)

    async def _restore(self, store: Store) -> None:
        """Bring back the sessions of before: they keep their identity and wait for their clients to reattach."""
        now = clock.now()
        for stored in await store.load_all():
            try:
                session, kept = decode(stored.body, self._config.policy, now, clock.boot_id())
                self._executor.restore(session.id, stored.sealed or b"", kept)
            except (BadRecord, ValueError, OSError) as error:
                raise StartFailed(
                    f"the store in {self._config.state_dir} holds a record this gateway cannot read ({error}); "
                    "is cluster.key the one that wrote it? Restore it, or move the store away to start afresh"
                ) from error
            self._recorder.resume(session.uid, Chain(stored.chain, stored.seq, stored.head))
            guessed = not is_of_boot(stored.body, clock.boot_id())
            self._post(inp.SessionRestored(session, kept.device, age_guessed=guessed))

    def _welcome(self, admitted: Admitted) -> bytes:
        tunnel = self._config.tunnel
        return encode_welcome(
            Welcome(
                gateway=self._config.name, addresses=admitted.inner, routes=tuple(str(r) for r in tunnel.routes),
                mtu=tunnel.mtu,
                limits=Limits.of(self._engine.policy), version=BIRTH_VERSION,
                gateways=self._cluster.gateways() if self._cluster is not None else (),
            )
        )  # fmt: skip

    # --- control -----------------------------------------------------------------------------------------------------

    def _commands(self) -> dict[str, Any]:
        return {
            "status": self._status, "outlook": self._outlook, "down": self._down, "terminate": self._terminate,
            "switch": self._switch, "drain": self._drain, "cluster": self._cluster_status,
        }  # fmt: skip

    async def _status(self, _args: Any) -> Any:
        await self._all_here()
        names, late = self._executor.names, self._executor.race.lost
        told = status.of_gateway(self._engine, self._executor.handles, self._plane_handle, self._config, names, late)
        return told if self._cluster is None else {**told, "cluster": self._cluster.summary()}

    async def _cluster_status(self, args: Any) -> Any:
        return await self._member().document(with_sessions=bool(args.get("sessions")))

    async def _drain(self, args: Any) -> Any:
        cluster, wish = self._member(), args.get("set")
        if wish not in (None, "on", "off"):
            raise Refused("set is on or off", "usage")
        if wish is not None:
            cluster.drain(on=wish == "on")
        return {"state": cluster.keeper.wish.value, "sessions": len(self._engine.places)}

    def _member(self) -> Cluster:
        if self._cluster is None:
            raise Refused("this gateway stands alone: its file has no [cluster]", "usage")
        return self._cluster

    async def _outlook(self, args: Any) -> Any:
        await self._all_here()
        now = clock.now()
        told = outlook.of_gateway(self._engine, str(args.get("session") or ""), now.boot)
        where = {"role": self._config.role, "node": self._config.name, "events_file": str(self._config.events)}
        return {**where, "time_ms": now.wall_ms, **told}

    async def _down(self, _args: Any) -> Any:
        self._stop()
        return {"stopping": True}

    async def _terminate(self, args: Any) -> Any:
        await self._all_here()
        wanted = str(args.get("session") or "")
        matches = [uid for uid in self._engine.places if uid.startswith(wanted)] if wanted else []
        if len(matches) != 1:
            known = ", ".join(sorted(self._engine.places)) or "none"
            raise Refused(f"name one session by its uid; live ones are: {known}", "unknown_session")
        self._post(inp.OperatorTerminate(matches[0]))
        return {"terminating": matches[0]}

    async def _switch(self, _args: Any) -> Any:
        raise Refused("transports are the client's; run 'jumpvpn switch' there", "invalid_transport_candidate")

    # --- ends --------------------------------------------------------------------------------------------------------

    def _post(self, event: Any) -> None:
        self._returning.post(event)

    async def _all_here(self) -> None:
        """Wait until the engine knows every session: before, less would be told than there is."""
        await self._restored.wait()
        await self._returning.rest()

    def _emit(self, event: DomainEvent) -> None:
        try:
            self._recorder.emit((event,), clock.now())
        except journal.JournalFailed as failure:
            self._failed(failure)

    def _complain(self, text: str) -> None:
        sys.stderr.write(f"jumpvpn: {text}\n")

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _failed(self, failure: BaseException) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(failure)

    def _reload(self) -> None:
        if self._config.source is None:
            return
        try:
            policy = load_gateway(self._config.source).policy
        except (Rejected, OSError) as error:
            self._post(inp.PolicyOffered(None, tuple(str(error).splitlines())))
            return
        self._recorder.use_policy(policy, clock.now())
        self._post(inp.PolicyOffered(policy))

    def _started(self) -> None:
        data = {"role": "gateway", "boot_id": clock.boot_id(), "program_version": status.program_version()}
        self._recorder.start(data, clock.now())
        self._recorder.use_policy(self._config.policy, clock.now(), "start")

    def _announce_ready(self) -> None:
        listening = ", ".join(self._config.listen)
        sys.stderr.write(f"jumpvpn: gateway {self._config.name} listens on {listening} (UDP)\n")
        self._recorder.keys.introduce()


def _made_cluster_key(path: Path) -> bytes:
    """A fresh key under which records and tickets are sealed, in ``path`` (0600). Raises StartFailed."""
    key = os.urandom(CLUSTER_KEY_BYTES)
    draft = path.with_name(path.name + ".new")  # a full disk or a kill leaves no half key under the real name
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise StartFailed(f"cannot make {path}: {error.strerror}") from error
    return key
