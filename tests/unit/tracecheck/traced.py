"""Sessions as their journals tell them: the product's machine and engines, sealed by its own sealer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transcripts
from build import ETH, ID, PEER, START, WLAN, policy, started

from jumpvpn.audit.chain import Chain
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.seat import Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.units import parse_duration
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.sim.world import World
from jumpvpn.values import MILLISECOND, SECOND, Epoch, Instant, Now, TransportId, Version, later

Records = list[dict[str, Any]]
BOUND = {State.ATTACHED: 0, State.VOLATILE: 1, State.RECOVERING: 2, State.DEGRADED: 3}


class Tape:
    """One session stepped by hand, its lines sealed as a node of ``role`` seals them."""

    def __init__(self, role: Role = Role.CLIENT, rules: Policy | None = None) -> None:
        rules = rules or Policy()
        self.sealer = Sealer(Origin(role.value, "standalone", "boot", "run1", role.value), rules, lambda a, _: a)
        self.lines: list[bytes] = []
        self.now = START
        first = birth(ID, role, rules, self.now, "c0ffee")
        turn = Turn(first.session, self.now, None)
        turn.take(first)
        self._close(turn)

    def feed(self, *events: ev.Event, wait: int = 0) -> Tape:
        """One turn ``wait`` ns later."""
        self.now = later(self.now, wait)
        turn = Turn(self.session, self.now, int(self.session.version))
        turn.feed(*events)
        self._close(turn)
        return self

    def taken(self, node: str, found: tuple[Session, Chain], claim: ev.OwnerChanged, *, wait: int = 0) -> Tape:
        """The tape of another gateway, which goes on from what it ``found`` in the store."""
        other = Tape.__new__(Tape)
        policy, role = self.sealer.policy, Role.GATEWAY.value
        other.sealer = Sealer(Origin(node, "cluster", f"boot-{node}", "run1", role), policy, lambda a, _: a)
        other.session, chain = found
        other.sealer.resume(other.session.uid, chain)
        other.lines, other.now = [], self.now
        cleared = ev.TransportDied(WLAN, "binding_cleared")
        return other.feed(claim, *([cleared] if other.session.state is State.ATTACHED else []), wait=wait)

    def stored(self) -> tuple[Session, Chain]:
        """What the store would have now."""
        return self.session, self.sealer._sessions[self.session.uid]

    def reach(self, state: State, *, bound: bool = True) -> Tape:
        """As the transcripts' ``given``, by the events that lead there."""
        if state is State.BIRTH:
            return self
        self.feed(ev.HandshakeCompleted(WLAN, PEER, Epoch(1), Version(1)))
        if state is State.TERMINATED:
            return self.feed(ev.CloseRequested(Reason.OPERATOR_TERMINATED))
        if bound:
            path = (ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT), ev.DwellPassed(), ev.NoCandidate())
            steps: Sequence[ev.Event] = path[: BOUND[state]]
        else:
            steps = (ev.TransportDied(WLAN, "link"), ev.NoCandidate())[: BOUND[state] - 1]
        for event in steps:
            self.feed(event)
        assert self.session.state is state
        return self

    def _close(self, turn: Turn) -> None:
        self.session = turn.session
        reading = Now(Instant(self.now), 1_700_000_000_000 + self.now // 1_000_000)
        if turn.mutated:
            draft = self.sealer.draft(self.session.uid, tuple(turn.events), reading)
            self.lines += self.sealer.settle(draft, ended=self.session.state is State.TERMINATED)
        else:
            self.lines += self.sealer.note(tuple(turn.events), reading)


def scenario_tapes(scenario: transcripts.Scenario) -> list[Tape]:
    """One transcript of tests/scenarios, from birth on: a tape for each of its beginnings."""
    tapes: list[Tape] = []
    for text in scenario.inputs:
        if text.startswith("given "):
            tapes.append(_given(text.split()[1:]))
            continue
        tape, said, wait = tapes[-1], text.removeprefix(">> "), 0
        if said.startswith("+"):
            span, _, said = said.partition(" ")
            wait = parse_duration(span[1:])
        parts = [part.strip() for part in said.split(" & ") if part.strip()]
        tape.feed(*(transcripts._event(part, later(tape.now, wait)) for part in parts), wait=wait)
    return tapes


def _given(words: list[str]) -> Tape:
    rules = transcripts.LIFETIME if "lifetime" in words else transcripts.ONE_ATTEMPT if "one_attempt" in words else None
    tape = Tape(Role.GATEWAY if "gateway" in words else Role.CLIENT, rules)
    return tape.reach(State(words[0]), bound="unbound" not in words)


def eventful_world() -> World:
    """Both ends through deaths, silence, a rebinding, switches, a restart, new policies, to the end."""
    world = World(Policy(), journals=True).start()
    tight = policy(recovery={"max_attempts": 3})
    story: list[tuple[Callable[[], Any], float]] = [
        (lambda: world.down("wlan0"), 5),
        (lambda: world.up("wlan0"), 5),
        (lambda: world.blackhole("eth0", "wlan0"), 60),
        (lambda: world.heal("eth0", "wlan0"), 60),
        (lambda: world.rebind(str(world.active), "10.77.0.2:999"), 60),
        (lambda: world.post("client", inp.OperatorSwitch(world.id("eth0"))), 10),
        (lambda: world.post("client", inp.OperatorSwitch(world.id("wlan0"))), 10),
        (lambda: world.offer_policy("gateway", tight), 1),
        (lambda: world.offer_policy("client", tight), 1),
        (world.stop_gateway, 2),
        (world.start_gateway, 130),
        (lambda: world.down("eth0", "wlan0"), 400),
    ]
    for happens, seconds in story:
        happens()
        world.run(seconds)
    assert world.states()[0] == "TERMINATED"
    return world


def records(lines: Sequence[bytes]) -> Records:
    """The lines as objects, to be altered."""
    return [json.loads(line) for line in lines]


def write(path: Path, content: Sequence[Any]) -> Path:
    """A journal of objects or of raw lines."""
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n" for item in content]
    path.write_bytes(b"".join(lines))
    return path


def client_story() -> Tape:
    """A client: death and switch, silence and hold, another switch, a rekey, a return to the same path, the end."""
    tape = Tape().reach(State.RECOVERING, bound=False)
    tape.feed(_try(tape, ETH), wait=MILLISECOND)
    tape.feed(ev.ReattachCommitted(ETH, PEER, Epoch(2), Version(5), "a1"), wait=MILLISECOND)
    tape.feed(ev.InstabilitySeen(ETH, Reason.PROBE_TIMEOUT), wait=SECOND).feed(ev.DwellPassed(), wait=SECOND)
    tape.feed(_try(tape, ETH, AttemptKind.REVALIDATE))
    tape.feed(ev.AttemptFailed(ETH, Reason.REATTACH_TIMEOUT), wait=SECOND).feed(ev.NoCandidate(1))
    tape.feed(ev.ConditionMet(WLAN, "candidate"), wait=SECOND)
    tape.feed(_try(tape, WLAN))
    tape.feed(ev.ReattachCommitted(WLAN, PEER, Epoch(3), Version(9), "a2"), wait=MILLISECOND)
    tape.feed(ev.KeysRotated(Epoch(4)), wait=SECOND)
    tape.feed(ev.InstabilitySeen(WLAN, Reason.LOSS_THRESHOLD_EXCEEDED), wait=SECOND)
    tape.feed(ev.TransportStabilized(WLAN), wait=SECOND).feed(_try(tape, WLAN, AttemptKind.REVALIDATE))
    tape.feed(ev.IncumbentRevalidated(WLAN, PEER, 1), wait=MILLISECOND)
    return tape.feed(ev.CloseRequested(Reason.OPERATOR_TERMINATED), wait=SECOND)


def owners_story() -> tuple[Tape, Tape, Tape]:
    """Three gateways: the first dies with a switch written behind, which the client knows; the third adopts."""
    one = Tape(Role.GATEWAY).reach(State.ATTACHED)
    found = one.stored()
    one.feed(_request(ETH, 2, "b1"), wait=SECOND)
    claim = ev.OwnerChanged(2, "gateway", None, int(one.session.version), 2, ev.OwnerCause.REQUEST)
    two = one.taken("gw2", found, claim, wait=SECOND)
    two.feed(_request(WLAN, 3, "b2"), wait=MILLISECOND)
    two.feed(ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT), wait=SECOND)
    adoption = ev.OwnerChanged(3, "gw2", Instant(two.now), cause=ev.OwnerCause.ORPHAN)
    three = two.taken("gw3", two.stored(), adoption, wait=20 * SECOND)
    two.feed(ev.TransportDied(WLAN, "silence"), wait=SECOND)
    three.feed(_request(ETH, 4, "b3"), wait=SECOND)
    return one, two, three.feed(ev.CloseRequested(Reason.PEER_CLOSED), wait=SECOND)


