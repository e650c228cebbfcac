"""One session, several gateways: takeovers and tails written behind are lawful, a forked owner never is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from audit_logs import (
    PATH0,
    PATH1,
    PEER,
    Node,
    Records,
    Shared,
    accepted,
    attached,
    attempt,
    change_to,
    closed,
    gateway,
    judged,
    killed_owner,
    lost,
    named,
    of_session,
    rewritten,
    rules,
)
from typer.testing import CliRunner

from jumpvpn.audit.auditor import Outcome, Report, audit_files
from jumpvpn.cli.audit import audit_commands
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.values import DomainEvent, Epoch, Version


def _without_node(report: Report, name: str) -> list[str]:
    """What is not in order but the end of a node's own lane, which a killed node cannot close."""
    return [str(fault) for fault in report.faults if not fault.chain.startswith(f"n:{name}")]


def _named(report: Report, promise: str) -> list[str]:
    return [f.text for v in report.faults for f in v.findings if f.promise.name == promise]


def _files(place: Path, *logs: list[bytes]) -> list[Path]:
    files = [place / f"{number}.jsonl" for number in range(len(logs))]
    for file, lines in zip(files, logs, strict=True):
        file.write_bytes(b"".join(lines))
    return files


# --- lawful ----------------------------------------------------------------------------------------------------------


def test_a_takeover_with_its_tail_is_in_order_in_whatever_order_the_journals_come(tmp_path: Path) -> None:
    one, two = killed_owner()
    files = _files(tmp_path, one.lines, two.lines)
    for report in (
        judged([*one.lines, *two.lines]), judged([*two.lines, *one.lines]), audit_files(files),
        audit_files(reversed(files)),
    ):  # fmt: skip
        assert _without_node(report, "gw1") == [], report.explain()
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
    assert _without_node(report, "gw1") == []
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
    assert _without_node(report, "gw1") == [], report.explain()
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


# --- unlawful --------------------------------------------------------------------------------------------------------


def test_two_gateways_that_acquire_one_term_are_a_forked_owner() -> None:
    one, two, three = gateway("gw1"), gateway("gw2"), gateway("gw3")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    for node in (two, three):
        tale.claim(node, found, at=2_000).feed(accepted(PATH0, 2, f"n-{node.name}"), at=2_100).feed(closed(), at=3_000)
        node.stop()
    report = judged([*one.lines, *two.lines, *three.lines])
    assert report.outcome is Outcome.FAIL
    (text,) = _named(report, "SINGLE_BINDING")
    assert text == f"gw3 acquires owner epoch 2, which gw2 acquired at {tale.chain}/6"
    assert report.ownership["dual_active"] == 1


def _tale_of(change: Callable[[Records], Records | None], *, behind: bool = False) -> Report:
    """The log of a takeover after ``change``, with all hashes made right again: per journal, as its writer could."""
    one, two = killed_owner(behind=behind, vouch=False)
    count = len(of_session([json.loads(line) for line in one.lines]))
    base = [line for line in one.lines if json.loads(line)["chain"].startswith("s:")][: 4 if behind else count]
    forged = rewritten([*base, *two.lines], change)
    rest = [line for line in one.lines if line not in base]
    return judged([*rest, *forged])


def test_a_foreign_node_that_writes_is_named_with_the_owner() -> None:
    def foreign(records: Records) -> None:
        for record in of_session(records):
            if record["state_version"] >= 7:
                record["node_id"] = "gw3"

    report = _tale_of(foreign)
    texts = _named(report, "SINGLE_BINDING")
    assert texts[0].startswith("node gw3 writes under owner epoch 2, whose owner is gw2 since s:")
    assert texts[0].endswith("/5")


def test_a_term_that_was_skipped_fails() -> None:
    def skipped(records: Records) -> None:
        for record in of_session(records):
            if record["owner_epoch"] == 2:
                record["owner_epoch"] = 3
        named(records, "ownership.acquired", 1)["data"]["epoch"] = 3

    report = _tale_of(skipped)
    assert rules(report) == {"A-12"}
    assert "the chain has no owner in between" in _named(report, "EPOCH")[0]


def test_an_inherited_binding_fails() -> None:
    """The new owner goes on in ATTACHED under the old binding: no reattach, no proof."""

    def inherited(records: Records) -> Records:
        acquired = named(records, "ownership.acquired", 1)
        kept = [r for r in records if r["chain"][0] != "s" or r["owner_epoch"] == 1 or r is acquired]
        acquired.update(idx=1, n=1, state="ATTACHED", prev_state="ATTACHED", state_version=3)
        return kept

    report = _tale_of(inherited)
    assert "EPOCH" in {f.promise.name for v in report.faults for f in v.findings}
    assert "a new owner inherits ATTACHED" in report.explain()


