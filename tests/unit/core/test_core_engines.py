"""Both engines in one world: what people notice when networks die, move, come back, or lie."""

from __future__ import annotations

from typing import Any

import pytest
from build import policy

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, SECOND, TransportId


def _prefer(*names: str, **more: Any) -> Any:
    return policy(transports={"prefer": names}, **more)


def _back(world: World, seconds: float) -> float:
    world.run(0)
    return world.until(lambda: world.active is not None and world.states() == ("ATTACHED", "ATTACHED"), seconds)


# --- death and return ------------------------------------------------------------------------------------------------


def test_signalled_death_switches_within_one_round_trip() -> None:
    world = World().start()
    world.down("wlan0")
    assert _back(world, 1) <= 0.1
    assert world.active == "eth0"
    assert world.changes("client")[1:] == [
        "ATTACHED>VOLATILE transport_dead",
        "VOLATILE>RECOVERING dead_transport_recovery",
        "RECOVERING>ATTACHED reattach_success",
    ]
    assert [e.data["to_id"] for e in world.names("client", "transport.switch")] == ["eth0/udp/gw1"]


def test_silent_death_is_seen_by_traffic_and_left() -> None:
    world = World().start()
    world.blackhole("wlan0")
    assert _back(world, 4) < 3
    assert world.active == "eth0"
    assert world.changes("client")[1].startswith("ATTACHED>VOLATILE probe_timeout")


def test_silent_death_while_idle_is_seen_by_probes() -> None:
    world = World()
    world.traffic = False
    world.start()
    world.blackhole("wlan0")
    assert _back(world, 35) > 10
    assert world.active == "eth0"


@pytest.mark.parametrize("away", [2, 20, 120, 280])
@pytest.mark.parametrize("returning", [("wlan0",), ("eth0",), ("wlan0", "eth0")])
def test_both_links_gone_and_one_back_within_the_ttl(away: int, returning: tuple[str, ...]) -> None:
    world = World().start()
    world.down("wlan0", "eth0")
    world.run(away)
    assert world.states()[0] == "DEGRADED"
    world.up(*returning)
    _back(world, 10)
    assert world.active in returning


@pytest.mark.parametrize("away", [1, 5, 12, 20, 45, 120, 280])
@pytest.mark.parametrize("returning", [("wlan0",), ("eth0",), ("wlan0", "eth0")])
@pytest.mark.parametrize("traffic", [True, False])
def test_both_links_silent_and_one_heals_within_the_ttl(away: int, returning: tuple[str, ...], traffic: bool) -> None:
    """MUST_RECOVER: silence costs no attempts that the return would need."""
    world = World()
    world.traffic = traffic
    world.start()
    world.blackhole("wlan0", "eth0")
    world.run(away)
    assert "TERMINATED" not in world.states()
    world.heal(*returning)
    world.until(
        lambda: world.active in returning and world.states() == ("ATTACHED", "ATTACHED"), 35 if not traffic else 12
    )


def test_the_same_transport_is_revalidated_when_the_gateway_still_holds_the_binding() -> None:
    world = World(policy(volatility={"dead_factor": 1}), gateway_rules=policy(volatility={"dead_factor": 100}))
    world.start()
    world.links[world.id("eth0")].passes = False
    world.blackhole("wlan0")
    world.until(lambda: world.states()[0] == "DEGRADED", 10)
    world.heal("wlan0")
    _back(world, 5)
    assert world.changes("client")[-1] == "RECOVERING>ATTACHED same_path_revalidated"
    assert world.client.session is not None
    assert world.client.session.epoch == 1
    assert world.client.session.switches == ()


def test_a_transport_that_was_away_gets_a_new_binding_not_a_revalidation() -> None:
    """The gateway's binding names the old socket's path; data on the new one would be answered to nowhere."""
    world = World(links=("wlan0",)).start()
    world.down("wlan0")
    world.run(3)
    world.links[world.id("wlan0")].address = "10.8.8.8:6000"
    world.up("wlan0")
    _back(world, 3)
    assert world.changes("client")[-1] == "RECOVERING>ATTACHED reattach_success"
    assert world.client.session is not None
    assert world.client.session.epoch > 1


