"""The shared store behind a network: requests and answers take time, get lost, or are cut off, one way or both.

``MemoryCluster`` is linearizable: what arrives is carried out at once. An answer that is lost was carried out all the
same, and a request that its sender gave up may still arrive: ``at_claim`` says how long one is held up. Leases
end by the store's own clock, which is true time.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jumpvpn.runtime.stores.base import TERMINATED, StoredSession, StoreUnavailable, Write
from jumpvpn.runtime.stores.etcd.records import decode_session
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Listing
from jumpvpn.runtime.stores.membership import Serving, decode_member
from jumpvpn.runtime.stores.memory_cluster import MemoryCluster
from jumpvpn.runtime.stores.shared import Exchange, Found, KeptLines, Outcome, Unanswered
from jumpvpn.sim.cluster.loop import VirtualLoop
from jumpvpn.sim.cluster.machines import Machine
from jumpvpn.values import MILLISECOND, SECOND, Instant

TRY_SECONDS = 1.0  # then one request counts as unanswered
CALL_SECONDS = 3.0  # then a call of several tries is given up
PAUSE_SECONDS = 0.05  # between two tries

T = TypeVar("T")
Watcher = Callable[[Sequence[tuple[str, bytes | None]], int], None]


@dataclass(slots=True)
class Way:
    """Between one node and the store; ``cut_watch``: changes are not told, requests go through. Delay in ns."""

    cut_up: bool = False
    cut_down: bool = False
    cut_watch: bool = False
    delay: int = 2 * MILLISECOND
    watch_delay: int = 3 * MILLISECOND
    lose_answers: float = 0.0

    @property
    def troubled(self) -> bool:
        """Whether requests or changes do not get through as they should."""
        return self.cut_up or self.cut_down or self.cut_watch or bool(self.lose_answers)

    def heal(self) -> None:
        """Everything passes, quickly."""
        self.cut_up = self.cut_down = self.cut_watch = False
        self.delay, self.watch_delay, self.lose_answers = 2 * MILLISECOND, 3 * MILLISECOND, 0.0


class StoreServer(MemoryCluster):
    """The store. ``down``: nobody answers. ``watcher`` hears of every change, before anybody else does."""

    def __init__(self, loop: VirtualLoop, dice: random.Random) -> None:
        super().__init__(lambda: Instant(loop.now))
        self.loop = loop
        self.dice = dice
        self.down = False
        self.ways: dict[str, Way] = {}
        self.watcher: Watcher = lambda _changes, _revision: None
        self.at_claim: Callable[[str, bytes], int] | None = None  # hears of the next one's node and session
        self.told_at: dict[int, int] = {}
        self.moments: list[tuple[int, int]] = []
        self.outside = Context()  # of no process
        self._passable = asyncio.Event()

    def way(self, node: str) -> Way:
        """Between ``node`` and the store."""
        return self.ways.setdefault(node, Way())

    def change(self, changes: Sequence[tuple[str, bytes | None]], lease: int = 0) -> int:
        """As ever; the watcher hears of it."""
        revision = super().change(changes, lease)
        self.told_at[revision] = self.loop.now
        self.moments.append((revision, self.loop.now))
        self.watcher(changes, revision)
        return revision

    def renew(self, lease: int, length: int | None = None) -> Instant:
        """As ever; what has ended is ended in time."""
        ends = super().renew(lease, length)
        self.loop.at(ends, self.tick, context=self.outside)
        return ends

    def unseen_since(self, revision: int) -> int | None:
        """When the first change after ``revision`` took place; None if there is none."""
        place = bisect(self.moments, (revision, 1 << 62))
        return self.moments[place][1] if place < len(self.moments) else None

    def moved(self) -> None:
        """A way changed: whoever waits for it looks again."""
        passable, self._passable = self._passable, asyncio.Event()
        passable.set()

    async def passable(self, node: str) -> None:
        """Return once changes are told to ``node``."""
        while self.way(node).cut_watch or self.way(node).cut_down or self.down:
            await self._passable.wait()

    async def ask(self, node: str, action: Callable[[], T], seconds: float = TRY_SECONDS, held_up: int = 0) -> T:
        """One request, ``held_up`` (ns) beyond its way. Raises Unanswered, and whatever ``action`` raises."""
        answer: asyncio.Future[T] = self.loop.create_future()
        due = self.loop.now + self.way(node).delay + held_up
        self.loop.at(due, self._arrive, node, action, answer, context=self.outside)
        try:
            async with asyncio.timeout(max(0.0, min(seconds, TRY_SECONDS))):
                return await answer
        except TimeoutError:
            raise Unanswered("no answer in time") from None

    def _arrive(self, node: str, action: Callable[[], T], answer: asyncio.Future[T]) -> None:
        way = self.way(node)
        if way.cut_up or self.down:
            return
        self.tick()
        result: Any
        try:
            result = action()
        except (StoreUnavailable, LeaseLost) as failure:
            result = failure
        if not (way.lose_answers and self.dice.random() < way.lose_answers):
            self.loop.at(self.loop.now + way.delay, self._answer, node, answer, result, context=self.outside)

    def _answer(self, node: str, answer: asyncio.Future[T], result: Any) -> None:
        if self.way(node).cut_down or self.down or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    raise AssertionError("a store in memory does not wait")


def _claims(change: Exchange) -> bool:
    """Whether it makes somebody the owner of a session, be it new, another's, or its own from before."""
    return change.seen.session is None or change.record.term > change.seen.session.term


