"""The store of a cluster in memory behaves as etcd does, under a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest
from store_writes import SESSION, owned

from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    CommitUnknown,
    StoredSession,
    StoreUnavailable,
)
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.leases import Change, Compacted, LeaseLost
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.runtime.stores.memory_cluster import MemoryCluster
from jumpvpn.values import Instant

SECOND = 1_000_000_000
Kind = TypeVar("Kind")


class World:
    def __init__(self) -> None:
        self.now = Instant(0)
        self.cluster = MemoryCluster(lambda: self.now)
        self.lost: list[tuple[bytes, StoredSession | None]] = []

    def pass_seconds(self, seconds: float) -> None:
        self.now = Instant(self.now + int(seconds * SECOND))
        self.cluster.tick()

    async def store(self, node: str) -> ClusterStore:
        return await ClusterStore.open(
            MemoryStore(), self.cluster.shared(node), node, conflicts=lambda i, found: self.lost.append((i, found))
        )


@pytest.fixture
def world() -> World:
    return World()


async def taken(changes: AsyncIterator[Kind], count: int) -> list[Kind]:
    async with asyncio.timeout(20):
        return [await anext(changes) for _ in range(count)]


async def test_a_lease_ends_by_the_clock_that_was_passed_in(world: World) -> None:
    leases = world.cluster.leases("gw1")
    lease = await leases.grant(5)
    assert await leases.hold(lease, "gw1", b"0")
    assert await leases.hold(lease, "gw1", b"0")
    assert not await leases.hold(await leases.grant(5), "gw1", b"other")
    changes = leases.follow((await leases.listing("held/")).revision)
    world.pass_seconds(4)
    lease = await leases.beat(lease, "gw1", b"1")
    world.pass_seconds(4.9)
    assert (await leases.listing("held/")).entries == {"held/gw1": b"1"}
    world.pass_seconds(0.1)
    assert [c.value for c in await taken(changes, 2)] == [b"1", None]
    with pytest.raises(LeaseLost):
        await leases.keep_alive(lease)
    with pytest.raises(LeaseLost):
        await leases.hold(lease, "gw1", b"2")
    await leases.revoke(lease)


async def test_a_watch_replays_and_a_compacted_one_says_so(world: World) -> None:
    leases = world.cluster.leases("gw1")
    lease = await leases.grant(5)
    start = world.cluster.revision
    for n in range(3):
        await leases.hold(lease, f"gw{n}", b"%d" % n)
    watch = leases.watch("held/", start + 1)
    assert [c.name for c in await taken(watch, 3) if isinstance(c, Change)] == ["held/gw0", "held/gw1", "held/gw2"]
    world.cluster.compact(world.cluster.revision)
    assert [c async for c in leases.watch("held/", start + 1)] == [Compacted(world.cluster.revision)]
    assert [c.name for c in await taken(leases.watch("held/", world.cluster.revision), 1) if isinstance(c, Change)] == [
        "held/gw2"
    ]


async def test_following_finds_out_what_was_forgotten_while_cut_off(world: World) -> None:
    near, far = world.cluster.leases("gw1"), world.cluster.leases("gw2")
    lease, other = await near.grant(60), await near.grant(60)
    await near.hold(lease, "gw1", b"0")
    await near.hold(other, "gw3", b"0")
    changes = far.follow(world.cluster.revision)
    lease = await near.beat(lease, "gw1", b"1")
    await taken(changes, 1)
    world.cluster.cut.add("gw2")
    store = await world.store("gw1")
    await near.revoke(other)
    await store.commit(owned(1))
    await near.beat(lease, "gw1", b"2")
    world.cluster.compact(world.cluster.revision)
    world.cluster.heal("gw2")
    seen = await taken(changes, 3)
    assert [c.name for c in seen] == ["held/gw3", f"live/{SESSION.hex()}", "held/gw1"]
    assert [c.value for c in seen if c.name.startswith("held/")] == [None, b"2"]


async def test_a_beat_without_the_name_is_none(world: World) -> None:
    leases = world.cluster.leases("gw1")
    lease = await leases.grant(5)
    with pytest.raises(LeaseLost, match="not held"):
        await leases.beat(lease, "gw1", b"1")


async def test_takeover_beats_what_was_written_behind(world: World) -> None:
    first, second = await world.store("gw1"), await world.store("gw2")
    await first.commit(owned(1))
    await first.commit(owned(2))
    stored = await second.load(SESSION)
    assert stored is not None
    second.take(stored)
    assert await second.commit(owned(7, "gw2", 2, expected_version=1)) is CommitResult.COMMITTED
    running = asyncio.create_task(first.run())
    await first.flushed()
    running.cancel()
    assert [(i, found and found.owner) for i, found in world.lost] == [(SESSION, "gw2")]
    assert await first.forget(SESSION) == 1


async def test_lost_answers_are_read_back_and_a_cut_store_is_unavailable(world: World) -> None:
    store = await world.store("gw1")
    await store.commit(owned(1))
    world.cluster.lose_answers = 2
    assert await store.commit(owned(2, shared=True)) is CommitResult.COMMITTED
    world.cluster.lose_answers = 9
    with pytest.raises(CommitUnknown):
        await store.commit(owned(3, shared=True))
    world.cluster.lose_answers = 0
    assert await store.commit(owned(3, shared=True)) is CommitResult.COMMITTED
    world.cluster.cut.add("gw1")
    with pytest.raises(StoreUnavailable) as raised:
        await store.commit(owned(4, shared=True))
    assert not isinstance(raised.value, CommitUnknown)
    assert await store.commit(owned(4)) is CommitResult.COMMITTED


async def test_what_is_another_nodes_or_has_ended_while_it_is_listed_is_not_listed(world: World) -> None:
    first, second = await world.store("gw1"), await world.store("gw2")
    names = [bytes([n]) * 16 for n in range(4)]
    for name in names:
        assert await first.commit(owned(1, session_id=name)) is CommitResult.COMMITTED
    listed = world.cluster.shared("gw1").owned("gw1", lambda _reason: None)
    seen = await taken(listed, 1)
    stored = await second.load(names[1])
    assert stored is not None
    second.take(stored)
    moved = owned(2, "gw2", 2, session_id=names[1], expected_version=1)
    assert await second.commit(moved) is CommitResult.COMMITTED
    assert await first.commit(owned(2, session_id=names[2], state=TERMINATED)) is CommitResult.COMMITTED
    seen += [found async for found in listed]
    assert [found.session and found.session.session_id for found in seen] == [names[0], names[3]]
