"""What is done to a cluster, as data: fixed stories, and random ones that a seed names. Pure.

Each step begins `after` seconds from the beginning of the step before, does its harm, and is undone after `seconds`;
steps may overlap. "settle" waits until everything before it is undone and every session is back.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jumpvpn.lab.cluster.topology import MEMBERS

POLICY = """
[policy.volatility]
profile = "fast"
volatile_max = "2s"
stability_window = "1s"

[policy.switching]
max_per_minute = 120
hold_down = "300ms"
failback = "never"

[policy.recovery]
window = "3s"
max_attempts = 1000
attempt_timeout = "1s"

[policy.security]
reattach_max_age = "3s"
"""

SHORT_TTL_S = 12.0
SHORT_TTL = f"""
[policy.session]
transport_ttl = "{SHORT_TTL_S:.0f}s"
"""
LEASE_S = 2.0
# The default: longer than an election of etcd's, so that nobody notices one.
USUAL_LEASE = "5s"
# Long enough that a lease of 2 s has run out at the store, the margin and the adoption after it included.
BEYOND_LEASE_S = 2.0 * LEASE_S + 1.0

# What a step may do, and what its target is.
ACTS: Mapping[str, str] = {
    "kill_gateway": "gateway",  # SIGKILL; undone: started again
    "pause_gateway": "gateway",  # SIGSTOP; undone: SIGCONT
    "cut_store": "gateway",  # nothing between it and etcd; way "up": what it sends, "down": what it hears
    "cut_clients": "gateway",  # nothing between it and clients; ways likewise, "up" is what clients send
    "cut_both": "gateway",  # neither etcd nor clients
    "cut_peers": "gateway",  # nothing between it and the other gateways, on any segment
    "jump_clock": "gateway",  # its wall clock is wrong by `value` seconds; undone: right again
    "fill_disk": "gateway",  # its state directory takes not one byte more
    "drain_gateway": "gateway",  # clients are sent away, the process is stopped; undone: started again
    "kill_member": "member",  # SIGKILL of an etcd server; undone: started again
    "pause_member": "member",  # SIGSTOP of an etcd server
    "cut_member": "member",  # an etcd server alone, gateways still reach it
    "store_down": "",  # all etcd servers stopped (SIGSTOP)
    "slow_store": "",  # `value` ms more each way between gateways and etcd
    "lose_uplink": "uplink",  # the roaming client's "wifi" or "lte" goes down
    "roll": "",  # every gateway in turn: drained, stopped, started
    "settle": "",
}
_GATEWAYS, _MEMBERS, _UPLINKS = ("owner", "other"), ("leader", "follower"), ("wifi", "lte")


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `target` is a name, or a part that is found when the step begins.

    Parts: "owner" (of the roaming client's session), "other" (a gateway that is not), "leader", "follower" (of etcd).
    """

    act: str
    target: str = ""
    seconds: float = 0.0
    after: float = 0.0
    value: float = 0.0
    way: str = "both"

    def __post_init__(self) -> None:
        if self.act not in ACTS:
            raise ValueError(f"no act is called {self.act!r}")
        if bool(self.target) != bool(ACTS[self.act]):
            raise ValueError(f"{self.act} has {'a' if ACTS[self.act] else 'no'} target")

    def __str__(self) -> str:
        words = [self.act, self.target, "" if self.way == "both" else self.way, f"{self.value:g}" if self.value else ""]
        return " ".join(word for word in words if word) + (f" for {self.seconds:g} s" if self.seconds else "")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: `ends` are the reasons with which sessions may end (empty: none may), `must_end` if all have to.

    `steady` demands that the roaming client's session keeps its owner. `lease` is as configurations have it.
    """

    name: str
    steps: tuple[Step, ...]
    gateways: int = 2
    crowd: int = 0
    ends: tuple[str, ...] = ()
    must_end: bool = False
    steady: bool = False
    lease: str = f"{LEASE_S:.0f}s"
    policy: str = POLICY
    seed: int = 1

    @property
    def liars(self) -> tuple[str, ...]:
        """Gateways whose wall clock has to be able to jump: all, if any does."""
        return self._all_gateways() if any(step.act == "jump_clock" for step in self.steps) else ()

    @property
    def small_disks(self) -> tuple[str, ...]:
        """Gateways that need a small disk: all, if any is filled."""
        return self._all_gateways() if any(step.act == "fill_disk" for step in self.steps) else ()

    @property
    def slow_store(self) -> bool:
        """Whether the store's link has to be emulated."""
        return any(step.act == "slow_store" for step in self.steps)

    def document(self) -> dict[str, Any]:
        """The scenario as plain JSON values."""
        return asdict(self)

    def _all_gateways(self) -> tuple[str, ...]:
        return tuple(f"gw{number}" for number in range(1, self.gateways + 1))


SETTLE = Step("settle")


def _story(name: str, *steps: Step, **more: Any) -> Scenario:
    return Scenario(name, (*steps, SETTLE), **more)


