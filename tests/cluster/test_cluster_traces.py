"""The check of traces can fail: a real cluster's journals, damaged, are rejected for the right reason; gaps are not."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jumpvpn.lab.cluster.deployment import ClusterDeployment
from jumpvpn.lab.cluster.scenario import UNWRITTEN
from jumpvpn.lab.cluster.traces import judged
from jumpvpn.lab.cluster.trial import Outcome, run
from jumpvpn.tracecheck import Finding, Verdict, validate

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

Record = dict[str, Any]
Journals = dict[str, list[Record]]
SIDES = ("gw1", "gw2", "client")
SWITCH = "reattach.result"


@dataclass(frozen=True)
class Recorded:
    """One story as it was recorded: its outcome, and the records of each side."""

    outcome: Outcome
    journals: Journals

    @property
    def uid(self) -> str:
        """The roaming client's session."""
        return self.outcome.sessions[0]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """gw1 switches a network, loses its lease and is killed, all without the store; gw2 goes on from the store."""
    place = tmp_path_factory.mktemp("recorded")
    before, ClusterDeployment.archive = ClusterDeployment.archive, place
    try:
        outcome = asyncio.run(run(UNWRITTEN, lambda words: print(words, file=sys.stderr)))
    finally:
        ClusterDeployment.archive = before
    files = {path.name.split("-")[1]: path for path in place.iterdir()}
    return Recorded(outcome, {side: _records(files[side]) for side in SIDES})


def _records(path: Path) -> list[Record]:
    """Each record once: what a restarted gateway writes again is the same."""
    lines = dict.fromkeys(path.read_bytes().splitlines())
    return [json.loads(line) for line in lines]


def _find(records: list[Record], event: str, **values: Any) -> Record:
    return next(r for r in records if r["event"] == event and all(r[name] == value for name, value in values.items()))


