"""The sealer: lanes, order, and chains that move only with the store."""

from __future__ import annotations

import json
from typing import Any

from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.policy.model import Policy
from jumpvpn.values import SECOND, DomainEvent, Instant, Now, TransportId, TransportView

NOW = Now(Instant(5 * SECOND), 1_700_000_000_000)
CHANGE = DomainEvent("session.state_change", "S", session="9f2c", state_version=2, prev_state="BIRTH", state="ATTACHED")
ATTEMPT = DomainEvent("reattach.attempt", "N", session="9f2c", state_version=2, state="RECOVERING")


def _sealer(role: str = "gateway", policy: Policy | None = None) -> Sealer:
    return Sealer(
        Origin("gw1", "standalone", "b0", "r1", role), policy or Policy(), lambda address, mode: f"{mode}:{address}"
    )


def _told(lines: tuple[bytes, ...]) -> list[tuple[Any, ...]]:
    records = [json.loads(line) for line in lines]
    return [(record["chain"], record["seq"], record["event"]) for record in records]


def test_a_commit_that_is_lost_leaves_the_chain_where_it_was() -> None:
    sealer = _sealer()
    sealer.draft("9f2c", [CHANGE], NOW)
    won = sealer.settle(sealer.draft("9f2c", [CHANGE], NOW), ended=False)
    assert _told(won) == [("s:9f2c", 1, "session.state_change")]


def test_both_lanes_come_in_the_order_of_the_commit() -> None:
    sealer = _sealer()
    lines = sealer.settle(sealer.draft("9f2c", [ATTEMPT, CHANGE, ATTEMPT], NOW), ended=False)
    assert _told(lines) == [
        ("n:gw1:r1", 1, "reattach.attempt"), ("s:9f2c", 1, "session.state_change"), ("n:gw1:r1", 2, "reattach.attempt"),
    ]  # fmt: skip


def test_the_node_chain_of_a_commit_follows_what_was_noted_meanwhile() -> None:
    sealer = _sealer()
    draft = sealer.draft("9f2c", [CHANGE, ATTEMPT], NOW)
    noted = sealer.note([DomainEvent("node.stopping", "N")], NOW)
    settled = sealer.settle(draft, ended=False)
    assert [seq for chain, seq, _ in _told(noted + settled) if chain.startswith("n:")] == [1, 2]


def test_a_chain_ends_with_its_session_and_goes_on_where_the_store_says() -> None:
    sealer = _sealer()
    sealer.resume("9f2c", Chain("s:9f2c", 7, "a" * 64))
    ended = sealer.settle(sealer.draft("9f2c", [CHANGE], NOW), ended=True)
    again = sealer.settle(sealer.draft("9f2c", [CHANGE], NOW), ended=False)
    assert (_told(ended)[0][1], _told(again)[0][1]) == (8, 1)


def test_the_two_ends_keep_chains_of_different_names() -> None:
    sealer = _sealer("client")
    assert _told(sealer.settle(sealer.draft("9f2c", [CHANGE], NOW), ended=False))[0][0] == "c:9f2c"


def test_addresses_appear_as_the_policy_in_force_says() -> None:
    view = TransportView(TransportId("wlan0/udp/gw1"), peer="192.0.2.1:51820")
    event = DomainEvent("transport.candidate", "N", transport=view)
    sealer = _sealer(policy=Policy.model_validate({"observability": {"address_mode": "full"}}))
    (before,) = sealer.note([event], NOW)
    sealer.use_policy(Policy())
    (after,) = sealer.note([event], NOW)
    assert json.loads(before)["transport"]["peer"] == "full:192.0.2.1:51820"
    assert json.loads(after)["transport"]["peer"] == "truncated:192.0.2.1:51820"
    assert json.loads(after)["transport"]["local"] == ""
    assert json.loads(before)["policy_digest"] != json.loads(after)["policy_digest"] == Policy().digest()


def test_repeated_denials_are_counted_and_come_due() -> None:
    sealer = _sealer()
    denial = DomainEvent("reattach.result", "N", session="9f2c", reason="bad_proof", data={"status": "DENIED"})
    assert len(sealer.note([denial], NOW)) == 1
    assert sealer.note([denial, denial], NOW) == ()
    (summary,) = sealer.due(Now(Instant(60 * SECOND), NOW.wall_ms + 55_000))
    assert json.loads(summary)["data"]["count"] == 2
