"""What tests wait for in a world with both engines."""

from __future__ import annotations

from jumpvpn.sim.world import World


def back(world: World, seconds: float) -> float:
    """Let time pass until both ends are attached over a transport that works; fails after ``seconds``.

    Returns how long it took.
    """
    world.run(0)
    return world.until(lambda: world.active is not None and world.states() == ("ATTACHED", "ATTACHED"), seconds)
