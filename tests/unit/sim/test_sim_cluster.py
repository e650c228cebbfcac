"""The simulated cluster: it replays, it heals, and it tells what it saw."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jumpvpn.sim.cluster.loop import Process, VirtualLoop
from jumpvpn.sim.cluster.machines import Machine
from jumpvpn.sim.cluster.recovery import settle
from jumpvpn.sim.cluster.run import play
from jumpvpn.sim.cluster.world import ClusterWorld
from jumpvpn.sim.judge import Complaint, journal_judge
from jumpvpn.sim.violation import Violated
from jumpvpn.values import SECOND
from unit.small_cluster import small_cluster


@pytest.fixture
def world() -> Iterator[ClusterWorld]:
    with small_cluster(2, 1000) as made:
        yield made


def _owner(world: ClusterWorld) -> tuple[str, int, str]:
    (known,) = world.checker.known.values()
    return known.stored.owner, known.stored.term, known.stored.state


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_replays_byte_for_byte(seed: int) -> None:
    first, second = (play(seed, tell=True) for _ in range(2))
    assert first.transcript == second.transcript
    assert first.journals == second.journals
    assert len(first.transcript) > 5
    assert play(seed + 1, tell=True).transcript != first.transcript


def test_a_seed_replays_in_other_processes_with_other_hashes() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-m", "jumpvpn.sim.cluster", "--seed", "5", "--trace"],
            env={**os.environ, "PYTHONHASHSEED": hashes}, check=True, capture_output=True,
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    assert printed[0] == printed[1]
    assert printed[0].startswith("\n".join(play(5, tell=True).transcript).encode())


def test_seeds_hold_every_promise() -> None:
    outcomes = [play(seed, journal_judge) for seed in range(40)]
    assert [(o.seed, o.failure) for o in outcomes if o.failure is not None] == []
    assert sum(o.checks["SINGLE_BINDING"] for o in outcomes) > 1000
    assert sum(o.notes["told apart by keys"] for o in outcomes) > 0
    assert {"ATTACHED"} <= {end for o in outcomes for end in o.ends}


def test_a_dead_gateways_session_moves_with_its_client(world: ClusterWorld) -> None:
    assert _owner(world)[:2] == ("gw1", 1)
    world.gateways["gw1"].kill()
    world.run(3)
    assert _owner(world) == ("gw2", 2, "ATTACHED")
    assert world.clients[0].client_plane.home == "gw2"


def test_a_silent_clients_session_is_adopted_and_found_again(world: ClusterWorld) -> None:
    client = world.clients[0]
    world.gateways["gw1"].kill()
    client.interfaces["wlan0"] = False
    client.refresh()
    world.run(6)
    assert _owner(world) == ("gw2", 2, "DEGRADED")
    client.interfaces["wlan0"] = True
    client.refresh()
    assert settle(world, ("gw2",)) < 10


def test_a_paused_gateway_sends_its_one_packet_in_vain(world: ClusterWorld) -> None:
    first = world.gateways["gw1"]
    first.pause()
    assert len(first.recalled) == 1
    world.run(6)
    assert _owner(world)[0] == "gw2"
    first.resume()
    world.run(1)
    assert first.engine.places == {}
    assert world.clients[0].client_plane.home == "gw2"


def test_a_gateway_without_the_store_stops_and_comes_back(world: ClusterWorld) -> None:
    for name in ("gw1", "gw2"):
        world.server.way(name).cut_up = True
    world.run(5)
    assert all(host.plane.fenced and not host.engine.places for host in world.gateways.values())
    for name in ("gw1", "gw2"):
        world.server.way(name).heal()
    assert settle(world, ("gw1", "gw2")) < 10


def test_a_watch_that_is_late_at_first_does_not_keep_a_gateway_out_for_good(world: ClusterWorld) -> None:
    """The lease that is had anew runs out before its beat is seen: another one has to be taken."""
    way = world.server.way("gw1")
    way.watch_delay = 4 * SECOND
    world.run(9)
    assert not world.gateways["gw1"].engine.places
    way.heal()
    world.run(5)
    assert not world.gateways["gw1"].plane.fenced


def test_sessions_that_nobody_ends_are_a_violation_at_the_bound(world: ClusterWorld) -> None:
    for host in world.gateways.values():
        host.wanted = False
        host.kill()
    with pytest.raises(Violated, match="FINITE: expected an end to what no client holds"):
        settle(world, ("gw1",))


def test_what_a_process_scheduled_stops_and_dies_with_it() -> None:
    loop, done = VirtualLoop(0), []
    first, second = Process("first"), Process("second")

    async def work(name: str) -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            done.append((name, loop.now // SECOND))

    for process in (first, second):
        loop.start(process, work(process.name), contextvars.copy_context())
    loop.run(1 * SECOND)
    first.paused, second.dead = True, True
    loop.run(5 * SECOND)
    assert done == [("first", 1), ("second", 1)]
    loop.resume(first)
    loop.run(9 * SECOND)
    assert done[2:] == [("first", 5), ("first", 6)]
    loop.dispose([first, second])


def test_a_drifting_clock_tells_the_true_time_back() -> None:
    machine = Machine("gw1", lambda: 1_000 * SECOND, offset=7 * SECOND, ppm=-500)
    assert machine.boot() == 1_007 * SECOND - SECOND // 2
    assert abs(machine.true(machine.boot()) - 1_000 * SECOND) < 10


def test_what_the_auditor_rejects_is_a_failure_with_its_transcript() -> None:
    outcome = play(4, lambda _lines: [Complaint("CHAIN", "forged")])
    assert outcome.failure is not None
    assert (outcome.failure.prop, outcome.failure.seen) == ("CHAIN", "forged")
    assert outcome.transcript[0].startswith("seed 4: ")
