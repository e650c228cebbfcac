"""Whatever arrives at either end of a live session without its keys changes nothing and is not answered.

The attacker stands where he can do most: behind the gateway's other network and, towards the client, on its own link.
He has seen every datagram of the session's life: its handshake, its moves, the hints of a restarted gateway, its data.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jumpvpn._native import Plane, generate_private_key
from jumpvpn.config import decode_key
from jumpvpn.lab import GATEWAY_PUBLIC, Lab
from jumpvpn.lab.deployment import PORT, SIDES, Deployment
from jumpvpn.lab.measure import Window
from jumpvpn.lab.traffic.pacing import boot_ns
from jumpvpn.lab.workload import Load, Workload
from jumpvpn.runtime.keys import public_key_of, read_private_key
from native import reference as ref

pytestmark = pytest.mark.netns

ATTACK = Path(__file__).with_name("attack.py")
GATEWAY = f"{GATEWAY_PUBLIC}:{PORT}"
KINDS = {"up": {1, 4, 5}, "down": {2, 4, 6, 7}}  # by direction: all but the cookie, which only a loaded gateway sends
# The subject is input, not speed: on a machine without a free processor a late answer is no silence.
POLICY = """
[policy.switching]
failback = "never"
max_per_minute = 60
[policy.volatility]
silence_floor = "2s"
silence_ceiling = "4s"
"""
ECHO = Load(echo_rate=200, protocols=("udp",))
SEND_BYTES_S = 8e6  # a buffer that overflows would be a loss of the link, which is not the subject
FLOOD_RATE = 100_000
FLOOD_SECONDS = 3
LARGEST_UDP = 65_507
RSS_SLACK_KB = 16 * 1024  # what an allocator may keep in reserve; the floods carry a hundred times as much


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the attacker knows: datagrams by direction, and the address that each end has for him."""

    up: list[bytes]
    down: list[bytes]
    client: str  # on its own link
    mapped: str  # as the gateway sees it


class Siege:
    """A session that carries an echo, and its attacker."""

    def __init__(self, lab: Lab, deployment: Deployment) -> None:
        self.lab, self.deployment = lab, deployment
        self.seen: Seen

    async def prepare(self) -> None:
        """Live through everything that shows a kind of datagram, under the attacker's eyes."""
        # The router's address translation is not for what is forged on it.
        self.lab.run(
            "wifi", ["nft", "table ip forged { chain out { type filter hook output priority -300; notrack; }; }"]
        )
        with listening(self.lab, tuple(self.lab.uplinks)) as listeners:
            await self.deployment.start()
            await self.deployment.carried_by("wwan0")
            await self.deployment.kill_node("gateway")
            since = boot_ns()
            await self.deployment.start_node("gateway")
            await self.deployment.attached(since)
            await self.deployment.carried_by("wlan0")
            await asyncio.sleep(0.5)
            self.seen = recorded({uplink: end(listener) for uplink, listener in listeners.items()})
        for direction, kinds in KINDS.items():
            assert {datagram[0] >> 4 for datagram in getattr(self.seen, direction)} == kinds

    @asynccontextmanager
    async def unmoved(self) -> AsyncIterator[None]:
        """Inside, the echo runs; afterwards both ends stand as they stood and have noticed no change."""
        before, since = await self.standing(), boot_ns()
        workload = Workload(self.lab, ECHO)
        await workload.start()
        yield
        logs = await workload.finish()
        records = (r for r in self.deployment.journals.records if r.at_ns > since)
        moved = [r for r in records if r.event.startswith(("session.state", "transport."))]
        assert not [(r.side, r.event, r.reason, r.transport, r.data) for r in moved]
        assert await self.standing() == before
        delivered(logs.echoes["udp"].window(since, boot_ns()))

    async def standing(self) -> dict[str, Any]:
        """What must not change: who the session is, where it stands, and on what it stands."""
        found = {}
        for side in SIDES:
            session = (await self.deployment.status(side))["sessions"][0]
            binding = {name: session["binding"][name] for name in ("transport", "peer")}
            kept = {name: session[name] for name in ("uid", "state", "version", "epoch", "last_reason")}
            found[side] = {**kept, **binding}
        return found

    async def counters(self) -> dict[str, dict[str, int]]:
        """Both ends' counters."""
        return {side: (await self.deployment.status(side))["counters"] for side in SIDES}

    async def resident_kb(self) -> dict[str, int]:
        """Both ends' resident memory."""
        pids = {side: (await self.deployment.status(side))["pid"] for side in SIDES}
        return {
            side: int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])
            for side, pid in pids.items()
        }

    async def send(self, namespace: str, target: str, datagrams: list[bytes], source: str | None = None) -> int:
        """Send each datagram once; how many answers came."""
        rate = SEND_BYTES_S * len(datagrams) / sum(map(len, datagrams))
        forged = [] if source is None else ["--source", source]
        argv = [sys.executable, str(ATTACK), "send", target, "--rate", str(rate), *forged]
        lines = "\n".join(datagram.hex() for datagram in datagrams)
        done = await asyncio.to_thread(self.lab.run, namespace, argv, input=lines)
        result = json.loads(done.stdout)
        assert result["sent"] == len(datagrams)
        return int(result["answered"])

    async def besiege(self, up: list[bytes], down: list[bytes]) -> None:
        """Send ``up`` to the gateway and ``down`` to the client, as a stranger and in the other end's name."""
        answers = await asyncio.gather(self.send("server", GATEWAY, up), self.send("wifi", self.seen.client, down))
        assert answers == [0, 0], "a stranger hears nothing"
        await asyncio.gather(
            self.send("wifi", GATEWAY, up, self.seen.mapped), self.send("wifi", self.seen.client, down, GATEWAY)
        )


