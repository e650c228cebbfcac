"""Lines that a gateway committed and did not live to export reach a journal: once at least, whoever dies in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from jumpvpn.gateway import leftovers
from jumpvpn.gateway.leftovers import Leftovers
from jumpvpn.gateway.view import ClusterView, Watchers
from jumpvpn.runtime import clock
from jumpvpn.runtime.journal import JournalFailed
from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, Write
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.etcd.records import decode_session
from jumpvpn.runtime.stores.leases import Change
from jumpvpn.runtime.stores.membership import Member, Serving, encode_member
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.runtime.stores.memory_cluster import MemoryCluster
from jumpvpn.runtime.stores.shared import KeptLines


def birth(node: str, number: int, version: int = 1, **more: object) -> Write:
    values: dict[str, object] = {
        "session_id": node.encode().ljust(8) + number.to_bytes(8, "big"), "expected_version": version - 1 or None,
        "version": version, "state": "ATTACHED", "epoch": 1, "body": b"b", "sealed": b"s", "chain": "s:a",
        "seq": version, "head": "h", "lines": (b"%s %d.%d\n" % (node.encode(), number, version),), "device": None,
        "write_id": f"{node}{number}.{version}", "owner": node, "term": 1,
    }  # fmt: skip
    return Write(**{**values, **more})  # type: ignore[arg-type]


class Gateway:
    """One gateway's store, view and journal."""

    def __init__(self, cluster: MemoryCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.journal: list[bytes] = []
        self.told: list[str] = []
        self.view = ClusterView(lambda key, value: decode_session(key.encode(), value))
        self.acts = True
        self.written: Callable[[], None] = lambda: None
        self.store: ClusterStore
        self.leftovers: Leftovers

    async def open(self) -> Gateway:
        self.store = await ClusterStore.open(MemoryStore(), self.cluster.shared(self.name), self.name)
        self.leftovers = Leftovers(
            self.name, self.view, 0, self.store, self.write, lambda: self.acts, self.told.append,
        )  # fmt: skip
        return self

    def write(self, lines: Sequence[bytes]) -> None:
        self.journal += lines
        self.written()

    def sees(self, *nodes: str) -> None:
        """Who holds a lease."""
        tell = Watchers(lambda *_: None, lambda *_: None, self.told.append)
        for node in (*self.view.members, *nodes):
            member = Member(node, "192.0.2.1:51900", b"k" * 32, "run", Serving.SERVING, "0", (1,), 1)
            value = encode_member(member) if node in nodes else None
            self.view.apply(Change(f"held/{node}", value, 1), tell)

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.leftovers.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def kept(self, node: str) -> dict[str, KeptLines]:
        return self.cluster.outboxes[node]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    monkeypatch.setattr(leftovers, "BREATH_SECONDS", 0)
    monkeypatch.setattr(leftovers, "AGAIN_NS", 0)
    return MemoryCluster(clock.boot_time)


async def a_dead(cluster: MemoryCluster, name: str, commits: int = 3) -> list[bytes]:
    """A gateway that committed, and died before any line was exported; its lines."""
    gone = await Gateway(cluster, name).open()
    writes = [birth(name, number) for number in range(commits)]
    for write in writes:
        assert await gone.store.commit(write) is CommitResult.COMMITTED
    return [line for write in writes for line in write.lines]


async def test_the_heir_writes_the_lines_of_the_dead_byte_for_byte_and_the_store_forgets_them(
    cluster: MemoryCluster,
) -> None:
    lines = await a_dead(cluster, "gw1", 40)
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2")
    async with heir.running():
        heir.leftovers.gone()
        await heir.until(lambda: not heir.kept("gw1"))
    assert heir.journal == lines


async def test_who_lives_keeps_its_lines(cluster: MemoryCluster) -> None:
    await a_dead(cluster, "gw1")
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2", "gw1")
    dead = next(name for name in map("gw{}".format, range(3, 99)) if heir.view.heir(name.encode()) == "gw2")
    lines = await a_dead(cluster, dead)
    async with heir.running():
        heir.leftovers.gone()
        await heir.until(lambda: not heir.kept(dead))
    assert heir.journal == lines
    assert len(heir.kept("gw1")) == 3


async def test_one_writes_them_and_the_next_if_that_one_goes(cluster: MemoryCluster) -> None:
    lines = await a_dead(cluster, "gw9")
    both = [await Gateway(cluster, name).open() for name in ("gw1", "gw2")]
    for gateway in both:
        gateway.sees("gw1", "gw2")
    chosen = both[0].view.heir(b"gw9")
    first, second = sorted(both, key=lambda gateway: gateway.name != chosen)
    async with second.running():
        second.leftovers.gone()
        for _ in range(50):
            await asyncio.sleep(0)
        assert second.journal == []
        second.sees(second.name)
        await second.until(lambda: not second.kept("gw9"))
    assert (first.journal, second.journal) == ([], lines)


async def test_an_heir_that_dies_between_journal_and_store_leaves_them_to_the_next(cluster: MemoryCluster) -> None:
    lines = await a_dead(cluster, "gw1")
    heir, next_heir = [await Gateway(cluster, name).open() for name in ("gw2", "gw3")]
    heir.sees("gw2")
    heir.written = lambda: cluster.cut.add("gw2")
    async with heir.running():
        heir.leftovers.gone()
        await heir.until(lambda: bool(heir.told))
    assert heir.journal[:3] == lines
    assert len(heir.kept("gw1")) == 3
    next_heir.sees("gw3")
    async with next_heir.running():
        next_heir.leftovers.gone()
        await next_heir.until(lambda: not next_heir.kept("gw1"))
    assert next_heir.journal == lines


async def test_a_node_that_comes_back_meanwhile_sees_to_the_rest(cluster: MemoryCluster) -> None:
    lines = await a_dead(cluster, "gw1", 40)
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2")
    heir.written = lambda: heir.sees("gw2", "gw1")
    async with heir.running():
        heir.leftovers.gone()
        await heir.until(lambda: bool(heir.journal) and len(heir.kept("gw1")) < 40)
        for _ in range(50):
            await asyncio.sleep(0)
    assert 0 < len(heir.journal) < 40
    again = await Gateway(cluster, "gw1").open()
    fetched = [line for _, line in await again.store.outbox()]
    assert heir.journal + fetched == lines
    assert not again.kept("gw1")


async def test_who_may_not_act_waits_until_it_may(cluster: MemoryCluster) -> None:
    lines = await a_dead(cluster, "gw1")
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2")
    heir.acts = False
    async with heir.running():
        heir.leftovers.gone()
        for _ in range(50):
            await asyncio.sleep(0)
        assert heir.journal == []
        heir.acts = True
        await heir.until(lambda: not heir.kept("gw1"))
    assert heir.journal == lines


async def test_a_store_that_is_away_is_asked_again(cluster: MemoryCluster) -> None:
    lines = await a_dead(cluster, "gw1")
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2")
    cluster.cut.add("gw2")
    async with heir.running():
        heir.leftovers.gone()
        await heir.until(lambda: bool(heir.told))
        cluster.heal("gw2")
        await heir.until(lambda: not heir.kept("gw1"))
    assert heir.journal == lines


async def test_what_a_node_did_not_know_to_have_committed_is_in_its_journal_under_the_next_lease(
    cluster: MemoryCluster,
) -> None:
    gateway = await Gateway(cluster, "gw1").open()
    gateway.sees("gw1")
    await gateway.store.commit(birth("gw1", 1))
    cluster.lose_answers = 9
    with pytest.raises(CommitUnknown):
        await gateway.store.commit(birth("gw1", 1, version=2))
    cluster.lose_answers = 0
    async with gateway.running():
        gateway.leftovers.returned()
        await gateway.until(lambda: len(gateway.kept("gw1")) == 1)
    assert gateway.journal == [b"gw1 1.2\n"], "version 1 is the commit's own to export"


async def test_a_journal_that_cannot_be_written_ends_it_before_anything_is_forgotten(cluster: MemoryCluster) -> None:
    await a_dead(cluster, "gw1")
    heir = await Gateway(cluster, "gw2").open()
    heir.sees("gw2")

    def fail() -> None:
        raise JournalFailed("no space left")

    heir.written = fail
    heir.leftovers.gone()
    with pytest.raises(JournalFailed):
        async with asyncio.timeout(20):
            await heir.leftovers.run()
    assert len(heir.kept("gw1")) == 3