def fenced_story() -> tuple[Tape, Tape, Tape]:
    """A client and two gateways: the first switches it once, is replaced by the second, and hears of that."""
    one = Tape(Role.GATEWAY).reach(State.ATTACHED).feed(_request(ETH, 2, "b1"), wait=SECOND)
    claim = ev.OwnerChanged(2, "gateway", None, 0, 2, ev.OwnerCause.REQUEST)
    two = one.taken("gw2", one.stored(), claim, wait=SECOND).feed(_request(WLAN, 3, "b2"), wait=MILLISECOND)
    one.feed(ev.LeaseLost(1), wait=2 * SECOND)
    client = Tape().reach(State.ATTACHED)
    for transport, epoch, nonce in ((ETH, 2, "b1"), (WLAN, 3, "b2")):
        client.feed(ev.TransportDied(WLAN if transport == ETH else ETH, "silence"), wait=SECOND)
        client.feed(_try(client, transport), wait=MILLISECOND)
        client.feed(ev.ReattachCommitted(transport, PEER, Epoch(epoch), Version(9), nonce), wait=MILLISECOND)
    return client, one, two


def gateway_story() -> Tape:
    """A gateway: the client moves, silence, a policy, a new process, the client moves back, the end."""
    tape = Tape(Role.GATEWAY).reach(State.ATTACHED)
    tape.feed(_request(ETH, 2, "b1"), wait=SECOND)
    tape.feed(ev.InstabilitySeen(ETH, Reason.PROBE_TIMEOUT), wait=SECOND)
    tape.feed(ev.TransportDied(ETH, "silence"), wait=SECOND).feed(ev.NoCandidate(1))
    tape.feed(ev.PolicyReloaded(policy(recovery={"max_attempts": 3})), wait=SECOND)
    tape.feed(ev.OwnerChanged(2), wait=SECOND)
    tape.feed(_request(WLAN, 5, "b2"), wait=SECOND)
    return tape.feed(ev.CloseRequested(Reason.PEER_CLOSED), wait=SECOND)


def _try(tape: Tape, transport: TransportId, kind: AttemptKind = AttemptKind.SWITCH) -> ev.AttemptStarted:
    attempt: ev.AttemptStarted = started(tape.session, transport, kind, tape.now)
    return attempt


def _request(transport: TransportId, epoch: int, nonce: str) -> ev.ReattachAccepted:
    return ev.ReattachAccepted(transport, PEER, Epoch(epoch), nonce, Reason.DEAD_TRANSPORT_RECOVERY)
