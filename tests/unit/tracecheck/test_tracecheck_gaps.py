"""Journals that lack something are not wrong: what cannot be judged is told so; packed ones are read as any other."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from traced import client_story, gateway_story, owners_story, records, write

from jumpvpn.tracecheck import Finding, Verdict, validate
from jumpvpn.tracecheck.__main__ import main


@pytest.fixture(scope="module")
def without_one(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Finding]:
    """The findings on two lives, each with one line left out, by lane, and by story, lane and number.

    Not the last line of a lane: that there was one more, nothing tells.
    """
    place = tmp_path_factory.mktemp("gaps")
    files: list[Path] = []
    for name, story in (("client", client_story), ("gateway", gateway_story)):
        told = records(story().lines)
        last = {record["chain"]: gone for gone, record in enumerate(told)}
        for gone, record in enumerate(told):
            if gone == last[record["chain"]]:
                continue
            path = place / f"{name} {record['chain'][0]} {record['seq']}.jsonl"
            files.append(write(path, told[:gone] + told[gone + 1 :]))
    return {
        (Path(finding.journal).stem.split()[1], Path(finding.journal).stem): finding
        for finding in validate(files, each=True).findings
    }


def test_a_line_that_is_not_there_never_makes_a_record_wrong(without_one: dict[tuple[str, str], Finding]) -> None:
    assert len(without_one) > 50
    assert [finding for finding in without_one.values() if finding.verdict is Verdict.REJECTED] == []


def test_of_a_session_s_own_line_it_is_told_which_one_is_missing(
    without_one: dict[tuple[str, str], Finding],
) -> None:
    of_sessions = {name: finding for (lane, name), finding in without_one.items() if lane != "n"}
    for name, finding in of_sessions.items():
        number = name.split()[2]
        assert finding.verdict is (Verdict.INCOMPLETE if number == "1" else Verdict.MISSING)
        if number != "1":
            assert finding.at == f"{finding.chain}/{number}"
            assert "line missing" in finding.why
            assert "cannot be judged" in finding.why


def test_without_a_line_of_the_node_its_attempts_may_be_unseen(without_one: dict[tuple[str, str], Finding]) -> None:
    of_nodes = [finding for (lane, _), finding in without_one.items() if lane == "n"]
    assert len(of_nodes) > 5
    assert {finding.verdict for finding in of_nodes} == {Verdict.ACCEPTED}


def test_without_the_beginning_of_a_term_nobody_knows_which_branch_counts(tmp_path: Path) -> None:
    told = [records(tape.lines) for tape in owners_story()]
    told[1] = [record for record in told[1] if record["event"] != "ownership.acquired"]
    findings = validate([write(tmp_path / f"{number}.jsonl", lines) for number, lines in enumerate(told)]).findings
    kept = next(finding for finding in findings if "@" not in finding.chain)
    assert kept.verdict is Verdict.MISSING
    assert "owner epoch 2 begins is not in the given journals" in kept.why


def test_packed_and_rotated_journals_are_read_in_any_order(tmp_path: Path) -> None:
    whole = write(tmp_path / "client.jsonl", records(client_story().lines))
    told = records(client_story().lines)
    middle = len(told) // 2
    halves = (told[middle:], told[:middle])
    parts = [write(tmp_path / f"part{number}.jsonl", half) for number, half in enumerate(halves)]
    packed = [tmp_path / f"{path.name}.gz" for path in parts]
    for path, into in zip(parts, packed, strict=True):
        into.write_bytes(gzip.compress(path.read_bytes()))
    report = validate(packed)
    assert report.accepted
    assert report.findings == validate([whole]).findings


def test_a_damaged_packed_journal_is_not_judged_by_its_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "client.jsonl.gz"
    cut.write_bytes(gzip.compress(b"".join(client_story().lines))[:-40])
    assert main([str(cut)]) == 2
    assert "client.jsonl.gz: the compressed data is damaged or cut off" in capsys.readouterr().err
