"""The policy: defaults as designed, all mistakes at once, canonical form and digest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.policy.model import Policy, load_policy
from jumpvpn.policy.problems import Rejected
from jumpvpn.policy.units import format_duration, format_size, parse_duration, parse_size
from jumpvpn.values import HOUR, MILLISECOND, SECOND


def test_defaults_are_those_of_the_design() -> None:
    policy = Policy()
    assert policy.session.max_lifetime == 24 * HOUR
    assert policy.session.transport_ttl == 300 * SECOND
    assert (policy.volatility.probe_interval, policy.volatility.probe_interval_idle) == (200 * MILLISECOND, 5 * SECOND)
    assert (policy.volatility.loss_window, policy.volatility.loss_threshold) == (2 * SECOND, 0.20)
    assert (policy.volatility.consecutive_drops, policy.volatility.latency_p95) == (3, "off")
    assert (policy.volatility.volatile_max, policy.volatility.stability_window) == (4 * SECOND, 2 * SECOND)
    assert policy.volatility.stability_window_max == 30 * SECOND
    assert (policy.switching.max_per_minute, policy.switching.hold_down) == (8, 1500 * MILLISECOND)
    assert (policy.switching.hysteresis, policy.switching.failback) == (1.10, 30 * SECOND)
    assert (policy.switching.flap_penalty, policy.switching.flap_suppress, policy.switching.flap_reuse) == (
        1000,
        3000,
        1000,
    )
    assert (policy.recovery.window, policy.recovery.max_attempts) == (8 * SECOND, 8)
    assert (policy.recovery.episode_max, policy.recovery.replay_buffer) == (600 * SECOND, 1 << 20)
    assert (policy.recovery.replay_time, policy.recovery.duplicate) == (500 * MILLISECOND, False)
    assert (policy.security.rekey_after, policy.security.key_max_age) == (120 * SECOND, 2 * HOUR)
    assert (policy.security.reattach_max_age, policy.security.replay_window) == (5 * SECOND, 8192)


@pytest.mark.parametrize(
    ("profile", "busy", "idle"),
    [("fast", 50 * MILLISECOND, SECOND), ("default", 200 * MILLISECOND, 5 * SECOND), ("battery", SECOND, 25 * SECOND)],
)
def test_profile_sets_both_probe_intervals_unless_they_are_written(profile: str, busy: int, idle: int) -> None:
    volatility = load_policy({"volatility": {"profile": profile}}).volatility
    assert (volatility.probe_interval, volatility.probe_interval_idle) == (busy, idle)
    written = load_policy({"volatility": {"profile": profile, "probe_interval": "70ms"}}).volatility
    assert (written.probe_interval, written.probe_interval_idle) == (70 * MILLISECOND, idle)


def test_every_mistake_is_reported_at_once_with_key_value_and_bound() -> None:
    with pytest.raises(Rejected) as caught:
        load_policy(
            {
                "session": {"transport_ttl": "5s", "max_lifetime": "x"},
                "volatility": {"loss_threshold": 3.0},
                "switching": {"failback": "ever", "flap_reuse": 5000},
                "transports": {"allow": ["bad:x"]},
                "foo": 1,
            }
        )
    told = {problem.key: str(problem) for problem in caught.value.problems}
    assert set(told) == {
        "session.max_lifetime",
        "session.transport_ttl",
        "volatility.loss_threshold",
        "switching.failback",
        "switching.flap_suppress",
        "transports.allow[0]",
        "foo",
    }
    assert "5s" in told["session.transport_ttl"]
    assert "13.5s" in told["session.transport_ttl"]
    assert "at most 1.0" in told["volatility.loss_threshold"]
    assert '"never"' in told["switching.failback"]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"session": {"transport_ttl": "13s"}}, "session.transport_ttl"),
        ({"session": {"transport_ttl": "11min"}}, "recovery.episode_max"),
        ({"session": {"max_lifetime": "5min"}}, "session.max_lifetime"),
        ({"volatility": {"stability_window": "5s"}}, "volatility.volatile_max"),
        ({"security": {"reattach_max_age": "9s"}}, "recovery.window"),
        ({"volatility": {"silence_ceiling": "50ms"}}, "volatility.silence_ceiling"),
        ({"volatility": {"probe_interval": "6s"}}, "volatility.probe_interval_idle"),
        ({"security": {"key_max_age": "60s"}}, "security.key_max_age"),
    ],
)
def test_each_relation_is_checked(table: dict[str, dict[str, str]], key: str) -> None:
    with pytest.raises(Rejected) as caught:
        load_policy(table)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    "table",
    [
        {"security": {"replay_window": 0}},
        {"volatility": {"consecutive_drops": 1}},
        {"recovery": {"duplicate": True}},
        {"switching": {"max_per_minute": 0}},
        {"recovery": {"max_attempts": 0}},
        {"session": {"max_lifetime": "40d"}},
    ],
)
def test_a_policy_cannot_switch_off_a_bound(table: dict[str, dict[str, object]]) -> None:
    with pytest.raises(Rejected):
        load_policy(table)


def test_digest_names_the_content_and_survives_the_round_trip() -> None:
    policy = load_policy({"switching": {"failback": "never"}, "transports": {"tags": {"wwan*": ["metered"]}}})
    assert Policy.from_body(policy.body()).digest() == policy.digest()
    assert policy.digest() != Policy().digest()
    assert load_policy({"session": {"transport_ttl": 300}}).digest() == Policy().digest()


def test_selectors_allow_deny_prefer_and_tag() -> None:
    transports = load_policy(
        {
            "transports": {
                "deny": ["tag:metered"],
                "prefer": ["eth*", "gateway:gw-eu*"],
                "tags": {"wwan*": ["metered"]},
            }
        }
    ).transports
    assert not transports.allows("wwan0", "udp", "gw1")
    assert transports.allows("wlan0", "udp", "gw1")
    assert [transports.rank(i, "udp", g) for i, g in (("eth1", "x"), ("wlan0", "gw-eu1"), ("wlan0", "x"))] == [0, 1, 2]


def test_silence_limit_follows_the_formula_between_floor_and_ceiling() -> None:
    volatility = Policy().volatility
    assert volatility.silence_limit_busy(10 * MILLISECOND, MILLISECOND) == 100 * MILLISECOND
    assert volatility.silence_limit_busy(100 * MILLISECOND, 5 * MILLISECOND) == 270 * MILLISECOND
    assert volatility.silence_limit_busy(5 * SECOND, 0) == 2 * SECOND
    assert volatility.silence_limit_idle() == 15 * SECOND


def test_stability_is_asked_for_longer_each_time() -> None:
    volatility = Policy().volatility
    assert [volatility.stability_after(entries) // SECOND for entries in (0, 1, 2, 3, 4, 5, 9999)] == [
        2,
        2,
        4,
        8,
        16,
        30,
        30,
    ]


@given(st.integers(min_value=0, max_value=100 * 24 * HOUR))
def test_durations_round_trip_exactly(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@given(st.integers(min_value=0, max_value=1 << 40))
def test_sizes_round_trip_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "5 parsecs", "-1s", "1e3s", "ms", True, None, [], "101d", "inf"])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)