def test_ttl_over_ends_both_sides_deterministically() -> None:
    world = World().start()
    begin = world.now
    world.down("wlan0", "eth0")
    world.run(299.9)
    assert world.states() == ("DEGRADED", "DEGRADED")
    world.run(0.2)
    assert world.states()[0] == "TERMINATED"
    world.run(10)
    assert world.gateway_session is None
    ended = [e for side in ("client", "gateway") for e in world.names(side, "session.terminated")]
    assert {e.reason for e in ended} == {"transport_ttl_exceeded"}
    at = next(at for side, at, e in world.events if side == "client" and e.name == "session.terminated")
    assert 0 < at - begin - 300 * SECOND <= 1


def test_a_black_hole_candidate_never_burns_the_attempts() -> None:
    """A network that lets us in but carries nothing (a captive portal) is tried once, then has to answer first."""
    world = World(links=("wlan0", "cafe0")).start()
    world.down("wlan0")
    world.links[world.id("cafe0")].passes = False
    world.run(200)
    assert world.states()[0] == "DEGRADED"
    assert world.client.session is not None
    assert world.client.session.attempts < world.client.session.policy.recovery.max_attempts
    world.up("wlan0")
    _back(world, 10)


# --- the gateway -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [0, 1, 5, 20, 60, 250])
@pytest.mark.parametrize("traffic", [True, False])
def test_gateway_restart_keeps_the_session(away: int, traffic: bool) -> None:
    world = World()
    world.traffic = traffic
    world.start()
    world.stop_gateway()
    world.run(away)
    assert world.states()[0] != "TERMINATED"
    world.start_gateway()
    took = _back(world, 12 if traffic or away > 20 else 40)
    assert world.client.session is not None
    assert world.gateway_session is not None
    assert world.client.session.id == world.gateway_session.id
    assert world.gateway_session.owner_epoch == 2
    assert took < 40


def test_gateway_restart_with_one_transport() -> None:
    world = World(links=("wlan0",)).start()
    world.stop_gateway()
    world.run(0.1)
    world.start_gateway()
    assert _back(world, 3) < 2
    assert world.client.session is not None
    assert world.client.session.switches == ()


def test_gateway_that_lost_its_binding_is_found_out() -> None:
    """The gateway saw death, the client did not: both return to one binding."""
    world = World().start()
    path = world.gateway_planes[world.uid].paths[0]
    path.state, path.validated = "dead", False
    world.post("gateway", inp.PathDead(world.uid, TransportId("path0/udp"), SECOND))
    world.run(0)
    assert world.states() == ("ATTACHED", "DEGRADED")
    _back(world, 5)


def test_hint_during_a_revalidation_turns_it_into_a_reattach() -> None:
    world = World(links=("wlan0",)).start()
    world.blackhole("wlan0")
    world.until(lambda: world.states()[0] == "DEGRADED", 10)
    world.stop_gateway()
    world.start_gateway()
    world.heal("wlan0")
    assert _back(world, 5) < 1.5


def test_device_superseded_tells_the_older_client() -> None:
    world = World().start()
    newer = world.supersede("eth0")
    world.run(1)
    assert world.gateway is not None
    assert world.gateway.session(world.uid) is None
    assert world.gateway.session(newer) is not None
    assert world.client.session is not None
    assert world.client.session.state is State.TERMINATED
    assert world.client.session.reason is Reason.DEVICE_SUPERSEDED


def test_replayed_handshake_changes_nothing() -> None:
    world = World().start()
    world.gateway_store.verdict = lambda order: "replayed_device" if order.device else "committed"
    newer = world.supersede("eth0")
    world.run(1)
    assert world.gateway is not None
    assert world.gateway.session(newer) is None
    assert world.states() == ("ATTACHED", "ATTACHED")
    assert world.names("gateway", "security.replay_detected")


# --- rebinding -------------------------------------------------------------------------------------------------------