class Patience:
    """When to ask again, and when to stop."""

    def __init__(self, loop: VirtualLoop, at_most: float) -> None:
        self._loop = loop
        self.deadline = loop.time() + min(at_most, CALL_SECONDS)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - self._loop.time()

    async def wait(self, failure: BaseException) -> None:
        """Return for the next try. Raises StoreUnavailable when there is no time for one."""
        if self.left <= PAUSE_SECONDS:
            raise StoreUnavailable(f"the store gave no answer ({failure})") from failure
        await asyncio.sleep(PAUSE_SECONDS)


class _Line:
    def __init__(self, server: StoreServer, machine: Machine) -> None:
        self._server, self._machine = server, machine
        self._node = machine.name

    async def _ask(self, action: Callable[[], T], at_most: float = math.inf) -> T:
        patience = Patience(self._server.loop, at_most)
        while True:
            try:
                return await self._server.ask(self._node, action, patience.left)
            except Unanswered as failure:
                await patience.wait(failure)


class Records(_Line):
    """``SharedStore`` for one node."""

    def __init__(self, server: StoreServer, machine: Machine) -> None:
        super().__init__(server, machine)
        self._memory = server.shared(machine.name)

    def patience(self, at_most: float) -> Patience:
        """For one call."""
        return Patience(self._server.loop, at_most)

    async def find(self, session_id: bytes) -> Found:
        """One session, terminated ones too."""
        return await self._ask(lambda: _at_once(self._memory.find(session_id)))

    async def look(self, write: Write, deadline: float) -> Found:
        """Everything that ``write`` is decided on."""
        left = deadline - self._server.loop.time()
        return await self._server.ask(self._node, lambda: _at_once(self._memory.look(write, 0)), left)

    async def exchange(self, changes: Sequence[Exchange], deadline: float) -> Outcome:
        """All of ``changes`` or none."""
        left, held_up = deadline - self._server.loop.time(), 0
        claim = next(filter(_claims, changes), None)
        if self._server.at_claim is not None and claim is not None:
            strike, self._server.at_claim = self._server.at_claim, None
            held_up = strike(self._node, claim.write.session_id)
        return await self._server.ask(self._node, lambda: _at_once(self._memory.exchange(changes, 0)), left, held_up)

    async def load_all(self) -> list[StoredSession]:
        """Every session that is not terminated."""
        return await self._ask(lambda: _at_once(self._memory.load_all()))

    async def owned(self, node: str, _foreign: Callable[[str], None]) -> AsyncIterator[Found]:
        """Every session of ``node`` that is not terminated."""
        for session in await self.load_all():
            if session.owner == node:
                found = await self.find(session.session_id)
                there = found.session  # meanwhile it may have become another's, or have ended
                if there is not None and there.owner == node and there.state != TERMINATED:
                    yield found

    async def device_timestamp(self, device: bytes) -> int:
        """The newest handshake timestamp of this device."""
        return await self._ask(lambda: _at_once(self._memory.device_timestamp(device)))

    async def last_session(self, device: bytes) -> bytes | None:
        """The session that this device began last."""
        return await self._ask(lambda: _at_once(self._memory.last_session(device)))

    async def kept(self, node: str | None = None) -> list[KeptLines]:
        """The oldest lines of a node's commits (this one's) that were not erased yet."""
        return await self._ask(lambda: _at_once(self._memory.kept(node)))

    async def erase(self, names: Sequence[bytes], node: str | None = None) -> None:
        """Remove what ``kept`` has of that node under these names."""
        if names:
            await self._ask(lambda: _at_once(self._memory.erase(names, node)))

    async def keepers(self) -> list[str]:
        """The nodes of which ``kept`` has something."""
        return await self._ask(lambda: _at_once(self._memory.keepers()))

    async def close(self) -> None:
        """Nothing is held that needs releasing."""


@dataclass(slots=True)
class Sightings:
    """Since when (true time, ns) this node knows of each member that it may not act, and of each owner's term."""

    gone: dict[str, int] = field(default_factory=dict)
    owned: dict[tuple[bytes, int], int] = field(default_factory=dict)  # by session and term

    def see(self, change: Change, now: int) -> None:
        """The node is about to be told of ``change``."""
        if change.name.startswith("held/"):
            name = change.name.removeprefix("held/")
            if change.value is None or decode_member(change.name, change.value).state is Serving.FENCED:
                self.gone.setdefault(name, now)
            else:
                self.gone.pop(name, None)
        elif change.value is not None:
            stored = decode_session(change.name.encode(), change.value)
            self.owned.setdefault((stored.session_id, stored.term), now)

    def clear(self) -> None:
        """It begins again and knows nothing."""
        self.gone.clear()
        self.owned.clear()


