"""Seeded faults of table, guards, deadlines, actions, selection, validation and the order of simultaneous inputs.

Each names the property that must catch it. A fault that survives, or that another property catches, fails the run:
then the explorer does not see what it claims to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from jumpvpn.engine import gateway_plans, plans, seat
from jumpvpn.model import faults as f
from jumpvpn.policy import selection
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Budget, Nothing
from jumpvpn.properties import Property
from jumpvpn.session import actions as do
from jumpvpn.session import emissions, guards, machine, validation
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Binding, Session, State
from jumpvpn.session.transitions import ROWS
from jumpvpn.values import SECOND, Instant, SessionId, later


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: what it is, the names of the properties that may catch it, and the patch that seeds it."""

    name: str
    text: str
    declared: str
    seed: Callable[[], object]

    @property
    def expected(self) -> tuple[Property, ...]:
        """The properties that may catch it."""
        return tuple(Property[name] for name in self.declared.split())


def _never(_session: Session, _event: object) -> bool:
    return False


def _at_most(session: Session, _event: object) -> bool:
    return session.attempts <= session.policy.recovery.max_attempts


def _beyond(session: Session, event: object) -> bool:
    return not _at_most(session, event)


# --- the table -------------------------------------------------------------------------------------------------------


def _death_ends() -> None:
    f.change("22", next=State.TERMINATED, action=do.end, orders=do.no_orders, reason=Reason.TRANSPORT_TTL_EXCEEDED)


def _stranger_degrades() -> None:
    f.change("23", next=State.DEGRADED, mutates=True)


def _two_rows() -> None:
    f.change("11.standby", guard=guards.always)


def _ignored() -> None:
    f.change("3", next=None, mutates=False, action=do.nothing)


def _alive_again() -> None:
    f.instead(machine, "AFTER_TERMINATION", lambda shipped: replace(shipped, next=State.VOLATILE, mutates=True))


# --- guards ----------------------------------------------------------------------------------------------------------


def _unlimited() -> None:
    f.change("21", guard=guards.always)
    f.change("26", guard=_never)


def _one_too_many() -> None:
    f.change("21", guard=_at_most)
    f.change("26", guard=_beyond)


def _replay() -> None:
    shipped = guards.newer_epoch
    f.instead(guards, "newer_epoch", lambda _: lambda session, event: event.epoch >= session.epoch)
    for row in ("7", "7.volatile"):
        f.change(row, guard=guards.newer_epoch)
    f.change("36", guard=lambda session, event: session.binding is not None and shipped(session, event))
    f.change("36.stale", guard=lambda session, event: session.binding is None or not shipped(session, event))


def _unasked() -> None:
    f.change("14", guard=guards.always)
    f.change("14.unasked", guard=_never)


def _former_owner() -> None:
    f.instead(guards, "newer_owner", lambda _: lambda session, event: event.owner_epoch >= session.owner_epoch)
    for row in ("8", "8.volatile", "8.same", "8.birth"):
        f.change(row, guard=guards.newer_owner)


def _rekey_unbound() -> None:
    def rotate(session: Session, event: ev.KeysRotated, now: Instant) -> Session:
        assert session.incumbent is not None
        return replace(session, epoch=event.epoch, binding=Binding(session.incumbent, "", event.epoch, now))

    f.change("36", guard=guards.newer_epoch, action=rotate)
    f.change("36.stale", guard=guards.epoch_not_newer)


# --- actions ---------------------------------------------------------------------------------------------------------


def _ttl_restarts() -> None:
    def restart(_before: Session, after: Session, now: Instant) -> Session:
        return after if after.transportless_at is None else replace(after, transportless_at=now)

    f.and_then("21", restart)


def _same_epoch(before: Session, after: Session, _now: Instant) -> Session:
    assert after.binding is not None
    return replace(after, epoch=before.epoch, binding=replace(after.binding, epoch=before.epoch))


def _another(_before: Session, after: Session, _now: Instant) -> Session:
    return replace(after, id=SessionId(bytes(16)))


def _proof_outlives_owner(before: Session, after: Session, _now: Instant) -> Session:
    return replace(after, attempt=before.attempt)


def _tightening_waits() -> None:
    f.change("31", action=lambda session, event, _now: replace(session, next_policy=event.policy))


def _attempts_at_once() -> None:
    """A looser policy allows more attempts in the running episode."""

    def smaller(new: Policy, old: Policy, bounds: dict[str, tuple[str, ...]], shipped: Callable[..., Policy]) -> Policy:
        return shipped(new, old, {section: tuple(set(keys) - {"max_attempts"}) for section, keys in bounds.items()})

    f.instead(do, "_smaller", lambda shipped: lambda new, old, bounds: smaller(new, old, bounds, shipped))