def test_nat_rebinding_is_validated_before_anything_moves() -> None:
    world = World().start()
    world.rebind("wlan0", "10.0.0.2:6001")
    _back(world, 2)
    assert world.active == "wlan0"
    assert "RECOVERING>ATTACHED rebind_validated" in world.changes("gateway")
    assert world.gateway_session is not None
    assert world.gateway_session.epoch == 1
    [event] = world.names("gateway", "transport.rebound")
    assert event.data["new_peer"] == "10.0.0.2:6001"


def test_rebinding_beyond_the_budget_is_refused_and_the_client_reattaches() -> None:
    world = World(links=("wlan0",), gateway_rules=policy(switching={"max_per_minute": 2})).start()
    for port in range(5):
        world.rebind("wlan0", f"10.0.0.2:{6100 + port}")
        world.run(3)
    assert world.gateway_session is not None
    assert len(world.gateway_session.switches) <= 2
    _back(world, 10)


def test_late_answer_from_the_new_address_still_rebinds() -> None:
    world = World(links=("wlan0",)).start()
    lossy = world.links[world.id("wlan0")]
    world.rebind("wlan0", "10.0.0.2:6001")
    lossy.drop = lambda kind: kind == "report"
    world.run(0.2)
    lossy.drop = lambda _kind: False
    _back(world, 10)


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_hold_down_never_delays_leaving_a_dead_transport() -> None:
    world = World(policy(switching={"hold_down": "30s"})).start()
    world.down("wlan0")
    _back(world, 1)
    world.up("wlan0")
    world.run(2)
    world.down("eth0")
    assert _back(world, 1) <= 0.1
    assert world.active == "wlan0"


def test_operator_switch_and_its_refusals() -> None:
    world = World(policy(switching={"failback": "never", "hold_down": "10s"})).start()
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    _back(world, 1)
    assert world.active == "eth0"
    world.post("client", inp.OperatorSwitch(world.id("wlan0")))
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    world.post("client", inp.OperatorSwitch(world.id("ppp0")))
    world.run(0)
    denied = [e.reason for e in world.names("client", "transport.switch_denied")]
    assert denied == ["cooldown_active", "invalid_transport_candidate", "no_candidate_transports"]
    assert world.states() == ("ATTACHED", "ATTACHED")
    world.run(10)
    world.post("client", inp.OperatorSwitch(world.id("wlan0")))
    _back(world, 1)
    assert world.active == "wlan0"


def test_rate_limit_holds_and_frees_itself() -> None:
    world = World(policy(switching={"max_per_minute": 2, "hold_down": "0s", "failback": "never"})).start()
    for there, here in (("eth0", "wlan0"), ("wlan0", "eth0")):
        world.down(here)
        _back(world, 1)
        assert world.active == there
        world.up(here)
        world.run(1)
    world.down("wlan0")
    world.run(1)
    assert world.states()[0] == "DEGRADED"
    assert world.changes("client")[-1] == "RECOVERING>DEGRADED switch_rate_limited"
    assert _back(world, 60) > 50
    assert world.active == "eth0"


def test_the_gateway_counts_switches_that_the_client_does_not_know_of() -> None:
    """The budgets disagree: the client waits as long as it takes and comes back."""
    world = World(policy(), gateway_rules=policy(switching={"max_per_minute": 1})).start()
    world.down("wlan0")
    _back(world, 1)
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    world.run(1)
    assert world.states()[0] == "DEGRADED"
    _back(world, 130)


def test_a_denied_wish_never_costs_a_living_binding() -> None:
    rules = _prefer("eth0", switching={"failback": "2s", "hold_down": "0s"})
    world = World(rules, gateway_rules=policy(switching={"max_per_minute": 1})).start()
    world.run(3)
    assert world.active == "eth0"
    world.down("eth0")
    world.run(65)
    world.up("eth0")
    world.run(90)
    assert world.states() == ("ATTACHED", "ATTACHED")
    assert world.active is not None
    assert len(world.changes("client")) < 60


