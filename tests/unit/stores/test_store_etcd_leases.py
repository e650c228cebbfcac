"""Leases that end by themselves, names held under them, and watches that replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from etcd_lab import Cluster, Proxy, before_each_change, compact
from store_writes import SESSION, owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.records import Names, after_prefix, decode_session
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.leases import Change, Compacted, Lease, LeaseLost, Leases
from jumpvpn.values import Instant

SECOND = 1_000_000_000
Kind = TypeVar("Kind")


@pytest.fixture
def leases(store: EtcdStore) -> Leases:
    return EtcdLeases(store.client)


async def taken(changes: AsyncIterator[Kind], count: int) -> list[Kind]:
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


async def test_a_beat_keeps_the_lease_and_comes_back_after_everything_before_it(
    store: EtcdStore, leases: Leases
) -> None:
    lease = await leases.grant(60)
    assert await leases.hold(lease, "gw1", b"0")
    changes = leases.follow((await leases.listing("held/")).revision)
    await store.commit(owned(1))
    renewed = await leases.beat(lease, "gw1", b"1")
    await store.commit(owned(2, state="TERMINATED"))
    again = await leases.beat(renewed, "gw1", b"2")
    assert lease.good_until < renewed.good_until < again.good_until
    seen = await taken(changes, 4)
    live = f"live/{SESSION.hex()}"
    assert [c.name for c in seen] == [live, "held/gw1", live, "held/gw1"]
    assert [c.value for c in seen if c.name == "held/gw1"] == [b"1", b"2"]
    assert seen[2].value is None
    assert [c.revision for c in seen] == sorted({c.revision for c in seen})
    assert decode_session(live.encode(), seen[0].value or b"") == owned(1).stored_over(None)
    await leases.revoke(again)


async def test_a_beat_is_no_beat_once_the_name_is_gone_or_the_lease_ended(store: EtcdStore, leases: Leases) -> None:
    first, second = await leases.grant(60), await leases.grant(60)
    with pytest.raises(LeaseLost, match="not held under this lease"):
        await leases.beat(first, "gw1", b"never held")
    await leases.hold(first, "gw1", b"0")
    names = Names(store.client.config.cluster, "gw1")
    await store.client.ask(*Cluster.deletion(names.held + b"gw1"))
    with pytest.raises(LeaseLost, match="somebody removed or replaced it"):
        await leases.beat(first, "gw1", b"1")
    assert await leases.hold(second, "gw1", b"other")
    with pytest.raises(LeaseLost, match="somebody removed or replaced it"):
        await leases.beat(first, "gw1", b"1")
    assert (await leases.listing("held/")).entries == {"held/gw1": b"other"}
    await leases.revoke_by_id(second.id)
    await leases.revoke_by_id(second.id)
    with pytest.raises(LeaseLost, match="ended"):
        await leases.beat(second, "gw1", b"1")
    await leases.revoke(first)


async def test_a_beat_whose_answer_was_lost_is_beaten_again(etcd: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config(endpoints=[proxy.endpoint, etcd.members[0].endpoint], attempt_ms=300)
        store = await EtcdStore.open(config)
        leases = EtcdLeases(store.client)
        lease = await leases.grant(60)
        await leases.hold(lease, "gw1", b"0")
        before_each_change(store.client, lambda: setattr(proxy, "swallowing", True), monkeypatch)
        await leases.beat(lease, "gw1", b"1")
        await leases.beat(lease, "gw1", b"2")
        assert (await leases.listing("held/")).entries == {"held/gw1": b"2"}
        await store.close()


async def test_nothing_but_members_and_records_is_followed(etcd: Cluster) -> None:
    names = Names("c", "gw1")
    inside = {names.held + b"gw1", names.live_session(SESSION)}
    outside = {
        names.dead_session(SESSION), names.device(b"d"), names.format, names.outbox + b"x", names.address("10.0.0.1"),
        names.secret("tickets"),
    }  # fmt: skip
    end = after_prefix(names.live)
    assert {key for key in inside | outside if names.held <= key < end} == inside


async def test_following_goes_on_after_changes_were_forgotten_and_misses_none(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config()
        direct = await EtcdStore.open(config)
        writer = EtcdLeases(direct.client)
        through = await EtcdStore.open(etcd.config(cluster=config.cluster, endpoints=[proxy.endpoint], attempt_ms=300))
        lease, other = await writer.grant(60), await writer.grant(60)
        await writer.hold(lease, "gw1", b"0")
        await writer.hold(other, "gw2", b"0")
        for identifier in (b"a" * 16, b"b" * 16, b"c" * 16):
            await direct.commit(owned(1, session_id=identifier))
        changes = EtcdLeases(through.client).follow((await writer.listing("held/")).revision)
        await writer.beat(lease, "gw1", b"1")
        assert [c.name for c in await taken(changes, 1)] == ["held/gw1"]
        proxy.deaf = proxy.swallowing = True
        await direct.commit(owned(2, session_id=b"b" * 16, state="TERMINATED"))
        await writer.revoke(other)
        await writer.beat(lease, "gw1", b"2")
        await direct.commit(owned(2, session_id=b"c" * 16))
        await writer.beat(lease, "gw1", b"3")
        await compact(direct.client, direct.client.revision)
        await proxy.reset()
        seen = await taken(changes, 4)
        assert [(c.name, c.value is None) for c in seen] == [
            ("held/gw2", True), (f"live/{(b'b' * 16).hex()}", True), (f"live/{(b'c' * 16).hex()}", False),
            ("held/gw1", False),
        ]  # fmt: skip
        assert seen[3].value == b"3", "the newest beat comes after every change before it"
        await writer.beat(lease, "gw1", b"4")
        assert [c.value for c in await taken(changes, 1)] == [b"4"]
        await asyncio.gather(direct.close(), through.close())


async def test_following_a_revision_that_is_forgotten_already_says_so(store: EtcdStore, leases: Leases) -> None:
    since = (await leases.listing("held/")).revision
    for version in (1, 2):
        await store.commit(owned(version))
    await compact(store.client, store.client.revision)
    with pytest.raises(StoreUnavailable, match="compacted"):
        await anext(leases.follow(since))


async def test_following_asks_another_member_when_one_is_silent(etcd: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpvpn.runtime.stores.etcd.leases.SILENCE_SECONDS", 0.3)
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config()
        direct = await EtcdStore.open(config)
        endpoints = [proxy.endpoint, etcd.members[0].endpoint]
        through = await EtcdStore.open(etcd.config(cluster=config.cluster, endpoints=endpoints))
        writer = EtcdLeases(direct.client)
        changes = EtcdLeases(through.client).follow((await writer.listing("held/")).revision)
        lease = await writer.grant(60)
        await writer.hold(lease, "gw1", b"0")
        assert [c.value for c in await taken(changes, 1)] == [b"0"]
        proxy.swallowing = True
        await writer.beat(lease, "gw1", b"1")
        assert [c.value for c in await taken(changes, 1)] == [b"1"]
        await asyncio.gather(direct.close(), through.close())
