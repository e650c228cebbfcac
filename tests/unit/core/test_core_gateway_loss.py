"""What is told beforehand of a gateway's death is what then happens: who takes over, how soon, or how all ends."""

from __future__ import annotations

from typing import Any

import pytest
from build import policy
from fleet import ID, Fleet

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.values import MILLISECOND, SECOND, Instant, TransportId


def _told(fleet: Fleet) -> dict[str, Any]:
    found = outlook.of_client(fleet.engine, "", Instant(fleet.now))["session"]["gateway_loss"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("interfaces", [("wlan0",), ("wlan0", "wwan0")])
@pytest.mark.parametrize("traffic", [True, False])
def test_the_gateway_that_was_named_takes_over_in_the_time_that_was_told(
    interfaces: tuple[str, ...], traffic: bool
) -> None:
    fleet = Fleet(interfaces=interfaces).start()
    fleet.traffic = traffic
    told = _told(fleet)
    assert (told["gateway"], told["outcome"], told["to"], told["proof"]) == ("gw1", "moves", "gw2", "token")
    fleet.kill("gw1")
    took = fleet.until(lambda: fleet.is_on(told["transport"]), told["at_most_ms"] / 1000)
    assert took * 1000 <= told["at_most_ms"]


def test_a_standby_that_has_not_answered_lately_has_to_prove_its_address_first() -> None:
    fleet = Fleet().start()
    fleet.now += 9 * SECOND
    assert _told(fleet)["proof"] == "challenge"


def test_without_another_gateway_the_session_ends_when_and_why_it_was_told() -> None:
    fleet = Fleet(rules=policy(session={"transport_ttl": "20s"})).start()
    fleet.unwanted.add("gw2")
    fleet.tell_network({TransportId("wlan0/udp/gw2"): inp.UNUSED})
    told = _told(fleet)
    assert (told["outcome"], told["to"], told["why"]) == ("waits", None, "no_candidate_transports")
    assert told["ends"] == {"reason": "transport_ttl_exceeded", "policy": "session.transport_ttl", "in_ms": 20_000.0}
    fleet.kill("gw1")
    most = (told["detect_busy_ms"] + told["ends"]["in_ms"]) / 1000
    fleet.until(lambda: fleet.changes()[-1].endswith("TERMINATED transport_ttl_exceeded"), most + 0.001)


def test_a_lifetime_that_is_over_before_is_the_end_that_is_told() -> None:
    fleet = Fleet(rules=policy(session={"max_lifetime": "11min"})).start()
    assert _told(fleet)["ends"]["reason"] == "transport_ttl_exceeded"
    fleet.now += 600 * SECOND
    assert _told(fleet)["ends"]["reason"] == "session_lifetime_exceeded"


def test_a_spent_switch_budget_is_named() -> None:
    fleet = Fleet(rules=policy(switching={"max_per_minute": 1}), interfaces=("wlan0", "wwan0")).start()
    fleet.down("wlan0")
    fleet.until(lambda: fleet.is_on("wwan0/udp/gw1"), 5)
    told = _told(fleet)
    assert (told["outcome"], told["why"]) == ("waits", "switch_rate_limited")


def _drains(fleet: Fleet, gateway: str) -> None:
    """Its answer to a standby probe says that it leaves."""
    fleet.feed(inp.StandbyAnswered(ID.uid, TransportId(f"wlan0/udp/{gateway}"), 20 * MILLISECOND, True))


def test_a_gateway_that_drains_is_no_heir() -> None:
    fleet = Fleet(names=("gw1", "gw2", "gw3")).start()
    first = _told(fleet)["to"]
    _drains(fleet, first)
    other = _told(fleet)["to"]
    assert {first, other} == {"gw2", "gw3"}
    _drains(fleet, other)
    told = _told(fleet)
    assert (told["outcome"], told["to"], told["why"]) == ("waits", None, "gateway_drain")
