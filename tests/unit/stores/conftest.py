"""What the tests of the stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_lab import Cluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One etcd server; each test has a name space of its own in it."""
    cluster = Cluster(tmp_path_factory.mktemp("etcd"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
