"""Another policy on the same networks: the model agrees with what happened, and other bounds change the outcome."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from taped import RULES, TapedWorld, lines_of, policy, troubled

from jumpvpn.engine import inputs as inp
from jumpvpn.policy.model import Policy
from jumpvpn.recording.bounds import bounds_in_words
from jumpvpn.recording.dryrun import Comparison, Unsuitable, bounded, compare
from jumpvpn.recording.ledger import Stretches
from jumpvpn.recording.trace import Trace
from jumpvpn.values import MILLISECOND, SECOND, TransportId
from jumpvpn.wire.welcome import Limits

TIMES = ("unable_to_pass", "transportless", "not_attached")


def client_segments(world: TapedWorld) -> list[Any]:
    return [partial(lines_of, segment) for segment in world.nodes["client"][0].shelf.segments]


def dry(world: TapedWorld, rules: Policy) -> Comparison:
    return compare(client_segments(world), rules)


@pytest.fixture(scope="module")
def flapping() -> TapedWorld:
    """Each network dies in turn, every two seconds; the other one is there."""
    world = TapedWorld(policy(switching={"failback": "never", "max_per_minute": 30})).start("wlan0")
    world.measures = True
    for _ in range(4):
        for name in ("wlan0", "eth0"):
            world.down(name)
            world.run(0.5)
            world.up(name)
            world.run(1.5)
    world.run(10)
    world.close()
    return world


@pytest.fixture(scope="module")
def blackholed() -> TapedWorld:
    """The network in use swallows everything, without a word; traffic flows."""
    world = TapedWorld(policy(switching={"failback": "never"})).start("wlan0")
    world.measures = True
    world.run(5)
    world.blackhole("wlan0")
    world.run(15)
    world.heal("wlan0")
    world.run(10)
    world.close()
    return world


def test_the_model_agrees_with_what_happened(flapping: TapedWorld, blackholed: TapedWorld) -> None:
    for world in (flapping, blackholed):
        found = dry(world, world.client_rules)
        recorded, same, new = (ledger.document() for _, ledger in found.columns())
        assert same == new
        assert (same["switches"], same["final_state"]) == (recorded["switches"], recorded["final_state"])
        assert same["denials"] == recorded["denials"]
        for name in TIMES:
            assert same[name]["count"] == recorded[name]["count"]
            assert same[name]["total_ms"] == pytest.approx(recorded[name]["total_ms"], abs=120)
        assert recorded["switches"] >= 1
        assert recorded["unable_to_pass"]["total_ms"] > 0


@pytest.mark.parametrize("seed", range(6))
def test_a_world_of_links_that_come_and_go_is_met_closely(seed: int) -> None:
    names = ("down", "up", "up", "slow", "operator", "wait")
    world = troubled(seed, RULES, RULES, faults=40, choose=lambda dice: dice.choice(names))
    recorded, same, _ = (ledger.document() for _, ledger in dry(world, RULES).columns())
    assert abs(same["switches"] - recorded["switches"]) <= 2
    for name in TIMES:
        assert same[name]["total_ms"] == pytest.approx(recorded[name]["total_ms"], abs=2_000, rel=0.1)


def test_a_smaller_rate_denies_and_costs_time(flapping: TapedWorld) -> None:
    rules = policy(switching={"failback": "never", "max_per_minute": 2})
    recorded, same, new = (ledger.document() for _, ledger in dry(flapping, rules).columns())
    assert same["switches"] == recorded["switches"] == 8
    assert new["switches"] == 2
    assert new["denials"]["switch_rate_limited"] > 0
    assert "switch_rate_limited" not in recorded["denials"]
    assert new["transportless"]["total_ms"] > 10 * recorded["transportless"]["total_ms"]
    assert new["state_ms"]["DEGRADED"] > 0


def test_a_longer_hold_down_delays_wishes_not_needs(flapping: TapedWorld) -> None:
    world = TapedWorld(policy(switching={"failback": "never", "hold_down": "100ms"})).start("wlan0")
    for name in ("eth0", "wlan0", "eth0"):
        world.post("client", inp.OperatorSwitch(world.id(name)))
        world.run(2)
    world.close()
    patient = policy(switching={"failback": "never", "hold_down": "60s"})
    recorded, _, new = (ledger.document() for _, ledger in dry(world, patient).columns())
    assert (recorded["switches"], new["switches"]) == (3, 1)
    assert new["denials"]["cooldown_active"] >= 1
    assert "cooldown_active" not in recorded["denials"]
    needs = policy(switching={"failback": "never", "hold_down": "60s", "max_per_minute": 30})
    assert dry(flapping, needs).new.document()["switches"] == 8


def test_silence_is_noticed_by_the_limits_of_the_policy_that_is_tried(blackholed: TapedWorld) -> None:
    late = policy(switching={"failback": "never"}, volatility={"silence_floor": "1900ms", "silence_ceiling": "2s"})
    recorded, same, new = (ledger for _, ledger in dry(blackholed, late).columns())
    noticed = (new.dark.total - same.dark.total) / MILLISECOND
    assert same.dark.total < SECOND
    assert noticed == pytest.approx(1_900 - 100, abs=150)
    assert recorded.switches == new.switches == 1


def test_what_policy_forbids_carries_nothing(flapping: TapedWorld) -> None:
    rules = policy(transports={"deny": ["eth0"]}, switching={"failback": "never", "max_per_minute": 30})
    new = dry(flapping, rules).new.document()
    assert new["switches"] == 0
    assert new["denials"]["policy_denied"] > 0
    assert new["transportless"]["count"] == 4


def test_a_session_that_may_live_shorter_ends_in_the_model(blackholed: TapedWorld) -> None:
    short = policy(session={"max_lifetime": "12s", "transport_ttl": "5s"}, recovery={
        "window": "2s", "episode_max": "10s", "attempt_timeout": "1s"}, volatility={"volatile_max": "1s",
        "stability_window": "500ms"}, security={"reattach_max_age": "1s", "rekey_after": "5s", "key_max_age": "10s"},
    )  # fmt: skip
    new = dry(blackholed, short).new.document()
    assert (new["final_state"], new["final_reason"]) == ("TERMINATED", "session_lifetime_exceeded")


def test_a_dry_run_is_the_same_every_time(flapping: TapedWorld) -> None:
    rules = policy(switching={"max_per_minute": 3})
    assert dry(flapping, rules).document() == dry(flapping, rules).document()


def test_several_segments_and_a_later_one_alone() -> None:
    world = troubled(4, RULES, RULES, size=24_000, faults=40, choose=lambda dice: dice.choice(("down", "up", "wait")))
    every = client_segments(world)
    assert len(every) >= 3
    whole, rest = compare(every, RULES), compare(every[1:], RULES)
    assert not whole.began_alive
    assert rest.began_alive
    assert any("begins with a session" in remark for remark in rest.remarks())
    spent = [sum(ledger.states.values()) for ledger in (whole.recorded, rest.recorded)]
    assert spent[0] > spent[1] > 0
    assert whole.same.final == whole.recorded.final


def test_a_gateways_recording_is_refused_with_the_reason(flapping: TapedWorld) -> None:
    segment = lines_of(flapping.nodes["gateway"][0].shelf.segments[0])
    with pytest.raises(Unsuitable, match="a gateway's recording"):
        compare([lambda: segment], Policy())


def test_a_gateways_bounds_count_for_the_new_policy_too() -> None:
    own = policy()
    applied = Limits.of(policy(switching={"max_per_minute": 3})).applied_to(own)
    wish = policy(switching={"max_per_minute": 20}, session={"transport_ttl": "200s"})
    found = bounded(wish, applied, own)
    assert (found.switching.max_per_minute, found.session.transport_ttl) == (3, 200 * SECOND)
    assert bounded(wish, own, own) == wish


def test_refusals_and_reloads_are_told() -> None:
    world = TapedWorld(RULES).start("wlan0")
    world.offer_policy("client", policy(switching={"max_per_minute": 3}))
    world.run(1)
    world.close()
    found = dry(world, RULES)
    assert found.trace.told_policies == 1
    assert any("1 recorded changes of policy" in remark for remark in found.remarks())
    assert found.document()["policy_changes"] == 1


def test_stretches_that_touch_are_one() -> None:
    found = Stretches()
    for begin, end in ((0, 5), (5, 9), (20, 21), (30, 30)):
        found.add(begin, end)
    assert (found.count, found.total, found.longest) == (2, 10, 9)


def test_a_trace_knows_the_round_trip_time_of_the_moment() -> None:
    trace = Trace()
    transport = TransportId("a/udp/g")
    assert trace.rtt(transport, 5) == 100 * MILLISECOND
    trace.rtts[transport] = [(10, 1), (20, 2)]
    assert [trace.rtt(transport, at) for at in (0, 10, 15, 20, 99)] == [1, 1, 1, 2, 2]


def test_the_bounds_of_a_policy_are_told_in_words() -> None:
    said = dict(bounds_in_words(policy(volatility={"latency_p95": "300ms"}, switching={"failback": "never"})))
    assert said["silent while data flows after"] == "min(max(100 ms, 2 RTT + 4 dev + 50 ms), 2000 ms)"
    assert said["silent while idle after"] == "3 x 5s = 15s"
    assert said["latency counts as instability"] == "above 300ms (95 %)"
    assert said["return to a preferred transport"] == "never"
    assert said["ATTACHED again or DEGRADED within"] == "2s + 4s + 8s = 14s after data stopped passing"
    assert said["switches"] == "at most 8 in any 60 s"
