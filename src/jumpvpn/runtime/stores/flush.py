"""Write-behind: what is durable at this node reaches the shared store a little later, many sessions at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import TERMINATED, ForeignRecord, StoredSession, StoreUnavailable, Write
from jumpvpn.runtime.stores.pool import COMMIT_BYTES, COMMITS_TOGETHER
from jumpvpn.runtime.stores.shared import Exchange, Found, SharedStore, Unanswered, same_record

FLUSH_WITHIN = 1.0  # seconds from a local commit to the shared store, while that one serves at its usual speed
_COLLECT = FLUSH_WITHIN / 2  # what changes meanwhile goes in the same transaction; the rest is for the transaction
_AT_ONCE = 4  # transactions: 10,000 sessions that changed in one second need 250
_TRIES = 3  # of one batch in which some records were found changed; what remains is left to the next round
MOST_PENDING_BYTES = 64 << 10  # lines of one session that ride along; older ones stay in the node's own journal only


@dataclass(slots=True)
class Held:
    """What a node remembers of a session that it owns, or is about to: some hundred bytes, or the record's KiB or two.

    ``base``: what the shared store is known to have (without body and keys). ``version``: the newest here.
    ``unsaved``: the newest record where the local file does not have it. ``filed``: the file may have this session's
    record, or an older one. ``fresh``: no commit has won yet, so the
    session may be another's. ``lost``: the shared store has something that this node may not write over.
    """

    base: Found
    version: int
    unsaved: StoredSession | None = None
    filed: bool = False
    fresh: bool = True
    lost: bool = False
    lines: list[bytes] = field(default_factory=list)
    added: int = 0
    gone: int = 0
    _bytes: int = 0

    @property
    def unsent(self) -> int:
        """How many event lines the shared store never had."""
        return self.added - self.gone

    def add(self, lines: Sequence[bytes]) -> None:
        """Lines of a local commit, to be sent with the record."""
        self.lines += lines
        self.added += len(lines)
        self._bytes += sum(map(len, lines))
        while self._bytes > MOST_PENDING_BYTES:
            self._bytes -= len(self.lines.pop(0))

    def sent(self, up_to: int) -> None:
        """The shared store has all lines that were added before ``added`` was more than ``up_to``."""
        keep = min(len(self.lines), max(0, self.added - up_to))
        self.lines = self.lines[len(self.lines) - keep :]
        self._bytes = sum(map(len, self.lines))
        self.gone = max(self.gone, up_to)

    def ours(self, node: str, term: int, version: int) -> Callable[[Found], bool]:
        """Tells a record that this node wrote itself after ``base``, in an answer that it never got.

        In one term only the owner writes, and one node is one process: so it may write ``version`` over it, in that
        term or as the first of the next one.
        """
        base = self.base.session

        def told(found: Found) -> bool:
            there = found.session
            if base is None or there is None or there.state == TERMINATED or base.owner != node:
                return False
            same = (there.owner, there.term) == (node, base.term) and base.term <= term
            return same and base.version < there.version < version

        return told


class Rows(Protocol):
    """Where the newest records of this node are."""

    async def load_many(self, session_ids: Sequence[bytes]) -> list[StoredSession]:
        """Those of these sessions that are stored. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Told:
    """Whom to tell: of a session that is not this node's any more, and of what people should know."""

    conflicts: Callable[[bytes, StoredSession | None], None]
    warn: Callable[[str], None]
    kept: Callable[[Write], None]


