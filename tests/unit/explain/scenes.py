"""Incidents in the simulated world, and what ``explain`` says of them from a node, or from its log alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outlook
from jumpvpn.explain import text
from jumpvpn.explain.explanation import Explanation, Source, explain, unborn
from jumpvpn.explain.history import Collector, History, Wanted
from jumpvpn.policy.model import Policy
from jumpvpn.sim.world import WALL_MS, World
from jumpvpn.values import MILLISECOND, SECOND

WIDTH = 100


def rules(**sections: dict[str, Any]) -> Policy:
    """The default policy with these keys replaced, as TOML would write them."""
    return Policy.model_validate(sections)


def began(policy: Policy | None = None, links: tuple[str, ...] = ("wlan0", "eth0"), **more: Any) -> World:
    """Both ends ATTACHED on the first link, with journals."""
    world = World(policy, links=links, journals=True, **more)
    return world.start(links[0])


def clock(time_ms: int) -> str:
    """The time of day, UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, tz=UTC):%H:%M:%S}.{time_ms % 1000:03d}"


def to(world: World, at_ns: int) -> None:
    """Let time pass until exactly ``at_ns``."""
    world.run(Fraction(at_ns - world.now, SECOND))  # type: ignore[arg-type]
    assert world.now == at_ns


def facts(world: World, side: str = "client") -> dict[str, Any]:
    """The session's outlook at one end."""
    now = world.clock_of(side).boot
    assert world.gateway is not None or side == "client"
    told = (
        outlook.of_client(world.client, "", now)
        if side == "client"
        else outlook.of_gateway(world.gateway, world.uid, now)  # type: ignore[arg-type]
    )
    assert told["session"] is not None
    return dict(told["session"])


def history(world: World, side: str = "client", **wanted: Any) -> History:
    """The log of one end, read as the command reads it."""
    collector = Collector(Wanted(wanted.pop("uid", world.uid), **wanted))
    for line in reversed(world.journals[side].lines):
        if collector.feed(line.rstrip(b"\n")):
            break
    return collector.history()


def live(world: World, side: str = "client") -> Explanation:
    """What the running node's answer and journal give."""
    source = Source(f"{side} {side}; the running node and its journal", side, live=True, now_ms=world.clock().wall_ms)
    return explain(history(world, side), facts(world, side), source)


def logged(world: World, side: str = "client", **wanted: Any) -> Explanation:
    """What the log alone gives, at its end or at a moment."""
    found = history(world, side, **wanted)
    past = bool(set(wanted) - {"uid"})
    source = Source(f"{side} {side}; from log", side, live=False, now_ms=found.end_ms, past=past)
    return explain(found, None, source)


def said(found: Explanation) -> str:
    """The text for people."""
    return text.plain(text.lines(found, clock, WIDTH))


# --- scenes ----------------------------------------------------------------------------------------------------------


def healthy() -> list[Explanation]:
    world = began()
    world.run(700)
    return [live(world)]


def birth() -> list[Explanation]:
    world = World(rules(transports={"deny": ["wlan*"]}), links=("wlan0",), journals=True)
    world.tell_network()
    world.run(0)
    told = outlook.of_client(world.client, "", world.clock().boot)
    return [unborn(told["unborn"], Source("client client; the running node", "client", True, world.clock().wall_ms))]


def link_death() -> list[Explanation]:
    world = began()
    world.run(20)
    world.down("wlan0")
    world.run(0.01)
    found = [live(world)]
    world.run(60)
    return [*found, live(world), live(world, "gateway")]


def silent_death() -> list[Explanation]:
    world = began(links=("wlan0", "wwan0"))
    world.measures = True
    world.run(20)
    world.blackhole("wlan0", "wwan0")
    world.until(lambda: world.states()[0] == "RECOVERING", 3)
    found = [live(world)]
    world.run(20)
    found.append(live(world))
    world.heal("wwan0")
    world.run(5)
    return [*found, live(world)]


def alone_and_silent() -> list[Explanation]:
    world = began(links=("wlan0",))
    world.measures = True
    world.run(20)
    world.blackhole("wlan0")
    world.until(lambda: world.states()[0] == "VOLATILE", 3)
    return [live(world)]


