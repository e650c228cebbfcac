"""MUST_RECOVER under random faults: whatever happened, once the networks work again the session is ATTACHED again."""

from __future__ import annotations

import random
from typing import Any

import pytest
from build import policy
from world import World

from jumpvpn.engine import inputs as inp
from jumpvpn.policy.model import Policy
from jumpvpn.values import MILLISECOND

LINKS = ("wlan0", "eth0", "wwan0")
FAULTS = (
    "down", "up", "blackhole", "heal", "rebind", "slow", "lossy", "stop", "start", "operator", "store", "policy",
    "drop", "wait", "traffic",
)  # fmt: skip
RULES = policy(transports={"prefer": ["eth0"]}, switching={"failback": "5s", "max_per_minute": 30})
OTHER = policy(transports={"prefer": ["wlan0"], "deny": ["wwan0"]}, switching={"failback": "5s", "max_per_minute": 20})


class Chaos:
    """One world and the dice that trouble it."""

    def __init__(self, seed: int, rules: Policy = RULES) -> None:
        self.dice = random.Random(seed)
        self.world = World(rules, links=LINKS)
        self.world.measures = True
        self.world.zero_rtt = self.dice.random() < 0.5
        self.world.gateway_store.delay = self.dice.choice((0, 5, 200)) * MILLISECOND
        self.world.client_store.delay = self.dice.choice((0, 1)) * MILLISECOND
        self.world.start(self.dice.choice(LINKS))
        self.log: list[str] = []

    def trouble(self) -> None:
        """One random fault, then a random pause."""
        world, name = self.world, self.dice.choice(LINKS)
        link = world.links[world.id(name)]
        fault = self.dice.choice(FAULTS)
        self.log.append(f"{world.now / 1e9:.2f} {fault} {name}")
        match fault:
            case "down" | "up" | "blackhole" | "heal":
                getattr(world, fault)(name)
            case "rebind":
                world.rebind(name, f"10.{self.dice.randrange(256)}.9.9:{self.dice.randrange(1024, 65535)}")
            case "slow":
                link.delay = self.dice.choice((5, 40, 300, 900)) * MILLISECOND
            case "lossy":
                link.loss = self.dice.choice((0.0, 0.05, 0.5))
            case "stop" if world.gateway is not None:
                world.stop_gateway()
            case "start" if world.gateway is None:
                world.start_gateway()
            case "operator":
                world.post("client", inp.OperatorSwitch(world.id(name)))
            case "store":
                verdict = self.dice.choice(("committed", "unavailable"))
                world.gateway_store.verdict = lambda _order: verdict
            case "policy":
                world.post("client", inp.PolicyOffered(self.dice.choice((RULES, OTHER))))
            case "drop":
                kind = self.dice.choice(("committed", "challenge", "report", "probe", "request", "hint", "rekey_reply"))
                link.drop = lambda sent: sent == kind
            case "traffic":
                world.traffic = not world.traffic
        world.run(self.dice.choice((0.01, 0.1, 0.5, 2, 4)))

    def calm(self) -> None:
        """Everything works again."""
        world = self.world
        for link in world.links.values():
            link.passes, link.loss, link.delay = True, 0.0, 10 * MILLISECOND
            link.drop = lambda _kind: False
        world.gateway_store.verdict = lambda _order: "committed"
        world.traffic = True
        world.up(*LINKS)
        if world.gateway is None:
            world.start_gateway()


def _settled(world: World) -> bool:
    return world.states() == ("ATTACHED", "ATTACHED") and world.active is not None


def _explain(chaos: Chaos) -> str:
    world = chaos.world
    session = world.client.session
    lines = [*chaos.log, "client:", *world.changes("client")[-12:], "gateway:", *world.changes("gateway")[-12:]]
    known = {t.split("/")[0]: (c.condition.value, c.path, c.needs_epoch) for t, c in world.client.transports.items()}
    return "\n".join([*lines, str(known), f"attempts {session.attempts if session else None}", str(world.states())])


def _ended_by_rule(world: World) -> Any:
    session = world.client.session
    ended = session is not None and session.state.value == "TERMINATED"
    return session.reason if ended and session is not None else None


@pytest.mark.parametrize("seed", range(60))
def test_random_faults_then_calm(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(30):
        chaos.trouble()
    chaos.calm()
    world = chaos.world
    waited = 0.0
    while not _settled(world) and waited < 75 and _ended_by_rule(world) is None:
        world.run(0.5)
        waited += 0.5
    assert _ended_by_rule(world) is None, _explain(chaos)
    assert waited < 75, _explain(chaos)