FIXED: tuple[Scenario, ...] = (
    _story("owner_killed", Step("kill_gateway", "owner", 4.0)),
    _story("owner_killed_twenty_takers", Step("kill_gateway", "owner", 8.0), crowd=19),
    _story("owner_paused_beyond_its_lease", Step("pause_gateway", "owner", BEYOND_LEASE_S)),
    _story("etcd_leader_killed", Step("kill_member", "leader", 3.0), steady=True, lease=USUAL_LEASE),
    _story("etcd_leader_paused", Step("pause_member", "leader", 4.0), steady=True, lease=USUAL_LEASE),
    _story("etcd_leader_alone", Step("cut_member", "leader", 4.0), steady=True, lease=USUAL_LEASE),
    _story("etcd_leader_killed_under_the_shortest_lease", Step("kill_member", "leader", 3.0)),
    _story("owner_cut_from_store", Step("cut_store", "owner", BEYOND_LEASE_S)),
    _story("owner_not_heard_by_store", Step("cut_store", "owner", BEYOND_LEASE_S, way="up")),
    _story("owner_deaf_to_store", Step("cut_store", "owner", BEYOND_LEASE_S, way="down")),
    _story("owner_cut_from_clients", Step("cut_clients", "owner", 4.0)),
    _story("owner_not_heard_by_clients", Step("cut_clients", "owner", 4.0, way="down")),
    _story("owner_cut_from_both", Step("cut_both", "owner", BEYOND_LEASE_S)),
    _story(
        "gateways_cut_from_each_other", Step("cut_peers", "owner", 4.0), Step("kill_gateway", "owner", 3.0, after=1.0)
    ),
    _story(
        "clocks_jump",
        Step("jump_clock", "owner", 3.0, value=3600.0),
        Step("jump_clock", "other", 3.0, value=-3600.0),
        Step("kill_gateway", "owner", 3.0, after=1.0),
    ),
    _story("disk_full", Step("fill_disk", "owner", 5.0), Step("lose_uplink", "wifi", 3.0, after=1.0)),
    _story(
        "slow_store",
        Step("slow_store", "", 6.0, value=150.0),
        Step("kill_gateway", "owner", 4.0, after=1.0),
    ),
    _story("rolling_restart", Step("roll"), gateways=3, crowd=2),
    _story("store_down_beyond_the_lease", Step("store_down", "", BEYOND_LEASE_S)),
    _story(
        "store_down_beyond_the_ttl",
        Step("store_down", "", LEASE_S + SHORT_TTL_S + 6.0),
        ends=("transport_ttl_exceeded",),
        must_end=True,
        policy=POLICY + SHORT_TTL,
    ),
)

# An owner switches its client's network while it cannot reach the store, loses its lease, and dies before it can write:
# the next owner begins behind its client, and what is missing is in the dead owner's journal only.
UNWRITTEN = _story(
    "owner_killed_with_a_switch_unwritten",
    Step("cut_store", "gw1", 9.0),
    Step("lose_uplink", "wifi", 4.0, after=0.5),
    Step("kill_gateway", "gw1", 4.0, after=6.0),
    lease=USUAL_LEASE,
)
STORIES: tuple[Scenario, ...] = (*FIXED, UNWRITTEN)

# How often a random story does what, in parts; the heavier kinds of harm come less often.
_WEIGHTS: Mapping[str, int] = {
    "kill_gateway": 6,
    "pause_gateway": 5,
    "cut_store": 5,
    "cut_clients": 5,
    "cut_both": 2,
    "cut_peers": 2,
    "jump_clock": 2,
    "fill_disk": 1,
    "drain_gateway": 3,
    "kill_member": 3,
    "pause_member": 3,
    "cut_member": 2,
    "store_down": 1,
    "slow_store": 2,
    "lose_uplink": 3,
}
_LONGEST_S = 7.0
_MOST_STEPS = 7


@dataclass(slots=True)
class _Dice:
    """Everything random about one story comes from here."""

    roll: random.Random

    def step(self) -> Step:
        """One step with plausible numbers."""
        act = self.roll.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        step = Step(
            act, self.target(ACTS[act]), round(self.roll.uniform(0.3, _LONGEST_S), 1),
            after=round(self.roll.uniform(0.0, 4.0), 1),
        )  # fmt: skip
        if act in ("cut_store", "cut_clients"):
            return replace(step, way=self.roll.choice(("both", "both", "up", "down")))
        if act == "jump_clock":
            return replace(step, value=float(self.roll.choice((-86400, -3600, -30, 30, 3600, 86400))))
        if act == "slow_store":
            return replace(step, value=float(self.roll.choice((20, 80, 200))))
        return step

    def target(self, kind: str) -> str:
        """A target of this kind."""
        if kind == "gateway":
            return self.roll.choice((*_GATEWAYS, "owner"))
        if kind == "member":
            return self.roll.choice((*_MEMBERS, *MEMBERS))
        return self.roll.choice(_UPLINKS) if kind == "uplink" else ""


def random_scenario(seed: int) -> Scenario:
    """The story of a seed: always the same. No session may end, because no harm lasts as long as the TTL."""
    dice = _Dice(random.Random(seed))
    steps: list[Step] = []
    for _ in range(dice.roll.randint(3, _MOST_STEPS)):
        steps.append(dice.step())
        if dice.roll.random() < 0.25:
            steps.append(SETTLE)
    if steps[-1] != SETTLE:
        steps.append(SETTLE)
    gateways, crowd = dice.roll.choice((2, 2, 3)), dice.roll.choice((0, 1, 3))
    return Scenario(f"seed_{seed}", tuple(steps), gateways, crowd, seed=seed)