@pytest.fixture
async def siege(lab: Lab) -> AsyncIterator[Siege]:
    deployment = Deployment(lab, policy=POLICY)
    siege = Siege(lab, deployment)
    try:
        await siege.prepare()
        yield siege
    finally:
        await deployment.close()


async def test_copies_fragments_and_forgeries_of_real_datagrams_change_nothing(siege: Siege) -> None:
    before, resident = await siege.counters(), await siege.resident_kb()
    up, down = sample(siege.seen.up), sample(siege.seen.down)
    async with siege.unmoved():
        await siege.besiege(siege.seen.up, siege.seen.down)
        for spoil in (truncated, extended, flipped):
            await siege.besiege(list(spoil(up)), list(spoil(down)))
    after = await siege.counters()
    rose = {side: {name for name, value in after[side].items() if value > before[side][name]} for side in SIDES}
    everywhere = {"truncated", "oversized", "malformed", "unknown_kind", "unexpected_kind", "unknown_cid", "bad_tag"}
    assert everywhere | {"bad_mac1", "bad_ticket", "replay_repeated"} <= rose["gateway"]
    assert everywhere | {"unknown_handshake", "unsolicited_reply"} <= rose["client"]
    for side in SIDES:
        assert after[side]["panics"] == after[side]["facts_lost"] == 0
    grown = {side: kb - resident[side] for side, kb in (await siege.resident_kb()).items()}
    assert max(grown.values()) < RSS_SLACK_KB, grown


async def test_handshakes_of_strangers_change_nothing(siege: Siege) -> None:
    """Another gateway's key, a device of no list, another version: no answer; each is counted or on record."""
    directory = siege.deployment.directory
    gateway = decode_key(public_key_of(directory / "gateway.key"))
    device = read_private_key(directory / "client.key")
    stranger, wrong = generate_private_key(), os.urandom(32)
    before, since = await siege.counters(), boot_ns()
    async with siege.unmoved():
        for datagrams in (
            offered(device, wrong),
            offered(stranger, gateway),
            of_version(2, device, gateway),
            of_version(0, device, gateway),
        ):
            assert await siege.send("server", GATEWAY, datagrams) == 0
    after = (await siege.counters())["gateway"]
    assert after["bad_mac1"] > before["gateway"]["bad_mac1"]
    assert after["unsupported_version"] == before["gateway"]["unsupported_version"] + 2
    refused = await siege.deployment.event(lambda r: r.event == "security.validation_failed", since)
    assert (refused.side, refused.reason) == ("gateway", "unknown_device")


async def test_floods_of_random_datagrams_at_both_ends_change_nothing(siege: Siege) -> None:
    async with siege.unmoved():
        await flood(siege, seconds=1)  # the first flood pays for buffers that are kept
        before, resident = await siege.counters(), await siege.resident_kb()
        flooding = asyncio.create_task(flood(siege, FLOOD_SECONDS))
        slowest = 0.0
        while not flooding.done():
            asked = time.monotonic()
            await siege.standing()
            slowest = max(slowest, time.monotonic() - asked)
            await asyncio.sleep(0.1)
        sent = await flooding
        assert slowest < 5, "the control sockets answer all the while"
    after = await siege.counters()
    for side in SIDES:
        assert sent[side] >= 0.8 * FLOOD_RATE * FLOOD_SECONDS, "the attacker reached the rate"
        assert after[side]["received_datagrams"] - before[side]["received_datagrams"] > 0.5 * sent[side]
        assert after[side]["unknown_kind"] - before[side]["unknown_kind"] > 0.2 * sent[side]
        assert after[side]["panics"] == after[side]["facts_lost"] == 0
    grown = {side: kb - resident[side] for side, kb in (await siege.resident_kb()).items()}
    assert max(grown.values()) < RSS_SLACK_KB, grown


