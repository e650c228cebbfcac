"""A store that was restored from a backup is found out, and nothing is decided on what it has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from etcd_lab import Cluster
from store_writes import SESSION, owned

from jumpvpn.runtime.stores.base import CommitResult, StoreUnavailable
from jumpvpn.runtime.stores.etcd.leases import EtcdLeases
from jumpvpn.runtime.stores.etcd.remembered import Remembered, RevisionFile
from jumpvpn.runtime.stores.etcd.store import EtcdStore


@pytest.mark.timeout(120)
async def test_a_restored_backup_is_refused_by_running_and_by_restarted_gateways(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    backup, data = tmp_path / "backup", tmp_path / "m0"
    config = cluster.config(remembered=tmp_path / "store-revision", timeout_ms=10_000)
    try:
        cluster.start()
        store = await EtcdStore.open(config)
        await store.commit(owned(1))
        cluster.stop()
        shutil.copytree(data, backup)
        cluster.start()
        for version in range(2, 6):
            assert await store.commit(owned(version)) is CommitResult.COMMITTED
        cluster.stop()
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        cluster.start()
        words = r"went back from revision \d+ to \d+: it was restored from a backup.*remove at each .*store-revision"
        with pytest.raises(StoreUnavailable, match=words):
            await store.commit(owned(6))
        other = await EtcdStore.open(cluster.config("gw2", cluster=config.cluster))
        for version in range(2, 30):  # the revision rises above the one remembered
            await other.commit(owned(version))
        for question in (store.load(SESSION), EtcdLeases(store.client).grant(5)):
            with pytest.raises(StoreUnavailable, match=words):
                await question
        await store.close()
        with pytest.raises(StoreUnavailable, match=words):
            await EtcdStore.open(config)
        (tmp_path / "store-revision").unlink()
        again = await EtcdStore.open(config)
        assert [found.version for found in await again.load_all()] == [29]
        await again.close()
        await other.close()
    finally:
        cluster.stop()


async def test_the_newest_revision_outlives_the_process(etcd: Cluster, tmp_path: Path) -> None:
    file = RevisionFile(tmp_path / "store-revision")
    store = await EtcdStore.open(etcd.config(remembered=file.path))
    for version in (1, 2):
        await store.commit(owned(version))
    revision = store.client.revision
    await store.close()
    assert file.read().revision == revision
    assert (await _opened(etcd, file)).client.revision >= revision
    file.write(Remembered(file.read().cluster, revision + 1_000_000))
    with pytest.raises(StoreUnavailable, match="went back"):
        await _opened(etcd, file)
    file.write(Remembered(cluster=17, revision=1))
    with pytest.raises(StoreUnavailable, match=r"is another cluster .* than the one used before \(id 11\)"):
        await _opened(etcd, file)


async def test_a_damaged_file_is_named(etcd: Cluster, tmp_path: Path) -> None:
    file = RevisionFile(tmp_path / "store-revision")
    for damage in (b"", b"\xff", b"[1]", b'{"revision": "x"}'):
        file.path.write_bytes(damage)
        with pytest.raises(StoreUnavailable, match="store-revision is damaged; if etcd was not restored"):
            await _opened(etcd, file)


async def test_what_cannot_be_remembered_is_not_asked_for(etcd: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    store = await EtcdStore.open(etcd.config(remembered=folder / "store-revision"))
    folder.rename(tmp_path / "moved")
    await store.commit(owned(1))
    store.client._written_at -= 3600
    before = store.client.traffic.reads
    with pytest.raises(StoreUnavailable, match=r"cannot write .*store-revision: No such file"):
        await store.load(SESSION)
    assert store.client.traffic.reads == before
    (tmp_path / "moved").rename(folder)
    assert await store.load(SESSION) is not None
    await store.close()


async def _opened(etcd: Cluster, file: RevisionFile) -> EtcdStore:
    store = await EtcdStore.open(etcd.config(remembered=file.path, timeout_ms=2_000))
    await store.close()
    return store
