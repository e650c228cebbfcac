"""One session's seat in the engine: events become a turn, a turn becomes one commit, effects wait for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from jumpvpn.engine.outputs import Commit, Emit, Output, Secret
from jumpvpn.session.deadlines import by_priority, cause_of, reached_deadlines
from jumpvpn.session.effects import Effect
from jumpvpn.session.events import Event
from jumpvpn.session.machine import Step, step
from jumpvpn.session.state import Session, State
from jumpvpn.values import DomainEvent, Instant

WAITING_MAX = 1024  # inputs that arrive during one commit; a store that is slower than this is unavailable
STEPS_MAX = 64  # rows in one turn; more would be a cycle without time, which the table excludes


@dataclass(slots=True)
class Turn:
    """Everything that one input causes, before it is committed."""

    session: Session
    now: Instant
    expected_version: int | None
    events: list[DomainEvent] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    mutated: bool = False
    secret: Secret | None = None
    device: tuple[bytes, int] | None = None
    steps: int = 0

    def feed(self, *events: Event) -> None:
        """Apply simultaneous events, highest priority first, together with the deadlines that have passed."""
        due = by_priority((*reached_deadlines(self.session, self.now), *events))
        while due:
            first, *rest = due
            others = tuple(cause for cause in map(cause_of, rest) if cause is not None)
            self.take(step(self.session, first, self.now, others))
            if self.session.state is State.TERMINATED:
                return
            due = by_priority(tuple(event for event in rest if event in events))

    def take(self, outcome: Step) -> None:
        """Add one step's outcome."""
        self.steps += 1
        assert self.steps <= STEPS_MAX, f"cycle without time in {self.session.state.value}: {outcome.rows}"
        self.session = outcome.session
        self.events += outcome.events
        self.effects += outcome.effects
        self.mutated = self.mutated or outcome.mutated

    def note(self, event: DomainEvent) -> None:
        """Add a node-lane event about this session."""
        session = self.session
        self.events.append(
            replace(
                event, session=session.uid, state_version=int(session.version), owner_epoch=session.owner_epoch,
                prev_state=session.state.value, state=session.state.value,
            )
        )  # fmt: skip


@dataclass(slots=True)
class Seat:
    """The committed session, the turn that awaits its commit, and the inputs that came meanwhile."""

    session: Session
    pending: Turn | None = None
    serial: int = 0
    waiting: deque[Any] = field(default_factory=lambda: deque(maxlen=WAITING_MAX))

    def begin(self, now: Instant) -> Turn:
        """A turn on the committed session."""
        assert self.pending is None, "a turn awaits its commit"
        return Turn(self.session, now, int(self.session.version))

    def close(self, turn: Turn, then: list[Output]) -> list[Output]:
        """End ``turn``: a commit that holds back its outputs, or at once what changed nothing durable.

        ``then`` are the outputs that the turn's effects stand for; they follow the commit.
        """
        turn.outputs += then
        if turn.mutated:
            self.serial += 1
            self.pending = turn
            return [
                Commit(
                    turn.session.uid, self.serial, turn.expected_version, turn.session, tuple(turn.events),
                    turn.secret, turn.device,
                )
            ]  # fmt: skip
        self.session = turn.session
        emitted: list[Output] = [Emit(tuple(turn.events))] if turn.events else []
        return emitted + turn.outputs

    def settle(self, *, committed: bool) -> Turn:
        """The commit ended; the session moves only if it won."""
        assert self.pending is not None, "no commit is pending"
        turn, self.pending = self.pending, None
        if committed:
            self.session = turn.session
        return turn
