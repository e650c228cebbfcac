"""Both engines in one world: which transport may be taken when, by budgets, by policy, by wish."""

from __future__ import annotations

from typing import Any

import pytest
from build import policy
from worlds import back

from jumpvpn.engine import inputs as inp
from jumpvpn.session.state import State
from jumpvpn.sim.world import World
from jumpvpn.values import SECOND


def _prefer(*names: str, **more: Any) -> Any:
    return policy(transports={"prefer": names}, **more)


# --- budgets and wishes ----------------------------------------------------------------------------------------------


def test_hold_down_never_delays_leaving_a_dead_transport() -> None:
    world = World(policy(switching={"hold_down": "30s"})).start()
    world.down("wlan0")
    back(world, 1)
    world.up("wlan0")
    world.run(2)
    world.down("eth0")
    assert back(world, 1) <= 0.1
    assert world.active == "wlan0"


def test_operator_switch_and_its_refusals() -> None:
    world = World(policy(switching={"failback": "never", "hold_down": "10s"})).start()
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    back(world, 1)
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
    back(world, 1)
    assert world.active == "wlan0"


def test_rate_limit_holds_and_frees_itself() -> None:
    world = World(policy(switching={"max_per_minute": 2, "hold_down": "0s", "failback": "never"})).start()
    for there, here in (("eth0", "wlan0"), ("wlan0", "eth0")):
        world.down(here)
        back(world, 1)
        assert world.active == there
        world.up(here)
        world.run(1)
    world.down("wlan0")
    world.run(1)
    assert world.states()[0] == "DEGRADED"
    assert world.changes("client")[-1] == "RECOVERING>DEGRADED switch_rate_limited"
    assert back(world, 60) > 50
    assert world.active == "eth0"


def test_the_gateway_counts_switches_that_the_client_does_not_know_of() -> None:
    """The budgets disagree: the client waits as long as it takes and comes back."""
    world = World(policy(), gateway_rules=policy(switching={"max_per_minute": 1})).start()
    world.down("wlan0")
    back(world, 1)
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    world.run(1)
    assert world.states()[0] == "DEGRADED"
    back(world, 130)


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


# --- policy ----------------------------------------------------------------------------------------------------------


def test_policy_denial_leaves_only_what_is_allowed() -> None:
    world = World(policy(transports={"deny": ["eth0"]})).start()
    world.down("wlan0")
    world.run(5)
    assert world.changes("client")[-1] == "RECOVERING>DEGRADED policy_denied"
    world.post("client", inp.PolicyOffered(policy()))
    back(world, 3)
    assert world.active == "eth0"


@pytest.mark.parametrize("volatile", [False, True])
def test_policy_that_forbids_the_active_transport_moves_the_session(volatile: bool) -> None:
    world = World().start()
    if volatile:
        world.post("client", inp.PathSilent(world.uid, world.id("wlan0"), SECOND, SECOND))
        world.links[world.id("wlan0")].drop = lambda kind: kind == "report"
        world.run(0)
    world.post("client", inp.PolicyOffered(policy(transports={"deny": ["wlan0"]})))
    back(world, 1)
    assert world.active == "eth0"
    assert volatile or "ATTACHED>VOLATILE policy_forced" in world.changes("client")


def test_a_transport_that_policy_forbids_carries_nothing_even_without_another() -> None:
    world = World(links=("wlan0",)).start()
    world.post("client", inp.PolicyOffered(policy(transports={"deny": ["wlan0"]})))
    world.run(1)
    assert world.client_plane.active is None
    assert world.client.session is not None
    assert world.client.session.state is State.DEGRADED
    assert world.client.session.transportless_at is not None


# --- failback and flapping -------------------------------------------------------------------------------------------


def test_failback_waits_for_stability_and_returns_once() -> None:
    world = World(_prefer("wlan0")).start()
    world.down("wlan0")
    back(world, 1)
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
        back(world, 3)


def test_many_returns_of_an_interface_never_exhaust_the_path_indices() -> None:
    world = World(policy(switching={"failback": "never"})).start()
    for _ in range(12):
        world.down("eth0")
        world.run(1)
        world.up("eth0")
        world.run(1)
    world.down("wlan0")
    back(world, 5)
    assert world.active == "eth0"
