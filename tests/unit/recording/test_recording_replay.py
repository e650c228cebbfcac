"""What both ends recorded comes out byte for byte when it is replayed; whatever was touched is found, and named."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from taped import OTHER, RULES, TapedWorld, lines_of, resummed, troubled

from jumpvpn.engine import inputs as inp
from jumpvpn.recording.entries import BadRecording, Changed
from jumpvpn.recording.journal import JournalCheck, NotInJournal
from jumpvpn.recording.replay import Difference, Replay, replay
from jumpvpn.values import Now

TURN = 16_000  # bytes of one turn at most: a reload writes two bodies of a policy


def replayed(lines: Sequence[bytes], before: list[Any] | None = None) -> tuple[Replay, list[bytes]]:
    produced: list[bytes] = []
    return deque(replay(lines, None, produced.append, before), maxlen=1).pop(), produced


def differs(lines: Sequence[bytes]) -> Difference:
    with pytest.raises(Difference) as caught:
        replayed(lines)
    return caught.value


@pytest.fixture(scope="module")
def calm() -> TapedWorld:
    """A short life in order: start, a dead network, an operator's wish, the end."""
    world = TapedWorld(RULES).start("eth0")
    world.second()
    world.down("eth0")
    world.run(1)
    world.up("eth0")
    world.run(2)
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    world.run(8)
    world.second()
    world.close()
    return world


@pytest.fixture
def lines(calm: TapedWorld) -> list[bytes]:
    return lines_of(calm.nodes["client"][0].shelf.segments[0])


# --- the same comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_process_of_both_ends_replays_byte_for_byte(seed: int) -> None:
    world = troubled(seed, RULES, OTHER)
    events = 0
    for node in (*world.nodes["client"], *world.nodes["gateway"]):
        (segment,) = node.shelf.segments
        run, produced = replayed(lines_of(segment))
        assert produced == node.journal
        assert run.ended or node is not world.nodes[run.header.role][-1]  # type: ignore[union-attr]
        events += len(produced)
    assert events > 20


def test_the_counts_are_those_of_the_run(calm: TapedWorld, lines: list[bytes]) -> None:
    run, produced = replayed(lines)
    counts = run.counts
    assert counts.inputs == sum(line.startswith(b'["in"') for line in lines) == counts.by_input.total()
    assert counts.events == len(produced) == sum(line.startswith(b"{") for line in lines) == counts.by_event.total()
    assert counts.commits == counts.by_input["CommitEnded"] == 5
    assert counts.by_event["transport.switch"] == len(calm.client_store.rows[calm.uid].session.switches) == 2
    assert counts.first is not None
    assert counts.last is not None
    assert counts.last.boot - counts.first.boot <= calm.now - 1_000 * 10**9
    assert run.sessions()[calm.uid].version == calm.client.session.version  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(12))
def test_each_segment_replays_alone_and_begins_where_the_one_before_ended(seed: int) -> None:
    world = troubled(seed, RULES, OTHER, size=24_000, faults=40)
    boundaries = 0
    for node in (*world.nodes["client"], *world.nodes["gateway"]):
        produced, state, gap, inputs = list[bytes](), None, node.tape._missed, 0
        for segment in node.shelf.segments:
            header = json.loads(lines_of(segment)[0])[1]
            gap += header["missed"]
            run, more = replayed(lines_of(segment), state if not header["missed"] else None)
            boundaries += state is not None and not header["missed"]
            produced, state, inputs = produced + more, run.state(), inputs + run.counts.inputs
        assert inputs + gap == node.told
        if not gap:
            assert produced == node.journal
        assert all(len(segment) < 24_000 + TURN for segment in node.shelf.segments)
    assert boundaries >= 1


def test_a_segment_that_begins_elsewhere_is_found() -> None:
    world = troubled(3, RULES, RULES, size=24_000, faults=40)
    first, second, *_ = world.nodes["client"][0].shelf.segments
    run, _ = replayed(lines_of(first))
    state = run.state()
    state[0][1]["_proposed"] += 1
    with pytest.raises(Difference, match=r"state in which this segment begins \(engine\)"):
        replayed(lines_of(second), state)