def _loosening_never() -> None:
    f.instead(do, "_settle", lambda shipped: lambda session: replace(shipped(session), policy=session.policy))


def _late_stay() -> None:
    def applied(shipped: Callable[..., Session], *given: Any) -> Session:
        after = shipped(*given)
        return replace(after, entered_at=later(after.entered_at, SECOND)) if after.state is State.RECOVERING else after

    f.instead(machine, "_apply", lambda shipped: lambda *given: applied(shipped, *given))


def _attempts_carried_over() -> None:
    f.instead(do, "_settle", lambda shipped: lambda session: replace(shipped(session), attempts=session.attempts))
    f.and_then("4", lambda before, after, _now: replace(after, attempts=before.attempts))


def _long_attempt(_before: Session, after: Session, now: Instant) -> Session:
    assert after.attempt is not None
    return replace(after, attempt=replace(after.attempt, deadline=later(now, 9 * SECOND)))


def _held_though_dead() -> None:
    """Hold-down counts for dead transports too."""
    f.instead(
        selection, "_limits",
        lambda shipped: lambda best, wish, *more: shipped(best, replace(wish, urgent=False), *more),
    )  # fmt: skip


# --- selection, plans, validation ------------------------------------------------------------------------------------


def _budget(alter: Callable[[Budget], Budget]) -> None:
    f.instead(
        selection, "_limits",
        lambda shipped: lambda best, wish, budget, *more: shipped(best, wish, alter(budget), *more),
    )  # fmt: skip


def _gives_up() -> None:
    f.instead(
        plans, "choose",
        lambda shipped: lambda candidates, wish, *more: Nothing(0) if wish.urgent else shipped(candidates, wish, *more),
    )  # fmt: skip


def _denied_chosen() -> None:
    f.instead(
        plans, "choose",
        lambda shipped: lambda found, *more: shipped(tuple(replace(one, allowed=True) for one in found), *more),
    )  # fmt: skip


def _dawdles() -> None:
    def waited(at: Instant | None) -> Instant | None:
        return None if at is None else later(at, SECOND)

    f.instead(plans.Plans, "try_at", lambda shipped: lambda *given: waited(shipped(*given)))


def _missed_answer_refused() -> None:
    f.instead(
        validation, "_proven",
        lambda shipped: lambda session, *more: shipped(replace(session, prior_bound_version=None), *more),
    )  # fmt: skip


def _used_nonce() -> None:
    f.instead(
        validation, "_proven",
        lambda shipped: lambda session, request, now: shipped(session, replace(request, fresh_nonce=True), now),
    )  # fmt: skip


def _out_of_order() -> None:
    def version_first(
        session: Session, request: validation.ReattachRequest, now: object, shipped: Callable[..., validation.Verdict]
    ) -> validation.Verdict:
        if request.expected_version != session.bound_version:
            return validation.Verdict(8, Reason.STALE_STATE_VERSION)
        return shipped(session, request, now)

    f.instead(validation, "_proven", lambda shipped: lambda s, r, n: version_first(s, r, n, shipped))


# --- order and events ------------------------------------------------------------------------------------------------


def _unsteady() -> None:
    """Equal inputs give unequal events."""
    number = count()
    shipped = emissions._BUILDERS["transport.dead"]
    emissions._BUILDERS["transport.dead"] = lambda o: tuple(
        (name, {**data, "age_ms": next(number)}, transport) for name, data, transport in shipped(o)
    )


def _without_event(row: str, event: str) -> None:
    f.change(row, emits=tuple(name for name in ROWS[row].emits if name != event))


_SHORTCUT = {"next": State.ATTACHED}

