"""The mission's invariants against adversarial facts: any event at any time, deadlines included, in any order.

Two facts are not forged, because a check in front of the machine decides them: a switch is only begun or accepted
inside the budget (policy.selection, session.validation).
"""

from __future__ import annotations

from typing import Any

from build import LTE, NEW_PEER, PEER, START, TRANSPORTS, born, policy, started
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import POLICIES, events

from jumpvpn.engine.seat import Turn
from jumpvpn.policy.selection import Budget
from jumpvpn.session import events as ev
from jumpvpn.session.deadlines import deadlines, reached_deadlines
from jumpvpn.session.machine import Step, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.transitions import ROWS
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Epoch, Instant, Version, later

RULES = policy(switching={"max_per_minute": 3}, session={"transport_ttl": "20s"}, recovery={"episode_max": "60s"})
ALWAYS_BOUNDS = ("lifetime", "key_age")
_UNSETTLED = (State.VOLATILE, State.RECOVERING, State.DEGRADED)


class Adversary(RuleBasedStateMachine):
    """One session, one clock, every fact."""

    session: Session
    now: Instant

    @initialize(role=st.sampled_from(Role))
    def begin(self, role: Role) -> None:
        self.session, self.now = born(role, RULES), START
        self.first = self.session.id
        self.feed(ev.HandshakeCompleted(LTE, PEER, Epoch(1), Version(1)))

    def feed(self, *facts: Any) -> None:
        """One turn, every step of it watched."""
        before = self.session
        machine = self

        class Watched(Turn):
            def take(self, outcome: Step) -> None:
                machine.watch(self.session, outcome)
                Turn.take(self, outcome)

        turn = Watched(before, self.now, int(before.version))
        turn.feed(*facts)
        self.session = turn.session

    def watch(self, before: Session, outcome: Step) -> None:
        """What holds of every single step."""
        after = outcome.session
        rows = [ROWS.get(row) for row in outcome.rows]
        known = max(int(before.version), *(int(event.data.get("floor", 0)) for event in outcome.events), 0)
        assert after.version == known + sum(row is not None and row.mutates for row in rows), "VERSION"
        assert after.epoch >= before.epoch, "EPOCH"
        assert after.id == before.id, "IDENTITY"
        if before.state is State.TERMINATED:
            assert after == before, "ABSORBING"
        if (new := after.binding) is not None and new != before.binding and before.state is not State.BIRTH:
            assert outcome.rows[-1] in ("14", "15", "16", "16.same", "16.client", "16.client.same", "36"), "PROOF"
        self._clocks(before, after)
        self._budget(before, after)

    def _clocks(self, before: Session, after: Session) -> None:
        if after.state is State.ATTACHED or after.state is State.TERMINATED:
            return
        for clock in ("transportless_at", "episode_at"):
            old, new = getattr(before, clock), getattr(after, clock)
            assert old is None or new == old or before.state is State.ATTACHED, f"{clock} moved while it ran"
        if before.state is after.state and before.state in _UNSETTLED:
            earlier = {d.name: d.at for d in deadlines(before) if d.name not in ("attempt", "lifetime_warning")}
            for deadline in deadlines(after):
                moved = deadline.at > earlier.get(deadline.name, deadline.at)
                assert not moved or (deadline.name == "key_age" and after.keys_at > before.keys_at), deadline.name

    def _budget(self, before: Session, after: Session) -> None:
        if after.switches != before.switches:
            used = sum(1 for at in after.switches if self.now - at < MINUTE)
            assert used <= before.policy.switching.max_per_minute, "BOUNDED_SWITCHING"

    # --- facts -------------------------------------------------------------------------------------------------------

    @rule(event=events)
    def anything(self, event: Any) -> None:
        barred = (ev.AttemptStarted, ev.ReattachAccepted)
        if not isinstance(event, barred) and self._may_move(event):
            self.feed(event)

    @rule(first=events, second=events)
    def two_at_once(self, first: Any, second: Any) -> None:
        barred = (ev.AttemptStarted, ev.ReattachAccepted)
        if not isinstance(first, barred) and not isinstance(second, barred) and self._may_move(first, second):
            self.feed(first, second)

    @rule(
        transport=st.sampled_from(TRANSPORTS), kind=st.sampled_from(AttemptKind), peer=st.sampled_from((PEER, NEW_PEER))
    )
    def attempt(self, transport: Any, kind: AttemptKind, peer: str) -> None:
        fact = started(self.session, transport, kind, self.now, peer if kind is AttemptKind.REBIND else None)
        if self._may_switch() or kind is AttemptKind.REVALIDATE:
            self.feed(fact)

    @precondition(lambda self: self.session.attempt is not None)
    @rule(gap=st.integers(-1, 3))
    def answer(self, gap: int) -> None:
        attempt = self.session.attempt
        assert attempt is not None
        peer = attempt.peer or PEER
        answers = {
            AttemptKind.SWITCH: ev.ReattachCommitted(
                attempt.transport, PEER, Epoch(max(0, self.session.epoch + gap)), Version(9), "00"
            ),
            AttemptKind.REVALIDATE: ev.IncumbentRevalidated(attempt.transport, peer, 1),
            AttemptKind.REBIND: ev.RebindingValidated(attempt.transport, peer, 1),
        }
        if self._may_switch() or attempt.kind is AttemptKind.REVALIDATE:
            self.feed(answers[attempt.kind])

    @rule(transport=st.sampled_from(TRANSPORTS), gap=st.integers(-1, 3))
    def request(self, transport: Any, gap: int) -> None:
        epoch = Epoch(max(0, self.session.epoch + gap))
        if self._may_switch() and self.session.state is not State.BIRTH:
            self.feed(ev.ReattachAccepted(transport, PEER, epoch, "00", Reason.TRANSPORT_DEAD))

    @rule(rules=st.sampled_from((*POLICIES, RULES)))
    def reload(self, rules: Any) -> None:
        self.feed(ev.PolicyReloaded(rules))

    @rule(wait=st.sampled_from((1, MILLISECOND, SECOND, 3 * SECOND, 9 * SECOND, 61 * SECOND)))
    def time_passes(self, wait: int) -> None:
        self.now = later(self.now, wait)
        self.feed()

    @rule()
    def sleep_until_a_deadline(self) -> None:
        """The deadline itself is still inside, one nanosecond later it is not."""
        running = [d.at for d in deadlines(self.session) if d.name not in (*ALWAYS_BOUNDS, "lifetime_warning")]
        if running and min(running) >= self.now:
            self.now = min(running)
            assert self.now not in {
                d.at for d in deadlines(self.session) if d.event in reached_deadlines(self.session, self.now)
            }
            self.now = later(self.now, 1)
            assert reached_deadlines(self.session, self.now)
            self.feed()

    def _may_switch(self) -> bool:
        used = Budget(self.session.switches, None).used(self.now)
        return used < self.session.policy.switching.max_per_minute

    def _may_move(self, *facts: Any) -> bool:
        moving = (ev.ReattachCommitted, ev.RebindingValidated)
        return self._may_switch() or not any(isinstance(fact, moving) for fact in facts)

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def single_binding(self) -> None:
        session = self.session
        assert (session.state is State.ATTACHED) <= (session.binding is not None)
        assert (session.state is State.TERMINATED) <= (session.binding is None)
        assert session.binding is None or session.binding.transport == session.incumbent
        assert session.binding is None or session.binding.epoch == session.epoch

    @invariant()
    def identity(self) -> None:
        assert self.session.id == self.first

    @invariant()
    def clocks_run_when_they_must(self) -> None:
        session = self.session
        if session.state in _UNSETTLED:
            assert session.episode_at is not None
            assert (session.binding is None) == (session.transportless_at is not None)
        if session.state is State.ATTACHED:
            assert session.episode_at is None
            assert session.transportless_at is None
            assert session.attempts == 0

    @invariant()
    def finite(self) -> None:
        """After a turn nothing that ends the session, or its stay in a state, is overdue."""
        if self.session.state is not State.TERMINATED:
            overdue = [type(event) for event in reached_deadlines(self.session, self.now)]
            assert not set(overdue) & {ev.LifetimePassed, ev.KeysExpired, ev.TransportTtlPassed, ev.EpisodePassed}

    @invariant()
    def attempts_belong_to_recovery(self) -> None:
        assert (self.session.attempt is not None) <= (self.session.state is State.RECOVERING)


TestAdversary = Adversary.TestCase
TestAdversary.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_a_policy_that_comes_during_the_handshake_is_in_force_once_attached() -> None:
    """Only deadlines that go on running keep the smaller value: nothing else of the old policy outlives BIRTH."""
    old = policy(session={"max_lifetime": "1h", "transport_ttl": "20s"}, recovery={"episode_max": "20s"})
    new = policy(session={"max_lifetime": "2h", "transport_ttl": "30s"}, recovery={"episode_max": "40s"})
    waiting = step(born(rules=old), ev.PolicyReloaded(new), START).session
    assert waiting.policy.session.transport_ttl == old.session.transport_ttl
    session = step(waiting, ev.HandshakeCompleted(LTE, PEER, Epoch(1), Version(1)), START).session
    assert (session.state, session.next_policy) == (State.ATTACHED, None)
    assert session.policy.session.transport_ttl == new.session.transport_ttl
    assert session.policy.recovery == new.recovery
    assert session.policy.session.max_lifetime == old.session.max_lifetime
