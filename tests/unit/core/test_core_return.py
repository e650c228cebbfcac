"""Both engines in one world: networks that die, come back, move, lose packets or refuse a socket."""

from __future__ import annotations

import pytest
from build import policy
from worlds import back

from jumpvpn.engine import inputs as inp
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, SECOND

# --- death and return ------------------------------------------------------------------------------------------------


def test_signalled_death_switches_within_one_round_trip() -> None:
    world = World().start()
    world.down("wlan0")
    assert back(world, 1) <= 0.1
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
    assert back(world, 4) < 3
    assert world.active == "eth0"
    assert world.changes("client")[1].startswith("ATTACHED>VOLATILE probe_timeout")


def test_silent_death_while_idle_is_seen_by_probes() -> None:
    world = World()
    world.traffic = False
    world.start()
    world.blackhole("wlan0")
    assert back(world, 35) > 10
    assert world.active == "eth0"


@pytest.mark.parametrize("away", [2, 20, 120, 280])
@pytest.mark.parametrize("returning", [("wlan0",), ("eth0",), ("wlan0", "eth0")])
def test_both_links_gone_and_one_back_within_the_ttl(away: int, returning: tuple[str, ...]) -> None:
    world = World().start()
    world.down("wlan0", "eth0")
    world.run(away)
    assert world.states()[0] == "DEGRADED"
    world.up(*returning)
    back(world, 10)
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
    back(world, 5)
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
    back(world, 3)
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
    back(world, 10)


# --- rebinding -------------------------------------------------------------------------------------------------------


def test_nat_rebinding_is_validated_before_anything_moves() -> None:
    world = World().start()
    world.rebind("wlan0", "10.0.0.2:6001")
    back(world, 2)
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
    back(world, 10)


def test_late_answer_from_the_new_address_still_rebinds() -> None:
    world = World(links=("wlan0",)).start()
    lossy = world.links[world.id("wlan0")]
    world.rebind("wlan0", "10.0.0.2:6001")
    lossy.drop = lambda kind: kind == "report"
    world.run(0.2)
    lossy.drop = lambda _kind: False
    back(world, 10)


# --- instability -----------------------------------------------------------------------------------------------------


def test_loss_makes_volatile_and_a_better_candidate_takes_over() -> None:
    world = World()
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    took = world.until(lambda: world.active == "eth0", 5)
    assert took < 3
    assert "VOLATILE>RECOVERING loss_recovery" in world.changes("client")


def test_loss_that_passes_leaves_the_session_where_it_is() -> None:
    world = World(links=("wlan0",))
    world.measures = True
    world.start()
    world.links[world.id("wlan0")].loss = 0.5
    world.run(1)
    assert world.states()[0] == "VOLATILE"
    world.links[world.id("wlan0")].loss = 0.0
    back(world, 5)
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
    back(world, 1)
    world.up("wlan0")
    world.links[world.id("eth0")].delay = 80 * MILLISECOND
    world.run(2)
    world.links[world.id("eth0")].loss = 0.5
    world.run(1)
    world.links[world.id("eth0")].loss = 0.0
    world.until(lambda: world.states()[0] == "ATTACHED", 8)
    assert world.active == "eth0"


# --- sockets ---------------------------------------------------------------------------------------------------------


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
