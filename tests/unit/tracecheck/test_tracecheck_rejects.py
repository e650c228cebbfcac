"""What the specification does not explain is rejected, and at the event where it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from traced import Records, Tape, client_story, gateway_story, records, write

from jumpvpn.tracecheck import Finding, Verdict, validate

Record = dict[str, Any]


def find(told: Records, event: str, row: str | None = None, nth: int = 0) -> Record:
    """The ``nth`` record of that event (of that row)."""
    return [r for r in told if r["event"] == event and row in (None, r["data"].get("row"))][nth]


def position(told: Records, record: Record) -> int:
    """Where it stands, by identity: copies are equal."""
    return next(index for index, other in enumerate(told) if other is record)


CHANGE = "session.state_change"


@dataclass(frozen=True)
class Fault:
    """One change of a good record: ``alter`` makes it, and returns the record that goes unexplained (None: the end)."""

    name: str
    story: Callable[[], Tape]
    alter: Callable[[Records], Record | None]
    why: str = "no action gives this event"


def dropped(event: str, row: str, nth: int = 0) -> Callable[[Records], Record]:
    """A line is gone, and the numbers close the gap; its successor in the chain is what nothing explains."""

    def alter(told: Records) -> Record:
        gone = find(told, event, row, nth)
        at = position(told, gone)
        del told[at]
        for record in told[at:]:
            record["seq"] -= record["chain"] == gone["chain"]
        return told[at]

    return alter


def changed(event: str, row: str, *path: str, to: Any, nth: int = 0) -> Callable[[Records], Record]:
    """A field says something else."""

    def alter(told: Records) -> Record:
        record = find(told, event, row, nth)
        place = record
        for name in path[:-1]:
            place = place[name]
        assert place[path[-1]] != to
        place[path[-1]] = to
        return record

    return alter


def appended(event: str, row: str, *, version: int) -> Callable[[Records], Record]:
    """A copy of a line comes again at the end, with the next numbers."""

    def alter(told: Records) -> Record:
        last = [r for r in told if r["chain"][0] != "n"][-1]
        found = find(told, event, row)
        copy = {**found, "seq": last["seq"] + 1, "state_version": last["state_version"] + version}
        told.append(copy)
        return copy

    return alter


def without_the_end(told: Records) -> None:
    """The last line is gone."""
    del told[position(told, find(told, "session.terminated"))]


def inserted(told: Records) -> Record:
    """A line of an event that no row has, after the first."""
    for record in told:
        if record["chain"][0] != "n" and record["seq"] > 1:
            record["seq"] += 1
    foreign = {**told[0], "seq": 2, "event": "session.cloned"}
    told.insert(1, foreign)
    return foreign


def as_client(told: Records) -> Record:
    """The whole record says that it is a client's."""
    for record in told:
        record["chain"] = record["chain"].replace("s:", "c:")
    told[0]["data"]["role"] = "client"
    return find(told, CHANGE, "7")