def test_versions_left_out_need_the_client_s_word() -> None:
    def unasked(records: Records) -> None:
        named(records, "ownership.acquired", 1)["data"]["floor"] = 0

    report = _tale_of(unasked, behind=True)
    assert rules(report) == {"A-3"}
    assert _named(report, "VERSION") == ["version 6 after 2, but the client proved nothing newer"]

    def below(records: Records) -> None:
        named(records, "ownership.acquired", 1)["data"]["floor"] = 9

    assert "A-3" in rules(_tale_of(below))


def test_a_reset_transport_clock_fails() -> None:
    """The session was without transport before the takeover; the new owner says that it lost it just now."""
    one, two = gateway("gw1"), gateway("gw2", offset=-50_000)
    tale = Shared(one).feed(attached(), at=50)
    tale.feed(ev.TransportDied(PATH0, "silence", 300), ev.NoCandidate(1), at=5_000)
    tale.feed(ev.PolicyReloaded(one.policy), at=12_000)
    moved = tale.claim(two, tale.store(), at=14_000)
    moved.feed(accepted(PATH0, 2, "n-2"), at=20_000).feed(closed(), at=30_000)
    two.stop(vouch=False)
    lines = [*one.lines, *two.lines]
    assert _without_node(judged(lines), "gw1") == []

    def reset(records: Records) -> None:
        back = change_to(records, "ATTACHED", 1)
        for name in ("transportless_ms", "episode_ms"):
            back["data"][name] = 6_000

    report = judged(rewritten(lines, reset))
    assert rules(report) == {"A-9"}
    assert {"transportless_ms says 6000, the records say 13000", "episode_ms says 6000, the records say 13000"} == set(
        _named(report, "CLOCKS")
    )


def _still_acting(*, learned: bool, at: int = 30_000, latest: int = 60_000) -> Report:
    one, two = gateway("gw1"), gateway("gw2", offset=9)
    one.note(DomainEvent("cluster.joined", "N", data={"cluster": "c", "lease_ms": 5_000}))
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    if learned:
        lost(tale, at=at - 1_000)
    tale.feed(accepted(PATH1, 2, "n-1"), at=at)
    one.at = latest
    one.stop()
    moved = tale.claim(two, found, at=4_000).feed(accepted(PATH0, 2, "n-2"), at=4_100)
    moved.feed(closed(), at=latest)
    two.stop()
    return judged([line for line in one.lines if b"node.stopped" not in line] + two.lines)


def test_a_former_owner_that_acts_on_after_it_lost_the_session_fails() -> None:
    report = _still_acting(learned=True)
    texts = _named(report, "SINGLE_BINDING")
    assert "gw1 goes on after it owned the session no more" in texts[0]
    assert report.ownership["dual_active"] >= 1


def test_a_former_owner_that_never_learns_of_its_successor_fails() -> None:
    (text,) = _named(_still_acting(learned=False), "SINGLE_BINDING")
    assert text.startswith("version 5 stands beside s:")
    assert "gw1 never learned that it owns the session no more" in text


def test_a_former_owner_whose_log_ends_is_given_the_benefit_of_its_lease() -> None:
    report = _still_acting(learned=False, latest=33_000)
    assert _named(report, "SINGLE_BINDING") == []


def test_an_owner_that_acts_after_its_loss_fails_even_without_a_successor() -> None:
    node = gateway("gw1")
    tale = Shared(node).feed(attached(), at=50)
    lost(tale, "lease_lost", at=1_000)
    tale.feed(closed(), at=2_000)
    node.stop()
    (text,) = set(_named(judged(node.lines), "SINGLE_BINDING"))
    assert text.startswith("gw1 acts under owner epoch 1, which it lost at n:gw1:r1/")


def test_changes_that_wait_longer_than_a_lease_fail() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    one.note(DomainEvent("cluster.joined", "N", data={"cluster": "c", "lease_ms": 5_000}))
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    tale.feed(accepted(PATH0, 3, "n-2"), at=9_000)
    lost(tale, at=9_100)
    proven = int(tale.session.version)
    moved = tale.claim(two, found, at=10_000, proven=proven, proven_epoch=3).feed(accepted(PATH1, 4, "n-3"), at=10_100)
    moved.feed(closed(), at=11_000)
    report = judged([*one.lines, *two.lines])
    assert _named(report, "SINGLE_BINDING") == [
        "changes wait 8000 ms for the store, longer than a lease (7000 ms)",
    ]


