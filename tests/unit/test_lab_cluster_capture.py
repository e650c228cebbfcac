"""What frames tell about who carried the client's messages, and which orders of carriers are wrong."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from jumpvpn.lab.cluster import capture
from jumpvpn.lab.cluster.capture import (
    Capture,
    Carriage,
    Reign,
    Seen,
    Sight,
    accepted,
    false_claims,
    hardware,
    opened,
    overlaps,
)  # fmt: skip
from jumpvpn.lab.records import write_result
from jumpvpn.lab.traffic.echo import MESSAGE_BYTES

GW1, GW2 = hardware("02:00:00:00:00:01"), hardware("02:00:00:00:00:02")
NAMES = {GW1: "gw1", GW2: "gw2"}
SERVER, CLIENT = "10.99.0.2", "10.77.0.2"
INNER = int.from_bytes(socket.inet_aton(CLIENT), "big")
TUNNEL, ETHER = 65534, 1


def packet(source: str, target: str, ports: tuple[int, int], *numbers: int) -> bytes:
    body = b"".join(struct.pack(">Q", number) + bytes(MESSAGE_BYTES - 8) for number in numbers)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0) + addresses + struct.pack(
        ">HHHH", *ports, 8 + len(body), 0
    ) + body  # fmt: skip


def look(path: Path, at_gateway: bool, *frames: tuple[bytes, bool, int]) -> list[tuple[Sight, int, int]]:
    """What a capture makes of frames, through its file."""
    found = Capture(bytes([10, 77, 0]), at_gateway=at_gateway)
    for one in frames:
        found._look(*one)
    write_result(path, {}, dict(zip(("sights", "at", "numbers", "claimants"), found._rows, strict=True)))
    return [(one.sight, one.number, one.claimant) for one in capture.load(path)]


def test_frames_become_sightings(tmp_path: Path) -> None:
    up = packet(CLIENT, SERVER, (40000, 7007), 5)
    down = packet(SERVER, CLIENT, (7007, 40000), 5, 6)
    other = packet(CLIENT, SERVER, (40000, 7008), 5)
    arp = struct.pack(">HHBBH", 1, 0x800, 6, 4, 2) + GW2.to_bytes(6, "big") + socket.inet_aton(CLIENT) + bytes(10)
    frame = bytes(6) + GW2.to_bytes(6, "big") + b"\x08\x06" + arp
    tunnel = [(down, True, TUNNEL), (up, False, TUNNEL), (other, False, TUNNEL), (frame, False, ETHER)]
    assert look(tmp_path / "gateway", True, *tunnel) == [
        (Sight.GIVEN, 5, 0), (Sight.GIVEN, 6, 0), (Sight.OPENED, 5, 0), (Sight.CLAIMED, INNER, GW2),
    ]  # fmt: skip
    assert look(tmp_path / "client", False, (down, False, TUNNEL), (up, True, TUNNEL), (frame, True, ETHER)) == [
        (Sight.ACCEPTED, 5, 0), (Sight.ACCEPTED, 6, 0),
    ]  # fmt: skip


def sightings(sight: Sight, *told: tuple[int, int]) -> list[Seen]:
    return [Seen(sight, at_ns, number) for at_ns, number in told]


def test_acceptance_is_traced_to_its_carrier() -> None:
    seen = {
        "gw1": sightings(Sight.GIVEN, (1, 1), (2, 2)),
        "gw2": sightings(Sight.GIVEN, (2, 2), (3, 3), (4, 4)),
        "client": sightings(Sight.ACCEPTED, (10, 1), (20, 2), (30, 3), (40, 4), (50, 99)),
    }
    assert accepted(seen) == [Carriage("gw1", 10, 10, 1), Carriage("gw2", 30, 40, 2)]


def test_messages_sent_up_are_ordered_by_when_the_client_sent_them() -> None:
    seen = {
        "gw1": sightings(Sight.OPENED, (10, 1), (31, 2)),
        "gw2": sightings(Sight.OPENED, (30, 3), (32, 2), (40, 4)),
        "client": [],
    }
    assert [run.gateway for run in opened(seen)] == ["gw1", "gw2"]  # 2 went twice and tells nothing
    seen["gw1"] += sightings(Sight.OPENED, (50, 5))
    assert [run.gateway for run in opened(seen)] == ["gw1", "gw2", "gw1"]


@pytest.mark.parametrize(
    ("at_ns", "claimant", "wrong"),
    [(50, GW1, False), (105, GW1, False), (95, GW2, False), (150, GW2, False), (150, GW1, True), (80, GW2, True),
     (350, GW2, True), (350, GW1, False), (150, 7, True)],
)  # fmt: skip
def test_only_owners_may_claim_an_inner_address(at_ns: int, claimant: int, wrong: bool) -> None:
    reigns = [Reign(0, "gw1"), Reign(100, "gw2"), Reign(200, "gw2"), Reign(300, "gw1")]
    seen = [Seen(Sight.CLAIMED, at_ns, INNER, claimant)]
    assert bool(false_claims(seen, INNER, reigns, NAMES, 10)) is wrong
    assert false_claims(seen, INNER + 1, reigns, NAMES, 10) == []


@pytest.mark.parametrize(
    ("carried", "owners", "wrong"),
    [
        (["gw1", "gw2"], ["gw1", "gw2"], 0),
        (["gw1"], ["gw1", "gw2"], 0),
        (["gw2"], ["gw1", "gw2"], 0),
        (["gw1", "gw2", "gw1"], ["gw1", "gw2", "gw1"], 0),
        (["gw1", "gw1"], ["gw1", "gw2", "gw1"], 0),
        (["gw1", "gw2", "gw1"], ["gw1", "gw2"], 1),
        (["gw1", "gw2", "gw1", "gw2"], ["gw1", "gw2"], 1),
        (["gw3"], ["gw1", "gw2"], 1),
    ],
)
def test_carriers_must_be_owners_in_order(carried: list[str], owners: list[str], wrong: int) -> None:
    runs = [Carriage(gateway, at, at, 1) for at, gateway in enumerate(carried)]
    assert len(overlaps(runs, owners)) == wrong
