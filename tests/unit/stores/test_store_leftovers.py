"""Lines that the shared store keeps for a node: who may read and remove them, and which of them a node lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cluster_nodes import nodes, with_a_lost_answer
from etcd_lab import Cluster, put
from store_writes import SESSION, owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, ForeignRecord, StoreUnavailable
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.etcd.records import Names
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.runtime.stores.memory_cluster import MemoryCluster
from jumpvpn.runtime.stores.shared import SharedStore, never, settle

SECOND = 1_000_000_000


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def three(request: pytest.FixtureRequest) -> AsyncIterator[list[SharedStore]]:
    """One shared store as gw1, gw10 and gw2 see it."""
    names = ("gw1", "gw10", "gw2")
    if request.param == "memory":
        cluster = MemoryCluster(clock.boot_time)
        yield [cluster.shared(name) for name in names]
        return
    etcd: Cluster = request.getfixturevalue("etcd")
    first = etcd.config("gw1")
    opened = [await EtcdStore.open(etcd.config(name, cluster=first.cluster)) for name in names]
    yield list(opened)
    for store in opened:
        await store.close()


async def begun(store: SharedStore, node: str, number: int, lines: tuple[bytes, ...]) -> None:
    """A session of ``node`` is born with ``lines``."""
    write = owned(1, node, session_id=number.to_bytes(16, "big"), lines=lines)
    result, _ = await settle(store, write, None, store.patience(5), never)
    assert result is CommitResult.COMMITTED


async def all_kept(store: SharedStore, node: str) -> list[bytes]:
    """Every line of ``node``; they are gone afterwards."""
    found = list[bytes]()
    while kept := await store.kept(node):
        found += [line for entry in kept for line in entry.lines]
        await store.erase([entry.name for entry in kept], node)
    return found


async def test_any_node_reads_and_removes_the_lines_of_another_portion_by_portion(three: list[SharedStore]) -> None:
    first, tenth, second = three
    told = [(b"%d a\n" % number, b"%d b\n" % number) for number in range(40)]
    for number, lines in enumerate(told):
        await begun(first, "gw1", number, lines)
    await begun(tenth, "gw10", 100, (b"of gw10\n",))
    assert await second.keepers() == ["gw1", "gw10"]
    assert 0 < len(await second.kept("gw1")) < len(told), "bounded"
    assert await second.kept() == await second.kept("gw2") == []
    assert await all_kept(second, "gw1") == [line for lines in told for line in lines]
    assert await first.kept() == []
    assert await second.keepers() == ["gw10"]
    assert [entry.lines for entry in await tenth.kept()] == [(b"of gw10\n",)]
    assert await second.kept("nobody") == []


async def test_removing_what_is_not_there_does_nothing(three: list[SharedStore]) -> None:
    first, _, second = three
    await begun(first, "gw1", 1, (b"a\n",))
    (entry,) = await second.kept("gw1")
    await second.erase([entry.name], "gw2")
    assert await second.kept("gw1") == [entry]
    await second.erase([entry.name], "gw1")
    await first.erase([entry.name])
    assert await second.keepers() == []


async def test_foreign_names_among_the_lines_stop_no_listing(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config("gw1"))
    names = Names(store.client.config.cluster, "gw1")
    await begun(store, "gw1", 1, (b"a\n",))
    for name in (b"abc", b"\xff\xfe/x", b"zz/"):
        await put(store.client, names.outboxes + name, b"hello")
    found = await store.keepers()
    assert found[:2] == ["abc", "gw1"]
    assert len(found) == 4
    with pytest.raises(ForeignRecord, match="event lines"):
        await store.kept("zz")
    await store.close()


async def test_a_newer_record_in_the_file_does_not_hide_lines_that_only_the_store_has(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.shared.commit(owned(2, lines=(b"only in etcd\n",)))  # in an answer that this node never got
        await node.store.forget(SESSION)
        found = await node.store.load(SESSION)
        assert found is not None
        node.store.take(found)
        assert await node.store.commit(owned(3, term=2, shared=True)) is CommitResult.COMMITTED
        await node.store.exported(node.store.last_line)
        await node.kill()
        await node.start()
        assert b"only in etcd\n" in [line for _, line in await node.store.outbox()]
        assert await node.lines_in_etcd() == []


async def test_a_commit_in_doubt_is_found_under_the_next_lease_in_memory() -> None:
    cluster = MemoryCluster(clock.boot_time)
    store = await ClusterStore.open(MemoryStore(), cluster.shared("gw1"), "gw1")
    await store.commit(owned(1))
    cluster.lose_answers = 9
    with pytest.raises(CommitUnknown):
        await store.commit(owned(2, shared=True, lines=(b"in doubt\n",)))
    with pytest.raises(StoreUnavailable):
        await store.unexported("gw1")
    cluster.lose_answers = 0
    kept = await store.unexported("gw1")
    assert [entry.lines for entry in kept] == [(b"in doubt\n",)], "the lines of version 1 are in the file"
    assert kept[0] in await cluster.shared("gw2").kept("gw1"), "as the store has them"
    await store.drop("gw1", kept)
    assert await store.unexported("gw1") == []
    assert [entry.version for entry in await cluster.shared("gw2").kept("gw1")] == [1]


async def test_a_commit_in_doubt_is_found_under_the_next_lease_in_etcd(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = owned(2, shared=True, lines=(b"in doubt\n",))
    async with with_a_lost_answer(etcd, tmp_path, write, monkeypatch) as (node, proxy):
        proxy.swallowing = False
        kept = await node.store.unexported("gw1")
        assert [entry.lines for entry in kept] == [(b"in doubt\n",)]
        await node.store.drop("gw1", kept)
        assert await node.lines_in_etcd() == [b"line 1\n"]
        assert await node.store.unexported("gw1") == []


async def test_a_commit_that_may_take_place_even_now_is_asked_for_again() -> None:
    cluster = MemoryCluster(clock.boot_time)
    store = await ClusterStore.open(MemoryStore(), cluster.shared("gw1"), "gw1")
    await store.commit(owned(1))
    late = owned(2, shared=True, write_id="late", lines=(b"in doubt\n",))
    store._doubt(late)
    assert await store.unexported("gw1") == []
    shared = cluster.shared("gw1")
    assert (await settle(shared, late, None, shared.patience(5), never))[0] is CommitResult.COMMITTED
    assert [entry.lines for entry in await store.unexported("gw1")] == [(b"in doubt\n",)]


async def test_a_commit_that_never_took_place_leaves_nothing() -> None:
    cluster = MemoryCluster(clock.boot_time)
    store = await ClusterStore.open(MemoryStore(), cluster.shared("gw1"), "gw1")
    await store.commit(owned(1))
    store._doubt(owned(2, shared=True, write_id="late"))
    await store.commit(owned(2, shared=True))
    assert await store.unexported("gw1") == []
    assert not store._doubts
