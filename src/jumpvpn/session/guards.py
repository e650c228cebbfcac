"""Yes/no questions that rows ask. Each comes with its complement, so that no pair of facts is undefined."""

from __future__ import annotations

from typing import Any

from jumpvpn.session.state import AttemptKind, Session


def always(_session: Session, _event: Any) -> bool:
    """No condition."""
    return True


def bound(session: Session, _event: Any) -> bool:
    """A binding lives."""
    return session.binding is not None


def transportless(session: Session, _event: Any) -> bool:
    """No binding lives."""
    return session.binding is None


def on_binding(session: Session, event: Any) -> bool:
    """The event's transport is the bound one."""
    return session.binding is not None and session.binding.transport == event.transport


def not_on_binding(session: Session, event: Any) -> bool:
    """Complement of ``on_binding``."""
    return not on_binding(session, event)


def on_incumbent_unbound(session: Session, event: Any) -> bool:
    """The event's transport was bound last, and its binding is already gone."""
    return session.binding is None and session.incumbent == event.transport


def not_on_incumbent(session: Session, event: Any) -> bool:
    """Neither bound nor the remembered incumbent."""
    return not on_binding(session, event) and not on_incumbent_unbound(session, event)


def newer_epoch(session: Session, event: Any) -> bool:
    """The event's epoch is above the session's."""
    return bool(event.epoch > session.epoch)


def epoch_not_newer(session: Session, event: Any) -> bool:
    """Complement of ``newer_epoch``."""
    return not newer_epoch(session, event)


def attempts_left(session: Session, _event: Any) -> bool:
    """This episode may try once more."""
    return session.attempts < session.policy.recovery.max_attempts


def attempts_used_up(session: Session, event: Any) -> bool:
    """Complement of ``attempts_left``."""
    return not attempts_left(session, event)


def newer_epoch_and_attempts_left(session: Session, event: Any) -> bool:
    """A valid request, and the episode may try once more."""
    return newer_epoch(session, event) and attempts_left(session, event)


def newer_epoch_and_attempts_used_up(session: Session, event: Any) -> bool:
    """A valid request that comes after the last attempt."""
    return newer_epoch(session, event) and attempts_used_up(session, event)


def newer_epoch_elsewhere(session: Session, event: Any) -> bool:
    """A valid request that moves the session to another transport."""
    return newer_epoch(session, event) and session.incumbent != event.transport


def newer_epoch_same_path(session: Session, event: Any) -> bool:
    """A valid request on the transport that was bound last."""
    return newer_epoch(session, event) and session.incumbent == event.transport


def newer_owner(session: Session, event: Any) -> bool:
    """The owner's incarnation is above the recorded one."""
    return bool(event.owner_epoch > session.owner_epoch)


def owner_not_newer(session: Session, event: Any) -> bool:
    """Complement of ``newer_owner``."""
    return not newer_owner(session, event)


def no_attempt(session: Session, _event: Any) -> bool:
    """No attempt runs."""
    return session.attempt is None


def attempt_runs(session: Session, event: Any) -> bool:
    """Complement of ``no_attempt``."""
    return not no_attempt(session, event)


def attempt_on_transport(session: Session, event: Any) -> bool:
    """The running attempt is the event's."""
    return session.attempt is not None and session.attempt.transport == event.transport


def no_attempt_on_transport(session: Session, event: Any) -> bool:
    """Complement of ``attempt_on_transport``."""
    return not attempt_on_transport(session, event)


def _attempt_is(session: Session, event: Any, kind: AttemptKind) -> bool:
    return attempt_on_transport(session, event) and session.attempt is not None and session.attempt.kind is kind


def attempt_revalidates(session: Session, event: Any) -> bool:
    """The incumbent was asked to prove itself."""
    return _attempt_is(session, event, AttemptKind.REVALIDATE) and session.incumbent == event.transport


def attempt_does_not_revalidate(session: Session, event: Any) -> bool:
    """Complement of ``attempt_revalidates``."""
    return not attempt_revalidates(session, event)


def attempt_rebinds(session: Session, event: Any) -> bool:
    """The incumbent's new address under challenge is the one that answered."""
    matches = _attempt_is(session, event, AttemptKind.REBIND) and session.incumbent == event.transport
    return matches and session.attempt is not None and session.attempt.peer == event.peer


def attempt_does_not_rebind(session: Session, event: Any) -> bool:
    """Complement of ``attempt_rebinds``."""
    return not attempt_rebinds(session, event)


def _attempt_switches(session: Session, event: Any) -> bool:
    return _attempt_is(session, event, AttemptKind.SWITCH) and newer_epoch(session, event)


def attempt_switches_elsewhere(session: Session, event: Any) -> bool:
    """The confirmed attempt moves the session to another transport."""
    return _attempt_switches(session, event) and session.incumbent != event.transport


def attempt_switches_same_path(session: Session, event: Any) -> bool:
    """The confirmed attempt binds the transport that was bound last."""
    return _attempt_switches(session, event) and session.incumbent == event.transport


def attempt_does_not_switch(session: Session, event: Any) -> bool:
    """Complement of the two above: a confirmation that nobody asked for."""
    return not _attempt_switches(session, event)


def rotation_newer(session: Session, event: Any) -> bool:
    """A rekey raises the epoch of a living binding."""
    return newer_epoch(session, event) and session.binding is not None


def rotation_not_newer(session: Session, event: Any) -> bool:
    """Complement of ``rotation_newer``."""
    return not rotation_newer(session, event)
