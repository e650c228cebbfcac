"""Our own packets never enter the tunnel and leave by the interface they are bound to; everything else enters it.

near namespace                       far namespace
a0 10.1.1.2 fd11::2  ─────────────── b0 10.1.1.1 fd11::1 ┐
a1 10.1.2.2 fd12::2  ─────────────── b1 10.1.2.1 fd12::1 ┴ lo 203.0.113.1 2001:db8::1 (echo on port 5000)
tun0 10.77.0.2 fd77::2, default route of both families
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated import in_namespace, sh

from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.nat import Forwarding, enable_forwarding
from jumpvpn.runtime.routing import (
    configure_tunnel,
    loosen_source_check,
    protect_inner_addresses,
    route_into_tunnel,
)

pytestmark = pytest.mark.netns
MARK, TABLE, PORT = 0x4A56, 19030, 5000
INNER = ["10.77.0.2/24", "fd77::2/64"]
# The echo says whom it heard.
ECHO = """
import selectors, socket, sys
selector = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, "203.0.113.1"), (socket.AF_INET6, "2001:db8::1")):
    s = socket.socket(family, socket.SOCK_DGRAM); s.bind((address, 5000)); selector.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        data, source = key.fileobj.recvfrom(100)
        key.fileobj.sendto(source[0].encode(), source)
