"""The simulated world with a tape at both ends, as the nodes have it: driver, recorder and journal in miniature."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from jumpvpn.audit.addresses import AddressMode, shown_address
from jumpvpn.audit.chain import Chain
from jumpvpn.audit.checkpoints import Link
from jumpvpn.audit.sealing import Draft, Origin, Sealer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.policy.model import Policy
from jumpvpn.recording.tape import Tape
from jumpvpn.session.state import State
from jumpvpn.sim.store import COMMITTED, Store
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, DomainEvent, Now

LINKS = ("wlan0", "eth0", "wwan0")
SALT = b"salt of a test, which is secret!"
HMAC_KEY = b"k" * 32
MIB = 1 << 20


class Shelf:
    """A sink in memory: one ``bytearray`` per segment; ``room`` bounds the bytes that it takes."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.segments: list[bytearray] = []
        self.room = room
        self.state_was_too_big = 0
        self.closed = False

    def begin(self, number: int) -> bool:
        self.segments.append(bytearray())
        assert number == len(self.segments)
        return self.room > 0

    def write(self, data: bytes) -> bool:
        self.room -= len(data)
        if self.room < 0:
            return False
        self.segments[-1] += data
        return True

    def too_big(self, state: int) -> None:
        self.state_was_too_big = state

    def close(self) -> None:
        self.closed = True


class Node:
    """What one process has besides its engine: tape, sealer, journal."""

    def __init__(self, engine: Any, role: str, run: int, policy: Policy, now: Now, size: int, shelf: Shelf) -> None:
        self.shelf = shelf
        self.journal: list[bytes] = []
        self.checkpoints = self.told = 0
        self.tape = Tape(self.shelf, engine, salt=SALT, size=size, program="1.2.3")
        origin = Origin(f"{role}-1", "standalone", "boot", f"run{run}", role)
        self.sealer: Sealer = self.tape.sealer(origin, policy, partial(_show))
        self.note((DomainEvent("node.started", "N", data={"role": role, "boot_id": "boot"}),), now)
        self.use_policy(policy, now, "start")

    def use_policy(self, policy: Policy, now: Now, mode: str = "reload") -> None:
        self.sealer.use_policy(policy)
        data = {"version": policy.version, "digest": policy.digest(), "body": policy.body(), "mode": mode}
        self.note((DomainEvent("policy.applied", "N", reason="policy_applied", data=data),), now)

    def note(self, events: tuple[DomainEvent, ...], now: Now) -> None:
        self.journal += self.sealer.note(events, now)

    def vouch(self, now: Now) -> None:
        """What the recorder does when a checkpoint is due, with something else than a key."""
        self.checkpoints += 1
        link = Link(self.checkpoints, self.sealer.node.head, hashlib.sha256(bytes(self.checkpoints)).hexdigest())
        self.journal.append(self.sealer.checkpoint(link, lambda message: hashlib.sha512(message).digest(), now))

    def close(self, now: Now) -> None:
        self.vouch(now)
        self.note((DomainEvent("node.stopped", "N", data={"cause": "asked"}),), now)
        self.tape.close()


class SealingStore(Store):
    """A store whose commits are settled by the node that drafted them."""

    open: tuple[Node, Draft]

    def write(self, order: out.Commit, now: Now, chain: Chain | None) -> None:
        node, draft = self.open
        node.journal += node.sealer.settle(draft, ended=order.session.state is State.TERMINATED)
        super().write(order, now, draft.chain)


class TapedWorld(World):
    """Both ends record; ``nodes`` are all processes that ever ran, by role."""

    def __init__(self, rules: Policy | None = None, *, size: int = 64 * MIB, room: int = 1 << 40, **more: Any) -> None:
        self.nodes: dict[str, list[Node]] = {"client": [], "gateway": []}
        self.size, self.room = size, room
        super().__init__(rules, **more)

    def _begin_client(self) -> None:
        if not self.nodes["client"]:
            self.client_store, self.gateway_store = SealingStore(), SealingStore()
        super()._begin_client()
        self._node("client", self.client, self.client_rules)

    def start_gateway(self) -> None:
        super().start_gateway()
        node = self._node("gateway", self.gateway, self.gateway_rules)
        for uid, row in self.gateway_store.rows.items():
            if row.session.state is not State.TERMINATED and row.chain is not None:
                node.sealer.resume(uid, row.chain)

    def _node(self, role: str, engine: Any, policy: Policy) -> Node:
        if self.nodes[role]:
            self.nodes[role][-1].tape.close()
        nodes = self.nodes[role]
        nodes.append(Node(engine, role, len(nodes) + 1, policy, self.clock_of(role), self.size, Shelf(self.room)))
        return nodes[-1]

    def offer_policy(self, side: str, rules: Policy | None, errors: tuple[str, ...] = ()) -> None:
        if rules is not None:
            self.nodes[side][-1].use_policy(rules, self.clock_of(side))
        super().offer_policy(side, rules, errors)

    def second(self) -> None:
        """What the recorder does every second."""
        for side, nodes in self.nodes.items():
            nodes[-1].journal += nodes[-1].sealer.due(self.clock_of(side))
            if nodes[-1].sealer.growth.due(self.clock_of(side)):
                nodes[-1].vouch(self.clock_of(side))
            nodes[-1].tape.flush()

    def close(self) -> None:
        """Both processes stop in order."""
        for side, nodes in self.nodes.items():
            nodes[-1].close(self.clock_of(side))

    def _handle(self, side: str, event: Any) -> None:
        engine = self._engine(side)
        if engine is None or (side == "client" and self.asleep):
            super()._handle(side, event)
            return
        node = self.nodes[side][-1]
        node.told += 1
        tape = node.tape
        tape.heard(event, self.clock_of(side))
        real = engine.handle

        def handle(told: Any, now: Now) -> Any:
            orders = real(told, now)
            tape.ordered(orders)
            return orders

        engine.handle = handle
        try:
            super()._handle(side, event)
        finally:
            engine.handle = real

    def _carry_out(self, side: str, order: Any) -> None:
        if isinstance(order, out.Emit):
            self.nodes[side][-1].note(order.events, self.clock_of(side))
        super()._carry_out(side, order)

    def _commit(self, side: str, order: out.Commit) -> None:
        store = self.client_store if side == "client" else self.gateway_store
        assert isinstance(store, SealingStore)
        node = self.nodes[side][-1]
        store.open = (node, node.sealer.draft(order.uid, order.events, self.clock_of(side)))
        super()._commit(side, order)


