"""Two gateways and a server on one bridge; behind each gateway a bridge to the same two clients, in place of a tunnel.

server 192.168.9.100 ─┐          ┌─ in0 .1  a  t0 ─┬─ ta ┬ client 10.77.0.5 fd77::5
        fd09::100     sw (bridge) │                 ├─ tb ┘
                      └──────────┤                 ├─ ta ┬ peer   10.77.0.9 fd77::9
                                 └─ in0 .2  b  t0 ─┴─ tb ┘
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.lab.namespaces import NamespaceSet

BOTH = pytest.mark.parametrize("version", [4, 6])
INNER = {4: "10.77.0.5", 6: "fd77::5"}
PEER = {4: "10.77.0.9", 6: "fd77::9"}
CLIENTS = {"client": INNER, "peer": PEER}
SERVER = {4: "192.168.9.100", 6: "fd09::100"}
POOLS = ("10.77.0.0/16", "fd77::/64")
PATIENT = 20.0  # for answers on a busy machine

# What a gateway's process does with its announcer, told line by line.
AGENT = """
import asyncio, json, sys
from pathlib import Path
from jumpvpn.runtime.announce import Announcer
from jumpvpn.runtime.cleanup import Ownership
from jumpvpn.runtime.nat import Forwarding, enable_forwarding

POOLS = ("10.77.0.0/16", "fd77::/64")

def say(*words):
    print(json.dumps(words), flush=True)

async def main():
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    owner = await Ownership.claim(Path(sys.argv[1]))
    await enable_forwarding(owner, Forwarding("gw", "t0", POOLS, False, inside="in0", shares_segment=True))
    announcer = Announcer.create(
        "arp", "in0", (), owner, lambda text: say("failed", text), pools=POOLS, tunnel="t0")
    job = asyncio.ensure_future(announcer.run())
    say("ready")
    while line := await reader.readline():
        verb, *addresses = json.loads(line)
        if verb == "close":
            job.cancel()
            await asyncio.wait([job])
            await announcer.close()
            say("left", *await owner.release())
            return
        if verb == "hush":
            announcer.hush(on=True)
        else:
            getattr(announcer, verb)(addresses)
        await announcer.settled()
        say("done")

asyncio.run(main())
"""

# Echoes over TCP, both families, for as long as it lives.
ECHO = """
import socket, threading
lock = threading.Lock()
def serve(sock):
    while data := sock.recv(100):
        sock.sendall(data)
def listen(family, address):
    with socket.create_server((address, 7000), family=family) as server:
        with lock:
            print(address, flush=True)
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
threading.Thread(target=listen, args=(socket.AF_INET6, "fd09::100"), daemon=True).start()
listen(socket.AF_INET, "192.168.9.100")
"""
ECHO_OF_PEER = ECHO.replace(SERVER[6], PEER[6]).replace(SERVER[4], PEER[4])

# One TCP connection from the inner address; each line is sent and must come back.
CALLER = """
import socket, sys
source, server = sys.argv[1:]
sock = socket.create_connection((server, 7000), 20, (source, 0))
print("connected", flush=True)
for line in sys.stdin:
    sock.sendall(line.encode())
    print(sock.recv(100).decode(), end="", flush=True)
"""

_GATEWAY = """
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
    ip addr add 192.168.9.{number}/24 dev in0
    ip addr add fd09::{number}/64 dev in0 nodad
    ip addr add 10.77.0.1/16 dev t0
    ip addr add fd77::1/64 dev t0 nodad
    nft -f - <<'END'
    table inet seen {{
        counter tunnel4 {{ }}
        counter tunnel6 {{ }}
        counter passed4 {{ }}
        counter passed6 {{ }}
        counter redirects {{ }}
        counter between {{ }}
        chain forward {{
            type filter hook forward priority 10;
            iifname in0 oifname t0 ip saddr 10.77.0.0/16 counter name between
            iifname in0 oifname t0 ip6 saddr fd77::/64 counter name between
            ip daddr 10.77.0.0/16 oifname t0 counter name tunnel4
            ip6 daddr fd77::/64 oifname t0 counter name tunnel6
            ip daddr 10.77.0.0/16 oifname in0 counter name passed4
            ip6 daddr fd77::/64 oifname in0 counter name passed6
        }}
        chain output {{
            type filter hook output priority 10;
            oifname in0 icmp type redirect counter name redirects
            oifname in0 icmpv6 type nd-redirect counter name redirects
        }}
    }}