def _write(path: Path, journals: Journals) -> Path:
    lines = [json.dumps(record) for records in journals.values() for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_story_is_what_it_is_meant_to_be(recorded: Recorded) -> None:
    assert recorded.outcome.ok, recorded.outcome.explain()
    claim = _find(recorded.journals["gw2"], "ownership.acquired", owner_epoch=2)
    tail = [r for r in recorded.journals["gw1"] if r["chain"][0] == "s" and r["owner_epoch"] == 1]
    loss = _find(recorded.journals["gw1"], "ownership.lost")
    assert claim["data"]["floor"] == max(r["state_version"] for r in tail) == loss["state_version"]
    assert any(r["seq"] >= claim["seq"] for r in tail)


# --- damage ----------------------------------------------------------------------------------------------------------


def without_the_tail(told: Journals) -> None:
    """gw1's disk is lost with all that it wrote behind."""
    told["gw1"] = [r for r in told["gw1"] if r["owner_epoch"] == 2 or r["state_version"] in (None, 0, 1, 2)]
    assert not any(r["event"] == "ownership.lost" for r in told["gw1"])


def two_owners(told: Journals) -> None:
    """What ends the session under gw2's term is gw1's."""
    for record in told["gw1"] + told["gw2"]:
        if record["chain"][0] == "s" and record["data"].get("row") == "28":
            record["node_id"] = "gw1"


def two_claims(told: Journals) -> None:
    """gw1 claims the term that gw2 has, in the same place of the chain."""
    claim = copy.deepcopy(_find(told["gw2"], "ownership.acquired", owner_epoch=2))
    claim["node_id"] = "gw1"
    told["gw1"].append(claim)


def claimed_again(told: Journals) -> None:
    """Whoever comes next takes the term that there is instead of the next one."""
    without_the_tail(told)
    for record in told["gw1"] + told["gw2"]:
        if record["owner_epoch"] == 2:
            record["owner_epoch"] = 1
        if record["event"] == "ownership.acquired" and record["data"]["epoch"] == 2:
            record["data"]["epoch"] = 1


def epoch_reused(told: Journals) -> None:
    """gw2 grants the epoch that gw1 granted."""
    known = _find(told["gw1"], SWITCH, owner_epoch=1)["data"]["epoch"]
    _find(told["gw2"], SWITCH, owner_epoch=2)["data"]["epoch"] = known


def version_back(told: Journals) -> None:
    """The last commit has a version that was before."""
    for record in told["gw1"] + told["gw2"]:
        if record["chain"][0] == "s" and record["data"].get("row") == "28":
            record["state_version"] = 2


def acceptance_after_fencing(told: Journals) -> None:
    """gw1 lost the session before it switched its network."""
    birth, switch = (_find(told["gw1"], "session.state_change", state_version=version) for version in (2, 3))
    loss = _find(told["gw1"], "ownership.lost")
    loss["state_version"], loss["mono_ms"] = birth["state_version"], switch["mono_ms"] - 1


def floor_denied(told: Journals) -> None:
    """gw2 leaves versions out, and the client proved nothing."""
    _find(told["gw2"], "ownership.acquired", owner_epoch=2)["data"]["floor"] = 0


def former_owner_heard(told: Journals) -> None:
    """The client accepts gw2's grant first and gw1's after it."""
    first, second = _find(told["gw1"], SWITCH, owner_epoch=1), _find(told["gw2"], SWITCH, owner_epoch=2)
    for name in ("nonce_id", "epoch"):
        first["data"][name], second["data"][name] = second["data"][name], first["data"][name]


@dataclass(frozen=True)
class Damage:
    """``harm`` changes the records; the record of ``end`` (of a tail: its term) is rejected with words like ``why``."""

    harm: Callable[[Journals], None]
    why: str
    end: str = "gateway"
    tail: str = ""


DAMAGES = (
    Damage(two_owners, "owner epoch 2 is gw2's, and gw1 wrote this"),
    Damage(two_claims, "two different records with the number"),
    Damage(claimed_again, "owner epoch 1 is gw1's: a change of owner takes the next one"),
    Damage(epoch_reused, "epoch 2 was used before: the session is at epoch 3"),
    Damage(version_back, "versions never go back"),
    Damage(acceptance_after_fencing, "gw1 has lost the session (ownership.lost): only a change of owner", tail="1"),
    Damage(floor_denied, "the versions between are missing"),
    Damage(
        former_owner_heard, "the owner of term 1 granted it, and the client had accepted a grant of term 2", "client"
    ),
)


def unchanged(_told: Journals) -> None:
    """As it was recorded."""


@pytest.fixture(scope="module")
def findings(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What is found of each way to damage the recording, all in one run of TLC."""
    place = tmp_path_factory.mktemp("damaged")
    found: dict[str, list[Finding]] = {}
    for harm in (unchanged, without_the_tail, *(damage.harm for damage in DAMAGES)):
        told = copy.deepcopy(recorded.journals)
        harm(told)
        found[str(_write(place / harm.__name__, told))] = []
    for finding in validate([Path(name) for name in found], each=True).findings:
        found[finding.journal].append(finding)
    return {Path(name).name: of_one for name, of_one in found.items()}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.harm.__name__)
def test_a_damaged_trace_is_rejected_for_what_it_is(damage: Damage, findings: dict[str, list[Finding]]) -> None:
    of_one = findings[damage.harm.__name__]
    mine = [f for f in of_one if f.end == damage.end and f.chain.partition("@")[2] == damage.tail]
    assert [finding.verdict for finding in mine] == [Verdict.REJECTED], of_one
    assert damage.why in mine[0].why


def test_an_unwritten_tail_is_a_branch_and_a_lost_one_is_none(findings: dict[str, list[Finding]]) -> None:
    assert {finding.verdict for name in ("unchanged", "without_the_tail") for finding in findings[name]} == {
        Verdict.ACCEPTED
    }
    tails = [[f.chain.partition("@")[2] for f in findings[name]] for name in ("unchanged", "without_the_tail")]
    assert [sorted(filter(None, of_one)) for of_one in tails] == [["1"], []]


# --- what a story says -----------------------------------------------------------------------------------------------


def _judged(recorded: Recorded, place: Path, harm: Callable[[Journals], None], **more: Any) -> list[str]:
    told = copy.deepcopy(recorded.journals)
    harm(told)
    paths = {side: _write(place / f"{side}-events.jsonl", {side: records}) for side, records in told.items()}
    return list(judged(paths, recorded.outcome.sessions, **{"disks_lost": False, **more}).violations)


def test_a_story_names_the_session_the_line_and_the_step(recorded: Recorded, tmp_path: Path) -> None:
    (words,) = _judged(recorded, tmp_path, epoch_reused)
    result = _find(recorded.journals["gw2"], SWITCH, owner_epoch=2)
    line = recorded.journals["gw2"].index(result) + 1
    assert words.startswith(
        f"trace of session {recorded.uid} (gateway) is REJECTED at s:{recorded.uid}/{result['seq']} "
        f"(gw2-events.jsonl:{line}), "
    )
    assert f"record {result['seq']} is reattach.result (row 16, version {result['state_version']}" in words


def test_a_missing_line_is_no_fault_and_fails_a_story_whose_disks_are_there(recorded: Recorded, tmp_path: Path) -> None:
    def lose(told: Journals) -> None:
        for records in (told["gw1"], told["gw2"]):
            records[:] = [r for r in records if r["event"] != "transport.retired" or r["owner_epoch"] != 2]

    (words,) = _judged(recorded, tmp_path, lose)
    assert "is MISSING" in words
    assert "line missing, so what follows cannot be judged" in words
    assert _judged(recorded, tmp_path, lose, disks_lost=True) == []


def test_a_session_without_a_trace_fails_a_story(recorded: Recorded, tmp_path: Path) -> None:
    words = _judged(recorded, tmp_path, lambda told: told.update(client=[]))
    assert words == [f"session {recorded.uid} has no trace at its client"]
    assert judged({}, recorded.outcome.sessions, disks_lost=False).violations
