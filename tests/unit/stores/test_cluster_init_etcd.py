"""The files of ``jumpvpn cluster init`` start a real etcd cluster that lets in its gateways and nobody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from etcd_lab import START_SECONDS

from jumpvpn.cli import cluster_files
from jumpvpn.cli.cluster_plan import MEMBER_PORTS, Member, Plan, read_plan
from jumpvpn.cli.cluster_templates import ETCD_DATA, ETCD_DIR
from jumpvpn.config import load_gateway
from jumpvpn.runtime.stores.base import StoreUnavailable
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.reach import answering
from jumpvpn.runtime.stores.etcd.store import EtcdStore


@dataclass
class Running:
    """Three members on loopback, started from the files as an administrator would install them."""

    directory: Path
    plan: Plan
    said_at_start: list[str]

    def config(self, folder: Path | None = None) -> EtcdConfig:
        config = load_gateway((folder or self.directory / "gateway-gw1") / "gateway.toml")
        cluster = config.cluster
        assert cluster is not None
        return EtcdConfig(cluster.etcd, cluster.ca, cluster.certificate, cluster.key, cluster.name, config.name)


def runs_of_ports(count: int) -> list[int]:
    """First ports of ``count`` free runs of ``MEMBER_PORTS`` on loopback."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            first = any_port.getsockname()[1]
        wanted = range(first, first + MEMBER_PORTS)
        if any(abs(first - other) < MEMBER_PORTS for other in found) or wanted[-1] > 65535:
            continue
        sockets = [socket.socket() for _ in wanted]
        try:
            for one, port in zip(sockets, wanted, strict=True):
                one.bind(("127.0.0.1", port))
            found.append(first)
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    return found


def installed(directory: Path, member: Member) -> Path:
    """``etcd.yaml`` with the paths of this test instead of the system's."""
    text = (directory / member.folder / "etcd.yaml").read_text()
    text = text.replace(str(ETCD_DIR), str(directory / member.folder))
    path = directory.parent / f"{member.name}.yaml"
    path.write_text(text.replace(str(ETCD_DATA), str(directory.parent / f"data-{member.name}")))
    return path


def start(directory: Path, member: Member) -> subprocess.Popen[bytes]:
    (directory.parent / f"data-{member.name}").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    variable, _ = (directory / member.folder / "etcd.default").read_text().splitlines()[-1].split("=")
    environment[variable] = str(installed(directory, member))
    with (directory.parent / f"{member.name}.log").open("wb") as log:
        return subprocess.Popen(["etcd"], stdout=log, stderr=log, env=environment)


def is_healthy(member: Member) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{member.port + 2}/health", timeout=2) as answer:
            return b'"true"' in answer.read()
    except OSError:
        return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("cluster-init")
    members = [f"m{n}=127.0.0.1:{port}" for n, port in enumerate(runs_of_ports(3))]
    plan = read_plan("eu", ["gw1=192.0.2.1:51900", "gw2=192.0.2.2:51900"], members)
    cluster_files.create(base / "eu", plan)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [start(base / "eu", member) for member in plan.members]
        give_up = time.monotonic() + START_SECONDS
        for member, process in zip(plan.members, processes, strict=True):
            while not is_healthy(member):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise AssertionError((base / f"{member.name}.log").read_text()[-2000:])
                time.sleep(0.02)
        yield Running(base / "eu", plan, [(base / f"{member.name}.log").read_text() for member in plan.members])
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def opened(config: EtcdConfig) -> None:
    await (await EtcdStore.open(config)).close()


@pytest.mark.parametrize("gateway", ["gw1", "gw2"])
def test_every_member_lets_every_gateway_in(running: Running, gateway: str) -> None:
    config = running.config(running.directory / f"gateway-{gateway}")
    for endpoint in config.endpoints:
        asyncio.run(opened(replace(config, endpoints=[endpoint])))


def test_members_know_each_other_only_by_certificates(running: Running) -> None:
    for log in running.said_at_start:
        assert "established TCP streaming connection with remote peer" in log
        assert "rejected connection" not in log


def test_a_stranger_is_not_let_in(running: Running, tmp_path: Path) -> None:
    cluster_files.create(tmp_path / "other", running.plan)
    stranger = tmp_path / "other/gateway-gw1"
    shutil.copy(running.directory / "ca/ca.pem", stranger / "ca.pem")
    with pytest.raises(StoreUnavailable, match="does not accept our certificate"):
        asyncio.run(opened(running.config(stranger)))


def test_a_member_that_a_stranger_issued_is_not_trusted(running: Running, tmp_path: Path) -> None:
    cluster_files.create(tmp_path / "other", running.plan)
    folder = tmp_path / "gateway"
    shutil.copytree(running.directory / "gateway-gw1", folder)
    shutil.copy(tmp_path / "other/ca/ca.pem", folder / "ca.pem")
    with pytest.raises(StoreUnavailable, match="its certificate is not accepted"):
        asyncio.run(opened(running.config(folder)))


def test_people_are_told_which_members_answer(running: Running, tmp_path: Path) -> None:
    config = running.config()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        silent = f"127.0.0.1:{nobody.getsockname()[1]}"
        found = asyncio.run(answering(replace(config, endpoints=[*config.endpoints, silent])))
    assert found == (*((endpoint, True) for endpoint in config.endpoints), (silent, False))
    cluster_files.create(tmp_path / "other", running.plan)
    untrusted = replace(config, ca=tmp_path / "other/ca/ca.pem")
    assert asyncio.run(answering(untrusted)) == tuple((endpoint, False) for endpoint in config.endpoints)
    assert not any(reachable for _, reachable in asyncio.run(answering(replace(config, key=tmp_path / "none"))))


def test_renewed_certificates_are_served_without_a_restart(running: Running, tmp_path: Path) -> None:
    old = tmp_path / "gateway"
    shutil.copytree(running.directory / "gateway-gw1", old)
    member = running.plan.members[0]
    before = served(running, member)
    cluster_files.renew(running.directory, None)
    assert served(running, member) != before
    for folder in (old, running.directory / "gateway-gw1"):  # both are good until the old one ends
        asyncio.run(opened(running.config(folder)))


def served(running: Running, member: Member) -> str:
    """The certificate that a member shows."""
    context = ssl.create_default_context(cafile=running.directory / "ca/ca.pem")
    folder = running.directory / "gateway-gw1"
    context.load_cert_chain(folder / "etcd-client.pem", folder / "etcd-client.key")
    with (
        socket.create_connection((member.host, member.port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=member.host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)
