"""What the demonstration concludes, writes and draws, from records and logs made by hand."""

import asyncio
import json
from array import array
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jumpvpn.audit.auditor import audit_lines
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.lab.demo.picture import carriers, states, timeline
from jumpvpn.lab.demo.result import Result, Shown, document, verdict
from jumpvpn.lab.demo.script import STEPS
from jumpvpn.lab.incidents import Incident, effect
from jumpvpn.lab.journals import Journals, Record
from jumpvpn.lab.measure import DownloadLog, EchoLog
from jumpvpn.lab.workload import Logs
from jumpvpn.policy.model import Policy
from jumpvpn.values import DomainEvent, Instant, Now

MS = 1_000_000
SECOND_NS = 1000 * MS


def fields(at_ms: int, event: str, before: str, after: str, reason: str, transport: str = "", **data: Any) -> Any:
    return {
        "event": event, "mono_ms": at_ms, "prev_state": before, "state": after, "reason": reason, "session_uid": "9f2c",
        "transport": {"id": transport} if transport else None, "data": data,
    }  # fmt: skip


# Wi-Fi dies at 1 s and LTE takes over within 60 ms; an operator ends the session at 3 s.
STORY = [
    ("client", fields(0, "session.state_change", "BIRTH", "ATTACHED", "handshake_ok", "wlan0/udp/gw1")),
    ("gateway", fields(1, "session.state_change", "BIRTH", "ATTACHED", "handshake_ok", "path0/udp")),
    ("client", fields(1005, "session.state_change", "ATTACHED", "VOLATILE", "transport_dead", "wlan0/udp/gw1")),
    ("client", fields(1005, "transport.dead", "VOLATILE", "VOLATILE", "transport_dead", "wlan0/udp/gw1",
                      was_active=True)),
    ("gateway", fields(1040, "session.state_change", "RECOVERING", "ATTACHED", "reattach_success", "path1/udp")),
    ("client", fields(1060, "session.state_change", "RECOVERING", "ATTACHED", "reattach_success", "wwan0/udp/gw1")),
    ("gateway", fields(3000, "session.state_change", "ATTACHED", "TERMINATED", "operator_terminated", "path1/udp")),
    ("client", fields(3010, "session.state_change", "ATTACHED", "TERMINATED", "peer_closed", "wwan0/udp/gw1")),
]  # fmt: skip


def run_of_a_node() -> list[bytes]:
    origin = Origin("gw1", "standalone", "boot", "run", "gateway")
    sealer = Sealer(origin, Policy(), lambda address, _mode: address)
    applied = {"version": "1.0", "digest": Policy().digest(), "body": Policy().body(), "mode": "start"}
    events = [DomainEvent("node.started", "N"), DomainEvent("policy.applied", "N", data=applied)]
    return list(sealer.note(events, Now(Instant(0), 0)))


def story() -> Result:
    chains = {side: Chain(f"n:{side}:1") for side in ("client", "gateway")}
    result = Result(started_ns=0, quick=True, size=1000, ended_ns=3 * SECOND_NS)
    result.addresses_before = result.addresses_after = ("10.77.0.2/24",)
    result.journal_lines = {"client": [], "gateway": []}
    for side, record in STORY:
        chains[side], line = chains[side].append(record)
        result.journal_lines[side].append(line)
        result.records.append(Record(side, json.loads(line)))
    sent = array("q", range(0, 3 * SECOND_NS, MS))
    answered = array(
        "q", (max(at + 20 * MS, 1100 * MS) if 1000 * MS <= at < 1100 * MS else at + 20 * MS for at in sent)
    )
    echo = EchoLog({}, sent, answered, array("H", (1 for _ in sent)), sorted(answered))
    facts = {"checksum_ok": True, "server_connections": 1, "received": 1000, "bucket_ns": 10 * MS, "started_ns": 0}
    download = DownloadLog(facts, array("I", [1000] * 300), array("q", [1000 * MS]), array("q", [1090 * MS]))
    result.logs = Logs({"udp": echo, "tcp": echo}, download)
    result.verdict = audit_lines(run_of_a_node())
    dead, back = result.records[2], result.records[5]
    incident = Incident("wifi_link_down", 1000 * MS, dead, dead.reason, back, back.at_ns, back.transport)
    result.shown = [Shown(STEPS[0], incident, effect(incident, result.logs))]
    return result


def test_a_good_run_holds_and_tells_its_figures() -> None:
    result = story()
    findings = verdict(result)
    assert [finding.text for finding in findings if not finding.holds] == []
    told = document(result, findings)
    assert told["ok"]
    assert told["checksum_ok"]
    assert (told["sessions"], told["handshakes"], told["tcp_connections"]) == (1, 1, 1)
    assert (told["final_state"], told["final_reason"]) == ("TERMINATED", "operator_terminated")
    incident = told["incidents"][0]
    assert (incident["detection_ms"], incident["settled_ms"]) == (5.0, 60.0)
    assert incident["undelivered_ms"] == 81.0
    assert (incident["lost"], incident["duplicated"]) == (0, 0)


def test_a_second_handshake_breaks_the_verdict_and_is_named() -> None:
    result = story()
    result.records.append(Record("gateway", {**STORY[1][1], "session_uid": "aaaa"}))
    broken = [finding.text for finding in verdict(result) if not finding.holds]
    assert "2 session identifiers" in broken
    assert "2 handshakes" in broken


def test_a_changed_record_breaks_the_verdict() -> None:
    result = story()
    started, applied = run_of_a_node()
    result.verdict = audit_lines([started, applied.replace(b'"mode":"start"', b'"mode":"other"')])
    assert ["A-1" in finding.text for finding in verdict(result) if not finding.holds] == [True]


def test_the_picture_is_well_formed_whatever_was_shown() -> None:
    empty = Result(started_ns=0, quick=True, size=1, ended_ns=SECOND_NS)
    for result in (story(), empty):
        picture = ElementTree.fromstring(timeline(result, verdict(result)))
        assert picture.tag.endswith("svg")


def test_bands_follow_the_records() -> None:
    result = story()
    assert [span.name for span in states(result.records, "gateway", result.ended_ns)] == [
        "ATTACHED", "ATTACHED", "TERMINATED",
    ]  # fmt: skip
    assert [(span.name, span.end_ns // MS) for span in carriers(result)] == [("wlan0", 1005), ("wwan0", 3010)]


async def test_records_are_awaited_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    journals = Journals(tmp_path, {"client": "client.jsonl"})
    journals.open()
    line = json.dumps({**STORY[2][1], "hash": "h"}) + "\n"
    waiting = asyncio.create_task(journals.next(lambda record: record.turned("VOLATILE"), since_ns=SECOND_NS))
    await asyncio.sleep(0)
    (tmp_path / "client.jsonl").write_text(line + line + line[:20])
    assert (await asyncio.wait_for(waiting, 5)).reason == "transport_dead"
    assert len(journals.records) == 1
    journals.close()
