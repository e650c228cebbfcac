"""What is on its way when an address goes from one gateway to another arrives, whichever of the two it comes to.

The server believes a neighbour entry for an hour here: until an announcement, what it sends goes to the former gateway.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from segment import BOTH, INNER, Gateway, Segment, call

pytestmark = pytest.mark.netns
LAST = "192.168.9.77"  # a neighbour whose entry ends a list of changes


@BOTH
@pytest.mark.usefixtures("server")
def test_what_is_passed_on_to_an_expecting_gateway_does_not_go_in_a_circle(
    segment: Segment, tmp_path: Path, version: int
) -> None:
    inner = INNER[version]
    old, new = Gateway(segment, "a", tmp_path), Gateway(segment, "b", tmp_path)
    new.do("acquired", inner)
    new.do("released", inner)  # it was here before
    old.do("acquired", inner)
    caller = call(segment, version)
    new.do("expected", inner)
    new.do("ready", inner)
    old.do("released", inner)
    # The former gateway knows its successor, as one that has sent there before does; nothing has been announced.
    hardware = segment.hardware("b", "in0")
    segment.sh("a", f"ip neigh replace {inner} lladdr {hardware} dev in0 nud permanent")
    segment.leave_by("b")
    assert caller.ask("answered through a") == "answered through a"
    assert segment.neighbour(inner) == segment.hardware("a", "in0")
    assert segment.count("a", f"passed{version}") > 0
    assert segment.count("b", f"passed{version}") == 0
    assert segment.count("b", f"tunnel{version}") > 0


@BOTH
@pytest.mark.usefixtures("server")
def test_an_expected_address_is_claimed_by_nobody(segment: Segment, tmp_path: Path, version: int) -> None:
    inner, gateway = INNER[version], Gateway(segment, "a", tmp_path)
    gateway.do("expected", inner)
    gateway.do("ready", inner)
    segment.sh("server", f"! ping -c 1 -W 1 {inner}")
    gateway.do("acquired", inner)
    segment.sh("server", f"ping -c 1 -W 5 {inner}")


@BOTH
@pytest.mark.usefixtures("server")
def test_a_gateway_that_drains_takes_no_address_back(segment: Segment, tmp_path: Path, version: int) -> None:
    """It has an announcement to repeat when another gateway takes the address over, and does not know of that yet."""
    inner, witness, monitor = INNER[version], segment.witness(), segment.monitor()
    old, new = Gateway(segment, "a", tmp_path), Gateway(segment, "b", tmp_path)
    old.do("acquired", inner)
    old.do("hush")
    segment.sh("server", f"ping -c 1 -W 5 {inner}")  # there is an entry to be changed
    new.do("acquired", inner)
    for _ in range(1 + 3):
        witness.hear()
    segment.sh("server", f"ip neigh replace {LAST} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    changes: list[str] = []
    while not (change := monitor.hear()).startswith(LAST):
        changes.append(change)
    taken = changes.index(f"{inner} {segment.hardware('b', 'in0')}")
    assert f"{inner} {segment.hardware('a', 'in0')}" not in changes[taken:]


@BOTH
@pytest.mark.usefixtures("server")
def test_a_gateway_that_is_left_delivers_and_claims_nothing(segment: Segment, tmp_path: Path, version: int) -> None:
    inner = INNER[version]
    old = Gateway(segment, "a", tmp_path)
    old.do("acquired", inner)
    caller, witness = call(segment, version), segment.witness()
    old.do("leaving", inner)
    before = segment.count("a", f"tunnel{version}")
    assert caller.ask("delivered") == "delivered"
    assert segment.count("a", f"tunnel{version}") > before
    assert segment.count("a", f"passed{version}") == 0
    new = Gateway(segment, "b", tmp_path)
    new.do("acquired", inner)
    # What is heard from here on are the new gateway's three announcements, none of which the old one takes back.
    for _ in range(3):
        witness.hear()
    assert segment.neighbour(inner) == segment.hardware("b", "in0")
    segment.sh("server", f"ip neigh flush dev eth0; ping -c 1 -W 5 {inner}")
    assert segment.neighbour(inner) == segment.hardware("b", "in0")
    old.do("released", inner)
    old.close()
    new.close()
