"""Segments on disk: private, bounded, rotated; what cannot be written ends the recording, never the node."""

from __future__ import annotations

import errno
import json
import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from taped import RULES, Shelf, TapedWorld, lines_of, policy

from jumpvpn.audit.addresses import shown_address
from jumpvpn.audit.sealing import Origin
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.client import ClientEngine
from jumpvpn.policy.model import Policy
from jumpvpn.recording.entries import BadRecording
from jumpvpn.recording.files import tape_into
from jumpvpn.recording.replay import replay
from jumpvpn.recording.series import header_of, segments
from jumpvpn.recording.tape import Tape
from jumpvpn.values import DomainEvent, Instant, Now, TransportId

NOW = Now(Instant(10**12), 1_700_000_000_000)
STARTED = DomainEvent("node.started", "N", data={"role": "client"})


class Node:
    """A client's engine that records into ``path``; ``said`` is what a person would read."""

    def __init__(self, path: Path, *, size: int = 1 << 20, keep: int = 3, run: str = "r1") -> None:
        self.said: list[str] = []
        self.engine = ClientEngine(Policy())
        self.tape = tape_into(path, size, keep, self.engine, self.said.append)
        origin = Origin("client-1", "standalone", "boot", run, "client")
        self.sealer = self.tape.sealer(origin, Policy(), shown_address)
        self.at = NOW.boot
        self.sealer.note((STARTED,), NOW)

    def tell(self, count: int = 1) -> None:
        for _ in range(count):
            self.at = Instant(self.at + 1_000_000)
            now = Now(self.at, NOW.wall_ms)
            reachable = inp.Reachable(TransportId("a/udp/g"), "a", "udp", "g", "192.0.2.1:1", f"10.0.0.{self.at % 200}")
            event = inp.TransportsChanged((reachable,))
            self.tape.heard(event, now)
            self.tape.ordered(self.engine.handle(event, now))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.rec"


def test_a_recording_is_private_and_complete_when_closed(path: Path) -> None:
    node = Node(path)
    node.tell(3)
    node.tape.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [run.ended for run in replay(lines_of(path.read_bytes()))][-1]
    assert node.said == []


def test_what_was_flushed_outlives_a_kill(path: Path) -> None:
    node = Node(path)
    node.tell(3)
    node.tape.flush()
    node.tell(2)
    run = list(replay(lines_of(path.read_bytes())))[-1]
    assert (run.counts.inputs, run.ended) == (3, False)


def test_the_next_run_moves_the_last_one_on(path: Path) -> None:
    for number in range(1, 6):
        node = Node(path, run=f"r{number}")
        node.tell(number)
        node.tape.close()
    found = segments([path, path.with_name("node.rec.1"), path.with_name("node.rec.2")])
    assert sorted(segment.header.run for segment in found) == ["r3", "r4", "r5"]
    assert header_of(path).run == "r5"
    assert len(list(path.parent.iterdir())) == 3


def test_full_segments_rotate_within_their_bound(path: Path) -> None:
    node = Node(path, size=20_000, keep=3)
    node.tell(2_000)
    node.tape.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["node.rec", "node.rec.1", "node.rec.2"]
    assert all(file.stat().st_size <= 20_000 for file in files)
    found = segments(files)
    assert [segment.header.segment for segment in found] == sorted(segment.header.segment for segment in found)
    assert all(later.follows(earlier) for earlier, later in pairwise(found))
    assert not found[0].follows(found[1])
    assert not found[0].follows(None)
    for segment in found:
        list(replay(segment.lines()))


def test_keeping_one_file_keeps_the_present_one(path: Path) -> None:
    node = Node(path, size=20_000, keep=1)
    node.tell(500)
    node.tape.close()
    assert [file.name for file in path.parent.iterdir()] == ["node.rec"]


