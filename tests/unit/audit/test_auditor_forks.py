"""One session, several gateways: forked owners, foreign hands, former owners that act on, tails that may not be."""

from __future__ import annotations

import json
from collections.abc import Callable

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
    besides_node,
    broken,
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

from jumpvpn.audit.auditor import Outcome, Report, tails
from jumpvpn.session import events as ev
from jumpvpn.values import DomainEvent, Epoch, Version


def test_two_gateways_that_acquire_one_term_are_a_forked_owner() -> None:
    one, two, three = gateway("gw1"), gateway("gw2"), gateway("gw3")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    for node in (two, three):
        tale.claim(node, found, at=2_000).feed(accepted(PATH0, 2, f"n-{node.name}"), at=2_100).feed(closed(), at=3_000)
        node.stop()
    report = judged([*one.lines, *two.lines, *three.lines])
    assert report.outcome is Outcome.FAIL
    (text,) = broken(report, "SINGLE_BINDING")
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
    texts = broken(report, "SINGLE_BINDING")
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
    assert "the chain has no owner in between" in broken(report, "EPOCH")[0]


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
    assert broken(report, "VERSION") == ["version 6 after 2, but the client proved nothing newer"]

    def below(records: Records) -> None:
        named(records, "ownership.acquired", 1)["data"]["floor"] = 9

    assert "A-3" in rules(_tale_of(below))


