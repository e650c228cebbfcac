"""Gateways' stores over one real etcd, started and killed by tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from etcd_lab import Cluster, Proxy, before_each_change
from store_writes import SESSION, owned

from jumpvpn.runtime import clock
from jumpvpn.runtime.stores.base import CommitUnknown, StoredSession, Write
from jumpvpn.runtime.stores.cluster import ClusterStore
from jumpvpn.runtime.stores.etcd.store import EtcdStore
from jumpvpn.runtime.stores.sqlite import SqliteStore
from jumpvpn.values import SECOND, Instant


class Node:
    """One gateway's store; ``kill`` ends it as SIGKILL does."""

    def __init__(self, etcd: Cluster, folder: Path, name: str, cluster: str, **changes: object) -> None:
        self.config = etcd.config(name, cluster=cluster, **changes)
        self.path = folder / f"{name}.db"
        self.lost: list[tuple[bytes, StoredSession | None]] = []
        self.told: list[str] = []
        self.give_up_at: Callable[[], Instant] | None = None
        self.running: asyncio.Task[None] | None = None
        self.local: SqliteStore
        self.shared: EtcdStore
        self.store: ClusterStore

    async def start(self) -> Node:
        self.shared = await EtcdStore.open(self.config)
        self.local = await SqliteStore.open(self.path)
        self.store = await ClusterStore.open(
            self.local, self.shared, self.config.node, give_up_at=self.give_up_at,
            conflicts=lambda session_id, found: self.lost.append((session_id, found)), foreign=self.told.append,
        )  # fmt: skip
        return self

    def run(self) -> None:
        self.running = asyncio.create_task(self.store.run())

    async def kill(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        await self.local.close()
        await self.shared.close()

    async def take(self, session_id: bytes = SESSION) -> StoredSession:
        """Begin a takeover: what the store has is what this node's next commit compares with."""
        stored = await self.store.load(session_id)
        assert stored is not None
        self.store.take(stored)
        return stored

    async def in_etcd(self) -> StoredSession:
        found = await self.shared.load(SESSION)
        assert found is not None
        return found

    async def lines_in_etcd(self) -> list[bytes]:
        return [line for _, line in await self.shared.outbox(1000)]


@contextlib.asynccontextmanager
async def nodes(etcd: Cluster, folder: Path, *names: str, **changes: object) -> AsyncIterator[list[Node]]:
    cluster = etcd.config().cluster
    started = [await Node(etcd, folder, name, cluster, **changes).start() for name in names]
    try:
        yield started
    finally:
        for node in started:
            await node.kill()


@contextlib.asynccontextmanager
async def with_a_lost_answer(
    etcd: Cluster, folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Node, Proxy]]:
    """gw1 after its first commit and one that took place, but whose answer did not come before the lease ended."""
    async with Proxy(etcd.members[0].client) as proxy:
        quick = {"endpoints": [proxy.endpoint], "timeout_ms": 500, "attempt_ms": 250}
        async with nodes(etcd, folder, "gw1", **quick) as (node,):
            await node.store.commit(owned(1))
            until = clock.boot_time() + SECOND
            node.store._give_up_at = lambda: Instant(until)
            with monkeypatch.context() as patch:
                before_each_change(node.shared.client, lambda: setattr(proxy, "swallowing", True), patch)
                with pytest.raises(CommitUnknown):
                    await node.store.commit(write)
            yield node, proxy


async def flushed(node: Node) -> None:
    async with asyncio.timeout(20):
        await node.store.flushed()