"""


def open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
    return fd


@contextlib.contextmanager
def topology() -> Iterator[None]:
    code = f"import sys; sys.stdin.readline()\n{ECHO}"
    command = ["unshare", "-n", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as far:
        assert far.stdin is not None
        assert far.stdout is not None
        own = Path("/proc/self/ns/net").stat().st_ino
        while Path(f"/proc/{far.pid}/ns/net").stat().st_ino == own:
            pass
        sh(f"""
            for n in 0 1; do
              ip link add a$n type veth peer name b$n; ip link set b$n netns {far.pid}
              ip link set a$n up; ip addr add 10.1.$((n+1)).2/24 dev a$n; ip addr add fd1$((n+1))::2/64 dev a$n nodad
              ip route add default via 10.1.$((n+1)).1 dev a$n metric $((100+n))
              ip -6 route add default via fd1$((n+1))::1 dev a$n metric $((100+n))
            done
            nsenter -t {far.pid} -n sh -ec '
              ip link set lo up; ip addr add 203.0.113.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo nodad
              for n in 0 1; do
                ip link set b$n up; ip addr add 10.1.$((n+1)).1/24 dev b$n; ip addr add fd1$((n+1))::1/64 dev b$n nodad
              done'
        """)
        far.stdin.write(b"\n")
        far.stdin.flush()
        assert far.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            far.kill()


def heard_from(interface: str | None, family: int = socket.AF_INET, mark: int = MARK) -> str | None:
    """The source address that the far side saw; None if no answer came."""
    server = "203.0.113.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.4)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.sendto(b"who am I", (server, PORT))
        try:
            return sock.recvfrom(100)[0].decode()
        except TimeoutError:
            return None


def packets_in(tun: int) -> list[bytes]:
    packets = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packets.append(os.read(tun, 2000))
    return packets


def test_marked_packets_go_around_the_tunnel_and_all_others_through_it(tmp_path: Path) -> None:
    async def body() -> None:
        with topology():
            tun = open_tun("tun0")
            owner = await Ownership.claim(tmp_path / "owned.json")
            await configure_tunnel(owner, "tun0", INNER, 1380)
            await route_into_tunnel(owner, "tun0", ["0.0.0.0/0", "::/0", "203.0.113.0/24"], MARK, TABLE)
            for interface, number in (("a0", 1), ("a1", 2)):
                assert heard_from(interface) == f"10.1.{number}.2"
                assert heard_from(interface, socket.AF_INET6) == f"fd1{number}::2"
            assert not [p for p in packets_in(tun) if b"who am I" in p]
            assert heard_from(None, mark=0) is None
            assert heard_from(None, socket.AF_INET6, mark=0) is None
            assert len([p for p in packets_in(tun) if b"who am I" in p]) == 2
            assert await owner.release() == []
            os.close(tun)
            assert heard_from(None, mark=0) == "10.1.1.2"

    in_namespace(body)


def test_local_networks_stay_local_under_a_default_route_into_the_tunnel(tmp_path: Path) -> None:
    async def body() -> None:
        with topology():
            tun = open_tun("tun0")
            owner = await Ownership.claim(tmp_path / "owned.json")
            await configure_tunnel(owner, "tun0", INNER, 1380)
            await route_into_tunnel(owner, "tun0", ["0.0.0.0/0"], MARK, TABLE)
            assert "dev a1" in sh("ip route get 10.1.2.1")
            assert "dev tun0" in sh("ip route get 198.51.100.1")
            assert "dev a1 table main" not in sh("ip route get 203.0.113.1")
            await owner.release()
            os.close(tun)

    in_namespace(body)


def test_strict_reverse_path_filter_is_loosened_for_a_standby_and_restored(tmp_path: Path) -> None:
    async def body() -> None:
        with topology():
            sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
            assert heard_from("a1") is None, "a strict filter drops what comes back to the standby"
            owner = await Ownership.claim(tmp_path / "owned.json")
            loosen_source_check(owner, "a0")
            loosen_source_check(owner, "a1")
            assert heard_from("a1") == "10.1.2.2"
            await owner.release()
            assert sh("cat /proc/sys/net/ipv4/conf/a1/rp_filter").strip() == "0"

    in_namespace(body)


def test_inner_addresses_are_unreachable_from_outside_the_tunnel(tmp_path: Path) -> None:
    async def body() -> None:
        with topology():
            tun = open_tun("tun0")
            owner = await Ownership.claim(tmp_path / "owned.json")
            await configure_tunnel(owner, "tun0", INNER, 1380)
            await protect_inner_addresses(owner, "client", "tun0", INNER)
            listing = sh("nft list ruleset")
            assert 'iifname != { "lo", "tun0" } ip daddr 10.77.0.2 drop' in listing
            assert 'iifname != { "lo", "tun0" } ip6 daddr fd77::2 drop' in listing
            await owner.release()
            os.close(tun)
            assert sh("nft list ruleset") == ""

    in_namespace(body)


def test_gateway_forwards_translates_refuses_forged_sources_and_restores(tmp_path: Path) -> None:
    async def body() -> None:
        with topology():
            tun = open_tun("tun0")
            owner = await Ownership.claim(tmp_path / "owned.json")
            await configure_tunnel(owner, "tun0", ["10.77.0.1/24", "fd77::1/64"], 1380)
            pools = ("10.77.0.0/24", "fd77::/64")
            await enable_forwarding(owner, Forwarding("gw", "tun0", pools, masquerade=True))
            os.write(tun, udp_packet("10.77.0.9", "203.0.113.1"))
            answer = b""
            for _ in range(100):
                answer = next((p for p in packets_in(tun) if p[:1] == b"\x45" and p[9] == 17), answer)
                if answer:
                    break
                await asyncio.sleep(0.02)
            assert answer[28:] == b"10.1.1.2", "the far side saw the gateway's own address"
            assert answer[16:20] == socket.inet_aton("10.77.0.9")
            assert sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding").split() == ["1", "1"]
            assert sh("cat /proc/sys/net/ipv6/conf/a0/accept_ra").strip() == "2"
            assert 'iifname != "tun0" ip saddr 10.77.0.0/24 drop' in sh("nft list ruleset")
            assert await owner.release() == []
            os.close(tun)
            assert sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding").split() == ["0", "0"]
            assert sh("nft list ruleset") == ""

    in_namespace(body)


def udp_packet(source: str, destination: str) -> bytes:
    """An IPv4 packet with an UDP datagram to the echo; UDP checksum 0 = none."""
    payload = b"who am I"
    udp = struct.pack("!HHHH", 4000, PORT, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + udp