def loss() -> list[Explanation]:
    world = World(links=("wlan0",), journals=True)
    world.measures = True
    world.start()
    world.run(3)
    world.links[world.id("wlan0")].loss = 0.5
    world.until(lambda: world.states()[0] == "VOLATILE", 5)
    world.run(1)
    return [live(world)]


def hold_down() -> list[Explanation]:
    world = began(rules(switching={"hold_down": "10s", "failback": "never"}))
    world.post("client", inp.OperatorSwitch(world.id("eth0")))
    world.run(1)
    world.post("client", inp.OperatorSwitch(world.id("wlan0")))
    world.run(0.5)
    return [live(world)]


def no_candidate() -> list[Explanation]:
    world = began()
    world.run(20)
    world.down("wlan0", "eth0")
    world.run(48)
    return [live(world), live(world, "gateway"), logged(world)]


def ttl_over() -> list[Explanation]:
    world = began()
    world.down("wlan0", "eth0")
    world.run(310)
    return [logged(world), logged(world, "gateway")]


def restarted() -> World:
    """The gateway's process is another one, just begun."""
    world = began()
    world.run(5)
    world.stop_gateway()
    world.run(0.5)
    world.start_gateway()
    world.run(0)
    return world


def gateway_restart() -> list[Explanation]:
    world = restarted()
    found = [live(world, "gateway")]
    world.run(10)
    return [*found, live(world), live(world, "gateway")]


def operator_refused() -> list[Explanation]:
    world = began(rules(transports={"deny": ["roam*"]}), links=("wlan0", "roam0"))
    world.post("client", inp.OperatorSwitch(world.id("roam0")))
    world.run(1)
    found = [live(world)]
    world.down("wlan0")
    world.run(3)
    return [*found, live(world)]


def spent() -> World:
    """The client would switch a third time within the minute, which allows two."""
    world = began(rules(switching={"max_per_minute": 2, "hold_down": "0s", "failback": "never"}))
    for here in ("wlan0", "eth0"):
        world.down(here)
        world.run(1)
        world.up(here)
        world.run(1)
    world.down("wlan0")
    world.run(1)
    return world


def rate_limited() -> list[Explanation]:
    return [live(spent())]


def gateway_says_no() -> list[Explanation]:
    world = began()
    world.post("gateway", inp.PolicyOffered(rules(switching={"max_per_minute": 1})))
    world.down("wlan0")
    world.run(1)
    world.up("wlan0")
    world.run(1)
    world.down("eth0")
    world.run(1)
    return [live(world), live(world, "gateway")]


def flapping() -> list[Explanation]:
    preferred = {"switching": {"failback": "2s", "hold_down": "0s", "flap_half_life": "20s"}}
    world = began(rules(transports={"prefer": ["wlan0"]}, **preferred))
    for _ in range(4):
        world.down("wlan0")
        world.run(1)
        world.up("wlan0")
        world.run(1)
    world.run(10)
    return [live(world)]


def failback_due() -> list[Explanation]:
    world = began(rules(transports={"prefer": ["wlan0"]}))
    world.down("wlan0")
    world.run(2)
    world.up("wlan0")
    world.run(2)
    return [live(world)]


def a_moment_of_the_past() -> list[Explanation]:
    world = began()
    world.run(5)
    world.down("wlan0", "eth0")
    world.run(10)
    middle = world.clock().wall_ms - 5_000
    world.up("eth0")
    world.run(30)
    number = history(world).records[-1].seq
    return [logged(world, at_ms=middle), logged(world, seq=number)]


def asked_to_end() -> list[Explanation]:
    world = began()
    world.run(3)
    world.post("client", inp.OperatorTerminate(world.uid))
    world.run(1)
    return [logged(world), logged(world, "gateway")]


SCENES: dict[str, Callable[[], list[Explanation]]] = {
    scene.__name__: scene
    for scene in (
        healthy, birth, link_death, silent_death, alone_and_silent, loss, hold_down, no_candidate, ttl_over,
        gateway_restart, operator_refused, rate_limited, gateway_says_no, flapping, failback_due,
        a_moment_of_the_past, asked_to_end,
    )
}  # fmt: skip

__all__ = ["MILLISECOND", "SCENES", "SECOND", "WALL_MS"]
