"""Real TUN interfaces with their offloads: the kernel cuts, the plane joins, and the bytes are the same."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from typing import Literal

import pytest

from jumpvpn._native import Plane, generate_private_key, public_key
from native.harness import wait_for
from netns.isolated import in_namespace, sh

pytestmark = pytest.mark.netns

# Runs in the gateway's inner namespace: takes one TCP stream, answers with its digest, echoes UDP on the same port.
SERVER = """
import hashlib, socket, sys, threading
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
tcp, udp = socket.socket(family), socket.socket(family, socket.SOCK_DGRAM)
tcp.bind((sys.argv[1], 9000)); udp.bind((sys.argv[1], 9000)); tcp.listen()
def echo():
    while True:
        data, peer = udp.recvfrom(65536)
        udp.sendto(data, peer)
threading.Thread(target=echo, daemon=True).start()
print("ready", flush=True)
connection, _ = tcp.accept()
digest, data = hashlib.sha256(), b"x"
while data:
    data = connection.recv(1 << 16)
    digest.update(data)
connection.sendall(digest.digest())
"""

CLIENT = """
import hashlib, secrets, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.settimeout(3)
udp.connect((sys.argv[1], 9000))
for size in (0, 1, 63, 500, 1300, 4000):
    sent = secrets.token_bytes(size)
    udp.send(sent)
    assert udp.recv(65536) == sent, size
tcp = socket.create_connection((sys.argv[1], 9000), 5)
data = secrets.token_bytes(1 << 20)
digest = hashlib.sha256()
for _ in range(48):
    tcp.sendall(data)
    digest.update(data)
tcp.shutdown(socket.SHUT_WR)
assert tcp.recv(32) == digest.digest()
"""


def plane(role: Literal["client", "gateway"], tun: str, cluster_key: bytes = b"") -> tuple[Plane, bytes]:
    key = generate_private_key()
    made = Plane(
        role=role,
        private_key=key,
        cluster_key=cluster_key,
        tun=tun,
        mtu=1400,
        queue_bytes=1 << 20,
        replay_bytes=1 << 20,
        replay_ms=1000,
    )
    return made, key


def establish(client: Plane, gateway: Plane, gateway_key: bytes) -> int:
    _, address = gateway.open_socket(bind="127.0.0.1:0")
    socket, _ = client.open_socket(bind="127.0.0.1:0")
    client.begin_handshake(
        socket=socket,
        gateway=address,
        gateway_key=public_key(gateway_key),
        timestamp_ns=time.time_ns(),
        credential=b"",
    )
    request = wait_for(gateway, "handshake_request")
    gateway.prepare_accept(request[1], secrets.token_bytes(16), ["10.9.0.2", "fd09::2"], b"")
    gateway.finish_accept(request[1])
    session: int = wait_for(client, "handshake_response")[2]
    client.set_path(session, 0, socket, address)
    client.activate(session, 0)
    return session


async def transfer(server_address: str) -> None:
    gateway, gateway_key = plane("gateway", "jvg%d", secrets.token_bytes(32))
    client, _ = plane("client", "jvc%d")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        time.sleep(0.2)
        sh(f"ip link set {gateway.tun_name} netns {holder.pid}")
        for address in ("10.9.0.1/24", "fd09::1/64"):
            subprocess.run(
                [*inside, "ip", "addr", "add", address, "dev", gateway.tun_name, *nodad(address)], check=True
            )
        subprocess.run([*inside, "ip", "link", "set", gateway.tun_name, "up"], check=True)
        for address in ("10.9.0.2/24", "fd09::2/64"):
            sh(f"ip addr add {address} dev {client.tun_name} {' '.join(nodad(address))}")
        sh(f"ip link set {client.tun_name} up")
        establish(client, gateway, gateway_key)
        server = subprocess.Popen([*inside, sys.executable, "-c", SERVER, server_address], stdout=subprocess.PIPE)
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        subprocess.run([sys.executable, "-c", CLIENT, server_address], check=True, timeout=30)
        server.wait(5)
        up, down = client.counters(), gateway.counters()
        assert up["sent_datagrams"] > 4 * up["tun_reads"], "the kernel hands over super-packets"
        assert down["received_datagrams"] > 4 * down["tun_writes"], "opened packets are joined"
    finally:
        holder.kill()
        holder.wait()
        client.stop()
        gateway.stop()
    assert subprocess.run(["ip", "link", "show", "jvc0"], capture_output=True, check=False).returncode != 0


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


@pytest.mark.parametrize("server_address", ["10.9.0.1", "fd09::1"])
def test_tcp_and_udp_survive_cutting_and_joining(server_address: str) -> None:
    in_namespace(lambda: transfer(server_address))


def test_a_name_that_cannot_be_is_an_os_error() -> None:
    with pytest.raises(OSError, match="TUN interface"):
        plane("client", "a-name-that-is-too-long")
