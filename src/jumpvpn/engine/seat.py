"""One session's seat in the engine: events become a turn, a turn becomes one commit, effects wait for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine.outputs import Commit, Emit, Output, Secret
from jumpvpn.session.deadlines import by_priority, cause_of, next_deadline, reached_deadlines
from jumpvpn.session.effects import Effect
from jumpvpn.session.events import Event
from jumpvpn.session.machine import Step, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt, Session, State
from jumpvpn.values import SECOND, DomainEvent, Instant, later, replace

WAITING_MAX = 1024  # inputs that arrive during one commit; a store that is slower than this is unavailable
STORE_RETRY = SECOND  # a store that failed is asked again for what time or state demand; forwarding goes on meanwhile
STEPS_MAX = 64  # rows in one turn; more would be a cycle without time, which the table excludes


@dataclass(slots=True)
class Turn:
    """Everything that one input causes, before it is committed. ``unanswered`` are attempts that timed out in it."""

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
    unanswered: list[Attempt] = field(default_factory=list)

    def feed(self, *events: Event) -> None:
        """Apply simultaneous events, highest priority first, together with the deadlines that have passed.

        A deadline that an event moved into the past (a tightened policy) counts in the same turn. It ends: each event
        given is applied once; of the deadlines a warning is counted (policy has 8 at most), any other one ends the
        session, its stay or its attempt, and a stay that begins has its deadlines ahead of it.
        """
        due = by_priority((*reached_deadlines(self.session, self.now), *events))
        while due:
            first, *rest = due
            others = tuple(cause for cause in map(cause_of, rest) if cause is not None)
            attempt = self.session.attempt
            self.take(step(self.session, first, self.now, others))
            if attempt is not None and getattr(first, "reason", None) is Reason.REATTACH_TIMEOUT:
                self.unanswered.append(attempt)
            if self.session.state is State.TERMINATED:
                return
            waiting = [event for event in rest if any(event is fed for fed in events)]
            due = by_priority((*reached_deadlines(self.session, self.now), *waiting))

    def follow(self, event: Event) -> None:
        """Apply an event that was planned from the present state, unless a deadline has just changed that state."""
        if reached_deadlines(self.session, self.now):
            self.feed()
        else:
            self.take(step(self.session, event, self.now))

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
    """The committed session, the turn that awaits its commit, and the inputs that came meanwhile.

    ``seen`` is when a turn last looked at the facts: a moment that is not later has had its effect.
    """

    session: Session
    pending: Turn | None = None
    serial: int = 0
    seen: Instant = Instant(0)
    retry_at: Instant = Instant(0)
    waiting: deque[Any] = field(default_factory=lambda: deque(maxlen=WAITING_MAX))

    def begin(self, now: Instant) -> Turn:
        """A turn on the committed session."""
        assert self.pending is None, "a turn awaits its commit"
        self.seen = now
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
                    turn.secret, turn.device, self._shared(turn),
                )
            ]  # fmt: skip
        self.session = turn.session
        emitted: list[Output] = [Emit(tuple(turn.events))] if turn.events else []
        return emitted + turn.outputs

    def _shared(self, turn: Turn) -> bool:
        """Whether other gateways must know of ``turn``: who comes to be, who owns it, its root of keys, its end."""
        born = turn.expected_version is None or self.session.state is State.BIRTH
        rekeyed = turn.secret is not None and turn.secret.kind == "rekey"
        moved = turn.session.owner_epoch != self.session.owner_epoch
        return born or moved or rekeyed or turn.session.state is State.TERMINATED

    def settle(self, now: Instant, *, committed: bool) -> Turn:
        """The commit ended; the session moves only if it won."""
        assert self.pending is not None, "no commit is pending"
        turn, self.pending = self.pending, None
        if committed:
            self.session = turn.session
        else:
            self.retry_at = later(now, STORE_RETRY)
        return turn

    def wakeups(self, moments: list[Instant]) -> list[Instant]:
        """When to look again: deadlines, and those ``moments`` that are still to come; nothing during a commit."""
        if self.pending is not None:
            return []
        nearest = next_deadline(self.session)
        found = [later(nearest.at, 1)] if nearest is not None else []
        found += [moment for moment in moments if moment > self.seen]
        lost = [self.retry_at] if self.retry_at > self.seen else []
        return [max(moment, *lost) for moment in found] + lost if lost else found
