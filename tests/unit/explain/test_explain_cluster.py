"""What ``explain`` says of owners: why a session came to a gateway, and what becomes of it if that one dies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenes import began, history, said

from jumpvpn.explain.ahead import gateway_lost
from jumpvpn.explain.causes import naming, steps
from jumpvpn.explain.explanation import Source, explain
from jumpvpn.explain.records import Record
from jumpvpn.policy.model import Policy

ENDS = {"reason": "transport_ttl_exceeded", "policy": "session.transport_ttl", "in_ms": 300_000.0}
LOSS: dict[str, Any] = {
    "gateway": "gw1", "outcome": "moves", "to": "gw2", "transport": "wlan0/udp/gw2", "interface": "wlan0",
    "proof": "token", "why": None, "detect_busy_ms": 200.0, "detect_idle_ms": 30_000.0, "at_most_ms": 34_000.0,
    "ends": ENDS,
}  # fmt: skip


MOVES = "if gateway gw1 dies, the session goes to gw2 over wlan0 and asks"
SHOWS = "the death shows after 200 ms with traffic, 30 s without at most"
WAITS = "if gateway gw1 dies, the session waits in DEGRADED"
END = "unless a gateway answers before, it ends with transport_ttl_exceeded after 5 min (session.transport_ttl)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, f"{MOVES} once (a return token is at hand); {SHOWS}; it has moved within 34 s"),
        (
            {"proof": "challenge", "at_most_ms": None},
            f"{MOVES} twice (it has to prove its address there first); {SHOWS}",
        ),
        (
            {"outcome": "waits", "to": None, "why": "no_candidate_transports"},
            f"{WAITS}: no other gateway can be reached; {END}",
        ),
        (
            {"outcome": "waits", "to": None, "why": "gateway_drain"},
            f"{WAITS}: every other gateway that can be reached drains; {END}",
        ),
    ],
)
def test_the_loss_of_a_gateway_in_words(changes: dict[str, Any], words: str) -> None:
    assert gateway_lost({**LOSS, **changes}) == [words]


def test_nothing_is_said_where_no_gateway_carries_the_session() -> None:
    assert gateway_lost(None) == []


def _taken(cause: str | None, former: str) -> str:
    """What a change of owner, as two records of one commit, is told as."""
    data = {"row": "8", "from_node": former, "floor": 0} | ({"cause": cause} if cause else {})
    first: dict[str, Any] = {
        "chain": "s:aa", "time_ms": 1, "mono_ms": 1, "boot_id": "b", "node": "gw2", "session": "aa", "version": 5,
        "prev_state": "ATTACHED", "state": "VOLATILE", "reason": "owner_changed",
    }  # fmt: skip
    records = [
        Record(event="session.state_change", seq=7, data={"row": "8"}, **first),
        Record(event="ownership.acquired", seq=8, data=data, **first),
    ]
    (step,) = steps(records, naming([]), Policy())
    assert step.into == "VOLATILE"
    return step.text


@pytest.mark.parametrize(
    ("cause", "former", "words"),
    [
        ("request", "gw1", "gateway gw2 took over from gw1, because the client asked for it"),
        ("orphan", "gw1", "gateway gw2 took over from gw1, whose lease had ended and whose client went nowhere"),
        ("superseded", "gw1", "gateway gw2 took over from gw1 to end it: its device has begun a newer session"),
        ("restart", "gw2", "gateway gw2 owns it anew, after a restart or a lapsed lease"),
        (None, "gw1", "gateway gw2 took over from gw1"),
    ],
)
def test_why_a_session_came_to_a_gateway(cause: str | None, former: str, words: str) -> None:
    assert _taken(cause, former) == f"{words}; the binding was cleared"


def test_a_session_that_a_gateway_let_go_is_not_well_there() -> None:
    world = began()
    world.run(5)
    told = history(world, "gateway")
    last = told.records[-1]
    lost = replace(
        last, event="ownership.lost", chain="n:gateway:1", seq=9, version=0, state="ATTACHED", reason="lease_lost",
        transport=None, data={"row": "32", "code": "lease_lost"},
    )  # fmt: skip
    source = Source("from log", "gateway", live=False, now_ms=told.end_ms)
    assert explain(told, None, source).calm
    found = explain(replace(told, records=(*told.records, lost)), None, source)
    assert found.where == f"when gateway {last.node} let it go; how it goes on is told at the gateway that has it"
    assert (found.calm, found.considered, found.dues, found.changes) == (False, (), (), ())
    assert "let the session go: its lease ran out" in said(found)
    again = replace(last, seq=last.seq + 1, event="ownership.acquired", data={"row": "8"})
    assert explain(replace(told, records=(*told.records, lost, again)), None, source).calm, "it is here again"