MUTANTS: tuple[Mutant, ...] = (
    Mutant("volatile-to-attached", "row 9 returns to ATTACHED without recovery", "EDGES",
           lambda: f.change("9", **_SHORTCUT)),
    Mutant("wrong-reason", "a rebinding is recorded as stability", "EDGES",
           lambda: f.change("12.rebind", reason=Reason.PATH_STABILIZED)),
    Mutant("window-to-recovering", "the window passes and RECOVERING goes on", "EDGES",
           lambda: f.change("20", next=State.RECOVERING)),
    Mutant("death-terminates", "the death of a transport ends the session", "DEATH_IS_NOT_THE_END", _death_ends),
    Mutant("stranger-degrades", "an unauthenticated request degrades the session", "REJECTION", _stranger_degrades),
    Mutant("former-owner", "an owner that is not newer is obeyed", "REJECTION", _former_owner),
    Mutant("two-rows", "two rows are enabled for the death of a standby", "TOTALITY", _two_rows),
    Mutant("missing-row", "an attempt that fails late has no row", "TOTALITY", lambda: f.remove("17.late")),
    Mutant("unsteady", "equal inputs give unequal events", "TOTALITY", _unsteady),
    Mutant("unlisted-pair", "instability is not listed in ATTACHED", "VISIBLE",
           lambda: f.unlist(State.ATTACHED, ev.InstabilitySeen)),
    Mutant("instability-ignored", "instability of the active transport changes nothing", "VISIBLE", _ignored),
    Mutant("switch-unsaid", "a switch leaves no transport.switch", "VISIBLE",
           lambda: _without_event("16.client", "transport.switch")),
    Mutant("death-unsaid", "the death of the active transport leaves no transport.dead", "VISIBLE",
           lambda: _without_event("4", "transport.dead")),
    Mutant("warning-unsaid", "the end of the lifetime comes without a warning", "VISIBLE",
           lambda: f.without_deadline("lifetime_warning")),
    Mutant("switch-goes-on", "a switch goes on after its recovery window", "PAIRED",
           lambda: f.change("20", orders=do.no_orders)),
    Mutant("missed-answer-refused", "a client that missed the answer is refused", "PAIRED", _missed_answer_refused),
    Mutant("missed-answer-forgotten", "a switch forgets what the client knows if it misses the answer", "PAIRED",
           lambda: f.and_then("16", lambda _, after, _now: replace(after, prior_bound_version=None))),
    Mutant("version-kept", "the end of the window does not raise the version", "VERSION",
           lambda: f.change("20", mutates=False)),
    Mutant("silent-mutation", "a transport that dies in RECOVERING leaves no state event", "VERSION",
           lambda: f.change("22", emits=())),
    Mutant("alive-again", "an input after the end revives the session", "ABSORBING", _alive_again),
    Mutant("binding-at-the-end", "an operator's close keeps the binding", "SINGLE_BINDING",
           lambda: f.change("28", action=do.nothing)),
    Mutant("dead-carries-on", "nobody is told that the binding is gone", "SINGLE_BINDING",
           lambda: f.change("4", orders=do.no_orders)),
    Mutant("bound-in-name", "nobody is told of the new binding", "SINGLE_BINDING",
           lambda: f.change("16.client", orders=do.no_orders)),
    Mutant("another-identity", "a switch gives the session a new identifier", "IDENTITY",
           lambda: f.and_then("16.client", _another)),
    Mutant("replayed-epoch", "a request of the present epoch is accepted again", "PROOF", _replay),
    Mutant("used-nonce", "validation does not look at the nonce", "PROOF", _used_nonce),
    Mutant("validation-out-of-order", "the version is checked before freshness", "PROOF", _out_of_order),
    Mutant("unasked-proof", "a proof that nobody asked for restores the binding", "PROOF", _unasked),
    Mutant("rekey-without-binding", "a rekey binds a session that has lost its transport", "PROOF", _rekey_unbound),
    Mutant("owner-keeps-binding", "a takeover inherits the binding", "EPOCH",
           lambda: f.change("8", action=f.keep_binding, orders=do.no_orders)),
    Mutant("proof-outlives-owner", "a proof asked for under the former owner still counts", "EPOCH",
           lambda: f.and_then("8.same", _proof_outlives_owner)),
    Mutant("epoch-kept", "a reattach does not raise the epoch", "EPOCH",
           lambda: f.and_then("16.client", _same_epoch)),
    Mutant("ttl-restarts", "a retry restarts the clock of the missing transport", "CLOCKS", _ttl_restarts),
    Mutant("episode-restarts", "a retry restarts the clock of the episode", "CLOCKS",
           lambda: f.and_then("21", lambda _, after, now: replace(after, episode_at=now))),
    Mutant("policy-extends", "a reloaded policy moves running deadlines later", "CLOCKS POLICY_IN_FORCE",
           lambda: f.change("31", action=f.settled_policy)),
    Mutant("lifetime-extends", "a looser policy lengthens a running lifetime", "CLOCKS",
           lambda: f.instead(do, "_never_longer", lambda _: lambda policy, _old: policy)),
    Mutant("stay-begins-late", "the clock of RECOVERING begins a second late", "CLOCKS", _late_stay),
    Mutant("rotation-keeps-age", "fresh keys keep the age of the old ones", "CLOCKS",
           lambda: f.and_then("36", lambda before, after, _now: replace(after, keys_at=before.keys_at))),
    Mutant("tightening-waits", "a tighter policy does not count at once", "POLICY_IN_FORCE", _tightening_waits),
    Mutant("loosening-at-once", "a looser policy counts in the running episode", "POLICY_IN_FORCE", _attempts_at_once),
    Mutant("loosening-never", "a looser policy is forgotten", "POLICY_IN_FORCE", _loosening_never),
    Mutant("denied-chosen", "selection does not look at what policy denies", "POLICY_IN_FORCE", _denied_chosen),
    Mutant("no-ttl", "there is no transport TTL", "FINITE", lambda: f.without_deadline("transport_ttl")),
    Mutant("ttl-early", "the instant of the transport TTL is outside", "FINITE",
           lambda: f.moved_deadline("transport_ttl", -1)),
    Mutant("ttl-late", "the transport TTL ends a second late", "FINITE",
           lambda: f.moved_deadline("transport_ttl", SECOND)),
    Mutant("no-episode", "there is no bound of the episode", "FINITE", lambda: f.without_deadline("episode")),
    Mutant("no-lifetime", "there is no bound of the lifetime", "FINITE PRIORITY",
           lambda: f.without_deadline("lifetime")),
    Mutant("no-key-age", "keys never expire", "FINITE", lambda: f.without_deadline("key_age")),
    Mutant("no-window", "RECOVERING has no window", "BOUNDED_RECOVERY PRIORITY",
           lambda: f.without_deadline("recovery_window")),
    Mutant("no-dwell", "VOLATILE has no end", "BOUNDED_RECOVERY", lambda: f.without_deadline("volatile_dwell")),
    Mutant("no-attempt-timeout", "an attempt never runs out of time",
           "BOUNDED_RECOVERY PRIORITY", lambda: f.without_deadline("attempt")),
    Mutant("attempts-unlimited", "attempts are never used up", "BOUNDED_RECOVERY", _unlimited),
    Mutant("attempts-off-by-one", "one attempt more than policy allows", "BOUNDED_RECOVERY", _one_too_many),
    Mutant("attempts-carried-over", "an episode begins with the attempts of the last one", "BOUNDED_RECOVERY",
           _attempts_carried_over),
    Mutant("attempt-outlasts-window", "an attempt has longer than the recovery window", "BOUNDED_RECOVERY",
           lambda: f.and_then("17.start", _long_attempt)),
    Mutant("attempts-uncounted", "a retry is not counted", "BOUNDED_RECOVERY",
           lambda: f.change("21", action=f.plain_entry)),
    Mutant("switch-uncounted", "a switch does not spend the budget", "BOUNDED_SWITCHING",
           lambda: f.instead(do, "_spend", lambda _: lambda session, _now: session.switches)),
    Mutant("rebinding-unlimited", "the gateway lets an address change beyond the budget", "BOUNDED_SWITCHING",
           lambda: f.instead(gateway_plans, "may_rebind", lambda _: lambda _session, _now: True)),
    Mutant("hold-down-twice", "hold-down lasts twice as long as policy says", "BOUNDED_SWITCHING",
           lambda: f.and_then("16.client", lambda _, after, now: replace(
               after, hold_until=later(now, 2 * after.policy.switching.hold_down)))),
    Mutant("rate-off-by-one", "selection allows one switch too many", "BOUNDED_SWITCHING",
           lambda: _budget(lambda budget: Budget(budget.switches[1:], budget.hold_until))),
    Mutant("hold-down-ignored", "selection does not look at hold-down", "BOUNDED_SWITCHING",
           lambda: _budget(lambda budget: Budget(budget.switches, None))),
    Mutant("hold-down-binds-the-dead", "hold-down counts although nothing carries the session", "MUST_RECOVER",
           _held_though_dead),
    Mutant("gives-up", "selection finds nothing once the transport is gone", "MUST_RECOVER", _gives_up),
    Mutant("dawdles", "DEGRADED waits a second more than it has to", "MUST_RECOVER", _dawdles),
    Mutant("proof-not-asked", "the gateway asks a good incumbent for no proof", "MUST_RECOVER",
           lambda: f.instead(gateway_plans, "_next_attempt", lambda _: lambda *_more: ev.NoCandidate(0))),
    Mutant("never-retries", "DEGRADED waits although the way is free", "MUST_RECOVER",
           lambda: f.instead(plans.Plans, "try_at", lambda _: lambda *_more: None)),
    Mutant("tried-forgotten", "a transport that failed is tried again at once", "PROGRESS",
           lambda: f.change("17", action=lambda session, _event, _now: replace(session, attempt=None))),
    Mutant("priority-swapped", "a reattach overtakes the transport TTL", "PRIORITY",
           lambda: f.swapped_ranks(ev.TransportTtlPassed, ev.ReattachCommitted)),
    Mutant("close-before-security", "an operator's close hides a compromise", "PRIORITY",
           lambda: f.swapped_ranks(ev.CloseRequested, ev.SecurityFailed)),
    Mutant("losers-unnamed", "contributing is left empty", "PRIORITY",
           lambda: f.instead(seat, "cause_of", lambda _: lambda _event: None)),
    Mutant("losers-lost", "of simultaneous inputs only the first is applied", "PRIORITY",
           lambda: f.instead(seat, "by_priority", lambda shipped: lambda events: shipped(events)[:1])),
)  # fmt: skip

BY_NAME: dict[str, Mutant] = {mutant.name: mutant for mutant in MUTANTS}
