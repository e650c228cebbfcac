"""What only the store in etcd promises about commits: many writers, lost answers, dead members, foreign bytes."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from random import Random
from typing import Any

import grpc
import msgspec
import pytest
from etcd_lab import Cluster, Proxy, before_each_change, compact, put
from store_writes import SESSION, a_write

from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, ForeignRecord, StoreUnavailable
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import TXN, Method, OutOfSpace
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.records import Names
from jumpvpn.runtime.stores.etcd.remembered import Remembered
from jumpvpn.runtime.stores.etcd.store import LONGEST_COMMIT, LONGEST_RECORD, EtcdStore

SECRET = b"never to be shown"
QUICK = {"timeout_ms": 2_000, "attempt_ms": 700}


async def lines_of(store: EtcdStore) -> list[bytes]:
    return [line for _, line in await store.outbox(limit=1 << 20)]


async def test_of_twenty_gateways_exactly_one_takes_a_session(etcd: Cluster) -> None:
    config = etcd.config()
    names = [f"gw{n}" for n in range(20)]
    stores = await asyncio.gather(*(EtcdStore.open(etcd.config(node, cluster=config.cluster)) for node in names))
    await stores[0].commit(a_write(1))
    takers = (store.commit(a_write(2, write_id=f"t{n}")) for n, store in enumerate(stores))
    results = await asyncio.gather(*takers)
    assert sorted(result.value for result in results) == ["committed"] + 19 * ["conflict"]
    winner = results.index(CommitResult.COMMITTED)
    found = await stores[-1].load(SESSION)
    assert found is not None
    assert (found.version, found.write_id) == (2, f"t{winner}")
    assert [await lines_of(store) for store in stores].count([b"line 2\n"]) == (winner != 0)
    assert await stores[0].commit(a_write(2, write_id="stale")) is CommitResult.CONFLICT
    await asyncio.gather(*(store.close() for store in stores))


async def test_one_device_is_born_once_among_simultaneous_handshakes(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    births = [a_write(session_id=bytes([n]) * 16, device=(b"d" * 32, 7)) for n in range(10)]
    results = await asyncio.gather(*(store.commit(birth) for birth in births))
    assert sorted(result.value for result in results) == ["committed"] + 9 * ["replayed_device"]
    assert len(await store.load_all()) == 1
    await store.close()


async def test_a_lost_answer_is_resolved_by_the_write_identifier(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config(endpoints=[proxy.endpoint, etcd.members[0].endpoint], attempt_ms=300)
        store = await EtcdStore.open(config)
        sent: list[bool] = []

        def swallow() -> None:
            proxy.swallowing = True
            sent.append(True)

        before_each_change(store.client, swallow, monkeypatch)
        assert await store.commit(a_write()) is CommitResult.COMMITTED
        assert sent == [True], "the transaction was carried out: reading it back was enough"
        assert await lines_of(store) == [b"line 1\n"]
        await store.close()


async def test_a_lost_request_is_sent_again(etcd: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config(endpoints=[proxy.endpoint, etcd.members[0].endpoint], attempt_ms=300)
        store = await EtcdStore.open(config)
        before_each_change(store.client, lambda: setattr(proxy, "deaf", True), monkeypatch)
        assert await store.commit(a_write()) is CommitResult.COMMITTED
        assert await lines_of(store) == [b"line 1\n"]
        await store.close()


async def test_a_commit_in_doubt_says_so_and_tells_when_asked_again(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        config = etcd.config(endpoints=[proxy.endpoint], **QUICK)
        store = await EtcdStore.open(config)
        other = await EtcdStore.open(etcd.config("gw2", cluster=config.cluster))
        with monkeypatch.context() as patch:
            before_each_change(store.client, lambda: setattr(proxy, "swallowing", True), patch)
            with pytest.raises(CommitUnknown, match="not known"):
                await store.commit(a_write(1))
        await proxy.reset()
        assert await other.commit(a_write(2)) is CommitResult.COMMITTED, "the lost one had taken place"
        assert await store.commit(a_write(1)) is CommitResult.COMMITTED, "proved by its lines, though overwritten"
        assert await store.commit(a_write(1, write_id="x")) is CommitResult.CONFLICT
        assert await lines_of(store) == [b"line 1\n"]
        await asyncio.gather(store.close(), other.close())


async def test_a_silent_store_is_unavailable_within_the_bound_and_nothing_happened(etcd: Cluster) -> None:
    async with Proxy(etcd.members[0].client) as proxy:
        store = await EtcdStore.open(etcd.config(endpoints=[proxy.endpoint], **QUICK))
        proxy.swallowing = proxy.deaf = True
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnavailable, match="no member answered in time") as raised:
                await store.commit(a_write())
        assert not isinstance(raised.value, CommitUnknown)
        await proxy.reset()
        assert await store.load(SESSION) is None
        await store.close()


async def test_outbox_is_each_nodes_own_and_survives_the_process(etcd: Cluster) -> None:
    config = etcd.config("gw1")
    first, second = await EtcdStore.open(config), await EtcdStore.open(etcd.config("gw2", cluster=config.cluster))
    await first.commit(a_write(1, lines=(b"a", b"b", b"c")))
    await second.commit(a_write(2))
    numbered = await first.outbox(limit=2)
    await first.exported(numbered[1][0])
    assert [line for _, line in await first.outbox()] == [b"c"]
    await first.close()
    again = await EtcdStore.open(config)
    assert [line for _, line in await again.outbox()] == [b"a", b"b", b"c"], "a commit's lines are forgotten together"
    await again.exported((await again.outbox())[-1][0])
    assert await lines_of(again) == []
    assert await lines_of(second) == [b"line 2\n"]
    await asyncio.gather(again.close(), second.close())


async def test_many_sessions_and_lines_are_paged(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    identifiers = [n.to_bytes(16, "big") for n in range(300)]
    await asyncio.gather(*(store.commit(a_write(session_id=i, lines=(i,))) for i in identifiers))
    assert [found.session_id for found in await store.load_all()] == identifiers
    numbered = await store.outbox(limit=1000)
    assert sorted(line for _, line in numbered) == identifiers
    assert [number for number, _ in numbered] == sorted({number for number, _ in numbered})
    await store.exported(numbered[249][0])
    assert await store.outbox(limit=1000) == numbered[250:]
    await store.close()


async def test_what_etcd_cannot_take_is_refused_before_anything_changes(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    assert await store.commit(a_write(1, lines=(b"x" * 1000,) * 1000)) is CommitResult.COMMITTED
    with pytest.raises(StoreUnavailable, match="nothing was committed"):
        await store.commit(a_write(2, lines=(b"x" * 1024, b"y" * LONGEST_COMMIT)))
    with pytest.raises(StoreUnavailable, match="nothing was committed"):
        await store.commit(a_write(2, body=b"x" * LONGEST_RECORD))
    assert await store.commit(a_write(2)) is CommitResult.COMMITTED
    assert len(await lines_of(store)) == 1001
    await store.close()


async def test_foreign_and_damaged_bytes_are_named_and_let_nothing_in(etcd: Cluster) -> None:
    config = etcd.config()
    store = await EtcdStore.open(config)
    names = Names(config.cluster, config.node)
    key, client = names.live_session(SESSION), store.client
    await store.commit(a_write())
    good = await client.ask(TXN, pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=key))]))
    value = good.responses[0].response_range.kvs[0].value
    flipped = bytes([*value[:40], value[40] ^ 1, *value[41:]])
    for bad in (b"", b"hello", value[:-1], value + b"\0", flipped):
        await put(client, key, bad)
        for question in (store.load_all(), store.load(SESSION), store.commit(a_write(2))):
            with pytest.raises(ForeignRecord, match=r"live/7373.* does not hold a session record.*etcdctl del"):
                await question
    await put(client, key, value)
    await put(client, names.live_session(b"o" * 16), value)
    with pytest.raises(ForeignRecord, match="does not hold the record of that session"):
        await store.load_all()
    await put(client, names.device(b"d"), b"soon")
    with pytest.raises(ForeignRecord, match="timestamp"):
        await store.device_timestamp(b"d")
    await put(client, names.outbox + b"\n\x1b[2Jnote", b"buy milk")
    with pytest.raises(ForeignRecord, match="event lines") as raised:
        await store.outbox()
    assert raised.value.reason.isprintable()
    await store.close()


async def test_records_without_an_owner_are_read(etcd: Cluster) -> None:
    config = etcd.config()
    store = await EtcdStore.open(config)
    record = a_write().stored_over(None)
    fields = (record.session_id, record.version, record.state, record.epoch, record.body, record.sealed, record.chain)
    packed = msgspec.msgpack.encode([*fields, record.seq, record.head, record.write_id])
    value = b"JVS\x01" + hashlib.sha256(packed).digest()[:8] + packed
    await put(store.client, Names(config.cluster, config.node).live_session(SESSION), value)
    assert await store.load(SESSION) == record
    assert (record.owner, record.term) == ("", 0)
    assert await store.commit(a_write(2, owner="gw1", term=1)) is CommitResult.COMMITTED
    await store.close()


async def test_another_layout_is_refused(etcd: Cluster) -> None:
    config = etcd.config()
    store = await EtcdStore.open(config)
    await put(store.client, Names(config.cluster, "gw1").format, b"2")
    await store.close()
    with pytest.raises(StoreUnavailable, match="has format '2', this program knows '1'; upgrade"):
        await EtcdStore.open(config)


async def test_a_store_that_went_back_decides_nothing_from_then_on(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    store.client._seen = Remembered(store.client._seen.cluster, store.client.revision + 1_000_000)
    with pytest.raises(StoreUnavailable, match="went back from revision"):
        await store.commit(a_write())
    store.client._seen = msgspec.structs.replace(store.client._seen, revision=0)
    for question in (store.load(SESSION), store.load_all(), store.commit(a_write())):
        with pytest.raises(StoreUnavailable, match="went back from revision"):
            await question
    await store.close()


async def test_another_cluster_behind_the_same_names_is_refused(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    store.client._seen = msgspec.structs.replace(store.client._seen, cluster=1)
    with pytest.raises(StoreUnavailable, match=r"is another cluster \(id \w+\) than the one used before"):
        await store.load_all()
    await store.close()


async def test_a_listing_begins_again_when_its_revision_is_compacted(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumpvpn.runtime.stores.etcd.store._PAGE", 2)
    store = await EtcdStore.open(etcd.config())
    for n in range(5):
        await store.commit(a_write(session_id=bytes([n]) * 16))
    original, compactions = store.client.ask, [1]

    async def ask(method: Any, request: Any, deadline: float | None = None) -> Any:
        if getattr(request, "revision", 0) and compactions:
            compactions.pop()
            await store.commit(a_write(2, session_id=bytes(16)))
            await compact(store.client, store.client.revision)
        return await original(method, request, deadline)

    monkeypatch.setattr(store.client, "ask", ask)
    assert [found.version for found in await store.load_all()] == [2, 1, 1, 1, 1]
    assert compactions == []
    await store.close()


async def test_a_cancelled_commit_can_be_asked_for_again(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    task = asyncio.create_task(store.commit(a_write()))
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    assert await store.commit(a_write()) is CommitResult.COMMITTED
    assert await lines_of(store) == [b"line 1\n"]
    await store.close()


async def test_use_after_and_during_close_is_one_clear_error(etcd: Cluster) -> None:
    store = await EtcdStore.open(etcd.config())
    pending = asyncio.create_task(store.load_all())
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    for question in (pending, store.load_all(), store.commit(a_write())):
        with pytest.raises(StoreUnavailable, match="closed"):
            await question


@pytest.mark.timeout(90)
async def test_commits_go_on_when_the_leader_is_killed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, size=3, options=("--heartbeat-interval=50", "--election-timeout=500"))
    try:
        cluster.start()
        store = await EtcdStore.open(cluster.config(timeout_ms=30_000))
        for version in (1, 2):
            assert await store.commit(a_write(version)) is CommitResult.COMMITTED
        next(member for member in cluster.members if member.leads).kill()
        for version in (3, 4):
            assert await store.commit(a_write(version)) is CommitResult.COMMITTED
        next(member for member in cluster.members if member.leads).kill()
        store.client.config = cluster.config(cluster="later", **QUICK)
        with pytest.raises(StoreUnavailable, match="majority of the members"):
            await store.commit(a_write(5))
        await store.close()
    finally:
        cluster.stop()


@pytest.mark.timeout(90)
async def test_a_full_store_is_unavailable_and_still_reads_and_forgets(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, options=("--quota-backend-bytes=1048576",))
    try:
        cluster.start()
        store = await EtcdStore.open(cluster.config())
        version, noise = 0, Random(1)  # what cannot be packed
        failure: StoreUnavailable | None = None
        while failure is None and version < 30:
            try:
                await store.commit(a_write(version + 1, lines=(noise.randbytes(200_000),)))
                version += 1
            except StoreUnavailable as raised:
                failure = raised
        assert re.search(r"no space left.*quota-backend-bytes.*alarm disarm", str(failure))
        assert not isinstance(failure, CommitUnknown)
        found = await store.load(SESSION)
        assert found is not None
        assert found.version == version > 0
        await store.exported((await store.outbox())[-1][0])
        assert await store.outbox() == []
        await store.close()
    finally:
        cluster.stop()


@pytest.mark.timeout(90)
async def test_what_a_full_store_refuses_did_not_take_place(tmp_path: Path) -> None:
    """etcd looks at its quota twice: a change that passes once only is carried out, and refused all the same."""
    cluster = Cluster(tmp_path, options=("--quota-backend-bytes=4194304",))
    noise = Random(1)

    async def until_full(store: EtcdStore, session: bytes) -> int:
        for version in range(1, 200):
            try:
                await store.commit(a_write(version, session_id=session, lines=(noise.randbytes(20_000),)))
            except CommitUnknown:
                raise
            except StoreUnavailable:
                return version - 1
        raise AssertionError("it was never full")

    try:
        cluster.start()
        store = await EtcdStore.open(cluster.config())
        sessions = [bytes(15) + bytes([number]) for number in range(12)]
        committed = await asyncio.gather(*(until_full(store, session) for session in sessions))
        found = [await store.load(session) for session in sessions]
        assert [0 if one is None else one.version for one in found] == committed
        await store.close()
    finally:
        cluster.stop()


@pytest.mark.parametrize("took_place", [True, False])
async def test_a_change_that_is_refused_for_want_of_space_may_have_taken_place(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch, took_place: bool
) -> None:
    store = await EtcdStore.open(etcd.config())
    original = store.client.once

    async def once(method: Method, request: pb.TxnRequest, deadline: float) -> object:
        if method is not TXN or not request.compare:
            return await original(method, request, deadline)
        if took_place:
            await original(method, request, deadline)
        raise OutOfSpace("full", grpc.StatusCode.RESOURCE_EXHAUSTED)

    for version, state in enumerate(("ATTACHED", "ATTACHED", "TERMINATED"), 1):
        write = a_write(version, state=state, lines=())
        with monkeypatch.context() as patch:
            patch.setattr(store.client, "once", once)
            if took_place:
                assert await store.commit(write) is CommitResult.COMMITTED
            else:
                with pytest.raises(StoreUnavailable, match="full") as raised:
                    await store.commit(write)
                assert not isinstance(raised.value, CommitUnknown)
        assert await store.commit(write) is CommitResult.COMMITTED
    await store.close()


def test_nothing_secret_is_shown(etcd: Cluster) -> None:
    config: EtcdConfig = etcd.config()
    key = config.key.read_text()
    write = a_write(sealed=SECRET)
    for shown in (repr(config), repr(write), repr(write.stored_over(None))):
        assert SECRET.decode() not in shown
        assert key.splitlines()[1] not in shown
