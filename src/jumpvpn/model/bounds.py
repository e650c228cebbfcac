"""How large the explored world is: small integer clocks (1 tick = 1 s) in valid policies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.values import SECOND, Instant, TransportId

NOW = Instant(
    1_000_000 * SECOND
)  # every explored session is seen at this moment: its instants are moved, not the clock
TICK = SECOND

A, B = TransportId("a0/udp/gw"), TransportId("b0/udp/gw")
TRANSPORTS = (A, B)
PEERS = ("192.0.2.1:1001", "192.0.2.1:1002")
SHORT = {A: "A", B: "B"}  # in labels


@dataclass(frozen=True, slots=True)
class Bounds:
    """The clocks of the base policy (s), its counts, and the cap on worlds (the cap reached is a failure)."""

    name: str
    transport_ttl: int
    episode_max: int
    volatile_max: int
    window: int
    hold_down: int
    max_attempts: int
    max_switches: int
    max_worlds: int

    def base(self) -> Policy:
        """The policy of birth."""
        return _policy("1.0", self, {})

    def tight(self) -> Policy:
        """A stricter one: smaller bounds where the relations allow, and the second transport is denied."""
        window = max(1, self.window - 1)
        ttl = max(self.volatile_max + self.hold_down + window, self.transport_ttl - 1)
        smaller = replace(
            self, window=window, transport_ttl=ttl, episode_max=max(ttl, self.episode_max - 1),
            max_attempts=max(1, self.max_attempts - 1), max_switches=max(1, self.max_switches - 1),
        )  # fmt: skip
        return _policy("1.1", smaller, {"deny": ["b0"]})

    def loose(self) -> Policy:
        """A more generous one in everything that a deadline depends on, probed but not explored from."""
        larger = replace(
            self, transport_ttl=self.transport_ttl + 2, episode_max=self.episode_max + 2,
            volatile_max=self.volatile_max + 1, window=self.window + 1, max_attempts=self.max_attempts + 1,
            max_switches=self.max_switches + 1,
        )  # fmt: skip
        return _policy("1.2", larger, {}, lifetime="2h", key_age="2h")


# A world costs about 2.5 kB: each cap is a few times what the bounds give, and keeps a faulty machine within memory.
TINY = Bounds("tiny", 3, 4, 1, 1, 1, 2, 1, max_worlds=60_000)
SMALL = Bounds("small", 4, 4, 1, 2, 1, 2, 1, max_worlds=120_000)
NORMAL = Bounds("normal", 5, 6, 1, 2, 1, 3, 2, max_worlds=300_000)
DEEP = Bounds("deep", 5, 8, 1, 2, 1, 4, 3, max_worlds=1_000_000)


class _Shown(Policy):
    """A policy that works out its digest, which every reload shows, only once."""

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form."""
        known = _DIGESTS.get(id(self))
        if known is None:
            known = _DIGESTS[id(self)] = (self, super().digest())
        return known[1]


_DIGESTS: dict[int, tuple[Policy, str]] = {}  # the policy is kept beside its digest, so that its identity stays its own


def _policy(
    version: str, bounds: Bounds, transports: dict[str, Any], lifetime: str = "1h", key_age: str = "1h"
) -> Policy:
    return _Shown.model_validate(
        {
            "version": version,
            "session": {
                "max_lifetime": lifetime, "transport_ttl": bounds.transport_ttl, "handshake_timeout": 2,
                "lifetime_warnings": ["10min", "2min"],
            },
            "volatility": {"volatile_max": bounds.volatile_max, "stability_window": min(1, bounds.volatile_max)},
            "switching": {
                "max_per_minute": bounds.max_switches, "hold_down": bounds.hold_down, "failback": "never",
            },
            "recovery": {
                "window": bounds.window, "attempt_timeout": 1, "max_attempts": bounds.max_attempts,
                "episode_max": bounds.episode_max,
            },
            "security": {"reattach_max_age": 1, "key_max_age": key_age},
            "transports": transports,
        }
    )  # fmt: skip