class Flusher:
    """One task for all sessions; memory grows with the sessions that are behind, not with time."""

    def __init__(self, node: str, local: Rows, shared: SharedStore, held: dict[bytes, Held], told: Told) -> None:
        self._node, self._local, self._shared = node, local, shared
        self._held = held
        self._told = told
        self._since: dict[bytes, int] = {}
        self._litter: list[bytes] = []
        self._wake, self._hurry, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()

    @property
    def behind(self) -> tuple[int, int]:
        """How many sessions are behind, and for how long (ns) the oldest."""
        oldest = min(self._since.values(), default=None)
        return len(self._since), 0 if oldest is None else clock.boot_time() - oldest

    def is_behind(self, session_id: bytes) -> bool:
        """Whether this session is."""
        return session_id in self._since

    def note(self, session_id: bytes) -> None:
        """The session has a change that the shared store lacks."""
        self._since.setdefault(session_id, clock.boot_time())
        self._idle.clear()
        self._wake.set()

    def forget(self, session_id: bytes) -> None:
        """Nothing of the session is to be sent any more, or all of it was."""
        self._since.pop(session_id, None)
        if not self._since:
            self._idle.set()

    def erase(self, names: Sequence[bytes]) -> None:
        """Let the shared store forget lines by these names, with the next round."""
        if names:
            self._litter += names
            self._wake.set()

    async def flushed(self) -> None:
        """Return when nothing is behind."""
        self._hurry.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Round after round, until cancelled; what fails is tried again in the next."""
        while True:
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), _COLLECT)
            self._wake.clear()
            self._hurry.clear()
            try:
                await self._round()
            except StoreUnavailable:  # the node's lease tells the same, and sooner
                self._wake.set()

    async def _round(self) -> None:
        ids = list(self._since)
        batches = [ids[first : first + COMMITS_TOGETHER] for first in range(0, len(ids), COMMITS_TOGETHER)]
        for first in range(0, len(batches), _AT_ONCE):
            tries = [self._flush(batch) for batch in batches[first : first + _AT_ONCE]]
            for failure in await asyncio.gather(*tries, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure
        names, self._litter = self._litter, []
        try:
            await self._shared.erase(names)
        except StoreUnavailable:
            self._litter = names + self._litter
            raise

    async def _flush(self, ids: Sequence[bytes]) -> None:
        for _ in range(_TRIES):
            await self._look_where_unknown(ids)
            begun = clock.boot_time()
            changes, ids = self._changes(ids, await self._local.load_many(ids))
            if not changes:
                return
            again = await self._send(changes, begun)
            ids = [*again, *ids]
        if ids:
            self._wake.set()

    async def _look_where_unknown(self, ids: Sequence[bytes]) -> None:
        """Learn the revision of records that are known only by their version."""
        for session_id in ids:
            held = self._held.get(session_id)
            if held is None or held.base.session is None or held.base.revision:
                continue
            base = held.base
            found = await self._shared.find(session_id)
            if held.base is not base:
                continue
            if same_record(found, base):
                held.base = found.stripped()
            else:
                self._lose(session_id, found)

    def _changes(self, ids: Sequence[bytes], rows: Sequence[StoredSession]) -> tuple[list[Exchange], list[bytes]]:
        """What to send at once, and the sessions that did not fit in; without awaiting: base and record go together."""
        found = {row.session_id: row for row in rows}
        changes: list[Exchange] = []
        size = 0
        for place, session_id in enumerate(ids):
            held, row = self._held.get(session_id), found.get(session_id)
            base = None if held is None else held.base.session
            if held is None or row is None or held.lost or (base is not None and row.version <= base.version):
                if session_id in self._since and (held is None or held.lost or held.version <= _version(base)):
                    self.forget(session_id)
                continue
            size += len(row.body) + len(row.sealed or b"") + sum(map(len, held.lines))
            if size > COMMIT_BYTES and changes:
                return changes, list(ids[place:])
            changes.append(Exchange(_write(row, base, tuple(held.lines)), row, held.base, held.added))
        return changes, []

    async def _send(self, changes: Sequence[Exchange], begun: int) -> list[bytes]:
        """One transaction; returns the sessions to be tried again. One that cannot be read does not stop the others."""
        deadline = self._shared.patience(math.inf).deadline
        try:
            outcome = await self._shared.exchange(changes, deadline)
        except Unanswered as failure:
            raise StoreUnavailable(str(failure)) from failure
        except ForeignRecord as damage:
            if len(changes) == 1:
                self._told.warn(damage.reason)
                self._lose(changes[0].write.session_id, Found())
                return []
            return [session for change in changes for session in await self._send([change], begun)]
        if outcome.found is None:
            for change in changes:
                self._done(change, outcome.revision, begun)
            return []
        judged = zip(changes, outcome.found, strict=True)
        return [change.write.session_id for change, found in judged if self._again(change, found, begun)]

    def _again(self, change: Exchange, found: Found, begun: int) -> bool:
        """Whether a change that did not take place is to be tried again; if it cannot be, its owner is told."""
        row, there = change.record, found.session
        held = self._held.get(row.session_id)
        if held is None or held.lost:
            return False
        if there is not None and (there.version, there.write_id) == (row.version, row.write_id):
            self._done(change, found.revision, begun)
            return False
        if held.base is not change.seen or same_record(found, change.seen):
            return True  # another commit of this node overtook it, or only others of the batch were in the way
        if held.ours(self._node, row.term, row.version)(found):
            held.base = found.stripped()
            return True
        if there is not None and (there.owner, there.term) == (self._node, row.term) and there.version > row.version:
            return True  # this node's own newer commit, whose answer is on its way
        self._lose(row.session_id, found)
        return False

    def _done(self, change: Exchange, revision: int, begun: int) -> None:
        row = change.record
        self._told.kept(change.write)
        held = self._held.get(row.session_id)
        if held is None:
            return
        if held.base is change.seen:
            held.base = Found(row, revision).stripped()
        held.sent(change.lines_to)
        if held.version <= row.version:
            self.forget(row.session_id)
        elif row.session_id in self._since:
            self._since[row.session_id] = begun

    def _lose(self, session_id: bytes, found: Found) -> None:
        held = self._held.get(session_id)
        if held is not None:
            held.lost = True
        self.forget(session_id)
        self._told.conflicts(session_id, found.session)


def _version(base: StoredSession | None) -> int:
    return 0 if base is None else base.version


def _write(row: StoredSession, base: StoredSession | None, lines: tuple[bytes, ...]) -> Write:
    return Write(
        session_id=row.session_id, expected_version=None if base is None else base.version, version=row.version,
        state=row.state, epoch=row.epoch, body=row.body, sealed=row.sealed, chain=row.chain, seq=row.seq, head=row.head,
        lines=lines, device=None, write_id=row.write_id, owner=row.owner, term=row.term, shared=False,
    )  # fmt: skip
