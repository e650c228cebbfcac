"""What the cluster's demonstration concludes and draws, from records and logs made by hand."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from jumpvpn.lab.cluster.chaos import main, summary
from jumpvpn.lab.cluster.demo import report
from jumpvpn.lab.cluster.demo.picture import carried, held, owners, timeline
from jumpvpn.lab.cluster.demo.result import Result, Shown, WorldChange, document, verdict
from jumpvpn.lab.cluster.history import StoreChange
from jumpvpn.lab.cluster.scenario import FIXED
from jumpvpn.lab.cluster.trial import Outcome
from jumpvpn.lab.incidents import Incident, effect
from jumpvpn.lab.journals import Record
from jumpvpn.lab.measure import DownloadLog, EchoLog
from jumpvpn.lab.workload import Logs

MS = 1_000_000
SECOND_NS = 1000 * MS


def record(side: str, at_ms: int, event: str, before: str, after: str, reason: str, transport: str = "") -> Record:
    fields: dict[str, Any] = {
        "event": event, "mono_ms": at_ms, "prev_state": before, "state": after, "reason": reason, "session_uid": "9f2c",
        "transport": {"id": transport} if transport else None, "data": {},
    }  # fmt: skip
    return Record(side, fields)


def change(revision: int, at_ms: int, version: int, owner: str, term: int) -> StoreChange:
    told = {"version": version, "state": "ATTACHED", "epoch": term, "owner": owner, "term": term, "chain": "s:9f2c"}
    return StoreChange(f"live/{'ab' * 16}", revision, at_ms * MS, False, told)


# gw1 is killed at 1 s, gw2 takes over within 500 ms.
def story() -> Result:
    result = Result(0, 1000, ("gw1", "gw2"), ended_ns=3 * SECOND_NS, uid="9f2c", births=1, messages=100)
    result.address = result.address_after = "10.77.0.2/24"
    result.records = [
        record("client", 0, "session.state_change", "BIRTH", "ATTACHED", "handshake_ok", "wlan0/udp/gw1"),
        record("gw1", 0, "session.state_change", "BIRTH", "ATTACHED", "handshake_ok", "path0/udp"),
        record("client", 1100, "session.state_change", "ATTACHED", "VOLATILE", "probe_timeout", "wlan0/udp/gw1"),
        record("gw2", 1480, "session.state_change", "RECOVERING", "ATTACHED", "reattach_success", "path1/udp"),
        record("client", 1500, "session.state_change", "RECOVERING", "ATTACHED", "reattach_success", "wlan0/udp/gw2"),
    ]
    result.changes = [change(2, 0, 1, "gw1", 1), change(5, 1470, 5, "gw2", 2), change(6, 1900, 6, "gw2", 2),
                      change(7, 2500, 8, "gw1", 3)]  # fmt: skip
    result.world = [WorldChange(SECOND_NS, "gw1", "killed"), WorldChange(2 * SECOND_NS, "gw1", "up")]
    result.leaders = [(0, "etcd1"), (SECOND_NS, ""), (2 * SECOND_NS, "etcd2")]
    sent = array("q", range(0, 3 * SECOND_NS, MS))
    answered = array("q", (0 if 1000 * MS <= at < 1500 * MS else at + 20 * MS for at in sent))
    times = [at for at in answered if at]
    echo = EchoLog({}, sent, answered, array("H", (bool(at) for at in answered)), times)
    facts = {"checksum_ok": True, "server_connections": 1, "received": 1000, "bucket_ns": 10 * MS, "started_ns": 0}
    pauses = array("q", [1000 * MS]), array("q", [1500 * MS])
    result.logs = Logs({"udp": echo, "tcp": echo}, DownloadLog(facts, array("I", [1000] * 300), *pauses))
    left, back = result.records[2], result.records[4]
    incident = Incident("owner_killed", SECOND_NS, left, left.reason, back, back.at_ns, back.transport)
    result.shown = [Shown("gw1, the owner, is killed", incident, effect(incident, result.logs), "gw2")]
    return result


def test_only_the_missing_verdict_of_the_auditor_breaks_this_story() -> None:
    result = story()
    findings = verdict(result)
    assert [finding.text for finding in findings if not finding.holds] == ["the journals were not judged"]
    told = document(result, findings)
    assert [term["owner"] for term in told["terms"]] == ["gw1", "gw2", "gw1"]
    assert (told["handshakes"], told["tcp_connections"], told["store_writes_of_the_session"]) == (1, 1, 4)
    assert (told["incidents"][0]["owner"], told["incidents"][0]["lost"]) == ("gw2", 500)
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: setattr(r, "births", 2), "2 handshakes"),
        (lambda r: setattr(r, "address_after", "10.77.0.3/24"), "inner address"),
        (lambda r: setattr(r, "failure", "gw2 crashed"), "gw2 crashed"),
        (lambda r: r.violations.append("gw1 claims what is not its own"), "gw1 claims"),
        (lambda r: r.changes.clear(), "owners by the store: none"),
        (lambda r: setattr(r, "messages", 0), "0 messages traced"),
    ],
)
def test_what_broke_is_named(spoil: Any, words: str) -> None:
    result = story()
    spoil(result)
    assert any(words in finding.text for finding in verdict(result) if not finding.holds)


def test_lanes_follow_store_and_records() -> None:
    result = story()
    assert [(span.name, span.start_ns // MS) for span in owners(result)] == [("gw1", 0), ("gw2", 1470), ("gw1", 2500)]
    assert [span.name for span in carried(result, last=True)] == ["gw1", "gw2"]
    assert [span.name for span in carried(result, last=False)] == ["wlan0", "wlan0"]
    assert [(span.name, span.end_ns) for span in held(result, "gw1")] == [("ATTACHED", SECOND_NS)]


def test_the_picture_is_well_formed_and_files_are_written(tmp_path: Path) -> None:
    empty = Result(0, 1, ("gw1", "gw2"), ended_ns=SECOND_NS)
    for result in (story(), empty):
        picture = ElementTree.fromstring(timeline(result, verdict(result)))
        assert picture.tag.endswith("svg")
    written = report.write(story(), verdict(story()), tmp_path, tmp_path / "deep" / "out.json")
    assert json.loads((tmp_path / "deep" / "out.json").read_text())["session"] == "9f2c"
    assert str(tmp_path / "timeline.svg") in written


def test_a_campaign_is_summed_up_and_nothing_done_is_no_success() -> None:
    good, bad = Outcome(FIXED[0]), Outcome(FIXED[1], violations=["gw1 and gw2 both own term 2"])
    assert summary([good])["ok"]
    assert not summary([])["ok"]
    told = summary([good, bad])
    assert (told["ok"], told["failed"]) == (False, [FIXED[1].name])
    assert "both own" in bad.explain()


def test_a_campaign_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--story", "apocalypse"]) == 1
    assert "no story is called 'apocalypse'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main(["--seeds", "0"])
    assert refused.value.code == 2
