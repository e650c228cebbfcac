"""The store of a gateway in a cluster: its own file at once, the shared store at once or a little later."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    CommitUnknown,
    Store,
    StoredSession,
    StoreUnavailable,
    Write,
    judge,
)
from jumpvpn.runtime.stores.flush import FLUSH_WITHIN, Flusher, Held, Told
from jumpvpn.runtime.stores.pool import Commits
from jumpvpn.runtime.stores.shared import (
    Found,
    KeptLines,
    SharedStore,
    Unanswered,
    outbox_name,
    same_record,
    settle,
)
from jumpvpn.runtime.stores.turns import Turns
from jumpvpn.values import Instant, replace

__all__ = ["FLUSH_WITHIN", "ClusterStore", "LocalStore"]

_SECOND = 1_000_000_000
_ASK_AGAIN_SECONDS = 0.1  # a store that refuses at once is not asked in a busy loop
_ADOPTED = 256  # records of one local transaction at start: one sync for each of them would take minutes
_REMEMBERED = 1_024  # records read a moment ago, of which one may be taken over next
_DOUBTS = 512  # commits of unknown outcome: as many as are under way when a lease ends; the next start tells the rest
_LONGEST_RECORD = 60 << 10  # etcd takes 64 KiB; a record that it can never take must not become durable here


class LocalStore(Store, Protocol):
    """What the node's own file must do beside the work of every store."""

    async def load_many(self, session_ids: Sequence[bytes]) -> list[StoredSession]:
        """Those of these sessions that are stored."""

    async def adopt(
        self, records: Sequence[StoredSession] = (), lines: Sequence[bytes] = (), gone: Sequence[bytes] = ()
    ) -> None:
        """Put records as they are, add outbox lines, erase the sessions ``gone``; one transaction."""