def test_policy_denial_leaves_only_what_is_allowed() -> None:
    world = World(policy(transports={"deny": ["eth0"]})).start()
    world.down("wlan0")
    world.run(5)
    assert world.changes("client")[-1] == "RECOVERING>DEGRADED policy_denied"
    world.post("client", inp.PolicyOffered(policy()))
    _back(world, 3)
    assert world.active == "eth0"


@pytest.mark.parametrize("volatile", [False, True])
def test_policy_that_forbids_the_active_transport_moves_the_session(volatile: bool) -> None:
    world = World().start()
    if volatile:
        world.post("client", inp.PathSilent(world.uid, world.id("wlan0"), SECOND, SECOND))
        world.links[world.id("wlan0")].drop = lambda kind: kind == "report"
        world.run(0)
    world.post("client", inp.PolicyOffered(policy(transports={"deny": ["wlan0"]})))
    _back(world, 1)
    assert world.active == "eth0"
    assert volatile or "ATTACHED>VOLATILE policy_forced" in world.changes("client")


def test_failback_waits_for_stability_and_returns_once() -> None:
    world = World(_prefer("wlan0")).start()
    world.down("wlan0")
    _back(world, 1)
    world.up("wlan0")
    world.run(29)
    assert world.active == "eth0"
    world.run(3)
    assert world.active == "wlan0"
    assert "ATTACHED>VOLATILE failback" in world.changes("client")
    before = len(world.changes("client"))
    world.run(100)
    assert len(world.changes("client")) == before


def test_failback_that_fails_is_not_repeated_at_once() -> None:
    world = World(_prefer("wlan0")).start("eth0")
    world.links[world.id("wlan0")].drop = lambda kind: kind == "request"
    world.run(200)
    assert world.active == "eth0"
    assert world.states()[0] == "ATTACHED"
    assert len(world.names("client", "transport.switch_failed")) <= 6


def test_flapping_transport_is_suppressed_until_it_is_calm() -> None:
    rules = _prefer("wlan0", switching={"failback": "2s", "hold_down": "0s", "flap_half_life": "20s"})
    world = World(rules).start()
    for _ in range(4):
        world.down("wlan0")
        world.run(1)
        world.up("wlan0")
        world.run(1)
    world.run(10)
    assert world.active == "eth0"  # stable for longer than failback asks, yet suppressed
    world.post("client", inp.OperatorSwitch(world.id("wlan0")))
    world.run(0)
    assert world.names("client", "transport.switch_denied")[-1].reason == "cooldown_active"
    world.run(40)
    assert world.active == "wlan0"


def test_a_suppressed_transport_serves_when_nothing_else_does() -> None:
    world = World(policy(switching={"max_per_minute": 100}), links=("wlan0",)).start()
    for _ in range(6):
        world.down("wlan0")
        world.run(0.5)
        world.up("wlan0")
        _back(world, 3)


def test_many_returns_of_an_interface_never_exhaust_the_path_indices() -> None:
    world = World(policy(switching={"failback": "never"})).start()
    for _ in range(12):
        world.down("eth0")
        world.run(1)
        world.up("eth0")
        world.run(1)
    world.down("wlan0")
    _back(world, 5)
    assert world.active == "eth0"


# --- instability -----------------------------------------------------------------------------------------------------


def test_loss_makes_volatile_and_a_better_candidate_takes_over() -> None:
    world = World()
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    _back_to = world.until(lambda: world.active == "eth0", 5)
    assert _back_to < 3
    assert "VOLATILE>RECOVERING loss_recovery" in world.changes("client")


def test_loss_that_passes_leaves_the_session_where_it_is() -> None:
    world = World(links=("wlan0",))
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    world.run(1)
    assert world.states()[0] == "VOLATILE"
    world.links[world.id("wlan0")].loss = 0.0
    _back(world, 5)
    assert world.changes("client")[-2:] == [
        "VOLATILE>RECOVERING path_stabilized",
        "RECOVERING>ATTACHED same_path_revalidated",
    ]


def test_loss_without_an_alternative_never_ends_the_session() -> None:
    world = World(links=("wlan0",))
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    world.run(580)
    assert "TERMINATED" not in world.states()


