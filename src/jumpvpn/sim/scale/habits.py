"""How three kinds of users move: what happens to one session in an hour, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jumpvpn.policy.model import Policy

HOUR_S = 3600.0
_FIRST_S, _LAST_S = 30.0, 3500.0  # what happens is over within the hour that is looked at
_APART_S = 40.0  # one thing after the other: failback takes 30 s


@dataclass(frozen=True, slots=True)
class Habit:
    """Means per session-hour. ``share`` of all sessions; ``hours`` is how long a session lives.

    ``moves`` go to another gateway (a better one, a drained one); the death of gateways comes on top of them.
    """

    name: str
    share: float
    switches: float
    rebindings: float
    moves: float
    hours: float
    policy: Policy

    def happenings(self, dice: random.Random) -> list[tuple[float, str]]:
        """(second of the hour, what): ``switch``, ``rebind`` or ``move``, in order and apart from each other."""
        found: list[tuple[float, str]] = []
        for what, mean in (("switch", self.switches), ("rebind", self.rebindings), ("move", self.moves)):
            found += [(dice.uniform(_FIRST_S, _LAST_S), what) for _ in range(_poisson(mean, dice))]
        spread, last = [], 0.0
        for at, what in sorted(found):
            last = max(at, last + _APART_S)
            if last <= _LAST_S:
                spread.append((last, what))
        return spread


def _poisson(mean: float, dice: random.Random) -> int:
    """How often something happens in an hour, by the gaps between (exponential)."""
    count, at = 0, dice.expovariate(mean) if mean > 0 else 2.0
    while at < 1.0:
        count += 1
        at += dice.expovariate(mean)
    return count


def policy(rekey_after_s: float | None = None) -> Policy:
    """The default policy with Wi-Fi before the mobile network; ``rekey_after_s`` replaces the interval of rekeys."""
    table: dict[str, Any] = {"transports": {"prefer": ["wlan*", "wwan*"]}}
    if rekey_after_s is not None:
        oldest = max(7_200_000, int(rekey_after_s * 1000) * 2)  # policy wants the age limit well above the interval
        table["security"] = {"rekey_after": f"{int(rekey_after_s * 1000)}ms", "key_max_age": f"{oldest}ms"}
    return Policy.model_validate(table)


def habits(rules: Policy, shares: Mapping[str, float] | None = None) -> tuple[Habit, ...]:
    """The three kinds. Shares of all sessions: half desks, 45 % phones, 5 % vehicles, unless ``shares`` says."""
    given = {"desk": 0.50, "phone": 0.45, "vehicle": 0.05, **(shares or {})}
    return (
        Habit("desk", given["desk"], switches=0.1, rebindings=0.5, moves=0.02, hours=9.0, policy=rules),
        Habit("phone", given["phone"], switches=2.0, rebindings=4.0, moves=0.1, hours=20.0, policy=rules),
        Habit("vehicle", given["vehicle"], switches=20.0, rebindings=10.0, moves=1.0, hours=3.0, policy=rules),
    )
