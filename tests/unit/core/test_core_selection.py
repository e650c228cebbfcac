"""Selection, hysteresis, hold-down and rate; flap penalties (RFC 2439); liveness limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from build import ETH, LTE, START, WLAN, policy
from hypothesis import given
from hypothesis import strategies as st

from jumpvpn.engine.liveness import INITIAL_SILENCE, liveness_of
from jumpvpn.policy.model import Policy, SwitchingPolicy
from jumpvpn.policy.selection import Budget, Candidate, Choice, Nothing, Refused, Selected, Wish, choose, is_better
from jumpvpn.transports.flap import CEILING_FACTOR, Penalty
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Instant, TransportId, later

FREE = Budget((), None)
URGENT = Wish(urgent=True, incumbent=WLAN)
CALM = Wish(urgent=False, incumbent=WLAN)


def candidate(transport: TransportId, **more: object) -> Candidate:
    facts = {"allowed": True, "usable": True, "validated": True, "rtt_ns": 20 * MILLISECOND, **more}
    return Candidate(transport, **facts)  # type: ignore[arg-type]


def chosen(*candidates: Candidate, wish: Wish = URGENT, budget: Budget = FREE, rules: Policy | None = None) -> Choice:
    return choose(candidates, wish, budget, rules or policy(), START)


def target(choice: Choice) -> TransportId:
    assert isinstance(choice, Selected)
    return choice.transport


# --- ranking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"validated": False, "rank": 0}),
        ({"rank": 0}, {"rank": 1, "loss": 0.0, "rtt_ns": 1}),
        ({"loss": 0.0, "rtt_ns": 90 * MILLISECOND}, {"loss": 0.1, "rtt_ns": MILLISECOND}),
        ({"rtt_ns": 10 * MILLISECOND}, {"rtt_ns": 30 * MILLISECOND, "stable_ns": MINUTE}),
        ({"stable_ns": MINUTE}, {"stable_ns": SECOND}),
        ({}, {}),
    ],
)
def test_ranking_order(better: dict[str, object], worse: dict[str, object]) -> None:
    """Validated, preference, loss, latency, stability, identifier (eth0 before wwan0)."""
    assert target(chosen(candidate(LTE, **worse), candidate(ETH, **better))) == ETH


def test_nothing_refused_and_selected() -> None:
    assert chosen() == Nothing(0)
    assert chosen(candidate(ETH, usable=False), candidate(LTE, tried=True)) == Nothing(2)
    denied = chosen(candidate(ETH, allowed=False))
    assert isinstance(denied, Refused)
    assert denied.rule == "policy_denied"
    assert denied.retry_at is None
    assert target(chosen(candidate(ETH, allowed=False), candidate(LTE))) == LTE


def test_a_wish_for_one_transport_takes_no_other() -> None:
    wish = Wish(urgent=False, incumbent=WLAN, target=LTE)
    assert target(chosen(candidate(ETH), candidate(LTE, rank=9), wish=wish)) == LTE
    assert chosen(candidate(ETH), wish=wish) == Nothing(0)
    leave = Wish(urgent=False, incumbent=WLAN, exclude_incumbent=True)
    assert chosen(candidate(WLAN), wish=leave) == Nothing(0)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_hold_down_delays_wishes_and_untested_ways_but_not_a_validated_escape() -> None:
    held = Budget((START,), later(START, SECOND))
    assert target(chosen(candidate(ETH), wish=URGENT, budget=held)) == ETH
    for wish, way in ((CALM, candidate(ETH)), (URGENT, candidate(ETH, validated=False))):
        refusal = chosen(way, wish=wish, budget=held)
        assert isinstance(refusal, Refused)
        assert (refusal.rule, refusal.retry_at) == ("cooldown_active", START + SECOND)


def test_rate_limit_counts_even_when_urgent_and_frees_with_the_oldest() -> None:
    rules = policy(switching={"max_per_minute": 2})
    full = Budget((Instant(START - 50 * SECOND), Instant(START - 10 * SECOND)), None)
    refusal = chosen(candidate(ETH), budget=full, rules=rules)
    assert isinstance(refusal, Refused)
    assert (refusal.rule, refusal.retry_at) == ("switch_rate_limited", START + 10 * SECOND)
    assert target(choose((candidate(ETH),), URGENT, full, rules, Instant(START + 10 * SECOND))) == ETH
    assert target(chosen(candidate(ETH), candidate(WLAN, rank=5), budget=full, rules=rules)) == WLAN


def test_a_switch_exactly_a_minute_ago_is_forgotten() -> None:
    assert Budget((Instant(START - MINUTE),), None).used(START) == 0
    assert Budget((Instant(START - MINUTE + 1),), None).used(START) == 1


def test_flapping_transports_come_last_and_never_crash_the_choice() -> None:
    calm, wild = candidate(LTE, rank=5), candidate(ETH, suppressed=True, reuse_at=later(START, MINUTE))
    assert target(chosen(calm, wild)) == LTE
    assert target(chosen(wild)) == ETH  # nothing else, and nothing carries the session
    refusal = chosen(wild, wish=CALM)
    assert isinstance(refusal, Refused)
    assert refusal.retry_at == START + MINUTE


def test_flaps_of_a_living_incumbent_do_not_count_against_staying() -> None:
    assert target(chosen(candidate(WLAN, suppressed=True), wish=CALM)) == WLAN
    assert target(chosen(candidate(WLAN, suppressed=True), candidate(ETH, rank=9), wish=URGENT)) == ETH


_flags = st.booleans()
_candidates = st.builds(
    Candidate, st.sampled_from((WLAN, ETH, LTE)), _flags, _flags, _flags, suppressed=_flags, tried=_flags,
    rank=st.integers(0, 2), loss=st.floats(0, 1), rtt_ns=st.integers(0, SECOND),
)  # fmt: skip
_wishes = st.builds(
    Wish, _flags, st.none() | st.sampled_from((WLAN, ETH)), st.none() | st.sampled_from((WLAN, LTE)), _flags
)
_budgets = st.builds(
    Budget, st.lists(st.integers(START - MINUTE, START).map(Instant), max_size=9).map(tuple),
    st.none() | st.integers(START - SECOND, START + SECOND).map(Instant),
)  # fmt: skip


@given(st.lists(_candidates, max_size=4, unique_by=lambda c: c.id), _wishes, _budgets)
def test_every_choice_is_lawful(candidates: list[Candidate], wish: Wish, budget: Budget) -> None:
    rules = policy()
    choice = choose(tuple(candidates), wish, budget, rules, START)
    assert choice == choose(tuple(reversed(candidates)), wish, budget, rules, START)
    if isinstance(choice, Selected):
        picked = next(c for c in candidates if c.id == choice.transport)
        assert picked.allowed
        assert picked.usable
        assert not picked.tried
        assert picked.id == wish.incumbent or budget.used(START) < rules.switching.max_per_minute
        assert wish.target in (None, picked.id)
    elif isinstance(choice, Refused):
        assert choice.retry_at is None or choice.retry_at > START


# --- hysteresis ------------------------------------------------------------------------------------------------------


def test_better_means_beyond_the_hysteresis() -> None:
    here = candidate(WLAN, rtt_ns=22 * MILLISECOND)
    assert not is_better(candidate(ETH, rtt_ns=20 * MILLISECOND), here, policy())
    assert is_better(candidate(ETH, rtt_ns=19 * MILLISECOND), here, policy())
    assert is_better(candidate(ETH, rtt_ns=30 * MILLISECOND), replace(here, loss=0.2), policy())
    assert is_better(candidate(ETH, rtt_ns=SECOND), replace(here, usable=False), policy())
    assert not is_better(candidate(ETH, validated=False), replace(here, usable=False), policy())


def test_an_unmeasured_latency_is_no_advantage() -> None:
    assert not is_better(candidate(ETH, rtt_ns=0), candidate(WLAN), policy())
    assert not is_better(candidate(ETH), candidate(WLAN, rtt_ns=0), policy())


# --- flap penalties --------------------------------------------------------------------------------------------------

RULES = SwitchingPolicy()


def test_penalty_halves_each_half_life() -> None:
    once = Penalty().flapped(START, RULES)
    assert once.value(START, RULES) == 1000
    assert once.value(later(START, RULES.flap_half_life), RULES) == pytest.approx(500)
    assert once.value(later(START, 2 * RULES.flap_half_life), RULES) == pytest.approx(250)
    assert not once.is_suppressed(START, RULES)


def test_suppression_begins_at_the_cutoff_and_ends_below_reuse() -> None:
    thrice = Penalty().flapped(START, RULES).flapped(START, RULES).flapped(START, RULES)
    assert thrice.is_suppressed(START, RULES)
    end = thrice.reuse_at(RULES)
    assert end is not None
    assert thrice.is_suppressed(Instant(end - MILLISECOND), RULES)
    assert not thrice.is_suppressed(end, RULES)
    assert (end - START) / RULES.flap_half_life == pytest.approx(1.585, abs=0.001)  # log2(3000 / 1000)


def test_two_thirds_of_the_cutoff_never_suppress() -> None:
    spaced = (
        Penalty().flapped(START, RULES).flapped(later(START, MINUTE), RULES).flapped(later(START, 2 * MINUTE), RULES)
    )
    assert not spaced.is_suppressed(later(START, 2 * MINUTE), RULES)
    assert spaced.reuse_at(RULES) is None


def test_a_ceiling_bounds_the_longest_suppression() -> None:
    wild = Penalty()
    for _ in range(1000):
        wild = wild.flapped(START, RULES)
    assert wild.points == CEILING_FACTOR * RULES.flap_suppress


@given(
    st.lists(st.integers(0, 100 * SECOND), min_size=1, max_size=12), st.integers(1, 5000), st.integers(1, 5000),
    st.integers(1, 3600), st.integers(0, 5000),
)  # fmt: skip
def test_reuse_is_never_early_and_never_late(
    gaps: list[int], suppress: int, reuse: int, half: int, points: int
) -> None:
    rules = RULES.model_copy(
        update={
            "flap_suppress": max(suppress, reuse), "flap_reuse": min(suppress, reuse), "flap_half_life": half * SECOND,
            "flap_penalty": points,
        }
    )  # fmt: skip
    penalty, now = Penalty(), START
    for gap in gaps:
        now = later(now, gap)
        penalty = penalty.flapped(now, rules)
    end = penalty.reuse_at(rules)
    assert (end is not None) == penalty.is_suppressed(now, rules)
    if end is not None:
        assert not penalty.is_suppressed(end, rules)
        assert penalty.is_suppressed(Instant(max(now, end - MILLISECOND)), rules)


# --- liveness limits -------------------------------------------------------------------------------------------------


def test_silence_limits_follow_the_formula() -> None:
    rules = policy()
    assert liveness_of(rules, 0, 0).silence_busy == INITIAL_SILENCE
    assert liveness_of(rules, 10 * MILLISECOND, MILLISECOND).silence_busy == 100 * MILLISECOND  # floor
    assert liveness_of(rules, 100 * MILLISECOND, 5 * MILLISECOND).silence_busy == 270 * MILLISECOND
    assert liveness_of(rules, 5 * SECOND, SECOND).silence_busy == 2 * SECOND  # ceiling
    assert liveness_of(rules, 0, 0).silence_idle == 15 * SECOND


def test_small_changes_of_a_limit_are_not_worth_an_order() -> None:
    rules = policy()
    here = liveness_of(rules, 100 * MILLISECOND, 5 * MILLISECOND)
    assert here.close_to(liveness_of(rules, 101 * MILLISECOND, 5 * MILLISECOND), 5 * MILLISECOND)
    assert not here.close_to(liveness_of(rules, 110 * MILLISECOND, 5 * MILLISECOND), 5 * MILLISECOND)
    other = liveness_of(policy(volatility={"profile": "fast"}), 100 * MILLISECOND, 5 * MILLISECOND)
    assert not here.close_to(other, SECOND)
