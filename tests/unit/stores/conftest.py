"""What the tests of the stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from etcd_lab import Cluster

from jumpvpn.runtime.stores.etcd.store import EtcdStore


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One etcd server; each test has a name space of its own in it."""
    cluster = Cluster(tmp_path_factory.mktemp("etcd"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest_asyncio.fixture
async def store(etcd: Cluster) -> AsyncIterator[EtcdStore]:
    """A gateway's connection to the name space of one test."""
    opened = await EtcdStore.open(etcd.config())
    yield opened
    await opened.close()