END
"""


class Talker:
    """A program in a namespace that answers each line with one."""

    def __init__(self, segment: Segment, name: str, code: str, *arguments: str) -> None:
        argv = [sys.executable, "-c", code, *arguments]
        self.process: subprocess.Popen[bytes] = segment.namespaces.exec(
            name, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._heard = b""

    def hear(self) -> str:
        """Its next line; fails when none comes."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENT)
            assert ready, "no answer"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "it ended"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        """Its answer to ``line``."""
        self.tell(line)
        return self.hear()


class Gateway(Talker):
    """The announcer of one gateway, in a process of its own."""

    def __init__(self, segment: Segment, name: str, directory: Path) -> None:
        self.notes = directory / f"{name}.json"
        super().__init__(segment, name, AGENT, str(self.notes))
        assert self.answer() == ["ready"]

    def answer(self) -> list[str]:
        found: list[str] = json.loads(self.hear())
        return found

    def do(self, verb: str, *addresses: str) -> None:
        """Carry it out; fails when the announcer says that something failed."""
        self.tell(json.dumps([verb, *addresses]))
        assert self.answer() == ["done"]

    def close(self) -> list[str]:
        """End it in order; what it could not undo."""
        self.tell(json.dumps(["close"]))
        word, *left = self.answer()
        assert word == "left"
        assert self.process.wait(PATIENT) == 0
        return left

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENT)


class Segment:
    """The topology. Raises LabError where namespaces are not allowed."""

    def __init__(self) -> None:
        self.namespaces = NamespaceSet.create(("sw", "server", "a", "b", "client", "peer"))
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.namespaces.close()

    def sh(self, name: str, script: str) -> str:
        """Run shell commands that must succeed in a namespace; their output."""
        return self.namespaces.run(name, ["sh", "-ec", script]).stdout

    def hardware(self, name: str, interface: str) -> str:
        return str(self._json(name, f"ip -j link show {interface}")[0]["address"])

    def neighbour(self, address: str) -> str | None:
        """The hardware address that the server has for ``address``."""
        found = self._json("server", f"ip -j neigh show {address} dev eth0")
        return found[0].get("lladdr") if found else None

    def count(self, name: str, counter: str) -> int:
        """Packets that a gateway's counter saw."""
        found = self._json(name, f"nft -j list counter inet seen {counter}")["nftables"]
        return int(found[1]["counter"]["packets"])

    def witness(self) -> Talker:
        """Tells every announcement of the inner addresses from here on."""
        talker = Talker(self, "server", WITNESS)
        assert talker.hear() == "listening"
        return talker

    def monitor(self) -> Talker:
        """Tells every change of the server's neighbour entries from here on."""
        talker = Talker(self, "server", MONITOR)
        assert talker.hear() == "listening"
        return talker

    def leave_by(self, name: str, client: str = "client") -> None:
        """Let the client send through gateway ``name``."""
        self.sh(
            client,
            f"ip route replace default via 10.77.0.1 dev t{name} onlink src {CLIENTS[client][4]};"
            f"ip -6 route replace default via fe80::1 dev t{name} onlink src {CLIENTS[client][6]}",
        )

    def _json(self, name: str, command: str) -> Any:
        return json.loads(self.sh(name, command))

    def _build(self) -> None:
        path = self.namespaces.path
        self.sh("sw", "ip link add br0 type bridge forward_delay 0 mcast_snooping 0; ip link set br0 up")
        for name, near in (("a", "in0"), ("b", "in0"), ("server", "eth0")):
            self.sh("sw", f"ip link add p{name} master br0 type veth peer name {near} netns {path(name)}")
            self.sh("sw", f"ip link set p{name} up")
            self.sh(
                name, f"echo 0 >/proc/sys/net/ipv6/conf/{near}/accept_dad; ip link set lo up; ip link set {near} up"
            )
        for client, inner in CLIENTS.items():
            self.sh(client, f"""
                sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0; ip link set lo up
                ip addr add {inner[4]}/32 dev lo; ip addr add {inner[6]}/128 dev lo nodad
            """)  # fmt: skip
        for number, name in enumerate(("a", "b"), 1):
            self._build_tunnel(name)
            self.sh(name, _GATEWAY.format(number=number))
            for client, inner in CLIENTS.items():
                hardware = self.hardware(client, f"t{name}")
                for address in inner.values():
                    self.sh(name, f"ip neigh replace {address} lladdr {hardware} dev t0 nud permanent")
        self.sh("server", """
            ip addr add 192.168.9.100/24 dev eth0; ip addr add fd09::100/64 dev eth0 nodad
            ip route add 10.77.0.0/16 dev eth0; ip route add fd77::/64 dev eth0
            for family in ipv4 ipv6; do  # an entry is believed for an hour, unless someone says otherwise
                echo 3600000 >/proc/sys/net/$family/neigh/eth0/base_reachable_time_ms
            done
        """)  # fmt: skip
        for client in CLIENTS:
            self.leave_by("a", client)

    def _build_tunnel(self, name: str) -> None:
        path = self.namespaces.path
        self.sh("sw", f"ip link add air{name} type bridge forward_delay 0 mcast_snooping 0; ip link set air{name} up")
        for end, near in ((name, "t0"), *((client, f"t{name}") for client in CLIENTS)):
            far = f"{end}{near}"
            self.sh("sw", f"ip link add {far} master air{name} type veth peer name {near} netns {path(end)}")
            self.sh("sw", f"ip link set {far} up")
            self.sh(end, f"echo 0 >/proc/sys/net/ipv6/conf/{near}/accept_dad; ip link set {near} up")
        hardware = self.hardware(name, "t0")
        for client in CLIENTS:
            for router in ("10.77.0.1", "fe80::1"):
                self.sh(client, f"ip neigh replace {router} lladdr {hardware} dev t{name} nud permanent")


