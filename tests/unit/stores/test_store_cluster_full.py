"""An etcd whose quota is used up refuses leases and shared changes; with room again the same process goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cluster_nodes import flushed, nodes
from etcd_lab import Cluster, put
from store_writes import SESSION, owned

from jumpvpn.runtime.stores.base import CommitResult, CommitUnknown, StoreUnavailable
from jumpvpn.runtime.stores.etcd.client import Client
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases

QUOTA = 1 << 20
JUNK = b"/junk/"
FULL = r"no space left.*quota-backend-bytes.*etcdctl alarm disarm"


async def fill(client: Client) -> None:
    """Put what is not of the cluster there until the quota is used up. Raises StoreUnavailable: that it is."""
    for number in range(500):  # etcd knows its size ten times a second
        await put(client, JUNK + b"%d" % number, bytes(200_000))


@pytest.mark.timeout(90)
async def test_a_gateway_goes_on_by_itself_once_a_full_store_has_room(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, options=(f"--quota-backend-bytes={QUOTA}",))
    try:
        cluster.start()
        async with nodes(cluster, tmp_path, "gw1") as (node,):
            leases = EtcdLeases(node.shared.client)
            lease = await leases.grant(60)
            assert await leases.hold(lease, "gw1", b"1")
            assert await node.store.commit(owned(1)) is CommitResult.COMMITTED
            node.run()
            with pytest.raises(StoreUnavailable, match=FULL):
                await fill(node.shared.client)
            for refused in (
                leases.beat(lease, "gw1", b"2"),
                leases.grant(60),
                node.store.commit(owned(2, shared=True)),
            ):
                with pytest.raises(StoreUnavailable, match=FULL) as raised:
                    await refused
                assert not isinstance(raised.value, CommitUnknown)
            assert await node.store.commit(owned(2)) is CommitResult.COMMITTED, "what the node may decide alone goes on"
            assert node.store.behind[0] == 1
            stored = await node.shared.load(SESSION)
            assert stored is not None
            assert stored.version == 1
            await asyncio.to_thread(cluster.make_room, JUNK)
            await leases.beat(lease, "gw1", b"3")
            await leases.grant(60)
            await flushed(node)
            assert (await node.in_etcd()).version == 2
            assert await node.store.commit(owned(3, shared=True)) is CommitResult.COMMITTED
            assert node.running is not None
            assert not node.running.done()
    finally:
        cluster.stop()
