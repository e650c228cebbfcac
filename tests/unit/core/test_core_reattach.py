"""Both engines in one world: requests and answers that get lost, gateways that restart, stores that fail."""

from __future__ import annotations

import pytest
from build import policy
from worlds import back

from jumpvpn.engine import inputs as inp
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, SECOND, TransportId

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
    took = back(world, 12 if traffic or away > 20 else 40)
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
    assert back(world, 3) < 2
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
    back(world, 5)


def test_hint_during_a_revalidation_turns_it_into_a_reattach() -> None:
    world = World(links=("wlan0",)).start()
    world.blackhole("wlan0")
    world.until(lambda: world.states()[0] == "DEGRADED", 10)
    world.stop_gateway()
    world.start_gateway()
    world.heal("wlan0")
    assert back(world, 5) < 1.5


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
    back(world, 6)
    assert world.gateway_session is not None
    assert world.gateway_session.epoch > lost.epoch


def test_unvalidated_address_is_challenged_first() -> None:
    world = World(links=("wlan0", "eth0")).start()
    world.gateway_planes[world.uid].paths.pop(1, None)
    assert world.gateway is not None
    world.gateway.places[world.uid].transports.clear()
    world.down("wlan0")
    back(world, 1)
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
    assert back(world, 1) <= 0.1
    world.skew_ms["client"] = -3_600_000
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    assert back(world, 5) <= 3
    assert not [e for e in world.names("gateway", "reattach.result") if e.reason == "stale_request"]


@pytest.mark.parametrize("after_ms", range(2, 40, 2))
def test_an_answer_lost_with_the_second_link_costs_no_denial(after_ms: int) -> None:
    world = World().start()
    world.down("wlan0")
    world.run(after_ms / 1000)
    world.down("eth0")
    world.run(5)
    world.up("eth0")
    assert back(world, 2) <= 0.2
    assert not [e for e in world.names("gateway", "reattach.result") if e.reason == "stale_state_version"]


# --- the store -------------------------------------------------------------------------------------------------------


def test_commits_that_take_long_hold_nothing_up_for_good() -> None:
    world = World()
    world.gateway_store.delay = 300 * MILLISECOND
    world.client_store.delay = 100 * MILLISECOND
    world.start()
    world.down("wlan0")
    back(world, 3)
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    back(world, 3)


def test_store_down_keeps_forwarding_and_denies_mutations() -> None:
    world = World().start()
    world.gateway_store.verdict = lambda _order: "unavailable"
    world.down("wlan0")
    world.run(20)
    assert world.states() == ("DEGRADED", "ATTACHED")
    assert any(e.reason == "store_unavailable" for e in world.names("client", "transport.switch_denied"))
    assert world.names("gateway", "ownership.store_unavailable")
    world.gateway_store.verdict = lambda _order: "committed"
    back(world, 60)


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
    back(world, 60)