def test_incumbent_is_kept_when_the_better_one_may_not_be_taken() -> None:
    """Beaten by latency, but the switch budget is used up: a healthy incumbent is revalidated, not held in DEGRADED."""
    world = World(policy(switching={"max_per_minute": 1, "hold_down": "0s", "failback": "never"}))
    world.measures = True
    world.start()
    world.down("wlan0")
    _back(world, 1)
    world.up("wlan0")
    world.links[world.id("eth0")].delay = 80 * MILLISECOND
    world.run(2)
    world.links[world.id("eth0")].loss = 0.5
    world.run(1)
    world.links[world.id("eth0")].loss = 0.0
    world.until(lambda: world.states()[0] == "ATTACHED", 8)
    assert world.active == "eth0"


# --- reattach requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_rtt", [True, False])
def test_lost_reply_then_another_transport(zero_rtt: bool) -> None:
    """The gateway committed, the client never heard: the next request names the version before, in a newer epoch."""
    world = World(links=("wlan0", "eth0", "wwan0"))
    world.zero_rtt = zero_rtt
    world.start()
    for name in ("eth0", "wwan0"):
        world.links[world.id(name)].drop = lambda kind: kind == "committed"
    world.down("wlan0")
    world.run(1)
    lost = world.gateway_session
    assert lost is not None
    assert lost.epoch > 1
    other = "wwan0" if lost.incumbent == "path1/udp" else "eth0"
    world.links[world.id(other)].drop = lambda _kind: False
    _back(world, 6)
    assert world.gateway_session is not None
    assert world.gateway_session.epoch > lost.epoch


def test_unvalidated_address_is_challenged_first() -> None:
    world = World(links=("wlan0", "eth0")).start()
    world.gateway_planes[world.uid].paths.pop(1, None)
    assert world.gateway is not None
    world.gateway.places[world.uid].transports.clear()
    world.down("wlan0")
    _back(world, 1)
    assert any(e.reason == "reattach_success" for e in world.names("gateway", "reattach.result"))


def test_requests_without_answer_end_by_the_ttl() -> None:
    world = World(policy(session={"transport_ttl": "30s"})).start()
    for link in world.links.values():
        link.drop = lambda kind: kind == "request"
    world.down("wlan0")
    world.run(31)
    assert world.states()[0] == "TERMINATED"
    assert world.client.session is not None
    assert world.client.session.reason in (Reason.TRANSPORT_TTL_EXCEEDED, Reason.RECOVERY_ATTEMPTS_EXHAUSTED)


def test_attempts_exhausted_ends_the_session() -> None:
    world = World(policy(recovery={"max_attempts": 1})).start()
    world.down("wlan0", "eth0")
    world.run(1)
    world.up("eth0")
    world.run(1)
    assert world.states()[0] == "TERMINATED"
    assert world.client.session is not None
    assert world.client.session.reason is Reason.RECOVERY_ATTEMPTS_EXHAUSTED


def test_wall_clocks_that_disagree_and_jump_stop_no_reattach() -> None:
    world = World().start()
    world.skew_ms["client"] = 60_000
    world.down("wlan0")
    assert _back(world, 1) <= 0.1
    world.skew_ms["client"] = -3_600_000
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    assert _back(world, 5) <= 3
    assert not [e for e in world.names("gateway", "reattach.result") if e.reason == "stale_request"]


# --- the store -------------------------------------------------------------------------------------------------------


def test_commits_that_take_long_hold_nothing_up_for_good() -> None:
    world = World()
    world.gateway_store.delay = 300 * MILLISECOND
    world.client_store.delay = 100 * MILLISECOND
    world.start()
    world.down("wlan0")
    _back(world, 3)
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    _back(world, 3)


def test_store_down_keeps_forwarding_and_denies_mutations() -> None:
    world = World().start()
    world.gateway_store.verdict = lambda _order: "unavailable"
    world.down("wlan0")
    world.run(20)
    assert world.states() == ("DEGRADED", "ATTACHED")
    assert any(e.reason == "store_unavailable" for e in world.names("client", "transport.switch_denied"))
    assert world.names("gateway", "ownership.store_unavailable")
    world.gateway_store.verdict = lambda _order: "committed"
    _back(world, 60)


