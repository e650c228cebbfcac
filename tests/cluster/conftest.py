"""What the tests with real clusters share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from jumpvpn.lab import LabError
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.topology import Shape
from jumpvpn.lab.cluster.traces import demand_tlc


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    """Without these nothing here can be shown: a failure, not a skip, says so."""
    assert shutil.which("etcd"), "etcd is missing: apt-get install etcd-server"
    assert shutil.which("cc"), "a C compiler is missing: apt-get install gcc libc6-dev"
    try:
        demand_tlc()
        with ClusterLab(Shape(gateways=1)) as lab:
            missing = lab.missing_tun()
    except LabError as error:
        missing = str(error)
    assert missing is None, missing


@pytest.fixture(scope="module")
def lab() -> Iterator[ClusterLab]:
    """A network with three gateways' places and one more client, a store that can be slow, and no process in it."""
    with ClusterLab(Shape(gateways=3, crowd=1), slow_store=True, seed=5) as lab:
        yield lab
