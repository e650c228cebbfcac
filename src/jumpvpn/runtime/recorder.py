"""Writes what happened: sealed events to the journal, and to the store together with the record they belong to."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Draft, Origin, Sealer
from jumpvpn.engine.outputs import Commit
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.journal import Journal
from jumpvpn.runtime.stores.base import CommitResult, Store, Write
from jumpvpn.session.records import Kept, encode
from jumpvpn.session.state import State
from jumpvpn.values import DomainEvent, Now

STANDALONE_CLUSTER = "standalone"
EXPORT_SECONDS = 1.0  # committed lines are in the journal already; this only forgets the store's copies


def _shown(key: bytes, address: str, mode: AddressMode) -> str:
    return shown_address(address, mode, key)


@dataclass(slots=True)
class Recorder:
    """The sealer, the journal and the store of one node.

    The journal's order is the sealer's: between sealing node-lane lines and appending them nothing is awaited.
    """

    journal: Journal
    store: Store
    sealer: Sealer
    lock: asyncio.Lock

    @classmethod
    def create(cls, node: str, role: str, journal: Journal, store: Store, policy: Policy) -> Recorder:
        """A recorder whose node chain begins with this run."""
        origin = Origin(node, STANDALONE_CLUSTER, clock.boot_id(), secrets.token_hex(4), role)
        sealer = Sealer(origin, policy, partial(_shown, secrets.token_bytes(32)))
        return cls(journal, store, sealer, asyncio.Lock())

    def use_policy(self, policy: Policy, now: Now, mode: str = "reload") -> None:
        """Announce ``policy`` with its body; from here on events name it. Raises JournalFailed."""
        self.sealer.use_policy(policy)
        data = {"version": policy.version, "digest": policy.digest(), "body": policy.body(), "mode": mode}
        self.emit((DomainEvent("policy.applied", "N", reason="policy_applied", data=data),), now)

    def resume(self, uid: str, chain: Chain) -> None:
        """Continue a session's chain where the store says it ended."""
        self.sealer.resume(uid, chain)

    def emit(self, events: Sequence[DomainEvent], now: Now) -> None:
        """Append node-lane events to the journal, repeated denials as summaries. Raises JournalFailed."""
        self.journal.append(self.sealer.note(events, now))

    def draft(self, order: Commit, now: Now) -> Draft:
        """Seal the commit's events as of ``now``."""
        return self.sealer.draft(order.uid, order.events, now)

    async def commit(self, order: Commit, draft: Draft, kept: Kept, sealed: bytes | None) -> CommitResult:
        """Write record, state-lane events and chain head as one unit; then the journal has the lines.

        Raises StoreUnavailable (nothing happened) or JournalFailed (committed, but not to be acted on).
        """
        async with self.lock:
            result = await self.store.commit(self._write(order, draft, kept, sealed))
            if result is CommitResult.COMMITTED:
                self.journal.append(self.sealer.settle(draft, ended=order.session.state is State.TERMINATED))
        return result

    async def forget_exported(self) -> None:
        """Let the store forget lines that the journal has, and write summaries that are due; runs until cancelled."""
        while True:
            await asyncio.sleep(EXPORT_SECONDS)
            self.journal.append(self.sealer.due(clock.now()))
            async with self.lock:
                while batch := await self.store.outbox():
                    await self.store.exported(batch[-1][0])

    def _write(self, order: Commit, draft: Draft, kept: Kept, sealed: bytes | None) -> Write:
        session, chain = order.session, draft.chain
        return Write(
            session_id=session.id.raw, expected_version=order.expected_version, version=int(session.version),
            state=session.state.value, epoch=int(session.epoch),
            body=encode(session, kept, draft.now, self.sealer.origin.boot_id), sealed=sealed, chain=chain.name,
            seq=chain.seq, head=chain.head, lines=draft.lines, device=order.device, write_id=secrets.token_hex(8),
        )  # fmt: skip
