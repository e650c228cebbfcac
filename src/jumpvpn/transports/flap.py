"""Flap penalty per transport: the arithmetic of RFC 2439 (fixed penalty, exponential decay, suppress and reuse)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from jumpvpn.policy.model import SwitchingPolicy
from jumpvpn.values import MICROSECOND, Instant, later

ROUNDING = MICROSECOND  # beyond what floating point may be off by in the longest half-life: never early
CEILING_FACTOR = 4  # RFC 2439 section 4.2: a ceiling bounds how long one bad hour suppresses


@dataclass(frozen=True, slots=True)
class Penalty:
    """Points at an instant; ``suppressed`` holds until the points decay below ``flap_reuse``."""

    points: float = 0.0
    at: Instant = Instant(0)
    suppressed: bool = False

    def value(self, now: Instant, policy: SwitchingPolicy) -> float:
        """Points (>= 0) after decay until ``now``."""
        return float(self.points * 0.5 ** ((now - self.at) / policy.flap_half_life)) if self.points else 0.0

    def flapped(self, now: Instant, policy: SwitchingPolicy) -> Penalty:
        """One more flap."""
        ceiling = CEILING_FACTOR * policy.flap_suppress
        points = min(self.value(now, policy) + policy.flap_penalty, ceiling)
        return Penalty(points, now, self.is_suppressed(now, policy) or points >= policy.flap_suppress)

    def is_suppressed(self, now: Instant, policy: SwitchingPolicy) -> bool:
        """Whether the transport is held back at ``now``."""
        return self.suppressed and self.value(now, policy) >= policy.flap_reuse

    def reuse_at(self, policy: SwitchingPolicy) -> Instant | None:
        """When suppression ends, or None if not suppressed."""
        if not self.suppressed or self.points < policy.flap_reuse:
            return None
        halvings = log2(self.points / policy.flap_reuse)
        return later(self.at, int(halvings * policy.flap_half_life) + ROUNDING)