# Prints "address hardware-address" for each neighbour entry that changes; RTNLGRP_NEIGH is bit 2.
MONITOR = """
import socket
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
sock.bind((0, 4))
print("listening", flush=True)
while True:
    for message in MarshalRtnl().parse(sock.recv(1 << 16)):
        if message["event"] == "RTM_NEWNEIGH" and message.get_attr("NDA_LLADDR"):
            print(message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR"), flush=True)
"""


# Prints what the server hears about an inner address that nobody asked for.
WITNESS = """
import socket
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.bind(("eth0", 0))
inner4, inner6 = socket.inet_aton("10.77.0.5"), socket.inet_pton(socket.AF_INET6, "fd77::5")
print("listening", flush=True)
while True:
    frame = sock.recv(2000)
    if frame[12:14] == b"\\x08\\x06" and frame[28:32] == frame[38:42] == inner4:
        print({1: "request", 2: "reply"}[frame[21]], flush=True)
    elif frame[12:14] == b"\\x86\\xdd" and frame[20] == 58 and frame[54] == 136 and frame[62:78] == inner6:
        if frame[:2] == b"\\x33\\x33":
            print("advertisement", flush=True)
"""


def echoing(segment: Segment, name: str) -> Talker:
    """What answers in both families at ``name``, server or peer, once it listens."""
    program, addresses = {"server": (ECHO, SERVER), "peer": (ECHO_OF_PEER, PEER)}[name]
    talker = Talker(segment, name, program)
    assert {talker.hear(), talker.hear()} == set(addresses.values())
    return talker


def call(segment: Segment, version: int, to: dict[int, str] = SERVER) -> Talker:
    """A TCP connection from the client's inner address to the server's, or to the peer's."""
    caller = Talker(segment, "client", CALLER, INNER[version], to[version])
    assert caller.hear() == "connected"
    return caller


def heard(monitor: Talker, address: str, hardware: str) -> None:
    """Wait until the server's entry of ``address`` has become ``hardware``."""
    while monitor.hear() != f"{address} {hardware}":
        pass


def state(segment: Segment, name: str, settings: Sequence[str] = ()) -> str:
    """All of a gateway's network that an announcer touches."""
    listing = "ip neigh show proxy; ip route show table all; ip -6 route show table all proto 74"
    return segment.sh(name, f"{listing}; cd /proc/sys/net; cat {' '.join(settings or SETTINGS)}")


SETTINGS = (
    "ipv4/conf/all/send_redirects", "ipv4/conf/in0/send_redirects", "ipv4/neigh/in0/proxy_delay",
    "ipv4/conf/in0/accept_redirects", "ipv6/conf/in0/accept_redirects", "ipv6/conf/in0/proxy_ndp",
    "ipv6/neigh/in0/proxy_delay", "ipv4/conf/in0/forwarding",
)  # fmt: skip


def many(version: int, count: int) -> Iterator[str]:
    """Inner addresses of the pool, the first at .0.16."""
    for number in range(16, 16 + count):
        yield f"10.77.{number >> 8}.{number & 255}" if version == 4 else f"fd77::{number:x}"
