"""The lab: a client with two uplinks, two NAT routers, a gateway and a server, and what can go wrong with uplinks."""

import json
import os
import platform
import select
import shutil
import socket
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from jumpvpn.lab import topology
from jumpvpn.lab.errors import LabError
from jumpvpn.lab.link import DIRECTIONS, Impairment, Link
from jumpvpn.lab.namespaces import NamespaceSet
from jumpvpn.lab.topology import NAMESPACES, UPLINKS, Uplink

_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "nsenter": "util-linux",
}

# AF_PACKET speaks of UDP super-packets in its virtio-net header only since this kernel.
_UDP_SEGMENTS_SINCE = (6, 2)
# An answer takes a turn of the emulator's loop; more means that it is gone.
_ANSWER_S = 5.0
_EMULATOR_START_S = 20.0


@dataclass(frozen=True, slots=True)
class Change:
    """An operation that took effect between two instants (nanoseconds of CLOCK_BOOTTIME)."""

    uplink: str
    before_ns: int
    after_ns: int


class Lab:
    """A running lab; a context manager. Every method blocks for some milliseconds and may be called from a thread.

    Parameters: one `Link` per uplink, and the seed of all chance. Raises LabError naming what is missing. Everything in
    the lab ends with `close()`, with the end of the block, or with this process, however it ends.
    """

    def __init__(self, wifi: Link | None = None, lte: Link | None = None, seed: int = 1) -> None:
        self.links: Mapping[str, Link] = {"wifi": wifi or Link(), "lte": lte or Link()}
        self.uplinks: Mapping[str, Uplink] = UPLINKS
        self.seed = seed
        self._set: NamespaceSet | None = None
        self._emulators: dict[str, Emulator] = {}
        self._mappings = dict.fromkeys(UPLINKS, 0)
        self._nat_address = dict.fromkeys(UPLINKS, 0)
        self._cuts: dict[str, set[str]] = {name: set() for name in UPLINKS}

    def open(self) -> Self:
        """Build the network. On failure nothing is left."""
        if missing := sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None}):
            raise LabError(f"the lab needs these Debian packages: {' '.join(missing)}")
        self._set = NamespaceSet.create(self.namespaces)
        try:
            self._build(self._set)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all processes in the lab and remove it; idempotent."""
        for emulator in self._emulators.values():
            emulator.close()
        self._emulators.clear()
        if self._set is not None:
            self._set.close()
            self._set = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The names of the lab's namespaces."""
        return NAMESPACES

    @property
    def id(self) -> str:
        return self._inside.id

    @property
    def directory(self) -> Path:
        """A private directory that is removed with the lab."""
        return self._inside.directory

    @property
    def rootless(self) -> bool:
        return self._inside.rootless

    def missing_tun(self) -> str | None:
        """Say why a VPN could not make its TUN device in this lab, or None if it can."""
        device = Path("/dev/net/tun")
        if not device.exists():
            return f"{device} does not exist: the kernel has no TUN device, or the container hides it"
        if not os.access(device, os.R_OK | os.W_OK):
            return f"{device} may not be opened by this user: run as root, or give it mode 0666 as most systems do"
        return None

    def command(self, namespace: str, argv: Sequence[str]) -> list[str]:
        """Return the argument list that runs `argv` inside a namespace."""
        return self._inside.command(namespace, argv)

    def run(self, namespace: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, output captured; raises LabError if it fails and `check` is not False."""
        return self._inside.run(namespace, argv, **options)

    def exec(self, namespace: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program; options as for subprocess.Popen."""
        return self._inside.exec(namespace, argv, **options)

    async def exec_async(self, namespace: str, argv: Sequence[str], **options: Any) -> Process:
        """Start a program from asyncio; options as for asyncio.create_subprocess_exec."""
        return await self._inside.exec_async(namespace, argv, **options)

    def python(self, namespace: str, module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """Start `python -m module arguments` with this interpreter."""
        return self.exec(namespace, [sys.executable, "-P", "-m", module, *arguments], **options)

    def cable(self, namespace: str, interface: str, far_namespace: str, far_interface: str) -> None:
        """Lay one more cable (a veth pair, both ends down and without address) between two namespaces."""
        far = ["peer", "name", far_interface, "netns", self._inside.path(far_namespace)]
        self.run(namespace, ["ip", "link", "add", interface, "type", "veth", *far])

    def down(self, uplink: str, carrier: bool = False) -> Change:
        """Take the client's interface down, as a lost Wi-Fi; with `carrier`, only its carrier goes and routes stay."""
        if carrier:
            return self._cut("carrier", uplink, *self._far_end(uplink, "down"))
        return self._cut("client", uplink, "client", f"ip link set {self._uplink(uplink).interface} down")

    def blackhole(self, uplink: str, direction: str = "both") -> Change:
        """Drop everything silently: no link event, no ICMP. "up" is client to gateway, "down" the way back."""
        if direction not in (*DIRECTIONS, "both"):
            raise LabError(f"no direction is called {direction!r}")
        return self._cut("blackhole", uplink, uplink, _nft(topology.blackhole_rules(direction)))

    def address_gone(self, uplink: str) -> Change:
        """Remove the client's address from the uplink; the kernel removes the routes with it."""
        link = self._uplink(uplink)
        return self._cut("client", uplink, "client", f"ip address del {link.client_address}/24 dev {link.interface}")

    def route_gone(self, uplink: str) -> Change:
        """Remove the client's default route through the uplink."""
        return self._cut("client", uplink, "client", f"ip route del {self._uplink(uplink).default_route}")

    def restore(self, uplink: str) -> Change:
        """Undo down, blackhole, address_gone and route_gone; impairments stay as they are."""
        link, cuts = self._uplink(uplink), self._cuts[uplink]
        before = _boot_ns()
        if "carrier" in cuts:
            self._shell(*self._far_end(uplink, "up"))
        if "blackhole" in cuts:
            self._shell(uplink, _nft(topology.blackhole_rules("none")))
        if "client" in cuts:
            self._shell("client", topology.client_uplink(link))
        cuts.clear()
        return Change(uplink, before, _boot_ns())

    def rebind(self, uplink: str, address: bool = False) -> Change:
        """Forget all NAT mappings; each flow gets another port at once, and with `address` another public address."""
        link = self._uplink(uplink)
        self._mappings[uplink] += 1
        self._nat_address[uplink] ^= int(address)
        mapping = self._mappings[uplink], link.nat_addresses[self._nat_address[uplink]]
        before = _boot_ns()
        # New rules first: a packet between the two steps keeps its old mapping instead of renewing it.
        self._shell(uplink, _nft(topology.nat_rules(*mapping)) + "conntrack -F 2>&1\n")
        change = Change(uplink, before, _boot_ns())
        self._shell(uplink, _nft(topology.nat_rules_alone(*mapping)))
        return change

    def impair(self, uplink: str, direction: str = "both", **changes: Any) -> Change:
        """Change parameters of an emulated link from now on; fields as in `Impairment`."""
        before = _boot_ns()
        emulator = self._emulator(uplink)
        chosen = DIRECTIONS if direction == "both" else (direction,)
        impairments = emulator.ask({"set": dict.fromkeys(chosen, changes)})["impairments"]
        self._segment(uplink, any(Impairment(**fields).acts_per_packet for fields in impairments.values()))
        return Change(uplink, before, _boot_ns())

    def link_stats(self, uplink: str) -> dict[str, dict[str, int]]:
        """Return per direction what became of the packets of an emulated link."""
        stats: dict[str, dict[str, int]] = self._emulator(uplink).ask({"stats": True})["stats"]
        return stats

    @property
    def _inside(self) -> NamespaceSet:
        if self._set is None:
            raise LabError("the lab is not open")
        return self._set

    def _build(self, inside: NamespaceSet) -> None:
        emulated = {name: link.emulated for name, link in self.links.items()}
        paths = {name: inside.path(name) for name in self.namespaces}
        self._all(self._wiring(paths, emulated, {name: link.mtu for name, link in self.links.items()}))
        for name, link in self.links.items():
            if link.emulated:
                seed = self.seed * len(UPLINKS) + list(UPLINKS).index(name)
                ends = tuple(topology.air_interface(UPLINKS[name], end) for end in "cr")
                self._emulators[name] = Emulator(inside, name, ends, link, seed)
                self._segment(name, link.acts_per_packet)
        self._emulate(inside)
        self._all(self._addressing())
        for emulator in self._emulators.values():
            emulator.connect()

    def _wiring(self, paths: Mapping[str, str], emulated: Mapping[str, bool], mtu: Mapping[str, int]) -> dict[str, str]:
        return topology.wiring(paths, emulated, mtu)

    def _addressing(self) -> dict[str, str]:
        return topology.addressing()

    def _emulate(self, inside: NamespaceSet) -> None:
        """Start the emulators of links that are not the client's."""

    def _all(self, scripts: Mapping[str, str]) -> None:
        """Run one script per namespace side by side; raises LabError with the first failure."""
        started = [
            (
                name,
                subprocess.Popen(
                    self._inside.command(name, ["sh", "-ec", script]),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                ),
            )
            for name, script in scripts.items()
            if script
        ]
        failures = []
        for name, process in started:
            _, errors = process.communicate()
            if process.returncode != 0:
                failures.append(f"{name}: {errors.strip()}")
        if failures:
            raise LabError("the lab's network could not be built: " + "; ".join(failures))

    def _cut(self, what: str, uplink: str, namespace: str, script: str) -> Change:
        """Break something that `restore` knows how to mend."""
        self._uplink(uplink)
        self._cuts[uplink].add(what)
        before = _boot_ns()
        self._shell(namespace, script)
        return Change(uplink, before, _boot_ns())

    def _shell(self, namespace: str, script: str) -> None:
        self.run(namespace, ["sh", "-ec", script])

    def _far_end(self, uplink: str, state: str) -> tuple[str, str]:
        """Return the namespace and script that set the interface at the other end of the client's cable."""
        link = self._uplink(uplink)
        if self.links[uplink].emulated:
            return "air", f"ip link set {topology.air_interface(link, 'c')} {state}"
        return uplink, f"ip link set lan0 {state}"

    def _segment(self, uplink: str, per_packet: bool) -> None:
        """Let the ends of an emulated link send super-packets, or only packets that fit its MTU."""
        state = "off" if per_packet else "on"
        release = tuple(int(part) for part in platform.release().split(".")[:2])
        udp = state if release >= _UDP_SEGMENTS_SINCE else "off"
        for namespace, interface in (("client", self._uplink(uplink).interface), (uplink, "lan0")):
            self.run(namespace, ["ethtool", "-K", interface, "tso", state, "gso", state, "tx-udp-segmentation", udp])

    def _uplink(self, name: str) -> Uplink:
        if name not in UPLINKS:
            raise LabError(f"no uplink is called {name!r}; there are {', '.join(UPLINKS)}")
        return UPLINKS[name]

    def _emulator(self, uplink: str) -> "Emulator":
        self._uplink(uplink)
        if uplink not in self._emulators:
            raise LabError(f"{uplink} is a plain link: give the lab an emulated one, such as Link.with_delay(10)")
        return self._emulators[uplink]


class Emulator:
    """The emulator process of one link, as the lab sees it; "up" is from the first of its `ends` to the second."""

    def __init__(self, inside: NamespaceSet, name: str, ends: tuple[str, ...], link: Link, seed: int) -> None:
        self._control = inside.directory / f"{name}.sock"
        self._connection: socket.socket | None = None
        near, far = ends
        argv = ["--client", near, "--router", far, "--control", str(self._control), "--seed", str(seed)]
        argv += ["--impairments", json.dumps({"up": asdict(link.up), "down": asdict(link.down)})]
        self._process = inside.exec(
            "air",
            [sys.executable, "-P", "-m", "jumpvpn.lab.emulator", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def connect(self) -> None:
        """Wait until frames are carried."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _EMULATOR_START_S)
        if not ready or not self._process.stdout.readline():
            raise LabError("a link emulator did not start")
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(_ANSWER_S)
        self._connection.connect(str(self._control))

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the emulator's answer; raises LabError if it refuses or is gone."""
        assert self._connection is not None
        data = b""
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            while not data.endswith(b"\n"):
                part = self._connection.recv(65536)
                if not part:
                    raise LabError("a link emulator has ended")
                data += part
        except OSError as error:
            raise LabError(f"a link emulator does not answer: {error}") from error
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _nft(rules: str) -> str:
    return topology.here_document("nft -f -", rules)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
