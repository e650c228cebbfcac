"""The store of a gateway in a cluster: lost answers, kills, damage, an etcd that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cluster_nodes import flushed, nodes, with_a_lost_answer
from etcd_lab import Cluster, Proxy, before_each_change, put
from store_writes import SESSION, owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, StoredSession, StoreUnavailable
from jumpvpn.runtime.stores.etcd.records import Names
from jumpvpn.values import Instant

COMMITTED, CONFLICT = CommitResult.COMMITTED, CommitResult.CONFLICT
SECOND = 1_000_000_000


async def test_a_damaged_record_stops_neither_the_batch_nor_the_start(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        names = Names(node.config.cluster, "gw1")
        for identifier in (b"a" * 16, SESSION):
            await node.store.commit(owned(1, session_id=identifier))
            await node.store.commit(owned(2, session_id=identifier))
        await put(node.shared.client, names.live_session(SESSION), b"hello")
        node.run()
        await flushed(node)
        assert node.lost == [(SESSION, None)]
        assert "does not hold a session record" in node.told[0]
        assert (await node.shared.find(b"a" * 16)).session == await node.local.load(b"a" * 16)
        await node.kill()
        await node.start()
        assert [s.session_id for s in await node.store.load_owned("gw1")] == [b"a" * 16]
        assert len(node.told) == 2
        assert await node.local.load(SESSION) is not None, "it may be the only good copy"


async def test_the_layout_of_a_later_program_is_told_from_damage(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        key = Names(node.config.cluster, "gw1").live_session(SESSION)
        await node.store.commit(owned(1, session_id=b"a" * 16))
        await put(node.shared.client, key, b"JVS\x02" + bytes(40))
        await node.kill()
        await node.start()
        assert [s.session_id for s in await node.store.load_owned("gw1")] == [b"a" * 16]
        with pytest.raises(StoreUnavailable, match="layout 2, this program knows 1; upgrade this gateway") as raised:
            await node.store.load(SESSION)
        assert node.told == [raised.value.reason]
        assert "etcdctl del" not in raised.value.reason, "it is somebody's session"


async def test_what_is_missing_in_etcd_is_told(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))
        await node.shared.client.ask(*Cluster.deletion(Names(node.config.cluster, "gw1").live_session(SESSION)))
        node.run()
        await flushed(node)
        assert node.lost == [(SESSION, None)]


async def test_while_etcd_is_away_changes_wait_and_reach_it_afterwards(etcd: Cluster, tmp_path: Path) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        quick = {"endpoints": [proxy.endpoint], "timeout_ms": 600, "attempt_ms": 300}
        async with nodes(etcd, tmp_path, "gw1", **quick) as (node,):
            await node.store.commit(owned(1))
            node.run()
            proxy.deaf = True
            for version in range(2, 5):
                assert await node.store.commit(owned(version)) is COMMITTED
            with pytest.raises(StoreUnavailable, match="no member answered") as raised:
                await node.store.commit(owned(1, session_id=b"n" * 16))
            assert not isinstance(raised.value, CommitUnknown), "it was never sent"
            assert node.store.behind[0] == 1
            await proxy.reset()
            await flushed(node)
            assert (await node.in_etcd()).version == 4
            assert await node.lines_in_etcd() == [b"line %d\n" % n for n in range(1, 5)]
            assert node.running is not None
            assert not node.running.done()


async def test_a_flush_whose_answer_was_lost_is_not_taken_for_anothers(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        quick = {"endpoints": [proxy.endpoint], "timeout_ms": 600, "attempt_ms": 300}
        async with nodes(etcd, tmp_path, "gw1", **quick) as (node,):
            for version in (1, 2):
                await node.store.commit(owned(version))
            lost = asyncio.Event()

            def swallow() -> None:
                proxy.swallowing = True
                lost.set()

            with monkeypatch.context() as patch:
                before_each_change(node.shared.client, swallow, patch)
                node.run()
                await lost.wait()
                assert await node.store.commit(owned(3)) is COMMITTED
            await proxy.reset()
            assert await node.store.commit(owned(4, shared=True)) is COMMITTED
            await node.store.commit(owned(5))
            await flushed(node)
            assert (await node.in_etcd()).version == 5
            assert node.lost == []


async def test_an_unknown_outcome_is_asked_for_while_the_lease_holds(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        quick = {"endpoints": [proxy.endpoint], "timeout_ms": 500, "attempt_ms": 250}
        async with nodes(etcd, tmp_path, "gw1", **quick) as (node,):
            node.store._give_up_at = lambda: Instant(clock.boot_time() + 20 * SECOND)
            doubts: list[bool] = []
            original = node.shared.look

            async def look(*arguments: Any) -> Any:
                if proxy.swallowing:
                    doubts.append(True)
                    if len(doubts) == 4:
                        await proxy.reset()
                return await original(*arguments)

            monkeypatch.setattr(node.shared, "look", look)
            with monkeypatch.context() as patch:
                before_each_change(node.shared.client, lambda: setattr(proxy, "swallowing", True), patch)
                assert await node.store.commit(owned(1)) is COMMITTED
            assert len(doubts) >= 4, "one call's time was over before, with the outcome unknown"
            assert await node.lines_in_etcd() == [b"line 1\n"], "once"


async def test_an_outcome_that_stays_unknown_is_said_to_be_and_is_read_later(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        quick = {"endpoints": [proxy.endpoint], "timeout_ms": 500, "attempt_ms": 250}
        async with nodes(etcd, tmp_path, "gw1", **quick) as (node,):
            await node.store.commit(owned(1, "gone"))
            stored = await node.store.load(SESSION)
            assert stored is not None
            until = clock.boot_time() + SECOND
            node.store._give_up_at = lambda: Instant(until)
            node.store.take(stored)
            with monkeypatch.context() as patch:
                before_each_change(node.shared.client, lambda: setattr(proxy, "swallowing", True), patch)
                with pytest.raises(CommitUnknown, match="whether the last commit took place is not known"):
                    await node.store.commit(owned(2, term=2))
            assert clock.boot_time() >= until
            await proxy.reset()
            again = await node.store.load(SESSION)
            assert again is not None
            assert (again.owner, again.version) == ("gw1", 2)


async def test_without_a_lease_nothing_shared_is_changed(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        node.store._give_up_at = clock.boot_time
        before = node.shared.client.traffic.transactions
        with pytest.raises(StoreUnavailable, match="lease is over"):
            await node.store.commit(owned(2, shared=True))
        assert node.shared.client.traffic.transactions == before
        assert await node.store.commit(owned(2)) is COMMITTED, "what the node did is recorded at the node"


async def test_a_local_file_that_fails_after_the_shared_commit_changes_nothing_about_it(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))

        async def full(*_: object, **__: object) -> None:
            raise StoreUnavailable("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(node.local, "adopt", full)
            assert await node.store.commit(owned(3, shared=True)) is COMMITTED
        assert "the disk is full" in node.told[0]
        assert await node.store.commit(owned(4)) is COMMITTED
        row = await node.local.load(SESSION)
        assert row is not None
        assert row.version == 4


async def test_lines_that_a_crash_kept_out_of_the_file_are_fetched_at_the_next_start(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.exported(node.store.last_line)
        await node.shared.commit(owned(2, lines=(b"only in etcd\n",)))
        await node.kill()
        await node.start()
        told = [line for _, line in await node.store.outbox()]
        assert told == [b"line 1\n", b"only in etcd\n"], "what the store had not forgotten yet comes again"
        assert await node.lines_in_etcd() == []
        (found,) = await node.store.load_owned("gw1")
        assert found.version == 2


async def test_a_record_that_etcd_can_never_take_is_refused_at_once(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        for shared in (False, True):
            with pytest.raises(StoreUnavailable, match="bytes"):
                await node.store.commit(owned(2, shared=shared, body=b"x" * (64 << 10)))
        assert await node.store.commit(owned(2)) is COMMITTED


async def test_a_node_that_has_its_lease_anew_goes_on_with_what_it_holds(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        other = b"o" * 16
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))
        await node.shared.commit(owned(1, session_id=other))  # by an earlier process of this node
        listed = {found.session_id: found.version for found in await node.store.load_owned("gw1")}
        assert listed == {SESSION: 2, other: 1}
        assert await node.store.commit(owned(3)) is COMMITTED
        assert await node.store.commit(owned(2, session_id=other)) is COMMITTED
        node.run()
        await flushed(node)
        assert [found.version for found in await node.shared.load_all()] == [2, 3]
        assert sorted(line for _, line in await node.store.outbox()) == [b"line 2\n", b"line 2\n", b"line 3\n"]


async def test_an_own_session_that_was_taken_up_and_let_go_again_is_still_in_the_file(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (node, other):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))
        await node.kill()
        await node.start()
        for each in (node, other):
            found = await each.store.load(SESSION)
            assert found is not None
            assert found.version == 1
            each.store.take(found)
            await each.store.forget(SESSION)
        (kept,) = await node.store.load_owned("gw1")
        assert kept.version == 2, "what the store did not have yet"


async def test_what_was_unknown_when_the_lease_ended_is_known_after_the_next_listing(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_a_lost_answer(etcd, tmp_path, owned(2, shared=True), monkeypatch) as (node, proxy):
        await proxy.reset()
        node.store._give_up_at = None
        assert [found.version for found in await node.store.load_owned("gw1")] == [2]
        assert await node.store.commit(owned(3)) is COMMITTED
        node.run()
        await flushed(node)
        assert (await node.in_etcd()).version == 3


async def test_commits_during_a_listing_are_not_undone(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        born = b"n" * 16
        await node.store.commit(owned(1))
        original = node.local.load_all

        async def load_all() -> list[StoredSession]:
            assert await node.store.commit(owned(1, session_id=born)) is COMMITTED
            rows = await original()
            assert await node.store.commit(owned(2)) is COMMITTED
            return rows

        monkeypatch.setattr(node.local, "load_all", load_all)
        await node.store.load_owned("gw1")
        for identifier, version in ((SESSION, 3), (born, 2)):
            assert await node.store.commit(owned(version, session_id=identifier)) is COMMITTED
            row = await node.local.load(identifier)
            assert row is not None
            assert row.version == version


async def test_a_store_that_refuses_at_once_is_not_asked_in_a_busy_loop(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        asked: list[bool] = []

        async def exchange(*_: object) -> None:
            asked.append(True)
            raise CommitUnknown("went back")

        until = clock.boot_time() + SECOND // 2
        node.store._give_up_at = lambda: Instant(until)
        monkeypatch.setattr(node.shared, "exchange", exchange)
        with pytest.raises(CommitUnknown):
            await node.store.commit(owned(1))
        assert 2 <= len(asked) <= 10
