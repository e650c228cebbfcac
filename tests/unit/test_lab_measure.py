"""Losses, duplicates and gaps computed from logs with a known truth."""

import hashlib
from array import array
from pathlib import Path

import pytest

from jumpvpn.lab import LabError
from jumpvpn.lab.emulator import frame_sizes
from jumpvpn.lab.measure import load_download, load_echo
from jumpvpn.lab.records import write_result
from jumpvpn.lab.traffic.download import Delivery
from jumpvpn.lab.traffic.pacing import Pacer
from jumpvpn.lab.traffic.pattern import BLOCK_BYTES, blocks, expected_sha256

MS = 1_000_000


def echo_file(path: Path, answers: dict[int, int], copies: dict[int, int]) -> Path:
    """One message per millisecond from 1000 ms on; `answers` are overrides of the answer's time in ms, 0 for none."""
    sent = array("q", [(1000 + number) * MS for number in range(100)])
    answered = array("q", [answers.get(number, 1000 + number + 2) * MS for number in range(100)])
    counts = array("H", [copies.get(number, 1 if answered[number] else 0) for number in range(100)])
    write_result(path, {"kind": "echo", "ended_ns": 3000 * MS}, {"sent": sent, "answered": answered, "copies": counts})
    return path


def test_outage_is_counted_exactly(tmp_path: Path) -> None:
    log = load_echo(echo_file(tmp_path / "log", dict.fromkeys(range(30, 50), 0), {60: 3}))
    window = log.window(1025 * MS, 1070 * MS)
    assert (window.sent, window.lost, window.duplicated) == (45, 20, 2)
    assert (window.gap_start_ns, window.gap_end_ns) == (1031 * MS, 1052 * MS)
    assert window.undelivered_ms == 21
    assert window.rtt_p50_ms == window.rtt_p99_ms == 2


def test_late_delivery_is_a_gap_but_no_loss(tmp_path: Path) -> None:
    log = load_echo(echo_file(tmp_path / "log", dict.fromkeys(range(30, 50), 1052), {}))
    window = log.window(1040 * MS, 1041 * MS)
    assert (window.sent, window.lost, window.undelivered_ms) == (1, 0, 21)


def test_quiet_window_shows_ordinary_spacing(tmp_path: Path) -> None:
    window = load_echo(echo_file(tmp_path / "log", {}, {})).window(1020 * MS, 1040 * MS)
    assert (window.lost, window.duplicated, window.undelivered_ms) == (0, 0, 1)


def test_outage_that_never_ends_lasts_until_the_last_message(tmp_path: Path) -> None:
    log = load_echo(echo_file(tmp_path / "log", dict.fromkeys(range(30, 100), 0), {}))
    assert log.window(1040 * MS, 5000 * MS).undelivered_ms == 1099 - 1031
    nothing = load_echo(echo_file(tmp_path / "log", dict.fromkeys(range(100), 0), {}))
    assert nothing.window(0, 5000 * MS).undelivered_ms == 99


def test_download_pauses_are_found_by_overlap(tmp_path: Path) -> None:
    delivery = Delivery(started_ns=0, last_ns=0)
    for instant in (1, 2, 3, 503, 504, 800):
        delivery.add(instant * MS, 1000)
    facts = {"kind": "download", "bucket_ns": 10 * MS, "started_ns": 0}
    arrays = {"buckets": delivery.buckets, "pause_starts": delivery.pause_starts, "pause_ends": delivery.pause_ends}
    write_result(tmp_path / "log", facts, arrays)
    log = load_download(tmp_path / "log")
    assert log.window(100 * MS, 200 * MS).undelivered_ms == 500
    assert log.window(503 * MS, 504 * MS).undelivered_ms == 0
    assert log.window(600 * MS, 601 * MS).gap_start_ns == 504 * MS
    assert sum(count for _, count in log.throughput()) * 10 * MS / 8e3 == pytest.approx(6000)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello")
    with pytest.raises(LabError, match="not a result"):
        load_echo(tmp_path / "log")
    with pytest.raises(LabError, match="not of download"):
        load_download(echo_file(tmp_path / "echo", {}, {}))


@pytest.mark.parametrize("size", [0, 5, 8, 100, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_pattern_has_its_size_and_hash(size: int) -> None:
    content = b"".join(bytes(piece) for piece in blocks(7, size))
    assert len(content) == size
    assert hashlib.sha256(content).hexdigest() == expected_sha256(7, size)


def test_pattern_shows_swapped_blocks() -> None:
    content = b"".join(bytes(piece) for piece in blocks(7, 2 * BLOCK_BYTES))
    assert content[:BLOCK_BYTES] != content[BLOCK_BYTES:]


def test_pacer_gives_up_what_it_missed() -> None:
    pacer = Pacer(interval_ns=10, next_ns=100, allowance=3)
    assert [pacer.due(now) for now in (99, 100, 105, 110, 125, 1000, 1001, 1010)] == [0, 1, 0, 1, 1, 3, 0, 1]
    assert pacer.wait_s(1012) == pytest.approx(8e-9)


def test_super_packet_counts_each_header_and_its_largest_segment() -> None:
    # virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; then Ethernet, IPv4, TCP of 20 bytes.
    header = b"\x01" + b"\x01" + b"\0\0" + (1448).to_bytes(2, "little") + (34).to_bytes(2, "little") + b"\0\0"
    tcp = bytes(12) + b"\x50" + bytes(7)
    frame = header + bytes(34) + tcp + bytes(2 * 1448 + 100)
    assert frame_sizes(frame) == (3 * 54 + 2 * 1448 + 100, 1448 + 40)
    assert frame_sizes(bytes(10) + bytes(60)) == (60, 46)
