"""The client process: acquires what it needs in order, runs the engine, gives everything back."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import ipaddress
import secrets
import sys
from collections.abc import Iterable
from typing import Any

from jumpvpn.client import memory
from jumpvpn.client.executor import ClientExecutor, Source
from jumpvpn.client.gateways import PROTOCOL, KnownGateways, Situation, chosen
from jumpvpn.client.handshake import Answer, Handshake, NoAnswer
from jumpvpn.client.names import Names
from jumpvpn.config import ClientConfig, load_client, preferring, split_address
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.model import TransportPolicy
from jumpvpn.policy.problems import Rejected
from jumpvpn.runtime import clock, journal, node, status
from jumpvpn.runtime.checkpoints import CheckpointKeys
from jumpvpn.runtime.cleanup import Ownership, TunInterface
from jumpvpn.runtime.control import ControlServer, Refused
from jumpvpn.runtime.dataplane import Plane, drain
from jumpvpn.runtime.driver import Driver
from jumpvpn.runtime.errors import StartFailed
from jumpvpn.runtime.keys import read_private_key
from jumpvpn.runtime.netlink import NetMonitor
from jumpvpn.runtime.netstate import NetFact, Usable, usable_transports
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.routing import configure_tunnel, loosen_source_check, protect_inner_addresses, route_into_tunnel
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept
from jumpvpn.session.state import State
from jumpvpn.transports.state import Condition
from jumpvpn.values import SessionId, TransportId, Version
from jumpvpn.wire.gateways import Gateway
from jumpvpn.wire.welcome import BadWelcome, Welcome, decode_welcome

NAMES_AGAIN_SECONDS = 30.0  # a gateway whose name is not found may be found when the network is another one
EXIT_TERMINATED = 3  # the session ended by a rule; the reason is printed. 0: someone asked for it


class ClientNode:
    """One client. ``run`` returns the exit code; what a person can act on is raised, with words (``cli.failures``)."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._policy = preferring(config.policy, config.interfaces.prefer)
        self._engine = ClientEngine(self._policy)
        self._ended: asyncio.Future[Reason]
        self._plane_handle: Plane
        self._recorder: Recorder
        self._executor: ClientExecutor
        self._driver: Driver
        self._welcome: Welcome | None = None
        self._gateways = KnownGateways(config.gateway)
        self._names = Names()
        self._monitor: NetMonitor
        self._told = asyncio.Event()  # the cluster told its list
        self._kept: tuple[Gateway, ...] = ()  # the list on disk
        self._seen: tuple[str | None, frozenset[str], TransportPolicy] = (None, frozenset(), self._policy.transports)
        self._leaving: set[str] = set()  # gateways that were given up because they leave, until the list changes
        self._passed = 0  # gateways that were tried in vain before the birth
        self._complaint = ""

    async def run(self) -> int:
        """Run until the session ends or a signal comes."""
        self._ended = asyncio.get_running_loop().create_future()
        node.on_defects(self._failed)
        node.require_privileges()
        key = read_private_key(self._config.private_key_file)
        node.make_private_directory(self._config.state_dir)
        async with contextlib.AsyncExitStack() as stack:
            return await self._run(stack, key)

    async def _run(self, stack: contextlib.AsyncExitStack, key: bytes) -> int:
        config = self._config
        owner = await Ownership.claim(config.state_dir / "owned-client.json")
        stack.push_async_callback(node.release, owner)
        events = journal.Journal(config.events)
        stack.callback(events.close)
        keys = CheckpointKeys.open(config.state_dir, config.name, "client", config.events)
        tape = node.start_recording(config.recording, self._engine, stack)
        recorder = Recorder.create(config.name, "client", events, MemoryStore(), self._policy, keys, tape)
        control = ControlServer(config.control, self._commands(), {"events": journal.stream(config.events)})
        await control.start()
        stack.push_async_callback(control.close)
        plane = self._plane(key, owner)
        stack.callback(plane.stop)
        self._recorder = recorder
        self._plane_handle = plane
        executor = ClientExecutor(plane, config.mark, self._post, lambda name: loosen_source_check(owner, name))
        executor.ended = self._session_ended
        executor.told_gateways = self._learn
        self._executor = executor
        self._driver = Driver(self._engine, executor, recorder)
        self._driver.on_turn = self._follow_session
        node.on_signals(self._stop, self._reload)
        self._started()
        asyncio.get_running_loop().add_reader(plane.fact_fd, drain, plane, executor.consume)
        stack.callback(asyncio.get_running_loop().remove_reader, plane.fact_fd)
        self._monitor = await stack.enter_async_context(NetMonitor())
        await self._find_gateways()
        self._network_changed([])
        jobs = (
            self._driver.run(), self._watch(), self._follow_list(), self._be_born(owner, key), *recorder.jobs(),
        )  # fmt: skip
        async with node.background(*jobs, on_failure=self._failed):
            reason = await self._ended
            await asyncio.sleep(0)
        return self._farewell(reason)

    def _plane(self, key: bytes, owner: Ownership) -> Plane:
        config, recovery = self._config, self._policy.recovery
        owner.note(TunInterface(config.tunnel.name))
        try:
            return Plane(
                role="client", private_key=key, cluster_key=b"", tun=config.tunnel.name, mtu=config.tunnel.mtu,
                queue_bytes=1 << 20, replay_bytes=recovery.replay_buffer,
                replay_ms=recovery.replay_time // 1_000_000,
            )  # fmt: skip
        except OSError as error:
            raise StartFailed(f"cannot create the tunnel interface {config.tunnel.name}: {error}") from error

    # --- birth -------------------------------------------------------------------------------------------------------

    async def _be_born(self, owner: Ownership, key: bytes) -> None:
        handshake = Handshake(
            self._plane_handle, self._engine, self._executor, self._config.state_dir, self._pass_over
        )  # fmt: skip
        device = hashlib.sha256(key).hexdigest()[:16]
        try:
            answer = await handshake.run(self._policy.session.handshake_timeout)
            welcome = decode_welcome(answer.welcome)
        except NoAnswer as error:
            self._complaint = str(error)
            self._post(inp.HandshakeAbandoned(SessionId(secrets.token_bytes(16)), device, Reason.HANDSHAKE_TIMEOUT))
            return
        except BadWelcome as error:
            self._complaint = str(error)
            self._post(inp.HandshakeAbandoned(SessionId(secrets.token_bytes(16)), device, Reason.HANDSHAKE_FAILED))
            return
        await self._configure(owner, welcome)
        await self._driver.rest()
        self._accept(answer, welcome, device)

    async def _configure(self, owner: Ownership, welcome: Welcome) -> None:
        config = self._config
        name = config.tunnel.name
        await configure_tunnel(owner, name, welcome.addresses, min(config.tunnel.mtu, welcome.mtu))
        await protect_inner_addresses(owner, name, name, welcome.addresses)
        wanted = config.tunnel.routes
        announced = [ipaddress.ip_network(route) for route in welcome.routes]
        routes = [str(route) for route in announced if wanted is None or _covered(route, wanted)]
        await route_into_tunnel(owner, name, routes, config.mark, config.table)
        self._welcome = welcome

    def _accept(self, answer: Answer, welcome: Welcome, device: str) -> None:
        uid = answer.session_id.uid
        kept = Kept(b"", self._config.name, welcome.addresses)
        path = self._engine.transports[answer.transport].path
        assert path is not None, "a transport that carried a handshake has a path index"
        self._executor.adopt(answer.handle, uid, kept, answer.transport, path)
        policy = welcome.limits.applied_to(self._policy)
        inner = ", ".join(welcome.addresses)
        sys.stderr.write(f"jumpvpn: session {uid} with {welcome.gateway} over {answer.transport}, {inner}\n")
        self._recorder.keys.introduce()
        self._learn(welcome.gateways)
        self._post(
            inp.HandshakeAnswered(
                answer.session_id, answer.transport, answer.peer, device, policy, Version(welcome.version)
            )
        )

    # --- network -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for facts in self._monitor.changes():
            self._network_changed(facts)

    def _network_changed(self, facts: list[NetFact]) -> None:
        """Networks, gateways or what the session makes of them changed: tell the engine which transports there are."""
        found = self._names.known(self._gateways.all)
        every = usable_transports(self._monitor.snapshot, found, self._allowed)
        wanted = self._wanted({name for name, _ in found}, tuple(sorted({way.interface for way in every})))
        reachable = tuple(self._reachable(way) for way in every if way.gateway in wanted)
        evidence = _evidence(facts, set(self._engine.transports))
        unwanted = {_transport_id(way): inp.UNUSED for way in every if way.gateway not in wanted}
        lost = {t: inp.UNUSED for t, known in self._engine.transports.items() if known.gateway not in wanted}
        self._post(inp.TransportsChanged(reachable, {**lost, **evidence, **unwanted}))

    def _wanted(self, found: set[str], interfaces: tuple[str, ...]) -> tuple[str, ...]:
        """The gateways to keep transports to, of those whose address was ``found``."""
        home, draining, _ = self._seen
        used = {known.gateway for known in self._engine.transports.values() if known.condition is not Condition.GONE}
        self._leaving = (self._leaving | draining) - (used - draining)
        known = [gateway for gateway in self._gateways.all if gateway.name in found or gateway.name == home]
        now = Situation(interfaces, home, frozenset(self._leaving), self._passed)
        return chosen(known, self._engine.policy.transports, now)

    def _reachable(self, way: Usable) -> inp.Reachable:
        known = self._gateways.named(way.gateway)
        identifier = _transport_id(way)
        self._executor.sources[identifier] = Source(way.interface, str(way.source), known.name, known.key)
        port = split_address(known.address)[1]
        peer = f"[{way.address}]:{port}" if way.address.version == 6 else f"{way.address}:{port}"
        return inp.Reachable(identifier, way.interface, PROTOCOL, way.gateway, peer, str(way.source))

    def _allowed(self, interface: str) -> bool:
        rules = self._config.interfaces
        if interface in (self._config.tunnel.name, "lo"):
            return False
        return _matches(interface, rules.allow) and not _matches(interface, rules.deny)

    # --- gateways ----------------------------------------------------------------------------------------------------

    async def _find_gateways(self) -> None:
        """Gateways of earlier runs, and everybody's address, before the tunnel exists. Raises StartFailed."""
        try:
            learned = memory.read(self._config.state_dir, self._gateways.configured_keys)
        except memory.Damaged as damage:
            sys.stderr.write(f"jumpvpn: {damage}\n")
        else:
            self._gateways.learn(learned)
            self._kept = self._gateways.learned
        failures = await self._names.find(self._gateways.all)
        if not self._names.known(self._gateways.all):
            raise StartFailed(f"no gateway name can be resolved ({'; '.join(failures)}); check [[gateway]] address")

    def _learn(self, told: tuple[Gateway, ...]) -> None:
        """The cluster told its list. A standalone gateway has none: what is known stays."""
        if told:
            self._gateways.learn(told)
            self._leaving.clear()  # who left may be back, and says so itself when it is asked
            self._told.set()

    async def _follow_list(self) -> None:
        """Find the gateways of each new list, and keep it for the next start. A name that fails is asked for again."""
        failures: list[str] = []
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NAMES_AGAIN_SECONDS if failures else None):
                    await self._told.wait()
            self._told.clear()
            await self._remember()
            failures = await self._names.find(self._gateways.all)
            self._network_changed([])

    async def _remember(self) -> None:
        keys, learned = self._gateways.configured_keys, self._gateways.learned
        if learned == self._kept:
            return
        self._kept = learned
        try:
            await asyncio.to_thread(memory.write, self._config.state_dir, keys, learned)
        except OSError as error:
            sys.stderr.write(f"jumpvpn: cannot keep the list of gateways in {self._config.state_dir}: {error}\n")

    def _follow_session(self) -> None:
        """The session moved to another gateway, one wants to be left, or policy changed: other standbys are wanted."""
        engine = self._engine
        home, draining = engine.book.home(engine.session), frozenset(engine.book.gateways.draining)
        seen = (home, draining, engine.policy.transports)
        if seen != self._seen:
            self._seen = seen
            self._gateways.hold(home)
            self._network_changed([])

    def _pass_over(self) -> None:
        """None of the gateways that are tried answered: the next ones get their turn."""
        self._passed += 1
        self._network_changed([])

    # --- control -----------------------------------------------------------------------------------------------------

    def _commands(self) -> dict[str, Any]:
        return {
            "status": self._status, "outlook": self._outlook, "down": self._down, "switch": self._switch,
            "terminate": self._down,
        }  # fmt: skip

    async def _status(self, _args: Any) -> Any:
        handle, late = self._executor.handle, self._executor.race.lost
        known = [(gateway.name, gateway.address) for gateway in self._gateways.all]
        return status.of_client(
            self._engine, handle, self._plane_handle, self._config, self._welcome, late, known, self._executor.malformed
        )  # fmt: skip

    async def _outlook(self, args: Any) -> Any:
        now = clock.now()
        told = outlook.of_client(self._engine, str(args.get("session") or ""), now.boot)
        where = {"role": self._config.role, "node": self._config.name, "events_file": str(self._config.events)}
        return {**where, "time_ms": now.wall_ms, **told}

    async def _down(self, _args: Any) -> Any:
        self._stop()
        return {"stopping": True}

    async def _switch(self, args: Any) -> Any:
        wanted = str(args.get("to", ""))
        session = self._engine.session
        if session is None:
            raise Refused("there is no session yet: the handshake is under way", "invalid_state_for_reattach")
        target = meant(wanted, self._engine.transports, self._engine.book.home(session))
        if target is None:
            known = ", ".join(sorted(self._engine.transports)) or "none"
            raise Refused(f"no transport {wanted!r}; known are: {known}", "invalid_transport_candidate")
        refusal = self._engine.switch_refusal(session, target, clock.boot_time())
        self._post(inp.OperatorSwitch(target))
        if refusal is not None:
            raise Refused(_refusal_text(target, refusal), refusal[0])
        return {"switching_to": target}

    # --- ends --------------------------------------------------------------------------------------------------------

    def _post(self, event: Any) -> None:
        self._driver.post(event)

    def _stop(self) -> None:
        session = self._engine.session
        if session is not None and session.state is not State.TERMINATED:
            self._post(inp.OperatorTerminate(session.uid))
        elif not self._ended.done():
            self._ended.set_result(Reason.OPERATOR_TERMINATED)

    def _reload(self) -> None:
        if self._config.source is None:
            return
        try:
            config = load_client(self._config.source)
            policy = preferring(config.policy, config.interfaces.prefer)
        except (Rejected, OSError) as error:
            self._post(inp.PolicyOffered(None, tuple(str(error).splitlines())))
            return
        self._recorder.use_policy(policy, clock.now())
        bounded = self._welcome.limits.applied_to(policy) if self._welcome is not None else policy
        self._post(inp.PolicyOffered(bounded))

    def _session_ended(self, reason: Reason) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _failed(self, failure: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(failure)

    def _started(self) -> None:
        data = {"role": "client", "boot_id": clock.boot_id(), "program_version": status.program_version()}
        self._recorder.start(data, clock.now())
        self._recorder.use_policy(self._policy, clock.now(), "start")

    def _farewell(self, reason: Reason) -> int:
        self._recorder.stop({"cause": reason.value}, clock.now())
        asked = reason in (Reason.OPERATOR_TERMINATED,)
        text = self._complaint or reason.meaning.text
        sys.stderr.write(f"jumpvpn: session ended: {reason.value}: {text}\n")
        if reason in (Reason.HANDSHAKE_TIMEOUT, Reason.HANDSHAKE_FAILED):
            return 1
        return 0 if asked else EXIT_TERMINATED


def _transport_id(way: Usable) -> TransportId:
    return TransportId(f"{way.interface}/{PROTOCOL}/{way.gateway}")


def meant(wanted: str, known: Iterable[TransportId], home: str | None) -> TransportId | None:
    """The transport of that name; for the name of an interface its way to the gateway ``home``, or its only way."""
    ways = [transport for transport in known if transport == wanted or transport.split("/")[0] == wanted]
    to_home = [transport for transport in ways if transport.endswith(f"/{home}")]
    chosen = to_home if len(ways) > 1 else ways
    return chosen[0] if len(chosen) == 1 else None


def _matches(interface: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(interface, pattern) for pattern in patterns)


def _covered(route: Any, wanted: tuple[Any, ...]) -> bool:
    return any(route.version == network.version and route.subnet_of(network) for network in wanted)


def _evidence(facts: list[NetFact], known: set[TransportId]) -> dict[TransportId, str]:
    """Which kind of loss each known transport's interface suffered: link before address before route."""
    words = {"InterfaceGone": "link", "InterfaceDown": "link", "AddressRemoved": "address", "RouteRemoved": "route"}
    order = ("link", "address", "route")
    found: dict[TransportId, str] = {}
    for fact in facts:
        word = words.get(type(fact).__name__)
        if word is None:
            continue
        for transport in known:
            if transport.split("/")[0] == fact.interface:
                best = found.get(transport, word)
                found[transport] = min(best, word, key=order.index)
    return found


def _refusal_text(target: TransportId, refusal: tuple[str, dict[str, Any]]) -> str:
    reason, detail = refusal
    words = ", ".join(f"{name} {value}" for name, value in detail.items() if name != "to_id")
    return f"switch to {target} denied: {reason} ({words})"
