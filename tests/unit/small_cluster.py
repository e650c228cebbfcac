"""The smallest simulated cluster in which a session can move: one client, attached to the first of two gateways."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from jumpvpn.sim.cluster import profiles
from jumpvpn.sim.cluster.machines import replaced
from jumpvpn.sim.cluster.world import ClusterWorld


@contextmanager
def small_cluster(lease_seconds: int, adopt_after_ms: int) -> Iterator[ClusterWorld]:
    """It has run for a second; ``adopt_after_ms`` after its end a gateway's sessions are adopted by the other."""
    plan = profiles.Plan(
        1, tuple(profiles.Clock(name, 0, 0) for name in ("gw1", "gw2")), ("gw1", "gw2"), ("wlan0",), lease_seconds,
        100, adopt_after_ms, profiles.draw(random.Random(2)).rules,
    )  # fmt: skip
    with replaced(random.Random(1)):
        made = ClusterWorld(plan, random.Random(1))
        made.begin()
        made.run(1)
        yield made
        made.close()
