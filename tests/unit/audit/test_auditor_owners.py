"""One session, several gateways: takeovers, adoptions and tails written behind are in order, and are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_logs import (
    PATH0,
    PATH1,
    Node,
    Records,
    Shared,
    accepted,
    attached,
    besides_node,
    closed,
    gateway,
    judged,
    killed_owner,
    lost,
    rewritten,
    rules,
)
from typer.testing import CliRunner

from jumpvpn.audit.auditor import Outcome, audit_files
from jumpvpn.cli.audit import audit_commands
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.values import DomainEvent, Epoch


def _files(place: Path, *logs: list[bytes]) -> list[Path]:
    files = [place / f"{number}.jsonl" for number in range(len(logs))]
    for file, lines in zip(files, logs, strict=True):
        file.write_bytes(b"".join(lines))
    return files


def test_a_takeover_with_its_tail_is_in_order_in_whatever_order_the_journals_come(tmp_path: Path) -> None:
    one, two = killed_owner()
    files = _files(tmp_path, one.lines, two.lines)
    for report in (
        judged([*one.lines, *two.lines]), judged([*two.lines, *one.lines]), audit_files(files),
        audit_files(reversed(files)),
    ):  # fmt: skip
        assert besides_node(report, "gw1") == [], report.explain()
        (tail,) = (v for v in report.passes if "@" in v.chain)
        assert (tail.chain[-2:], tail.records, tail.end) == ("@1", 7, "written behind")
        assert report.ownership["tail_records"] == 7
        assert (report.ownership["takeovers"], report.ownership["dual_active"]) == (1, 0)


def test_the_owners_of_a_session_are_told() -> None:
    one, two = killed_owner()
    report = judged([*one.lines, *two.lines])
    (session,) = (v for v in report.passes if v.chain.startswith("s:") and "@" not in v.chain)
    told = [owner.as_json() for owner in session.owners]
    assert [(o["node"], o["term"], o["from_version"], o["to_version"]) for o in told] == [
        ("gw1", 1, 1, 2), ("gw2", 2, 6, 11),
    ]  # fmt: skip
    assert [(o["begun"], o["ended"], o["written_behind"]) for o in told] == [
        ("birth", "takeover", 7), ("takeover", "terminated", 0),
    ]  # fmt: skip
    assert told[0]["to_ms"] < told[1]["from_ms"]


def test_versions_that_only_the_dead_owner_knew_are_a_stated_gap() -> None:
    one, two = killed_owner()
    report = judged([line for line in one.lines if json.loads(line)["seq"] <= 4] + two.lines)
    assert report.outcome is Outcome.INCOMPLETE
    (tail,) = (v for v in report.faults if "@" in v.chain)
    assert not tail.findings
    assert "3 versions (3 to 5) known only to the journal of the previous owner gw1" in tail.gaps[0].text
    assert report.ownership["unknown_versions"] == 3


def test_part_of_a_tail_is_a_gap_of_the_rest() -> None:
    one, two = killed_owner()

    def cut(record: dict[str, object]) -> bool:
        return str(record["chain"])[0] == "s" and int(str(record["state_version"])) > 4

    report = judged([line for line in one.lines if not cut(json.loads(line))] + two.lines)
    assert "1 version (5 to 5) known only" in report.explain()


def test_a_takeover_without_anything_written_behind_passes() -> None:
    report = judged([line for node in killed_owner(behind=False) for line in node.lines])
    assert besides_node(report, "gw1") == []
    assert (report.ownership["takeovers"], report.ownership["tails"]) == (1, 0)


def test_there_and_back_and_on(tmp_path: Path) -> None:
    """gw1, gw2, gw1 again and gw3, each journal read as a whole: what orders them is the chain."""
    one, two, three = gateway("gw1"), gateway("gw2", offset=5_000), gateway("gw3", offset=-900_000)
    tale = Shared(one).feed(attached(), at=50)
    for number, (node, at) in enumerate([(two, 5_000), (one, 40_000), (three, 80_000)], start=2):
        before = tale
        tale = before.claim(node, before.store(), at=at)
        lost(before, at=at + 5)
        tale.feed(accepted(PATH1 if number % 2 else PATH0, number, f"n-{number}"), at=at + 100)
    tale.feed(closed(), at=90_000)
    for node in (one, two, three):
        node.at = max(node.at, 90_000)
        node.stop()
    for order in ([one, two, three], [three, two, one]):
        report = audit_files(_files(tmp_path, *(node.lines for node in order)))
        assert report.ok, report.explain()
    (session,) = (v for v in report.passes if v.chain == tale.chain)
    assert [owner.node for owner in session.owners] == ["gw1", "gw2", "gw1", "gw3"]


def test_a_long_stay_elsewhere_is_no_gap(tmp_path: Path) -> None:
    """More records of another journal stand between two parts of one journal than are held back."""
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    moved = tale.claim(two, tale.store(), at=1_000).feed(accepted(PATH0, 2, "n-2"), at=1_100)
    for number in range(300):
        moved.feed(ev.KeysRotated(Epoch(3 + number)), at=2_000 + number)
    back = moved.claim(one, moved.store(), at=10_000)
    back.feed(closed(), at=11_000)
    one.stop()
    two.at = 11_000
    two.stop()
    report = audit_files(_files(tmp_path, one.lines, two.lines))
    assert report.ok, report.explain()


def _adopted(*, lost_at: int | None = 10_000, offset: int = 0) -> tuple[Node, Node, Shared]:
    one, two = gateway("gw1"), gateway("gw2", offset=offset)
    tale = Shared(one).feed(attached(), at=50)
    tale.feed(ev.InstabilitySeen(PATH0, Reason.PROBE_TIMEOUT), at=5_000)
    return one, two, tale.claim(two, tale.store(), at=20_000, lost_at=lost_at)


def test_an_adopted_session_ends_by_the_time_that_counts_from_its_owner_s_loss() -> None:
    one, two, tale = _adopted(offset=3_600_000)
    span = int(two.policy.session.transport_ttl) // 1_000_000
    tale.feed(ev.TransportTtlPassed(), at=10_001 + span)
    two.stop()
    report = judged([*one.lines, *two.lines])
    assert besides_node(report, "gw1") == [], report.explain()
    assert report.ownership["adoptions"] == 1
    (session,) = (v for v in report.passes if v.chain == tale.chain)
    assert [owner.ended for owner in session.owners] == ["adopted", "terminated"]


def test_an_owner_that_goes_on_until_it_hears_of_the_takeover_breaks_no_rule() -> None:
    one, two = gateway("gw1"), gateway("gw2", offset=9)
    tale = Shared(one).feed(attached(), at=50)
    moved = tale.claim(two, tale.store(), at=4_000).feed(accepted(PATH0, 2, "n-2"), at=4_100)
    tale.feed(ev.TransportDied(PATH0, "silence", 300), ev.NoCandidate(1), at=4_500)
    lost(tale, at=4_900)
    moved.feed(closed(), at=9_000)
    one.at = 9_000
    one.stop()
    two.stop()
    report = judged([*one.lines, *two.lines])
    assert report.ok, report.explain()
    assert report.ownership["tail_records"] == 5


def test_a_drain_and_a_lost_lease_are_told_as_such() -> None:
    for code, drained, word in (("lease_lost", False, "lease"), ("not_owner", True, "drain")):
        one, two = gateway("gw1"), gateway("gw2")
        tale = Shared(one).feed(attached(), at=50)
        if drained:
            one.note(DomainEvent("cluster.drain", "N", data={"state": "on", "sessions": 1}))
        else:
            lost(tale, code, at=1_500)
        moved = tale.claim(two, tale.store(), at=2_000).feed(accepted(PATH0, 2, "n-2"), at=2_100)
        moved.feed(closed(), at=9_000)
        one.at = 9_000
        one.stop()
        two.stop()
        report = judged([*one.lines, *two.lines])
        assert report.ok, report.explain()
        (session,) = (v for v in report.passes if v.chain == tale.chain)
        assert session.owners[0].ended == word


def test_a_checkpoint_of_a_former_owner_vouches_for_its_tail() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    lost(tale, at=1_500)
    one.stop()
    moved = tale.claim(two, found, at=2_000, proven=5, proven_epoch=2).feed(accepted(PATH0, 3, "n-2"), at=2_100)
    moved.feed(closed(), at=9_000)
    two.stop()
    assert judged([*one.lines, *two.lines]).ok
    assert judged([*two.lines, *one.lines]).ok


def test_what_outranks_the_change_of_owner_stands_before_it_in_its_commit() -> None:
    """It had no owner when the window of recovery passed, then when its time was over: who finds it, ends it."""
    one, two, three = gateway("gw1"), gateway("gw2", offset=123), gateway("gw3", offset=-7)
    tale = Shared(one).feed(attached(), at=50).feed(ev.TransportDied(PATH0, "silence", 300), at=1_000)
    moved = tale.restored(two, tale.store(), at=20_000)
    moved.feed(ev.RecoveryWindowPassed(), ev.OwnerChanged(2, "gw1", cause=ev.OwnerCause.ORPHAN))
    moved.restored(three, moved.store(), at=900_000).feed(ev.TransportTtlPassed())
    report = judged([*one.lines, *two.lines, *three.lines])
    assert not rules(report), report.explain()
    assert report.ownership["tails"] == 0


@pytest.mark.parametrize("ended", [True, False])
def test_a_node_that_comes_back_claims_first_and_then_ends_what_ran_out_meanwhile(ended: bool) -> None:
    one = gateway("gw1")
    tale = Shared(one).feed(attached(), at=50)
    tale.feed(ev.TransportDied(PATH0, "silence", 300), ev.NoCandidate(1), at=1_000)
    found, one.at = tale.store(), 899_990
    one.begin("r2", boot="boot-gw1")
    claim = ev.OwnerChanged(2, "gw1", cause=ev.OwnerCause.RESTART)
    tale.restored(one, found, at=900_000).feed(claim, *([ev.TransportTtlPassed()] if ended else []))
    one.stop(vouch=False)
    report = judged(one.lines)
    assert rules(report) == (set() if ended else {"A-9"}), report.explain()


@pytest.mark.parametrize("told", [True, False])
def test_what_a_journal_does_not_tell_of_a_cause_is_inferred(told: bool) -> None:
    """The client comes long after the claim, as after an adoption: only the cause tells that it was a takeover."""
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    moved = tale.claim(two, tale.store(), at=2_000).feed(accepted(PATH0, 2, "n-2"), at=9_000)
    moved.feed(closed(), at=9_500)
    two.stop(vouch=False)

    def silent(records: Records) -> None:
        for record in records:
            if not told:
                record["data"].pop("cause", None)

    base = [line for line in one.lines if json.loads(line)["chain"] == tale.chain]
    rest = [line for line in one.lines if line not in base]
    report = judged([*rest, *rewritten([*base, *two.lines], silent)])
    assert not rules(report), report.explain()
    (session,) = (v for v in (*report.passes, *report.faults) if v.chain == tale.chain)
    assert [owner.begun for owner in session.owners] == ["birth", "takeover" if told else "adopted"]


def test_the_timeline_tells_the_owners(tmp_path: Path) -> None:
    files = [str(file) for file in _files(tmp_path, *(node.lines for node in killed_owner()))]
    run = CliRunner()
    text = run.invoke(audit_commands, ["timeline", *files]).stdout
    assert "owner gw1, epoch 1: versions 1-2" in text
    assert "birth > takeover, 7 records written behind" in text
    assert "gw2 goes on for gw1, owner epoch 2, version 5 was known to the client alone" in text
    (story,) = json.loads(run.invoke(audit_commands, ["timeline", "--json", *files]).stdout)["sessions"]
    assert [owner["node"] for owner in story["owners"]] == ["gw1", "gw2"]
    times = [moment["since_ms"] for moment in story["moments"]]
    assert times == sorted(times)
    assert max(times) < 10_000  # whatever the boot clocks of the two machines say
    assert "owners: 1 takeover, 0 adoptions, 7 records in 1 tail written behind" in run.invoke(
        audit_commands, ["verify", *files]
    ).stdout.replace("\n", " ")


def test_a_newer_session_at_another_gateway_is_not_timed_by_its_clock() -> None:
    """The device's older session goes on at gw1, whose clock is far ahead of gw2's, where the newer one was born."""
    one, two = gateway("gw1", offset=10_000_000), gateway("gw2")
    older = Shared(one, 1).feed(attached(), at=50)
    before = len(one.lines)
    newer = Shared(two, 2).feed(attached(), at=150)
    older.feed(ev.InstabilitySeen(PATH0, Reason.PROBE_TIMEOUT), at=160)
    newer.feed(closed(), at=7_000)
    two.stop()
    older.feed(ev.CloseRequested(Reason.DEVICE_SUPERSEDED), at=170)
    one.stop()
    report = judged([*one.lines[:before], *two.lines, *one.lines[before:]])
    assert report.ok, report.explain()