def test_a_session_that_ended_lives_on_at_no_other_gateway() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(closed(), at=1_000)
    tale.claim(two, found, at=2_000).feed(closed(), at=9_000)
    two.stop()
    report = judged([*one.lines, *two.lines])
    assert "A-4" in rules(report)
    assert "the session ended, and gw2 goes on with it" in _named(report, "ABSORBING")[0]


def test_what_the_store_must_know_first_is_never_written_behind() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(ev.KeysRotated(Epoch(2)), at=1_000)
    lost(tale, at=1_100)
    tale.claim(two, found, at=2_000, proven=3, proven_epoch=2).feed(closed(), at=9_000)
    report = judged([*one.lines, *two.lines])
    assert "a change of keys that" in _named(report, "SINGLE_BINDING")[0]


def test_an_epoch_that_the_client_proved_is_opened_once() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    lost(tale, at=1_100)
    moved = tale.claim(two, found, at=2_000, proven=5, proven_epoch=1)
    moved.feed(accepted(PATH0, 2, "n-2"), at=2_100).feed(closed(), at=9_000)
    report = judged([*one.lines, *two.lines])
    assert _named(report, "EPOCH") == [f"the client proved to know epoch 2; {tale.chain}/12 opens epoch 2"]


def test_a_proof_counts_at_one_gateway() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    lost(tale, at=1_100)
    moved = tale.claim(two, found, at=2_000, proven=5, proven_epoch=2)
    moved.feed(accepted(PATH0, 3, "n-1"), at=2_100).feed(closed(), at=9_000)
    report = judged([*one.lines, *two.lines])
    assert rules(report) == {"A-6"}
    assert "nonce n-1 counts here and at s:" in report.explain()


def test_a_tail_that_follows_another_head_fails() -> None:
    one, two = killed_owner()

    def elsewhere(records: Records) -> None:
        change_to(records, "ATTACHED")["data"]["dwell_ms"] += 1

    forged = rewritten(one.lines, elsewhere)
    kept = [line for line in one.lines if json.loads(line)["chain"][0] == "s" and json.loads(line)["seq"] <= 4]
    tail = [line for line in forged if json.loads(line)["chain"][0] == "s" and json.loads(line)["seq"] > 4]
    report = judged([*kept, *tail, *two.lines])
    assert "the record does not follow its predecessor" in report.explain()
    assert "from which gw2 went on" in report.explain()


def test_a_rule_broken_in_the_tail_counts() -> None:
    one, two = killed_owner()

    def lied(records: Records) -> None:
        named(records, "reattach.result")["data"]["nonce_id"] = None

    report = judged([*rewritten(one.lines, lied), *two.lines])
    assert "A-6" in rules(report)
    assert any("@1" in fault.chain for fault in report.faults)


@pytest.mark.parametrize("known", [True, False])
def test_the_client_s_epoch_is_looked_up_in_the_tail_too(known: bool) -> None:
    """The client switched at gw1, gw1 died before it stored that, and the session ended before the client was back."""
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    if known:
        tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    moved = tale.claim(two, found, at=20_000, lost_at=10_000)
    moved.feed(closed(), at=30_000)
    two.stop()
    client = Node("laptop", "client")
    own = Shared(client).feed(attached(), at=50)
    assert own.session.uid == tale.session.uid
    own.feed(ev.TransportDied(PATH0, "link"), at=900)
    own.feed(attempt(own, PATH1), at=950)
    own.feed(ev.ReattachCommitted(PATH1, PEER, Epoch(2), Version(5), "n-1"), at=1_000)
    own.feed(closed(), at=40_000)
    client.stop()
    report = judged([*one.lines, *two.lines, *client.lines])
    texts = [f.text for v in report.faults for f in v.findings]
    assert texts == ([] if known else ["the client was bound in epoch 2; the gateway's record ends in epoch 1"])


def test_what_outranks_the_change_of_owner_stands_before_it_in_its_commit() -> None:
    """It had no owner when the window of recovery passed, then when its time was over: who finds it, ends it."""
    one, two, three = gateway("gw1"), gateway("gw2", offset=123), gateway("gw3", offset=-7)
    tale = Shared(one).feed(attached(), at=50).feed(ev.TransportDied(PATH0, "silence", 300), at=1_000)
    moved = tale.restored(two, tale.store(), at=20_000)
    moved.feed(ev.RecoveryWindowPassed(), ev.OwnerChanged(2, "gw1"))
    moved.restored(three, moved.store(), at=900_000).feed(ev.TransportTtlPassed())
    report = judged([*one.lines, *two.lines, *three.lines])
    assert not rules(report), report.explain()
    assert report.ownership["tails"] == 0


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