def test_a_full_disk_ends_the_recording_and_says_so_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, real = Node(path), os.write

    def full(fd: int, data: Any) -> int:
        if bytes(data[:1]) in (b"[", b"{"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    node.tell(3)
    node.tape.flush()
    node.tell(2_000)
    node.sealer.note((STARTED,), NOW)
    node.tape.close()
    advice = "free some space or lower [recording] size or keep"
    assert node.said == [f"recording to {path} ends: No space left on device; {advice}; the node goes on without it"]


@pytest.mark.parametrize("kind", ["journal", "fifo", "directory", "missing parent of a file", "symlink"])
def test_what_cannot_hold_a_recording_is_left_alone(path: Path, kind: str) -> None:
    other = path.with_name("other")
    match kind:
        case "journal":
            path.write_bytes(b'{"event":"node.started"}\n')
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "symlink":
            other.write_bytes(b"mine")
            path.symlink_to(other)
        case _:
            other.write_bytes(b"mine")
            path = other / "node.rec"
    before = {p: p.lstat().st_ino for p in other.parent.iterdir()}
    node = Node(path)
    node.tell(2)
    node.tape.close()
    assert len(node.said) == 1
    assert f"recording to {path} ends: " in node.said[0]
    assert {p: p.lstat().st_ino for p in other.parent.iterdir()} == before


def test_two_nodes_never_share_a_file(path: Path) -> None:
    first, second = Node(path), Node(path, run="r2")
    first.tell(1)
    first.tape.close()
    advice = "choose another [recording] file"
    assert second.said == [
        f"recording to {path} ends: another node records into it; {advice}; the node goes on without it"
    ]
    assert header_of(path).run == "r1"


def test_sessions_that_fill_a_segment_end_the_recording_with_advice() -> None:
    world = TapedWorld(policy(), size=12_000).start("wlan0")
    world.close()
    shelf: Shelf = world.nodes["client"][0].shelf
    assert shelf.state_was_too_big == 0
    small = TapedWorld(policy(), size=2_000)
    assert small.nodes["client"][0].shelf.state_was_too_big > 1_000


def test_the_advice_for_many_sessions_names_a_size(path: Path) -> None:
    node = Node(path, size=2_000)
    node.tell(1)
    assert len(node.said) == 1
    assert "raise [recording] size to" in node.said[0]


def test_inputs_while_a_commit_is_under_way_at_the_end_of_a_segment_are_counted() -> None:
    world = TapedWorld(RULES, size=16_000)
    world.measures = True
    world.start("wlan0")
    world.client_store.delay = 3_000_000_000
    world.down("wlan0")
    world.run(2.5)
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    for _ in range(400):
        world.post("client", inp.PathHeard(world.uid, world.id("eth0")))
    world.run(0)
    world.client_store.delay = 0
    world.run(10)
    world.close()
    full, next_one, *_ = [lines_of(segment) for segment in world.nodes["client"][0].shelf.segments]
    assert 16_000 <= sum(map(len, full)) < 24_000
    missed = json.loads(next_one[0])[1]["missed"]
    assert missed > 100
    told = [run.counts.inputs for run in (list(replay(full))[-1], list(replay(next_one))[-1])]
    assert told[0] + missed + told[1] <= world.nodes["client"][0].told


def test_files_that_are_no_recordings_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"hello\n")
    with pytest.raises(BadRecording, match="empty: is empty"):
        segments([tmp_path / "empty"])
    with pytest.raises(BadRecording, match="other: no recording of jumpvpn"):
        segments([tmp_path / "other"])
    with pytest.raises(FileNotFoundError):
        segments([tmp_path / "missing"])


def test_a_tape_without_room_is_silent(path: Path) -> None:
    shelf = Shelf(room=0)
    tape = Tape(shelf, ClientEngine(Policy()), salt=b"s" * 32, size=1 << 20, program="1")
    sealer = tape.sealer(Origin("c", "s", "b", "r", "client"), Policy(), shown_address)
    sealer.note((STARTED,), NOW)
    tape.heard(inp.Tick(), NOW)
    tape.close()
    assert shelf.closed
    assert shelf.segments == [bytearray()]
