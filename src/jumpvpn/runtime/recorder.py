"""Writes what happened: sealed events to the journal, and to the store together with the record they belong to."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Draft, Origin, Sealer
from jumpvpn.engine.outputs import Commit
from jumpvpn.policy.model import Policy
from jumpvpn.runtime import clock
from jumpvpn.runtime.checkpoints import CheckpointKeys
from jumpvpn.runtime.journal import Journal
from jumpvpn.runtime.stores.base import CommitResult, Store, Write
from jumpvpn.session.records import Kept, encode
from jumpvpn.session.state import State
from jumpvpn.values import DomainEvent, Now

if TYPE_CHECKING:
    from jumpvpn.recording.tape import Tape

STANDALONE_CLUSTER = "standalone"
VOUCH_SECONDS = 1.0  # how late a checkpoint may be
EXPORT_SECONDS = 1.0  # committed lines are in the journal already; this only forgets the store's copies


def _shown(key: bytes, address: str, mode: AddressMode) -> str:
    return shown_address(address, mode, key)


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread; a cancellation waits until it is done, so that nobody else does it at the same time."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@dataclass(slots=True)
class Recorder:
    """The sealer, the journal, the store and the checkpoint keys of one node.

    The journal's order is the sealer's: between sealing node-lane lines and appending them nothing is awaited. Commits
    of different sessions run at the same time; ``under_way`` are those whose lines may be in the store only.
    """

    journal: Journal
    store: Store
    sealer: Sealer
    keys: CheckpointKeys
    under_way: set[asyncio.Future[None]]
    full: asyncio.Event
    tape: Tape | None
    node: str

    @classmethod
    def create(
        cls, node: str, role: str, journal: Journal, store: Store, policy: Policy, keys: CheckpointKeys,
        tape: Tape | None = None, cluster: str = STANDALONE_CLUSTER,
    ) -> Recorder:  # fmt: skip
        """A recorder whose node chain begins with this run; ``tape`` records whatever it seals."""
        origin = Origin(node, cluster, clock.boot_id(), secrets.token_hex(4), role)
        show = partial(_shown, secrets.token_bytes(32))
        sealer = Sealer(origin, policy, show) if tape is None else tape.sealer(origin, policy, show)
        return cls(journal, store, sealer, keys, set(), asyncio.Event(), tape, node)

    def use_policy(self, policy: Policy, now: Now, mode: str = "reload") -> None:
        """Announce ``policy`` with its body; from here on events name it. Raises JournalFailed."""
        self._append(self.sealer.announce(policy, now, mode))

    def resume(self, uid: str, chain: Chain) -> None:
        """Continue a session's chain where the store says it ended."""
        self.sealer.resume(uid, chain)

    def forget(self, uid: str) -> None:
        """Another node continues the session's chain."""
        self.sealer.forget(uid)

    def emit(self, events: Sequence[DomainEvent], now: Now) -> None:
        """Append node-lane events to the journal, repeated denials as summaries. Raises JournalFailed."""
        self._append(self.sealer.note(events, now))

    def keep(self, lines: Sequence[bytes]) -> None:
        """Append state-lane lines of commits that took place, sealed before or by a node that is gone.

        A line that some journal has already does no harm. Raises JournalFailed.
        """
        self._append(lines)

    def draft(self, order: Commit, now: Now) -> Draft:
        """Seal the commit's events as of ``now``."""
        return self.sealer.draft(order.uid, order.events, now)

    async def commit(self, order: Commit, draft: Draft, kept: Kept, sealed: bytes | None) -> CommitResult:
        """Write record, state-lane events and chain head as one unit; then the journal has the lines.

        Raises JournalFailed (committed, but not to be acted on) or StoreUnavailable: nothing happened,
        or (CommitUnknown) nobody knows and this node's lease is over, so that it acts on neither outcome.
        """
        done = asyncio.get_running_loop().create_future()
        self.under_way.add(done)
        try:
            result = await self.store.commit(self._write(order, draft, kept, sealed))
            if result is CommitResult.COMMITTED:
                self._append(self.sealer.settle(draft, ended=order.session.state is State.TERMINATED))
        finally:
            self.under_way.discard(done)
            done.set_result(None)
        return result

    async def forget_exported(self) -> None:
        """Let the store forget lines that the journal has, and write summaries that are due; runs until cancelled."""
        forgotten = 0
        while True:
            await asyncio.sleep(EXPORT_SECONDS)
            if self.tape is not None:
                self.tape.flush()
            self._append(self.sealer.due(clock.now()))
            newest = self.store.last_line
            if newest > forgotten:
                if self.under_way:  # whoever put these lines there has begun by now
                    await asyncio.wait(set(self.under_way))
                await self.store.exported(newest)
                forgotten = newest

    async def vouch(self) -> None:
        """Write a checkpoint when one is due; runs until cancelled. Raises JournalFailed."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.full.wait(), VOUCH_SECONDS)
            self.full.clear()
            now = clock.now()
            if self.sealer.growth.due(now):
                self._checkpoint(now)
                await _to_the_end(self._change_key)

    def start(self, data: Mapping[str, Any], now: Now) -> None:
        """The first words of the run: ``node.started`` with ``data`` and the key that its first checkpoint shows.

        Raises JournalFailed.
        """
        told = {**data, "audit_key": self.keys.public}
        self.emit((DomainEvent("node.started", "N", data=told),), now)

    def jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What has to run beside the node's loop until it ends."""
        return self.forget_exported(), self.vouch()

    def stop(self, data: Mapping[str, Any], now: Now) -> None:
        """The last words of the run: what was held back, a checkpoint of everything, ``node.stopped`` with ``data``.

        Call when ``vouch`` and ``forget_exported`` have ended. Raises JournalFailed.
        """
        self._append(self.sealer.due(now))
        self._change_key()  # what ``vouch`` began
        self._checkpoint(now)
        while self.sealer.growth.left:
            self._change_key()
            self._checkpoint(now)
        self.emit((DomainEvent("node.stopped", "N", data=data),), now)
        self._change_key()

    def _append(self, lines: Sequence[bytes]) -> None:
        self.journal.append(lines)
        if self.sealer.growth.full:
            self.full.set()

    def _checkpoint(self, now: Now) -> None:
        self.journal.append([self.sealer.checkpoint(self.keys.link, self.keys.sign, now)])
        self.keys.signed(self.sealer.node.head)

    def _change_key(self) -> None:
        """Erase the key that signed, once its checkpoint is on disk: a power cut must not part the two."""
        self.journal.settle()
        self.keys.advance()

    def _write(self, order: Commit, draft: Draft, kept: Kept, sealed: bytes | None) -> Write:
        session, chain = order.session, draft.chain
        return Write(
            session_id=session.id.raw, expected_version=order.expected_version, version=int(session.version),
            state=session.state.value, epoch=int(session.epoch),
            body=encode(session, kept, draft.now, self.sealer.origin.boot_id), sealed=sealed, chain=chain.name,
            seq=chain.seq, head=chain.head, lines=draft.lines, device=order.device, write_id=secrets.token_hex(8),
            owner=self.node, term=session.owner_epoch, shared=order.shared,
        )  # fmt: skip
