"""The store of a gateway in a cluster: commits and reads of many sessions that share etcd's transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster_nodes import Node, nodes
from etcd_lab import Cluster, Proxy, before_each_change, put
from store_writes import owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import (
    TERMINATED,
    CommitResult,
    CommitUnknown,
    ForeignRecord,
    StoredSession,
    StoreUnavailable,
    Write,
)
from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd.client import RANGE
from jumpvpn.runtime.stores.etcd.records import Names, after_prefix, decode_lines
from jumpvpn.values import Instant

COMMITTED, CONFLICT = CommitResult.COMMITTED, CommitResult.CONFLICT
SECOND = 1_000_000_000
SESSIONS = [bytes([number]) * 16 for number in range(1, 31)]
QUICK = {"timeout_ms": 500, "attempt_ms": 250}


async def born(node: Node, owner: str = "gone") -> None:
    """All of ``SESSIONS``, which ``owner`` had."""
    for session_id in SESSIONS:
        assert await node.shared.commit(owned(1, owner, session_id=session_id, lines=())) is COMMITTED


async def taking(node: Node) -> list[Write]:
    """The owner changes of all of them, ready to be committed by ``node``."""
    await asyncio.gather(*map(node.take, SESSIONS))
    return [owned(2, node.config.node, 2, session_id=session_id) for session_id in SESSIONS]


async def tried(node: Node, writes: Sequence[Write]) -> list[CommitResult | BaseException]:
    return await asyncio.gather(*map(node.store.commit, writes), return_exceptions=True)


async def in_etcd(node: Node) -> list[tuple[str, int]]:
    return [(found.owner, found.version) for found in await node.shared.load_all()]


async def lines_in_etcd(node: Node) -> list[bytes]:
    """In the order of the sessions; commits that share a transaction share its revision, too."""
    prefix = Names(node.config.cluster, node.config.node).outbox
    answer = await node.shared.client.ask(RANGE, pb.RangeRequest(key=prefix, range_end=after_prefix(prefix)))
    return [line for kv in answer.kvs for line in decode_lines(kv.key, kv.value)]


async def test_many_takeovers_share_few_transactions(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await born(node)
        traffic = node.shared.client.traffic
        before = traffic.transactions, traffic.reads
        assert await tried(node, await taking(node)) == [COMMITTED] * 30
        spent = traffic.transactions - before[0], traffic.reads - before[1]
        assert spent <= (4, 4), "two alone, then the rest, of which one alone if both were answered at once"
        assert await in_etcd(node) == [("gw1", 2)] * 30
        assert await lines_in_etcd(node) == [b"line 2\n"] * 30
        assert (await node.store.outbox(), await node.local.load_all()) == ([], []), "nothing waits for the disk"
        before = traffic.transactions, traffic.reads
        for write in (owned(3, "gw1", 2, session_id=session_id, shared=True) for session_id in SESSIONS[:2]):
            assert await node.store.commit(write) is COMMITTED, "the revision of each is known"
        assert (traffic.transactions - before[0], traffic.reads - before[1]) == (2, 0)


async def test_a_commit_that_is_alone_is_one_transaction_at_once(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await born(node)
        writes, traffic = await taking(node), node.shared.client.traffic
        for number, write in enumerate(writes[:3], traffic.transactions + 1):
            assert await node.store.commit(write) is COMMITTED
            assert traffic.transactions == number


async def test_of_those_that_go_together_only_the_one_that_was_changed_loses(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await born(first)
        writes = await taking(second)
        lost = (SESSIONS[7], SESSIONS[20])
        for session_id in lost:
            assert await first.shared.commit(owned(2, "gw1", 2, session_id=session_id, lines=())) is COMMITTED
        before = second.shared.client.traffic.transactions
        results = await tried(second, writes)
        assert results == [CONFLICT if session_id in lost else COMMITTED for session_id in SESSIONS]
        assert second.shared.client.traffic.transactions - before <= 8, "the others went together again"
        owners = ["gw1" if session_id in lost else "gw2" for session_id in SESSIONS]
        assert await in_etcd(second) == [(owner, 2) for owner in owners]
        assert await lines_in_etcd(second) == [b"line 2\n"] * 28
        assert await second.store.forget(lost[0]) == 0, "a loser starts from nothing"


async def test_ends_and_changes_go_together_and_what_cannot_be_stored_fails_alone(
    etcd: Cluster, tmp_path: Path
) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await born(node, "gw1")
        for session_id in SESSIONS:
            assert await node.store.commit(owned(2, session_id=session_id)) is COMMITTED
        await put(node.shared.client, Names(node.config.cluster, "gw1").live_session(SESSIONS[9]), b"hello")
        changes: dict[bytes, Any] = {SESSIONS[5]: {"body": b"x" * (64 << 10)}, SESSIONS[12]: {"state": TERMINATED}}
        writes = [owned(3, session_id=id_, shared=True, **changes.get(id_, {})) for id_ in SESSIONS]
        results = await tried(node, writes)
        failed = {id_: result for id_, result in zip(SESSIONS, results, strict=True) if result is not COMMITTED}
        assert set(failed) == {SESSIONS[5], SESSIONS[9]}
        with pytest.raises(StoreUnavailable, match="more than the 65536 that a record may have"):
            raise failed[SESSIONS[5]]  # type: ignore[misc]
        assert isinstance(failed[SESSIONS[9]], ForeignRecord)
        ended = await node.store.load(SESSIONS[12])
        assert ended is not None
        assert (ended.state, ended.sealed) == (TERMINATED, None)


async def test_each_sessions_commits_stay_in_their_order(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await born(node, "gw1")
        node.run()
        versions = range(2, 8)
        writes = [owned(v, session_id=id_, shared=v % 3 != 0) for v in versions for id_ in SESSIONS]
        assert await tried(node, writes) == [COMMITTED] * len(writes)
        async with asyncio.timeout(20):
            await node.store.flushed()
        assert await in_etcd(node) == [("gw1", 7)] * 30
        assert node.lost == []
        told = await lines_in_etcd(node)
        assert sorted(told) == sorted(b"line %d\n" % version for version in versions for _ in SESSIONS)


@pytest.mark.parametrize("carried_out", [True, False])
async def test_those_whose_shared_answer_was_lost_find_out_each_for_itself(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    async with (
        Proxy(etcd.members[0].client) as proxy,
        nodes(etcd, tmp_path, "gw1", endpoints=[proxy.endpoint], **QUICK) as (node,),
    ):
        await born(node)
        writes = await taking(node)
        node.store._give_up_at = lambda: Instant(clock.boot_time() + 20 * SECOND)
        exchange, look = node.shared.exchange, node.shared.look
        sizes: list[int] = []
        lost, looked = set[bytes](), set[bytes]()

        async def lossy(changes: Sequence[Any], deadline: float) -> Any:
            sizes.append(len(changes))
            if len(changes) > 1:
                lost.update(change.write.session_id for change in changes)
                proxy.swallowing, proxy.deaf = carried_out, not carried_out
            return await exchange(changes, deadline)

        async def again(write: Write, deadline: float) -> Any:
            if proxy.swallowing or proxy.deaf:
                await proxy.reset()
            looked.add(write.session_id)
            return await look(write, deadline)

        monkeypatch.setattr(node.shared, "exchange", lossy)
        monkeypatch.setattr(node.shared, "look", again)
        assert await tried(node, writes) == [COMMITTED] * 30
        assert sizes[:3] == [1, 1, len(lost)]
        assert len(lost) >= 27
        assert set(sizes[3:]) <= {1}, "in doubt, each goes by itself"
        assert looked >= lost
        assert await in_etcd(node) == [("gw1", 2)] * 30
        assert await lines_in_etcd(node) == [b"line 2\n"] * 30, "each once"


async def test_an_outcome_that_stays_unknown_is_unknown_to_all_that_were_sent(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Proxy(etcd.members[0].client) as proxy,
        nodes(etcd, tmp_path, "gw1", endpoints=[proxy.endpoint], **QUICK) as (node,),
    ):
        await born(node)
        writes = await taking(node)
        until = clock.boot_time() + SECOND
        node.store._give_up_at = lambda: Instant(until)
        with monkeypatch.context() as patch:
            before_each_change(node.shared.client, lambda: setattr(proxy, "swallowing", True), patch)
            results = await tried(node, writes)
        assert [type(result) for result in results] == [CommitUnknown] * 30
        await proxy.reset()
        node.store._give_up_at = None
        there = await asyncio.gather(*map(node.store.load, SESSIONS))
        known = [found.owner for found in there if found is not None]
        assert known[:2] == ["gw1", "gw1"], "they took place"
        assert set(known) <= {"gw1", "gone"}


async def test_after_the_lease_nothing_that_waits_is_sent(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(etcd, tmp_path, "gw1", timeout_ms=5_000, attempt_ms=2_500) as (node,):
        await born(node)
        writes = await taking(node)
        until = clock.boot_time() + SECOND // 2
        node.store._give_up_at = lambda: Instant(until)
        sent: list[bytes] = []
        release = asyncio.Event()
        original = node.shared.exchange

        async def slow(changes: Sequence[Any], deadline: float) -> Any:
            sent.extend(change.write.session_id for change in changes)
            await release.wait()
            return await original(changes, deadline)

        monkeypatch.setattr(node.shared, "exchange", slow)
        tasks = [asyncio.create_task(node.store.commit(write)) for write in writes]
        for task in tasks[2:]:
            with pytest.raises(StoreUnavailable, match="could not be sent in time") as raised:
                await task
            assert not isinstance(raised.value, CommitUnknown), "it was never sent"
        release.set()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert sent == SESSIONS[:2]
        assert await in_etcd(node) == [*await in_etcd(node)][:2] + [("gone", 1)] * 28


async def test_reads_that_come_together_share_a_transaction_and_fail_each_alone(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await born(node)
        ended = owned(2, "gone", session_id=SESSIONS[3], state=TERMINATED, lines=())
        await node.shared.commit(ended)
        await put(node.shared.client, Names(node.config.cluster, "gw1").live_session(SESSIONS[9]), b"hello")
        before = node.shared.client.traffic.reads
        wanted = [*SESSIONS, b"n" * 16]
        found: Sequence[StoredSession | BaseException | None] = await asyncio.gather(
            *map(node.store.load, wanted), return_exceptions=True
        )
        assert node.shared.client.traffic.reads - before <= 4
        told = dict(zip(wanted, found, strict=True))
        assert isinstance(told.pop(SESSIONS[9]), ForeignRecord)
        assert told.pop(b"n" * 16) is None
        assert {id_: (s.session_id, s.state) for id_, s in told.items() if isinstance(s, StoredSession)} == {
            id_: (id_, TERMINATED if id_ == SESSIONS[3] else "ATTACHED") for id_ in SESSIONS if id_ != SESSIONS[9]
        }


async def test_reads_that_found_no_store_are_asked_again_by_each(etcd: Cluster, tmp_path: Path) -> None:
    async with (
        Proxy(etcd.members[0].client) as proxy,
        nodes(etcd, tmp_path, "gw1", endpoints=[proxy.endpoint], **QUICK) as (node,),
    ):
        await born(node)
        proxy.deaf = True
        refused = await asyncio.gather(*map(node.store.load, SESSIONS), return_exceptions=True)
        assert [isinstance(failure, StoreUnavailable) for failure in refused] == [True] * 30
        await proxy.reset()
        found = await asyncio.gather(*map(node.store.load, SESSIONS))
        assert [stored is not None for stored in found] == [True] * 30
