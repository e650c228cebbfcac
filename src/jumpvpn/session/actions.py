"""What a row changes and orders: straight lines. State, version, reason and dwell are the machine's."""

from __future__ import annotations

from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session.effects import Bind, Effect, Erase, StartAttempt, StopAttempt, Unbind
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt, AttemptKind, Binding, Role, Session, State, Totals, Want
from jumpvpn.values import MILLISECOND, MINUTE, Epoch, Instant, Version, later, replace

# --- actions ---------------------------------------------------------------------------------------------------------


def nothing(session: Session, _event: Any, _now: Instant) -> Session:
    """The row changes no field of its own."""
    return session


def attach_first(session: Session, event: Any, now: Instant) -> Session:
    """BIRTH ends: the first binding, under the newest policy."""
    binding = Binding(event.transport, event.peer, event.epoch, now)
    return _settle(
        replace(
            session, binding=binding, incumbent=event.transport, epoch=event.epoch, keys_at=now,
            peer_version=event.peer_version,
        )
    )  # fmt: skip


def open_episode(session: Session, event: Any, now: Instant) -> Session:
    """ATTACHED is left: the episode clock starts."""
    entries = (*_recent(session.volatile_entries, now, session.policy.volatility.reentry_window), now)
    totals = replace(
        session.totals, episodes=session.totals.episodes + 1, episode_degraded=0, episode_denials=0,
        episode_unseen=_unseen(event),
    )  # fmt: skip
    return replace(session, episode_at=now, attempts=0, volatile_entries=entries, want=None, totals=totals)


def open_episode_unbound(session: Session, event: Any, now: Instant) -> Session:
    """As ``open_episode``; the binding vanished with its transport."""
    return lose_binding(open_episode(session, event, now), event, now)


def open_episode_for_owner(session: Session, event: Any, now: Instant) -> Session:
    """As ``open_episode_unbound``, under a new owner."""
    return note_owner(lose_owner(open_episode(session, event, now), event, now), event, now)


def lose_binding(session: Session, _event: Any, now: Instant) -> Session:
    """No binding; the transportless clock starts unless it runs already."""
    started = now if session.transportless_at is None else session.transportless_at
    return replace(session, binding=None, transportless_at=started)


def lose_owner(session: Session, event: Any, now: Instant) -> Session:
    """As ``lose_binding``, since the former owner was lost if that is known; never later than now."""
    return lose_binding(session, event, now if event.lost_at is None else min(now, event.lost_at))


def note_owner(session: Session, event: Any, _now: Instant) -> Session:
    """The new incarnation is recorded. What the client proved to know beyond the record, a former owner had bound."""
    owned = replace(session, owner_epoch=event.owner_epoch, epoch=Epoch(max(session.epoch, event.proven_epoch)))
    if event.proven_version <= session.bound_version:
        return owned
    known = Version(event.proven_version)
    return replace(owned, bound_version=known, prior_bound_version=session.bound_version)


def unbind_for_owner(session: Session, event: Any, now: Instant) -> Session:
    """A takeover never inherits the binding, nor a proof that was asked for under it; a reattach goes on."""
    lost = note_owner(lose_owner(session, event, now), event, now)
    asked = lost.attempt
    return replace(lost, attempt=asked if asked is not None and asked.kind is AttemptKind.SWITCH else None)


def enter_recovery(session: Session, _event: Any, _now: Instant) -> Session:
    """One attempt of the episode begins."""
    return replace(session, attempts=session.attempts + 1, attempt=None, tried=())


def enter_recovery_unbound(session: Session, event: Any, now: Instant) -> Session:
    """As ``enter_recovery``; the transport died just now."""
    return enter_recovery(lose_binding(session, event, now), event, now)


def recover_for_owner(session: Session, event: Any, now: Instant) -> Session:
    """As ``enter_recovery``, under a new owner."""
    return enter_recovery(unbind_for_owner(session, event, now), event, now)


def enter_recovery_same_path(session: Session, event: Any, now: Instant) -> Session:
    """The incumbent only has to prove itself."""
    want = Want(AttemptKind.REVALIDATE, Reason.PATH_STABILIZED, event.transport)
    return replace(enter_recovery(session, event, now), want=want)


