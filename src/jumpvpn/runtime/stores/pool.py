"""Requests that share one transaction of the store: what waits while others are under way goes together, at once."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jumpvpn.runtime.stores.base import CommitUnknown, StoreUnavailable, Write
from jumpvpn.runtime.stores.shared import Exchange, Found, Outcome, SharedStore, Unanswered

COMMITS_TOGETHER = 40  # three reads of each if a comparison fails, of etcd's 128 operations in a transaction
COMMIT_BYTES = 768 << 10  # of records and lines: with names and framing below etcd's 1.5 MiB in a request
_COMMITS_AT_ONCE = 2  # transactions: one is on its way while etcd writes the other, and what waits makes a large one
_TRIES_TOGETHER = 2  # of one commit; where comparisons fail again and again, each goes alone and hinders only itself

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Spoilt(Exception):
    """A request that several shared failed with ``failure``; each of them has to decide how to go on by itself."""

    def __init__(self, failure: StoreUnavailable | Unanswered) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests are under way at once, and how many items of how many bytes go in one of them."""

    at_once: int
    items: int
    size: int


@dataclass(slots=True, eq=False)
class _Place(Generic[Item, Answer]):
    """One item in the queue. ``turn``: True = send the next request, False = it was sent by another, see the rest."""

    item: Item
    size: int
    deadline: float
    turn: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    taken: bool = False
    answer: tuple[Answer] | None = None
    failure: StoreUnavailable | Unanswered | None = None

    def expire(self) -> None:
        """The deadline has come."""
        if not self.turn.done():
            self.turn.set_exception(TimeoutError())


class Pool(Generic[Item, Answer]):
    """Sends items with ``send(items, deadline)``, which answers all of them in order, or raises.

    An item goes at once, by itself, while fewer requests than the bound are under way; nobody waits for company. There
    is no task: whoever finds a place sends, and hands it on to the first in the queue.
    """

    def __init__(self, send: Callable[[Sequence[Item], float], Awaitable[Sequence[Answer]]], bounds: Bounds) -> None:
        self._send, self._bounds = send, bounds
        self._queue: deque[_Place[Item, Answer]] = deque()
        self._under_way = 0

    async def ask(self, item: Item, size: int, deadline: float) -> Answer:
        """The answer to ``item`` of ``size`` bytes; ``deadline`` is in the loop's time (s).

        What ``send`` raises for an item alone is raised as it is; for several, each of them gets Spoilt. Raises
        StoreUnavailable when the item was still in the queue at its deadline, and so was never sent.
        """
        mine: _Place[Item, Answer] = _Place(item, size, deadline)
        if self._under_way < self._bounds.at_once:
            self._under_way += 1
        elif not await self._waited(mine):
            return _result(mine)
        try:
            batch = self._batch(mine)
            if len(batch) == 1:
                return (await self._send([item], deadline))[0]
            await self._send_all(batch)
        finally:
            self._hand_on()
        return _result(mine)

    async def _waited(self, mine: _Place[Item, Answer]) -> bool:
        """Whether to send the next request; False once another has sent the item."""
        self._queue.append(mine)
        loop = asyncio.get_running_loop()
        late = None if math.isinf(mine.deadline) else loop.call_at(mine.deadline, mine.expire)
        try:
            return await mine.turn
        except TimeoutError:
            if mine.taken:
                raise Spoilt(Unanswered("no answer in time")) from None
            raise StoreUnavailable("the store is too busy: the request could not be sent in time") from None
        except asyncio.CancelledError:
            turn = mine.turn  # it may have come at the same moment
            if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                self._hand_on()
            raise
        finally:
            if late is not None:
                late.cancel()

    def _batch(self, mine: _Place[Item, Answer]) -> list[_Place[Item, Answer]]:
        """``mine`` and those of the queue that go with it, in order; whoever has gone away is left out."""
        batch, size = [mine], mine.size
        while self._queue and len(batch) < self._bounds.items:
            place = self._queue[0]
            if not place.turn.done():
                size += place.size
                if size > self._bounds.size:
                    break
                place.taken = True
                batch.append(place)
            self._queue.popleft()
        return batch

    async def _send_all(self, batch: Sequence[_Place[Item, Answer]]) -> None:
        try:
            answers = await self._send([place.item for place in batch], min(place.deadline for place in batch))
            for place, answer in zip(batch, answers, strict=True):
                place.answer = (answer,)
        except (StoreUnavailable, Unanswered) as failure:
            for place in batch:
                place.failure = failure
        finally:  # if this task is cancelled, the others do not know what became of theirs
            for place in batch[1:]:
                if not place.turn.done():
                    place.turn.set_result(False)

    def _hand_on(self) -> None:
        """This place is free: the first that still waits has it."""
        while self._queue:
            place = self._queue.popleft()
            if not place.turn.done():
                place.turn.set_result(True)
                return
        self._under_way -= 1


def _result(place: _Place[Item, Answer]) -> Answer:
    if place.answer is not None:
        return place.answer[0]
    failure = place.failure or Unanswered("the request was given up while others shared it")
    raise Spoilt(failure) from failure


class Commits:
    """The exchanges of many sessions, several in one transaction where they come faster than the store answers."""

    def __init__(self, shared: SharedStore) -> None:
        self._shared = shared
        bounds = Bounds(_COMMITS_AT_ONCE, COMMITS_TOGETHER, COMMIT_BYTES)
        self.pool: Pool[Exchange, Outcome] = Pool(self._send, bounds)

    def one(self) -> OneCommit:
        """For ``settle``, once."""
        return OneCommit(self._shared, self.pool)

    async def _send(self, changes: Sequence[Exchange], deadline: float) -> list[Outcome]:
        """One outcome for each of ``changes``; where none took place, some may only have been in bad company."""
        outcome = await self._shared.exchange(changes, deadline)
        if outcome.found is None:
            return [outcome] * len(changes)
        return [Outcome(outcome.revision, (found,)) for found in outcome.found]


class OneCommit:
    """What ``settle`` asks for one commit: it shares transactions with others until it is in doubt.

    A shared exchange that another's comparison stopped leaves nothing of this change under way. One without an answer
    may; then the next goes alone, because only the failure of this change's own comparison would end the doubt.
    """

    def __init__(self, shared: SharedStore, pool: Pool[Exchange, Outcome]) -> None:
        self._shared, self._pool = shared, pool
        self._tries = _TRIES_TOGETHER

    async def look(self, write: Write, deadline: float) -> Found:
        """Everything that ``write`` is decided on. Raises Unanswered."""
        return await self._shared.look(write, deadline)

    async def exchange(self, changes: Sequence[Exchange], deadline: float) -> Outcome:
        """The outcome of the one change in ``changes``. Raises Unanswered, StoreUnavailable."""
        (change,) = changes
        if not self._tries or change.write.device is not None:  # a device's name may be in a transaction only once
            return await self._shared.exchange(changes, deadline)
        self._tries -= 1
        try:
            return await self._pool.ask(change, _size(change), deadline)
        except Unanswered:
            self._tries = 0
            raise
        except Spoilt as spoilt:
            self._tries = 0
            if isinstance(spoilt.failure, Unanswered):
                raise Unanswered(str(spoilt.failure)) from spoilt
            if isinstance(spoilt.failure, CommitUnknown):
                raise CommitUnknown(spoilt.failure.reason) from spoilt
        # Nothing took place, for a reason that may be another's: a record that is too long, or damaged in the store.
        return await self._shared.exchange(changes, deadline)


def _size(change: Exchange) -> int:
    record = change.record
    return len(record.body) + len(record.sealed or b"") + len(record.head) + sum(map(len, change.write.lines))
