"""Journals of several gateways as one trace: ordered by term and version, tails apart, takeovers as they may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traced import Records, owners_story, records, write

from jumpvpn.tracecheck import Finding, Verdict, validate
from jumpvpn.tracecheck.__main__ import main


def _journals(place: Path, change: Callable[[list[Records]], None] = lambda _told: None) -> list[Path]:
    told = [records(tape.lines) for tape in owners_story()]
    change(told)
    return [write(place / f"{number}.jsonl", lines) for number, lines in enumerate(told)]


def _kept(findings: tuple[Finding, ...]) -> Finding:
    (kept,) = (finding for finding in findings if "@" not in finding.chain)
    return kept


def test_the_journals_of_three_owners_are_one_trace_and_its_tails(tmp_path: Path) -> None:
    files = _journals(tmp_path)
    report = validate(files)
    assert report.accepted, [finding.why for finding in report.findings]
    assert [finding.chain.partition("@")[2] for finding in report.findings] == ["", "1", "2"]
    assert {"8", "8.volatile", "16"} <= set(_kept(report.findings).rows)
    assert validate(reversed(files)).findings == report.findings


def test_the_command_takes_the_journals_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file) for file in _journals(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 ACCEPTED"


def test_a_journal_that_is_not_here_is_missing_and_not_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _, three = _journals(tmp_path)
    assert main([str(one), str(three)]) == 2
    assert "MISSING" in capsys.readouterr().out
    finding = _kept(validate([one, three]).findings)
    assert finding.at is not None
    assert finding.verdict is Verdict.MISSING
    assert "is not in the given journals" in finding.why


def _changed(number: int, event: str, path: tuple[str, ...], value: Any) -> Callable[..., None]:
    def change(told: list[Records]) -> None:
        record = place = next(record for record in told[number] if record["event"] == event)
        for name in path[:-1]:
            place = place[name]
        assert place[path[-1]] != value, record
        place[path[-1]] = value

    return change


def _term_skipped(told: list[Records]) -> None:
    for record in told[2]:
        record["owner_epoch"] += record["owner_epoch"] == 3
        if record["event"] == "ownership.acquired":
            record["data"]["epoch"] = 4


def _inherited(told: list[Records]) -> None:
    """The new owner goes on in ATTACHED."""
    first = told[1][0]
    assert first["event"] == "session.state_change"
    first["state"] = "ATTACHED"


FAULTS: dict[str, Callable[..., None]] = {
    "versions left out without the client's word": _changed(1, "ownership.acquired", ("data", "floor"), 0),
    "a client's word that the version does not follow": _changed(1, "ownership.acquired", ("data", "floor"), 9),
    "a term of another number": _changed(1, "ownership.acquired", ("data", "epoch"), 7),
    "an epoch that the client had before": _changed(1, "reattach.result", ("data", "epoch"), 2),
    "a term left out": _term_skipped,
    "an inherited binding": _inherited,
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """Each fault's finding on the kept chain."""
    found = {}
    for number, (name, change) in enumerate(FAULTS.items()):
        place = tmp_path_factory.mktemp(f"fault{number}")
        found[name] = _kept(validate(_journals(place, change)).findings)
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_a_takeover_that_may_not_be_is_rejected(name: str, verdicts: dict[str, Finding]) -> None:
    assert verdicts[name].verdict is Verdict.REJECTED, verdicts[name]


def test_a_fault_of_a_tail_is_found_in_the_tail(tmp_path: Path) -> None:
    files = _journals(tmp_path, _changed(0, "reattach.result", ("data", "epoch"), 9))
    verdicts = {finding.chain.partition("@")[2]: finding.verdict for finding in validate(files).findings}
    assert verdicts == {"": Verdict.ACCEPTED, "1": Verdict.REJECTED, "2": Verdict.ACCEPTED}
