"""The store of a gateway in a cluster: what is at its own disk, what is in etcd, and who wins."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster_nodes import Node, flushed, nodes
from etcd_lab import Cluster, put
from store_writes import SESSION, owned

from jumpvpn.runtime.stores.base import TERMINATED, CommitResult
from jumpvpn.runtime.stores.etcd.records import Names
from jumpvpn.runtime.stores.flush import MOST_PENDING_BYTES

COMMITTED, CONFLICT = CommitResult.COMMITTED, CommitResult.CONFLICT
SECOND = 1_000_000_000


async def test_a_change_is_on_the_nodes_disk_first_and_in_etcd_soon(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        assert await node.store.commit(owned(1)) is COMMITTED
        assert node.store.behind == (0, 0)
        for version in (2, 3):
            assert await node.store.commit(owned(version)) is COMMITTED
        here = await node.local.load(SESSION)
        assert here is not None
        assert (here.version, here.owner, here.term, here.sealed) == (3, "gw1", 1, b"sealed 3")
        assert (await node.in_etcd()).version == 1
        count, oldest = node.store.behind
        assert count == 1
        assert oldest > 0
        node.run()
        await flushed(node)
        assert await node.in_etcd() == here
        assert node.store.behind == (0, 0)
        assert await node.lines_in_etcd() == [b"line 1\n", b"line 2\n", b"line 3\n"]


async def test_lines_leave_etcd_once_the_node_has_exported_them(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))
        node.run()
        await flushed(node)
        assert await node.lines_in_etcd() == [b"line 1\n", b"line 2\n"]
        assert [line for _, line in await node.store.outbox()] == [b"line 2\n"]
        await node.store.exported(node.store.last_line)
        assert await node.store.outbox() == []
        await node.store.commit(owned(3, lines=()))
        await flushed(node)
        await node.store.commit(owned(4, lines=()))
        await flushed(node)
        assert await node.lines_in_etcd() == []


async def test_a_shared_commit_takes_what_is_behind_along_in_one_transaction(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        for version in (2, 3, 4):
            await node.store.commit(owned(version))
        before = node.shared.client.traffic.transactions, node.shared.client.traffic.reads
        assert await node.store.commit(owned(5, shared=True, sealed=None)) is COMMITTED
        assert (node.shared.client.traffic.transactions, node.shared.client.traffic.reads) == (before[0] + 1, before[1])
        there = await node.in_etcd()
        assert (there.version, there.sealed) == (5, b"sealed 4"), "keys that a change does not name stay the newest"
        assert await node.local.load(SESSION) == there
        assert await node.lines_in_etcd() == [b"line %d\n" % n for n in range(1, 6)]
        assert [line for _, line in await node.store.outbox()] == [b"line %d\n" % n for n in range(2, 5)]
        assert node.store.behind == (0, 0)
        assert await node.store.commit(owned(6)) is COMMITTED


async def test_what_all_have_the_nodes_file_need_not_have(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        await second.take()
        for version in (2, 3):
            assert await second.store.commit(owned(version, "gw2", 2, shared=True)) is COMMITTED
        assert (await second.store.outbox(), await second.local.load(SESSION)) == ([], None)
        assert await second.store.commit(owned(5, "gw2", 2)) is CONFLICT, "a local change is compared with it anyway"
        assert await second.store.commit(owned(4, "gw2", 2, sealed=None)) is COMMITTED
        here = await second.local.load(SESSION)
        assert here is not None
        assert (here.version, here.sealed) == (4, b"sealed 3")
        await second.kill()
        await second.start()
        assert [line for _, line in await second.store.outbox()] == [b"line 4\n", b"line 2\n", b"line 3\n"]
        assert await second.store.load_owned("gw2") == [here]


async def test_no_older_keys_stay_in_the_nodes_file(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2))
        assert await node.store.commit(owned(3, shared=True)) is COMMITTED
        assert await node.local.load(SESSION) == await node.in_etcd()
        assert await node.shared.commit(owned(4, shared=True)) is COMMITTED, "in an answer that never came"
        await node.kill()
        await node.start()
        assert [found.version for found in await node.store.load_owned("gw1")] == [4]
        assert await node.local.load(SESSION) == await node.in_etcd()


async def test_exported_lines_are_counted_over_both_stores(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        await node.store.commit(owned(2, lines=(b"a\n", b"b\n")))
        exported = node.store.last_line
        await node.store.commit(owned(3, lines=(b"c\n",)))
        await node.store.commit(owned(4, shared=True, lines=(b"d\n",)))
        assert node.store.last_line > exported
        await node.store.exported(exported)
        assert [line for _, line in await node.store.outbox()] == [b"c\n"]
        await node.kill()
        await node.start()
        told = [line for _, line in await node.store.outbox()]
        assert told[0] == b"c\n"
        assert {b"c\n", b"d\n"} <= set(told)
        numbered = await node.store.outbox()
        await node.store.commit(owned(5, shared=True))
        await node.store.exported(numbered[-1][0])
        assert await node.store.outbox() == []


async def test_births_owner_changes_and_ends_are_shared_whatever_the_write_asks(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        assert await node.store.commit(owned(1, shared=False)) is COMMITTED
        assert (await node.in_etcd()).version == 1
        assert await node.store.commit(owned(2, term=2, shared=False)) is COMMITTED
        assert (await node.in_etcd()).term == 2
        assert await node.store.commit(owned(3, term=2, state=TERMINATED, shared=False)) is COMMITTED
        assert (await node.in_etcd()).state == TERMINATED
        assert await node.local.load(SESSION) is None, "no key of an ended session stays at the node"
        assert await node.lines_in_etcd() == [b"line 1\n", b"line 2\n", b"line 3\n"]
        assert await node.store.commit(owned(3, term=2, state=TERMINATED)) is COMMITTED, "asked again"
        assert await node.store.commit(owned(4, term=2)) is CONFLICT


async def test_wrong_versions_and_lower_terms_conflict_in_both_ways(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1, term=5))
        await node.store.commit(owned(2, term=5))
        for shared in (False, True):
            assert await node.store.commit(owned(2, term=5, shared=shared, write_id="x")) is CONFLICT
            assert await node.store.commit(owned(4, term=5, shared=shared)) is CONFLICT
        assert await node.store.commit(owned(3, term=4)) is CONFLICT
        assert (await node.in_etcd()).term == 5


async def test_after_a_kill_the_local_record_is_newer_and_reaches_etcd(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        other = owned(1, session_id=b"o" * 16)
        await node.store.commit(owned(1))
        await node.store.commit(other)
        await node.store.commit(owned(2))
        await node.kill()
        await node.start()
        first, second = await node.store.load_owned("gw1")
        assert (first.session_id, first.version) == (other.session_id, 1)
        assert (second.session_id, second.version) == (SESSION, 2)
        assert node.store.behind[0] == 1
        node.run()
        await flushed(node)
        assert (await node.in_etcd()).version == 2
        assert await node.store.commit(owned(3)) is COMMITTED
        assert await node.store.load_owned("gw2") == []


async def test_at_start_only_what_the_node_still_owns_stays_in_its_file(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        await first.store.commit(owned(2))
        await second.take()
        assert await second.store.commit(owned(3, "gw2", 2, expected_version=1)) is COMMITTED
        await first.kill()
        await first.start()
        assert await first.store.load_owned("gw1") == []
        assert await first.local.load_all() == []
        assert [s.version for s in await second.store.load_owned("gw2")] == [3]
        assert [s.version for s in await first.store.load_owned("gw2")] == [3]


async def test_a_takeover_beats_what_the_owner_had_not_sent(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        await first.store.commit(owned(2, lines=(b"a", b"b")))
        await first.store.commit(owned(3, lines=(b"c",)))
        stored = await second.take()
        reads = second.shared.client.traffic.reads
        taking = owned(9, "gw2", 2, expected_version=stored.version)
        assert await second.store.commit(taking) is COMMITTED
        assert second.shared.client.traffic.reads == reads, "one transaction, nothing is read again"
        first.run()
        await flushed(first)
        ((session_id, found),) = first.lost
        assert session_id == SESSION
        assert found is not None
        assert (found.owner, found.term, found.version) == ("gw2", 2, 9)
        for shared in (False, True):
            assert await first.store.commit(owned(4, shared=shared)) is CONFLICT
        assert await first.store.forget(SESSION) == 3, "a, b and c are only in the old owner's journal"
        assert await first.local.load(SESSION) is None
        assert [line for _, line in await first.store.outbox()] == [b"a", b"b", b"c"]
        assert await second.store.commit(owned(10, "gw2", 2)) is COMMITTED


async def test_the_old_owners_shared_commit_loses_too(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        await first.store.commit(owned(2))
        await second.take()
        assert await second.store.commit(owned(2, "gw2", 2)) is COMMITTED
        assert await first.store.commit(owned(3, state=TERMINATED)) is CONFLICT
        assert (await second.in_etcd()).owner == "gw2"


async def test_of_twenty_simultaneous_takers_exactly_one_wins(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, *(f"gw{n}" for n in range(20))) as all_nodes:
        await all_nodes[0].store.commit(owned(1, "gone"))

        async def take(node: Node) -> CommitResult:
            await node.take()
            return await node.store.commit(owned(2, node.config.node, 2))

        results = await asyncio.gather(*(take(node) for node in all_nodes))
        assert sorted(result.value for result in results) == ["committed"] + 19 * ["conflict"]
        winner = all_nodes[results.index(COMMITTED)]
        assert (await winner.in_etcd()).owner == winner.config.node
        loser = all_nodes[results.index(CONFLICT)]
        await loser.take()
        assert await loser.store.commit(owned(3, loser.config.node, 3)) is COMMITTED, "a loser starts from nothing"


async def test_many_sessions_share_few_transactions(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        identifiers = [n.to_bytes(16, "big") for n in range(300)]
        await asyncio.gather(*(node.store.commit(owned(1, session_id=i)) for i in identifiers))
        for identifier in identifiers:
            await node.store.commit(owned(2, session_id=identifier))
        traffic = node.shared.client.traffic
        before = traffic.transactions, traffic.reads
        node.run()
        await flushed(node)
        assert traffic.transactions - before[0] <= 8, "300 sessions, 40 in each"
        assert traffic.reads == before[1]
        assert {found.version for found in await node.shared.load_all()} == {2}


async def test_one_session_that_was_taken_does_not_stop_the_batch(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        identifiers = [bytes([n]) * 16 for n in range(5)]
        for identifier in identifiers:
            await first.store.commit(owned(1, session_id=identifier))
            await first.store.commit(owned(2, session_id=identifier))
        await second.take(identifiers[2])
        await second.store.commit(owned(2, "gw2", 2, session_id=identifiers[2]))
        first.run()
        await flushed(first)
        assert [session for session, _ in first.lost] == [identifiers[2]]
        assert [(s.version, s.owner) for s in await first.shared.load_all()] == [
            (2, "gw2" if n == 2 else "gw1") for n in range(5)
        ]


async def test_lines_that_ride_along_are_bounded_and_counted(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        for version in range(2, 6):
            await node.store.commit(owned(version, lines=(b"%d" % version * (MOST_PENDING_BYTES // 2),)))
        node.run()
        await flushed(node)
        there = await node.lines_in_etcd()
        assert [line[:1] for line in there] == [b"l", b"4", b"5"]
        assert len(await node.store.outbox()) == 4, "all of them are at the node"


async def test_flushes_and_shared_commits_of_one_session_do_not_hurt_each_other(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        await node.store.commit(owned(1))
        node.run()
        for version in range(2, 42):
            assert await node.store.commit(owned(version, shared=version % 5 == 0)) is COMMITTED
            waiting = asyncio.ensure_future(node.store.flushed())
            await asyncio.sleep(0)
            waiting.cancel()
        await flushed(node)
        assert (await node.in_etcd()).version == 41
        assert node.lost == []
        assert set(await node.lines_in_etcd()) == {b"line %d\n" % n for n in range(1, 42)}


async def test_taking_without_a_commit_leaves_nothing(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        stored = await second.take()
        assert await second.store.forget(SESSION) == 0
        assert await second.store.load(SESSION) == stored
        assert await first.store.commit(owned(2, shared=True)) is COMMITTED


async def test_the_records_revision_is_learned_where_only_its_version_is_known(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        await first.store.commit(owned(1))
        stored = await first.in_etcd()
        second.store.take(stored)  # as it came through the watch
        assert await second.store.commit(owned(2, "gw2", 2)) is COMMITTED
        first.store.take(await first.in_etcd())
        await second.store.commit(owned(3, "gw2", 2, shared=True))
        assert await first.store.commit(owned(3, "gw1", 3)) is CONFLICT


async def test_the_last_session_of_a_device_is_known_at_every_node(etcd: Cluster, tmp_path: Path) -> None:
    device = b"d" * 32
    async with nodes(etcd, tmp_path, "gw1", "gw2") as (first, second):
        assert await second.store.last_session(device) is None
        assert await first.store.commit(owned(1, device=(device, 5))) is COMMITTED
        assert (await second.store.device_timestamp(device), await second.store.last_session(device)) == (5, SESSION)
        other = owned(1, "gw2", session_id=b"o" * 16, device=(device, 5))
        assert await second.store.commit(other) is CommitResult.REPLAYED_DEVICE
        await put(first.shared.client, Names(first.config.cluster, "gw1").device(device), (9).to_bytes(8, "big"))
        assert (await second.store.device_timestamp(device), await second.store.last_session(device)) == (9, None)


async def test_terminated_records_end_with_a_lease_that_many_share(etcd: Cluster, tmp_path: Path) -> None:
    async with nodes(etcd, tmp_path, "gw1") as (node,):
        names, client = Names(node.config.cluster, "gw1"), node.shared.client
        leases = []
        for identifier in (b"a" * 16, b"b" * 16):
            await node.store.commit(owned(1, session_id=identifier))
            assert await node.store.commit(owned(2, session_id=identifier, state=TERMINATED)) is COMMITTED
            leases.append(await Cluster.lease_of(client, names.dead_session(identifier)))
        assert leases[0] == leases[1] != 0
        await Cluster.revoke(client, leases[0])
        assert await node.store.load(b"a" * 16) is None
        await node.store.commit(owned(1))
        assert await node.store.commit(owned(2, state=TERMINATED)) is COMMITTED, "another lease is made"
        assert await Cluster.lease_of(client, names.dead_session(SESSION)) not in (0, leases[0])
