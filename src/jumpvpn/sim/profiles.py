"""Policies that a seed draws: short and long clocks, small and large budgets, ends that come and ends that do not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from jumpvpn.policy.model import Policy

LINKS = ("wlan0", "eth0", "wwan0")

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Profile:
    """What both ends begin with, what a reload may bring, and what holds when everything is healed again."""

    client: Policy
    gateway: Policy
    reloads: tuple[Policy, ...]
    healed: tuple[Policy, Policy]  # client, gateway: the first ones, without denials
    links: tuple[str, ...]

    @property
    def text(self) -> str:
        """The figures that matter most, for a transcript."""
        rules = self.client
        spans = {
            "ttl": rules.session.transport_ttl, "lifetime": rules.session.max_lifetime,
            "episode": rules.recovery.episode_max, "window": rules.recovery.window,
            "volatile": rules.volatility.volatile_max, "rekey": rules.security.rekey_after,
            "key_age": rules.security.key_max_age, "hold_down": rules.switching.hold_down,
        }  # fmt: skip
        words = [f"{name} {span / 1e9:g} s" for name, span in spans.items()]
        words.append(f"attempts {rules.recovery.max_attempts}, {rules.switching.max_per_minute} switches a minute")
        patience = rules.switching.failback
        failback = patience if patience == "never" else f"{patience / 1e9:g} s"
        words.append(f"{rules.volatility.profile} probes, failback {failback}")
        return ", ".join([" ".join(self.links), *words])


def draw(dice: random.Random) -> Profile:
    """One profile."""
    links = LINKS[: dice.choice((1, 2, 2, 3, 3, 3))]
    base = _sections(dice, links)
    other = _merged(base, _limits(dice)) if dice.random() < 0.3 else base
    client, gateway = Policy.model_validate(base), Policy.model_validate(other)
    reloads = tuple(_reload(dice, base, links) for _ in range(3))
    healed = _merged(base, {"transports": {"allow": [], "deny": []}})
    healed_there = _merged(other, {"transports": {"allow": [], "deny": []}})
    return Profile(
        client, gateway, reloads, (Policy.model_validate(healed), Policy.model_validate(healed_there)), links
    )


def _sections(dice: random.Random, links: tuple[str, ...]) -> Sections:
    quick = dice.random() < 0.6
    sections = _quick(dice) if quick else _unhurried(dice)
    ttl = sections["session"]["transport_ttl"]
    episode = dice.choice((ttl, ttl, 2 * ttl, 600_000))
    sections["recovery"]["episode_max"] = max(ttl, episode)
    lasting = dice.random() < 0.75
    lifetime = 86_400_000 if lasting else max(sections["recovery"]["episode_max"], dice.choice((20, 45, 90)) * 1000)
    sections["session"] |= {"max_lifetime": lifetime, "handshake_timeout": dice.choice((2, 10)) * 1000}
    sections["session"]["lifetime_warnings"] = [10_000, 2_000]
    sections["security"] |= _keys(dice)
    sections |= {"transports": _transports(dice, links)}
    sections = _merged(sections, _limits(dice))
    return _written(sections)


def _quick(dice: random.Random) -> Sections:
    return {
        "session": {"transport_ttl": dice.choice((4, 8, 20, 60)) * 1000},
        "volatility": {
            "profile": dice.choice(("fast", "default", "default")), "volatile_max": 1000, "stability_window": 300,
            "stability_window_max": 2000, "silence_ceiling": dice.choice((600, 2000)),
            "latency_p95": dice.choice(("off", "off", 250)), "consecutive_drops": dice.choice((2, 3)),
        },
        "switching": {"hold_down": dice.choice((0, 300, 1000)), "flap_half_life": 5000},
        "recovery": {"window": 2000, "attempt_timeout": dice.choice((300, 700, 1500))},
        "security": {"reattach_max_age": 1500},
    }  # fmt: skip


def _unhurried(dice: random.Random) -> Sections:
    return {
        "session": {"transport_ttl": dice.choice((16, 30, 90, 300)) * 1000},
        "volatility": {"profile": dice.choice(("fast", "default", "default", "battery"))},
        "switching": {"hold_down": 1500},
        "recovery": {"window": 8000, "attempt_timeout": dice.choice((2000, 2000, 5000))},
        "security": {"reattach_max_age": 5000},
    }


def _keys(dice: random.Random) -> dict[str, Any]:
    kind = dice.random()
    if kind < 0.55:
        return {}
    if kind < 0.85:
        return {"rekey_after": dice.choice((5, 8, 15)) * 1000}
    return {"rekey_after": dice.choice((5, 10)) * 1000, "key_max_age": dice.choice((10, 20, 40)) * 1000}


def _limits(dice: random.Random) -> Sections:
    switching = {
        "max_per_minute": dice.choice((1, 2, 4, 8, 30, 60)),
        "failback": dice.choice(("never", 1000, 3000, 30_000)),
    }
    return {"switching": switching, "recovery": {"max_attempts": dice.choice((1, 2, 4, 8, 8, 20))}}


def _transports(dice: random.Random, links: tuple[str, ...]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if dice.random() < 0.6:
        chosen["prefer"] = dice.sample(links, dice.randrange(1, len(links) + 1))
    if dice.random() < 0.15 and len(links) > 1:
        chosen["deny"] = [dice.choice(links)]
    return chosen


def _reload(dice: random.Random, base: Sections, links: tuple[str, ...]) -> Policy:
    """Another valid policy: tighter or looser clocks, other budgets, other transports."""
    other = _sections(dice, links) if dice.random() < 0.4 else _merged(base, _limits(dice))
    if dice.random() < 0.5:
        other = _merged(other, {"transports": {"deny": [dice.choice(links)]}})
    return Policy.model_validate({**other, "version": f"{dice.randrange(2, 9)}.{dice.randrange(10)}"})


def _merged(sections: Sections, more: Sections) -> Sections:
    """``more`` over ``sections``; bare numbers of milliseconds are written as durations."""
    names = [*sections, *(name for name in more if name not in sections)]
    merged = {name: {**sections.get(name, {}), **more.get(name, {})} for name in names}
    return _written(merged)


_COUNTS = frozenset({"consecutive_drops", "max_per_minute", "max_attempts"})


def _written(sections: Sections) -> Sections:
    """Durations as TOML would write them."""
    return {name: {key: _value(key, value) for key, value in section.items()} for name, section in sections.items()}


def _value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_value(key, item) for item in value]
    return f"{value}ms" if isinstance(value, int) and key not in _COUNTS else value
