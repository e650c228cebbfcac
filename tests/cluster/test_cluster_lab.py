"""The network of the cluster's lab: who reaches whom, and that each cut stops what it says and nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jumpvpn.lab import LabError
from jumpvpn.lab.cluster import configuration
from jumpvpn.lab.cluster.clocks import LyingClock
from jumpvpn.lab.cluster.lab import ClusterLab
from jumpvpn.lab.cluster.store import EtcdServers
from jumpvpn.lab.cluster.topology import MEMBERS, gateway_inside, gateway_public, gateway_store, member_address
from jumpvpn.lab.topology import SERVER_INNER

pytestmark = pytest.mark.netns

# For each line "address" one UDP datagram goes there; every datagram that comes is printed.
TALKER = """
import select, socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.bind(("0.0.0.0", 7200))
print("ready", flush=True)
while True:
    for source in select.select([link, sys.stdin], [], [])[0]:
        if source is link:
            print(link.recvfrom(64)[1][0], flush=True)
        else:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            link.sendto(b"x", (line.strip(), 7200))
"""
PATIENT_S, SHORT_S = 5.0, 0.3


class Talker:
    """A host that sends datagrams when it is told to and says what it hears."""

    def __init__(self, lab: ClusterLab, host: str) -> None:
        argv = [sys.executable, "-c", TALKER]
        self.process = lab.exec(host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.heard(PATIENT_S) == "ready"

    def say(self, address: str) -> None:
        self.process.stdin.write(f"{address}\n".encode())

    def heard(self, within_s: float) -> str | None:
        ready, _, _ = select.select([self.process.stdout], [], [], within_s)
        return self.process.stdout.readline().decode().strip() if ready else None


@pytest.fixture(scope="module")
def talkers(lab: ClusterLab) -> dict[str, Talker]:
    return {host: Talker(lab, host) for host in ("gw1", "gw2", "etcd1", "etcd2", "server", "client", "c1")}


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").heal()


def reaches(talkers: dict[str, Talker], way: str, within_s: float = PATIENT_S) -> bool:
    """Whether one datagram gets there in time."""
    source, target, address = WAYS[way]
    talkers[source].say(address)
    return talkers[target].heard(within_s) is not None


WAYS = {
    "gateway to etcd": ("gw1", "etcd1", member_address("etcd1")),
    "etcd to gateway": ("etcd1", "gw1", gateway_store("gw1")),
    "gateway to gateway, store": ("gw1", "gw2", gateway_store("gw2")),
    "gateway to gateway, inside": ("gw1", "gw2", gateway_inside("gw2")),
    "gateway to gateway, outside": ("gw2", "gw1", gateway_public("gw1")),
    "server to gateway": ("server", "gw1", gateway_inside("gw1")),
    "gateway to server": ("gw2", "server", SERVER_INNER),
    "etcd to etcd": ("etcd1", "etcd2", member_address("etcd2")),
    "roaming client to gateway": ("client", "gw1", gateway_public("gw1")),
    "other client to gateway": ("c1", "gw2", gateway_public("gw2")),
}


@pytest.mark.parametrize("way", WAYS)
def test_everybody_reaches_whom_he_should(talkers: dict[str, Talker], way: str) -> None:
    assert reaches(talkers, way)


CUTS = {
    "store": (lambda lab: lab.cut_store("gw1"), {"gateway to etcd", "etcd to gateway"}),
    "store up": (lambda lab: lab.cut_store("gw1", way="up"), {"gateway to etcd"}),
    "store down": (lambda lab: lab.cut_store("gw1", way="down"), {"etcd to gateway"}),
    "clients": (lambda lab: lab.cut_clients("gw1"), {"roaming client to gateway"}),
    "clients down": (lambda lab: lab.cut_clients("gw1", ("client", "c1"), way="down"), set()),
    "peers": (lambda lab: lab.cut(["gw1"], ["gw2"]), {way for way in WAYS if way.startswith("gateway to gateway")}),
    "members": (lambda lab: lab.cut(["etcd1"], ["etcd2", "etcd3"]), {"etcd to etcd"}),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_stops_what_it_names_and_nothing_else(lab: ClusterLab, talkers: dict[str, Talker], name: str) -> None:
    make, stopped = CUTS[name]
    one = make(lab)
    assert [way for way in stopped if reaches(talkers, way, SHORT_S)] == []
    assert [way for way in WAYS if way not in stopped and not reaches(talkers, way)] == []
    lab.heal(one)
    assert [way for way in stopped if not reaches(talkers, way)] == []


def test_arp_is_cut_too(lab: ClusterLab) -> None:
    """A neighbour that was forgotten is not found again across a cut, so that nothing is announced across it either."""
    lab.cut(["gw1"], ["gw2"])
    lab.run("gw1", ["ip", "neigh", "flush", "all"])
    assert lab.run("gw1", ["ping", "-c1", "-W1", gateway_inside("gw2")], check=False).returncode != 0
    assert "lladdr" not in lab.run("gw1", ["ip", "neigh", "show", gateway_inside("gw2")]).stdout


def test_the_server_asks_for_inner_addresses_itself(lab: ClusterLab) -> None:
    route = lab.run("server", ["ip", "route", "get", "10.77.0.2"]).stdout
    assert "via" not in route
    assert "dev eth0 src 10.99.0.2" in route


def test_cuts_that_cannot_be_are_refused(lab: ClusterLab) -> None:
    with pytest.raises(LabError, match="no cable of 'client'"):
        lab.cut(["client"], ["gw1"])
    with pytest.raises(LabError, match="no direction"):
        lab.cut_store("gw1", way="sideways")
    with ClusterLab() as plain, pytest.raises(LabError, match="slow_store"):
        plain.impair_store(delay_ms=1.0)


def test_a_lying_clock_jumps_alone(tmp_path: Path) -> None:
    clock = LyingClock(tmp_path, "node")
    script = "import time\nwhile input():\n print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)"
    environment = os.environ | clock.environment
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def tell() -> tuple[float, float]:
            process.stdin.write("x\n")
            process.stdin.flush()
            wall, boot = process.stdout.readline().split()
            return float(wall), float(boot)

        first = tell()
        clock.set(-3600.0)
        second = tell()
        clock.set(0.0)
        third = tell()
        process.kill()
    passed = second[1] - first[1]
    assert 0 <= passed < 3600
    assert second[0] == pytest.approx(first[0] + passed - 3600, abs=0.01)
    assert third[0] == pytest.approx(first[0] + third[1] - first[1], abs=0.01)


@pytest.fixture
async def store(lab: ClusterLab) -> AsyncIterator[EtcdServers]:
    files = lab.directory / "cluster"
    if not files.exists():
        await asyncio.to_thread(configuration.init, lab.shape, files)
    servers = EtcdServers(lab, files)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.close()


async def test_etcd_survives_its_leader_and_the_observer_sees_it(lab: ClusterLab, store: EtcdServers) -> None:
    for harm in ("kill", "pause", "cut"):
        leader = store.leader
        if harm == "kill":
            await store.kill_member(leader)
        elif harm == "pause":
            store.pause_member(leader)
        else:
            one = lab.cut([leader], [member for member in MEMBERS if member != leader])
        await store.until(lambda old=leader: store.leader not in ("", old))
        if harm == "kill":
            await store.start_member(leader)
        elif harm == "pause":
            store.resume_member(leader)
        else:
            lab.heal(one)
        await store.until(lambda: all(member.serves for member in store.members.values()))
    await store.serves()


async def test_a_store_without_a_majority_serves_nobody(store: EtcdServers) -> None:
    for member in MEMBERS[:2]:
        store.pause_member(member)
    await store.until(lambda: not any(member.serves for member in store.members.values()))
    for member in MEMBERS[:2]:
        store.resume_member(member)
    await store.serves()
