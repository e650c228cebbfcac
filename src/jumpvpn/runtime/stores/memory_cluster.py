"""What etcd is to a cluster, in this process and under a clock that is passed in: for tests and simulated worlds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from jumpvpn.runtime.stores.base import TERMINATED, StoredSession, StoreUnavailable, Write
from jumpvpn.runtime.stores.etcd.records import decode_session, encode_session
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Listing
from jumpvpn.runtime.stores.shared import Exchange, Found, KeptLines, Outcome, Unanswered, outbox_name
from jumpvpn.values import Instant

_SECOND = 1_000_000_000
_LEAST_TTL = 2  # seconds, as etcd with its usual election timeout
_KEPT_PAGE = 16  # commits' lines at once, as etcd's store reads them
_TRIES = 3  # of one call that gets no answer; there is no time here that could run out


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class _Device:
    timestamp: int
    session_id: bytes
    revision: int


class MemoryCluster:
    """One store that several nodes share. ``clock`` tells the time (ns) by which leases end; call ``tick`` as it moves.

    ``cut``: nodes that do not reach the store. ``lose_answers``: how many of the next exchanges and looks are carried
    out but not answered.
    """

    def __init__(self, clock: Callable[[], Instant]) -> None:
        self.clock = clock
        self.cut: set[str] = set()
        self.lose_answers = 0
        self.revision = 1
        self._forgotten = 0
        self._entries: dict[str, _Entry] = {}
        self._history: list[Change] = []
        self._leases: dict[int, tuple[int, Instant]] = {}
        self._next_lease = 1
        self._news = asyncio.Event()
        self.devices: dict[bytes, _Device] = {}
        self.outboxes: dict[str, dict[str, KeptLines]] = {}

    def shared(self, node: str) -> MemoryShared:
        """The records, as ``node`` sees them."""
        return MemoryShared(self, node)

    def leases(self, node: str) -> MemoryLeases:
        """Leases and changes, as ``node`` sees them."""
        return MemoryLeases(self, node)

    def tick(self) -> None:
        """End the leases whose time is over, and what they hold."""
        for lease in [lease for lease, (_, ends) in self._leases.items() if ends <= self.clock()]:
            self.end(lease)

    def compact(self, revision: int) -> None:
        """Forget all changes before ``revision``."""
        self._forgotten = revision
        self._history = [change for change in self._history if change.revision >= revision]
        self._tell()

    def reach(self, node: str) -> None:
        """Raises StoreUnavailable when ``node`` does not reach the store."""
        self.tick()
        if node in self.cut:
            raise StoreUnavailable("the store in memory is cut off")

    def answer(self, node: str) -> None:
        """Raises Unanswered when the answer to a request that was carried out is lost."""
        if node in self.cut or self.lose_answers:
            self.lose_answers = max(0, self.lose_answers - 1)
            raise Unanswered("the answer was lost")

    def get(self, name: str) -> _Entry | None:
        """What is under ``name``."""
        return self._entries.get(name)

    def names(self, start: str, end: str) -> list[str]:
        """All names from ``start`` up to, but without, ``end``."""
        return sorted(name for name in self._entries if start <= name < end)

    def change(self, changes: Sequence[tuple[str, bytes | None]], lease: int = 0) -> int:
        """Set names, or remove them (None), at one new revision, which is returned."""
        self.revision += 1
        for name, value in changes:
            if value is not None:
                self._entries[name] = _Entry(value, self.revision, lease)
            elif self._entries.pop(name, None) is None:
                continue
            self._history.append(Change(name, value, self.revision))
        self._tell()
        return self.revision

    def begin(self, ttl_seconds: int) -> tuple[int, Instant]:
        """A lease and the time at which it ends."""
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        return lease, self.renew(lease, max(ttl_seconds, _LEAST_TTL) * _SECOND)

    def renew(self, lease: int, length: int | None = None) -> Instant:
        """The time at which the lease ends, counted anew. Raises LeaseLost."""
        if length is None:
            if lease not in self._leases:
                raise LeaseLost("the store has ended the lease")
            length = self._leases[lease][0]
        ends = Instant(self.clock() + length)
        self._leases[lease] = (length, ends)
        return ends

    def lives(self, lease: int) -> None:
        """Raises LeaseLost when the lease has ended."""
        if lease not in self._leases:
            raise LeaseLost("the store has ended the lease")

    def end(self, lease: int) -> None:
        """End a lease and remove what it holds."""
        if self._leases.pop(lease, None) is not None:
            held = [name for name, entry in self._entries.items() if entry.lease == lease]
            if held:
                self.change([(name, None) for name in held])

    async def told(self, node: str, start: str, end: str, since: int) -> AsyncIterator[Change | Compacted]:
        """Changes of these names after ``since``, past and future; ends after Compacted."""
        while True:
            news = self._news
            if node not in self.cut:
                if since + 1 < self._forgotten:
                    yield Compacted(self._forgotten)
                    return
                fresh = [change for change in self._history if change.revision > since]
                since = max(since, self.revision)
                for change in fresh:
                    if start <= change.name < end:
                        yield change
            if news is self._news:
                await news.wait()

    def heal(self, node: str) -> None:
        """``node`` reaches the store again."""
        self.cut.discard(node)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class MemoryShared:
    """``SharedStore`` in a ``MemoryCluster``."""

    def __init__(self, cluster: MemoryCluster, node: str) -> None:
        self._cluster, self._node = cluster, node
        self._outbox = cluster.outboxes.setdefault(node, {})

    def patience(self, _at_most: float) -> _Patience:
        """For one call."""
        return _Patience()

    async def find(self, session_id: bytes) -> Found:
        """One session, terminated ones too."""
        self._cluster.reach(self._node)
        return self._found(session_id)

    async def look(self, write: Write, _deadline: float) -> Found:
        """Everything that ``write`` is decided on. Raises Unanswered."""
        self._cluster.reach(self._node)
        self._cluster.answer(self._node)
        return self._seen(write)

    async def exchange(self, changes: Sequence[Exchange], _deadline: float) -> Outcome:
        """All of ``changes`` or none. Raises Unanswered."""
        self._cluster.reach(self._node)
        found = tuple(self._seen(change.write) for change in changes)
        if any(not _unchanged(change, there) for change, there in zip(changes, found, strict=True)):
            self._cluster.answer(self._node)
            return Outcome(self._cluster.revision, found)
        entries: list[tuple[str, bytes | None]] = []
        for change in changes:
            entries += self._entries(change)
        revision = self._cluster.change(entries)
        for change in changes:
            self._keep(change.write, revision)
        self._cluster.answer(self._node)
        return Outcome(revision, None)

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated, in order of its identifier."""
        self._cluster.reach(self._node)
        return [self._decoded(name) for name in self._cluster.names("live/", "live0")]

    async def owned(self, node: str, _foreign: Callable[[str], None]) -> AsyncIterator[Found]:
        """Every session of ``node`` that is not terminated."""
        self._cluster.reach(self._node)
        for session in await self.load_all():
            if session.owner == node:
                found = self._found(session.session_id)
                there = found.session  # the caller may have awaited meanwhile: it may be another's, or have ended
                if there is not None and there.owner == node and there.state != TERMINATED:
                    yield found

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp (ns) of this device; 0 if none."""
        self._cluster.reach(self._node)
        known = self._cluster.devices.get(device)
        return 0 if known is None else known.timestamp

    async def last_session(self, device: bytes) -> bytes | None:
        """The session that this device began last; None if it began none."""
        self._cluster.reach(self._node)
        known = self._cluster.devices.get(device)
        return None if known is None else known.session_id

    async def kept(self, node: str | None = None) -> list[KeptLines]:
        """The oldest lines of a node's commits (this one's) that were not erased yet."""
        self._cluster.reach(self._node)
        return list(self._outbox_of(node).values())[:_KEPT_PAGE]

    async def erase(self, names: Sequence[bytes], node: str | None = None) -> None:
        """Remove what ``kept`` has of that node under these names."""
        self._cluster.reach(self._node)
        for name in names:
            self._outbox_of(node).pop(name.decode(), None)

    async def keepers(self) -> list[str]:
        """The nodes of which ``kept`` has something."""
        self._cluster.reach(self._node)
        return sorted(node for node, kept in self._cluster.outboxes.items() if kept)

    async def close(self) -> None:
        """Nothing is held that needs releasing."""

    def _outbox_of(self, node: str | None) -> dict[str, KeptLines]:
        return self._outbox if node is None else self._cluster.outboxes.get(node, {})

    def _keep(self, write: Write, revision: int) -> None:
        if write.lines:
            name = outbox_name(write)
            self._outbox[name] = KeptLines(name.encode(), write.session_id, write.version, write.lines)
        if write.device is not None:
            self._cluster.devices[write.device[0]] = _Device(write.device[1], write.session_id, revision)

    def _entries(self, change: Exchange) -> list[tuple[str, bytes | None]]:
        name, record = change.write.session_id.hex(), encode_session(change.record)
        if change.record.state == TERMINATED:
            return [(f"live/{name}", None), (f"dead/{name}", record)]
        return [(f"live/{name}", record)]

    def _decoded(self, name: str) -> StoredSession:
        entry = self._cluster.get(name)
        assert entry is not None, "the name was listed"
        return decode_session(name.encode(), entry.value)

    def _found(self, session_id: bytes) -> Found:
        for name in (f"live/{session_id.hex()}", f"dead/{session_id.hex()}"):
            entry = self._cluster.get(name)
            if entry is not None:
                return Found(decode_session(name.encode(), entry.value), entry.revision)
        return Found()

    def _seen(self, write: Write) -> Found:
        found = self._found(write.session_id)
        device = None if write.device is None else self._cluster.devices.get(write.device[0])
        return Found(
            found.session, found.revision, 0 if device is None else device.timestamp,
            0 if device is None else device.revision, outbox_name(write) in self._outbox,
        )  # fmt: skip


class MemoryLeases:
    """``Leases`` in a ``MemoryCluster``."""

    def __init__(self, cluster: MemoryCluster, node: str) -> None:
        self._cluster, self._node = cluster, node

    async def grant(self, ttl_seconds: int) -> Lease:
        """A lease of at least this length."""
        self._cluster.reach(self._node)
        return Lease(*self._cluster.begin(ttl_seconds))

    async def keep_alive(self, lease: Lease) -> Lease:
        """The same lease, good for its whole length again. Raises LeaseLost."""
        if not lease.remaining(self._cluster.clock()):
            raise LeaseLost("the lease ran out before the store could be asked to keep it")
        self._cluster.reach(self._node)
        return Lease(lease.id, self._cluster.renew(lease.id))

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove what is held under it."""
        await self.revoke_by_id(lease.id)

    async def revoke_by_id(self, lease_id: int) -> None:
        """End a lease that an earlier process of this node left."""
        self._cluster.reach(self._node)
        self._cluster.end(lease_id)

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        """Set ``held/NAME`` until the lease ends; False if another lease holds it. Raises LeaseLost."""
        self._cluster.reach(self._node)
        self._cluster.lives(lease.id)
        there = self._cluster.get(f"held/{name}")
        if there is None:
            self._cluster.change([(f"held/{name}", value)], lease.id)
        return there is None or (there.lease, there.value) == (lease.id, value)

    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease:
        """Keep the lease alive and set ``held/NAME``, which it holds. Raises LeaseLost."""
        renewed = await self.keep_alive(lease)
        there = self._cluster.get(f"held/{name}")
        if there is None or there.lease != lease.id:
            raise LeaseLost(f"held/{name} is not held under this lease any more; somebody removed or replaced it")
        self._cluster.change([(f"held/{name}", value)], lease.id)
        return renewed

    async def listing(self, prefix: str) -> Listing:
        """Every name under ``prefix``."""
        self._cluster.reach(self._node)
        names = self._cluster.names(prefix, _after(prefix))
        found = {name: entry.value for name in names if (entry := self._cluster.get(name)) is not None}
        return Listing(self._cluster.revision, found)

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[Change | Compacted]:
        """Every change under ``prefix`` from that revision on; ends after Compacted."""
        return self._cluster.told(self._node, prefix, _after(prefix), from_revision - 1)

    async def follow(self, since: int) -> AsyncIterator[Change]:
        """Every change of ``held/`` and ``live/`` after ``since``; what was forgotten is found by listing again."""
        start, end = "held/", _after("live/")
        names = set(self._cluster.names(start, end))
        while True:
            async for change in self._cluster.told(self._node, start, end, since):
                if isinstance(change, Compacted):
                    break
                (names.discard if change.value is None else names.add)(change.name)
                since = change.revision
                yield change
            for found in self._relisted(names, since):
                yield found
            names, since = set(self._cluster.names(start, end)), self._cluster.revision

    def _relisted(self, known: set[str], since: int) -> list[Change]:
        present = self._cluster.names("held/", _after("live/"))
        revision = self._cluster.revision
        entries = [(name, entry) for name in present if (entry := self._cluster.get(name)) is not None]
        changed = sorted((entry.revision, name, entry.value) for name, entry in entries if entry.revision > since)
        gone = [Change(name, None, revision) for name in sorted(known - set(present))]
        return [*gone, *(Change(name, value, revision) for _, name, value in changed)]


class _Patience:
    """A few tries at once, then none."""

    def __init__(self) -> None:
        self.deadline = math.inf
        self._failures = 0

    async def wait(self, failure: BaseException) -> None:
        """Return for the next try. Raises StoreUnavailable after the last."""
        self._failures += 1
        if self._failures >= _TRIES:
            raise StoreUnavailable(f"the store in memory gave no answer ({failure})") from failure
        await asyncio.sleep(0)


def _unchanged(change: Exchange, there: Found) -> bool:
    if change.write.device is not None and change.seen.device_revision != there.device_revision:
        return False
    return change.seen.revision == there.revision


def _after(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
