"""What frames tell about who carried the client's messages, and which orders of carriers are wrong."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from jumpvpn.lab.cluster import capture
from jumpvpn.lab.cluster.capture import Capture, Carriage, Seen, Sight, carriages, forwarded, hardware, overlaps
from jumpvpn.lab.records import write_result
from jumpvpn.lab.traffic.echo import MESSAGE_BYTES

GW1, GW2 = hardware("02:00:00:00:00:01"), hardware("02:00:00:00:00:02")
NAMES = {GW1: "gw1", GW2: "gw2"}
SERVER, CLIENT = "10.99.0.2", "10.77.0.2"


def packet(source: str, target: str, ports: tuple[int, int], *numbers: int) -> bytes:
    body = b"".join(struct.pack(">Q", number) + bytes(MESSAGE_BYTES - 8) for number in numbers)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0) + addresses + struct.pack(
        ">HHHH", *ports, 8 + len(body), 0
    ) + body  # fmt: skip


def frame(target: int, source: int, kind: bytes, content: bytes) -> bytes:
    return target.to_bytes(6, "big") + source.to_bytes(6, "big") + kind + content


def look(tmp_path: Path, *frames: tuple[bytes, bool, int]) -> list[Seen]:
    """What a capture makes of frames, through its file."""
    found = Capture(bytes([10, 77, 0]))
    for one in frames:
        found._look(*one)
    path = tmp_path / "seen"
    write_result(path, {}, dict(zip(("sights", "at", "gateways", "numbers"), found._rows, strict=True)))
    return capture.load(path)


def test_frames_become_sightings(tmp_path: Path) -> None:
    up = packet(CLIENT, SERVER, (40000, 7007), 5)
    down = packet(SERVER, CLIENT, (7007, 40000), 5, 6)
    arp = struct.pack(">HHBBH", 1, 0x800, 6, 4, 2) + GW2.to_bytes(6, "big") + socket.inet_aton(CLIENT) + bytes(10)
    server = 0x0200000000FF
    seen = look(
        tmp_path,
        (frame(server, GW1, b"\x08\x00", up), False, 1),
        (frame(GW2, server, b"\x08\x00", down), True, 1),
        (frame(server, GW2, b"\x08\x06", arp), False, 1),
        (down, False, 65534),
        (up, True, 65534),  # what the client sends into its tunnel is no acceptance
        (frame(server, GW1, b"\x08\x00", packet("192.0.2.9", SERVER, (40000, 7007), 5)), False, 1),
    )
    inner = int.from_bytes(socket.inet_aton(CLIENT), "big")
    assert [(s.sight, s.gateway, s.number) for s in seen] == [
        (Sight.FORWARDED, GW1, 5), (Sight.RETURNED, GW2, 5), (Sight.RETURNED, GW2, 6), (Sight.CLAIMED, GW2, inner),
        (Sight.ACCEPTED, 0, 5), (Sight.ACCEPTED, 0, 6),
    ]  # fmt: skip


def returned(number: int, gateway: int) -> Seen:
    return Seen(Sight.RETURNED, number, gateway, number)


def accepted(at_ns: int, number: int) -> Seen:
    return Seen(Sight.ACCEPTED, at_ns, 0, number)


def test_acceptance_is_traced_to_its_carrier() -> None:
    server = [returned(1, GW1), returned(2, GW1), returned(2, GW2), returned(3, GW2), returned(4, GW2)]
    client = [accepted(10, 1), accepted(20, 2), accepted(30, 3), accepted(40, 4), accepted(50, 99)]
    assert carriages(client, server, NAMES) == [Carriage("gw1", 10, 10, 1), Carriage("gw2", 30, 40, 2)]


def test_messages_sent_up_are_ordered_by_when_the_client_sent_them() -> None:
    server = [Seen(Sight.FORWARDED, at, gateway, number) for at, gateway, number in
              ((10, GW1, 1), (30, GW2, 3), (31, GW1, 2), (32, GW2, 2), (40, GW2, 4))]  # fmt: skip
    assert [run.gateway for run in forwarded(server, NAMES)] == ["gw1", "gw2"]  # 2 went twice and tells nothing
    late = [*server, Seen(Sight.FORWARDED, 50, GW1, 5)]
    assert [run.gateway for run in forwarded(late, NAMES)] == ["gw1", "gw2", "gw1"]


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
