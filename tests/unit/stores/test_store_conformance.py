"""What every store must do, run on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
import store_writes

from jumpvpn.runtime import clock
from jumpvpn.runtime.journal import Journal, JournalFailed, export_outbox, read_lines
from jumpvpn.runtime.stores.base import CommitResult, Store, StoreUnavailable
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.memory import MemoryStore
from jumpvpn.runtime.stores.memory_cluster import MemoryCluster
from jumpvpn.runtime.stores.sqlite import SqliteStore

SESSION = bytes(range(16))  # a store takes any bytes
DEVICE = b"d" * 32
a_write = partial(store_writes.a_write, session_id=SESSION)


async def _opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Store:
    if kind == "memory":
        return MemoryStore()
    if kind == "sqlite":
        return await SqliteStore.open(folder / "s.db")
    if kind == "memory-cluster":
        cluster = MemoryCluster(clock.boot_time)
        return await ClusterStore.open(MemoryStore(), cluster.shared("gw1"), "gw1")
    shared = await EtcdStore.open(request.getfixturevalue("etcd").config())
    if kind == "cluster":
        return await ClusterStore.open(await SqliteStore.open(folder / "s.db"), shared, "gw1")
    return shared


@pytest_asyncio.fixture(params=["memory", "sqlite", "etcd", "cluster", "memory-cluster"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await _opened(request.param, request, tmp_path)
    yield opened
    await opened.close()


@pytest_asyncio.fixture(params=["memory", "sqlite", "etcd"])
async def alone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One whose own outbox has all lines; in a cluster the shared store keeps those of shared commits."""
    opened = await _opened(request.param, request, tmp_path)
    yield opened
    await opened.close()


async def _lines(store: Store) -> list[bytes]:
    if isinstance(store, ClusterStore):
        return [line for entry in await store._shared.kept() for line in entry.lines]
    return [line for _, line in await store.outbox()]


async def test_a_commit_is_read_back_whole(store: Store) -> None:
    assert await store.commit(a_write()) is CommitResult.COMMITTED
    found = await store.load(SESSION)
    assert found is not None
    assert (found.version, found.state, found.epoch, found.body, found.sealed) == (
        1,
        "ATTACHED",
        1,
        b"body 1",
        b"sealed 1",
    )
    assert (found.chain, found.seq, found.head, found.write_id) == ("s:aa", 1, f"{1:064d}", "w1")
    assert await store.load_all() == [found]


async def test_stale_and_future_versions_conflict_and_change_nothing(store: Store) -> None:
    await store.commit(a_write(1))
    await store.commit(a_write(2))
    before = await store.load(SESSION)
    for stale in (a_write(1, write_id="x"), a_write(2, write_id="x"), a_write(4)):
        assert await store.commit(stale) is CommitResult.CONFLICT
    assert await store.load(SESSION) == before
    assert await _lines(store) == [b"line 1\n", b"line 2\n"]


async def test_repeating_the_same_write_succeeds_without_doing_it_twice(store: Store) -> None:
    assert await store.commit(a_write()) is CommitResult.COMMITTED
    assert await store.commit(a_write()) is CommitResult.COMMITTED
    assert len(await _lines(store)) == 1


async def test_of_simultaneous_writers_exactly_one_wins(store: Store) -> None:
    await store.commit(a_write(1))
    results = await asyncio.gather(*(store.commit(a_write(2, write_id=f"w{n}")) for n in range(20)))
    assert results.count(CommitResult.COMMITTED) == 1
    assert results.count(CommitResult.CONFLICT) == 19


async def test_epoch_and_chain_never_go_back(store: Store) -> None:
    await store.commit(a_write(1, epoch=5, seq=9))
    assert await store.commit(a_write(2, epoch=4, seq=10)) is CommitResult.CONFLICT
    assert await store.commit(a_write(2, epoch=5, seq=8)) is CommitResult.CONFLICT


async def test_owner_and_term_are_kept_and_a_term_never_goes_back(store: Store) -> None:
    await store.commit(a_write(1, owner="gw1", term=4))
    assert await store.commit(a_write(2, owner="gw2", term=3)) is CommitResult.CONFLICT
    assert await store.commit(a_write(2, owner="gw2", term=5)) is CommitResult.COMMITTED
    found = await store.load(SESSION)
    assert found is not None
    assert (found.owner, found.term) == ("gw2", 5)
    assert await store.load_all() == [found]


async def test_sealed_none_keeps_the_stored_keys(store: Store) -> None:
    await store.commit(a_write(1))
    await store.commit(a_write(2, sealed=None))
    found = await store.load(SESSION)
    assert found is not None
    assert found.sealed == b"sealed 1"


async def test_terminated_is_final_erases_keys_and_keeps_the_identifier(store: Store) -> None:
    await store.commit(a_write(1))
    assert await store.commit(a_write(2, state="TERMINATED")) is CommitResult.COMMITTED
    found = await store.load(SESSION)
    assert found is not None
    assert found.sealed is None
    assert await store.load_all() == []
    assert await store.commit(a_write(3)) is CommitResult.CONFLICT
    assert await store.commit(a_write(1, write_id="again")) is CommitResult.CONFLICT


async def test_device_timestamps_must_rise(store: Store) -> None:
    newest = 2**64 - 2
    assert await store.device_timestamp(DEVICE) == 0
    assert await store.commit(a_write(device=(DEVICE, newest))) is CommitResult.COMMITTED
    for timestamp in (newest, newest - 1, 0):
        other = a_write(session_id=b"o" * 16, device=(DEVICE, timestamp))
        assert await store.commit(other) is CommitResult.REPLAYED_DEVICE
    assert await store.load(b"o" * 16) is None
    assert await store.commit(a_write(session_id=b"n" * 16, device=(DEVICE, newest + 1))) is CommitResult.COMMITTED
    assert await store.device_timestamp(DEVICE) == newest + 1


async def test_outbox_keeps_order_and_forgets_what_was_exported(alone: Store) -> None:
    await alone.commit(a_write(1, lines=(b"a\n", b"b\n")))
    await alone.commit(a_write(2, lines=(b"c\n",)))
    lines = await alone.outbox()
    assert [line for _, line in lines] == [b"a\n", b"b\n", b"c\n"]
    await alone.exported(lines[1][0])
    assert [line for _, line in await alone.outbox()] == [b"c\n"]
    assert [line for _, line in await alone.outbox(limit=1)] == [b"c\n"]


async def test_outbox_moves_into_the_journal_and_stays_if_that_fails(alone: Store, tmp_path: Path) -> None:
    await alone.commit(a_write())
    with pytest.raises(JournalFailed):
        await export_outbox(alone, _Broken())
    journal = Journal(tmp_path / "events.jsonl")
    assert await export_outbox(alone, journal) == 1
    assert await export_outbox(alone, journal) == 0
    journal.close()
    assert read_lines(tmp_path / "events.jsonl") == [b"line 1\n"]


def test_a_commit_must_raise_the_version() -> None:
    with pytest.raises(ValueError, match="raises the version"):
        a_write(2, expected_version=2)


def test_records_never_show_their_keys() -> None:
    write = a_write()
    assert "sealed 1" not in repr(write)
    assert "sealed 1" not in repr(write.stored_over(None))


async def test_memory_store_can_be_made_unavailable() -> None:
    store = MemoryStore()
    store.unavailable = "drill"
    with pytest.raises(StoreUnavailable, match="drill"):
        await store.load_all()


class _Broken(Journal):
    def __init__(self) -> None:
        pass

    def append(self, lines: object) -> None:
        raise JournalFailed("disk full")
