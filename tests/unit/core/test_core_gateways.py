"""Several gateways: a killed one is left at the silence limit, one that drains while it still works, one that refuses
is let alone; nothing of it happens where there is only one.
"""

from __future__ import annotations

import pytest
from build import policy
from fleet import ID, Fleet
from hypothesis import given, settings
from hypothesis import strategies as st

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.engine import outputs as out
from jumpvpn.engine.book import KNOWN_MAX, PATHS_PER_EPOCH
from jumpvpn.session.reasons import Reason
from jumpvpn.transports.state import Condition
from jumpvpn.values import MILLISECOND, SECOND, Instant, TransportId

LIMIT = 0.1  # seconds: the silence limit of the fleet's round-trip time under the default policy
TRIP = 0.02


def _handovers(fleet: Fleet) -> list[str]:
    return [order.handover for order in fleet.ordered(out.FinishReattach)]


def _asked(fleet: Fleet) -> list[str]:
    return [order.transport for order in fleet.ordered(out.AskReattach)]


# --- standby ---------------------------------------------------------------------------------------------------------


def test_a_standby_at_another_gateway_is_proven_but_holds_no_keys() -> None:
    fleet = Fleet().start()
    standby = fleet.engine.transports[TransportId("wlan0/udp/gw2")]
    assert (standby.condition, standby.needs_epoch, standby.rtt_ns) == (Condition.GOOD, True, 20 * MILLISECOND)
    assert fleet.engine.transports[TransportId("wlan0/udp/gw1")].needs_epoch is False
    found = [e.transport.id for e in fleet.named("transport.candidate") if e.transport and e.data["change"] != "added"]
    assert found == ["wlan0/udp/gw2"]


def test_the_round_trip_of_a_standby_is_smoothed() -> None:
    fleet = Fleet().start()
    there = TransportId("wlan0/udp/gw2")
    fleet.feed(inp.StandbyAnswered(ID.uid, there, 100 * MILLISECOND, False))
    known = fleet.engine.transports[there]
    assert known.rtt_ns == 30 * MILLISECOND
    assert known.rtt_dev_ns > 20 * MILLISECOND
    limits = fleet.engine.liveness(there)
    assert limits is not None
    assert limits.silence_busy > LIMIT * SECOND


def test_an_answer_of_the_own_gateway_to_an_old_standby_probe_says_nothing() -> None:
    fleet = Fleet().start()
    here = TransportId("wlan0/udp/gw1")
    before = fleet.engine.transports[here]
    fleet.feed(inp.StandbyAnswered(ID.uid, here, 1, True))
    assert fleet.engine.transports[here] == before
    assert not fleet.engine.book.gateways.draining


# --- a killed gateway ------------------------------------------------------------------------------------------------


def test_a_killed_gateway_is_left_at_the_silence_limit() -> None:
    """One round trip for the other gateway's proof that the network works, one for the reattach."""
    fleet = Fleet().start()
    fleet.kill("gw1")
    assert fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 5) <= LIMIT + 2 * TRIP + 0.001
    assert fleet.changes()[1:] == [
        "ATTACHED>VOLATILE probe_timeout",
        "VOLATILE>RECOVERING loss_recovery",
        "RECOVERING>ATTACHED reattach_success",
    ]
    assert _handovers(fleet) == ["lost"]


def test_when_every_transport_of_the_gateway_is_known_silent_the_switch_starts_at_once() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.kill("gw1")
    silent = 100 * MILLISECOND
    for interface in ("eth0", "wlan0"):
        fleet.feed(inp.PathSilent(ID.uid, TransportId(f"{interface}/udp/gw1"), silent, silent))
    assert _asked(fleet) == ["eth0/udp/gw2"]


@pytest.mark.parametrize("interfaces", [("wlan0", "eth0"), ("wlan0", "eth0", "wwan0")])
def test_another_network_to_a_killed_gateway_is_asked_twice_and_no_more(interfaces: tuple[str, ...]) -> None:
    """Its idle paths are not known silent yet: the first is asked, then another gateway, not the next of its paths."""
    fleet = Fleet(interfaces).start()
    fleet.kill("gw1")
    repeat_and_answer = 0.1 + TRIP + 0.01 + 0.05  # s: the repetition, its round trip with four deviations, the margin
    took = fleet.until(lambda: fleet.home == "gw2" and fleet.session.attached, 5)
    assert took <= LIMIT + repeat_and_answer + TRIP + 0.001
    assert [asked.split("/")[2] for asked in _asked(fleet)] == ["gw1", "gw2"]
    assert fleet.session.attempts == 0


