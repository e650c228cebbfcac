"""Reattach validation, in the published order. Nothing here changes anything.

0 parse and rate limits happen in the packet core; 1 session exists; 2 ownership; 3 state; 4 lifetime; 5 transport TTL;
6 proof of possession; 7 freshness; 8 version; 9 policy; 10 candidate sanity and return-routability.
"""

from __future__ import annotations

from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session, State
from jumpvpn.values import MILLISECOND, Epoch, Now, TransportId, dataclass, later

EPOCH_JUMP = 64  # a client raises its epoch once per attempt; more than this ahead is no honest client
PROOF_STEP = 6


@dataclass(frozen=True, slots=True)
class ReattachRequest:
    """What a request claims and what the packet core found out about it.

    ``age_ms`` is how old the session is on the client's boot clock: wall clocks may lie at either end, and jump.
    """

    transport: TransportId
    peer: str
    proof: bool
    fresh_nonce: bool
    nonce_id: str
    epoch: Epoch
    expected_version: int
    age_ms: int
    cause: Reason
    address_validated: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first check that failed, or None in ``reason`` when all passed.

    ``reason`` ADDRESS_UNVALIDATED asks for a challenge and is no denial.
    """

    step: int
    reason: Reason | None

    @property
    def passed(self) -> bool:
        """Whether the request may be committed."""
        return self.reason is None

    @property
    def answerable(self) -> bool:
        """Whether the peer has proved itself, so that it may be told."""
        return self.step > PROOF_STEP


def validate(session: Session | None, request: ReattachRequest, now: Now, *, owned: bool) -> Verdict:
    """Check ``request`` against ``session``; the first failure in the published order is the verdict."""
    if session is None:
        return Verdict(1, Reason.UNKNOWN_SESSION)
    if not owned:
        return Verdict(2, Reason.NOT_OWNER)
    if session.state in (State.TERMINATED, State.BIRTH):
        return Verdict(3, Reason.INVALID_STATE_FOR_REATTACH)
    policy = session.policy
    if now.boot > later(session.born_at, policy.session.max_lifetime):
        return Verdict(4, Reason.SESSION_EXPIRED)
    lost = session.transportless_at
    if lost is not None and now.boot > later(lost, policy.session.transport_ttl):
        return Verdict(5, Reason.TRANSPORT_TTL_EXCEEDED)
    if not request.proof:
        return Verdict(PROOF_STEP, Reason.BAD_PROOF)
    return _proven(session, request, now)


def _proven(session: Session, request: ReattachRequest, now: Now) -> Verdict:
    if not request.fresh_nonce:
        return Verdict(7, Reason.REPLAY_DETECTED)
    apart = abs(now.boot - session.born_at - request.age_ms * MILLISECOND)
    if apart > session.policy.security.reattach_max_age:
        return Verdict(7, Reason.STALE_REQUEST)
    if request.expected_version not in (session.bound_version, session.prior_bound_version):
        return Verdict(8, Reason.STALE_STATE_VERSION)
    if not session.epoch < request.epoch <= session.epoch + EPOCH_JUMP:
        return Verdict(8, Reason.STALE_STATE_VERSION)
    moves = request.transport != session.incumbent
    used = session.budget.used(now.boot)
    if moves and used >= session.policy.switching.max_per_minute:
        return Verdict(9, Reason.SWITCH_RATE_LIMITED)
    if not request.address_validated:
        return Verdict(10, Reason.ADDRESS_UNVALIDATED)
    return Verdict(10, None)