def test_death_seen_while_the_store_was_down_is_recorded_later() -> None:
    world = World().start()
    world.gateway_store.verdict = lambda _order: "unavailable"
    world.blackhole("wlan0", "eth0")
    world.run(20)
    assert world.states()[1] == "ATTACHED"
    world.gateway_store.verdict = lambda _order: "committed"
    world.run(2)
    assert world.states()[1] == "DEGRADED"
    world.run(301)
    assert world.gateway_session is None


def test_lost_race_is_told_and_changes_nothing() -> None:
    world = World().start()
    world.gateway_store.verdict = lambda _order: "conflict"
    world.down("wlan0")
    world.run(3)
    assert world.states()[1] == "ATTACHED"
    assert any(e.reason == "atomicity_failed" for e in world.names("client", "transport.switch_denied"))


def test_restart_while_the_store_is_down_retries_the_takeover() -> None:
    world = World().start()
    world.stop_gateway()
    world.gateway_store.verdict = lambda _order: "unavailable"
    world.start_gateway()
    world.run(3)
    world.gateway_store.verdict = lambda _order: "committed"
    world.until(lambda: world.gateway_session is not None and world.gateway_session.owner_epoch == 2, 3)
    _back(world, 60)


# --- keys and lifetime -----------------------------------------------------------------------------------------------


def test_keys_rotate_on_both_sides() -> None:
    world = World().start()
    world.run(125)
    assert world.client.session is not None
    assert world.gateway_session is not None
    assert world.client.session.epoch == world.gateway_session.epoch == 2
    assert world.states() == ("ATTACHED", "ATTACHED")
    assert world.active == "wlan0"


def test_lost_rekey_is_asked_again() -> None:
    world = World().start()
    wlan = world.links[world.id("wlan0")]
    wlan.drop = lambda kind: kind == "rekey_request"
    world.run(130)
    wlan.drop = lambda _kind: False
    world.run(60)
    assert world.client.session is not None
    assert world.client.session.epoch == 3, "one higher: the first might have been granted unheard"


def test_lost_rekey_reply_leaves_both_ends_able_to_rekey() -> None:
    world = World().start()
    wlan = world.links[world.id("wlan0")]
    wlan.drop = lambda kind: kind == "rekey_reply"
    world.run(190)
    assert world.client.session is not None
    assert world.gateway_session is not None
    assert world.gateway_session.epoch > world.client.session.epoch == 1
    wlan.drop = lambda _kind: False
    world.run(40)
    assert world.client.session.epoch == world.gateway_session.epoch
    assert world.active == "wlan0"


def test_rekey_and_switch_at_once() -> None:
    world = World().start()
    world.run(118.9)
    world.links[world.id("wlan0")].delay = 300 * MILLISECOND
    world.run(0.3)
    world.down("wlan0")
    _back(world, 8)


def test_lifetime_warnings_then_the_end() -> None:
    rules = policy(
        session={"max_lifetime": "20min", "lifetime_warnings": ["10min", "2min"]}, recovery={"episode_max": "600s"}
    )
    world = World(rules)
    world.traffic = False
    world.start()
    world.run(1201)
    assert [e.data["left_ms"] for e in world.names("client", "session.lifetime_warning")] == [600_000, 120_000]
    assert world.client.session is not None
    assert world.client.session.reason is Reason.SESSION_LIFETIME_EXCEEDED
    assert world.gateway_session is None


def test_key_age_ends_a_session_whose_rekeys_never_arrive() -> None:
    world = World(policy(security={"key_max_age": "10min", "rekey_after": "2min"}))
    world.traffic = False
    world.start()
    for link in world.links.values():
        link.drop = lambda kind: kind == "rekey_request"
    world.run(601)
    assert world.client.session is not None
    assert world.client.session.reason is Reason.KEY_EXPIRED