def test_an_error_of_this_host_says_nothing_about_the_gateway() -> None:
    """Then the gateway has the time that policy gives it."""
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.feed(inp.SocketFailed(TransportId("wlan0/udp/gw1"), "ENETUNREACH", local=True))
    attempt = fleet.session.attempt
    assert attempt is not None
    assert attempt.transport == "eth0/udp/gw1"
    assert attempt.deadline - fleet.now == fleet.rules.recovery.attempt_timeout


def test_a_network_that_falls_silent_costs_no_takeover() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.block("wlan0")
    assert fleet.until(lambda: fleet.is_on("eth0/udp/gw1"), 5) <= LIMIT + TRIP + 0.001
    assert _handovers(fleet) == ["same"]


@pytest.mark.parametrize("gap", [0.15, 0.5, 3.0, 30.0])
def test_a_gap_in_the_only_network_moves_the_session_nowhere(gap: float) -> None:
    fleet = Fleet().start()
    fleet.block("wlan0")
    fleet.run(gap)
    fleet.blocked.clear()
    fleet.until(lambda: fleet.session.attached, 5)
    if gap < 4:  # later a request is sent blindly, as with one gateway
        assert fleet.home == "gw1"
        assert fleet.session.epoch == 1


def test_gateway_and_network_gone_at_once_are_left_together() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.kill("gw1")
    fleet.block("wlan0")
    fleet.until(lambda: fleet.is_on("eth0/udp/gw2"), 5)


def test_a_vanished_network_moves_to_the_same_gateway_over_another() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.down("wlan0")
    fleet.until(lambda: fleet.is_on("eth0/udp/gw1"), 1)
    assert _handovers(fleet) == ["same"]


def test_policy_comes_before_the_cost_of_a_takeover() -> None:
    rules = policy(transports={"prefer": ["wlan0", "gateway:gw2"]})
    fleet = Fleet(("wlan0", "eth0"), rules=rules).start()
    fleet.down("wlan0")
    fleet.until(lambda: fleet.is_on("eth0/udp/gw2"), 1)


def test_the_third_gateway_serves_when_two_are_gone() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    fleet.kill("gw1")
    fleet.until(lambda: fleet.home == "gw2" and fleet.session.attached, 5)
    fleet.run(10)
    fleet.kill("gw2")
    fleet.until(lambda: fleet.home == "gw3" and fleet.session.attached, 5)
    assert _handovers(fleet) == ["lost", "lost"]


def test_all_gateways_gone_and_one_back_within_the_ttl() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.kill("gw1")
    fleet.kill("gw2")
    fleet.run(60)
    assert fleet.session.state.value == "DEGRADED"
    fleet.gateways["gw2"].alive = True
    fleet.until(lambda: fleet.home == "gw2" and fleet.session.attached, 10)


def test_after_the_move_the_old_gateway_is_a_standby() -> None:
    fleet = Fleet(("wlan0",)).start()
    fleet.kill("gw1")
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 5)
    old, new = (fleet.engine.transports[TransportId(f"wlan0/udp/{name}")] for name in ("gw1", "gw2"))
    assert (old.needs_epoch, new.needs_epoch) == (True, False)
    fleet.gateways["gw1"].alive = True
    fleet.run(5)
    assert fleet.engine.transports[old.id].condition is Condition.GOOD
    assert fleet.is_on("wlan0/udp/gw2"), "nobody prefers the old one"
    fleet.run(60)
    fleet.kill("gw2")
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw1"), 5)


def test_a_preferred_gateway_is_returned_to_when_it_has_been_stable() -> None:
    rules = policy(transports={"prefer": ["gateway:gw1"]}, switching={"failback": "30s"})
    fleet = Fleet(rules=rules).start()
    fleet.kill("gw1")
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 5)
    fleet.gateways["gw1"].alive = True
    assert 25 < fleet.until(lambda: fleet.is_on("wlan0/udp/gw1"), 60) < 40
    assert fleet.changes()[-3] == "ATTACHED>VOLATILE failback"


# --- drain -----------------------------------------------------------------------------------------------------------