class ClusterStore:
    """Sessions of one node of a cluster. Open with ``await ClusterStore.open(...)``, and let ``run()`` run.

    What the caller may rely on:

    - COMMITTED with ``shared``: a majority of the shared store has it, whatever becomes of this node; its lines are
      there until the caller says that it has exported them, and after a crash at the next start. Without: it is on this
      node's disk, and in the shared store ``FLUSH_WITHIN`` later as long as that one serves; if the node
      is lost before, the next owner goes on from what the shared store has. Births, owner changes, terminations and
      whatever names a device are shared, also if the write does not ask for it.
    - CONFLICT and REPLAYED_DEVICE: nothing was changed. CONFLICT for a session that this node owned means that another
      owns it, or it has ended: drop it and call ``forget``.
    - StoreUnavailable: nothing was changed, except where it is CommitUnknown: then the change may have taken place, or
      may do so even now, and the shared store did not tell which until ``give_up_at`` (the end of the node's lease).
      The caller must not act on either outcome: it drops the session (``forget``) and loads it again before it
      decides anything about it.

    ``give_up_at`` is the boot time (ns) until which this node may change what is shared. ``conflicts`` is called when
    a change of this node can no longer reach the shared store, with what is there instead (None: nothing that can be
    read). ``foreign`` gets the words about records that cannot be read, and about a local file that lags behind.
    """

    def __init__(
        self, local: LocalStore, shared: SharedStore, node: str, *,
        give_up_at: Callable[[], Instant] | None = None,
        conflicts: Callable[[bytes, StoredSession | None], None] = lambda _session_id, _found: None,
        foreign: Callable[[str], None] = lambda _reason: None,
    ) -> None:  # fmt: skip
        self._local, self._shared, self._node = local, shared, node
        self._commits = Commits(shared)
        self._give_up_at = give_up_at
        self._warn = foreign
        self._held: dict[bytes, Held] = {}
        self._turns = Turns()
        self._read: OrderedDict[bytes, tuple[int, str, int]] = OrderedDict()
        self._litter: deque[tuple[int, bytes]] = deque()
        self._dropped = 0
        self._doubts: OrderedDict[bytes, Write] = OrderedDict()
        self._flusher = Flusher(node, local, shared, self._held, Told(conflicts, foreign, self._drop_later))

    @classmethod
    async def open(
        cls, local: LocalStore, shared: SharedStore, node: str, *,
        give_up_at: Callable[[], Instant] | None = None,
        conflicts: Callable[[bytes, StoredSession | None], None] = lambda _session_id, _found: None,
        foreign: Callable[[str], None] = lambda _reason: None,
    ) -> ClusterStore:  # fmt: skip
        """The store of ``node``, which owns both stores from here on. Raises StoreUnavailable.

        Lines of commits that a crash may have kept out of the local file are in its outbox afterwards; of those that
        it did not, some come again.
        """
        store = cls(local, shared, node, give_up_at=give_up_at, conflicts=conflicts, foreign=foreign)
        await store._fetch_lines()
        return store

    # -- what every store does -------------------------------------------------------------------------------------

    async def load_all(self) -> list[StoredSession]:
        """Every session of the cluster that is not terminated, as the shared store has it."""
        return await self._shared.load_all()

    async def load(self, session_id: bytes) -> StoredSession | None:
        """One session as the shared store has it, or newer where this node's changes are on their way there."""
        found = await self._shared.find(session_id)
        held = self._held.get(session_id)
        if held is not None and self._flusher.is_behind(session_id) and _same_term(found, held.base):
            newest = await self._newest(session_id, held)
            return newest or found.session
        if found.session is not None:
            self._remember(found)
        return found.session

    async def commit(self, write: Write) -> CommitResult:
        """Apply one unit wholly or not at all, see above; one after the other for each session."""
        async with self._turns.alone(write.session_id):
            held = await self._known(write)
            if held.lost:
                return CommitResult.CONFLICT
            if _is_shared(write, held.base):
                return await self._commit_shared(write, held)
            return await self._commit_locally(write, held)

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device in the cluster; 0 if none."""
        return await self._shared.device_timestamp(device)

    async def last_session(self, device: bytes) -> bytes | None:
        """The session that this device began last, at any gateway; None if it began none."""
        return await self._shared.last_session(device)

    @property
    def last_line(self) -> int:
        """The number of the newest line of this node's file, or of the newest commit whose lines were shared."""
        return self._local.last_line + self._dropped + len(self._litter)

    async def outbox(self, limit: int = 256) -> list[tuple[int, bytes]]:
        """Oldest lines of this node's file not yet exported; those of shared commits are with whoever made them."""
        shared = self._dropped + len(self._litter)
        return [(number + shared, line) for number, line in await self._local.outbox(limit)]

    async def exported(self, up_to: int) -> None:
        """Forget lines up to this number; the shared store forgets its copies with the next flush."""
        done = []
        while self._litter and self._litter[0][0] <= up_to:
            done.append(self._litter.popleft()[1])
        self._dropped += len(done)
        await self._local.exported(up_to - self._dropped)
        self._flusher.erase(done)

    async def keepers(self) -> list[str]:
        """The nodes of whose commits the shared store still keeps lines; in the course of work any node has some."""
        return await self._shared.keepers()

    async def unexported(self, node: str) -> list[KeptLines]:
        """The oldest commits of ``node`` whose lines it may not have, at most some MiB of them; see ``drop``.

        Of this node: those that took place although their outcome was not known when its lease ended. Ask for them
        under the next lease, and again once a session shows that one took place later still; what no longer can is
        not asked for again.
        """
        if node != self._node:
            return await self._shared.kept(node)
        kept = list[KeptLines]()
        for name, write in list(self._doubts.items()):
            found = await self._seen_now(write)
            if found.done:
                kept.append(KeptLines(name, write.session_id, write.version, write.lines))
            elif not _may_follow(write, found.session):
                self._doubts.pop(name, None)
        return kept

    async def drop(self, node: str, kept: Sequence[KeptLines]) -> None:
        """The lines that ``unexported`` told of ``node`` are in a journal: the shared store may forget them.

        If that node lives after all, its own copies are in its journal; of a commit that it is in doubt about,
        the record tells as long as nobody has written over it, and then the commit counts as lost to that one.
        """
        await self._shared.erase([entry.name for entry in kept], node)
        for entry in kept if node == self._node else ():
            self._doubts.pop(entry.name, None)

    async def close(self) -> None:
        """Close both stores; what is behind stays in the local file."""
        await self._local.close()
        await self._shared.close()

    # -- ownership -------------------------------------------------------------------------------------------------

    async def load_owned(self, node: str) -> list[StoredSession]:
        """The live sessions of ``node``, in order of their identifier.

        Of this node: each as it was last committed here or there, and ready for further commits; what the shared store
        does not have yet is on its way there. Of another: as the shared store has them; ``take`` one before a commit.
        """
        damaged: list[str] = []
        found = [entry async for entry in self._shared.owned(node, damaged.append)]
        for reason in damaged:
            self._warn(reason)
        if node != self._node:
            for entry in found[:_REMEMBERED]:
                self._remember(entry)
            return [entry.session for entry in found if entry.session is not None]
        return await self._resume(found, erase=not damaged)

    def take(self, stored: StoredSession) -> None:
        """``stored`` (from ``load``, or the watch) is about to be taken over: the next commit compares with it.

        If that commit does not win, the session is forgotten again; also ``forget`` ends it.
        """
        version, write_id, revision = self._read.pop(stored.session_id, (0, "", 0))
        known = revision if (version, write_id) == (stored.version, stored.write_id) else 0
        base = Found(stored, known).stripped()
        self._flusher.forget(stored.session_id)
        self._held[stored.session_id] = Held(base, stored.version, stored, filed=stored.owner == self._node)

    async def forget(self, session_id: bytes) -> int:
        """The session is owned elsewhere or has ended: nothing of it is sent any more, its local record is erased.

        One of this node's own that was taken up (``take``) without a commit since is let go only: its record stays.
        Returns how many of its event lines are only at this node. Raises StoreUnavailable when the local file fails;
        the record is ignored then too, because its term is over.
        """
        self._flusher.forget(session_id)
        held = self._held.pop(session_id, None)
        if held is not None and held.fresh and _owner(held.base) == self._node:
            return 0
        await self._local.adopt(gone=(session_id,))
        return 0 if held is None else held.unsent

    # -- write-behind ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring to the shared store what is behind, until cancelled; an unreachable one is asked again and again."""
        await self._flusher.run()

    async def flushed(self) -> None:
        """Return when nothing is behind; ``run`` has to be running."""
        await self._flusher.flushed()

    @property
    def behind(self) -> tuple[int, int]:
        """How many sessions have changes that the shared store lacks, and for how long (ns) the oldest."""
        return self._flusher.behind

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _commit_locally(self, write: Write, held: Held) -> CommitResult:
        if len(write.body) + len(write.sealed or b"") + len(write.head) > _LONGEST_RECORD:
            raise StoreUnavailable(
                f"the record of {write.chain} is longer than the {_LONGEST_RECORD} bytes that the shared store takes"
            )
        result = await (self._local.commit(write) if held.unsaved is None else self._file(write, held.unsaved))
        if result is CommitResult.COMMITTED and write.version > held.version:
            held.version, held.fresh, held.unsaved, held.filed = write.version, False, None, True
            held.add(write.lines)
            self._flusher.note(write.session_id)
        return result

    async def _file(self, write: Write, unsaved: StoredSession) -> CommitResult:
        """A local commit over a record that the local file does not have."""
        verdict = judge(write, unsaved, 0)
        if verdict is not None:
            return verdict
        await self._local.adopt([write.stored_over(unsaved)], write.lines)
        return CommitResult.COMMITTED

    async def _commit_shared(self, write: Write, held: Held) -> CommitResult:
        base = held.base.session
        if base is not None and (base.version, base.write_id) == (write.version, write.write_id):
            return CommitResult.COMMITTED
        newest = await self._newest(write.session_id, held) or base
        if (None if newest is None else newest.version) != write.expected_version:
            return CommitResult.CONFLICT
        if write.sealed is None and newest is not None:
            write = replace(write, sealed=newest.sealed)
        lines_to = held.added
        whole = replace(write, lines=(*held.lines, *write.lines)) if held.lines else write
        try:
            result, found = await self._settle(whole, held)
        except StoreUnavailable as failure:
            self._release(write, held)
            if isinstance(failure, CommitUnknown):
                self._doubt(whole)
            raise
        if result is not CommitResult.COMMITTED:
            held.lost = result is CommitResult.CONFLICT and not same_record(found, held.base)
            self._release(write, held)
            return result
        held.sent(lines_to)
        await self._committed(write, whole, held, found)
        return result

    async def _settle(self, write: Write, held: Held) -> tuple[CommitResult, Found]:
        """One transaction where the record is known; asked again while the outcome is unknown and the lease holds."""
        seen = held.base if held.base.revision and write.device is None else None
        ours = held.ours(self._node, write.term, write.version)
        expected = None if held.base.session is None else held.base.session.version
        if write.expected_version != expected:
            write = replace(write, expected_version=expected)
        left, doubt = self._left(), False
        if left <= 0:
            raise StoreUnavailable("this node's lease is over: it may not change what gateways share")
        while True:
            try:
                asked = self._shared if doubt else self._commits.one()
                return await settle(asked, write, seen, self._shared.patience(left), ours, doubt)
            except CommitUnknown:
                left, doubt, seen = self._left(), True, None
                if left <= 0 or self._give_up_at is None:
                    raise
                await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _committed(self, write: Write, whole: Write, held: Held, found: Found) -> None:
        """The shared store has it. The local file follows where it has an older record, whose keys are not to stay.

        Where it has none, it need not have this one: after a crash the shared store has it, and the lines. The file's
        failure changes nothing about what is committed.
        """
        record, ended = found.session, write.state == TERMINATED
        held.fresh = False
        # It took place, but another has written over it since: this node learns that from its watch, too.
        held.lost = record is None or record.write_id != write.write_id
        held.base, held.version = found.stripped(), write.version
        held.unsaved = None if ended or held.lost else record
        self._flusher.forget(write.session_id)
        self._drop_later(whole)
        if held.filed or ended:
            rows = [] if held.unsaved is None else [held.unsaved]
            try:
                await self._local.adopt(rows, gone=[] if rows else [write.session_id])
                held.unsaved = None
            except StoreUnavailable as failure:
                self._warn(f"{failure.reason}; the shared store has the change, this node's file follows")
        if ended:
            self._held.pop(write.session_id, None)

    def _release(self, write: Write, held: Held) -> None:
        """What was not this node's before a commit that failed is not its now."""
        if held.fresh and self._held.get(write.session_id) is held:
            self._flusher.forget(write.session_id)
            del self._held[write.session_id]

    def _doubt(self, write: Write) -> None:
        """Nobody knows whether ``write`` took place; if it did, its lines are in the shared store only."""
        if write.lines:
            self._doubts[outbox_name(write).encode()] = write
            while len(self._doubts) > _DOUBTS:
                self._doubts.popitem(last=False)

    def _drop_later(self, write: Write) -> None:
        """The lines of ``write`` may leave the shared store once this node has exported them."""
        if write.lines:
            self._litter.append((self.last_line + 1, outbox_name(write).encode()))

    def _left(self) -> float:
        """Seconds until this node may no longer change what is shared."""
        return math.inf if self._give_up_at is None else (self._give_up_at() - clock.boot_time()) / _SECOND

    async def _known(self, write: Write) -> Held:
        """What this node holds of the session; read from both stores where it holds nothing."""
        held = self._held.get(write.session_id)
        if held is not None:
            return held
        found = Found() if write.expected_version is None else await self._shared.find(write.session_id)
        if found.session is None:
            held = Held(found, 0)
        else:
            held = self._joined(found, await self._local.load(write.session_id))
        if found.session is None or found.session.state != TERMINATED:
            self._held[write.session_id] = held
        return held

    def _joined(self, found: Found, row: StoredSession | None) -> Held:
        stored = found.session
        assert stored is not None, "only records are joined"
        held = Held(found.stripped(), stored.version, stored, filed=row is not None)
        if row is not None and _is_newer(row, stored):
            held.version, held.unsaved = row.version, None
            self._flusher.note(stored.session_id)
        return held

    async def _seen_now(self, write: Write) -> Found:
        """What the shared store has where ``write`` is to be; ``done`` only while it keeps its lines."""
        waiting = self._shared.patience(math.inf)
        while True:
            try:
                return await self._shared.look(write, waiting.deadline)
            except Unanswered as failure:
                await waiting.wait(failure)

    async def _newest(self, session_id: bytes, held: Held) -> StoredSession | None:
        return held.unsaved or await self._local.load(session_id)

    async def _resume(self, found: list[Found], erase: bool) -> list[StoredSession]:
        """Hold all of this node's sessions; the local file has no older record of any of them afterwards.

        What is held already, and not older, stays as it is: commits to it may be under way. With ``erase`` the file has
        no others of any cluster; without, one of them may be the only good copy.
        """
        rows = {row.session_id: row for row in await self._local.load_all()}
        newest, outdated = list[StoredSession](), list[StoredSession]()
        for entry in found:
            stored = entry.session
            assert stored is not None, "only records are listed"
            row, held = rows.pop(stored.session_id, None), self._held.get(stored.session_id)
            if held is None or held.lost or held.version < stored.version or not _same_term(entry, held.base):
                held = self._held[stored.session_id] = self._joined(entry, row)
                held.fresh = False
                outdated += [] if held.unsaved is None or row is None else [held.unsaved]
            newest.append(held.unsaved or row or stored)
        gone = [row.session_id for row in rows.values() if row.owner and row.session_id not in self._held]
        await self._local.adopt(gone=gone if erase else [])
        for first in range(0, len(outdated), _ADOPTED):
            await self._adopt_newer(outdated[first : first + _ADOPTED])
        return newest

    async def _adopt_newer(self, records: Sequence[StoredSession]) -> None:
        """Put into the local file what it has older, except where a commit has put a newer one there meanwhile."""
        lacking = [record for record in records if self._lacks(record)]
        await self._local.adopt(lacking)
        for record in lacking:
            if self._lacks(record):
                self._held[record.session_id].unsaved = None

    def _lacks(self, record: StoredSession) -> bool:
        held = self._held.get(record.session_id)
        return held is not None and held.unsaved is record

    async def _fetch_lines(self) -> None:
        """Take over what a crash between the two stores left: lines that the local file may never have had.

        Its records do not tell: a newer one may be there without the lines of an older commit whose outcome this node
        never learned. A line that comes twice does no harm.
        """
        while kept := await self._shared.kept():
            await self._local.adopt(lines=[line for entry in kept for line in entry.lines])
            await self._shared.erase([entry.name for entry in kept])

    def _remember(self, found: Found) -> None:
        session = found.session
        assert session is not None, "only records are remembered"
        self._read[session.session_id] = (session.version, session.write_id, found.revision)
        self._read.move_to_end(session.session_id)
        while len(self._read) > _REMEMBERED:
            self._read.popitem(last=False)


def _is_shared(write: Write, base: Found) -> bool:
    """Whether the shared store must have it before it counts, also if the write does not ask for that."""
    stored = base.session
    if write.shared or write.device is not None or stored is None or TERMINATED in (write.state, stored.state):
        return True
    return write.expected_version is None or (write.owner, write.term) != (stored.owner, stored.term)


def _may_follow(write: Write, stored: StoredSession | None) -> bool:
    """Whether ``write``, sent long since, may replace what is stored even now: versions only rise."""
    return stored is None or (stored.version < write.version and stored.state != TERMINATED)


def _is_newer(row: StoredSession, stored: StoredSession) -> bool:
    """Whether the local record continues the shared one: of the same owner in the same term, with a higher version."""
    same = (row.owner, row.term) == (stored.owner, stored.term) and TERMINATED not in (row.state, stored.state)
    return same and row.version > stored.version


def _owner(found: Found) -> str:
    return "" if found.session is None else found.session.owner


def _same_term(found: Found, base: Found) -> bool:
    there, held = found.session, base.session
    return there is not None and held is not None and (there.owner, there.term) == (held.owner, held.term)
