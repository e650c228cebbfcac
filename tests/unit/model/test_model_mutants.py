"""Seeded faults are caught by the property that each declares; the command says when one is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.model import __main__ as command
from jumpvpn.model import run
from jumpvpn.model.bounds import TINY
from jumpvpn.model.mutants import BY_NAME, MUTANTS, Mutant
from jumpvpn.model.progress import silent
from jumpvpn.model.report import EXPLORED, Report
from jumpvpn.properties import Property

EARLY = (
    "volatile-to-attached", "death-terminates", "instability-ignored", "version-kept", "binding-at-the-end",
    "another-identity", "rekey-without-binding", "owner-keeps-binding", "policy-extends", "no-ttl", "no-dwell",
    "attempts-off-by-one", "switch-uncounted", "losers-unnamed",
)  # fmt: skip


def test_seeded_faults_are_caught_as_declared() -> None:
    results = run.run_mutants(EARLY, 2, silent)
    assert [(result.name, result.caught_by) for result in results if not result.as_declared] == []
    assert [result.name for result in results] == list(EARLY)


def test_a_seeded_fault_dies_with_its_process() -> None:
    before = run.run_mutants(["no-ttl"], 1, silent)
    after = run.run_mutants(["volatile-to-attached"], 1, silent)
    assert before[0].caught_by == "FINITE"
    assert after[0].caught_by == "EDGES"


def test_a_fault_that_is_none_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Mutant("harmless", "changes nothing", "EDGES", lambda: None)
    monkeypatch.setitem(BY_NAME, "harmless", harmless)
    result = run.judged("harmless", TINY, cut=40)
    assert not result.as_declared
    assert not Report("tiny", (), (result,)).passed


def test_faults_are_many_distinct_and_reach_every_property_explored() -> None:
    assert len(MUTANTS) >= 24
    assert len(BY_NAME) == len(MUTANTS)
    assert {one for mutant in MUTANTS for one in mutant.expected} == set(EXPLORED)


def test_names_of_properties_are_the_registry_s() -> None:
    with pytest.raises(KeyError):
        Mutant("x", "x", "NO_SUCH", lambda: None).expected  # noqa: B018
    assert Mutant("x", "x", "EDGES PROOF", lambda: None).expected == (Property.EDGES, Property.PROOF)


# --- the command -----------------------------------------------------------------------------------------------------


def test_faults_wait_for_a_machine_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the cap of worlds nothing is proved, so no fault is judged either."""
    narrow = type(TINY)(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"max_worlds": 30})
    report = run.run(narrow, None, 2, silent)
    assert {found.property for _, found in report.violations} == {Property.PROGRESS}
    assert report.mutants == ()
    assert "violates" in report.skipped


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The command with an empty report in place of a run; the arguments of the run are kept."""
    calls: list[Any] = []

    def instead(*arguments: Any) -> Report:
        calls.append(arguments)
        return Report(arguments[0].name, ())

    monkeypatch.setattr(command, "run", instead)
    return calls


def test_the_command_writes_the_report_and_fails_on_an_empty_one(
    prepared: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.json"
    assert command.main(["--json", "--output", str(target), "--no-mutants", "--quiet"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(target.read_text(encoding="utf-8"))
    assert printed["passed"] is False
    assert "PROOF" in printed["unchecked_properties"]
    assert prepared[0][:3] == (command._SIZES["normal"], [], min(2, command.cpu_count() or 1))


def test_one_fault_and_the_deep_bounds_can_be_asked_for(prepared: list[Any]) -> None:
    command.main(["--deep", "--mutant", "no-ttl", "--jobs", "1"])
    assert prepared[0][:3] == (command._SIZES["deep"], ["no-ttl"], 1)


def test_a_file_that_cannot_be_written_is_wrong_usage(
    prepared: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output", str(tmp_path / "none" / "model.json")]) == 2
    assert "name a writable file" in capsys.readouterr().err
    assert len(prepared) == 1


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--mutant", "no-such"], ["--bounds", "huge"]])
def test_wrong_usage_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_its_worker_processes_know_what_the_command_hands_them() -> None:
    command_line = [sys.executable, "-m", "jumpvpn.model", "--bounds", "tiny", "--mutant", "no-ttl", "--json"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mutants"] == {"no-ttl": "FINITE"}
    assert "worlds" in done.stderr, "progress of another process"