def test_a_draining_gateway_is_left_while_its_binding_works() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.drain("gw1")
    assert fleet.until(lambda: fleet.home == "gw2" and fleet.session.attached, 1) <= TRIP
    assert fleet.changes()[1:] == [
        "ATTACHED>VOLATILE gateway_drain",
        "VOLATILE>RECOVERING gateway_drain",
        "RECOVERING>ATTACHED reattach_success",
    ]
    assert _handovers(fleet) == ["drained"]
    assert not fleet.ordered(out.Deactivate), "the binding carries the session until the new one is there"


def test_with_nowhere_to_go_the_session_stays_until_somewhere_answers() -> None:
    fleet = Fleet()
    fleet.gateways["gw2"].alive = False
    fleet.start()
    fleet.drain("gw1")
    fleet.run(30)
    assert fleet.is_on("wlan0/udp/gw1")
    assert fleet.changes() == ["BIRTH>ATTACHED handshake_ok"]
    fleet.gateways["gw2"].alive = True
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 5)
    assert _handovers(fleet) == ["drained"]


def test_a_drain_that_leads_nowhere_returns_to_the_living_binding() -> None:
    """Another network to the same gateway is no answer to its drain."""
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.kill("gw2")
    fleet.drain("gw1")
    fleet.until(lambda: len(fleet.changes()) > 4 and fleet.session.attached, 10)
    assert {asked.split("/")[2] for asked in _asked(fleet)} == {"gw2"}
    assert fleet.is_on("wlan0/udp/gw1")
    assert fleet.changes()[-1] == "RECOVERING>ATTACHED same_path_revalidated"
    fleet.run(10)
    assert fleet.is_on("wlan0/udp/gw1"), "what did not answer is not asked again"


def test_a_drain_that_is_taken_back_moves_nobody() -> None:
    fleet = Fleet()
    fleet.gateways["gw2"].alive = False
    fleet.start()
    fleet.drain("gw1")
    fleet.run(1)
    fleet.drain("gw1", on=False)
    fleet.gateways["gw2"].alive = True
    fleet.run(30)
    assert fleet.is_on("wlan0/udp/gw1")
    assert len(fleet.changes()) == 1


def test_nobody_goes_to_a_gateway_that_drains_as_well() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    fleet.drain("gw2")
    fleet.feed(inp.StandbyAnswered(ID.uid, TransportId("wlan0/udp/gw2"), 1, True))
    fleet.drain("gw1")
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw3"), 5)
    assert fleet.gateways["gw2"].asked == 0


def test_a_gateway_that_drains_is_still_the_last_choice() -> None:
    """Its own session may go on there over another network, rather than nowhere."""
    fleet = Fleet(("wlan0", "eth0"))
    fleet.gateways["gw2"].alive = False
    fleet.start()
    fleet.drain("gw1")
    fleet.down("wlan0")
    fleet.until(lambda: fleet.is_on("eth0/udp/gw1"), 5)


def test_no_failback_to_a_draining_gateway() -> None:
    rules = policy(transports={"prefer": ["gateway:gw1"]}, switching={"failback": "5s"})
    fleet = Fleet(rules=rules).start()
    fleet.drain("gw1")
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 5)
    fleet.run(120)
    assert fleet.is_on("wlan0/udp/gw2")
    assert fleet.gateways["gw1"].asked == 0
    fleet.drain("gw1", on=False)
    fleet.feed(inp.StandbyAnswered(ID.uid, TransportId("wlan0/udp/gw1"), 20 * MILLISECOND, False))
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw1"), 10)


def test_a_drain_keeps_to_the_switch_budget() -> None:
    """Two gateways that push a session to and fro get what policy allows, and no more."""
    fleet = Fleet(rules=policy(switching={"max_per_minute": 3})).start()
    begin = fleet.now
    for _ in range(8):
        fleet.gateways["gw1"].draining = fleet.gateways["gw2"].draining = False
        for name in ("gw1", "gw2"):
            if name != fleet.home:
                fleet.feed(inp.StandbyAnswered(ID.uid, TransportId(f"wlan0/udp/{name}"), 20 * MILLISECOND, False))
        fleet.drain(fleet.home)
        fleet.run(4)
    assert fleet.now - begin < 60 * SECOND
    assert len(_handovers(fleet)) == 3
    assert fleet.session.attached


