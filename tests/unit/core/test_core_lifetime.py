"""Both engines in one world: how a session begins, changes its keys, and ends."""

from __future__ import annotations

from build import ID, policy
from worlds import back

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import State
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND

# --- birth -----------------------------------------------------------------------------------------------------------


def test_birth_on_a_transport_that_just_vanished_recovers() -> None:
    world = World()
    world.up()
    world.run(0)
    engine = world.client
    wlan = world.id("wlan0")
    gone = tuple(r for r in _reachable(world) if r.id != wlan)
    now = world.clock()
    engine.handle(inp.TransportsChanged(gone), now)
    orders = engine.handle(inp.HandshakeAnswered(ID, wlan, "192.0.2.1:51820", "c0ffee", policy(), 1), now)
    [commit] = [o for o in orders if isinstance(o, out.Commit)]
    assert commit.session.state is State.RECOVERING


def _reachable(world: World) -> list[inp.Reachable]:
    return [inp.Reachable(t, t.split("/")[0], "udp", "gw1", "192.0.2.1:51820", w.local) for t, w in world.links.items()]


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
    back(world, 8)


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
