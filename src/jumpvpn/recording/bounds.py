"""What a policy comes to, in words: how soon trouble is noticed, how long recovery may take, when a session ends."""

from __future__ import annotations

from collections.abc import Iterator

from jumpvpn.policy.model import Policy
from jumpvpn.policy.units import format_duration as shown


def bounds_in_words(policy: Policy) -> Iterator[tuple[str, str]]:
    """(what, bound) in the order in which an incident meets them."""
    yield from _detection(policy)
    yield from _recovery(policy)
    yield from _switching(policy)
    yield from _life(policy)


def _detection(policy: Policy) -> Iterator[tuple[str, str]]:
    rules = policy.volatility
    idle = rules.silence_limit_idle()
    yield "silent while data flows after", rules.silence_formula()
    yield "silent while idle after", f"{rules.consecutive_drops} x {shown(rules.probe_interval_idle)} = {shown(idle)}"
    busy_dead, idle_dead = rules.dead_factor * rules.silence_ceiling, rules.dead_factor * idle
    yield (
        "a dead transport is noticed",
        (
            f"at the latest {shown(rules.silence_ceiling)} (dead: {shown(busy_dead)}) after the first unreported send "
            f"while data flows; idle: {shown(idle)} (dead: {shown(idle_dead)}) after the probe, of which one "
            f"leaves every {shown(rules.probe_interval_idle)}"
        ),
    )
    yield "loss counts as instability above", f"{rules.loss_threshold:.0%} in {shown(rules.loss_window)}"
    limit = rules.latency_p95
    yield "latency counts as instability", "never" if limit == "off" else f"above {shown(limit)} (95 %)"


def _recovery(policy: Policy) -> Iterator[tuple[str, str]]:
    rules, recovery = policy.volatility, policy.recovery
    yield "VOLATILE lasts at most", shown(rules.volatile_max)
    yield "one attempt lasts at most", shown(min(recovery.attempt_timeout, recovery.window))
    yield "RECOVERING lasts at most", shown(recovery.window)
    worst = rules.silence_ceiling + rules.volatile_max + recovery.window
    yield (
        "ATTACHED again or DEGRADED within",
        (
            f"{shown(rules.silence_ceiling)} + {shown(rules.volatile_max)} + {shown(recovery.window)} = {shown(worst)} "
            "after data stopped passing"
        ),
    )
    yield "attempts in an episode", f"at most {recovery.max_attempts}"
    yield "an episode lasts at most", shown(recovery.episode_max)
    yield "sent again after a switch", f"up to {recovery.replay_buffer} bytes of the last {shown(recovery.replay_time)}"


def _switching(policy: Policy) -> Iterator[tuple[str, str]]:
    rules = policy.switching
    failback = "never" if rules.failback == "never" else f"after {shown(rules.failback)} of stability"
    yield "switches", f"at most {rules.max_per_minute} in any 60 s"
    yield (
        "quiet time after a switch",
        f"{shown(rules.hold_down)}; it never delays leaving a dead transport for a proved one",
    )
    yield "return to a preferred transport", failback
    yield (
        "a transport that flaps is held back",
        (
            f"from {rules.flap_suppress} points down to {rules.flap_reuse}, {rules.flap_penalty} per flap, halved "
            f"every {shown(rules.flap_half_life)}"
        ),
    )


def _life(policy: Policy) -> Iterator[tuple[str, str]]:
    session, security = policy.session, policy.security
    yield "a session without transport ends", f"after {shown(session.transport_ttl)}"
    yield "a session ends", f"after {shown(session.max_lifetime)}"
    yield "keys are renewed and expire", f"after {shown(security.rekey_after)}, after {shown(security.key_max_age)}"
    yield "a handshake may take", shown(session.handshake_timeout)
    yield "addresses in events", policy.observability.address_mode