def test_a_drain_waits_for_the_hold_down() -> None:
    fleet = Fleet(("wlan0", "eth0")).start()
    fleet.down("wlan0")
    fleet.until(lambda: fleet.is_on("eth0/udp/gw1"), 1)
    fleet.drain("gw1")
    assert 1.4 < fleet.until(lambda: fleet.home == "gw2" and fleet.session.attached, 5) < 1.6


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.NOT_OWNER, Reason.GATEWAY_DRAIN, Reason.STORE_UNAVAILABLE])
def test_a_gateway_that_refuses_is_let_alone_and_another_is_asked(reason: Reason) -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    fleet.gateways["gw2"].denies = reason
    fleet.kill("gw1")
    assert fleet.until(lambda: fleet.is_on("wlan0/udp/gw3"), 5) < 1
    assert fleet.gateways["gw2"].asked == 1
    assert ("gw2" in fleet.engine.book.gateways.draining) == (reason is Reason.GATEWAY_DRAIN)


def test_a_refused_drain_returns_to_the_living_binding() -> None:
    fleet = Fleet().start()
    fleet.gateways["gw2"].denies = Reason.NOT_OWNER
    fleet.drain("gw1")
    fleet.run(4)
    assert fleet.is_on("wlan0/udp/gw1")
    assert fleet.gateways["gw2"].asked == 1
    fleet.gateways["gw2"].denies = None
    fleet.until(lambda: fleet.is_on("wlan0/udp/gw2"), 10)
    assert fleet.session.epoch == fleet.epoch


def test_an_operator_is_told_which_gateway_refused() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    fleet.gateways["gw2"].denies = Reason.NOT_OWNER
    fleet.feed(inp.OperatorSwitch(TransportId("wlan0/udp/gw2")))
    fleet.run(0.5)
    session, now = fleet.session, Instant(fleet.now)
    refusals = {
        name: fleet.engine.switch_refusal(session, TransportId(f"wlan0/udp/{name}"), now) for name in ("gw2", "gw3")
    }
    assert refusals["gw2"] is not None
    assert refusals["gw2"][1]["rule"] == "denied by the gateway"
    assert refusals["gw3"] is None


# --- births ----------------------------------------------------------------------------------------------------------


def test_birth_asks_another_gateway_before_another_network() -> None:
    fleet = Fleet(("wlan0", "eth0"), ("gw1", "gw2", "gw3"))
    fleet.tell_network()
    tried: list[TransportId] = []
    for _ in range(6):
        choice = fleet.engine.first_choice(Instant(fleet.now), tuple(tried))
        tried.append(choice.transport)  # type: ignore[union-attr]
    assert len(set(tried)) == 6
    assert len({transport.split("/")[2] for transport in tried[:3]}) == 3
    assert len({transport.split("/")[0] for transport in tried[:2]}) == 2


# --- path indexes and bounds -----------------------------------------------------------------------------------------


def test_the_own_gateway_always_gets_a_path_index() -> None:
    """An interface that comes and goes uses up indexes of the epoch: standbys at other gateways give theirs away."""
    fleet = Fleet(("wlan0", "eth0"), ("gw1", "gw2", "gw3")).start()
    for _ in range(12):
        fleet.gone.add("eth0")
        fleet.tell_network()
        fleet.run(0.1)
        fleet.gone.clear()
        fleet.tell_network()
        fleet.run(0.1)
        indexes = [path.index for path in fleet.paths.values()]
        assert len(set(indexes)) == len(indexes) <= PATHS_PER_EPOCH
    used = [order.path for order in fleet.ordered(out.OpenPath) if order.transport == "eth0/udp/gw1"]
    assert len(set(used)) == len(used) == 7, "0 is the bound transport's; no index serves two instances in an epoch"
    assert fleet.paths.keys() >= {"wlan0/udp/gw1", "wlan0/udp/gw2"}
    fleet.kill("gw1")
    fleet.until(lambda: fleet.home != "gw1" and fleet.session.attached, 5)
    assert len(fleet.paths) == 6, "the next epoch has room for all"


def test_a_gateway_that_is_not_wanted_leaves_without_a_flap() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    fleet.unwanted.add("gw3")
    gone = TransportId("wlan0/udp/gw3")
    fleet.tell_network({gone: inp.UNUSED})
    known = fleet.engine.transports[gone]
    assert known.condition is Condition.GONE
    assert known.penalty.points == 0
    assert gone not in fleet.paths
    assert not fleet.named("transport.dead")
    assert [e.data["code"] for e in fleet.named("transport.candidate") if e.data["change"] == "removed"] == ["gateway"]


