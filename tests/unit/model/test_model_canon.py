"""The canonical form: what it drops cannot matter, what can matter it keeps."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from jumpvpn.engine.seat import Turn
from jumpvpn.model.bounds import NOW, TICK, TINY
from jumpvpn.model.canon import Canon, Ghost, a_minute_later, a_tick_later
from jumpvpn.model.facts import MINUTE_PASSES
from jumpvpn.model.graph import Graph
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import Epoch, Instant, SessionId, Version, later


def reached(graph: Graph, *labels: str) -> Session:
    """The canonical session after the moves ``labels``."""
    world = graph.birth()
    for label in labels:
        move = next(move for move in graph.moves(world) if move.label == label)
        world, _ = graph.arrive(world, move)
    return graph.seen(world)[0]


RECOVERING = ("the handshake completes on A", "A becomes dead")


@pytest.fixture
def session() -> Session:
    """A client in RECOVERING, without a binding, trying the other transport."""
    found = reached(Graph(Role.CLIENT, TINY), *RECOVERING)
    assert found.state is State.RECOVERING
    assert found.binding is None
    assert found.attempt is not None
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"version": Version(7)},
        {"epoch": Epoch(3)},
        {"owner_epoch": 9},
        {"born_at": Instant(NOW - 77 * TICK)},
        {"reason": Reason.LOSS_RECOVERY},
        {"warnings": 1},
        {"tried": ("a0/udp/gw", "a0/udp/gw")},
        {"switches": (Instant(NOW - 60 * TICK),)},
        {"hold_until": NOW},
    ],
)
def test_what_cannot_matter_is_dropped(session: Session, fields: dict[str, Any]) -> None:
    canon, other = Canon(), replace(session, **fields)
    if "tried" in fields:
        session = replace(session, tried=fields["tried"][:1])
    assert canon.key(session, Ghost()) == canon.key(other, Ghost())
    assert canon.form(session) == canon.form(other)


@pytest.mark.parametrize(
    "fields",
    [
        {"transportless_at": Instant(NOW - TICK)},
        {"episode_at": Instant(NOW - TICK)},
        {"entered_at": Instant(NOW - TICK)},
        {"attempts": 2},
        {"attempt": None},
        {"tried": ("a0/udp/gw",)},
        {"switches": (Instant(NOW - 59 * TICK),)},
        {"hold_until": later(NOW, TICK)},
        {"incumbent": None},
        {"policy": TINY.tight()},
        {"next_policy": TINY.tight()},
    ],
)
def test_what_can_matter_is_kept(session: Session, fields: dict[str, Any]) -> None:
    canon = Canon()
    assert canon.key(session, Ghost()) != canon.key(replace(session, **fields), Ghost())


def test_a_form_is_its_own_form(session: Session) -> None:
    canon = Canon()
    form = canon.form(session)
    assert canon.form(form) == form
    assert canon.key(form, Ghost()) == canon.key(session, Ghost())


def test_ended_sessions_are_one(session: Session) -> None:
    canon = Canon()
    one, other = replace(session, state=State.TERMINATED), replace(session, state=State.TERMINATED, attempts=5)
    assert canon.key(one, Ghost()) == canon.key(other, Ghost(1, 1))


def test_what_the_explorer_remembers_is_part_of_the_key(session: Session) -> None:
    canon = Canon()
    assert canon.key(session, Ghost()) != canon.key(session, Ghost(switches=1))


def moved(session: Session, by: int) -> Session:
    """``session`` with every instant ``by`` ns later."""

    def to(at: Instant | None) -> Any:
        return None if at is None else later(at, by)

    bound, attempt = session.binding, session.attempt
    return replace(
        session, born_at=to(session.born_at), entered_at=to(session.entered_at), keys_at=to(session.keys_at),
        transportless_at=to(session.transportless_at), episode_at=to(session.episode_at),
        hold_until=to(session.hold_until), switches=tuple(map(to, session.switches)),
        volatile_entries=tuple(map(to, session.volatile_entries)),
        binding=None if bound is None else replace(bound, since=to(bound.since)),
        attempt=attempt and replace(attempt, started=to(attempt.started), deadline=to(attempt.deadline)),
    )  # fmt: skip


class Walk:
    """The explored canonical session beside one that really ages and really counts."""

    def __init__(self, role: Role, seed: int) -> None:
        self.graph, self.dice = Graph(role, TINY), random.Random(seed)
        self.world, self.age = self.graph.birth(), 0
        self.real = birth(SessionId(bytes(range(16))), role, TINY.base(), NOW, "c0ffee").session

    def feed(self, *labels: str) -> None:
        """Give the real session the same facts, at its own time."""
        now = later(NOW, self.age)
        for label in labels:
            event = self.graph.facts[label](moved(self.real, -self.age))
            if hasattr(event, "deadline"):
                event = replace(event, deadline=later(event.deadline, self.age))
            self.turn(now, event)

    def turn(self, now: Instant, *events: Any) -> None:
        """One shipped turn of the real session."""
        turn = Turn(self.real, now, int(self.real.version))
        turn.feed(*events)
        self.real = turn.session

    def go(self) -> None:
        """One move chosen by the dice, on both sides."""
        moves = [m for m in self.graph.moves(self.world) if m.label not in (MINUTE_PASSES, "operator closes")]
        move = self.dice.choice(moves)
        trace: list[str] = []
        self.world, _ = self.graph.arrive(self.world, move, trace)
        if move.time:
            self.age += TICK
            self.turn(later(NOW, self.age))
        self.feed(*(line.split(": ")[0] for line in trace if not line.startswith("deadline")))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("seed", range(12))
def test_exploring_forms_is_exploring_sessions(role: Role, seed: int) -> None:
    """A session that ages and counts stays equal in form to the explored one, whatever happens to both."""
    walk = Walk(role, seed)
    seen = set()
    for _ in range(40):
        if walk.real.state is State.TERMINATED:
            break
        walk.go()
        ghost = walk.graph.seen(walk.world)[1]
        mine = walk.graph.canon.key(walk.graph.seen(walk.world)[0], ghost)
        assert walk.graph.canon.key(moved(walk.real, -walk.age), ghost) == mine
        seen.add(walk.real.state)
    assert State.ATTACHED in seen or walk.real.state is State.TERMINATED


def test_a_tick_moves_every_clock(session: Session) -> None:
    held = replace(session, hold_until=later(NOW, TICK))
    older = a_tick_later(held)
    assert older.transportless_at == NOW - TICK
    assert older.episode_at == NOW - TICK
    assert older.entered_at == NOW - TICK
    assert older.hold_until == NOW
    assert older.attempt is not None
    assert held.attempt is not None
    assert older.attempt.deadline == held.attempt.deadline - TICK


def test_a_minute_forgets_the_oldest_switch_only(session: Session) -> None:
    switches = (Instant(NOW - 3 * TICK), Instant(NOW - TICK))
    assert a_minute_later(replace(session, switches=switches)).switches == switches[1:]
