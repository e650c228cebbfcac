"""Two gateways and etcd in namespaces on one segment, from the files of ``jumpvpn cluster init``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.scale_nodes import Gateway, Usage
from jumpvpn.lab import LabError
from jumpvpn.lab.namespaces import NamespaceSet
from jumpvpn.runtime.keys import public_key_of

PLACE = "here"  # where the clients are, and the segment
GATEWAYS = ("gw1", "gw2")
PORT = 51900
SOURCES = tuple(f"10.90.3.{number}" for number in range(1, 17))  # gateways bound what comes from one source address
_ADDRESS = {"gw1": "10.90.1.1", "gw2": "10.90.1.2"}
_MEMBERS = {"etcd1": "10.90.2.1", "etcd2": "10.90.2.2", "etcd3": "10.90.2.3"}
_SERVE_S = 60.0
_SERVING = "serving client traffic securely"

_TABLES = """\
[cluster]
name = "scale"
etcd = [{etcd}]
ca = "{files}/ca.pem"
certificate = "{files}/etcd-client.pem"
key = "{files}/etcd-client.key"
key_file = "{files}/cluster.key"
advertise = "{address}:{port}"
lease = "{lease}"

[announce]
{announce}
"""


@dataclass(slots=True)
class Cluster:
    """Use as ``async with``; ``gateways`` are started by whoever uses it, etcd serves already."""

    devices: str
    members: int = 1
    lease: str = "5s"
    announce: str = "none"
    namespaces: NamespaceSet = field(init=False)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    _etcd: dict[str, Process] = field(default_factory=dict)

    async def __aenter__(self) -> Cluster:
        if shutil.which("etcd") is None:
            raise LabError("the cluster's store needs etcd; install: apt-get install etcd-server")
        self.namespaces = NamespaceSet.create([PLACE, *GATEWAYS, *self._names])
        try:
            self._cable()
            await asyncio.to_thread(self._init)
            for name in self._names:
                await self._start_member(name)
            await self._serves()
            for name in GATEWAYS:
                self._gateway(name)
        except BaseException:
            self.namespaces.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for gateway in self.gateways.values():
                await gateway.stop()
            for process in self._etcd.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        finally:
            self.namespaces.close()

    @property
    def directory(self) -> Path:
        """Where all files are."""
        return self.namespaces.directory

    def etcd_usage(self) -> list[Usage]:
        """What each etcd server has used."""
        return [Usage.of(process.pid) for process in self._etcd.values()]

    def etcd_bytes(self) -> int:
        """The size of the first server's database file."""
        return (self.directory / "etcd1" / "member" / "snap" / "db").stat().st_size

    @property
    def endpoints(self) -> tuple[str, ...]:
        """HOST:PORT of the etcd servers."""
        return tuple(f"{_MEMBERS[name]}:2379" for name in self._names)

    def files(self, gateway: str) -> Path:
        """What ``jumpvpn cluster init`` made for a gateway."""
        return self._files / f"gateway-{gateway}"

    @property
    def _names(self) -> Sequence[str]:
        return tuple(_MEMBERS)[: self.members]

    @property
    def _files(self) -> Path:
        return self.directory / "cluster"

    def _cable(self) -> None:
        lines = ["ip link set lo up", "ip link add br0 type bridge forward_delay 0", "ip link set br0 up"]
        lines += [f"ip address add {address}/16 dev br0" for address in SOURCES]
        hosts = {**_ADDRESS, **{name: _MEMBERS[name] for name in self._names}}  # servers check each other's addresses
        for name in hosts:
            peer = f"name eth0 netns {self.namespaces.path(name)}"
            lines += [f"ip link add {name} type veth peer {peer}", f"ip link set {name} master br0 up"]
        self.namespaces.run(PLACE, ["sh", "-ec", "\n".join(lines)])
        for name, address in hosts.items():
            own = ["ip link set lo up", f"ip address add {address}/16 dev eth0", "ip link set eth0 up"]
            self.namespaces.run(name, ["sh", "-ec", "\n".join(own)])

    def _init(self) -> None:
        argv = [sys.executable, "-P", "-m", "jumpvpn.cli.main", "cluster", "init", str(self._files), "--name", "scale"]
        for name in GATEWAYS:
            argv += ["--gateway", f"{name}={_ADDRESS[name]}:{PORT}"]
        for name in self._names:
            argv += ["--etcd", f"{name}={_MEMBERS[name]}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"jumpvpn cluster init: {done.stderr.strip()[-500:]}")

    async def _start_member(self, name: str) -> None:
        made = self._files / f"etcd-{name}"
        text = (made / "etcd.yaml").read_text(encoding="utf-8")
        moved = re.sub(r"/var/lib/etcd/\S+?(?=\")", str(self.directory / name), text).replace("/etc/etcd", str(made))
        config = made / "scale.yaml"
        config.write_text(moved, encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        with (self.directory / f"{name}.log").open("ab") as log:
            self._etcd[name] = await self.namespaces.exec_async(
                name, ["etcd", f"--config-file={config}"], stdin=DEVNULL, stdout=log, stderr=log, env=environment
            )

    async def _serves(self) -> None:
        """Wait until every server says so in its log."""
        give_up = time.monotonic() + _SERVE_S
        for name in self._names:
            log = self.directory / f"{name}.log"
            while _SERVING not in log.read_text(encoding="utf-8", errors="replace"):
                if time.monotonic() > give_up or self._etcd[name].returncode is not None:
                    raise LabError(f"{name} does not serve: {log.read_text(encoding='utf-8')[-800:]}")
                await asyncio.sleep(0.05)

    def _gateway(self, name: str) -> None:
        files = self.files(name)
        etcd = ", ".join(f'"{endpoint}"' for endpoint in self.endpoints)
        announce = 'mode = "none"' if self.announce == "none" else f'mode = "{self.announce}"\ninterface = "eth0"'
        more = _TABLES.format(
            etcd=etcd, files=files, address=_ADDRESS[name], port=PORT, lease=self.lease, announce=announce
        )
        gateway = Gateway(self.namespaces, name, self.directory, name, PORT, self.devices, more, address=_ADDRESS[name])
        shutil.copy(files / "gateway.key", self.directory / f"{name}.key")
        gateway.key = public_key_of(self.directory / f"{name}.key")
        gateway.write()
        self.gateways[name] = gateway
