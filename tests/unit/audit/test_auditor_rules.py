"""Rules A-2 to A-14: one honest log, one lie each, with all hashes made right again; each lie breaks its own rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from audit_logs import (
    LTE,
    PATH0,
    PATH1,
    PEER,
    WLAN,
    Node,
    Records,
    Tale,
    accepted,
    attached,
    attempt,
    change_to,
    client_log,
    closed,
    gateway_log,
    judged,
    named,
    of_session,
    refused,
    rewritten,
    rules,
)  # fmt: skip

from jumpvpn.audit.auditor import Outcome
from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind
from jumpvpn.values import MILLISECOND, DomainEvent, Epoch, Version

Change = Callable[[Records], Records | None]


def _view(transport: str, generation: int) -> dict[str, Any]:
    return {"id": transport, "proto": "udp", "local": "", "peer": "", "binding_gen": generation}


def _without(event: str, place: int = 0) -> Change:
    def change(records: Records) -> Records:
        gone = named(records, event, place)
        commit = [r for r in records if r["chain"] == gone["chain"] and r["mono_ms"] == gone["mono_ms"]]
        rest = [r for r in commit if r is not gone]
        for index, record in enumerate(rest, start=1):
            record["idx"], record["n"] = index, len(rest)
        return [r for r in records if r is not gone]

    return change


def _edit(event: str, place: int = 0, **values: Any) -> Change:
    """Other values in one record: ``data_x`` for ``data["x"]``, else a member of the envelope."""

    def change(records: Records) -> None:
        record = named(records, event, place)
        for name, value in values.items():
            if name.startswith("data_"):
                record["data"][name.removeprefix("data_")] = value
            else:
                record[name] = value

    return change


def _edit_change(state: str, place: int = 0, **values: Any) -> Change:
    def change(records: Records) -> None:
        record = change_to(records, state, place)
        for name, value in values.items():
            target = record["data"] if name.startswith("data_") else record
            target[name.removeprefix("data_")] = value

    return change


def _versions(by: int, since: int) -> Change:
    def change(records: Records) -> None:
        for record in of_session(records):
            if record["state_version"] >= since:
                record["state_version"] += by

    return change


def _illegal_edge(records: Records) -> None:
    """ATTACHED straight into DEGRADED: the changes in between are told as one."""
    for record in of_session(records):
        for name in ("prev_state", "state"):
            if record["state_version"] in (3, 4) and record[name] in ("VOLATILE", "RECOVERING"):
                record[name] = "DEGRADED"


def _second_birth(records: Records) -> Records:
    born = named(records, "session.created")
    again = {**born, "state_version": 2}
    place = records.index(born)
    return [*records[: place + 1], again, *records[place + 1 :]]


GATEWAY_LIES: dict[str, tuple[Change, str]] = {
    "a row lacks its extra event": (_without("transport.retired"), "A-2"),
    "a death without its event": (_without("transport.dead"), "A-2"),
    "an end without session.terminated": (_without("session.terminated"), "A-2"),
    "an illegal edge": (_illegal_edge, "A-2"),
    "another row": (_edit_change("VOLATILE", data_row="4"), "A-2"),
    "a row that does not exist": (_edit_change("VOLATILE", data_row="99"), "A-2"),
    "a reason of another row": (_edit_change("VOLATILE", reason="owner_changed"), "A-2"),
    "a previous state that was not": (_edit_change("DEGRADED", prev_state="VOLATILE"), "A-2"),
    "a commit that is not whole": (_edit_change("VOLATILE", n=2), "A-2"),
    "a version is skipped": (_versions(1, 5), "A-3"),
    "a version is repeated": (_versions(-1, 5), "A-3"),
    "a quiet row mutates": (_edit("policy.applied", 2, data_row="22.other"), "A-3"),
    "born twice": (_second_birth, "A-4"),
    "born by the wrong end": (_edit("session.created", data_role="client"), "A-4"),
    "attached to nothing": (_edit("transport.attached", transport=None), "A-5"),
    "a switch from elsewhere": (_edit("transport.switch", data_from_id="path7/udp"), "A-5"),
    "a switch to itself": (_edit("transport.switch", data_to_id="path0/udp"), "A-5"),
    "the binding of another epoch": (
        _edit("transport.switch", transport=_view("path1/udp", 7)),
        "A-5",
    ),
    "the death of what was not bound": (
        _edit("transport.dead", transport=_view("path7/udp", 1)),
        "A-5",
    ),
    "a nonce counts twice": (_edit("reattach.result", 2, data_nonce_id="n-1"), "A-6"),
    "no nonce": (_edit("reattach.result", 1, data_nonce_id=""), "A-6"),
    "a denial among the mutations": (_edit("reattach.result", 1, data_status="DENIED"), "A-7"),
    "a refusal that mutates": (_edit("key.rotated", data_row="23"), "A-7"),
    "granted after it was denied": (_edit("reattach.result", 1, data_nonce_id="n-stale"), "A-7"),
    "a dwell that was not": (_edit_change("DEGRADED", data_dwell_ms=700), "A-9"),
    "a transportless time that was not": (_edit_change("RECOVERING", 1, data_transportless_ms=1), "A-9"),
    "an attempt too few": (_edit_change("RECOVERING", 1, data_attempts=1), "A-9"),
    "time runs backwards": (_edit("key.rotated", mono_ms=1_000_010), "A-9"),
    "an outranking cause only contributes": (_edit_change("VOLATILE", contributing=["transport_ttl_exceeded"]), "A-11"),
    "the owner's epoch rises by itself": (_edit("key.rotated", owner_epoch=2), "A-12"),
    "an epoch that does not rise": (_edit("key.rotated", data_key_epoch=2), "A-12"),
    "a policy that nobody announced": (_edit("key.rotated", policy_digest="0" * 64), "A-13"),
    "a body that is not the policy": (_edit("policy.applied", data_body={"session": {}}), "A-13"),
}  # fmt: skip


@pytest.mark.parametrize("lie", GATEWAY_LIES)
def test_each_lie_of_a_gateway_breaks_its_rule(lie: str) -> None:
    change, rule = GATEWAY_LIES[lie]
    report = judged(rewritten(gateway_log(vouch=False).lines, change))
    assert report.outcome is Outcome.FAIL
    assert rule in rules(report), report.explain()
    finding = next(f for v in report.faults for f in v.findings if f.rule.id == rule)
    assert finding.chain in finding.text or finding.seq > 0


def test_nothing_but_the_lie_makes_them_fail() -> None:
    assert judged(rewritten(gateway_log(vouch=False).lines, lambda _records: None)).ok
    assert judged(rewritten(client_log(vouch=False).lines, lambda _records: None)).ok


CLIENT_LIES: dict[str, tuple[Change, str]] = {
    "an attempt without end": (_without("transport.switch_failed"), "A-14"),
    "a proof for another transport": (
        _edit("transport.revalidated", transport=_view(WLAN, 2)),
        "A-5",
    ),
    "a way back without proof": (_without("transport.revalidated"), "A-6"),
    "the node lane in another state": (_edit("reattach.attempt", prev_state="DEGRADED", state="DEGRADED"), "A-2"),
    "a reason that no row of the node lane has": (_edit("transport.switch_failed", reason="handshake_ok"), "A-2"),
    "a success without mutation": (
        lambda records: [
            told
            for record in records
            for told in (
                [record, {**record, "event": "reattach.result", "data": {"status": "SUCCESS"}}]
                if record["event"] == "transport.switch_failed"
                else [record]
            )
        ],
        "A-7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", CLIENT_LIES)
def test_each_lie_of_a_client_breaks_its_rule(lie: str) -> None:
    change, rule = CLIENT_LIES[lie]
    report = judged(rewritten(client_log(vouch=False).lines, change))
    assert rule in rules(report), report.explain()


# --- logs that an honest sealer could only write for a machine that is broken ---------------------------------------


def test_switches_beyond_the_budget() -> None:
    node = Node(
        "laptop", "client", policy=Policy.model_validate({"switching": {"max_per_minute": 2, "hold_down": "0s"}})
    )
    tale = Tale(node)
    tale.feed(attached(WLAN), at=50)
    for turn, (here, there) in enumerate(((WLAN, LTE), (LTE, WLAN), (WLAN, LTE)), start=1):
        node.at = 10_000 * turn
        tale.feed(ev.TransportDied(here, "link"), attempt(tale, there))
        tale.feed(ev.ReattachCommitted(there, PEER, Epoch(1 + turn), Version(turn), f"n-{turn}"), at=10_000 * turn + 50)
    tale.feed(closed(), at=70_000)
    node.stop(vouch=False)
    report = judged(node.lines)
    assert rules(report) == {"A-8"}
    assert "3 switches in 60 s, the policy allows 2" in report.explain()


def test_a_switch_from_a_living_binding_before_hold_down_is_over() -> None:
    for gap_ms, broken in ((1_000, {"A-8"}), (1_600, set())):
        node = Node("laptop", "client")
        tale = Tale(node)
        tale.feed(attached(WLAN), at=50)
        for turn, (at, there) in enumerate(((10_000, LTE), (10_010 + gap_ms, WLAN)), start=1):
            node.at = at
            tale.feed(ev.SwitchForced(Reason.OPERATOR_SWITCH, there), attempt(tale, there))
            tale.feed(ev.ReattachCommitted(there, PEER, Epoch(1 + turn), Version(turn), f"n-{turn}"), at=at + 10)
        tale.feed(closed(), at=30_000)
        node.stop(vouch=False)
        assert rules(judged(node.lines)) == broken


def test_a_denial_by_rate_below_the_limit() -> None:
    for used, broken in ((0, {"A-8"}), (8, set())):
        node = Node("laptop", "client")
        tale = Tale(node)
        tale.feed(attached(WLAN), at=50)
        here = WLAN
        for turn in range(1, used + 1):
            there = LTE if here is WLAN else WLAN
            node.at = 100 * turn
            tale.feed(ev.TransportDied(here, "link"), attempt(tale, there))
            tale.feed(ev.ReattachCommitted(there, PEER, Epoch(1 + turn), Version(turn), f"n-{turn}"))
            here = there
        detail = {"to_id": str(LTE), "limit": 8, "candidate_count": 1}
        denied = ev.SwitchDenied(Reason.SWITCH_RATE_LIMITED, detail)
        tale.feed(ev.TransportDied(here, "link"), denied, at=10_000)
        tale.feed(closed(), at=11_000)
        node.stop(vouch=False)
        assert rules(judged(node.lines)) == broken


def _ttl_ends_at(at_ms: int, *, turn_at: int | None = None, restart_at: int | None = None) -> Node:
    node = Node(
        policy=Policy.model_validate({"session": {"transport_ttl": "20s"}, "recovery": {"episode_max": "300s"}})
    )
    tale = Tale(node)
    tale.feed(attached(), at=50)
    tale.feed(ev.TransportDied(PATH0, "silence"), ev.NoCandidate(1), at=10_000)
    if turn_at is not None:
        tale.feed(refused(Reason.STALE_REQUEST, "n-late"), at=turn_at)
    if restart_at is not None:
        head = node.sealer._sessions[tale.session.uid]
        node.at = restart_at
        node.begin("r2")
        node.sealer.resume(tale.session.uid, head)
    tale.feed(ev.TransportTtlPassed(), at=at_ms)
    node.stop(vouch=False)
    return node


def test_an_end_by_a_deadline_that_has_not_passed() -> None:
    report = judged(_ttl_ends_at(29_000).lines)
    assert rules(report) == {"A-9"}
    assert "transport_ttl_exceeded is not true: 19000 of 20000 ms had passed" in report.explain()
    assert judged(_ttl_ends_at(30_001).lines).ok
    assert judged(_ttl_ends_at(31_900).lines).ok  # within the tolerance


def test_a_late_end_fails_if_the_session_had_a_turn_meanwhile() -> None:
    report = judged(_ttl_ends_at(60_000, turn_at=40_000).lines)
    assert rules(report) == {"A-9"}
    assert "passed 30000 ms before" in report.explain()


def test_a_late_end_without_any_sign_of_life_cannot_be_decided() -> None:
    report = judged(_ttl_ends_at(60_000).lines)
    assert report.outcome is Outcome.INCOMPLETE
    assert "slept or waited" in report.explain()
    assert judged(_ttl_ends_at(60_000).lines, tolerance_ms=40_000).ok


def test_nobody_keeps_deadlines_while_the_process_is_away() -> None:
    restarted = _ttl_ends_at(60_000, restart_at=59_990)
    report = judged(restarted.lines)
    assert not rules(report)
    assert "before the node acted" not in report.explain()


def test_a_commit_that_leaves_a_passed_deadline_running() -> None:
    node = _ttl_node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    tale.feed(ev.TransportDied(PATH0, "silence"), ev.NoCandidate(1), at=10_000)
    tale.feed(accepted(PATH1, 2, "n-1"), at=10_500)
    tale.feed(ev.TransportDied(PATH1, "silence"), ev.NoCandidate(1), at=20_000)
    tale.feed(ev.ConditionMet(PATH1, "x"), at=41_000)
    tale.feed(closed(), at=41_001)
    node.stop(vouch=False)
    report = judged(node.lines)
    assert rules(report) == {"A-9"}
    assert "the transport TTL had passed 1000 ms before" in report.explain()


def _ttl_node() -> Node:
    return Node(
        policy=Policy.model_validate({"session": {"transport_ttl": "20s"}, "recovery": {"episode_max": "300s"}})
    )


def test_more_attempts_than_an_episode_has() -> None:
    def more(records: Records) -> None:
        named(records, "session.created")["data"]["bounds"]["attempts"] = 1

    report = judged(rewritten(gateway_log(vouch=False).lines, more))
    assert rules(report) == {"A-9"}
    assert "attempt 2 of an episode that allows 1" in report.explain()


def test_a_running_bound_may_not_grow() -> None:
    def grown(records: Records) -> None:
        bounds = named(of_session(records), "policy.applied")["data"]["bounds"]
        bounds["lifetime_ms"] += 1

    report = judged(rewritten(gateway_log(vouch=False).lines, grown))
    assert rules(report) == {"A-13"}
    assert "a running bound grew: lifetime_ms" in report.explain()


def test_a_tightened_policy_counts_from_its_row() -> None:
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    tale.feed(ev.InstabilitySeen(PATH0, Reason.PROBE_TIMEOUT), at=1_000)
    tight = Policy.model_validate({"volatility": {"volatile_max": "2s", "stability_window": "1s"}})
    node.announce(tight)
    tale.feed(ev.PolicyReloaded(tight), at=2_000)
    tale.feed(ev.TransportStabilized(PATH0), at=3_500)
    tale.feed(closed(), at=3_600)
    node.stop(vouch=False)
    report = judged(node.lines)
    assert rules(report) == {"A-9"}
    assert report.faults[0].findings[0].promise.name == "BOUNDED_RECOVERY"


def test_one_device_has_one_live_session() -> None:
    def overlapping(*, ends: bool) -> Node:
        node = Node()
        older, newer = Tale(node, 1).feed(attached(), at=50), Tale(node, 2)
        newer.feed(attached(), at=150)
        if ends:
            older.feed(ev.CloseRequested(Reason.DEVICE_SUPERSEDED), at=151)
        else:
            older.feed(ev.InstabilitySeen(PATH0, Reason.PROBE_TIMEOUT), at=5_000)
            older.feed(closed(), at=6_000)
        newer.feed(closed(), at=7_000)
        node.stop(vouch=False)
        return node

    assert judged(overlapping(ends=True).lines).ok
    report = judged(overlapping(ends=False).lines)
    assert rules(report) == {"A-4"}
    assert "its device began a newer one" in report.explain()


def test_a_new_owner_never_inherits_the_binding() -> None:
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    node.checkpoint()
    head = node.sealer._sessions[tale.session.uid]
    node.at = 1_000
    node.begin("r2")
    node.sealer.resume(tale.session.uid, head)
    tale.feed(ev.OwnerChanged(2), ev.TransportDied(PATH0, "binding_cleared"), ev.NoCandidate(1), at=1_010)
    tale.feed(accepted(PATH0, 2, "n-1"), at=2_000)
    tale.feed(closed(), at=3_000)
    node.stop()
    assert judged(node.lines).ok

    def inherited(records: Records) -> Records:
        """The old binding simply goes on: no reattach, the proof is left out."""
        kept = [r for r in records if not (r["chain"].startswith("s:") and 2 < r["state_version"] < 8)]
        for record in kept:
            if record["chain"].startswith("s:") and record["state_version"] == 8:
                record["state_version"], record["owner_epoch"] = 3, 2
        return kept

    assert "A-12" in rules(judged(rewritten(node.lines, inherited)))


def test_another_node_needs_a_higher_epoch() -> None:
    def elsewhere(records: Records) -> None:
        for record in of_session(records):
            if record["state_version"] >= 6:
                record["node_id"] = "gw2"

    assert "A-12" in rules(judged(rewritten(gateway_log(vouch=False).lines, elsewhere)))


def test_a_client_is_never_bound_where_its_gateway_never_was() -> None:
    gateway, client = gateway_log(vouch=False), client_log(vouch=False)

    def ahead(records: Records) -> None:
        for record in of_session(records):
            view = record["transport"]
            if view is not None and view["binding_gen"] == 4:
                view["binding_gen"] = 5
        for record in of_session(records):
            if record["data"].get("epoch") == 4:
                record["data"]["epoch"] = 5

    forged = rewritten(client.lines, ahead)
    assert judged(forged).ok
    for lines in ([*forged, *gateway.lines], [*gateway.lines, *forged]):
        report = judged(lines)
        assert rules(report) == {"A-12"}
        assert report.faults[0].chain.startswith("c:")


def test_a_version_that_the_node_lane_alone_knows_is_missed() -> None:
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    told = DomainEvent("transport.candidate", "N", session=tale.session.uid, state_version=9, state="ATTACHED")
    node.note(told)
    node.checkpoint()
    report = judged(node.lines)
    assert report.outcome is Outcome.INCOMPLETE
    assert "names version 9, the chain ends at version 2" in report.explain()
    tale.feed(closed(), at=100)
    node.stop()
    assert rules(judged(node.lines)) == {"A-3"}


def test_an_unannounced_policy_is_only_missed_when_the_node_chain_has_a_gap() -> None:
    lines = gateway_log(vouch=False).lines
    assert judged(lines).ok
    gone = [line for place, line in enumerate(lines) if place != 1]
    report = judged(gone)
    assert report.outcome is Outcome.INCOMPLETE
    assert not rules(report)


def test_a_revalidation_counts_as_proof_only_on_the_incumbent() -> None:
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    node.at = 1_000
    moved = ev.PeerAddressChanged(PATH0, PEER, "198.51.100.7:1")
    tale.feed(moved, ev.AttemptStarted(AttemptKind.REBIND, PATH0, node.now.boot, "198.51.100.7:1"))
    tale.feed(ev.RebindingValidated(PATH0, "198.51.100.7:1", 20 * MILLISECOND), at=1_050)
    tale.feed(closed(), at=2_000)
    node.stop(vouch=False)
    report = judged(node.lines)
    assert report.ok, report.explain()
    assert report.coverage["rows"]["15"] == 1
