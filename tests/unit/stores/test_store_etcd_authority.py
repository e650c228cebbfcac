"""Another authority takes the place of the first one, step by step as docs/cluster.md says; no gateway stops for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from etcd_lab import Authority, Cluster
from store_writes import owned

from jumpvpn.runtime.stores.base import CommitResult, StoreUnavailable
from jumpvpn.runtime.stores.etcd.store import EtcdStore


class Swapped:
    """One etcd server, and the files that it and its gateways read."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder)
        (folder / "second").mkdir()
        self.other = Authority(folder / "second", "etcd")
        self.both = self.cluster.authority.file.read_bytes() + self.other.file.read_bytes()

    def trust(self, authorities: bytes) -> None:
        """Put these into ca.pem of the server, which reads it when it starts, and of the gateways."""
        self.cluster.authority.file.write_bytes(authorities)
        self.cluster.stop()
        self.cluster.start()

    def hand_out(self) -> None:
        """Copy certificates of the other authority over the old ones."""
        for name, files in (("server", self.cluster.server), ("gateway", self.cluster.gateway)):
            fresh = self.other.issue(name)
            shutil.copy(fresh.certificate, files.certificate)
            shutil.copy(fresh.key, files.key)


@pytest.mark.timeout(90)
async def test_a_running_gateway_follows_a_change_of_the_authority(tmp_path: Path) -> None:
    swapped = Swapped(tmp_path)
    cluster = swapped.cluster
    outside = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-outside"))  # a node that was left out
    try:
        cluster.start()
        store = await EtcdStore.open(cluster.config(timeout_ms=15_000, attempt_ms=1_000))
        assert await store.commit(owned(1)) is CommitResult.COMMITTED
        swapped.trust(swapped.both)
        assert await store.commit(owned(2)) is CommitResult.COMMITTED
        swapped.hand_out()
        assert await store.commit(owned(3)) is CommitResult.COMMITTED
        swapped.trust(swapped.other.file.read_bytes())
        assert await store.commit(owned(4)) is CommitResult.COMMITTED
        await store.close()
        late = cluster.config(
            ca=outside / "etcd-ca.pem", certificate=outside / "gateway.pem", key=outside / "gateway.key",
            timeout_ms=600, attempt_ms=300,
        )  # fmt: skip
        with pytest.raises(StoreUnavailable, match=r"its certificate is not accepted.*check .*etcd-ca\.pem"):
            await EtcdStore.open(late)
    finally:
        cluster.stop()