class NodeLeases(_Line):
    """``Leases`` for one node; what is left of a lease is told by the node's own clock."""

    def __init__(self, server: StoreServer, machine: Machine, sightings: Sightings) -> None:
        super().__init__(server, machine)
        self._memory = server.leases(machine.name)
        self._sightings = sightings

    async def grant(self, ttl_seconds: int) -> Lease:
        """A lease, counted from before it was asked for."""
        before = self._machine.boot()
        number, _ = await self._ask(lambda: self._server.begin(ttl_seconds))
        return Lease(number, Instant(before + ttl_seconds * SECOND))

    async def keep_alive(self, lease: Lease) -> Lease:
        """The same lease, good for its whole length again."""
        before = self._machine.boot()
        left = lease.remaining(before) / SECOND
        if not left:
            raise LeaseLost("the lease ran out before the store could be asked to keep it")
        length = await self._ask(lambda: self._renewed(lease), left)
        return Lease(lease.id, Instant(before + length))

    def _renewed(self, lease: Lease) -> int:
        return self._server.renew(lease.id) - self._server.loop.now

    async def revoke(self, lease: Lease) -> None:
        """End the lease."""
        await self.revoke_by_id(lease.id)

    async def revoke_by_id(self, lease_id: int) -> None:
        """End a lease that an earlier process of this node left."""
        await self._ask(lambda: self._server.end(lease_id))

    async def hold(self, lease: Lease, name: str, value: bytes) -> bool:
        """Set ``held/NAME`` until the lease ends; False if another lease holds it."""
        return await self._ask(lambda: _at_once(self._memory.hold(lease, name, value)))

    async def beat(self, lease: Lease, name: str, value: bytes) -> Lease:
        """Keep the lease alive, then set ``held/NAME``."""
        renewed = await self.keep_alive(lease)
        left = renewed.remaining(self._machine.boot()) / SECOND
        await self._ask(lambda: self._put(lease, name, value), left)
        return renewed

    def _put(self, lease: Lease, name: str, value: bytes) -> None:
        there = self._server.get(f"held/{name}")
        if there is None or there.lease != lease.id:
            raise LeaseLost(f"held/{name} is not held under this lease any more")
        self._server.change([(f"held/{name}", value)], lease.id)

    async def listing(self, prefix: str) -> Listing:
        """Every name under ``prefix``."""
        return await self._ask(lambda: _at_once(self._memory.listing(prefix)))

    async def follow(self, since: int, _silence: float = 0.0) -> AsyncIterator[Change]:
        """Every change in order, each some time after it took place and while the way is open."""
        loop = self._server.loop
        async for change in self._memory.follow(since):
            while True:
                await self._server.passable(self._node)
                due = self._server.told_at.get(change.revision, 0) + self._server.way(self._node).watch_delay
                if due <= loop.now:
                    break
                await asyncio.sleep((due - loop.now) / SECOND)
            self._sightings.see(change, loop.now)
            yield change

    def watch(self, _prefix: str, _from_revision: int) -> AsyncIterator[Change | Compacted]:
        """No gateway asks for it."""
        raise AssertionError("gateways follow, they do not watch one prefix")


class Joined:
    """``Shared`` for one node: what ``Cluster`` needs beside the records."""

    def __init__(self, leases: NodeLeases, inner: dict[bytes, tuple[str, ...]]) -> None:
        self.leases = leases
        self.lost: Callable[[bytes, StoredSession | None], None] = lambda _session_id, _found: None
        self.complain: Callable[[str], None] = lambda _reason: None
        self.may_act_until: Callable[[], Instant] = lambda: Instant(0)
        self.store: Any = None
        self._inner = inner

    def until(self) -> Instant:
        """Until when this node may change what is shared."""
        return self.may_act_until()

    def tell_lost(self, session_id: bytes, found: StoredSession | None) -> None:
        """A change met a record that is not this node's any more."""
        self.lost(session_id, found)

    def tell(self, reason: str) -> None:
        """Words about what cannot be read."""
        self.complain(reason)

    async def claim_addresses(self, device: bytes) -> tuple[str, ...]:
        """The inner addresses of a device; claiming them is not modelled."""
        return self._inner[device]

    async def ticket_keys(self, _now_ms: int, _life_ms: int) -> list[bytes]:
        """One key that never changes."""
        return [bytes(32)]

    @staticmethod
    def decode_record(name: str, value: bytes) -> StoredSession:
        """The record under a name of the watch."""
        return decode_session(name.encode(), value)