@pytest.mark.parametrize(
    ("cause", "own", "text"),
    [
        ("restart", False, "gw2 takes the session from gw1, which no restart of its own explains"),
        ("orphan", True, "gw2 was the owner before, so it adopts nothing (cause orphan)"),
        ("superseded", True, "gw2 was the owner before, so it adopts nothing (cause superseded)"),
        ("orphan", False, "the client proved to know version 5, which takes a request, and the cause is orphan"),
        ("birth", False, "'birth' is no cause of a change of owner"),
    ],
)
def test_a_cause_that_cannot_be_fails(cause: str, own: bool, text: str) -> None:
    def forged(records: Records) -> None:
        data = named(records, "ownership.acquired", 1)["data"]
        data.update(cause=cause, from_node="gw2" if own else "gw1")

    report = _tale_of(forged, behind=True)
    assert text in broken(report, "EPOCH")
    assert rules(report) == {"A-12"}


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
    assert besides_node(judged(lines), "gw1") == []

    def reset(records: Records) -> None:
        back = change_to(records, "ATTACHED", 1)
        for name in ("transportless_ms", "episode_ms"):
            back["data"][name] = 6_000

    report = judged(rewritten(lines, reset))
    assert rules(report) == {"A-9"}
    assert {"transportless_ms says 6000, the records say 13000", "episode_ms says 6000, the records say 13000"} == set(
        broken(report, "CLOCKS")
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
    texts = broken(report, "SINGLE_BINDING")
    assert "gw1 goes on after it owned the session no more" in texts[0]
    assert report.ownership["dual_active"] >= 1


def test_a_former_owner_that_never_learns_of_its_successor_fails() -> None:
    (text,) = broken(_still_acting(learned=False), "SINGLE_BINDING")
    assert text.startswith("version 5 stands beside s:")
    assert "gw1 never learned that it owns the session no more" in text


def test_a_former_owner_whose_log_ends_is_given_the_benefit_of_its_lease() -> None:
    report = _still_acting(learned=False, latest=33_000)
    assert broken(report, "SINGLE_BINDING") == []


def test_an_owner_that_acts_after_its_loss_fails_even_without_a_successor() -> None:
    node = gateway("gw1")
    tale = Shared(node).feed(attached(), at=50)
    lost(tale, "lease_lost", at=1_000)
    tale.feed(closed(), at=2_000)
    node.stop()
    (text,) = set(broken(judged(node.lines), "SINGLE_BINDING"))
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
    assert broken(report, "SINGLE_BINDING") == [
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
    assert "the session ended, and gw2 goes on with it" in broken(report, "ABSORBING")[0]


def test_what_the_store_must_know_first_is_never_written_behind() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(ev.KeysRotated(Epoch(2)), at=1_000)
    lost(tale, at=1_100)
    tale.claim(two, found, at=2_000, proven=3, proven_epoch=2).feed(closed(), at=9_000)
    report = judged([*one.lines, *two.lines])
    assert "a change of keys that" in broken(report, "SINGLE_BINDING")[0]


def test_an_epoch_that_the_client_proved_is_opened_once() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    lost(tale, at=1_100)
    moved = tale.claim(two, found, at=2_000, proven=5, proven_epoch=1)
    moved.feed(accepted(PATH0, 2, "n-2"), at=2_100).feed(closed(), at=9_000)
    report = judged([*one.lines, *two.lines])
    assert broken(report, "EPOCH") == [f"the client proved to know epoch 2; {tale.chain}/12 opens epoch 2"]


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


# --- what a tail is held to besides ----------------------------------------------------------------------------------


def _tail_of(change: Callable[[Records], None]) -> Report:
    """The takeover of ``killed_owner`` after ``change`` of the dead owner's records, hashes made right again."""
    one, two = killed_owner()
    return judged([*rewritten(one.lines, change), *two.lines])


def test_a_tail_of_another_term_fails() -> None:
    def older(records: Records) -> None:
        of_session(records)[-1]["owner_epoch"] = 0

    assert "owner epoch 0 beside s:" in broken(_tail_of(older), "EPOCH")[0]


def test_an_edited_record_of_a_tail_fails() -> None:
    one, two = killed_owner()
    edited = [line.replace(b'"nonce_id":"n-1"', b'"nonce_id":"n-7"') for line in one.lines]
    report = judged([*edited, *two.lines])
    (tail,) = (verdict for verdict in report.faults if "@1" in verdict.chain)
    assert "the record was changed" in tail.findings[0].text


def test_a_forked_tail_fails() -> None:
    one, two = killed_owner()

    def other(records: Records) -> None:
        named(records, "reattach.result")["data"]["nonce_id"] = "n-9"

    report = judged([*one.lines, *rewritten(one.lines, other)[-7:], *two.lines])
    assert "the tail is forked" in broken(report, "CHAIN")[0]


def test_an_endless_tail_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "TAIL_MAX", 5)
    report = judged([line for node in killed_owner() for line in node.lines])
    assert "more than 5 records beside" in broken(report, "SINGLE_BINDING")[0]


def test_what_the_node_lane_names_of_a_lost_tail_is_a_gap() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    head = len(one.lines)
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    one.lines[head:] = [line for line in one.lines[head:] if json.loads(line)["chain"][0] == "n"]
    lost(tale, at=1_100)
    tale.claim(two, found, at=20_000, lost_at=10_000).feed(closed(), at=30_000)
    report = judged([*one.lines, *two.lines])
    assert not rules(report)
    assert "the node lane names version 5, the record of gw1 ends at 2" in report.explain()


def test_whether_a_writer_beside_learned_of_it_is_in_its_own_lane() -> None:
    one, two = gateway("gw1"), gateway("gw2")
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    tale.feed(accepted(PATH1, 2, "n-1"), at=1_000)
    tale.claim(two, found, at=20_000, lost_at=10_000).feed(closed(), at=30_000)
    two.stop()
    alone = [line for line in one.lines if not line.startswith(b'{"boot_id":"boot-gw1","cause":null,"chain":"n:')]
    report = judged([*alone, *two.lines])
    assert not rules(report)
    assert "whether gw1 learned of it is in its own lane, which is not here" in report.explain()


def test_on_one_machine_a_former_owner_ends_within_a_lease_of_the_takeover() -> None:
    one, two = Node("gw1"), Node("gw2")
    one.note(DomainEvent("cluster.joined", "N", data={"cluster": "c", "lease_ms": 5_000}))
    tale = Shared(one).feed(attached(), at=50)
    moved = tale.claim(two, tale.store(), at=1_000).feed(accepted(PATH0, 2, "n-2"), at=1_100)
    tale.feed(accepted(PATH1, 3, "n-3"), at=20_000)
    lost(tale, at=20_001)
    moved.feed(closed(), at=30_000)
    report = judged([*one.lines, *two.lines])
    (text,) = broken(report, "SINGLE_BINDING")
    assert text.startswith("gw1 acts 19000 ms after s:")
