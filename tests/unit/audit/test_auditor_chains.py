"""Rule A-1: what happens to the chain itself. Losses are INCOMPLETE, alterations FAIL, repeats and order harmless."""

from __future__ import annotations

import json
import random
from typing import Any

import rfc8785
from audit_logs import Node, Records, Tale, attached, client_log, closed, gateway_log, judged, rewritten, rules

from jumpvpn.audit.auditor import Outcome
from jumpvpn.audit.auditor.chains import HELD_MAX
from jumpvpn.values import DomainEvent

SESSION = "s:"


def _place(lines: list[bytes], chain: str, seq: int) -> int:
    for place, line in enumerate(lines):
        record = json.loads(line)
        if record["chain"].startswith(chain) and record["seq"] == seq:
            return place
    raise AssertionError(f"{chain}/{seq} is not in the log")


def test_good_logs_pass_and_both_ends_agree() -> None:
    gateway, client = gateway_log(), client_log()
    report = judged([*gateway.lines, *client.lines], anchors=[gateway.public(1), client.public(1)])
    assert report.ok, report.explain()
    assert {v.chain[:2] for v in report.passes} == {"s:", "c:", "n:"}
    assert report.exit_code == 0
    assert report.events == len(gateway.lines) + len(client.lines)


def test_order_within_the_bound_and_repeats_are_harmless() -> None:
    lines = gateway_log().lines
    shuffled = list(lines)
    random.Random(3).shuffle(shuffled)
    assert judged(shuffled).ok
    report = judged([*lines, *lines])
    assert report.ok
    assert report.repeats == len(lines)


def test_a_collector_may_write_the_same_json_in_another_form() -> None:
    pretty = [json.dumps(json.loads(line), sort_keys=False, indent=None).encode() for line in gateway_log().lines]
    assert pretty[0] != gateway_log().lines[0]
    assert judged(pretty).ok


def test_a_deleted_line_is_a_gap_and_never_a_failure() -> None:
    lines = list(gateway_log(vouch=False).lines)
    for seq in (2, 6, 10, 15):
        place = _place(lines, SESSION, seq)
        report = judged([*lines[:place], *lines[place + 1 :]])
        assert (report.outcome, report.exit_code) == (Outcome.INCOMPLETE, 2), report.explain()
        (verdict,) = report.faults
        assert (verdict.gaps[0].first, verdict.gaps[0].last) == (seq, seq)


def test_an_edited_line_fails() -> None:
    lines = list(gateway_log(vouch=False).lines)
    place = _place(lines, SESSION, 5)
    lines[place] = lines[place].replace(b'"dwell_ms":3950', b'"dwell_ms":3951')
    report = judged(lines)
    assert rules(report) == {"A-1"}
    (verdict,) = report.faults
    assert (verdict.findings[0].seq, verdict.findings[0].promise.name) == (5, "CHAIN")


def test_swapped_content_fails() -> None:
    lines = list(gateway_log(vouch=False).lines)
    one, two = (json.loads(lines[_place(lines, SESSION, seq)]) for seq in (5, 6))
    for record, other in ((dict(one), two), (dict(two), one)):
        kept = {name: record[name] for name in ("chain", "seq", "prev", "hash")}
        lines[_place(lines, SESSION, record["seq"])] = rfc8785.dumps({**other, **kept}) + b"\n"
    assert "A-1" in rules(judged(lines))


def test_a_fork_fails() -> None:
    lines = list(gateway_log(vouch=False).lines)

    def other_reason(records: Records) -> None:
        next(r for r in records if r["seq"] == 5 and r["chain"].startswith("s:"))["reason"] = "loss_threshold_exceeded"

    forked = rewritten(lines, other_reason)
    report = judged([*lines[:12], forked[_place(forked, SESSION, 5)], *lines[12:]])
    assert rules(report) == {"A-1"}
    assert "forked" in report.explain()


def test_a_link_to_elsewhere_fails() -> None:
    lines = list(gateway_log(vouch=False).lines)
    place = _place(lines, SESSION, 7)
    record = json.loads(lines[place])
    record["prev"] = "a" * 64
    from jumpvpn.audit.chain import record_hash

    record["hash"] = record_hash(record)
    report = judged([*lines[:place], rfc8785.dumps(record), *lines[place + 1 :]])
    assert rules(report) == {"A-1"}


def test_a_record_in_the_chain_of_another_session_fails() -> None:
    def moved(records: Records) -> None:
        for record in records:
            if record["chain"].startswith("s:") and record["seq"] == 6:
                record["session_uid"] = "0" * 16

    assert "A-4" in rules(judged(rewritten(gateway_log(vouch=False).lines, moved)))


