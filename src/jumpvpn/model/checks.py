"""What must hold of every step and of every turn, each under the name of its property."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jumpvpn.model import published
from jumpvpn.model.bounds import NOW
from jumpvpn.properties import Property
from jumpvpn.session import effects as fx
from jumpvpn.session.machine import Step
from jumpvpn.session.state import Session
from jumpvpn.values import DomainEvent

_PROVING = frozenset(
    {"HandshakeCompleted", "IncumbentRevalidated", "RebindingValidated", "ReattachAccepted", "ReattachCommitted"}
)
_OPEN = ("VOLATILE", "RECOVERING", "DEGRADED")


class Violation(Exception):
    """A property does not hold. ``text`` says what was seen."""

    def __init__(self, broken: Property, text: str) -> None:
        super().__init__(f"{broken.name}: {text}")
        self.property, self.text = broken, text


class Checks:
    """Judges single steps; ``counts`` says how often each property was checked."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def demand(self, holds: bool, broken: Property, text: str) -> None:
        """Count one check of ``broken``; raise Violation unless it holds."""
        self.counts[broken.name] += 1
        if not holds:
            raise Violation(broken, text)

    def step(self, before: Session, event: Any, outcome: Step) -> None:
        """Every property of one step. The order decides which name a fault gets: the most telling one first."""
        name, after = type(event).__name__, outcome.session
        changes = [e for e in outcome.events if e.name == "session.state_change"]
        self.demand(after.id == before.id and after.role is before.role, Property.IDENTITY, "another session came out")
        if before.state.value == "TERMINATED":
            self._after_the_end(before, name, outcome)
            return
        line = _line(before, event)
        self._refusals(before, name, line, outcome)
        self._death(name, outcome)
        self._edges(before, changes, outcome)
        self._proof(before, event, name, after)
        self._binding(after)
        self._epochs(before, event, name, after)
        self._clocks(before, name, after)
        self._beginnings(before, name, changes, after)
        self._attempts(before, changes, after)
        self._policy(before, event, name, after)
        self._orders(before, name, outcome)
        self._version(before, outcome)
        self._lines(before, name, line, changes, outcome)

    def _after_the_end(self, before: Session, name: str, outcome: Step) -> None:
        rejected = [e.reason for e in outcome.events] == ["event_after_termination"]
        same = outcome.session == before and not outcome.mutated and not outcome.effects
        self.demand(same, Property.ABSORBING, f"{name} changed a terminated session")
        self.demand(rejected, Property.VISIBLE, f"{name} after the end left no rejection")

    def _refusals(self, before: Session, name: str, line: published.Line | None, outcome: Step) -> None:
        """What is refused, late, unlisted or replayed changes nothing durable."""
        if line is not None and not line.quiet:
            return
        unchanged = not outcome.mutated and not _durably_changed(before, outcome.session)
        broken = Property.PROOF if name in _PROVING else Property.REJECTION
        self.demand(unchanged, broken, f"{name}, which may change nothing here, changed the record")

    def _death(self, name: str, outcome: Step) -> None:
        if name == "TransportDied":
            ended = outcome.session.state.value == "TERMINATED"
            self.demand(not ended, Property.DEATH_IS_NOT_THE_END, "the death of a transport ended the session")

    def _edges(self, before: Session, changes: list[DomainEvent], outcome: Step) -> None:
        state = before.state.value
        for change in changes:
            self.demand(change.prev_state == state, Property.VISIBLE, f"{state} was left without an event")
            edge = (state, str(change.state))
            self.demand(edge in published.EDGES, Property.EDGES, f"{edge[0]} > {edge[1]} is no edge")
            state = edge[1]
        self.demand(state == outcome.session.state.value, Property.VISIBLE, f"no event says how {state} was left")

    def _proof(self, before: Session, event: Any, name: str, after: Session) -> None:
        """A new binding, and every way into ATTACHED, needs a proof of its own."""
        entered = after.state.value == "ATTACHED" and before.state.value != "ATTACHED"
        rebound = after.binding is not None and after.binding != before.binding
        if entered or rebound:
            proved = _genuine(before, event, name, after)
            self.demand(proved, Property.PROOF, f"{name} gave a binding without a fresh proof that was asked for")

    def _binding(self, after: Session) -> None:
        bound, state = after.binding, after.state.value
        text = f"in {state} with{'out a' if bound is None else ' a'} binding"
        self.demand(bound is not None or state != "ATTACHED", Property.SINGLE_BINDING, text)
        self.demand(bound is None or state not in ("BIRTH", "TERMINATED"), Property.SINGLE_BINDING, text)
        kept = bound is None or bound.transport == after.incumbent
        self.demand(kept, Property.SINGLE_BINDING, "the bound transport is not the incumbent")

    def _epochs(self, before: Session, event: Any, name: str, after: Session) -> None:
        fell = after.epoch < before.epoch or after.owner_epoch < before.owner_epoch
        self.demand(not fell, Property.EPOCH, "an epoch fell")
        bound = after.binding
        self.demand(bound is None or bound.epoch == after.epoch, Property.EPOCH, "the binding has another epoch")
        if name == "OwnerChanged" and event.owner_epoch > before.owner_epoch:
            taken = after.owner_epoch == event.owner_epoch and bound is None
            self.demand(taken, Property.EPOCH, "the binding survived a change of owner")
            asked = after.attempt
            stale = asked is not None and asked.kind.value != "switch"
            self.demand(not stale, Property.EPOCH, "a proof that was asked for under the former owner still counts")
        moved = after.state.value == "ATTACHED" and before.state.value != "ATTACHED"
        if name in ("ReattachAccepted", "ReattachCommitted") and moved:
            self.demand(after.epoch == event.epoch, Property.EPOCH, "a reattach did not raise the epoch")
            known = getattr(event, "known_version", None) or before.bound_version
            told = (known, after.version) == (after.prior_bound_version, after.bound_version)
            self.demand(told, Property.PAIRED, "a client that missed the answer could not ask again")

    def _clocks(self, before: Session, name: str, after: Session) -> None:
        if after.state.value == "TERMINATED":
            return
        old = {bound.name: bound.at for bound in published.running(before)}
        stays = after.state is before.state
        for bound in published.running(after):
            always = bound.name in ("lifetime", "key_age")
            kept = bound.name in ("transport_ttl", "episode") and before.state.value != "ATTACHED"
            renewed = bound.name == "key_age" and name in ("KeysRotated", "HandshakeCompleted")
            dwells = stays and bound.name in ("volatile_dwell", "recovery_window", "handshake")
            if (always or kept or dwells) and not renewed:
                text = f"the running deadline {bound.name} moved later"
                self.demand(bound.at <= old.get(bound.name, bound.at), Property.CLOCKS, text)
        if after.state.value in _OPEN:
            self._both_clocks(before, after)

    def _both_clocks(self, before: Session, after: Session) -> None:
        transportless = (after.binding is None) == (after.transportless_at is not None)
        text = "the clock of the missing transport runs exactly while there is no binding"
        self.demand(transportless, Property.CLOCKS, text)
        self.demand(after.episode_at is not None, Property.CLOCKS, "no clock of the episode runs")
        if before.state.value in _OPEN:
            self.demand(after.episode_at == before.episode_at, Property.CLOCKS, "the clock of the episode moved")

    def _beginnings(self, before: Session, name: str, changes: list[DomainEvent], after: Session) -> None:
        """Every clock that starts, starts at this moment, and none starts without cause."""
        if after.state.value == "TERMINATED":
            return
        text = "the clock of the stay does not begin with it"
        self.demand(after.entered_at == (NOW if changes else before.entered_at), Property.CLOCKS, text)
        for clock in ("transportless_at", "episode_at"):
            known = (None, NOW, getattr(before, clock))
            self.demand(getattr(after, clock) in known, Property.CLOCKS, f"{clock} is another moment than this one")
        fresh = name in ("KeysRotated", "HandshakeCompleted") and after.epoch > before.epoch
        text = "the age of the keys does not begin with fresh ones"
        self.demand(after.keys_at == (NOW if fresh else before.keys_at), Property.CLOCKS, text)
        begun = after.attempt is not None and after.attempt is not before.attempt
        if begun and after.attempt is not None:
            in_time = NOW < after.attempt.deadline <= NOW + before.policy.recovery.window
            self.demand(in_time, Property.BOUNDED_RECOVERY, "an attempt begins that outlasts the recovery window")
        moved = before.incumbent is not None and after.incumbent != before.incumbent
        hold = NOW + before.policy.switching.hold_down if moved else before.hold_until
        text = "hold-down is not what policy says, from the switch on"
        self.demand(after.hold_until == hold, Property.BOUNDED_SWITCHING, text)

    def _attempts(self, before: Session, changes: list[DomainEvent], after: Session) -> None:
        left = before.attempts < before.policy.recovery.max_attempts
        for change in changes:
            edge = (change.prev_state, change.state, change.reason)
            if edge == ("DEGRADED", "RECOVERING", "recovery_retry"):
                self.demand(left, Property.BOUNDED_RECOVERY, "an attempt beyond the last")
            if change.reason == "recovery_attempts_exhausted":
                self.demand(not left, Property.BOUNDED_RECOVERY, "ended although attempts were left")
        entries = sum(change.state == "RECOVERING" for change in changes)
        if after.state.value in _OPEN:
            first = 0 if before.state.value == "ATTACHED" else before.attempts
            counted = after.attempts == first + entries
            self.demand(counted, Property.BOUNDED_RECOVERY, "an attempt was not counted")

    def _policy(self, before: Session, event: Any, name: str, after: Session) -> None:
        """A policy that comes counts as far as it is tighter; the rest of it waits for ATTACHED."""
        if after.state.value == "TERMINATED":
            return
        calm, old = after.state.value == "ATTACHED", before.policy
        if name == "PolicyReloaded":
            new: Any = event.policy
            text = "the policy that came is not remembered"
            self.demand(calm or after.next_policy == new, Property.POLICY_IN_FORCE, text)
        elif calm and before.next_policy is not None:
            new = before.next_policy
        else:
            kept = after.policy is old and after.next_policy is before.next_policy
            self.demand(kept, Property.POLICY_IN_FORCE, f"{name} changed the policy")
            return
        now = after.policy
        for (section, key), wanted in published.in_force(old, new, calm=calm).items():
            found = getattr(getattr(now, section), key)
            text = f"{section}.{key} is {found} in {after.state.value}, where {wanted} is in force"
            self.demand(found == wanted, Property.POLICY_IN_FORCE, text)
        allowed = now.transports == new.transports
        self.demand(allowed, Property.POLICY_IN_FORCE, "other transports are allowed than the policy says")

    def _orders(self, before: Session, name: str, outcome: Step) -> None:
        """The world is told what the record says: which binding carries, which attempt runs, when all is over."""
        after, effects = outcome.session, outcome.effects
        old, new = before.binding, after.binding
        if after.state.value == "TERMINATED":
            erased = any(isinstance(effect, fx.Erase) for effect in effects)
            self.demand(erased, Property.SINGLE_BINDING, "the session ends and its keys stay")
            return
        if new is None:
            freed = old is None or fx.Unbind(old.transport) in effects
            self.demand(freed, Property.SINGLE_BINDING, "the binding is gone and its transport carries on")
        elif new != old and name != "KeysRotated":
            carried = [effect for effect in effects if isinstance(effect, fx.Bind | fx.Unbind)][-1:]
            told = carried == [fx.Bind(new.transport, new.peer, new.epoch)]
            self.demand(told, Property.SINGLE_BINDING, "the new binding carries nothing")
        asked = before.attempt
        dropped = asked is not None and after.attempt is not asked and after.state.value != "ATTACHED"
        if asked is not None and dropped and asked.kind.value == "switch":
            stopped = fx.StopAttempt(asked) in effects
            self.demand(stopped, Property.PAIRED, "a switch that was given up goes on")
        if after.attempt is not None and after.attempt is not asked:
            started = any(isinstance(effect, fx.StartAttempt) and effect.attempt == after.attempt for effect in effects)
            self.demand(started, Property.PAIRED, "an attempt is recorded that nobody makes")

    def _version(self, before: Session, outcome: Step) -> None:
        after = outcome.session
        versions = [e.state_version for e in outcome.events if e.lane == "S"]
        known = max([int(before.version), *(int(e.data.get("floor", 0)) for e in outcome.events)])
        rise = after.version - known
        text = f"the version rose by {rise} with state events at {sorted({v - known for v in versions})}"
        every = set(versions) == {known + n for n in range(1, rise + 1)} and versions == sorted(versions)
        self.demand(every and outcome.mutated == (rise > 0), Property.VERSION, text)
        changed = _durably_changed(before, after)
        self.demand(rise > 0 or not changed, Property.VERSION, "the record changed under one version")
        changes = [e.state_version for e in outcome.events if e.name == "session.state_change"]
        self.demand(len(changes) == len(set(changes)), Property.VERSION, "two changes of state in one version")

    def _lines(
        self, before: Session, name: str, line: published.Line | None, changes: list[DomainEvent], outcome: Step
    ) -> None:
        """The outcome is the published one, link by link, with its reasons and its further events."""
        if line is None:
            rejected = [e.reason for e in outcome.events] == ["invalid_event"]
            self.demand(rejected and outcome.session == before, Property.REJECTION, f"{name} is not listed here")
            return
        ignored = line.to is not None and not changes
        self.demand(not ignored, Property.VISIBLE, f"{before.state.value} + {name} had no effect")
        if line.to is None:
            self.demand(not changes, Property.EDGES, f"{before.state.value} + {name} may not change the state")
            self._said(line, outcome.events)
            return
        state, links = before.state.value, [line]
        for index, change in enumerate(changes):
            self.demand(change.state == links[0].to, Property.EDGES, f"{state} + {name} leads to {links[0].to}")
            self._link(name, links, change, outcome.events)
            state = str(change.state)
            last = index == len(changes) - 1
            text = f"{name} is fed on in {state}" if last else f"{name} ends in {state}"
            self.demand(links[0].then is not last, Property.EDGES, text)
            links = [more for more in published.BY_PAIR.get((state, name), ()) if more.to is not None]

    def _link(
        self, name: str, lines: list[published.Line], change: DomainEvent, events: tuple[DomainEvent, ...]
    ) -> None:
        """One change of state against the lines that may stand for it: what holds at a link inside is its choice."""
        row = change.data["row"]
        mine = {e.name for e in events if e.data["row"] == row}
        fitting = [line for line in lines if line.to == change.state and change.reason in line.reasons]
        self.demand(bool(fitting), Property.EDGES, f"{name} gave the reason {change.reason}")
        complete = any(line.events <= mine for line in fitting)
        missing = sorted(fitting[0].events - mine)
        self.demand(complete, Property.VISIBLE, f"row {row} did not say {', '.join(missing)}")

    def _said(self, line: published.Line, events: tuple[DomainEvent, ...]) -> None:
        names = {e.name for e in events}
        text = f"{line.event} did not say {', '.join(sorted(line.events - names))}"
        self.demand(line.events <= names, Property.VISIBLE, text)
        reasons = {e.reason for e in events if e.reason is not None}
        self.demand(reasons <= line.reasons, Property.EDGES, f"{line.event} gave the reasons {sorted(reasons)}")


