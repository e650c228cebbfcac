"""The explored graph: canonical sessions as nodes, a session among its paths as worlds, turns as edges."""

from __future__ import annotations

from collections.abc import Hashable

from jumpvpn.engine.seat import STEPS_MAX
from jumpvpn.model.bounds import NOW, Bounds
from jumpvpn.model.canon import Canon, Ghost, a_minute_later, a_tick_later
from jumpvpn.model.checks import Violation
from jumpvpn.model.environment import PATHS, ClientEnvironment, Environment, GatewayEnvironment, Move
from jumpvpn.model.facts import MINUTE_PASSES, facts
from jumpvpn.model.watch import Played, Watcher
from jumpvpn.properties import Property
from jumpvpn.session.machine import birth
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import SessionId

_WAYS = len(PATHS)
_PLACE = {paths: index for index, paths in enumerate(PATHS)}


class Graph:
    """Turns of one role's sessions, each played once. World = node * 9 + place of its paths."""

    def __init__(self, role: Role, bounds: Bounds) -> None:
        self.role, self.bounds = role, bounds
        self.watcher, self.canon = Watcher(), Canon()
        self.environment: Environment = ClientEnvironment() if role is Role.CLIENT else GatewayEnvironment()
        self.facts = facts(bounds)
        self.sessions: list[Session] = []
        self.ghosts: list[Ghost] = []
        self._nodes: dict[Hashable, int] = {}
        self._fed: dict[tuple[int, str], tuple[int, bool]] = {}
        self._ticked: dict[int, tuple[int, bool]] = {}
        self._planned: dict[int, tuple[str, bool] | None] = {}

    def birth(self) -> int:
        """The first world: BIRTH, both transports good."""
        outcome = birth(SessionId(bytes(range(16))), self.role, self.bounds.base(), NOW, "c0ffee")
        self.watcher.rows.update(outcome.rows)
        return self.node(outcome.session, Ghost()) * _WAYS

    def node(self, session: Session, ghost: Ghost) -> int:
        """The number of the canonical form of ``session``."""
        key = self.canon.key(session, ghost)
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = len(self.sessions)
            self.sessions.append(self.canon.form(session))
            self.ghosts.append(ghost)
        return found

    def seen(self, world: int) -> tuple[Session, Ghost, tuple[int, int]]:
        """What a world's number stands for."""
        node, place = divmod(world, _WAYS)
        return self.sessions[node], self.ghosts[node], PATHS[place]

    def state(self, world: int) -> State:
        """The state of the session in ``world``."""
        return self.sessions[world // _WAYS].state

    def moves(self, world: int) -> list[Move]:
        """Everything that may happen next in ``world``."""
        session, ghost, paths = self.seen(world)
        if session.state is State.TERMINATED:
            return []
        moves = self.environment.moves(session, ghost, paths)
        planned = self.plan(world)
        if planned is not None:
            moves.append(Move(planned[0], (planned[0],), paths, protocol=True))
        return moves

    def plan(self, world: int) -> tuple[str, bool] | None:
        """The fact that follows from the present ones, and whether at once; asked once per world."""
        if world not in self._planned:
            session, _, paths = self.seen(world)
            self._planned[world] = self.environment.plan(session, paths) if session.state.live else None
        return self._planned[world]

    def arrive(self, world: int, move: Move, trace: list[str] | None = None) -> tuple[int, bool]:
        """Play ``move`` and everything that follows at once; the next world, and whether ATTACHED was passed.

        ``trace`` receives what was fed and which rows applied. Raises Violation.
        """
        node, attached = world // _WAYS, False
        if move.time:
            node, attached = self._tick(node, trace)
        elif move.label == MINUTE_PASSES:
            ghost = self.ghosts[node]
            less = Ghost(ghost.switches - 1, ghost.hold)
            node = self.node(a_minute_later(self.sessions[node]), less)
        for label in move.facts:
            node, passed = self.feed(node, label, trace)
            attached = attached or passed
        return self._settle(node, _PLACE[move.paths], attached, trace)

    def feed(self, node: int, label: str, trace: list[str] | None = None) -> tuple[int, bool]:
        """Feed one fact to a node at rest."""
        found = self._fed.get((node, label))
        if found is None or trace is not None:
            session = self.sessions[node]
            if session.state is State.TERMINATED:
                return node, False
            played = self.watcher.play(session, self.ghosts[node], self.facts[label](session))
            found = self._fed[node, label] = self._keep(played, label, trace)
        return found

    def _tick(self, node: int, trace: list[str] | None) -> tuple[int, bool]:
        found = self._ticked.get(node)
        if found is None or trace is not None:
            ghost = self.ghosts[node]
            older = Ghost(ghost.switches, max(0, ghost.hold - 1))
            played = self.watcher.play(a_tick_later(self.sessions[node]), older)
            found = self._ticked[node] = self._keep(played, "deadline", trace)
        return found

    def _keep(self, played: Played, label: str, trace: list[str] | None) -> tuple[int, bool]:
        if trace is not None and played.rows:
            trace.append(f"{label}: {_told(played)}")
        return self.node(played.session, played.ghost), played.attached

    def _settle(self, node: int, place: int, attached: bool, trace: list[str] | None) -> tuple[int, bool]:
        """Follow the plans until the session is at rest."""
        for _ in range(STEPS_MAX):
            planned = self.plan(node * _WAYS + place)
            if planned is None or not planned[1]:
                return node * _WAYS + place, attached
            node, passed = self.feed(node, planned[0], trace)
            attached = attached or passed
        raise Violation(Property.PROGRESS, f"{STEPS_MAX} steps follow one another without the passing of time")


def _told(played: Played) -> str:
    rows = ", ".join(played.rows)
    changes = [e for e in played.events if e.name == "session.state_change"]
    ways = "".join(f" > {e.state} ({e.reason})" for e in changes)
    return f"row {rows}{ways}"