def test_reordering_beyond_the_bound_is_a_gap() -> None:
    node = Node()
    for number in range(2 * HELD_MAX + 10):
        node.note(DomainEvent("node.stopping", "N", data={"cause": str(number)}))
    node.stop(vouch=False)
    first, second, *rest = node.lines
    assert judged([first, *rest[:HELD_MAX], second, *rest[HELD_MAX:]]).ok
    late = judged([first, *rest[: HELD_MAX + 1], second, *rest[HELD_MAX + 1 :]])
    assert late.outcome is Outcome.INCOMPLETE


def test_what_follows_a_gap_is_judged_again() -> None:
    """The gap hides what came before it, not what breaks a rule after it."""
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    tale.feed(closed(), at=100)
    node.stop(vouch=False)

    def two_ends(records: Records) -> Records:
        end = [dict(r) for r in records if r["event"] == "session.terminated"]
        return [*records[:-1], {**end[0], "idx": 1, "n": 1, "state_version": 4}, records[-1]]

    lines = rewritten(node.lines, two_ends)
    place = _place(lines, SESSION, 2)
    report = judged([*lines[:place], *lines[place + 1 :]])
    assert report.outcome is Outcome.FAIL
    assert "A-4" in rules(report)


def test_a_cut_tail_without_checkpoints_is_incomplete() -> None:
    lines = [line for line in gateway_log(vouch=False).lines if json.loads(line)["chain"].startswith(SESSION)]
    for kept in range(1, len(lines)):
        report = judged(lines[:kept])
        assert report.outcome is Outcome.INCOMPLETE, kept


def _vouched(node: Node) -> tuple[list[bytes], list[str]]:
    return list(node.lines), [node.public(1)]


def test_a_checkpoint_proves_that_the_tail_was_cut() -> None:
    lines, anchors = _vouched(gateway_log())
    place = _place(lines, SESSION, 14)
    cut = [line for i, line in enumerate(lines) if i < place or json.loads(line)["chain"].startswith("n:")]
    report = judged(cut, anchors=anchors)
    assert report.outcome is Outcome.INCOMPLETE
    assert "vouches for record" in report.explain()


def test_all_records_of_a_session_gone_is_seen_too() -> None:
    lines, anchors = _vouched(gateway_log())
    report = judged([line for line in lines if json.loads(line)["chain"].startswith("n:")], anchors=anchors)
    assert report.outcome is Outcome.INCOMPLETE
    assert [v.end for v in report.faults] == ["missing"]


def test_an_open_log_that_ends_with_a_checkpoint_passes_with_a_note() -> None:
    node = Node()
    Tale(node).feed(attached(), at=50)
    node.checkpoint()
    report = judged(node.lines, anchors=[node.public(1)])
    assert report.ok, report.explain()
    assert all("open at the end of the log" in verdict.notes[0] for verdict in report.passes)


def test_a_living_node_passes_while_its_newest_checkpoint_is_fresh() -> None:
    for age_ms, outcome in ((20_000, Outcome.PASS), (26_000, Outcome.INCOMPLETE)):
        node = Node()
        tale = Tale(node)
        node.checkpoint()
        tale.feed(attached(), at=age_ms)
        assert judged(node.lines, anchors=[node.public(1)]).outcome is outcome


def test_a_rewritten_chain_is_caught_by_the_signature() -> None:
    lines, anchors = _vouched(gateway_log())

    def smaller(records: Records) -> None:
        next(r for r in records if r["event"] == "transport.switch")["data"]["interruption_ms"] = 1

    report = judged(rewritten(lines, smaller), anchors=anchors)
    assert rules(report) == {"A-1"}
    words = report.explain()
    assert "vouches for another record" in words or "signature is wrong" in words


def test_other_keys_do_not_help_a_forger_against_the_anchor() -> None:
    honest, forged = gateway_log(), Node()
    Tale(forged).feed(attached(), at=50).feed(closed(), at=100)
    forged.key = lambda number: client_log().key(number)  # type: ignore[method-assign]
    forged.lines.clear()
    forged.begin("r1")
    forged.stop()
    assert judged(forged.lines).ok
    assert rules(judged(forged.lines, anchors=[honest.public(1)])) == {"A-1"}


def _without_checkpoints(records: Records, first: int) -> Records:
    return [r for r in records if r["data"].get("number", 0) < first or r["event"] != "audit.checkpoint"]


