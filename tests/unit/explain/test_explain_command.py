"""The command: which log and moment it takes, and that nothing in a log or from a node ever ends in a traceback."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scenes import WALL_MS, began, restarted, rules

from jumpvpn.cli import explain as command
from jumpvpn.cli import node
from jumpvpn.cli.explain import Backwards, Question
from jumpvpn.cli.failures import Failure
from jumpvpn.engine import outlook
from jumpvpn.explain.history import NEWEST_KEPT, Collector, Wanted
from jumpvpn.explain.records import LONGEST_LINE, parse
from jumpvpn.sim.world import World
from unit.answering import answering

NOW = Question("", None, None)


def incident() -> World:
    """Both networks vanish for 10 s, then one is back."""
    world = began()
    world.run(5)
    world.down("wlan0", "eth0")
    world.run(10)
    world.up("eth0")
    world.run(5)
    return world


INCIDENT = incident()
UID = INCIDENT.uid
CLIENT, GATEWAY = INCIDENT.journals["client"].lines, INCIDENT.journals["gateway"].lines


def written(tmp_path: Path, lines: list[bytes], name: str = "events.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(b"".join(lines))
    return path


def answer(log: Path, capsys: pytest.CaptureFixture[str], question: Question = NOW) -> dict[str, Any]:
    command.run(question, None, None, log, as_json=True)
    return dict(json.loads(capsys.readouterr().out))


def refusal(log: Path | None, question: Question = NOW, control: Path | None = None) -> str:
    with pytest.raises(Failure) as failure:
        command.run(question, control, None, log, as_json=False)
    assert failure.value.code == 2
    assert "\n" not in str(failure.value)
    return str(failure.value)


# --- which session and moment ----------------------------------------------------------------------------------------


def test_the_only_session_needs_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path, CLIENT)
    assert answer(log, capsys)["session"] == UID
    assert answer(log, capsys, Question(UID[:3], None, None))["session"] == UID
    assert "no session 'zzz'" in refusal(log, Question("zzz", None, None))
    assert UID in refusal(log, Question("zzz", None, None))


def test_several_sessions_of_a_gateway_have_to_be_named(tmp_path: Path) -> None:
    other = began(rules(session={"transport_ttl": "31s"}))
    lines = [line.replace(UID.encode(), b"d8" + UID[2:].encode()[::-1]) for line in other.journals["gateway"].lines]
    log = written(tmp_path, [*GATEWAY, *lines])
    text = refusal(log)
    assert "several sessions" in text
    assert UID in text
    assert "is the beginning of several" in refusal(log, Question("d8", None, None))


def test_a_clients_newest_session_is_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = [line.replace(UID.encode(), b"0123456789abcdef") for line in began().journals["client"].lines]
    assert answer(written(tmp_path, [*older, *CLIENT]), capsys)["session"] == UID


@pytest.mark.parametrize("words", ["-7s", "-7", "-7000ms"])
def test_a_moment_counted_from_the_end(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(written(tmp_path, CLIENT), capsys, Question("", words, None))
    assert found["state"] == "DEGRADED"
    assert [step["into"] for step in found["then"]][-1] == "ATTACHED"
    assert {due["name"] for due in found["next"]} >= {"transport_ttl", "episode"}


def test_a_moment_by_the_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, CLIENT)
    gone = next(r for r in map(parse, CLIENT) if r is not None and r.state == "DEGRADED").time_ms
    moment = datetime.fromtimestamp((gone + 2000) / 1000).astimezone()
    for words in (f"{moment:%H:%M:%S}", moment.isoformat(), f"{moment:%Y-%m-%dT%H:%M:%S}"):
        assert answer(log, capsys, Question("", words, None))["state"] == "DEGRADED"
    assert "is no time" in refusal(log, Question("", "yesterday", None))
    assert "is no time" in refusal(log, Question("", "25:99:00", None))
    assert "ends at" in refusal(log, Question("", "2999-01-01T00:00:00Z", None))
    assert "no session at or before that time" in refusal(log, Question("", "2001-01-01T00:00:00Z", None))
    assert "two moments" in refusal(log, Question("", "-5s", "3"))


def test_an_event_by_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path, CLIENT)
    degraded = next(r for r in map(parse, CLIENT) if r is not None and r.state == "DEGRADED")
    for words in (str(degraded.seq), degraded.ref):
        found = answer(log, capsys, Question("", None, words))
        assert found["state"] == "DEGRADED"
        assert degraded.ref in found["source"]
    assert "holds no event" in refusal(log, Question("", None, "9999"))
    assert "is no event" in refusal(log, Question("", None, "c:x/y"))
    assert "is no event" in refusal(log, Question("", None, "²"))


def test_a_log_of_both_ends_is_told_from_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(written(tmp_path, [*GATEWAY, *CLIENT]), capsys)
    alone = answer(written(tmp_path, CLIENT, "client.jsonl"), capsys)
    assert found["why"] == alone["why"]


def test_lines_that_were_exported_twice_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = answer(written(tmp_path, CLIENT), capsys)
    for begin in range(0, len(CLIENT), 7):
        doubled = [*CLIENT[: begin + 9], *CLIENT[begin : begin + 9], *CLIENT[begin + 9 :]]
        assert answer(written(tmp_path, doubled), capsys)["why"] == alone["why"]


def test_a_moment_within_lines_that_were_exported_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [r for r in map(parse, CLIENT) if r is not None and r.event == "session.state_change"]
    log = written(tmp_path, CLIENT, "once.jsonl")
    for record in own:
        place = next(i for i, line in enumerate(CLIENT) if parse(line) == record)
        doubled = written(tmp_path, [*CLIENT[: place + 6], *CLIENT[place - 1 : place + 6], *CLIENT[place + 6 :]])
        question = Question("", None, record.ref)
        once, twice = answer(log, capsys, question), answer(doubled, capsys, question)
        for part in ("state", "why", "then", "networks"):
            assert twice.get(part) == once.get(part), (record.ref, part)


def test_the_network_whose_death_is_told_is_not_called_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = next(r for r in map(parse, CLIENT) if r is not None and r.reason == "transport_dead" and r.transport)
    command.run(Question("", None, dead.ref), None, None, written(tmp_path, CLIENT), as_json=False)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if dead.transport.split("/")[0] + "  " in line)
    assert "gone" in line


def test_a_new_process_does_not_know_the_networks_of_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = restarted()
    log = written(tmp_path, world.journals["gateway"].lines)
    command.run(Question(world.uid, None, None), None, None, log, as_json=False)
    said = capsys.readouterr().out
    assert "good for" not in said


def test_a_log_that_begins_late_says_what_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(written(tmp_path, CLIENT[-8:]), capsys)
    assert any("does not reach back to the birth" in note for note in found["notes"])
    assert "lifetime" not in {due["name"] for due in found["next"]}


# --- ends ------------------------------------------------------------------------------------------------------------


def _ended() -> World:
    world = began(rules(session={"transport_ttl": "30s"}))
    world.down("wlan0", "eth0")
    world.run(40)
    return world


def test_an_end_is_checked_against_its_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(written(tmp_path, _ended().journals["client"].lines), capsys)
    verdict = found["verdict"]
    assert (verdict["name"], verdict["value"]) == ("transport_ttl", "30 s")
    assert -1 <= verdict["passed_ms"] <= 1
    assert found["would_have_saved"]


def test_an_end_before_its_deadline_is_called_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = []
    for line in _ended().journals["client"].lines:
        record = json.loads(line)
        if record["state"] == "TERMINATED":
            record["mono_ms"] -= 10_000
            record["time_ms"] -= 10_000
        forged.append(json.dumps(record).encode() + b"\n")
    log = written(tmp_path, forged)
    assert answer(log, capsys)["verdict"]["passed_ms"] == pytest.approx(-10_000, abs=2)
    command.run(NOW, None, None, log, as_json=False)
    assert "would have passed only at" in capsys.readouterr().out


# --- hostile logs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no event record"),
        (b"\n\n\n", "no event record"),
        (b"no newline", "no event record"),
        (os.urandom(100_000), "no event record"),
        (b'{"a":1}\n' * 100, "no event record"),
        (b"\x1f\x8bcompressed", "unpack it"),
        (b"[" * 200_000 + b"\n", "no event record"),
        (b'{"event":"x","chain":"c:a","seq":1,"time_ms":1,"mono_ms":1}\n', "holds no session"),
        (b'{"event":"x","chain":"c:a","seq":1e400,"time_ms":NaN,"mono_ms":1}\n', "no event record"),
    ],
)
def test_what_is_no_event_log_is_said_to_be_none(content: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path, [content]))


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "No such file" in refusal(tmp_path / "missing")


def test_lines_of_any_length_are_skipped_with_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = b'"' + b"x" * (2 * LONGEST_LINE) + b'"\n'
    found = answer(written(tmp_path, [*CLIENT[:-3], long, b"{broken\n", *CLIENT[-3:]]), capsys)
    assert found["session"] == UID
    assert "2 lines of the log could not be read and were skipped" in found["notes"]


def test_a_cut_last_line_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(written(tmp_path, [*CLIENT[:-1], CLIENT[-1][:100]]), capsys)
    assert found["why"] == answer(written(tmp_path, CLIENT[:-1]), capsys)["why"]


def test_control_characters_never_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\u202e[bold]"
    forged = []
    for line in CLIENT:
        record = json.loads(line)
        record["reason"] = evil if record["reason"] else None
        record["node_id"] = evil
        if record["transport"]:
            record["transport"]["id"] = evil + record["transport"]["id"]
        record["data"] = {k: evil if isinstance(v, str) and k != "row" else v for k, v in record["data"].items()}
        forged.append(json.dumps(record).encode() + b"\n")
    command.run(NOW, None, None, written(tmp_path, forged), as_json=False)
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400), st.just("TERMINATED"),
    st.sampled_from(["ATTACHED", "DEGRADED", "RECOVERING", "BIRTH", "4", "24", "silence", "removed", "DENIED"]),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def _mutated(lines: list[bytes], kind: str, at: int, data: st.DataObject) -> None:
    """Change one line, or the order of lines, in place."""
    match kind:
        case "value":
            record = json.loads(lines[at])
            record[data.draw(st.sampled_from(sorted(record)))] = data.draw(VALUES)
            lines[at] = json.dumps(record).encode() + b"\n"
        case "data":
            record = json.loads(lines[at])
            keys = [*record["data"], "bounds", "body", "row", "deadline_ms", "kind"]
            record["data"][data.draw(st.sampled_from(keys))] = data.draw(VALUES)
            lines[at] = json.dumps(record).encode() + b"\n"
        case "bytes":
            cut = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:cut] + data.draw(st.binary(max_size=4)) + lines[at][cut:]
        case "drop":
            del lines[at]
        case "swap":
            lines[at], lines[-1] = lines[-1], lines[at]
        case "double":
            lines.insert(at, lines[-1])


@hypothesis_settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mutation_of_a_log_ends_in_anything_but_an_explanation_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines = list(data.draw(st.sampled_from([CLIENT, GATEWAY])))
    untouched = set(lines)
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["value", "data", "bytes", "drop", "swap", "double"]))
        whole = [index for index, line in enumerate(lines) if line in untouched]
        _mutated(lines, kind, data.draw(st.sampled_from(whole)), data)
    moment = data.draw(st.sampled_from([(None, None), ("-3s", None), ("-12s", None), (None, "5"), (None, "12")]))
    log = tmp_path_factory.mktemp("fuzz") / "log"
    log.write_bytes(b"".join(lines))
    refused: list[int] = []
    for as_json in (True, False):
        try:
            command.run(Question("", *moment), None, None, log, as_json=as_json)
        except Failure as failure:
            refused.append(failure.code)
    assert refused in ([], [2, 2])
    log.unlink()


def test_memory_is_bounded_by_the_window_not_by_the_episode() -> None:
    dice = random.Random(7)
    collector = Collector(Wanted(UID))
    template = json.loads(
        next(line for line in reversed(CLIENT) if b'"transport.health"' in line or b"candidate" in line)
    )
    for number in range(20_000, 0, -1):
        template["seq"], template["mono_ms"] = number, template["mono_ms"] - dice.randrange(3)
        collector.feed(json.dumps(template).encode())
    for line in reversed(CLIENT):
        collector.feed(line.rstrip(b"\n"))
    found = collector.history()
    assert len(found.records) <= NEWEST_KEPT + 100
    assert found.left_out > 19_000


# --- reading backwards -----------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 50), st.binary(max_size=10))
def test_reading_backwards_gives_the_lines_of_the_file_reversed(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], chunk: int, tail: bytes
) -> None:
    lines = [piece.replace(b"\n", b"") for piece in pieces]
    path = tmp_path_factory.mktemp("back") / "file"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + tail.replace(b"\n", b""))
    if path.read_bytes()[:2] == b"\x1f\x8b":
        return
    before = command._READ_BYTES
    command._READ_BYTES = chunk
    try:
        with Backwards.open(path) as found:
            assert list(found) == [line for line in reversed(lines) if line]
    finally:
        command._READ_BYTES = before


# --- a running node --------------------------------------------------------------------------------------------------


@contextmanager
def foreseeing(path: Path, told: Mapping[str, Any]) -> Iterator[None]:
    """A node at ``path`` whose ``outlook`` is ``told``."""

    async def outlook(args: Mapping[str, Any]) -> Any:
        return {**told, "asked": args.get("session")}

    with answering(path, {"outlook": outlook}):
        yield


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return written(tmp_path, CLIENT)


@pytest.fixture
def socket(tmp_path: Path, journal: Path) -> Iterator[Path]:
    told = outlook.of_client(INCIDENT.client, "", INCIDENT.clock().boot)
    where = {"role": "client", "node": "laptop", "events_file": str(journal)}
    path = tmp_path / "c.sock"
    with foreseeing(path, {**where, "time_ms": INCIDENT.clock().wall_ms, **told}):
        yield path


def test_a_running_node_tells_the_present_and_its_journal_the_causes(
    socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(NOW, socket, None, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["live"] is True
    assert (found["state"], found["session"]) == ("ATTACHED", UID)
    assert [step["into"] for step in found["why"] if step["into"]][-1] == "ATTACHED"
    assert "rekey" in {due["name"] for due in found["next"]}


def test_a_running_nodes_past_comes_from_its_journal(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(Question("", "-9s", None), socket, None, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "DEGRADED"


def test_without_its_journal_a_node_still_tells_the_present(
    socket: Path, journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.unlink()
    command.run(NOW, socket, None, None, as_json=False)
    shown = capsys.readouterr().out
    assert "ATTACHED" in shown
    assert "the causes are not known" in shown


def test_neither_a_node_nor_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "DEFAULT_EVENTS", (tmp_path / "none.jsonl",))
    text = refusal(None, control=tmp_path / "nobody.sock")
    assert "no node answers" in text
    assert "--log" in text


def test_a_dead_nodes_journal_is_read_from_its_usual_place(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "DEFAULT_EVENTS", (journal,))
    monkeypatch.setattr(node, "DEFAULT_SOCKETS", (tmp_path / "nobody.sock",))
    monkeypatch.delenv(node.SOCKET_VARIABLE, raising=False)
    command.run(NOW, None, None, None, as_json=False)
    assert "the node does not run" in capsys.readouterr().out


def test_an_answer_in_another_form_is_a_node_of_another_version(tmp_path: Path) -> None:
    strange = {
        "role": "client", "node": "x", "time_ms": WALL_MS, "events_file": "/none", "known": [], "session": {"uid": "a"},
    }  # fmt: skip
    with foreseeing(tmp_path / "s.sock", strange), pytest.raises(Failure) as failure:
        command.run(NOW, tmp_path / "s.sock", None, None, as_json=False)
    assert "are both of one version" in str(failure.value)


# --- what a log tells of transports ----------------------------------------------------------------------------------


def test_a_silent_transport_is_not_called_good_when_the_session_has_left_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = began()
    world.run(3)
    world.blackhole("wlan0")
    world.until(lambda: world.active == "eth0", 5)
    found = answer(written(tmp_path, world.journals["client"].lines), capsys)
    verdicts = {seen["transport"]: seen["verdict"] for seen in found["candidates"]}
    assert verdicts["eth0"] == "active"
    assert verdicts["wlan0"] in ("silent", "dead")


def test_records_of_one_row_are_one_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path, CLIENT)
    back = [r for r in map(parse, CLIENT) if r is not None and r.row == "16.client" and r.mutates]
    told = [answer(log, capsys, Question("", None, record.ref)) for record in back]
    assert len(told) > 2
    assert all(found["why"][-1]["text"].startswith("moved from wlan0 to eth0") for found in told)
    assert all(found["then"] == told[0]["then"] for found in told)
