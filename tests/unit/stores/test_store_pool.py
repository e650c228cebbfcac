"""Requests that share a transaction: who goes with whom, and what becomes of each when the others fail."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.pool import Bounds, Pool, Spoilt
from jumpvpn.runtime.stores.shared import Unanswered

BOUNDS = Bounds(at_once=2, items=3, size=10)


class Sender:
    """Requests that are answered when the test says so."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.sent: list[list[str]] = []
        self.deadlines: list[float] = []
        self.answers: list[asyncio.Future[None]] = []
        self.pool: Pool[str, str] = Pool(self._send, bounds)

    async def _send(self, items: Sequence[str], deadline: float) -> list[str]:
        self.sent.append(list(items))
        self.deadlines.append(deadline)
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]
        return [item.upper() for item in items]

    def ask(self, item: str, size: int = 1, deadline: float = math.inf) -> asyncio.Task[str]:
        return asyncio.create_task(self.pool.ask(item, size, deadline))

    async def answer(self, number: int, failure: Exception | None = None) -> None:
        if failure is None:
            self.answers[number].set_result(None)
        else:
            self.answers[number].set_exception(failure)
        await settled()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_alone_goes_at_once_and_alone() -> None:
    sender = Sender()
    first = sender.ask("a")
    await asyncio.sleep(0)
    assert sender.sent == [["a"]], "it was sent in the step in which it was asked"
    second = sender.ask("b")
    await asyncio.sleep(0)
    assert sender.sent == [["a"], ["b"]]
    await sender.answer(0)
    await sender.answer(1)
    assert (await first, await second) == ("A", "B")


async def test_what_waits_goes_together_in_its_order_and_within_the_bounds() -> None:
    sender = Sender()
    tasks = [sender.ask(item) for item in "abcdefg"]
    await settled()
    assert sender.sent == [["a"], ["b"]]
    await sender.answer(1)
    assert sender.sent[2:] == [["c", "d", "e"]]
    await sender.answer(0)
    assert sender.sent[3:] == [["f", "g"]]
    await sender.answer(3)
    await sender.answer(2)
    assert await asyncio.gather(*tasks) == list("ABCDEFG")
    again = sender.ask("h")
    await asyncio.sleep(0)
    assert sender.sent[4:] == [["h"]], "no place was lost"
    await sender.answer(4)
    assert await again == "H"


async def test_bytes_are_bounded_but_one_item_may_have_more() -> None:
    sender = Sender(Bounds(at_once=1, items=9, size=10))
    tasks = [sender.ask(item, size) for item, size in (("a", 1), ("b", 6), ("c", 4), ("d", 11), ("e", 1))]
    await settled()
    for number in range(4):
        await sender.answer(number)
    assert sender.sent == [["a"], ["b", "c"], ["d"], ["e"]]
    assert await asyncio.gather(*tasks) == list("ABCDE")


async def test_a_failure_alone_stays_what_it_is_and_one_that_is_shared_says_so() -> None:
    sender = Sender(Bounds(at_once=1, items=9, size=10))
    tasks = [sender.ask(item) for item in "abcd"]
    await settled()
    await sender.answer(0, StoreUnavailable("alone"))
    with pytest.raises(StoreUnavailable, match="alone"):
        await tasks[0]
    lost = Unanswered("lost")
    await sender.answer(1, lost)
    for task in tasks[1:]:
        with pytest.raises(Spoilt, match="lost") as raised:
            await task
        assert raised.value.failure is lost


async def test_whoever_sends_may_be_cancelled_and_the_others_hear_of_it() -> None:
    sender = Sender(Bounds(at_once=1, items=2, size=10))
    tasks = [sender.ask(item) for item in "abcd"]
    await settled()
    await sender.answer(0)
    tasks[1].cancel()
    await settled()
    with pytest.raises(Spoilt, match="given up") as raised:
        await tasks[2]
    assert isinstance(raised.value.failure, Unanswered), "what became of it is not known"
    assert sender.sent == [["a"], ["b", "c"], ["d"]]
    await sender.answer(2)
    assert await tasks[3] == "D"


async def test_whoever_leaves_the_queue_is_not_sent_and_keeps_no_place() -> None:
    sender = Sender(Bounds(at_once=1, items=9, size=10))
    tasks = [sender.ask(item) for item in "abcd"]
    await settled()
    tasks[1].cancel()
    sender.answers[0].set_result(None)
    await asyncio.sleep(0)
    tasks[2].cancel()  # the place has been handed to it, in this very step
    await settled()
    assert sender.sent == [["a"], ["d"]]
    await sender.answer(1)
    assert await tasks[3] == "D"


async def test_nothing_is_sent_after_its_deadline_nor_waits_beyond_it() -> None:
    sender = Sender(Bounds(at_once=1, items=9, size=10))
    loop = asyncio.get_running_loop()
    first = sender.ask("a")
    late, patient = sender.ask("b", deadline=loop.time() + 0.01), sender.ask("c", deadline=loop.time() + 60)
    with pytest.raises(StoreUnavailable, match="could not be sent in time"):
        await late
    hurried = sender.ask("d", deadline=loop.time() + 50)
    await settled()
    await sender.answer(0)
    assert sender.sent == [["a"], ["c", "d"]]
    assert loop.time() < sender.deadlines[1] < loop.time() + 51, "the earliest of those that share it"
    await sender.answer(1)
    assert await asyncio.gather(first, patient, hurried) == ["A", "C", "D"]