def test_operator_ends_the_session_on_both_sides() -> None:
    world = World().start()
    world.post("client", inp.OperatorTerminate(world.uid))
    world.run(1)
    assert world.client.session is not None
    assert world.client.session.reason is Reason.OPERATOR_TERMINATED
    assert world.gateway_session is None
    assert [e.reason for e in world.names("gateway", "session.terminated")] == ["peer_closed"]


# --- birth -----------------------------------------------------------------------------------------------------------


def test_birth_on_a_transport_that_just_vanished_recovers() -> None:
    world = World()
    world.down("ppp0") if world.id("ppp0") in world.links else world.up()
    world.run(0)
    engine = world.client
    wlan = world.id("wlan0")
    gone = tuple(r for r in _reachable(world) if r.id != wlan)
    now = world.clock()
    engine.handle(inp.TransportsChanged(gone), now)
    orders = engine.handle(
        inp.HandshakeAnswered(_session_id(), wlan, "192.0.2.1:51820", "c0ffee", policy(), 1),
        now,  # type: ignore[arg-type]
    )
    [commit] = [o for o in orders if isinstance(o, out.Commit)]
    assert commit.session.state is State.RECOVERING


def test_socket_that_cannot_be_opened_is_tried_again() -> None:
    world = World()
    world.up()
    world.run(0)
    engine, eth = world.client, world.id("eth0")
    engine.handle(inp.SocketFailed(eth, "EADDRNOTAVAIL", local=True), world.clock())
    assert not engine.transports[eth].usable
    world.run(1.1)
    assert engine.transports[eth].usable


def test_local_socket_error_in_a_session_reopens_the_socket() -> None:
    world = World().start()
    before = _sockets(world)["eth0"]
    world.post("client", inp.SocketFailed(world.id("eth0"), "ENETDOWN", local=True))
    world.run(2)
    assert _sockets(world)["eth0"] != before
    assert world.client.transports[world.id("eth0")].validated
    assert world.states() == ("ATTACHED", "ATTACHED")


def test_a_socket_that_answers_again_is_not_replaced() -> None:
    """The session came back on it: a new socket in its place would end the binding without a word."""
    world = World(links=("wlan0",)).start()
    before = _sockets(world)["wlan0"]
    world.post("client", inp.SocketFailed(world.id("wlan0"), "ENETDOWN", local=True))
    world.run(3)
    assert world.active == "wlan0"
    assert _sockets(world)["wlan0"] == before


def test_forged_icmp_error_kills_nothing() -> None:
    world = World().start()
    world.post("client", inp.SocketFailed(world.id("wlan0"), "ECONNREFUSED", local=False))
    world.run(1)
    assert world.changes("client") == ["BIRTH>ATTACHED handshake_ok"]


def _sockets(world: World) -> dict[str, int]:
    return {path.transport.split("/")[0]: path.socket for path in world.client_plane.paths.values()}


def _reachable(world: World) -> list[inp.Reachable]:
    return [inp.Reachable(t, t.split("/")[0], "udp", "gw1", "192.0.2.1:51820", w.local) for t, w in world.links.items()]


def _session_id() -> Any:
    from build import ID

    return ID


def test_a_transport_that_policy_forbids_carries_nothing_even_without_another() -> None:
    world = World(links=("wlan0",)).start()
    world.post("client", inp.PolicyOffered(policy(transports={"deny": ["wlan0"]})))
    world.run(1)
    assert world.client_plane.active is None
    assert world.client.session is not None
    assert world.client.session.state is State.DEGRADED
    assert world.client.session.transportless_at is not None


@pytest.mark.parametrize("after_ms", range(2, 40, 2))
def test_an_answer_lost_with_the_second_link_costs_no_denial(after_ms: int) -> None:
    world = World().start()
    world.down("wlan0")
    world.run(after_ms / 1000)
    world.down("eth0")
    world.run(5)
    world.up("eth0")
    assert _back(world, 2) <= 0.2
    assert not [e for e in world.names("gateway", "reattach.result") if e.reason == "stale_state_version"]
