"""Turns what happened into sealed event lines, and commits them together with the record they belong to."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.audit.chain import Chain, node_chain, session_chain
from jumpvpn.audit.coalesce import Coalescer
from jumpvpn.audit.envelope import Context, build_record
from jumpvpn.engine.outputs import Commit
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.journal import Journal
from jumpvpn.runtime.stores.base import CommitResult, Store, Write
from jumpvpn.session.records import Kept, encode
from jumpvpn.session.state import State
from jumpvpn.values import DomainEvent, Now, TransportView

STANDALONE_CLUSTER = "standalone"
EXPORT_SECONDS = 1.0  # committed lines are in the journal already; this only forgets the store's copies


@dataclass(slots=True)
class Recorder:
    """Holds the chains' heads, the journal and the store of one node."""

    node: str
    journal: Journal
    store: Store
    policy: Policy
    digest: str
    boot_id: str
    address_key: bytes
    nodes: Chain
    sessions: dict[str, Chain]
    lock: asyncio.Lock
    denials: Coalescer

    @classmethod
    def create(cls, node: str, journal: Journal, store: Store, policy: Policy) -> Recorder:
        """A recorder whose node chain begins with this run."""
        run = secrets.token_hex(4)
        return cls(
            node, journal, store, policy, policy.digest(), clock.boot_id(), secrets.token_bytes(32),
            Chain(node_chain(node, run)), {}, asyncio.Lock(), Coalescer(policy.observability.denial_interval),
        )  # fmt: skip

    def use_policy(self, policy: Policy) -> None:
        """From now on events name this policy."""
        self.policy, self.digest = policy, policy.digest()

    def resume(self, uid: str, chain: Chain) -> None:
        """Continue a session's chain where the store says it ended."""
        self.sessions[uid] = chain

    def emit(self, events: Sequence[DomainEvent], now: Now) -> None:
        """Append node-lane events to the journal, repeated denials as summaries. Raises JournalFailed."""
        offered = [self.denials.offer(self._shown(event), now) for event in events]
        self._append([event for event in offered if event is not None] + self.denials.due(now), now)

    def _append(self, events: Sequence[DomainEvent], now: Now) -> None:
        if not events:
            return
        context = self._context(now)
        chain, lines = self.nodes.extend(build_record(event, context) for event in events)
        self.journal.append(lines)
        self.nodes = chain

    async def commit(self, order: Commit, kept: Kept, sealed: bytes | None, now: Now) -> CommitResult:
        """Write record, state-lane events and chain head as one unit; then the journal has the lines.

        Raises StoreUnavailable (nothing happened) or JournalFailed (committed, but not to be acted on).
        """
        mine = [event for event in order.events if event.lane == "S"]
        context = self._context(now)
        records = [
            build_record(self._shown(event), context, idx=index, n=len(mine)) for index, event in enumerate(mine, 1)
        ]
        before = self.sessions.get(order.uid) or Chain(session_chain(order.uid))
        chain, lines = before.extend(records)
        async with self.lock:
            result = await self.store.commit(self._write(order, kept, sealed, chain, lines, now))
            if result is not CommitResult.COMMITTED:
                return result
            self._append_in_order(order.events, lines, now)
        self.sessions[order.uid] = chain
        if order.session.state is State.TERMINATED:
            self.sessions.pop(order.uid, None)
        return result

    def _append_in_order(self, events: Sequence[DomainEvent], committed: Sequence[bytes], now: Now) -> None:
        """Both lanes' lines as things happened; each lane keeps its own chain."""
        mine, chain, lines = iter(committed), self.nodes, []
        for event in events:
            if event.lane == "S":
                lines.append(next(mine))
            elif (offered := self.denials.offer(self._shown(event), now)) is not None:
                chain, line = chain.append(build_record(offered, self._context(now)))
                lines.append(line)
        self.journal.append(lines)
        self.nodes = chain

    async def forget_exported(self) -> None:
        """Let the store forget lines that the journal has, and write summaries that are due; runs until cancelled."""
        while True:
            await asyncio.sleep(EXPORT_SECONDS)
            now = clock.now()
            self._append(self.denials.due(now), now)
            async with self.lock:
                while batch := await self.store.outbox():
                    await self.store.exported(batch[-1][0])

    def _write(
        self, order: Commit, kept: Kept, sealed: bytes | None, chain: Chain, lines: Sequence[bytes], now: Now
    ) -> Write:
        session = order.session
        return Write(
            session_id=session.id.raw, expected_version=order.expected_version, version=int(session.version),
            state=session.state.value, epoch=int(session.epoch), body=encode(session, kept, now, self.boot_id),
            sealed=sealed, chain=chain.name, seq=chain.seq, head=chain.head, lines=tuple(lines), device=order.device,
            write_id=secrets.token_hex(8),
        )  # fmt: skip

    def _context(self, now: Now) -> Context:
        return Context(
            node_id=self.node, cluster_id=STANDALONE_CLUSTER, boot_id=self.boot_id, time_ms=now.wall_ms,
            mono_ms=now.boot // 1_000_000, policy_version=self.policy.version, policy_digest=self.digest,
        )  # fmt: skip

    def _shown(self, event: DomainEvent) -> DomainEvent:
        """The event with addresses as ``observability.address_mode`` allows."""
        mode = self.policy.observability.address_mode
        view, data = event.transport, dict(event.data)
        if view is not None:
            view = TransportView(
                view.id, view.proto, self._address(view.local, mode), self._address(view.peer, mode), view.binding_gen
            )
        for name in ("old_peer", "new_peer", "source_prefix"):
            if name in data:
                data[name] = self._address(str(data[name]), mode)
        return event.showing(view, data)

    def _address(self, address: str, mode: AddressMode) -> str:
        return shown_address(address, mode, self.address_key) if address else ""
