"""This gateway as a member of a cluster: what it owns it may act for, what others own it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Literal

from jumpvpn.audit.chain import Chain
from jumpvpn.config import GatewayConfig
from jumpvpn.config_cluster import ClusterConfig
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.gateway.adoption import Adoption
from jumpvpn.gateway.executor import LINGER_SECONDS, Admitted, GatewayExecutor, Refuse
from jumpvpn.gateway.lease import LeaseKeeper
from jumpvpn.gateway.leftovers import Leftovers
from jumpvpn.gateway.shared import Shared
from jumpvpn.gateway.strays import Strays
from jumpvpn.gateway.takeovers import Takeovers
from jumpvpn.gateway.view import HELD, LIVE, ClusterView, Owner, Watchers
from jumpvpn.runtime import clock, status
from jumpvpn.runtime.dataplane import Plane
from jumpvpn.runtime.recorder import Recorder
from jumpvpn.runtime.stores.base import TERMINATED, StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.membership import Member, Serving
from jumpvpn.session.records import BadRecord, Kept, decode, is_of_boot
from jumpvpn.session.state import Session
from jumpvpn.values import MILLISECOND, DomainEvent, Instant, SessionId, milliseconds
from jumpvpn.wire.gateways import DRAIN, GATEWAYS, Gateway, encode_drain, encode_gateways

DRAIN_TOLD_SECONDS = 1.0  # a client that missed it hears it again
TICKET_KEYS_SECONDS = 60.0  # a new key seals two and a half minutes after it was made: every member knows it by then
REJOIN_SECONDS = 0.5  # between two tries to take a lease anew
ENDED_TERM = 2**62  # of a session that has ended: above every term
SENDING_AWAY_SECONDS = 5.0  # clients move within a round trip or two; those without another way are found by the others
LOOK_SECONDS = 0.05
# After the last session has moved: it is lingered for, and what the network behind the gateways still sends here is
# passed on until the second announcement of the new gateway, a quarter of a second after the first, which may be lost.
LATE_PACKETS_SECONDS = LINGER_SECONDS + 0.3
LEAVING_SECONDS = 2.0  # for changes that the store lacks; they are on this node's disk in any case
COMPLAINTS_KEPT = 64  # words about the store that are not repeated


class Cluster:
    """Runs beside the engine. ``jobs`` go on until the node ends; ``leave`` gives everything back.

    ``post`` hands an input to the engine, ``rest`` waits until it has dealt with those that it has.
    """

    def __init__(
        self, config: GatewayConfig, cluster: ClusterConfig, shared: Shared, member: Member, engine: GatewayEngine,
        plane: Plane, executor: GatewayExecutor, recorder: Recorder, post: Callable[[Any], None],
        emit: Callable[[DomainEvent], None], rest: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._config = config
        self._cluster = cluster
        self.shared = shared
        self._engine = engine
        self._plane = plane
        self._executor = executor
        self._recorder = recorder
        self._post = post
        self._emit = emit
        self._rest = rest
        self.keeper = LeaseKeeper(cluster, member, shared.leases, config.state_dir, plane.set_deadline, self.complain)
        self.view = ClusterView(shared.decode_record)
        self.adoption = Adoption(
            config.name, self.view, cluster.adopt_after, self._adopt, lambda: self.keeper.held
        )  # fmt: skip
        self._leftovers = Leftovers(
            config.name, self.view, cluster.adopt_after, shared.store, recorder.keep, lambda: self.keeper.held,
            self.complain,
        )  # fmt: skip
        self._strays = Strays(self._is_stray, self._take_up, self.complain)
        self._takeovers = Takeovers(
            shared.store, plane, executor, lambda: engine.policy, self._claim, post, self.complain, self._returns
        )  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()
        self._former: dict[bytes, bytes] = {}
        self._inner: dict[bytes, tuple[str, ...]] = {}
        self._told: bytes | None = None  # the list of gateways as clients are told it; None: it has to be made
        self._complaints: dict[str, None] = {}
        self._draining = False
        self._restoring = asyncio.Lock()
        self._restored = 0
        self._returning: asyncio.Task[None] | None = None
        shared.lost, shared.complain = self._lost, self.complain
        shared.may_act_until = lambda: self.keeper.deadline
        executor.elsewhere = self

    # --- start, life, end --------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Take the lease and this node's name. Raises StoreUnavailable, StartFailed."""
        await self.keeper.join()
        self._plane.set_ticket_keys(await self._ticket_keys())

    async def restore(self) -> None:
        """Once this node may act: bring back what it owns, once under each lease. Raises StoreUnavailable."""
        async with self._restoring:
            await self.keeper.confirmed()
            while self._restored != (lease := self.keeper.taken):
                owned = await self.shared.store.load_owned(self._config.name)
                if lease == self.keeper.taken and self.keeper.held:
                    self._bring_back(owned)
                    self._restored = lease
                    self._leftovers.returned()
                    for session_id in self.view.owned_by(self._config.name):  # what took place during the listing
                        self._strays.noticed(session_id)
                await self.keeper.confirmed()  # a lease that lapsed meanwhile: what was loaded says nothing any more

    def _returns(self, node: str) -> bool:
        """Whether the sessions of ``node`` are this one's own, and not all of them are back yet."""
        return node == self._config.name and self._restored != self.keeper.taken

    def _bring_back(self, owned: list[StoredSession]) -> None:
        member = self.keeper.member
        data = {"cluster": self._cluster.name, "address": member.address, "run": member.run,
                "lease_ms": milliseconds(self._cluster.lease)}  # fmt: skip
        self._emit(DomainEvent("cluster.joined", "N", data=data))
        for stored in owned:
            self._restore(stored, self._config.name)
        owners = {owner.node for owner in self.view.owners.values()}
        acting = {node for node, member in self.view.members.items() if _acting(member)}
        for node in owners - acting - {self._config.name, ""}:
            self.adoption.gone(node)

    def jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What has to run beside the node's loop until it ends."""
        return (
            self._watch(),
            self._keep(),
            self.shared.store.run(),
            self.adoption.run(),
            self._strays.run(),
            self._leftovers.run(),
            self._tell_drain(),
            self._rotate_keys(),
        )

    async def send_away(self, hurry: asyncio.Future[None]) -> None:
        """Before a stop: let clients move while their bindings still work, if another gateway takes them.

        Returns when none is left, after some seconds, or when ``hurry`` is done; not before what is on its way for the
        last one that has left, by itself or because it was asked to, has arrived.
        """
        others = [member for member in self.view.serving() if member.node != self._config.name]
        if others and self.keeper.held and self._engine.places:
            self.drain(on=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SENDING_AWAY_SECONDS):
                    while self._engine.places and not hurry.done():
                        await asyncio.wait([hurry], timeout=LOOK_SECONDS)
        late = LATE_PACKETS_SECONDS - (clock.boot_time() - self._executor.left_at) / 1e9
        await asyncio.wait([hurry], timeout=max(late, 0))

    async def leave(self) -> None:
        """Stop acting and give the lease back. What is behind goes to the store first, as far as that takes it."""
        await self._takeovers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.shared.store.flushed(), min(LEAVING_SECONDS, self.keeper.left_ns / 1e9))
        await self.keeper.leave()

    def drain(self, *, on: bool) -> int:
        """Let no session begin here or come here, and ask those that are here to leave; returns how many there are."""
        self._draining = on
        self._executor.drain(on=on)
        self._plane.set_draining(on)
        self.keeper.announce(Serving.DRAINING if on else Serving.SERVING)
        self._post(inp.DrainWished(on))
        self._say_drain(on=on)
        return len(self._engine.places)

    # --- what the executor asks --------------------------------------------------------------------------------------

    def asked(self, session_id: bytes, request: inp.ReattachAsked) -> None:
        """A request for a session that is not here."""
        self._takeovers.asked(session_id, request)

    def proved(self, handle: int, request: inp.ReattachAsked) -> bool:
        """A request was opened, or not, with a candidate's keys; False if ``handle`` is no candidate."""
        return self._takeovers.proved(handle, request)

    def birth(self, device: bytes, admitted: Admitted, offer: Callable[[Admitted], None], refuse: Refuse) -> None:
        """A device offers itself: the cluster gives its inner addresses, and ends its former session."""
        self._start(self._prepare_birth(device, admitted, offer, refuse))

    def born(self, uid: str) -> None:
        """The session is durable: the one that its device had before, wherever it is, ends."""
        former = self._former.pop(self._executor.kept(uid).device, None)
        if former is not None and SessionId(former).uid not in self._engine.places:
            self._start(self._adopt(former, lost_at=None, superseded=True))

    def reached(self, handle: int) -> None:
        """The client hears this gateway: it is told where the others are."""
        self._send(handle, GATEWAYS, self._gateways())

    def released(self, session_id: SessionId, *, elsewhere: bool) -> None:
        """The session was let go here. What another owner has is forgotten, what is still ours is not."""
        if elsewhere:
            self._recorder.forget(session_id.uid)
            self._start(self._forget(session_id.raw))

    # --- ownership ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew the lease for as long as it can be; when it has lapsed, let everything go and begin anew."""
        while True:
            await self.keeper.keep()
            self._post(inp.LeaseEnded(clock.boot_time() // MILLISECOND))
            self._store_state("unreachable")
            await self._rest()  # what is brought back under the next lease is not to be let go with the last one
            if self._recorder.under_way:  # given up with the lease: under the next one they would go on being asked for
                await asyncio.wait(set(self._recorder.under_way))
            await self._join_again()
            if self._returning is None or self._returning.done():
                self._returning = self._start(self._restore_again())

    async def _restore_again(self) -> None:
        """Beside the beats: without them no lease is confirmed, nor lasts until everything is back."""
        while True:
            try:
                await self.restore()
            except StoreUnavailable as failure:
                self.complain(failure.reason)
                await asyncio.sleep(REJOIN_SECONDS)
            else:
                self._store_state("reachable")
                return

    async def _join_again(self) -> None:
        while True:
            try:
                await self.keeper.join()
            except StoreUnavailable as failure:
                self.complain(failure.reason)
                await asyncio.sleep(REJOIN_SECONDS)
            else:
                return

    async def _rotate_keys(self) -> None:
        """Follow the cluster's ticket keys, and make the next one when its time has come."""
        while True:
            await asyncio.sleep(TICKET_KEYS_SECONDS)
            try:
                self._plane.set_ticket_keys(await self._ticket_keys())
            except StoreUnavailable as failure:
                self.complain(failure.reason)

    async def _ticket_keys(self) -> list[bytes]:
        """A session gets tickets when it moves only: what seals them lasts as long as a session may."""
        life_ms = self._engine.policy.session.max_lifetime // MILLISECOND
        return await self.shared.ticket_keys(clock.now().wall_ms, life_ms)

    async def _watch(self) -> None:
        silence = self._cluster.lease / 1e9 / 2  # a beat comes back every third of it, whatever else happens
        watchers = Watchers(self._member_changed, self._owner_changed, self.complain)
        while True:
            try:
                await self._list(watchers)
                async for change in self.shared.leases.follow(self.view.revision, silence):
                    self.view.apply(change, watchers, clock.boot_time())
            except StoreUnavailable as failure:
                self.complain(failure.reason)
                await asyncio.sleep(REJOIN_SECONDS)

    async def _list(self, watchers: Watchers) -> None:
        """Everything as it is. What changes meanwhile is seen again: the watch goes on from the first listing."""
        held = await self.shared.leases.listing(HELD)
        live = await self.shared.leases.listing(LIVE)
        self.view.start(held, live, watchers)

    def _member_changed(self, node: str, before: Member | None, after: Member | None) -> None:
        self._told = None
        if node == self._config.name:
            if after is not None:
                self.keeper.seen(after)
            return
        before, after = _acting(before), _acting(after)
        if after is None:
            self.adoption.gone(node)
            self._leftovers.gone()
        else:
            self.adoption.back(node)
        if before is after is None:
            return
        state = "left" if after is None else "joined" if before is None else after.state.value
        if before is None or after is None or before.state != after.state or before.address != after.address:
            address = (after or before or self.keeper.member).address
            data = {"member": node, "state": state, "address": address}
            self._emit(DomainEvent("cluster.member", "N", data=data))
            self._tell_gateways()

    def _owner_changed(self, session_id: bytes, owner: Owner | None) -> None:
        uid = SessionId(session_id).uid
        if owner is None:
            self._post(inp.OwnerElsewhere(uid, "", ENDED_TERM))
        elif owner.node != self._config.name:
            self._post(inp.OwnerElsewhere(uid, owner.node, owner.term))
        else:
            self._strays.noticed(session_id)

    def _is_stray(self, session_id: bytes) -> bool | None:
        """Whether the record is this node's in a term in which it does not hold the session.

        None while it is being taken up. Without the right to act there are no strays: the next lease brings all back.
        """
        owner, uid = self.view.owners.get(session_id), SessionId(session_id).uid
        if owner is None or owner.node != self._config.name or not self.keeper.held or self._returns(owner.node):
            return False
        place = self._engine.places.get(uid)
        if place is None:
            return None if uid in self._executor.handles else True
        if place.seat.session.owner_epoch >= owner.term:
            return False
        return None if place.seat.pending is not None else True

    async def _take_up(self, session_id: bytes) -> None:
        """A stray; what is here in an older term, in which nothing can be committed any more, is let go first."""
        uid, owner = SessionId(session_id).uid, self.view.owners[session_id]
        if uid in self._engine.places:
            self._post(inp.OwnerElsewhere(uid, owner.node, owner.term))
        else:
            await self._adopt(session_id, lost_at=None, own=True)
            self._leftovers.late()

    def _lost(self, session_id: bytes, found: StoredSession | None) -> None:
        """A change of this node met a record that is not its own any more."""
        if found is None or found.state == TERMINATED:
            self._owner_changed(session_id, None)
        elif found.owner != self._config.name:
            self._owner_changed(session_id, Owner(found.owner, found.term, found.state))
        else:  # a claim of this node that it did not know to have won: let go, it is a stray
            self._post(inp.OwnerElsewhere(SessionId(session_id).uid, found.owner, found.term))

    async def _adopt(
        self, session_id: bytes, *, lost_at: Instant | None, superseded: bool = False, own: bool = False
    ) -> None:
        before = self.view.owners.get(session_id)
        stored = await self.shared.store.load(session_id)
        if stored is None or stored.state == TERMINATED or (stored.owner == self._config.name) is not own:
            return
        told = self.view.owners.get(session_id)
        if told is not before and (told is None or told.term > stored.term):
            return  # the watch was quicker with what came after that
        if SessionId(session_id).uid not in self._executor.handles and self.keeper.held:
            self.shared.store.take(stored)
            self._restore(stored, stored.owner, lost_at, superseded=superseded)

    def _restore(
        self, stored: StoredSession, owner: str, lost_at: Instant | None = None, *, superseded: bool = False
    ) -> None:
        """A record becomes this node's, without its client's word: keys for hints and reattach, no binding."""
        if SessionId(stored.session_id).uid in self._executor.handles:  # its client's word came first
            return
        try:
            session, kept = decode(stored.body, self._engine.policy, clock.now(), clock.boot_id())
            handle = self._plane.restore(stored.session_id, stored.sealed or b"", kept.addresses, routed=False)
        except (BadRecord, ValueError) as error:
            self.complain(f"the record of session {SessionId(stored.session_id).uid} cannot be used: {error}")
            return
        self._claim(session, kept, handle, stored)
        guessed = not is_of_boot(stored.body, clock.boot_id())
        self._post(inp.SessionRestored(session, kept.device, owner, lost_at, superseded, age_guessed=guessed))

    def _claim(self, session: Session, kept: Kept, handle: int, stored: StoredSession) -> None:
        """Everything beside the engine is ready for the session."""
        self._executor.claim(session.uid, handle, kept)
        self._recorder.resume(session.uid, Chain(stored.chain, stored.seq, stored.head))

    async def _forget(self, session_id: bytes) -> None:
        try:
            await self.shared.store.forget(session_id)
        except StoreUnavailable as failure:
            self.complain(failure.reason)
        self._strays.noticed(session_id)  # what was asked for here may have been this node's own

    # --- births ------------------------------------------------------------------------------------------------------

    async def _prepare_birth(
        self, device: bytes, admitted: Admitted, offer: Callable[[Admitted], None], refuse: Refuse
    ) -> None:
        try:
            inner = self._inner.get(device)
            if inner is None:
                inner = self._inner[device] = await self.shared.claim_addresses(device)
            former = await self.shared.store.last_session(device)
        except StoreUnavailable as failure:
            self.complain(failure.reason)
            refuse()
            return
        if former is not None:
            self._former[device] = former
        offer(Admitted(admitted.name, inner))

    # --- what clients are told ---------------------------------------------------------------------------------------

    def gateways(self) -> tuple[Gateway, ...]:
        """The members as clients are to know them: this one first, those that serve, those that drain."""
        own, serving = self._config.name, Serving.SERVING
        ranked = sorted(self.view.members.values(), key=lambda m: (m.node != own, m.state is not serving, m.node))
        return tuple(Gateway(m.node, m.address, m.public_key) for m in ranked)

    def _gateways(self) -> bytes:
        if self._told is None:
            self._told = encode_gateways(self.gateways())
        return self._told

    def _tell_gateways(self) -> None:
        payload = self._gateways()
        for handle in list(self._executor.handles.values()):
            self._send(handle, GATEWAYS, payload)

    async def _tell_drain(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_TOLD_SECONDS)
            if self._draining:
                self._say_drain(on=True)

    def _say_drain(self, *, on: bool) -> None:
        payload = encode_drain(on=on)
        for handle in list(self._executor.handles.values()):
            self._send(handle, DRAIN, payload)

    def _send(self, handle: int, kind: int, payload: bytes) -> None:
        self._executor.race.give(self._plane.send_control, handle, kind, payload, None)

    # --- what people are told ----------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """For this gateway's own status."""
        return status.cluster_part(
            self._cluster.name, self._state(), self.keeper.left_ns, len(self._engine.places), self._store_facts()
        )

    def _state(self) -> Literal["serving", "draining", "fenced"]:
        if not self.keeper.held:
            return "fenced"
        return "draining" if self._draining else "serving"

    async def document(self, *, with_sessions: bool) -> dict[str, Any]:
        """The cluster as it was last seen from here."""
        names, own, now = self._executor.names, self._config.name, clock.boot_time()
        mine = self.keeper.member
        members = [
            status.MemberFacts(own, mine.address, self._state(), self.keeper.left_ns, mine.program_version),
            *(
                status.MemberFacts(m.node, m.address, m.state.value, None, m.program_version)
                for m in self.view.members.values() if m.node != own
            ),
        ]  # fmt: skip
        sessions = [
            status.OwnedSession(
                uid, names.get(uid, ""), owner.state, owner.node, owner.term,
                None if owner.since is None else now - owner.since,
            )
            for uid, owner in ((SessionId(raw).uid, owner) for raw, owner in self.view.owners.items())
        ]  # fmt: skip
        store = replace(self._store_facts(), endpoints=await self.shared.endpoints())
        ttl = self._engine.policy.session.transport_ttl
        return status.of_cluster(
            self._cluster.name, own, members, sessions, store, with_sessions=with_sessions,
            adopted_after=self._cluster.lease + self._cluster.adopt_after, transport_ttl=ttl,
        )  # fmt: skip

    def _store_facts(self) -> status.StoreFacts:
        count, oldest = self.shared.store.behind
        endpoints = tuple((endpoint, None) for endpoint in self._cluster.etcd)
        return status.StoreFacts(endpoints, self.view.revision, count, oldest if count else None)

    # --- words -------------------------------------------------------------------------------------------------------

    def complain(self, reason: str) -> None:
        """Words about the store, told once until it works again."""
        if reason not in self._complaints and len(self._complaints) < COMPLAINTS_KEPT:
            self._complaints[reason] = None
            self._store_state("failing", reason)

    def _store_state(self, state: str, error: str = "") -> None:
        if state == "reachable":
            self._complaints.clear()
        data = {"state": state, "error": error, "lease_left_ms": milliseconds(self.keeper.left_ns)}
        self._emit(DomainEvent("cluster.store", "N", data=data))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _acting(member: Member | None) -> Member | None:
    """The member if it has the right to act; one that has not is as good as gone."""
    return None if member is None or member.state is Serving.FENCED else member
