"""A turn of the shipped engine, watched: each step is judged, and so is the order in which inputs are applied."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from jumpvpn.engine.seat import Turn
from jumpvpn.model import published
from jumpvpn.model.bounds import NOW, TICK
from jumpvpn.model.canon import Ghost
from jumpvpn.model.checks import Checks, Violation
from jumpvpn.properties import Property
from jumpvpn.session import events as ev
from jumpvpn.session import transitions
from jumpvpn.session.machine import AmbiguousTable, IllegalReason, Step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Session, State
from jumpvpn.values import DomainEvent


@dataclass(frozen=True, slots=True)
class Played:
    """What a turn came to: the session, what the explorer remembers, and whether ATTACHED was passed."""

    session: Session
    ghost: Ghost
    attached: bool
    rows: tuple[str, ...]
    events: tuple[DomainEvent, ...]


class Watcher:
    """Plays turns and judges them; counts which rows and reasons were seen."""

    def __init__(self) -> None:
        self.checks = Checks()
        self.rows: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._inputs = {row.id: row.event.__name__ for row in transitions.TABLE}
        for rows in transitions.LISTED.values():
            self._inputs.update({row.id: row.event.__name__ for row in rows})

    def play(self, session: Session, ghost: Ghost, *given: Any) -> Played:
        """Feed ``given`` at once. Raises Violation."""
        turn = _WatchedTurn(self, session, ghost, given)
        try:
            turn.feed(*given)
        except (AmbiguousTable, IllegalReason) as error:
            broken = Property.TOTALITY if isinstance(error, AmbiguousTable) else Property.EDGES
            raise Violation(broken, str(error)) from error
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"{_names(given)} has no defined outcome in {turn.session.state.value}: {error!r}"
            raise Violation(Property.TOTALITY, text) from error
        turn.ended()
        return Played(turn.session, turn.ghost, turn.attached, tuple(turn.rows), tuple(turn.events))

    def input_of(self, outcome: Step) -> str:
        """The name of the event that ``outcome`` applied."""
        named = self._inputs.get(outcome.rows[0])
        return named if named is not None else str(next(e.data["input"] for e in outcome.events if "input" in e.data))


class _WatchedTurn(Turn):
    """``Turn`` with a witness at ``take``."""

    def __init__(self, watcher: Watcher, session: Session, ghost: Ghost, given: tuple[Any, ...]) -> None:
        super().__init__(session, NOW, int(session.version))
        self.watcher, self.ghost, self.attached = watcher, ghost, False
        self.waiting: list[Any] = list(given)
        self.rows: list[str] = []

    def take(self, outcome: Step) -> None:
        before = self.session
        event = self._applied(before, outcome)
        self.watcher.rows.update(outcome.rows)
        self.watcher.reasons.update(e.reason for e in outcome.events if e.reason is not None)
        self.rows += outcome.rows
        super().take(outcome)
        self.watcher.checks.step(before, event, outcome)
        self._count_switch(before, event, outcome.session)
        self.attached = self.attached or self.session.state is State.ATTACHED

    def _applied(self, before: Session, outcome: Step) -> Any:
        """The event that was applied; it must be the first in the published order, and name the others."""
        checks, name = self.watcher.checks, self.watcher.input_of(outcome)
        due = published.overdue(before, NOW)
        mine = next((event for event in self.waiting if type(event).__name__ == name), None)
        deadline = next((bound for bound in due if bound.event == name), None)
        if mine is not None and deadline is not None and _is_of(deadline, outcome):
            mine = None  # the deadline's own event, not the like one that was given
        if mine is None:
            broken = Property.FINITE if outcome.session.state is State.TERMINATED else Property.BOUNDED_RECOVERY
            checks.demand(deadline is not None, broken, f"{name} happened although its deadline has not passed")
        pool = [*(type(event).__name__ for event in self.waiting), *(bound.event for bound in due)]
        first = min(pool, key=published.RANK.__getitem__)
        text = f"{name} was applied before {first}"
        checks.demand(published.RANK[name] <= published.RANK[first], Property.PRIORITY, text)
        causes = {_cause(event) for event in self.waiting if event is not mine}
        others = [bound for bound in due if mine is not None or bound is not deadline]
        causes |= {bound.cause or published.CAUSES.get(bound.event) for bound in others}
        self._losers(outcome, {cause for cause in causes if cause is not None})
        if mine is not None:
            self.waiting.remove(mine)
            return mine
        return _deadline_event(name, before)

    def _losers(self, outcome: Step, causes: set[str]) -> None:
        for change in outcome.events:
            if change.name == "session.state_change":
                wanted = causes - {str(change.reason)}
                named = set(change.contributing)
                text = f"contributing is {sorted(named)}, the losers were {sorted(wanted)}"
                self.watcher.checks.demand(named == wanted, Property.PRIORITY, text)

    def _count_switch(self, before: Session, event: Any, after: Session) -> None:
        """The explorer's own count of switches, and of hold-down, against the policy in force."""
        checks, ghost, rules = self.watcher.checks, self.ghost, before.policy.switching
        attempt = after.attempt
        if attempt is not None and attempt is not before.attempt and attempt.kind is AttemptKind.SWITCH:
            moves, urgent = attempt.transport != after.incumbent, after.binding is None
            text = f"a switch was begun with {ghost.switches} of {rules.max_per_minute} switches used"
            checks.demand(not moves or ghost.switches < rules.max_per_minute, Property.BOUNDED_SWITCHING, text)
            allowed = before.policy.transports.allows(attempt.transport.split("/")[0], "udp", "gw")
            text = f"a switch was begun to {attempt.transport}, which policy denies"
            checks.demand(allowed, Property.POLICY_IN_FORCE, text)
            text = "a transport that carries the session is left during hold-down"
            checks.demand(not moves or urgent or not ghost.hold, Property.BOUNDED_SWITCHING, text)
        if after.state is not State.ATTACHED or before.incumbent is None or after.binding is None:
            return
        switched = after.binding.transport != before.incumbent
        if switched or (type(event).__name__ == "RebindingValidated" and before.state is not State.ATTACHED):
            used = ghost.switches + 1
            text = f"switch {used} within 60 s, where policy allows {rules.max_per_minute}"
            checks.demand(used <= rules.max_per_minute, Property.BOUNDED_SWITCHING, text)
            self.ghost = Ghost(used, rules.hold_down // TICK if switched else ghost.hold)

    def ended(self) -> None:
        """What must hold when the turn is over."""
        checks, session = self.watcher.checks, self.session
        over = session.state is State.TERMINATED
        text = f"{_names(tuple(self.waiting))} was lost"
        checks.demand(over or not self.waiting, Property.PRIORITY, text)
        for bound in published.running(session):
            broken = Property.FINITE if bound.name in published.ENDS else Property.BOUNDED_RECOVERY
            broken = Property.VISIBLE if bound.name == "lifetime_warning" else broken
            checks.demand(bound.at >= NOW, broken, f"the deadline {bound.name} has passed and nothing happened")


def _cause(event: Any) -> str | None:
    own = getattr(event, "reason", None)
    return own.value if isinstance(own, Reason) else published.CAUSES.get(type(event).__name__)


def _is_of(deadline: published.Bound, outcome: Step) -> bool:
    reason = outcome.events[0].reason if outcome.events else None
    return reason == (deadline.cause or published.CAUSES.get(deadline.event))


def _names(given: tuple[Any, ...]) -> str:
    return " and ".join(type(event).__name__ for event in given) or "a deadline"


def _deadline_event(name: str, before: Session) -> Any:
    """The event of a deadline, as the machine was given it."""
    match name:
        case "AttemptFailed":
            assert before.attempt is not None
            return ev.AttemptFailed(before.attempt.transport, Reason.REATTACH_TIMEOUT)
        case "HandshakeFailed":
            return ev.HandshakeFailed(Reason.HANDSHAKE_TIMEOUT)
        case "LifetimeNear":
            return ev.LifetimeNear(0)
        case _:
            return getattr(ev, name)()
