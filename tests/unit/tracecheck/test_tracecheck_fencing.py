"""Who may act for a session: one node under a term, until it loses it; and what a client may accept of whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from traced import Records, fenced_story, records, write

from jumpvpn.tracecheck import Finding, Verdict, validate

CLIENT, FIRST, SECOND = range(3)


def _find(told: Records, event: str, nth: int = 0) -> dict[str, Any]:
    return [record for record in told if record["event"] == event][nth]


def _lost_before_the_switch(told: list[Records]) -> dict[str, Any]:
    """The first gateway loses the session one millisecond before it accepts the client's request."""
    accepted, lost = _find(told[FIRST], "session.state_change", 1), _find(told[FIRST], "ownership.lost")
    lost["state_version"], lost["mono_ms"] = 2, accepted["mono_ms"] - 1
    return lost


def _decided_before_the_loss(told: list[Records]) -> None:
    """As above, but what it accepted it had decided before, and it counted later."""
    _lost_before_the_switch(told)["mono_ms"] += 1


def _decided_in_another_life(told: list[Records]) -> None:
    """The clocks of two boots are not compared."""
    _lost_before_the_switch(told).update(boot_id="another", mono_ms=10**9)


def _by_another(told: list[Records]) -> None:
    for record in told[SECOND]:
        if record["event"] == "transport.switch":
            record["node_id"] = "gw3"


def _adopted_by_its_owner(told: list[Records]) -> None:
    _find(told[SECOND], "ownership.acquired")["data"]["cause"] = "orphan"
    for record in told[SECOND]:
        record["node_id"] = "gateway"


def _restarted_elsewhere(told: list[Records]) -> None:
    _find(told[SECOND], "ownership.acquired")["data"]["cause"] = "restart"


def _cause_unknown(told: list[Records]) -> None:
    _find(told[SECOND], "ownership.acquired")["data"]["cause"] = "mood"


def _cause_not_told(told: list[Records]) -> None:
    for side in told:
        for record in side:
            record["data"].pop("cause", None)


def _born_of_a_request(told: list[Records]) -> None:
    _find(told[FIRST], "ownership.acquired")["data"]["cause"] = "request"


def _loss_of_another_term(told: list[Records]) -> None:
    _find(told[FIRST], "ownership.lost")["data"]["epoch"] = 7


def _grants_swapped(told: list[Records]) -> None:
    first, second = (_find(told[side], "reattach.result")["data"] for side in (FIRST, SECOND))
    for name in ("nonce_id", "epoch"):
        first[name], second[name] = second[name], first[name]


def _grant_unknown(told: list[Records]) -> None:
    del told[FIRST][:], told[SECOND][:]


@dataclass(frozen=True)
class Case:
    """What is done to the journals; the record of ``end`` is rejected with words like ``why``, or accepted if ""."""

    alter: Callable[[list[Records]], Any]
    why: str = ""
    end: str = "gateway"


CASES = (
    Case(_lost_before_the_switch, "gateway has lost the session (ownership.lost): only a change of owner may follow"),
    Case(_decided_before_the_loss),
    Case(_decided_in_another_life, "gateway has lost the session (ownership.lost)"),
    Case(_by_another, "owner epoch 2 is gw2's, and gw3 wrote this without a change of owner"),
    Case(_adopted_by_its_owner, "no action gives this event"),
    Case(_restarted_elsewhere, "no action gives this event"),
    Case(_cause_unknown, "still to show ownership.acquired"),
    Case(_cause_not_told),
    Case(_born_of_a_request, "still to show"),
    Case(_loss_of_another_term, "no action gives this event"),
    Case(_grants_swapped, "the owner of term 1 granted it, and the client had accepted a grant of term 2", "client"),
    Case(_grant_unknown, end="client"),
)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What is found of each case."""
    place = tmp_path_factory.mktemp("cases")
    files = {}
    for case in CASES:
        told = [records(tape.lines) for tape in fenced_story()]
        case.alter(told)
        files[case.alter.__name__] = write(place / f"{case.alter.__name__}.jsonl", [r for side in told for r in side])
    found = validate(files.values(), each=True).findings
    return {name: [finding for finding in found if finding.journal == str(path)] for name, path in files.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alter.__name__)
def test_who_may_act_and_who_may_not(case: Case, findings: dict[str, list[Finding]]) -> None:
    (finding,) = (finding for finding in findings[case.alter.__name__] if finding.end == case.end)
    assert finding.verdict is (Verdict.REJECTED if case.why else Verdict.ACCEPTED), finding
    assert case.why in finding.why


def test_the_story_itself_is_explained_with_its_loss(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.jsonl", tape.lines) for number, tape in enumerate(fenced_story())]
    report = validate(files)
    assert report.accepted, [finding.why for finding in report.findings]
    assert any("32" in finding.rows for finding in report.findings)
