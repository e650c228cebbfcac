"""The commands as people and programs meet them: words, JSON, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from taped import RULES, TapedWorld, lines_of, resummed, troubled

from jumpvpn.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jumpvpn", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            cli.app()
        said = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def world() -> TapedWorld:
    found = TapedWorld(RULES).start("eth0")
    found.second()
    found.down("eth0")
    found.run(1)
    found.up("eth0")
    found.run(9)
    found.close()
    return found


@pytest.fixture
def client(world: TapedWorld, tmp_path: Path) -> Path:
    node = world.nodes["client"][0]
    (tmp_path / "client.log").write_bytes(b"".join(node.journal))
    path = tmp_path / "client.rec"
    path.write_bytes(node.shelf.segments[0].replace(b'"program":"1.2.3"', b'"program":"0.1.0"'))
    path.write_bytes(b"".join(resummed(lines_of(path.read_bytes()))))
    return path


@pytest.fixture
def gateway(world: TapedWorld, tmp_path: Path) -> Path:
    path = tmp_path / "gateway.rec"
    path.write_bytes(world.nodes["gateway"][0].shelf.segments[0])
    return path


def edit(path: Path, old: bytes, new: bytes) -> int:
    """Replace the first occurrence, with right sums; the number of its line."""
    lines = lines_of(path.read_bytes())
    at = next(n for n, line in enumerate(lines) if old in line)
    lines[at] = lines[at].replace(old, new)
    path.write_bytes(b"".join(resummed(lines)))
    return at + 1


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_says_what_it_went_through(run: Run, client: Path, world: TapedWorld) -> None:
    code, said, errors = run("replay", client, "--log", client.with_name("client.log"))
    assert (code, errors) == (0, "")
    assert f"{client}: client client-1, run run1, segment 1" in said
    assert "inputs: " in said
    assert f"session {world.uid}: ATTACHED on eth0/udp/gw1, version" in said
    assert f"reproduced byte for byte, as in {client.with_name('client.log')}" in said


def test_replay_in_json(run: Run, client: Path, world: TapedWorld) -> None:
    code, said, _ = run("replay", client, "--json")
    document = json.loads(said)
    assert (code, document["result"], "failure" in document) == (0, "REPRODUCED", False)
    (part,) = document["files"]
    assert part["events"] == len(world.nodes["client"][0].journal)
    assert part["complete"] is True
    assert part["inputs"] == sum(part["inputs_by_kind"].values())
    assert part["sessions"][0]["state"] == "ATTACHED"
    assert part["virtual_ms"] > 5_000


def test_a_difference_is_shown_field_by_field(run: Run, client: Path) -> None:
    line = edit(client, b'"evidence":"link"', b'"evidence":"silence"')
    code, said, _ = run("replay", client)
    assert code == 1
    assert f"{client}: line {line}, after input" in said
    assert "the machine produced another event than the node recorded" in said
    assert 'data.evidence            recorded "silence", produced "link"' in said
    assert "reproduced" not in said
    code, said, _ = run("replay", client, "--json")
    failure = json.loads(said)["failure"]
    assert (code, failure["line"], failure["file"]) == (1, line, str(client))
    assert failure["fields"] == [{"field": "data.evidence", "recorded": "silence", "produced": "link"}]
    assert failure["recorded"]["event"] == "transport.dead"


def test_a_journal_that_differs_is_a_difference(run: Run, client: Path) -> None:
    log = client.with_name("client.log")
    log.write_bytes(log.read_bytes().replace(b'"evidence":"link"', b'"evidence":"other"'))
    code, said, _ = run("replay", client, "--log", log)
    assert code == 1
    assert "is not the event that was recorded there" in said


def test_changed_bytes_without_effect_are_a_difference(run: Run, client: Path) -> None:
    data = client.read_bytes()
    client.write_bytes(data.replace(b'"rtt_ns":20000000}', b'"rtt_ns":20000001}', 1))
    code, said, _ = run("replay", client)
    assert (code, "changed since they were written" in said) == (1, True)


def test_until_stops_there(run: Run, client: Path) -> None:
    code, said, _ = run("replay", client, "--until", "4", "--json")
    document = json.loads(said)
    assert (code, document["files"][0]["inputs"]) == (0, 4)
    code, said, _ = run("replay", client, "--until", "4")
    assert (code, "as far as was asked for" in said) == (0, True)


def test_a_recording_that_breaks_off_is_said_to(run: Run, client: Path) -> None:
    client.write_bytes(client.read_bytes()[:-200])
    code, said, _ = run("replay", client)
    assert code == 0
    assert "up to where the file breaks off" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x00\xff" * 99, "no recording of jumpvpn"),
        (b'{"chain":"n:a:b","event":"node.started"}\n', "an event journal, no recording"),
        (b'["recording",{"format":7,"program":"9.9"}]\n', "has format 7, this program reads 2"),
    ],
)
def test_what_is_no_recording_is_said_in_one_line(run: Run, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    code, said, _ = run("replay", path)
    assert code == 2
    assert words in said
    assert said.count(str(path)) == said.count("\n") == 1
    code, said, _ = run("replay", path, "--json")
    assert (code, json.loads(said)["result"]) == (2, "UNREADABLE")


def test_a_missing_file_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    code, said, errors = run("replay", tmp_path / "none")
    assert (code, said) == (2, "")
    assert errors == f"jumpvpn: error: {tmp_path / 'none'}: No such file or directory\n"


def test_hostile_words_reach_no_terminal(run: Run, client: Path) -> None:
    client.write_bytes(client.read_bytes() + b'["in",1,2,"Tick",{"\\u001b[2J":1}]\n')
    code, said, _ = run("replay", client)
    assert code == 2
    assert "\x1b" not in said


def test_another_programs_recording_is_replayed_and_said_to_be(run: Run, gateway: Path) -> None:
    code, said, errors = run("replay", gateway)
    assert (code, "reproduced byte for byte" in said) == (0, True)
    assert errors == "jumpvpn: recorded by jumpvpn 1.2.3, replayed by 0.1.0: differences may come from that\n"


def test_segments_in_any_order_are_replayed_in_theirs(run: Run, tmp_path: Path) -> None:
    world = troubled(4, RULES, RULES, size=24_000, faults=40, choose=lambda dice: dice.choice(("down", "up", "wait")))
    paths = []
    for number, segment in enumerate(world.nodes["client"][0].shelf.segments):
        paths.append(tmp_path / f"rec.{number}")
        paths[-1].write_bytes(segment)
    (tmp_path / "log").write_bytes(b"".join(world.nodes["client"][0].journal))
    code, said, _ = run("replay", *reversed(paths), "--json", "--log", tmp_path / "log")
    document = json.loads(said)
    assert code == 0
    assert [part["segment"] for part in document["files"]] == list(range(1, len(paths) + 1))
    edit(paths[1], b'"_proposed":', b'"_proposed":1')
    code, said, _ = run("replay", *paths)
    assert code == 1
    assert "the state in which this segment begins (engine) is not the one in which the segment before it ended" in said


# --- policy ----------------------------------------------------------------------------------------------------------

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
NODE = f'private_key_file = "k"\n[[gateway]]\nname = "gw1"\naddress = "h:1"\npublic_key = "{KEY}"\n'


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        'version = "2.5"\n[switching]\nhold_down = "3s"\n',
        '[policy]\nversion = "2.5"\n[policy.switching]\nhold_down = "3s"\n',
        f'{NODE}[policy]\nversion = "2.5"\n[policy.switching]\nhold_down = "3s"\n',
    ],
)
def test_a_policy_is_found_wherever_it_is(run: Run, tmp_path: Path, text: str) -> None:
    code, said, _ = run("policy", "check", written(tmp_path / "p.toml", text))
    assert code == 0
    assert said.startswith("valid: version 2.5, digest ")
    assert "quiet time after a switch           3s; it never delays" in said
    code, said, _ = run("policy", "check", tmp_path / "p.toml", "--json")
    document: dict[str, Any] = json.loads(said)
    assert (code, document["ok"], document["version"]) == (0, True, "2.5")
    assert {"what": "VOLATILE lasts at most", "bound": "4s"} in document["bounds"]


def test_a_policy_beside_a_configuration_is_found(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "p.toml", '[switching]\nhold_down = "3s"\n')
    text = f'policy_file = "p.toml"\n{NODE}[interfaces]\nprefer = ["eth*"]\n'
    code, said, _ = run("policy", "check", written(tmp_path / "client.toml", text), "--json")
    other, same, _ = run("policy", "check", written(
        tmp_path / "q.toml", '[switching]\nhold_down = "3s"\n[transports]\nprefer = ["interface:eth*"]\n'), "--json",
    )  # fmt: skip
    assert (code, other) == (0, 0)
    assert json.loads(said)["digest"] == json.loads(same)["digest"], "as the node uses it"


def test_every_problem_of_a_policy_is_told_with_its_line(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "p.toml", '[switching]\nhold_down = "x"\nnonsense = 1\n[security]\nkey_max_age = 1\n')
    code, said, _ = run("policy", "check", path)
    assert code == 1
    for words in ("line 2: switching.hold_down", "line 3: switching.nonsense: unknown", "line 5: security.key_max_age"):
        assert words in said
    code, said, _ = run("policy", "check", path, "--json")
    document = json.loads(said)
    assert (code, document["ok"]) == (1, False)
    assert [problem["line"] for problem in document["problems"]] == [2, 3, 5]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_policy_that_cannot_be_read_is_another_failure(run: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    code, said, errors = run("policy", "check", path)
    assert (code, said) == (2, "")
    assert errors.count("\n") == 1


# --- dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_stands_side_by_side(run: Run, client: Path, tmp_path: Path) -> None:
    policy = written(tmp_path / "p.toml", '[switching]\nmax_per_minute = 1\n[transports]\nprefer = ["eth0"]\n')
    code, said, _ = run("policy", "dry-run", policy, "--trace", client)
    assert code == 0
    head, *rows = said.splitlines()
    assert head.split("  ") != []
    assert [word for word in ("recorded", "same policy in the model", "new policy") if word not in head] == []
    switches = next(row for row in rows if row.startswith("switches"))
    assert switches.split() == ["switches", "2", "2", "1"]
    assert any(row.startswith("calibration") for row in rows)
    assert "assumptions of the model:" in rows
    code, said, _ = run("policy", "dry-run", policy, "--trace", client, "--json")
    document = json.loads(said)
    assert (code, document["new_policy_in_model"]["switches"], document["recorded"]["switches"]) == (0, 1, 2)


def test_recordings_that_do_not_serve_are_refused(run: Run, client: Path, gateway: Path, tmp_path: Path) -> None:
    policy = written(tmp_path / "p.toml", "")
    code, _, errors = run("policy", "dry-run", policy, "--trace", gateway)
    assert (code, "a gateway's recording" in errors) == (1, True)
    code, _, errors = run("policy", "dry-run", policy, "--trace", client, "--trace", client)
    assert (code, "does not follow" in errors) == (1, True)
    code, _, errors = run("policy", "dry-run", policy, "--trace", policy)
    assert (code, "is empty" in errors) == (2, True)
    edit(client, b'"evidence":"link"', b'"evidence":"silence"')
    code, _, errors = run("policy", "dry-run", policy, "--trace", client)
    assert (code, "the recording does not replay" in errors) == (1, True)
    wrong = written(tmp_path / "wrong.toml", "[policy.switching]\nhold_down = 'soon'\n")
    code, _, errors = run("policy", "dry-run", wrong, "--trace", client)
    assert (code, "must be a duration" in errors) == (1, True)
    code, _, errors = run("policy", "dry-run", tmp_path / "none.toml", "--trace", client)
    assert (code, "there is no such file" in errors) == (2, True)