def enter_recovery_rebind(session: Session, event: Any, now: Instant) -> Session:
    """The peer's new address has to prove itself."""
    want = Want(AttemptKind.REBIND, Reason.NAT_REBINDING, event.transport, event.new)
    return replace(enter_recovery(session, event, now), want=want)


def enter_recovery_forced(session: Session, event: Any, now: Instant) -> Session:
    """Another transport is wanted, by name or not."""
    return note_wish(enter_recovery(session, event, now), event, now)


def note_wish(session: Session, event: Any, _now: Instant) -> Session:
    """Remember which transport is wanted, and that the incumbent is no answer."""
    return replace(session, want=Want(AttemptKind.SWITCH, event.reason, event.target, avoid_incumbent=True))


def note_attempt(session: Session, event: Any, now: Instant) -> Session:
    """The attempt that runs."""
    return replace(session, attempt=Attempt(event.kind, event.transport, now, event.deadline, event.peer))


def drop_attempt(session: Session, event: Any, _now: Instant) -> Session:
    """The attempt is over; its transport was tried in this stay."""
    return replace(session, attempt=None, tried=(*session.tried, event.transport))


def hold(session: Session, _event: Any, _now: Instant) -> Session:
    """Wait for the condition to change; the wish that failed is forgotten."""
    return replace(session, attempt=None, want=None)


def hold_denied(session: Session, event: Any, now: Instant) -> Session:
    """As ``hold``; a peer that refused has told its version, so the next request names the right one."""
    told = event.peer_version or session.peer_version
    totals = replace(session.totals, episode_denials=session.totals.episode_denials + 1)
    return replace(hold(session, event, now), peer_version=max(session.peer_version, told), totals=totals)


def return_same_path(session: Session, event: Any, now: Instant) -> Session:
    """Back in ATTACHED on the incumbent, same epoch."""
    return _settle(replace(session, binding=Binding(event.transport, event.peer, session.epoch, now)))


def return_rebound(session: Session, event: Any, now: Instant) -> Session:
    """Back in ATTACHED on the incumbent at the peer's new address; it spends the switch budget."""
    binding = Binding(event.transport, event.peer, session.epoch, now)
    return _settle(replace(session, binding=binding, switches=_spend(session, now)))


def return_reattached(session: Session, event: Any, now: Instant) -> Session:
    """Back in ATTACHED on the transport of before, in a new epoch.

    Until the client shows that it has had an answer it names the version that it knows, however many are lost.
    """
    binding = Binding(event.transport, event.peer, event.epoch, now)
    known = getattr(event, "known_version", None) or session.bound_version
    return _settle(
        replace(
            session, binding=binding, incumbent=event.transport, epoch=event.epoch,
            prior_bound_version=known, bound_version=Version(session.version + 1),
            peer_version=getattr(event, "peer_version", session.peer_version),
        )
    )  # fmt: skip


def return_switched(session: Session, event: Any, now: Instant) -> Session:
    """As ``return_reattached``, on another transport: the budget is spent and hold-down begins."""
    moved = return_reattached(session, event, now)
    hold_until = later(now, session.policy.switching.hold_down)
    totals = replace(session.totals, switches=session.totals.switches + 1)
    return replace(moved, switches=_spend(session, now), hold_until=hold_until, totals=totals)


def end(session: Session, _event: Any, _now: Instant) -> Session:
    """Nothing is left but the record."""
    return replace(session, binding=None, attempt=None, want=None, next_policy=None)


def apply_policy(session: Session, event: Any, _now: Instant) -> Session:
    """Tightening counts at once; loosening waits for the next episode; no running deadline moves later."""
    return replace(session, policy=_tightened(session, event.policy), next_policy=event.policy)


def rotate_keys(session: Session, event: Any, now: Instant) -> Session:
    """Fresh keys on the same transport."""
    assert session.binding is not None
    return replace(session, epoch=event.epoch, keys_at=now, binding=replace(session.binding, epoch=event.epoch))


def note_warning(session: Session, _event: Any, _now: Instant) -> Session:
    """One more lifetime warning was given."""
    return replace(session, warnings=session.warnings + 1)


