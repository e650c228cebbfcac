"""Real etcd servers on loopback with mutual TLS, for the tests of the store."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import itertools
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jumpvpn.runtime.stores.etcd import jumpvpn_etcd_pb2 as pb
from jumpvpn.runtime.stores.etcd import operations
from jumpvpn.runtime.stores.etcd.client import RANGE, REVOKE, TXN, Client, Method
from jumpvpn.runtime.stores.etcd.config import EtcdConfig
from jumpvpn.runtime.stores.etcd.operations import delete

START_SECONDS = 30.0  # for a member on a busy machine
DAY = datetime.timedelta(days=1)
_clusters = itertools.count(1)


@dataclass(frozen=True)
class Pem:
    """Files of one certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA that issues certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        ca = x509.BasicConstraints(ca=True, path_length=0)
        made = _signed(self._name, self._name, self._key, self._key, (now - DAY, now + DAY), [ca])
        self.file = folder / f"{name}-ca.pem"
        self.file.write_bytes(made.public_bytes(Encoding.PEM))

    def issue(self, name: str, ends: datetime.timedelta = DAY) -> Pem:
        """A certificate for both ends of a connection that ends so long from now (negative: in the past)."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        extensions: list[x509.ExtensionType] = [
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            x509.ExtendedKeyUsage(usages),
        ]
        made = _signed(subject, self._name, key, self._key, (now - 2 * DAY, now + ends), extensions)
        pem = Pem(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pem.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        pem.key.touch(mode=0o600)
        pem.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pem


def _signed(subject, issuer, key, by, dates, extensions):  # type: ignore[no-untyped-def]
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), *dates)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(by, hashes.SHA256())


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Member:
    """One etcd process."""

    name: str
    client: int
    peer: int
    metrics: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client}"

    def page(self, path: str) -> str:
        """What its HTTP port says; empty if it does not listen."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    @property
    def leads(self) -> bool:
        return "\netcd_server_is_leader 1\n" in self.page("/metrics")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Cluster:
    """Members with one CA."""

    folder: Path
    size: int = 1
    options: Sequence[str] = ()
    members: list[Member] = field(init=False)

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder, "etcd")
        self.server = self.authority.issue("server")
        self.gateway = self.authority.issue("gateway")
        ports = free_ports(3 * self.size)
        self.members = [Member(f"m{n}", *ports[3 * n : 3 * n + 3]) for n in range(self.size)]

    def start(self) -> None:
        """Start all members and wait until they serve."""
        for member in self.members:
            self._start(member)
        give_up = time.monotonic() + START_SECONDS
        for member in self.members:
            while '"true"' not in member.page("/health"):
                assert member.process is not None
                if member.process.poll() is not None or time.monotonic() > give_up:
                    raise AssertionError((self.folder / f"{member.name}.log").read_text()[-2000:])
                time.sleep(0.02)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.kill()

    def config(self, node: str = "gw1", **changes: object) -> EtcdConfig:
        """For a name space that no other call of this returned; ``cluster=`` names one."""
        values: dict[str, object] = {
            "endpoints": [member.endpoint for member in self.members],
            "ca": self.authority.file,
            "certificate": self.gateway.certificate,
            "key": self.gateway.key,
            "cluster": f"test-{next(_clusters)}",
            "node": node,
        }
        return EtcdConfig(**{**values, **changes})  # type: ignore[arg-type]

    @staticmethod
    def deletion(key: bytes) -> tuple[Method, pb.TxnRequest]:
        """For ``Client.ask``."""
        return TXN, pb.TxnRequest(success=[delete(key)])

    @staticmethod
    async def lease_of(client: Client, key: bytes) -> int:
        """Under which lease a key is; 0 = none."""
        answer = await client.ask(RANGE, pb.RangeRequest(key=key))
        return int(answer.kvs[0].lease)

    @staticmethod
    async def revoke(client: Client, lease: int) -> None:
        """End a lease."""
        await client.ask(REVOKE, pb.LeaseRevokeRequest(id=lease))

    def make_room(self, prefix: bytes) -> None:
        """What the administrator of a full store does: etcdctl's del, compact, defrag of each member, alarm disarm."""
        ends = {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + bytes([prefix[-1] + 1]))}
        revision = self._post(self.members[0], "kv/deleterange", ends)["header"]["revision"]
        self._post(self.members[0], "kv/compaction", {"revision": revision, "physical": True})
        for member in self.members:
            self._post(member, "maintenance/defragment", {})
        for alarm in self._post(self.members[0], "maintenance/alarm", {"action": "GET"}).get("alarms", []):
            self._post(self.members[0], "maintenance/alarm", {**alarm, "action": "DEACTIVATE"})

    def _post(self, member: Member, method: str, body: dict[str, Any]) -> Any:
        """Ask over etcd's JSON gateway."""
        context = ssl.create_default_context(cafile=self.authority.file)
        context.load_cert_chain(self.gateway.certificate, self.gateway.key)
        request = urllib.request.Request(f"https://{member.endpoint}/v3/{method}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)

    def _start(self, member: Member) -> None:
        peers = ",".join(f"{m.name}=https://127.0.0.1:{m.peer}" for m in self.members)
        tls = (
            ("cert-file", self.server.certificate),
            ("key-file", self.server.key),
            ("trusted-ca-file", self.authority.file),
        )
        command = [
            "etcd", f"--name={member.name}", f"--data-dir={self.folder / member.name}",
            f"--listen-client-urls=https://{member.endpoint}", f"--advertise-client-urls=https://{member.endpoint}",
            f"--listen-peer-urls=https://127.0.0.1:{member.peer}",
            f"--initial-advertise-peer-urls=https://127.0.0.1:{member.peer}", f"--initial-cluster={peers}",
            f"--listen-metrics-urls=http://127.0.0.1:{member.metrics}", "--client-cert-auth", "--peer-client-cert-auth",
            *(f"--{kind}{name}={path}" for kind in ("", "peer-") for name, path in tls), *self.options,
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with (self.folder / f"{member.name}.log").open("wb") as log:
            member.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Proxy:
    """Forwards TCP to ``port``; while ``swallowing`` the server's answers are lost, while ``deaf`` the requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.swallowing = False
        self.deaf = False

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.reset()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def reset(self) -> None:
        """Forward again, on new connections: those that lost bytes are closed."""
        self.swallowing = self.deaf = False
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, there}
        for source, sink, answers in ((reader, there, False), (there_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self.swallowing if answers else self.deaf:
                    continue
                sink.write(data)
                await sink.drain()
        sink.close()


async def put(client: Client, key: bytes, value: bytes) -> None:
    """Set a key, as anybody with a certificate can."""
    await client.ask(TXN, pb.TxnRequest(success=[operations.put(key, value)]))


def before_each_change(client: Client, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``act`` just before ``client`` sends a transaction that would change something."""
    original = client.once

    async def once(method: Any, request: Any, deadline: float) -> Any:
        if method is TXN and request.compare:
            act()
        return await original(method, request, deadline)

    monkeypatch.setattr(client, "once", once)


async def compact(client: Client, revision: int) -> None:
    """Let etcd forget everything before ``revision``."""
    number, packed = revision, bytearray(b"\x08")  # field 1, varint
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    call = client.channel.unary_unary("/etcdserverpb.KV/Compact", bytes, bytes)
    await call(bytes(packed) + b"\x10\x01", timeout=5)  # field 2: wait until it is done
