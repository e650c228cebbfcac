"""Defects of the shell that the simulated cluster has found, each alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from jumpvpn.gateway.adoption import Adoption
from jumpvpn.gateway.executor import NONCES_REMEMBERED, Decided
from jumpvpn.gateway.view import ClusterView, Owner
from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoredSession
from jumpvpn.runtime.stores.flush import Held
from jumpvpn.runtime.stores.membership import Member, Serving
from jumpvpn.runtime.stores.shared import Found
from jumpvpn.sim.cluster.mutants import play
from jumpvpn.sim.judge import journal_judge
from jumpvpn.values import Instant

STORED = StoredSession(b"s" * 16, 2, "ATTACHED", 1, b"", None, "s:x", 1, "h", "w", "gw1", 1)


def test_an_own_change_whose_answer_was_lost_is_no_rivals_for_the_next_claim() -> None:
    held = Held(Found(STORED, 1), 5)
    flushed = Found(replace(STORED, version=5), 2)
    assert held.ours("gw1", 1, 6)(flushed)
    assert held.ours("gw1", 2, 6)(flushed), "the first commit of the node's next term"
    assert not held.ours("gw1", 2, 6)(Found(replace(STORED, version=5, owner="gw2", term=2), 2))
    assert not held.ours("gw1", 2, 6)(Found(replace(STORED, version=5, term=3), 2))


def test_a_decided_request_counts_once_also_when_its_session_has_moved_on() -> None:
    decided = Decided()
    assert decided.asked(1, "uid", "aa")
    assert decided.asked(2, "uid", "aa"), "dropped or forgotten before, it is as new as ever"
    decided.decide(2)
    assert not decided.asked(3, "uid", "aa")
    assert decided.asked(4, "other", "aa")
    for number in range(NONCES_REMEMBERED - 1):
        decided.asked(10 + number, "uid", f"n{number}")
        decided.decide(10 + number)
    for number in range(NONCES_REMEMBERED):  # copies of it are denied, and push nothing out
        assert not decided.asked(50 + number, "uid", "aa")
        decided.decide(50 + number)
    decided.decide(70)  # of a request without proof
    decided.asked(80, "uid", "last")
    decided.decide(80)
    assert decided.asked(99, "uid", "aa"), "bounded: the store has refused it long since"


async def test_a_node_that_may_not_act_does_not_ask_itself_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class View:
        def owned_by(self, _node: str) -> list[bytes]:
            return [b"s" * 16]

        def heir(self, _session_id: bytes) -> str:
            return "gw2"

    asked = 0

    def may_act() -> bool:
        nonlocal asked
        asked += 1
        return False

    async def adopt(*_args: Any, **_more: Any) -> None:
        raise AssertionError("it may not act")

    monkeypatch.setattr(clock, "boot_time", lambda: Instant(1_000))
    adoption = Adoption("gw2", View(), 0, adopt, may_act)  # type: ignore[arg-type]
    adoption.gone("gw1")
    task = asyncio.create_task(adoption.run())
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asked == 1


class Orphan:
    """A session of gw1, and gw2, which adopts it 100 ns after gw1 went: what was adopted when, and lost since when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, came_at: int | None = None) -> None:
        view = ClusterView(lambda *_: pytest.fail("nothing is told"))
        view.members["gw2"] = Member("gw2", "192.0.2.2:1", bytes(32), "run", Serving.SERVING, "1", (1,))
        view.owners[b"s" * 16] = Owner("gw1", 3, "ATTACHED", None if came_at is None else Instant(came_at))
        self.owners = view.owners
        self.now = 0
        self.adopted = list[tuple[int, Instant | None]]()
        self.of = Adoption("gw2", view, 100, self._adopt, lambda: True)
        monkeypatch.setattr(asyncio, "sleep", self._pause)
        monkeypatch.setattr(clock, "boot_time", lambda: Instant(self.now))

    async def at(self, *times: int) -> None:
        for self.now in times:
            await self.of._adopt_due()

    async def _adopt(self, session_id: bytes, *, lost_at: Instant | None, superseded: bool = False) -> None:
        assert not superseded
        self.adopted.append((self.now, lost_at))
        del self.owners[session_id]

    async def _pause(self, _seconds: float) -> None: ...


@pytest.mark.parametrize("came_at", [None, 4, 500])
async def test_what_came_to_a_node_while_it_seemed_gone_waits_from_then_on(
    monkeypatch: pytest.MonkeyPatch, came_at: int | None
) -> None:
    """The node may have its lease back, and its word of that may be on its way."""
    orphan = Orphan(monkeypatch, came_at)
    await orphan.at(10)
    orphan.of.gone("gw1")
    lost_at = max(10, came_at or 0)
    await orphan.at(10, 109, 110, lost_at + 99, lost_at + 100)
    assert orphan.adopted == [(lost_at + 100, lost_at)]


@pytest.mark.parametrize(("lasted", "lost_at"), [(99, 10), (100, 150)])
async def test_a_node_that_never_keeps_its_lease_stays_gone(
    monkeypatch: pytest.MonkeyPatch, lasted: int, lost_at: int
) -> None:
    """Its sessions would never end, and nobody could adopt them."""
    orphan = Orphan(monkeypatch)
    await orphan.at(10)
    orphan.of.gone("gw1")
    await orphan.at(50)
    orphan.of.back("gw1")
    await orphan.at(150 - (100 - lasted))
    assert orphan.adopted == []
    orphan.of.gone("gw1")
    await orphan.at(150, 249, 250)
    assert orphan.adopted == [(150 if lost_at == 10 else 250, lost_at)]


SEEDS = (
    77, 78, 90, 127, 170, 354, 499, 612, 674, 756, 831, 910, 918, 1077, 1184, 1956, 2193, 2229, 2298, 3182, 3634, 4783,
    5236, 6230, 7792, 8322, 11445,
)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_once_failed(seed: int) -> None:
    assert play(seed, journal_judge).failure is None
