"""What a seed draws before anything happens: how many, whose clocks are off by how much, which lease, which policy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.values import HOUR, SECOND

INTERFACES = ("wlan0", "eth0")
MOST_PPM = 500  # NTP slews a clock by at most that much


@dataclass(frozen=True, slots=True)
class Clock:
    """A gateway's boot clock."""

    name: str
    offset: int
    ppm: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One seed's cluster. ``configured``: the gateways that clients know from their file."""

    clients: int
    clocks: tuple[Clock, ...]
    configured: tuple[str, ...]
    interfaces: tuple[str, ...]
    lease_s: int
    margin_ms: int
    adopt_ms: int
    rules: Policy

    @property
    def text(self) -> str:
        """For a transcript."""
        rules = self.rules
        return (
            f"{self.clients} clients over {' '.join(self.interfaces)}, {len(self.clocks)} gateways "
            f"({' '.join(f'{clock.name} {clock.ppm:+d} ppm' for clock in self.clocks)}), lease {self.lease_s} s, "
            f"margin {self.margin_ms} ms, adopted after {self.adopt_ms / 1000:g} s, "
            f"ttl {rules.session.transport_ttl / SECOND:g} s"
        )


def draw(dice: random.Random) -> Plan:
    """One plan."""
    names = tuple(f"gw{number + 1}" for number in range(dice.choice((2, 2, 3))))
    clocks = tuple(
        Clock(name, dice.randrange(24) * HOUR, dice.choice((0, 0, -MOST_PPM, MOST_PPM))) for name in names
    )  # fmt: skip
    lease = dice.choice((2, 2, 3, 5))
    known = names if dice.random() < 0.7 else names[:1]
    interfaces = INTERFACES[: dice.choice((1, 1, 2))]
    return Plan(
        dice.choice((1, 1, 2, 3)), clocks, known, interfaces, lease, lease * dice.choice((10, 50, 200)),
        dice.choice((1000, 3000, 10_000)), _policy(dice),
    )  # fmt: skip


def _policy(dice: random.Random) -> Policy:
    ttl = dice.choice((12, 20, 40))
    sections: dict[str, dict[str, Any]] = {
        "session": {"transport_ttl": f"{ttl}s", "handshake_timeout": "10s"},
        "volatility": {
            "volatile_max": "1s", "stability_window": "300ms", "stability_window_max": "2s", "silence_ceiling": "600ms",
            "consecutive_drops": 2, "probe_interval": dice.choice(("250ms", "500ms")), "probe_interval_idle": "1s",
        },
        "switching": {"hold_down": "0ms", "max_per_minute": dice.choice((30, 60))},
        "recovery": {
            "window": "2s", "attempt_timeout": dice.choice(("400ms", "700ms")), "episode_max": f"{2 * ttl}s",
            "max_attempts": 20,
        },
        "security": {"reattach_max_age": "1500ms"},
    }  # fmt: skip
    if dice.random() < 0.3:
        sections["security"]["rekey_after"] = dice.choice(("5s", "10s"))
    return Policy.model_validate(sections)
