"""THE transition table: (state, event, guard) -> (state, reason, further events, action).

The table is data. Guards read as yes/no; actions are straight lines that change fields other than state, version,
reason and dwell, which the machine sets alike for every row. For each (state, event, facts) exactly one row is
enabled; a pair that no row lists is row 35. ``again`` feeds the same event to the new state, in the same step and
commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jumpvpn.session import actions as do
from jumpvpn.session import events as ev
from jumpvpn.session import guards as when
from jumpvpn.session.effects import Effect
from jumpvpn.session.reasons import DENIALS, REFUSALS, Reason
from jumpvpn.session.state import Session, State
from jumpvpn.values import Instant

Guard = Callable[[Session, Any], bool]
Action = Callable[[Session, Any, Instant], Session]
Orders = Callable[[Session, Session, Any], tuple[Effect, ...]]

BIRTH, ATTACHED, VOLATILE = State.BIRTH, State.ATTACHED, State.VOLATILE
RECOVERING, DEGRADED, TERMINATED = State.RECOVERING, State.DEGRADED, State.TERMINATED
LIVE = (BIRTH, ATTACHED, VOLATILE, RECOVERING, DEGRADED)
UNSETTLED = (VOLATILE, RECOVERING, DEGRADED)

UNSTABLE = (
    Reason.LOSS_THRESHOLD_EXCEEDED,
    Reason.CONSECUTIVE_DROP_EXCEEDED,
    Reason.PROBE_TIMEOUT,
    Reason.LATENCY_THRESHOLD_EXCEEDED,
)
FORCED = (Reason.OPERATOR_SWITCH, Reason.GATEWAY_DRAIN, Reason.POLICY_FORCED, Reason.FAILBACK)
FAILED = (Reason.REATTACH_TIMEOUT, Reason.TRANSPORT_DEAD, Reason.POLICY_DENIED, Reason.NAT_REBINDING)
CLOSED = (Reason.OPERATOR_TERMINATED, Reason.PEER_CLOSED, Reason.DEVICE_SUPERSEDED)


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``next`` None keeps the state; ``mutates`` says whether the durable record changes.

    ``reason`` as a tuple is the event's own reason, which must be one of these.
    """

    id: str
    states: tuple[State, ...]
    event: type
    next: State | None
    reason: Reason | tuple[Reason, ...] | None
    guard: Guard = when.always
    emits: tuple[str, ...] = ()
    action: Action = do.nothing
    orders: Orders = do.no_orders
    again: bool = False
    mutates: bool = True

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every reason that the row can give."""
        if isinstance(self.reason, tuple):
            return self.reason
        return () if self.reason is None else (self.reason,)


def _terminal(
    row_id: str, states: tuple[State, ...], event: type, reason: Reason | tuple[Reason, ...], **more: Any
) -> Row:
    emits = (*more.pop("emits", ()), "session.terminated")
    return Row(row_id, states, event, TERMINATED, reason, emits=emits, action=do.end, orders=do.erase, **more)


def _quiet(row_id: str, states: tuple[State, ...], event: type, **more: Any) -> Row:
    """A row that changes nothing durable."""
    return Row(row_id, states, event, None, more.pop("reason", None), mutates=False, **more)


_DEATH = ("transport.dead",)
_BORN = ("transport.attached", "ownership.acquired")
_SWITCHED = ("reattach.result", "transport.switch", "transport.retired", "session.episode_closed")
_REATTACHED = ("reattach.result", "transport.attached", "session.episode_closed")

TABLE: tuple[Row, ...] = (
    Row("1", (BIRTH,), ev.HandshakeCompleted, ATTACHED, Reason.HANDSHAKE_OK, emits=_BORN, action=do.attach_first,
        orders=do.bind),
    _terminal("2", (BIRTH,), ev.HandshakeFailed, (Reason.HANDSHAKE_FAILED, Reason.HANDSHAKE_TIMEOUT)),
    Row("3", (ATTACHED,), ev.InstabilitySeen, VOLATILE, UNSTABLE, when.on_binding, emits=("transport.health",),
        action=do.open_episode),
    _quiet("3.standby", (ATTACHED,), ev.InstabilitySeen, guard=when.not_on_binding),
    Row("4", (ATTACHED,), ev.TransportDied, VOLATILE, Reason.TRANSPORT_DEAD, when.on_binding, emits=_DEATH,
        action=do.open_episode_unbound, orders=do.unbind, again=True),
    _quiet("4.standby", (ATTACHED,), ev.TransportDied, guard=when.not_on_binding),
    Row("5", (ATTACHED,), ev.PeerAddressChanged, VOLATILE, Reason.NAT_REBINDING, when.on_binding,
        action=do.open_episode, again=True),
    _quiet("5.standby", (ATTACHED,), ev.PeerAddressChanged, guard=when.not_on_binding),
    Row("6", (ATTACHED,), ev.SwitchForced, VOLATILE, FORCED, action=do.open_episode, again=True),
    Row("7", (ATTACHED,), ev.ReattachAccepted, VOLATILE, Reason.PEER_SIGNALLED, when.newer_epoch,
        emits=("reattach.attempt",), action=do.open_episode, again=True),
    Row("7.volatile", (VOLATILE,), ev.ReattachAccepted, RECOVERING, Reason.PEER_SIGNALLED, when.newer_epoch,
        action=do.enter_recovery, again=True),
    Row("7.degraded", (DEGRADED,), ev.ReattachAccepted, RECOVERING, Reason.RECOVERY_RETRY,
        when.newer_epoch_and_attempts_left, action=do.enter_recovery, again=True),
    _terminal("26.reattach", (DEGRADED,), ev.ReattachAccepted, Reason.RECOVERY_ATTEMPTS_EXHAUSTED,
              guard=when.newer_epoch_and_attempts_used_up),
    _quiet("7.stale", (ATTACHED, VOLATILE, RECOVERING, DEGRADED), ev.ReattachAccepted, guard=when.epoch_not_newer,
           emits=("reattach.denied",), reason=Reason.STALE_STATE_VERSION),
    Row("8", (ATTACHED,), ev.OwnerChanged, VOLATILE, Reason.OWNER_CHANGED, when.newer_owner,
        emits=("ownership.acquired",), action=do.open_episode_for_owner, orders=do.unbind),
    Row("8.volatile", (VOLATILE,), ev.OwnerChanged, RECOVERING, Reason.OWNER_CHANGED, when.newer_owner,
        emits=("ownership.acquired",), action=do.recover_for_owner, orders=do.unbind),
    Row("8.same", (RECOVERING, DEGRADED), ev.OwnerChanged, None, Reason.OWNER_CHANGED, when.newer_owner,
        emits=("ownership.acquired",), action=do.unbind_for_owner, orders=do.unbind),
    Row("8.birth", (BIRTH,), ev.OwnerChanged, None, Reason.OWNER_CHANGED, when.newer_owner,
        emits=("ownership.acquired",), action=do.note_owner),
    _quiet("8.stale", LIVE, ev.OwnerChanged, guard=when.owner_not_newer, emits=("ownership.rejected",),
           reason=Reason.NOT_OWNER),
    Row("9", (VOLATILE,), ev.TransportStabilized, RECOVERING, Reason.PATH_STABILIZED, when.on_binding,
        action=do.enter_recovery_same_path),
    _quiet("9.other", (VOLATILE,), ev.TransportStabilized, guard=when.not_on_binding),
    Row("10", (VOLATILE,), ev.DwellPassed, RECOVERING, Reason.VOLATILE_PERSISTED, action=do.enter_recovery),
    Row("10.better", (VOLATILE,), ev.BetterCandidateSeen, RECOVERING, Reason.LOSS_RECOVERY,
        emits=("transport.health",), action=do.enter_recovery),
    Row("11", (VOLATILE,), ev.TransportDied, RECOVERING, Reason.DEAD_TRANSPORT_RECOVERY, when.on_binding,
        emits=_DEATH, action=do.enter_recovery_unbound, orders=do.unbind),
    Row("11.known", (VOLATILE,), ev.TransportDied, RECOVERING, Reason.DEAD_TRANSPORT_RECOVERY,
        when.on_incumbent_unbound, action=do.enter_recovery),
    _quiet("11.standby", (VOLATILE,), ev.TransportDied, guard=when.not_on_incumbent),
    Row("12.rebind", (VOLATILE,), ev.PeerAddressChanged, RECOVERING, Reason.NAT_REBINDING, when.on_binding,
        action=do.enter_recovery_rebind),
    _quiet("12.rebind.standby", (VOLATILE,), ev.PeerAddressChanged, guard=when.not_on_binding),
    Row("12.forced", (VOLATILE,), ev.SwitchForced, RECOVERING, FORCED, action=do.enter_recovery_forced),
    _quiet("12.late", (RECOVERING, DEGRADED), ev.PeerAddressChanged),
    _quiet("12.wish", (RECOVERING, DEGRADED), ev.SwitchForced, action=do.note_wish),
    _quiet("13", UNSETTLED, ev.InstabilitySeen, emits=("transport.health",), reason=UNSTABLE),
    Row("14", (RECOVERING,), ev.IncumbentRevalidated, ATTACHED, Reason.SAME_PATH_REVALIDATED, when.attempt_revalidates,
        emits=("transport.revalidated", "session.episode_closed"), action=do.return_same_path, orders=do.bind),
    _quiet("14.unasked", (RECOVERING,), ev.IncumbentRevalidated, guard=when.attempt_does_not_revalidate),
    Row("15", (RECOVERING,), ev.RebindingValidated, ATTACHED, Reason.REBIND_VALIDATED, when.attempt_rebinds,
        emits=("transport.rebound", "session.episode_closed"), action=do.return_rebound, orders=do.bind),
    _quiet("15.unasked", (RECOVERING,), ev.RebindingValidated, guard=when.attempt_does_not_rebind),
    Row("16", (RECOVERING,), ev.ReattachAccepted, ATTACHED, Reason.REATTACH_SUCCESS, when.newer_epoch_elsewhere,
        emits=_SWITCHED, action=do.return_switched, orders=do.bind),
    Row("16.same", (RECOVERING,), ev.ReattachAccepted, ATTACHED, Reason.REATTACH_SUCCESS, when.newer_epoch_same_path,
        emits=_REATTACHED, action=do.return_reattached, orders=do.bind),
    Row("16.client", (RECOVERING,), ev.ReattachCommitted, ATTACHED, Reason.REATTACH_SUCCESS,
        when.attempt_switches_elsewhere, emits=_SWITCHED, action=do.return_switched, orders=do.bind),
    Row("16.client.same", (RECOVERING,), ev.ReattachCommitted, ATTACHED, Reason.REATTACH_SUCCESS,
        when.attempt_switches_same_path, emits=_REATTACHED, action=do.return_reattached, orders=do.bind),
    _quiet("16.unasked", (RECOVERING,), ev.ReattachCommitted, guard=when.attempt_does_not_switch),
    _quiet("17", (RECOVERING,), ev.AttemptFailed, guard=when.attempt_on_transport, emits=("transport.switch_failed",),
           reason=FAILED, action=do.drop_attempt, orders=do.stop_attempt),
    _quiet("17.late", (RECOVERING,), ev.AttemptFailed, guard=when.no_attempt_on_transport),
    _quiet("17.start", (RECOVERING,), ev.AttemptStarted, guard=when.no_attempt, emits=("reattach.attempt",),
           action=do.note_attempt, orders=do.start_attempt),
    _quiet("17.busy", (RECOVERING,), ev.AttemptStarted, guard=when.attempt_runs),
    Row("18", (RECOVERING,), ev.SwitchDenied, DEGRADED, DENIALS, emits=("transport.switch_denied",),
        action=do.hold_denied, orders=do.stop_attempt),
    Row("19", (RECOVERING,), ev.NoCandidate, DEGRADED, Reason.NO_CANDIDATE_TRANSPORTS,
        emits=("transport.switch_denied",), action=do.hold, orders=do.stop_attempt),
    Row("20", (RECOVERING,), ev.RecoveryWindowPassed, DEGRADED, Reason.RECOVERY_WINDOW_EXCEEDED, action=do.hold,
        orders=do.stop_attempt),
    Row("21", (DEGRADED,), ev.ConditionMet, RECOVERING, Reason.RECOVERY_RETRY, when.attempts_left,
        action=do.enter_recovery),
    Row("22", (RECOVERING, DEGRADED), ev.TransportDied, None, Reason.TRANSPORT_DEAD, when.on_binding, emits=_DEATH,
        action=do.lose_binding, orders=do.unbind),
    _quiet("22.other", (RECOVERING, DEGRADED), ev.TransportDied, guard=when.not_on_binding),
    _quiet("23", LIVE, ev.ReattachRefused, emits=("reattach.denied",), reason=REFUSALS),
    _terminal("24", (ATTACHED, *UNSETTLED), ev.TransportTtlPassed, Reason.TRANSPORT_TTL_EXCEEDED,
              guard=when.transportless),
    _quiet("24.bound", (ATTACHED, *UNSETTLED), ev.TransportTtlPassed, guard=when.bound),
    _terminal("25", UNSETTLED, ev.EpisodePassed, Reason.EPISODE_BOUND_EXCEEDED),
    _terminal("26", (DEGRADED,), ev.ConditionMet, Reason.RECOVERY_ATTEMPTS_EXHAUSTED, guard=when.attempts_used_up),
    _terminal("27", LIVE, ev.LifetimePassed, Reason.SESSION_LIFETIME_EXCEEDED),
    _terminal("27.key", LIVE, ev.KeysExpired, Reason.KEY_EXPIRED, emits=("key.expired",)),
    _terminal("28", LIVE, ev.CloseRequested, CLOSED),
    _terminal("29", LIVE, ev.SecurityFailed, Reason.SECURITY_FAILURE, emits=("security.key_compromise_suspected",)),
    _terminal("30", LIVE, ev.OwnershipConflictProved, Reason.OWNERSHIP_CONFLICT, emits=("ownership.conflict",)),
    Row("31", LIVE, ev.PolicyReloaded, None, Reason.POLICY_APPLIED, emits=("policy.applied",), action=do.apply_policy),
    _quiet("31.invalid", LIVE, ev.PolicyRefused, emits=("policy.rejected",), reason=Reason.POLICY_REJECTED),
    _quiet("32", LIVE, ev.LeaseLost, emits=("ownership.lost",), reason=Reason.LEASE_LOST, orders=do.unbind),
    _quiet("33", LIVE, ev.StoreUnavailable, emits=("ownership.store_unavailable",), reason=Reason.STORE_UNAVAILABLE),
    Row("36", (ATTACHED, *UNSETTLED), ev.KeysRotated, None, Reason.KEY_ROTATED, when.rotation_newer,
        emits=("key.rotated",), action=do.rotate_keys),
    _quiet("36.stale", (ATTACHED, *UNSETTLED), ev.KeysRotated, guard=when.rotation_not_newer),
    _quiet("37", LIVE, ev.LifetimeNear, emits=("session.lifetime_warning",), action=do.note_warning),
)  # fmt: skip

ROWS: dict[str, Row] = {row.id: row for row in TABLE}

LISTED: dict[tuple[State, type], tuple[Row, ...]] = {
    (state, event): tuple(row for row in TABLE if state in row.states and row.event is event)
    for state, event in {(state, row.event) for row in TABLE for state in row.states}
}

AFTER_TERMINATION = Row("34", (TERMINATED,), object, None, Reason.EVENT_AFTER_TERMINATION,
                        emits=("session.input_rejected",), mutates=False)  # fmt: skip
NOT_LISTED = Row("35", LIVE, object, None, Reason.INVALID_EVENT, emits=("session.input_rejected",),
                 mutates=False)  # fmt: skip