FAULTS = [
    Fault("first line of a row dropped", client_story, dropped(CHANGE, "10")),
    Fault("attempt out of nothing", client_story, dropped(CHANGE, "21")),
    Fault("version missing", client_story, dropped("key.rotated", "36"), "versions between are missing"),
    Fault("further event dropped", client_story, dropped("transport.dead", "4"), "still to show transport.dead"),
    Fault("edge changed", client_story, changed(CHANGE, "10", "state", to="DEGRADED")),
    Fault("origin changed", client_story, changed(CHANGE, "10", "prev_state", to="ATTACHED")),
    Fault("version skipped", client_story, changed("key.rotated", "36", "state_version", to=99), "versions between"),
    Fault("version repeated", client_story, changed(CHANGE, "21", "state_version", to=8)),
    Fault("reason swapped", client_story, changed(CHANGE, "10", "reason", to="probe_timeout")),
    Fault("reasons differ in one row", client_story,
          changed("transport.switch", "16.client", "reason", to="failback"), "still to show"),
    Fault("row swapped", client_story, changed(CHANGE, "16.client", "data", "row", to="16.client.same")),
    Fault("row unknown", client_story, changed(CHANGE, "3", "data", "row", to="99")),
    Fault("epoch repeated", client_story, changed("reattach.result", "16.client", "data", "epoch", to=2, nth=1),
          "epoch 2 was used before"),
    Fault("binding of an old epoch", client_story,
          changed(CHANGE, "16.client", "transport", "binding_gen", to=1)),
    Fault("rekey to an old epoch", client_story, changed("key.rotated", "36", "data", "key_epoch", to=3)),
    Fault("nonce replayed", client_story, changed("reattach.result", "16.client", "data", "nonce_id", to="a1", nth=1),
          "still to show"),
    Fault("nonce missing", client_story, changed("reattach.result", "16.client", "data", "nonce_id", to=None),
          "still to show"),
    Fault("attached without a proof", client_story, dropped("reattach.attempt", "17.start", 2)),
    Fault("returned without a proof", client_story, dropped("reattach.attempt", "17.start", 3)),
    Fault("proof of another transport", client_story,
          changed("transport.switch", "16.client", "data", "to_id", to="wlan0/udp/gw1"), "still to show"),
    Fault("attempts miscounted", client_story, changed(CHANGE, "21", "data", "attempts", to=1)),
    Fault("a clock that does not run", client_story,
          changed(CHANGE, "3", "data", "episode_ms", to=5)),
    Fault("bound after the end", client_story, appended("transport.attached", "1", version=1), "TERMINATED"),
    Fault("alive after the end", client_story, appended(CHANGE, "1", version=1), "TERMINATED"),
    Fault("the same event twice", client_story, appended("session.terminated", "28", version=0), "TERMINATED"),
    Fault("the end is missing", client_story, without_the_end, "the record ends although row 28"),
    Fault("an event that no row has", client_story, inserted),
    Fault("born attached", client_story, changed("session.created", "0", "state", to="ATTACHED"), "begins with"),
    Fault("attempts beyond the bound", client_story,
          changed("session.created", "0", "data", "bounds", "attempts", to=1), "1 of 1 attempts used"),
    Fault("a client that says it is a gateway", client_story,
          changed("session.created", "0", "data", "role", to="gateway"), "begins with"),
    Fault("a gateway's row at a client", gateway_story, as_client),
    Fault("owner epoch falls", gateway_story, changed(CHANGE, "7.degraded", "owner_epoch", to=1)),
    Fault("takeover unseen", gateway_story, dropped("ownership.acquired", "8.same"), "owner epoch 1"),
    Fault("bounds loosened in an episode", gateway_story,
          changed("policy.applied", "31", "data", "bounds", "attempts", to=9)),
    Fault("the commit goes on", gateway_story, dropped(CHANGE, "7.volatile"), "has to take its next row"),
    Fault("result of another attempt", gateway_story,
          changed("reattach.result", "16", "data", "attempt", to=7), "still to show"),
    Fault("epoch too far ahead", gateway_story,
          changed("reattach.result", "16", "data", "epoch", to=500), "still to show"),
]  # fmt: skip
LATER = {"attempts beyond the bound": (CHANGE, "21")}
"""Faults that show only where what they say has consequences."""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Finding, str | None]]:
    """Each fault's finding, and the place of the record that ought to go unexplained; all in one run of TLC."""
    place = tmp_path_factory.mktemp("faults")
    expected: dict[str, str | None] = {}
    files = []
    for number, fault in enumerate(FAULTS):
        told = records(fault.story().lines)
        unexplained = fault.alter(told)
        if fault.name in LATER:
            unexplained = find(told, *LATER[fault.name])
        expected[fault.name] = None if unexplained is None else f"{unexplained['chain']}/{unexplained['seq']}"
        files.append(write(place / f"{number}.jsonl", told))
    findings = {finding.journal: finding for finding in validate(files, each=True).findings}
    return {fault.name: (findings[str(file)], expected[fault.name]) for fault, file in zip(FAULTS, files, strict=True)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_rejected_where_it_shows(fault: Fault, verdicts: dict[str, tuple[Finding, str | None]]) -> None:
    finding, at = verdicts[fault.name]
    assert finding.verdict is Verdict.REJECTED
    assert finding.at == at, finding.why
    assert fault.why in finding.why


def test_the_stories_themselves_are_accepted(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{story.__name__}.jsonl", story().lines) for story in (client_story, gateway_story)]
    report = validate(files, each=True)
    assert report.accepted, [finding.why for finding in report.findings]


def test_no_line_of_the_chain_can_be_left_out(tmp_path: Path) -> None:
    files, unexplained = [], {}
    for story in (client_story, gateway_story):
        rows = ("17", "17.start")  # of the node's lane only attempts are part of a trace
        whole = [r for r in records(story().lines) if r["chain"][0] != "n" or r["data"]["row"] in rows]
        for at in (at for at, record in enumerate(whole) if at and record["chain"] == whole[0]["chain"]):
            files.append(write(tmp_path / f"{story.__name__}-{at}.jsonl", whole[:at] + whole[at + 1 :]))
            unexplained[str(files[-1])] = range(at - 1, at + 5)
    for finding in validate(files, each=True).findings:
        # The successor goes unexplained, or the line after the row that now misses one; without its result, which
        # names transport and epoch of a request, the request's own row.
        assert finding.verdict is Verdict.MISSING or finding.at is None, finding.journal
        assert finding.explained in unexplained[finding.journal]


def test_two_records_with_one_number_are_a_fork(tmp_path: Path) -> None:
    told = records(client_story().lines)
    told.append({**find(told, "session.state_change", "10"), "reason": "loss_recovery"})
    finding = validate([write(tmp_path / "fork.jsonl", told)]).findings[0]
    assert (finding.verdict, finding.at) == (Verdict.REJECTED, f"{told[-1]['chain']}/{told[-1]['seq']}")
    assert "two different records" in finding.why


def test_a_record_without_its_beginning_is_not_judged(tmp_path: Path) -> None:
    lines = client_story().lines[3:]
    report = validate([write(tmp_path / "tail.jsonl", lines)])
    assert [finding.verdict for finding in report.findings] == [Verdict.INCOMPLETE]
    assert "number 4; give the journals from its birth on" in report.findings[0].why
    assert not report.accepted
    assert not report.rejected


def test_more_bounds_than_can_be_searched_are_not_judged(tmp_path: Path) -> None:
    told = records(client_story().lines)
    at = position(told, find(told, "key.rotated", "36"))
    told[at + 1 : at + 1] = [
        {**told[at], "seq": 1000 + number, "data": {"bounds": {"attempts": number}}} for number in range(1, 90)
    ]
    finding = validate([write(tmp_path / "open.jsonl", told)]).findings[0]
    assert finding.verdict is Verdict.INCOMPLETE
    assert "more than 64 different bounds" in finding.why