async def flood(siege: Siege, seconds: float) -> dict[str, int]:
    """Flood both ends at once; how many were sent to each. None may be answered."""
    places = {"gateway": ("server", GATEWAY), "client": ("wifi", siege.seen.client)}
    runs = []
    for namespace, target in places.values():
        argv = [sys.executable, str(ATTACK), "flood", target, "--rate", str(FLOOD_RATE), "--seconds", str(seconds)]
        runs.append(asyncio.to_thread(siege.lab.run, namespace, argv))
    results = [json.loads(done.stdout) for done in await asyncio.gather(*runs)]
    assert [result["answered"] for result in results] == [0, 0]
    return {side: int(result["sent"]) for side, result in zip(places, results, strict=True)}


def delivered(window: Window) -> None:
    """The flow went on: nothing was lost but what a busy machine loses."""
    assert window.sent > 0
    assert window.lost <= 0.1 * window.sent, window


def sample(datagrams: list[bytes]) -> list[bytes]:
    """Two of each kind and length, the newest."""
    found: dict[tuple[int, int], list[bytes]] = {}
    for datagram in datagrams:
        found.setdefault((datagram[0] >> 4, len(datagram)), []).append(datagram)
    return [datagram for same in found.values() for datagram in same[-2:]]


def truncated(datagrams: list[bytes]) -> Iterator[bytes]:
    """Each at each length, nothing at all included."""
    for datagram in datagrams[::2]:
        yield from (datagram[:length] for length in range(len(datagram)))


def extended(datagrams: list[bytes]) -> Iterator[bytes]:
    """Each with more behind it, up to the longest datagram there is."""
    for datagram in datagrams:
        for length in (1, 2, 16, 255, 1200, 9000, LARGEST_UDP - len(datagram)):
            yield datagram + bytes(length)


def flipped(datagrams: list[bytes]) -> Iterator[bytes]:
    """Each with one bit changed: each bit of the short ones, and of the head and the end of the long ones."""
    for datagram in datagrams[::2]:
        ends = {*range(320), *range(max(0, len(datagram) - 40), len(datagram)), *range(0, len(datagram), 16)}
        for place in sorted(place for place in ends if place < len(datagram)):
            for bit in range(8):
                changed = bytearray(datagram)
                changed[place] ^= 1 << bit
                yield bytes(changed)


def offered(private: bytes, gateway: bytes) -> list[bytes]:
    """The datagrams by which a device of this key asks the gateway of that key."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.1", 0))
        plane = Plane(
            role="client", private_key=private, cluster_key=b"", tun="", mtu=1400, queue_bytes=1 << 16,
            replay_bytes=1 << 16, replay_ms=100,
        )  # fmt: skip
        try:
            number, _ = plane.open_socket(bind="127.0.0.1:0")
            target = "{}:{}".format(*ear.getsockname())
            plane.begin_handshake(
                socket=number, gateway=target, gateway_key=gateway, timestamp_ns=time.time_ns(), credential=b""
            )
            return drained(ear)
        finally:
            plane.stop()


def drained(ear: socket.socket) -> list[bytes]:
    found = []
    while select.select([ear], [], [], 0.2)[0]:
        found.append(ear.recv(2048))
    return found


def of_version(version: int, private: bytes, gateway: bytes) -> list[bytes]:
    """A whole and honest message 1, except for its version."""
    client = ref.Client(private, os.urandom(32), gateway, (os.urandom(ref.mlkem.EK_LEN), b""))
    payload = struct.pack(">H", version) + ref.init_payload(time.time_ns(), 1, client.ek, b"")[2:]
    return ref.cut(1, os.urandom(8), client.message_1(payload), gateway)


def recorded(captures: dict[str, list[dict[str, str]]]) -> Seen:
    """Sort what was captured: payloads once, from the client's links; its newest addresses on Wi-Fi."""
    near = [entry for capture in captures.values() for entry in capture if entry["interface"] == "lan0"]
    is_up = [entry["target"] == GATEWAY for entry in near]
    payloads = [bytes.fromhex(entry["data"]) for entry in near]
    wifi = captures["wifi"]
    sources = {
        side: [e["source"] for e in wifi if e["interface"] == side and e["target"] == GATEWAY][-1]
        for side in ("lan0", "wan0")
    }
    return Seen(
        up=[payload for payload, up in zip(payloads, is_up, strict=True) if up],
        down=[payload for payload, up in zip(payloads, is_up, strict=True) if not up],
        client=sources["lan0"],
        mapped=sources["wan0"],
    )


@contextmanager
def listening(lab: Lab, namespaces: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Capture in some namespaces; the running captures by namespace."""
    argv = [sys.executable, str(ATTACK), "capture"]
    running = {
        name: lab.exec(name, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in namespaces
    }
    try:
        for process in running.values():
            assert process.stdout.readline() == "ready\n"
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def end(listener: Any) -> list[dict[str, str]]:
    """What a capture holds."""
    out, _ = listener.communicate("\n", timeout=20)
    found: list[dict[str, str]] = json.loads(out)
    return found
