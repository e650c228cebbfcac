"""Leases that end by themselves, names held under them, and watches that replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from etcd_lab import Cluster, Proxy, compact

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Leases
from jumpvpn.values import Instant

SECOND = 1_000_000_000


@pytest_asyncio.fixture
async def store(etcd: Cluster) -> AsyncIterator[EtcdStore]:
    opened = await EtcdStore.open(etcd.config())
    yield opened
    await opened.close()


@pytest.fixture
def leases(store: EtcdStore) -> Leases:
    return EtcdLeases(store.client)


async def taken(changes: AsyncIterator[Change | Compacted], count: int) -> list[Change | Compacted]:
    async with asyncio.timeout(20):
        return [await anext(changes) for _ in range(count)]


async def test_the_clock_of_a_lease_starts_before_it_is_asked_for(
    store: EtcdStore, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Instant] = []
    for owner, name in ((store.client, "once"), (leases, "_renewed")):
        monkeypatch.setattr(owner, name, _noting_the_time(getattr(owner, name), sent))
    begun = clock.boot_time()
    lease = await leases.grant(5)
    renewed = await leases.keep_alive(lease)
    assert begun + 5 * SECOND <= lease.good_until <= sent[0] + 5 * SECOND
    assert lease.good_until < renewed.good_until <= sent[1] + 5 * SECOND
    assert len(sent) == 2
    assert renewed.id == lease.id
    assert renewed.remaining(Instant(renewed.good_until - 3)) == 3
    assert renewed.remaining(Instant(renewed.good_until + 1)) == 0


def _noting_the_time(ask: Callable[..., Awaitable[Any]], sent: list[Instant]) -> Callable[..., Awaitable[Any]]:
    async def noted(*arguments: Any) -> Any:
        sent.append(clock.boot_time())
        return await ask(*arguments)

    return noted


async def test_a_name_is_held_by_one_lease_until_it_ends_by_itself(leases: Leases) -> None:
    start = (await leases.listing("held/")).revision
    first, second = await leases.grant(3), await leases.grant(60)
    assert await leases.hold(first, "gw1", b"one")
    assert await leases.hold(first, "gw1", b"one"), "asked again after a lost answer"
    assert not await leases.hold(second, "gw1", b"two")
    watch = leases.watch("held/", start + 1)
    held, gone = await taken(watch, 2)
    assert isinstance(held, Change)
    assert isinstance(gone, Change)
    assert (held.name, held.value) == ("held/gw1", b"one")
    assert (gone.name, gone.value) == ("held/gw1", None)
    assert clock.boot_time() > first.good_until, "etcd ends a lease later than its holder believes"
    with pytest.raises(LeaseLost):
        await leases.keep_alive(first)
    with pytest.raises(LeaseLost, match="ended"):
        await leases.hold(first, "gw3", b"late")
    assert await leases.hold(second, "gw1", b"two")
    await leases.revoke(second)
    await leases.revoke(second)
    assert (await leases.listing("held/")).entries == {}
    with pytest.raises(LeaseLost, match="etcd has ended the lease"):
        await leases.keep_alive(second)


async def test_keeping_alive_outlasts_the_first_term(leases: Leases) -> None:
    short = await leases.grant(3)
    other = await leases.grant(3)
    kept = short
    await leases.hold(short, "kept", b"k")
    await leases.hold(other, "other", b"o")
    changes = leases.watch("held/", (await leases.listing("held/")).revision + 1)
    gone = asyncio.ensure_future(anext(changes))
    while not gone.done():
        kept = await leases.keep_alive(kept)
        await asyncio.wait([gone], timeout=0.2)
    change = await gone
    assert isinstance(change, Change)
    assert (change.name, change.value) == ("held/other", None)
    assert (await leases.listing("held/")).entries == {"held/kept": b"k"}
    assert kept.good_until > short.good_until
    await leases.revoke(kept)


async def test_a_lease_is_not_kept_alive_once_it_is_over_for_its_holder(leases: Leases) -> None:
    lease = await leases.grant(60)
    over = Lease(lease.id, clock.boot_time())
    with pytest.raises(LeaseLost, match="ran out"):
        await leases.keep_alive(over)
    await leases.revoke(lease)


async def test_keeping_alive_is_tried_no_longer_than_the_lease_lasts(etcd: Cluster) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        store = await EtcdStore.open(etcd.config(endpoints=[proxy.endpoint], timeout_ms=60_000, attempt_ms=60_000))
        leases = EtcdLeases(store.client)
        lease = await leases.grant(2)
        proxy.swallowing = True
        with pytest.raises((StoreUnavailable, LeaseLost)):
            await leases.keep_alive(lease)
        assert clock.boot_time() < lease.good_until + 2 * SECOND
        await store.close()


async def test_a_watch_replays_the_past_then_follows(leases: Leases) -> None:
    start = (await leases.listing("held/")).revision
    lease = await leases.grant(60)
    for n in range(3):
        await leases.hold(lease, f"gw{n}", b"%d" % n)
    watch = leases.watch("held/", start + 1)
    past = await taken(watch, 3)
    assert [(c.name, c.value) for c in past if isinstance(c, Change)] == [(f"held/gw{n}", b"%d" % n) for n in range(3)]
    await leases.hold(lease, "gw3", b"3")
    (last,) = await taken(watch, 1)
    assert isinstance(last, Change)
    assert last.name == "held/gw3"
    second = past[1]
    assert isinstance(second, Change)
    again = leases.watch("held/", second.revision)
    assert await taken(again, 3) == [*past[1:], last]
    await leases.revoke(lease)


async def test_a_compacted_past_is_told_with_the_revision_to_reload_at(store: EtcdStore, leases: Leases) -> None:
    start = (await leases.listing("held/")).revision
    lease = await leases.grant(60)
    for n in range(3):
        await leases.hold(lease, f"gw{n}", b"x")
    now = (await leases.listing("held/")).revision
    await compact(store.client, now)
    outcome = [change async for change in leases.watch("held/", start + 1)]
    assert outcome == [Compacted(now)]
    listing = await leases.listing("held/")
    assert sorted(listing.entries) == ["held/gw0", "held/gw1", "held/gw2"]
    assert listing.revision >= now
    watch = leases.watch("held/", listing.revision + 1)
    await leases.hold(lease, "gw9", b"y")
    assert [c.name for c in await taken(watch, 1) if isinstance(c, Change)] == ["held/gw9"]
    await leases.revoke(lease)


async def test_a_watch_goes_on_where_it_was_when_its_connection_breaks(etcd: Cluster) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config()
        direct = await EtcdStore.open(config)
        through = await EtcdStore.open(etcd.config(cluster=config.cluster, endpoints=[proxy.endpoint]))
        writer, watcher = EtcdLeases(direct.client), EtcdLeases(through.client)
        start = (await writer.listing("held/")).revision
        lease = await writer.grant(60)
        watch = watcher.watch("held/", start + 1)
        names = []
        for n in range(6):
            await writer.hold(lease, f"gw{n}", b"x")
            if n % 2:
                names += [c.name for c in await taken(watch, 2) if isinstance(c, Change)]
                await proxy.reset()
        assert names == [f"held/gw{n}" for n in range(6)]
        await asyncio.gather(direct.close(), through.close())


async def test_a_watch_that_no_member_takes_says_so(etcd: Cluster) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        store = await EtcdStore.open(etcd.config(endpoints=[proxy.endpoint], timeout_ms=1_500, attempt_ms=700))
        watch = EtcdLeases(store.client).watch("held/", 1 + (await EtcdLeases(store.client).listing("held/")).revision)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await proxy.__aexit__()
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnavailable, match="no member answered"):
                await waiting
        await store.close()
