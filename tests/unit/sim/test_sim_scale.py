"""Populations: the sample is the shipped engines', equal seeds give equal figures, and the sums are right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from jumpvpn.sim.scale import costs as prices
from jumpvpn.sim.scale import load as loads
from jumpvpn.sim.scale import shards, storm
from jumpvpn.sim.scale.__main__ import main
from jumpvpn.sim.scale.habits import Habit, habits, policy
from jumpvpn.sim.scale.picture import Curve, picture
from jumpvpn.sim.scale.sample import BIRTH, CAUSES, END, OWNER, REBIND, REKEY, SWITCH, Deed, live

ETCD = prices.Etcd(1, writes_per_s=1000.0, flushed_per_s=4000.0, latency_p50_ms=2.0, latency_p99_ms=9.0, fanout_us=10.0)
GATEWAY = prices.GatewayCosts(
    commit_us=500.0, takeover_us=1000.0, birth_us=2000.0, rekey_us=400.0, watch_event_us=20.0, session_bytes=16_384,
    known_bytes=400,
)  # fmt: skip
COSTS = prices.Costs("a machine of this test", ETCD, GATEWAY)


def still(rekey_s: float = 120.0, **changes: float) -> Habit:
    """A user to whom nothing happens but what ``changes`` says (per hour)."""
    rates = {"switches": 0.0, "rebindings": 0.0, "moves": 0.0, "hours": 1.0, **changes}
    return Habit("test", 1.0, policy=policy(rekey_s), **rates)


def test_an_hour_of_nothing_is_birth_rekeys_and_end() -> None:
    deeds = live(still(), 1)
    assert [deed.cause for deed in deeds] == [BIRTH, BIRTH, *([REKEY] * 30), END]
    assert all(deed.shared for deed in deeds)
    assert all(deed.record_bytes > 100 and deed.line_bytes > 100 for deed in deeds)


def test_rekeys_come_as_often_as_policy_says() -> None:
    assert sum(deed.cause == REKEY for deed in live(still(600.0), 1)) == 6


def test_moves_are_shared_and_switches_are_not() -> None:
    deeds = live(still(3600.0, switches=6.0, moves=6.0, rebindings=6.0), 3)
    shared = {deed.cause for deed in deeds if deed.shared}
    local = {deed.cause for deed in deeds if not deed.shared}
    assert OWNER in shared
    assert {SWITCH, REBIND} <= local
    assert not {SWITCH, REBIND} & shared


def test_a_seed_decides_everything() -> None:
    habit = habits(policy())[2]
    assert live(habit, 5) == live(habit, 5)
    assert live(habit, 5) != live(habit, 6)


def test_local_commits_ride_with_what_follows_within_a_second() -> None:
    deeds = [
        Deed(1.0, SWITCH, False, 2, 100, 500),
        Deed(1.5, SWITCH, False, 2, 100, 500),
        Deed(9.0, OWNER, True, 1, 100, 500),
    ]
    found = loads._hour(deeds)
    assert (found[SWITCH].commits, found[SWITCH].writes, found[SWITCH].shared) == (2.0, 1.0, 0.0)
    assert (found[OWNER].commits, found[OWNER].writes, found[OWNER].shared) == (1.0, 1.0, 1.0)
    assert found[SWITCH].bytes == 200 + 500 + loads.SEALED_BYTES + loads.KEYS_BYTES


def test_what_happens_once_in_a_life_is_spread_over_its_hours() -> None:
    short = loads.sampled(still(hours=1.0), 1, 1)
    long = loads.sampled(still(hours=10.0), 1, 1)
    assert short.causes[BIRTH].writes == pytest.approx(10 * long.causes[BIRTH].writes)
    assert short.causes[REKEY] == long.causes[REKEY]


def average(rekey_s: float = 120.0) -> tuple[dict[str, loads.Cause], float]:
    kinds = (still(rekey_s),)
    causes, record = loads.mean([loads.sampled(kinds[0], 1, 1)], kinds)
    return dict(causes), record


def test_load_grows_with_sessions_and_is_shared_by_gateways() -> None:
    causes, record = average()
    one, ten = (loads.load(causes, record, sessions, 10, COSTS) for sessions in (10_000, 100_000))
    assert ten.writes == pytest.approx(10 * one.writes)
    assert ten.etcd_bytes == pytest.approx(10 * one.etcd_bytes)
    spread = loads.load(causes, record, 100_000, 20, COSTS)
    assert spread.core < ten.core
    assert spread.watch_events > ten.watch_events  # every gateway is told of every write, and of each one's beats
    assert set(ten.by_cause) == set(CAUSES)


def test_a_shard_is_the_largest_that_keeps_its_limits() -> None:
    causes, record = average()
    shard = shards.largest(causes, record, COSTS)
    assert shard.sessions == shard.limits[shard.binding] == min(shard.limits.values())
    more = loads.load(causes, record, shard.sessions + shard.per_gateway, shard.gateways + 1, COSTS)
    broken = (
        more.etcd_busy > shards.BUSY,
        more.etcd_bytes > shards.QUOTA * ETCD.quota_bytes,
        more.core > shards.CORE,
    )
    assert any(broken)


def test_fewer_rekeys_and_a_shorter_history_let_one_etcd_bear_more() -> None:
    brief = msgspec.structs.replace(COSTS, etcd=msgspec.structs.replace(ETCD, retention_s=300.0))
    often, seldom = average(120.0), average(3600.0)
    assert shards.largest(*often, COSTS).sessions < shards.largest(*often, brief).sessions
    assert shards.largest(*often, brief).sessions < shards.largest(*seldom, brief).sessions


def test_a_storm_ends_when_its_narrow_place_is_through() -> None:
    told = storm.takeover(4_000, 1, COSTS, detect_s=0.0, share=1.0)
    assert told.last_s == pytest.approx(4_000 * GATEWAY.takeover_us / 1e6, abs=0.05)
    assert [share for _, share in told.curve] == [percent / 100 for percent in range(1, 101)]
    assert list(told.curve) == sorted(told.curve)
    many = storm.takeover(4_000, 100, COSTS, detect_s=0.0, share=1.0)
    assert many.last_s == pytest.approx(4_000 / ETCD.writes_per_s, abs=0.05)  # etcd, shared by all of them


def test_a_storm_waits_for_the_clients_to_notice() -> None:
    told = storm.takeover(100, 10, COSTS, detect_s=3.0)
    assert told.last_s == pytest.approx(3.0, abs=0.1)


def test_a_storm_that_takes_too_long_is_told_as_not_over() -> None:
    slow = msgspec.structs.replace(COSTS, etcd=msgspec.structs.replace(ETCD, writes_per_s=0.001))
    told = storm.takeover(1_000, 2, slow, detect_s=0.0)
    assert told.last_s is None


def test_sessions_per_gateway_that_are_back_in_time() -> None:
    most = shards.per_gateway(COSTS, 10)
    assert storm.takeover(most, 9, COSTS).last_s <= 5.0
    assert storm.takeover(most + 100, 9, COSTS).last_s > 5.0


def test_the_command_prints_equal_json_for_equal_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--json", "--sample", "1", "--sessions", "1000", "--rekey", "600", "--output", str(tmp_path)]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert main(argv) == 0
    assert capsys.readouterr().out == first == (tmp_path / "scale.json").read_text(encoding="utf-8")
    row = json.loads(first)["populations"][0]["rows"][0]
    assert (row["sessions"], row["etcd_clusters"], row["gateways"]) == (1000, 1, 2)
    assert (tmp_path / "storms.svg").read_text(encoding="utf-8").startswith("<svg")


def test_the_text_names_the_narrow_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sample", "1", "--sessions", "1000", "--rekey", "600", "--retention", "600"]) == 0
    said = capsys.readouterr().out
    assert "the narrow place is" in said
    assert "all back within 5 s up to" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sample", "0"], "--sample must be at least 1"),
        (["--per-gateway", "0"], "--per-gateway must be at least 1"),
        (["--sessions", "0"], "--sessions must be at least 1"),
        (["--rekey", "1"], "--rekey must be from 5 to 86400"),
        (["--retention", "1"], "--retention must be from 60"),
        (["--back-within", "0.5"], "--back-within must be more than --detect"),
        (["--costs", "/nowhere/costs.json"], "cannot read /nowhere/costs.json"),
    ],
)
def test_wrong_arguments_are_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("body", ["", "{}", '{"machine": 1}', '{"machine": "x", "etcd": {}, "gateway": {}, "more": 1}'])
def test_files_that_are_no_costs_are_refused(body: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(body, encoding="utf-8")
    with pytest.raises(prices.BadCosts, match="scale_store"):
        prices.read(tmp_path / "costs.json")


def test_costs_are_above_zero(tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(COSTS, gateway=msgspec.structs.replace(GATEWAY, takeover_us=0.0))
    (tmp_path / "costs.json").write_bytes(msgspec.json.encode(wrong))
    with pytest.raises(prices.BadCosts, match="above 0"):
        prices.read(tmp_path / "costs.json")


def test_a_picture_ends_where_the_last_one_came_back() -> None:
    drawn = picture("a <title> & more", [Curve("all", [10.0, 200.0, 2_500.0], 3), Curve("none", [], 3)], 5_000.0)
    assert drawn.startswith("<svg")
    assert "3 of 3 back, the last after 2.50 s" in drawn
    assert "0 of 3 back" in drawn
    assert "a &lt;title> &amp; more" in drawn
