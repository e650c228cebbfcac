"""What an outlook announces is what then happens, at that very instant and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scenes import SECOND, began, facts, rules, spent, to

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.sim.world import World

Side = str


def _gone() -> World:
    world = began(rules(session={"transport_ttl": "30s"}, recovery={"episode_max": "60s"}))
    world.down("wlan0", "eth0")
    world.run(1)
    return world


def _long_episode() -> World:
    """Silence is an episode from its first limit on, a loss of the transport only from its second."""
    world = began(rules(session={"transport_ttl": "20s"}, recovery={"episode_max": "20s"}))
    world.blackhole("wlan0", "eth0")
    world.until(lambda: world.states()[0] == "DEGRADED", 10)
    return world


def _volatile() -> World:
    world = World(rules(volatility={"dead_factor": 100}), links=("wlan0",), journals=True)
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    world.until(lambda: world.states()[0] == "VOLATILE", 5)
    return world


def _recovering() -> World:
    world = began()
    world.down("wlan0")
    world.links[world.id("eth0")].passes = False
    world.run(0.1)
    assert world.states()[0] == "RECOVERING"
    return world


def _aged() -> World:
    return began(rules(session={"max_lifetime": "20min", "lifetime_warnings": ["10min"]}))


def _announced(world: World, name: str, side: Side) -> dict[str, Any]:
    told = facts(world, side)
    return next(due for due in (*told["deadlines"], *told["waits"]) if due["name"] == name)


def _events(world: World, side: Side) -> int:
    return sum(1 for who, _, event in world.events if who == side and event.data.get("row") not in (None, "13"))


DEADLINES: list[tuple[Callable[[], World], str, Side, str]] = [
    (_gone, "transport_ttl", "client", "24"),
    (_gone, "transport_ttl", "gateway", "24"),
    (_long_episode, "episode", "client", "25"),
    (_volatile, "volatile_dwell", "client", "10"),
    (_recovering, "attempt", "client", "17"),
    (_aged, "lifetime_warning", "client", "37"),
    (_aged, "lifetime", "client", "27"),
    (_aged, "lifetime", "gateway", "27"),
]


@pytest.mark.parametrize(("build", "name", "side", "row"), DEADLINES)
def test_a_deadline_passes_one_tick_after_its_instant(
    build: Callable[[], World], name: str, side: Side, row: str
) -> None:
    world = build()
    at = _announced(world, name, side)["at_ns"]

    def taken() -> list[str]:
        return [str(event.data.get("row")) for who, when, event in world.events if who == side and when >= at]

    to(world, at)
    assert row not in taken()
    to(world, at + 1)
    assert row in taken()


def test_the_left_time_is_the_distance_to_the_instant() -> None:
    world = _gone()
    due = _announced(world, "transport_ttl", "client")
    assert due["left_ms"] == (due["at_ns"] - world.now) / 1e6
    assert due["policy"] == "session.transport_ttl"
    assert due["value"] == 30 * SECOND
    assert due["event"] == "TransportTtlPassed"


# --- waits -----------------------------------------------------------------------------------------------------------


def _rows(world: World, side: Side, since: int) -> list[str]:
    return [str(event.data.get("row")) for who, when, event in world.events if who == side and when >= since]


def _just_then(world: World, name: str, row: str) -> None:
    """Nothing of ``row`` one tick before the announced instant, and it then."""
    due = _announced(world, name, "client")
    since = world.now
    to(world, due["at_ns"] - 1)
    assert row not in _rows(world, "client", since + 1)
    to(world, due["at_ns"])
    assert row in _rows(world, "client", due["at_ns"])


def test_an_attempt_without_evidence_comes_when_announced_and_over_the_announced_transport() -> None:
    world = began()
    world.blackhole("wlan0", "eth0")
    world.until(lambda: world.states()[0] == "DEGRADED", 10)
    world.run(1)
    due = _announced(world, "retry", "client")
    assert due["rule"] == "without_evidence"
    _just_then(world, "retry", "21")
    attempt = world.names("client", "reattach.attempt")[-1]
    assert attempt.transport is not None
    assert attempt.transport.id == due["transport"]


def test_the_switch_budget_frees_when_announced() -> None:
    world = spent()
    told = facts(world)
    assert told["decision"]["rule"] == "switch_rate_limited"
    assert told["budget"] | {"frees_in_ms": 0, "frees_at_ns": 0} == {
        "used": 2, "max": 2, "hold_down_ms": 0.0, "frees_in_ms": 0, "frees_at_ns": 0,
    }  # fmt: skip
    assert told["budget"]["frees_at_ns"] == _announced(world, "retry", "client")["at_ns"]
    _just_then(world, "retry", "21")


def test_failback_comes_when_announced_also_when_a_flap_penalty_delays_it() -> None:
    for flaps in (0, 4):
        preferred = {"failback": "2s", "hold_down": "0s", "flap_half_life": "20s", "max_per_minute": 100}
        world = began(rules(transports={"prefer": ["wlan0"]}, switching=preferred))
        for _ in range(flaps):
            world.down("wlan0")
            world.run(1)
            world.up("wlan0")
            world.run(1)
        world.down("wlan0")
        world.run(1)
        world.up("wlan0")
        world.run(0.5)
        assert _announced(world, "failback", "client")["transport"] == world.id("wlan0")
        _just_then(world, "failback", "6")


def test_a_stable_incumbent_proves_itself_when_announced() -> None:
    world = _volatile()
    world.links[world.id("wlan0")].loss = 0.0
    world.until(lambda: _announced(world, "stable", "client")["at_ns"] is not None, 3)
    _just_then(world, "stable", "9")


def test_a_rekey_is_asked_when_announced() -> None:
    world = began()
    world.traffic = False
    due = _announced(world, "rekey", "client")
    to(world, due["at_ns"] - 1)
    assert world.client.plans.rekey_asked is None
    to(world, due["at_ns"])
    assert world.client.plans.rekey_asked == due["at_ns"]


def test_hold_down_ends_when_announced() -> None:
    world = began(rules(switching={"hold_down": "10s", "failback": "never"}))
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    world.run(1)
    due = _announced(world, "hold_down", "client")
    to(world, due["at_ns"] - 1)
    refused = next(c["switch_refusal"] for c in facts(world)["candidates"] if c["id"] == world.id("wlan0"))
    assert refused["reason"] == "cooldown_active"
    to(world, due["at_ns"])
    assert all(c["switch_refusal"] is None for c in facts(world)["candidates"] if c["id"] == world.id("wlan0"))


def test_the_announced_successor_is_the_one_that_takes_over() -> None:
    world = began(links=("wlan0", "eth0", "wwan0"))
    world.run(5)
    told = facts(world)["successor"]
    world.down("wlan0")
    world.run(1)
    assert world.id(str(world.active)) == told["transport"]


def test_time_alone_brings_nothing_where_nothing_is_announced() -> None:
    world = _gone()
    assert _announced(world, "retry", "client")["at_ns"] is None
    ttl = _announced(world, "transport_ttl", "client")["at_ns"]
    before = _events(world, "client")
    to(world, ttl)
    assert _events(world, "client") == before


def test_looking_ahead_changes_nothing() -> None:
    one, other = began(), began()
    for world in (one, other):
        world.blackhole("wlan0", "eth0")
    for _ in range(40):
        outlook.of_client(one.client, "", one.clock().boot)
        assert one.gateway is not None
        outlook.of_gateway(one.gateway, "", one.clock().boot)
        one.run(0.5)
        other.run(0.5)
    assert [(s, at, e.name, dict(e.data)) for s, at, e in one.events] == [
        (s, at, e.name, dict(e.data)) for s, at, e in other.events
    ]


# --- which session ---------------------------------------------------------------------------------------------------


def test_a_gateway_answers_for_one_session_and_names_the_others() -> None:
    world = began()
    older = world.uid
    newer = world.supersede("eth0")
    assert world.gateway is not None
    world.run(0)
    now = world.clock().boot
    names = {known["uid"] for known in outlook.of_gateway(world.gateway, "", now)["known"]}
    assert names <= {older, newer}
    assert outlook.of_gateway(world.gateway, "zz", now)["session"] is None
    assert outlook.of_gateway(world.gateway, "zz", now)["matches"] == 0
    assert outlook.of_gateway(world.gateway, newer[:6], now)["session"]["uid"] == newer


def test_a_client_answers_only_for_its_own_session() -> None:
    world = began()
    now = world.clock().boot
    assert outlook.of_client(world.client, world.uid[:4], now)["session"]["uid"] == world.uid
    assert outlook.of_client(world.client, "zz", now) == {
        "known": [{"uid": world.uid, "state": "ATTACHED"}], "session": None,
    }  # fmt: skip