def _line(before: Session, event: Any) -> published.Line | None:
    """The published line for ``event``; the publication itself must be unambiguous."""
    lines = published.BY_PAIR.get((before.state.value, type(event).__name__))
    if lines is None:
        return None
    fitting = [line for line in lines if line.when(before, event)]
    assert len(fitting) == 1, f"{before.state.value} + {event} is published {len(fitting)} times"
    return fitting[0]


def _durably_changed(before: Session, after: Session) -> bool:
    return any(getattr(before, name) != getattr(after, name) for name in published.DURABLE)


def _genuine(before: Session, event: Any, name: str, after: Session) -> bool:
    attempt, bound = before.attempt, after.binding
    asked = attempt.kind.value if attempt is not None and attempt.transport == getattr(event, "transport", "") else ""
    match name:
        case "HandshakeCompleted":
            return before.state.value == "BIRTH"
        case "IncumbentRevalidated":
            return asked == "revalidate" and before.incumbent == event.transport
        case "RebindingValidated":
            same = attempt is not None and attempt.peer == event.peer
            return asked == "rebind" and before.incumbent == event.transport and same
        case "ReattachAccepted":
            return bool(event.epoch > before.epoch)
        case "ReattachCommitted":
            return asked == "switch" and bool(event.epoch > before.epoch)
        case "KeysRotated":
            same_path = before.binding is not None and bound is not None
            return same_path and bool(event.epoch > before.epoch) and _same_path(before, after)
    return False


def _same_path(before: Session, after: Session) -> bool:
    old, new = before.binding, after.binding
    assert old is not None
    assert new is not None
    return (old.transport, old.peer) == (new.transport, new.peer)