def test_an_anchor_is_not_satisfied_by_a_log_without_checkpoints() -> None:
    """Whoever has no key can write everything anew without a single checkpoint, ends and farewells and all."""
    node = gateway_log()
    bare = rewritten(node.lines, lambda records: _without_checkpoints(records, 1))
    report = judged(bare, anchors=[node.public(1)])
    assert report.outcome is Outcome.INCOMPLETE
    assert {verdict.chain[:2] for verdict in report.faults} == {"s:", "n:", "ke"}
    assert "verifies no checkpoint" in report.explain()
    unanchored = judged(bare)
    assert unanchored.ok
    assert any("no checkpoint was verified" in note for note in unanchored.notes)
    alone = [line for line in node.lines if json.loads(line)["chain"].startswith(SESSION)]
    assert judged(alone, anchors=[node.public(1)]).outcome is Outcome.INCOMPLETE


def test_an_anchor_asks_for_a_checkpoint_over_what_is_closed() -> None:
    node = gateway_log()
    kept = next(i for i, line in enumerate(node.lines) if json.loads(line)["data"].get("number") == 1) + 1

    def altered(records: Records) -> Records:
        changes = [r for r in records[kept:] if "dwell_ms" in r["data"]]
        changes[0]["data"]["dwell_ms"] += 1
        return _without_checkpoints(records, 2)

    forged = rewritten(node.lines, altered)
    assert forged[:kept] == [line if line.endswith(b"\n") else line + b"\n" for line in node.lines[:kept]]
    report = judged(forged, anchors=[node.public(1)])
    assert report.outcome is Outcome.INCOMPLETE, report.explain()
    assert {verdict.chain[:2] for verdict in report.faults} == {"s:", "n:"}
    (session,) = (verdict for verdict in report.faults if verdict.chain.startswith(SESSION))
    assert (session.end, session.state) == ("ended", "TERMINATED")
    assert "may have been replaced" in session.gaps[0].text


def test_findings_that_say_the_same_of_neighbours_are_shown_as_one() -> None:
    lines = gateway_log(vouch=False).lines

    def later(records: Records) -> None:
        for record in records:
            record["time_ms"] += 1

    forked = [line for line in rewritten(lines, later) if json.loads(line)["chain"].startswith(SESSION)]
    report = judged([*lines, *forked])
    assert report.explain().count("forked") == 1
    assert report.repeats == 0


def test_keys_and_numbers_continue_over_runs() -> None:
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    node.checkpoint()
    head, session = node.sealer._sessions[tale.session.uid], tale.session
    node.at = 1_000
    node.begin("r2")
    node.sealer.resume(session.uid, head)
    tale.feed(closed(), at=2_000)
    node.stop()
    report = judged(node.lines, anchors=[node.public(1)])
    assert report.ok, report.explain()

    without = [line for line in node.lines if json.loads(line)["data"].get("number") != 1]
    assert judged(without, anchors=[node.public(1)]).outcome is Outcome.INCOMPLETE


def test_a_false_checkpoint_fails() -> None:
    lines, anchors = _vouched(gateway_log())
    changes: dict[str, Any] = {
        "signature": "00" * 64, "heads": {"s:x": "1"}, "number": 0, "next_key": None, "prev_checkpoint": "b" * 64,
    }  # fmt: skip
    for name, value in changes.items():

        def spoil(records: Records, name: str = name, value: Any = value) -> None:
            [r for r in records if r["event"] == "audit.checkpoint"][-1]["data"][name] = value

        report = judged(rewritten(lines, spoil), anchors=anchors)
        assert "A-1" in rules(report), name


def test_heads_kept_elsewhere_show_a_cut() -> None:
    node = gateway_log(vouch=False)
    lines = [line for line in node.lines if json.loads(line)["chain"].startswith(SESSION)]
    last = json.loads(lines[-1])
    whole = {last["chain"]: (last["seq"], last["hash"])}
    assert judged(lines, heads=whole).ok
    assert judged(lines[:-2], heads=whole).outcome is Outcome.INCOMPLETE
    assert rules(judged(lines, heads={last["chain"]: (last["seq"], "f" * 64)})) == {"A-1"}
    assert judged(lines, heads={"s:other": (3, "f" * 64)}).outcome is Outcome.INCOMPLETE


def test_an_event_after_the_end_fails_wherever_it_stands() -> None:
    def late(records: Records) -> Records:
        end = next(r for r in records if r["event"] == "session.terminated")
        return [*records[:-1], {**end, "idx": 1, "n": 1}, records[-1]]

    lines = rewritten(gateway_log(vouch=False).lines, late)
    for order in (lines, [*lines[:-3], lines[-2], lines[-3], lines[-1]]):
        report = judged(order)
        assert rules(report) == {"A-4"}
        assert report.faults[0].findings[0].promise.name == "ABSORBING"
        assert report.counts["PASS"] == 1


def test_node_stopped_closes_a_node_chain() -> None:
    node = gateway_log(vouch=False)
    node.note(DomainEvent("node.stopping", "N", data={"cause": "late"}))
    assert rules(judged(node.lines)) == {"A-1"}
