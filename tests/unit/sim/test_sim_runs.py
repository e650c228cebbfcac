"""Seeds: equal ones give equal bytes, whatever process plays them; healed worlds settle within the stated bound."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest

from jumpvpn.audit.auditor import audit_lines
from jumpvpn.engine.plans import Plans
from jumpvpn.policy.model import Policy
from jumpvpn.session.state import State
from jumpvpn.sim.judge import Complaint, journal_judge
from jumpvpn.sim.recovery import attach_bound, end_bound, owed, prompt_bound, settle
from jumpvpn.sim.run import Run
from jumpvpn.sim.violation import Violated
from jumpvpn.sim.world import World
from jumpvpn.transports.state import Condition
from jumpvpn.values import SECOND


@pytest.mark.parametrize("seed", [3, 17, 42])
def test_a_seed_replays_byte_for_byte(seed: int) -> None:
    first, second = (Run(seed).play(tell=True) for _ in range(2))
    assert first.transcript == second.transcript
    assert first.journals == second.journals
    assert first.rows == second.rows
    assert len(first.transcript) > 5
    assert Run(seed + 1).play(tell=True).transcript != first.transcript


def test_a_seed_replays_in_other_processes_with_other_hashes() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-m", "jumpvpn.sim", "--seed", "42"],
            env={**os.environ, "PYTHONHASHSEED": hashes}, check=True, capture_output=True,
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    here = "\n".join(Run(42).play(tell=True).transcript).encode()
    assert printed[0] == printed[1]
    assert printed[0].startswith(here)


def test_sealing_changes_nothing_that_happens() -> None:
    assert Run(5, sealed=False).play(tell=True).transcript == Run(5).play(tell=True).transcript


def test_both_journals_are_sealed_and_accepted() -> None:
    run = Run(8)
    run.play()
    assert set(run.journals) == {"client", "gateway"}
    for role, letter in (("client", b'"chain":"c:'), ("gateway", b'"chain":"s:')):
        lines = run.journals[role]
        assert any(letter in line for line in lines)
        assert audit_lines(lines).sound
        assert journal_judge(lines) == []


def test_what_the_auditor_rejects_is_a_failure_of_the_seed() -> None:
    def forger(lines: Iterable[bytes]) -> list[Complaint]:
        return journal_judge(line.replace(b'"reason":"probe_timeout"', b'"reason":"operator_switch"') for line in lines)

    failures = [failure for seed in range(6) if (failure := Run(seed).play(forger).failure) is not None]
    assert {failure.prop for failure in failures} == {"CHAIN"}
    assert all(failure.expected == "journals that the auditor accepts" for failure in failures)


def test_the_bound_is_what_policy_and_back_off_add_up_to() -> None:
    rules = Policy()
    # 2 s of silence, twice for death, one probe; 4 s VOLATILE, 8 s RECOVERING, 60 s of patience, 8 s RECOVERING, 1 s
    assert attach_bound(rules, rules) == int((4 + 0.2 + 4 + 8 + 60 + 8 + 1) * SECOND)
    # three idle probes of 5 s, twice, and one more; VOLATILE, RECOVERING, a handshake; the TTL; 1 s
    assert end_bound(rules) == int((30 + 5 + 4 + 8 + 10 + 300 + 1) * SECOND)


def test_a_world_that_works_settles_at_once() -> None:
    world = World().start()
    world.down("wlan0")
    healed = settle(world)
    assert healed.outcome == "ATTACHED"
    assert healed.took <= 0.5


def test_a_world_that_does_not_work_breaks_must_recover_at_the_bound() -> None:
    world = World().start()
    world.blackhole("wlan0", "eth0")
    begin = world.now
    with pytest.raises(Violated, match=r"MUST_RECOVER: expected both ends attached within 26\.7 s"):
        settle(world)
    bound = prompt_bound(Policy(), Policy(), blind=False)
    assert bound < world.now - begin <= bound + SECOND


def test_an_end_by_a_rule_is_no_recovery_where_everything_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never asks would end by its TTL, for a reason that applies: MUST_RECOVER is broken all the same."""
    monkeypatch.setattr(Plans, "_degraded_plan", lambda *_: None)
    world = World(Policy.model_validate({"session": {"transport_ttl": "30s"}})).start()
    world.down("wlan0")
    world.down("eth0")
    world.run(0.5)
    world.up("wlan0")
    world.up("eth0")
    with pytest.raises(Violated, match="MUST_RECOVER: expected both ends attached"):
        settle(world)


def test_nothing_is_owed_without_attempts_budget_or_candidate() -> None:
    world = World().start()
    assert owed(world) == prompt_bound(Policy(), Policy(), blind=False)
    seat = world.client.seat
    assert seat is not None
    life = world.checker.lives[("client", world.uid)]
    assert life.record is not None
    life.record = replace(life.record, attempts=life.record.policy.recovery.max_attempts - 1)
    assert owed(world) is None
    life.record = replace(life.record, attempts=0)
    life.switches = [world.now] * life.record.policy.switching.max_per_minute
    assert owed(world) is None
    life.switches = []
    assert owed(world) is not None
    for transport in list(world.client.transports.values()):
        world.client.book.keep(replace(transport, condition=Condition.GONE))
    assert owed(world) is None


def test_a_client_alone_ends_by_its_ttl() -> None:
    world = World().start()
    world.links[world.id("wlan0")].drop = world.links[world.id("eth0")].drop = lambda kind: kind == "close"
    world.supersede("eth0")
    world.run(0.1)
    assert world.gateway_session is None
    healed = settle(world)
    assert healed.outcome == "TERMINATED"
    assert world.client.session is not None
    assert world.client.session.state is State.TERMINATED


@pytest.mark.parametrize("clocks_first", [True, False])
def test_the_machine_that_sleeps_handles_everything_at_once(clocks_first: bool) -> None:
    world = World().start()
    world.suspend()
    world.down("wlan0")
    world.run(20)
    assert world.states()[0] == "ATTACHED"
    world.resume(clocks_first=clocks_first)
    world.until(lambda: world.active == "eth0" and world.states() == ("ATTACHED", "ATTACHED"), 3)


def test_a_reply_that_is_lost_beyond_the_drain_is_told_by_a_hint() -> None:
    """The gateway granted an epoch of which the client knows nothing: the first probe that gets through finds out."""
    world = World(links=("wlan0",)).start()
    link = world.links[world.id("wlan0")]
    link.drop = lambda kind: kind == "committed"
    world.down("wlan0")
    world.run(0.1)
    world.up("wlan0")
    world.run(3)
    link.drop = lambda kind: kind in ("committed", "request", "hint")
    world.run(12)
    assert world.client.session is not None
    assert world.gateway_session is not None
    assert world.gateway_session.epoch > world.client.session.epoch
    link.calm()
    world.until(lambda: world.active == "wlan0" and world.states() == ("ATTACHED", "ATTACHED"), 2)
