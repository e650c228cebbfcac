"""Checkpoints as the sealer makes them: what they cover, when they are due, what their signature is over."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

from jumpvpn.audit.auditor import audit_lines
from jumpvpn.audit.chain import GENESIS
from jumpvpn.audit.checkpoints import EVENTS_MAX, HEADS_MAX, PERIOD, Link
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.policy.model import Policy
from jumpvpn.values import SECOND, DomainEvent, Instant, Now

NOW = Now(Instant(5 * SECOND), 1_700_000_000_000)
CHANGE = DomainEvent("session.state_change", "S", session="9f2c", state_version=2, prev_state="BIRTH", state="ATTACHED")
BOUND = DomainEvent("transport.attached", "S", session="9f2c", state_version=2, state="ATTACHED")
ATTEMPT = DomainEvent("reattach.attempt", "N", session="9f2c", state_version=2, state="RECOVERING")
NOTE = DomainEvent("node.stopping", "N")
LINK = Link(1, GENESIS, "ab" * 32)


def sealer() -> Sealer:
    return Sealer(Origin("gw1", "standalone", "b0", "r1", "gateway"), Policy(), lambda address, _mode: address)


def later(ns: int) -> Now:
    return Now(Instant(NOW.boot + ns), NOW.wall_ms + ns // 1_000_000)


def signature(message: bytes) -> bytes:
    """Stands for one: it tells the message that it is over."""
    return hashlib.sha512(message).digest()


def commit(sealer: Sealer, uid: str, *events: DomainEvent, ended: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sealer.settle(sealer.draft(uid, events, NOW), ended=ended)]


def checkpoint(sealer: Sealer, link: Link = LINK) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(sealer.checkpoint(link, signature, NOW))
    return record


def head(records: list[dict[str, Any]], chain: str) -> str:
    last = [record for record in records if record["chain"] == chain][-1]
    return f"{last['seq']}:{last['hash']}"


def test_it_names_the_heads_of_all_chains_and_counts() -> None:
    writer = sealer()
    records = commit(writer, "9f2c", CHANGE, ATTEMPT, BOUND) + commit(writer, "77aa", CHANGE, ended=True)
    record = checkpoint(writer)
    chains = ("s:9f2c", "s:77aa", "n:gw1:r1")
    assert record["data"]["heads"] == {chain: head(records, chain) for chain in chains}
    assert record["data"]["counts"] == {"events": 4, "chains": 3}
    assert (record["chain"], record["seq"], record["event"]) == ("n:gw1:r1", 2, "audit.checkpoint")
    assert record["hash"] == writer.node.head


def test_the_next_one_names_only_what_grew_since_and_the_checkpoint_itself() -> None:
    writer = sealer()
    commit(writer, "9f2c", CHANGE)
    first = checkpoint(writer)
    commit(writer, "77aa", CHANGE)
    second = checkpoint(writer, Link(2, first["hash"], "cd" * 32))
    assert set(second["data"]["heads"]) == {"s:77aa", "n:gw1:r1"}
    assert second["data"]["heads"]["n:gw1:r1"] == f"1:{first['hash']}"
    assert second["data"]["counts"] == {"events": 1, "chains": 2}


def test_a_commit_that_is_lost_is_in_no_checkpoint() -> None:
    writer = sealer()
    writer.draft("9f2c", [CHANGE], NOW)
    assert not writer.growth.left
    assert checkpoint(writer)["data"]["heads"] == {}


def test_the_signature_is_over_the_canonical_form_of_everything_that_is_claimed() -> None:
    writer = sealer()
    commit(writer, "9f2c", CHANGE)
    data = checkpoint(writer)["data"]
    claimed = {"chain": "n:gw1:r1", **{name: data[name] for name in data if name != "signature"}}
    assert set(claimed) == {"chain", "number", "heads", "counts", "prev_checkpoint", "next_key"}
    assert data["signature"] == signature(rfc8785.dumps(claimed)).hex()
    assert (data["number"], data["prev_checkpoint"], data["next_key"]) == (1, GENESIS, "ab" * 32)


def test_it_is_due_a_period_after_the_first_event_that_none_covers() -> None:
    writer = sealer()
    assert not writer.growth.due(later(100 * PERIOD))
    writer.note([NOTE], NOW)
    writer.note([NOTE], later(PERIOD // 2))
    assert not writer.growth.due(later(PERIOD - 1))
    assert writer.growth.due(later(PERIOD))
    checkpoint(writer)
    assert not writer.growth.due(later(100 * PERIOD))


def test_it_is_due_after_many_events() -> None:
    writer = sealer()
    writer.note([NOTE] * (EVENTS_MAX - 1), NOW)
    assert not writer.growth.due(NOW)
    commit(writer, "9f2c", CHANGE)
    assert writer.growth.due(NOW)
    assert writer.growth.full
    checkpoint(writer)
    assert not writer.growth.full


def test_chains_beyond_the_length_of_a_line_are_in_the_next_one_which_is_due_at_once() -> None:
    writer = sealer()
    for number in range(HEADS_MAX + 2):
        commit(writer, f"{number:016x}", CHANGE, ended=True)
    line = writer.checkpoint(LINK, signature, NOW)
    assert len(line) < 1 << 20
    assert writer.growth.left
    assert writer.growth.due(later(PERIOD))
    second = checkpoint(writer)["data"]
    assert set(second["heads"]) == {f"s:{HEADS_MAX:016x}", f"s:{HEADS_MAX + 1:016x}", "n:gw1:r1"}
    assert not writer.growth.left


def test_it_is_a_link_of_the_node_chain() -> None:
    writer = sealer()
    lines = [*writer.note([NOTE], NOW), writer.checkpoint(LINK, signature, NOW), *writer.note([NOTE], NOW)]
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
    gap = audit_lines([lines[0], lines[2]]).faults[0].gaps[0]
    assert (gap.chain, gap.first, gap.last) == ("n:gw1:r1", 2, 2)


def test_events_of_a_commit_name_its_first_one_as_their_cause() -> None:
    writer = sealer()
    commit(writer, "9f2c", CHANGE, BOUND)
    records = commit(writer, "9f2c", ATTEMPT, CHANGE, ATTEMPT, BOUND, BOUND)
    causes = [(record["chain"][0], record["idx"], record["cause"]) for record in records]
    assert causes == [("n", 1, None), ("s", 1, None), ("n", 1, None), ("s", 2, "s:9f2c/3"), ("s", 3, "s:9f2c/3")]
    assert json.loads(writer.note([NOTE], NOW)[0])["cause"] is None