def test_a_gateway_with_another_address_gets_another_socket() -> None:
    fleet = Fleet().start()
    there, here = TransportId("wlan0/udp/gw2"), TransportId("wlan0/udp/gw1")
    moved = tuple(
        inp.Reachable(t, "wlan0", "udp", t.split("/")[2], "moved:51900", "10.0.0.2") for t in (here, there)
    )  # fmt: skip
    before = len(fleet.ordered(out.OpenPath))
    fleet.feed(inp.TransportsChanged(moved))
    fresh = fleet.ordered(out.OpenPath)[before:]
    assert [(order.transport, order.peer) for order in fresh] == [(there, "moved:51900")]


def test_what_is_remembered_of_gateways_is_bounded() -> None:
    fleet = Fleet(names=("gw1",)).start()
    for number in range(200):
        name = f"x{number}"
        reachable = [
            inp.Reachable(TransportId(f"wlan0/udp/{g}"), "wlan0", "udp", g, f"{g}:51900", "10.0.0.2")
            for g in ("gw1", name)
        ]
        fleet.gateways[name] = fleet.gateways["gw1"]
        fleet.feed(inp.TransportsChanged(tuple(reachable)))
        fleet.feed(inp.StandbyAnswered(ID.uid, TransportId(f"wlan0/udp/{name}"), 1, True))
    assert len(fleet.engine.transports) <= KNOWN_MAX
    assert len(fleet.engine.book.gateways.draining) == 1
    assert fleet.is_on("wlan0/udp/gw1")


# --- what people see -------------------------------------------------------------------------------------------------


def test_gateways_are_told_with_their_state() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3", "gw4"))
    fleet.gateways["gw3"].alive = False
    fleet.gateways["gw4"].draining = True
    fleet.start()
    told = {found["name"]: (found["state"], found["rtt_ms"]) for found in outlook.gateways_of(fleet.engine)}
    assert told == {"gw1": ("current", 20.0), "gw2": ("standby", 20.0), "gw3": ("silent", None),
                    "gw4": ("draining", 20.0)}  # fmt: skip
    facts = outlook.of_client(fleet.engine, "", Instant(fleet.now))["session"]
    assert facts["successor_elsewhere"]["transport"] == "wlan0/udp/gw2"
    assert [found["name"] for found in facts["gateways"]] == ["gw1", "gw2", "gw3", "gw4"]


# --- anything at all -------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("kill"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("raise"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("drain"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("stay"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("deny"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("grant"), st.sampled_from(("gw1", "gw2", "gw3"))),
        st.tuples(st.just("block"), st.sampled_from(("wlan0", "eth0"))),
        st.tuples(st.just("heal"), st.sampled_from(("wlan0", "eth0"))),
        st.tuples(st.just("down"), st.sampled_from(("wlan0", "eth0"))),
        st.tuples(st.just("up"), st.sampled_from(("wlan0", "eth0"))),
        st.tuples(st.just("wait"), st.sampled_from((0.01, 0.1, 0.15, 1.0, 7.0))),
    ),
    max_size=25,
)


def _do(fleet: Fleet, action: str, what: str | float) -> None:
    match action, what:
        case ("kill" | "raise", str(name)):
            fleet.gateways[name].alive = action == "raise"
        case ("drain" | "stay", str(name)):
            fleet.drain(name, on=action == "drain")
        case ("deny" | "grant", str(name)):
            fleet.gateways[name].denies = Reason.NOT_OWNER if action == "deny" else None
        case ("block", str(interface)):
            fleet.block(interface)
        case ("heal", str(interface)):
            fleet.blocked = {t for t in fleet.blocked if not t.startswith(interface)}
        case ("down", str(interface)):
            fleet.down(interface)
        case ("up", str(interface)):
            fleet.gone.discard(interface)
            fleet.tell_network()
        case (_, float(seconds)):
            fleet.run(seconds)


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_the_session_returns_when_everything_works_again(steps: list[tuple[str, str | float]]) -> None:
    """The fleet checks what the packet core would: epochs rise, one socket per transport and index, moves are told."""
    rules = policy(recovery={"max_attempts": 1000}, switching={"max_per_minute": 600})
    fleet = Fleet(("wlan0", "eth0"), ("gw1", "gw2", "gw3"), rules).start()
    for action, what in steps:
        _do(fleet, action, what)
    fleet.gone.clear()
    fleet.blocked.clear()
    for gateway in fleet.gateways.values():
        gateway.alive, gateway.denies, gateway.draining = True, None, False
    fleet.tell_network()
    if fleet.active is not None:
        fleet.feed(inp.DrainTold(ID.uid, fleet.active, False))
    fleet.until(lambda: fleet.session.attached and fleet.active == fleet.session.incumbent, 120)