def counted(before: Session, totals: Totals, following: State, now: Instant) -> Totals:
    """``totals`` with the stay in ``before.state``, which ends, and with the stretch without transport if that ends."""
    dwell = now - before.entered_at
    match before.state:
        case State.VOLATILE:
            totals = replace(totals, volatile=totals.volatile + dwell)
        case State.RECOVERING:
            totals = replace(totals, recovering=totals.recovering + dwell)
        case State.DEGRADED:
            here = totals.episode_degraded + dwell
            totals = replace(totals, degraded=totals.degraded + dwell, episode_degraded=here)
    since = before.transportless_at
    if since is not None and following in (State.ATTACHED, State.TERMINATED):
        totals = replace(totals, transportless=totals.transportless + now - since)
    return totals


def _unseen(event: Any) -> int | None:
    """How long (ns) the transport had been silent when ``event`` told of it, if the event knows."""
    measured = getattr(event, "measured", None) or {}
    silent_ms = getattr(event, "age_ms", 0) or measured.get("silent_ms", 0)
    return round(silent_ms * MILLISECOND) or None


def _settle(session: Session) -> Session:
    awaited = session.next_policy
    policy = session.policy if awaited is None else _never_longer(awaited, session.policy)
    return replace(
        session, policy=policy, next_policy=None, transportless_at=None, episode_at=None, attempts=0, attempt=None,
        tried=(), want=None,
    )  # fmt: skip


def _spend(session: Session, now: Instant) -> tuple[Instant, ...]:
    return (*_recent(session.switches, now, MINUTE), now)


def _recent(instants: tuple[Instant, ...], now: Instant, window: int) -> tuple[Instant, ...]:
    return tuple(instant for instant in instants if now - instant < window)


def _never_longer(policy: Policy, old: Policy) -> Policy:
    """``policy``, except that the deadlines that always run (lifetime, key age) never move later than under ``old``."""
    return _smaller(policy, old, {"session": ("max_lifetime",), "security": ("key_max_age",)})


def _smaller(new: Policy, old: Policy, bounds: dict[str, tuple[str, ...]]) -> Policy:
    sections = {}
    for section, keys in bounds.items():
        ours, theirs = getattr(old, section), getattr(new, section)
        sections[section] = theirs.model_copy(
            update={key: min(getattr(ours, key), getattr(theirs, key)) for key in keys}
        )
    return new.model_copy(update=sections)


def _tightened(session: Session, new: Policy) -> Policy:
    """``new``, with every bound whose deadline may be running taken as the smaller of old and new."""
    if session.state is State.ATTACHED:
        return _never_longer(new, session.policy)
    running = {
        "session": ("max_lifetime", "transport_ttl", "handshake_timeout"),
        "volatility": ("volatile_max",),
        "switching": ("max_per_minute",),
        "recovery": ("window", "episode_max", "max_attempts"),
        "security": ("key_max_age",),
    }
    return _smaller(new, session.policy, running)


# --- orders ----------------------------------------------------------------------------------------------------------


def no_orders(_before: Session, _after: Session, _event: Any) -> tuple[Effect, ...]:
    """The row asks nothing of the world."""
    return ()


def bind(_before: Session, after: Session, _event: Any) -> tuple[Effect, ...]:
    """The new binding carries the session."""
    assert after.binding is not None
    return (Bind(after.binding.transport, after.binding.peer, Epoch(after.binding.epoch)),)


def unbind(before: Session, _after: Session, _event: Any) -> tuple[Effect, ...]:
    """The old binding carries nothing more."""
    return (Unbind(before.binding.transport if before.binding is not None else before.incumbent),)


def start_attempt(before: Session, after: Session, _event: Any) -> tuple[Effect, ...]:
    """The attempt begins; its cause is the reason that led into RECOVERING."""
    assert after.attempt is not None
    return (StartAttempt(after.attempt, before.reason or Reason.RECOVERY_RETRY),)


def stop_attempt(before: Session, _after: Session, _event: Any) -> tuple[Effect, ...]:
    """The running attempt, if any, is forgotten."""
    return (StopAttempt(before.attempt),) if before.attempt is not None else ()


def erase(before: Session, after: Session, event: Any) -> tuple[Effect, ...]:
    """The keys are erased; whoever closed need not be told."""
    assert after.reason is not None
    superseded = after.reason is Reason.DEVICE_SUPERSEDED and after.role is Role.CLIENT
    told_us = superseded or after.reason is Reason.PEER_CLOSED
    return (*stop_attempt(before, after, event), Erase(after.reason, tell_peer=not told_us))
