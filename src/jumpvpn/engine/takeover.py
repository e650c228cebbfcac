"""How a gateway comes to own a session that another one, or an earlier run of this one, owned before."""

from __future__ import annotations

from jumpvpn.engine import inputs as inp
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import reason_of_code
from jumpvpn.session.records import CLOCKS_APART
from jumpvpn.session.state import Session
from jumpvpn.session.validation import ReattachRequest
from jumpvpn.values import MILLISECOND, Instant, replace


def request_of(asked: inp.ReattachAsked, *, address_validated: bool) -> ReattachRequest:
    """What is validated of a request."""
    return ReattachRequest(
        transport=asked.transport, peer=asked.peer, proof=asked.proof, fresh_nonce=asked.fresh_nonce,
        nonce_id=asked.nonce_id, epoch=asked.epoch, expected_version=asked.expected_version,
        age_ms=asked.age_ms, cause=reason_of_code(asked.cause), address_validated=address_validated,
    )  # fmt: skip


def claim_for(asked: inp.TakeoverAsked) -> ev.OwnerChanged:
    """The change of owner that a proven request asks for.

    It records the epoch that the client has come to: what it asked of others before that, and gave up, is too old then.
    """
    return _proven_change(asked.session, asked.request, asked.owner, asked.lost_at)


def claim_again(session: Session, asked: inp.ReattachAsked) -> ev.OwnerChanged | None:
    """For a session that was claimed without its client's word: the client knows more than the record did, if so.

    That is a binding: its version may be one that has been given again since, to what became of the session here.
    """
    if not (asked.proof and asked.fresh_nonce and asked.expected_version > session.bound_version):
        return None
    return _proven_change(session, asked, "", None)


def _proven_change(session: Session, asked: inp.ReattachAsked, owner: str, lost_at: Instant | None) -> ev.OwnerChanged:
    term, cause = session.owner_epoch + 1, ev.OwnerCause.REQUEST
    return ev.OwnerChanged(term, owner, lost_at, asked.expected_version, asked.epoch - 1, cause)


def claim_after(restored: inp.SessionRestored) -> ev.OwnerChanged:
    """The change of owner after a restart, because the former owner is gone, or to end what a newer session replaced.

    A node comes back to its own sessions at no particular moment; those of others it adopts since they lost theirs.
    """
    cause = ev.OwnerCause.ORPHAN if restored.lost_at is not None else ev.OwnerCause.RESTART
    cause = ev.OwnerCause.SUPERSEDED if restored.superseded else cause
    return ev.OwnerChanged(restored.session.owner_epoch + 1, restored.owner, restored.lost_at, cause=cause)


def as_old_as_asked(session: Session, asked: inp.ReattachAsked, now: Instant) -> Session:
    """The session with the age that its client proves to claim, where only wall clocks tell it here.

    They may lie at either end, so a client may make it older, and younger by as much as clocks may be apart.
    """
    born_at = Instant(now - asked.age_ms * MILLISECOND)
    return replace(session, born_at=born_at) if asked.proof and born_at - session.born_at <= CLOCKS_APART else session


def age_ms(session: Session, now: Instant) -> int:
    """The session's age by the boot clock."""
    return (now - session.born_at) // MILLISECOND