def test_a_recording_that_breaks_off_replays_to_there(lines: list[bytes]) -> None:
    whole, _ = replayed(lines)
    assert whole.ended
    for cut in range(12, len(lines) - 3, 7):
        run, produced = replayed([*lines[:cut], lines[cut][: len(lines[cut]) // 2]])
        assert not run.ended
        assert len(produced) >= sum(line.startswith(b"{") for line in lines[:cut])


def test_the_journal_of_the_node_is_the_recorded_one(calm: TapedWorld, lines: list[bytes]) -> None:
    journal = calm.nodes["client"][0].journal
    earlier = [b'{"an":"earlier run"}\n']
    assert [run.ended for run in replay(lines, None, JournalCheck("log", earlier + journal).expect)][-1]
    for damaged, words in (
        (journal[:-1], "log: an event of the recording is missing after line"),
        ([*journal[:4], *journal[5:]], "log: line 5 is not the event that was recorded there"),
    ):
        check = JournalCheck("log", damaged)
        with pytest.raises(NotInJournal, match=words):
            for _ in replay(lines, None, check.expect):
                pass


# --- what was touched is found ---------------------------------------------------------------------------------------


def index_of(lines: Sequence[bytes], kind: str, nth: int = 0) -> int:
    return [number for number, line in enumerate(lines) if f'"{kind}"'.encode() in line[:60]][nth]


def test_an_input_that_was_another_shows_at_the_first_moment_that_it_changes(
    calm: TapedWorld, lines: list[bytes]
) -> None:
    at = index_of(lines, "OperatorSwitch")
    lines[at] = lines[at].replace(b"eth0", b"wlan0")
    found = differs(lines)
    assert (found.line, found.kind) == (at + 2, "OperatorSwitch")
    assert found.input == sum(line.startswith(b'["in"') for line in lines[: at + 1])
    assert found.what == f"the node committed session {calm.uid}, the engine does not"
    assert isinstance(found.now, Now)


def test_an_input_at_another_time_shows_in_the_fields_that_tell_time(lines: list[bytes]) -> None:
    at = index_of(lines, "HandshakeAnswered")
    kind, boot, wall_ms, name, body = json.loads(lines[at])
    lines[at] = json.dumps([kind, boot + 1_000_000_000, wall_ms, name, body]).encode() + b"\n"
    found = differs(lines)
    assert found.what == "the machine produced another event than the node recorded"
    fields = {name: (mine, theirs) for name, mine, theirs in found.fields()}
    assert fields["mono_ms"][1] - fields["mono_ms"][0] == 1_000
    assert {"prev", "hash"} >= fields.keys() - {"mono_ms", "prev"}


def test_an_event_that_was_edited_is_shown_with_what_it_should_be(lines: list[bytes]) -> None:
    at = next(n for n, line in enumerate(lines) if b'"event":"transport.dead"' in line)
    lines[at] = lines[at].replace(b'"evidence":"link"', b'"evidence":"silence"')
    found = differs(lines)
    assert (found.line, found.fields()) == (at + 1, [("data.evidence", "silence", "link")])


def test_an_event_that_is_missing_is_shown(lines: list[bytes]) -> None:
    at = next(n for n, line in enumerate(lines) if b'"event":"session.state_change"' in line)
    found = differs(lines[:at] + lines[at + 1 :])
    assert found.produced is not None
    assert b"session" in found.produced or b"transport" in found.produced
    assert found.line == at + 1


def test_an_event_that_never_happened_is_shown(lines: list[bytes]) -> None:
    at = next(n for n, line in enumerate(lines) if line.startswith(b'["in"'))
    found = differs([*lines[:at], b'{"event":"x"}\n', *lines[at:]])
    assert found.what == "the recording has an event that the machine does not produce"
    assert (found.line, found.recorded) == (at + 1, b'{"event":"x"}\n')


@pytest.mark.parametrize("kind", ["settle", "emit", "note", "vouch"])
def test_a_moment_that_is_missing_is_found(lines: list[bytes], kind: str) -> None:
    at = next(n for n, line in enumerate(lines) if line.startswith(f'["{kind}"'.encode()))
    assert differs(resummed(lines[:at] + lines[at + 1 :])).line >= at + 1


def test_a_change_without_effect_is_found_by_the_sum(lines: list[bytes]) -> None:
    at = index_of(lines, "PathValidated")
    kind, boot, wall_ms, name, body = json.loads(lines[at])
    lines[at] = json.dumps([kind, boot, wall_ms, name, {**body, "rtt_ns": body["rtt_ns"] + 1}]).encode() + b"\n"
    with pytest.raises(Changed, match="changed since they were written") as caught:
        replayed(lines)
    assert lines[caught.value.line - 1].startswith(b'["sum"')
    replayed(resummed(lines))


def test_a_failed_commit_and_a_won_one_are_not_confused(lines: list[bytes]) -> None:
    at = next(n for n, line in enumerate(lines) if line.startswith(b'["settle"'))
    end = next(n for n, line in enumerate(lines) if b'"CommitEnded"' in line and n > at)
    events = [line for line in lines[at + 1 : end] if line.startswith(b"{")]
    found = differs([line for line in lines[:end] if line not in events and line is not lines[at]] + lines[end:])
    assert found.what == "a commit is said to have won, but the node never sealed it"


def test_an_engine_that_fails_shows_at_which_input(lines: list[bytes]) -> None:
    at = index_of(lines, "HandshakeAnswered")
    lines[at] = lines[at].replace(b'"transport":"eth0/udp/gw1"', b'"transport":"none/udp/gw1"')
    found = differs(resummed(lines))
    assert found.what.startswith("the engine fails at this input: KeyError")
    assert found.kind == "HandshakeAnswered"


def test_a_second_beginning_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(BadRecording, match="a second beginning"):
        replayed(lines + lines)


def test_the_order_of_segments_does_not_matter_to_a_replay_of_one() -> None:
    world = troubled(5, RULES, OTHER, size=24_000, faults=40)
    segments = [s for node in world.nodes["gateway"] for s in node.shelf.segments]
    random.Random(1).shuffle(segments)
    for segment in segments:
        replayed(lines_of(segment))