def _show(address: str, mode: AddressMode) -> str:
    return shown_address(address, mode, HMAC_KEY)


FAULTS = (
    "down", "up", "blackhole", "heal", "rebind", "slow", "lossy", "stop", "start", "operator", "store", "policy",
    "refused_policy", "traffic", "readdress", "client", "forged", "wait",
)  # fmt: skip


def troubled(
    seed: int,
    rules: Policy,
    other: Policy,
    *,
    faults: int = 25,
    size: int = 64 * MIB,
    choose: Callable[[random.Random], str] | None = None,
) -> TapedWorld:
    """A world that went through random faults, closed in order; both roles have recordings."""
    dice = random.Random(seed)
    world = TapedWorld(rules, size=size, links=LINKS, dice=dice)
    world.measures = True
    world.gateway_store.delay = dice.choice((0, 5, 200)) * MILLISECOND
    world.client_store.delay = dice.choice((0, 1)) * MILLISECOND
    world.start(dice.choice(LINKS))
    for _ in range(faults):
        _trouble(world, dice, (rules, other), choose(dice) if choose else dice.choice(FAULTS))
        for _ in range(dice.choice((1, 2, 5))):
            world.run(dice.choice((0.1, 0.5, 1, 2)))
            world.second()
    world.close()
    return world


def _trouble(world: TapedWorld, dice: random.Random, policies: tuple[Policy, Policy], fault: str) -> None:
    name = dice.choice(LINKS)
    link = world.links[world.id(name)]
    match fault:
        case "down" | "up" | "blackhole" | "heal":
            getattr(world, fault)(name)
        case "rebind":
            world.rebind(name, f"10.{dice.randrange(256)}.9.9:{dice.randrange(1024, 65535)}")
        case "readdress":
            world.readdress(name, f"10.{dice.randrange(3)}.0.{dice.randrange(2, 250)}")
        case "slow":
            link.delay = dice.choice((5, 40, 300, 900)) * MILLISECOND
        case "lossy":
            link.loss = dice.choice((0.0, 0.05, 0.5))
        case "stop" if world.gateway is not None:
            world.stop_gateway()
        case "start" if world.gateway is None:
            world.start_gateway()
        case "operator":
            world.post("client", inp.OperatorSwitch(world.id(name)))
        case "store":
            verdict = dice.choice((COMMITTED, "unavailable"))
            world.gateway_store.verdict = lambda _order: verdict
        case "policy":
            world.offer_policy(dice.choice(("client", "gateway")), dice.choice(policies))
        case "refused_policy":
            world.offer_policy("client", None, ("switching.hold_down: must be a duration",))
        case "traffic":
            world.traffic = not world.traffic
        case "client" if dice.random() < 0.3:
            world.restart_client()
        case "forged" if world.gateway is not None and world.requests:
            for _ in range(5):
                world.inject(*dice.choice(world.requests), copied=True)


def policy(**sections: dict[str, Any]) -> Policy:
    """The default policy with the given sections' keys replaced, as TOML would write them."""
    return Policy.model_validate(sections)


RULES = policy(transports={"prefer": ["eth0"]}, switching={"failback": "5s", "max_per_minute": 30})
OTHER = policy(
    transports={"prefer": ["wlan0"], "deny": ["wwan0"]}, switching={"failback": "5s", "max_per_minute": 20},
    observability={"address_mode": "hmac"},
)  # fmt: skip


def lines_of(segment: bytes | bytearray) -> list[bytes]:
    return bytes(segment).splitlines(keepends=True)


def resummed(lines: list[bytes]) -> list[bytes]:
    """The lines with right sums, as by somebody who changed them on purpose."""
    digest, fresh = hashlib.sha256(), list[bytes]()
    for line in lines:
        shown = b'["sum","%s"]\n' % digest.hexdigest()[:16].encode() if line.startswith(b'["sum"') else line
        digest.update(shown)
        fresh.append(shown)
    return fresh
