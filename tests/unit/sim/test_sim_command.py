"""``python -m jumpvpn.sim``: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jumpvpn.session import deadlines
from jumpvpn.sim.__main__ import main


@pytest.fixture
def endless_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that forgot its transport TTL."""
    all_of = deadlines.deadlines
    monkeypatch.setattr(deadlines, "deadlines", lambda s: tuple(d for d in all_of(s) if d.name != "transport_ttl"))


def test_a_campaign_reports_what_it_covered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "6", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("6 seeds, ")
    assert "virtual hours" in printed
    assert "ATTACHED, ATTACHED" in printed
    assert "no seed reached" in printed
    assert printed.rstrip().endswith("0 of 6 seeds failed")


def test_figures_are_the_same_from_one_process_or_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for jobs, file in zip(("1", "2"), files, strict=True):
        assert main(["--seeds", "4", "--first", "10", "--jobs", jobs, "--output", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    body = json.loads(files[0].read_text())
    assert body["seeds"] == 4
    assert body["failed"] == []
    assert body["rows"]["1"] > 0
    assert body["reasons"]["handshake_ok"] > 0
    assert body["properties"]["VERSION"] > 0
    assert "29" in body["rows_not_reached"]
    capsys.readouterr()


@pytest.mark.usefixtures("endless_ttl")
def test_a_failing_seed_is_told_with_its_transcript_and_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "20", "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    first = printed.index("FAILED FINITE: expected an end to ")
    told = printed[first:]
    assert "session.transport_ttl has passed" in told
    assert " s  fault    " in told
    assert "BIRTH > ATTACHED: handshake_ok" in told
    command = next(line for line in told.splitlines() if line.startswith("again: "))
    seed = command.removeprefix("again: python -m jumpvpn.sim --seed ")
    assert main(["--seed", seed]) == 1
    again = capsys.readouterr().out
    assert again.rstrip() == told[: told.index(command) + len(command)]


@pytest.mark.usefixtures("endless_ttl")
def test_a_failing_seed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "20", "--jobs", "1", "--json"]) == 1
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert "FINITE" in {one["property"] for one in failed}
    assert failed[0]["command"] == f"python -m jumpvpn.sim --seed {failed[0]['seed']}"


def test_one_seed_prints_its_transcript(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("seed 1: ")
    assert "everything is healed" in "\n".join(printed)
    assert printed[-1].startswith("every promise held: ")
    assert main(["--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transcript"] == printed[:-1]


def test_journals_are_written_per_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "2", "--first", "5", "--jobs", "1", "--journal", str(tmp_path / "new")]) == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["5-client.jsonl", "5-gateway.jsonl", "6-client.jsonl", "6-gateway.jsonl"]
    assert (tmp_path / "new" / "5-gateway.jsonl").read_bytes().startswith(b"{")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "--seeds: must be between 1 and"),
        (["--seed", "-1"], "--seed: must be between 0 and"),
        (["--jobs", "0"], "--jobs: must be between 1 and 256"),
        (["--first", str(2**70)], "--first: must be between 0 and"),
        (["--seeds", "many"], "invalid int value"),
    ],
)
def test_wrong_use_says_what_to_do(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main(["--seed", "1", "--output", str(file / "below")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["--seed", "1", "--journal", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
