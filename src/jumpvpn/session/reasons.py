"""The registry of reasons: every cause that an event may carry, with severity and meaning.

Codes are lower snake case and stable: adding is allowed, renaming never. ``code`` on the wire is the position in
``Reason`` (append only), so that a denial fits two bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason says: ``severity`` is the OCSF severity id (1 informational .. 5 critical)."""

    severity: int
    text: str


class Reason(Enum):
    """Every cause, in wire order. Append only."""

    HANDSHAKE_OK = "handshake_ok"
    HANDSHAKE_FAILED = "handshake_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    LOSS_THRESHOLD_EXCEEDED = "loss_threshold_exceeded"
    CONSECUTIVE_DROP_EXCEEDED = "consecutive_drop_exceeded"
    PROBE_TIMEOUT = "probe_timeout"
    LATENCY_THRESHOLD_EXCEEDED = "latency_threshold_exceeded"
    TRANSPORT_DEAD = "transport_dead"
    NAT_REBINDING = "nat_rebinding"
    OPERATOR_SWITCH = "operator_switch"
    GATEWAY_DRAIN = "gateway_drain"
    POLICY_FORCED = "policy_forced"
    PEER_SIGNALLED = "peer_signalled"
    OWNER_CHANGED = "owner_changed"
    PATH_STABILIZED = "path_stabilized"
    VOLATILE_PERSISTED = "volatile_persisted"
    LOSS_RECOVERY = "loss_recovery"
    DEAD_TRANSPORT_RECOVERY = "dead_transport_recovery"
    SAME_PATH_REVALIDATED = "same_path_revalidated"
    REBIND_VALIDATED = "rebind_validated"
    REATTACH_SUCCESS = "reattach_success"
    COOLDOWN_ACTIVE = "cooldown_active"
    SWITCH_RATE_LIMITED = "switch_rate_limited"
    POLICY_DENIED = "policy_denied"
    NO_CANDIDATE_TRANSPORTS = "no_candidate_transports"
    RECOVERY_WINDOW_EXCEEDED = "recovery_window_exceeded"
    RECOVERY_RETRY = "recovery_retry"
    TRANSPORT_TTL_EXCEEDED = "transport_ttl_exceeded"
    EPISODE_BOUND_EXCEEDED = "episode_bound_exceeded"
    RECOVERY_ATTEMPTS_EXHAUSTED = "recovery_attempts_exhausted"
    SESSION_LIFETIME_EXCEEDED = "session_lifetime_exceeded"
    KEY_EXPIRED = "key_expired"
    OPERATOR_TERMINATED = "operator_terminated"
    PEER_CLOSED = "peer_closed"
    SECURITY_FAILURE = "security_failure"
    OWNERSHIP_CONFLICT = "ownership_conflict"
    EVENT_AFTER_TERMINATION = "event_after_termination"
    INVALID_EVENT = "invalid_event"
    UNKNOWN_SESSION = "unknown_session"
    INVALID_STATE_FOR_REATTACH = "invalid_state_for_reattach"
    SESSION_EXPIRED = "session_expired"
    BAD_PROOF = "bad_proof"
    REPLAY_DETECTED = "replay_detected"
    STALE_REQUEST = "stale_request"
    STALE_STATE_VERSION = "stale_state_version"
    NOT_OWNER = "not_owner"
    STORE_UNAVAILABLE = "store_unavailable"
    INVALID_TRANSPORT_CANDIDATE = "invalid_transport_candidate"
    ATOMICITY_FAILED = "atomicity_failed"
    RATE_LIMITED = "rate_limited"
    UNSUPPORTED_VERSION = "unsupported_version"
    INVARIANT_VIOLATION = "invariant_violation"
    DEVICE_SUPERSEDED = "device_superseded"
    UNKNOWN_DEVICE = "unknown_device"
    FAILBACK = "failback"
    REATTACH_TIMEOUT = "reattach_timeout"
    ADDRESS_UNVALIDATED = "address_unvalidated"
    POLICY_APPLIED = "policy_applied"
    POLICY_REJECTED = "policy_rejected"
    LEASE_LOST = "lease_lost"
    KEY_ROTATED = "key_rotated"

    @property
    def code(self) -> int:
        """Position in the registry: the two bytes of a reattach reply."""
        return _CODES[self]

    @property
    def meaning(self) -> Meaning:
        """Severity and text for people."""
        return MEANINGS[self]


_IN_ORDER = tuple(Reason)
_CODES = {reason: index for index, reason in enumerate(_IN_ORDER)}


def reason_of_code(code: int) -> Reason:
    """The reason a peer named; an unknown code (a newer peer's) reads as ``policy_denied``."""
    return _IN_ORDER[code] if code < len(_IN_ORDER) else Reason.POLICY_DENIED


REFUSALS = (
    Reason.UNKNOWN_SESSION,
    Reason.NOT_OWNER,
    Reason.INVALID_STATE_FOR_REATTACH,
    Reason.SESSION_EXPIRED,
    Reason.TRANSPORT_TTL_EXCEEDED,
    Reason.BAD_PROOF,
    Reason.REPLAY_DETECTED,
    Reason.STALE_REQUEST,
    Reason.STALE_STATE_VERSION,
    Reason.SWITCH_RATE_LIMITED,
    Reason.POLICY_DENIED,
    Reason.INVALID_TRANSPORT_CANDIDATE,
)
"""Why validation refuses a reattach request, in the order of its checks."""

DENIALS = (
    Reason.COOLDOWN_ACTIVE,
    *REFUSALS,
    Reason.STORE_UNAVAILABLE,
    Reason.ATOMICITY_FAILED,
    Reason.RATE_LIMITED,
    Reason.UNSUPPORTED_VERSION,
)
"""Why a wish to switch is denied, here or by the gateway."""


def denial(reason: Reason) -> Reason:
    """``reason`` if it can deny a switch, else ``policy_denied``: what a peer claims decides no row."""
    return reason if reason in DENIALS else Reason.POLICY_DENIED


_R = Reason
MEANINGS: dict[Reason, Meaning] = {
    _R.HANDSHAKE_OK: Meaning(1, "the handshake completed and the first transport is bound"),
    _R.HANDSHAKE_FAILED: Meaning(3, "the handshake was refused or its proof was wrong"),
    _R.HANDSHAKE_TIMEOUT: Meaning(3, "no completed handshake within its deadline"),
    _R.LOSS_THRESHOLD_EXCEEDED: Meaning(2, "the active transport loses more than policy allows"),
    _R.CONSECUTIVE_DROP_EXCEEDED: Meaning(2, "too many probes in a row went unanswered"),
    _R.PROBE_TIMEOUT: Meaning(2, "what was sent was not reported back within the silence limit"),
    _R.LATENCY_THRESHOLD_EXCEEDED: Meaning(2, "the active transport is slower than policy allows"),
    _R.TRANSPORT_DEAD: Meaning(3, "the active transport died"),
    _R.NAT_REBINDING: Meaning(2, "the peer's address changed under the same transport"),
    _R.OPERATOR_SWITCH: Meaning(1, "an operator asked for another transport"),
    _R.GATEWAY_DRAIN: Meaning(2, "the gateway announced that it will stop"),
    _R.POLICY_FORCED: Meaning(2, "policy now forbids the transport in use"),
    _R.PEER_SIGNALLED: Meaning(2, "the peer saw the transport fail first and asked to reattach"),
    _R.OWNER_CHANGED: Meaning(2, "another gateway process owns the session; the binding was cleared"),
    _R.PATH_STABILIZED: Meaning(1, "the incumbent was good for the whole stability window"),
    _R.VOLATILE_PERSISTED: Meaning(2, "the instability lasted longer than policy waits"),
    _R.LOSS_RECOVERY: Meaning(2, "another candidate is better by more than the hysteresis"),
    _R.DEAD_TRANSPORT_RECOVERY: Meaning(2, "the transport is dead, recovery starts without waiting"),
    _R.SAME_PATH_REVALIDATED: Meaning(1, "the incumbent answered a fresh challenge"),
    _R.REBIND_VALIDATED: Meaning(1, "the peer's new address answered a challenge"),
    _R.REATTACH_SUCCESS: Meaning(1, "the session is bound to a validated transport in a new epoch"),
    _R.COOLDOWN_ACTIVE: Meaning(2, "a switch so soon after the last one is held down"),
    _R.SWITCH_RATE_LIMITED: Meaning(3, "the switch budget of the last 60 s is used up"),
    _R.POLICY_DENIED: Meaning(2, "policy does not allow the transport"),
    _R.NO_CANDIDATE_TRANSPORTS: Meaning(3, "no usable transport is known"),
    _R.RECOVERY_WINDOW_EXCEEDED: Meaning(3, "the attempt did not succeed within the recovery window"),
    _R.RECOVERY_RETRY: Meaning(1, "the condition changed, one more attempt begins"),
    _R.TRANSPORT_TTL_EXCEEDED: Meaning(3, "the session was without a transport for longer than its TTL"),
    _R.EPISODE_BOUND_EXCEEDED: Meaning(3, "one episode of instability lasted longer than policy allows"),
    _R.RECOVERY_ATTEMPTS_EXHAUSTED: Meaning(3, "all recovery attempts of this episode failed"),
    _R.SESSION_LIFETIME_EXCEEDED: Meaning(2, "the session reached its maximum lifetime"),
    _R.KEY_EXPIRED: Meaning(3, "the keys are older than policy allows"),
    _R.OPERATOR_TERMINATED: Meaning(2, "an operator ended the session"),
    _R.PEER_CLOSED: Meaning(2, "the peer ended the session"),
    _R.SECURITY_FAILURE: Meaning(4, "evidence of compromise ended the session"),
    _R.OWNERSHIP_CONFLICT: Meaning(5, "two commits at one version were proved"),
    _R.EVENT_AFTER_TERMINATION: Meaning(2, "an input arrived for a terminated session"),
    _R.INVALID_EVENT: Meaning(2, "the input has no meaning in this state"),
    _R.UNKNOWN_SESSION: Meaning(3, "no such session here"),
    _R.INVALID_STATE_FOR_REATTACH: Meaning(3, "the session's state does not allow a reattach"),
    _R.SESSION_EXPIRED: Meaning(3, "the session's lifetime is over"),
    _R.BAD_PROOF: Meaning(4, "the proof of possession was wrong"),
    _R.REPLAY_DETECTED: Meaning(4, "the request was seen before"),
    _R.STALE_REQUEST: Meaning(3, "the request is older than policy allows"),
    _R.STALE_STATE_VERSION: Meaning(3, "the request names a version or epoch that is not the current one"),
    _R.NOT_OWNER: Meaning(3, "this gateway does not own the session"),
    _R.STORE_UNAVAILABLE: Meaning(4, "the store could not be written"),
    _R.INVALID_TRANSPORT_CANDIDATE: Meaning(3, "the named transport is not a valid candidate"),
    _R.ATOMICITY_FAILED: Meaning(4, "the commit was lost to another writer"),
    _R.RATE_LIMITED: Meaning(3, "too many requests"),
    _R.UNSUPPORTED_VERSION: Meaning(3, "the peer speaks another protocol version"),
    _R.INVARIANT_VIOLATION: Meaning(5, "an invariant could not be upheld; the session was ended"),
    _R.DEVICE_SUPERSEDED: Meaning(4, "the same device completed a new handshake; one credential, one live session"),
    _R.UNKNOWN_DEVICE: Meaning(4, "the device's key is not in the gateway's list"),
    _R.FAILBACK: Meaning(1, "a preferred transport has been stable long enough"),
    _R.REATTACH_TIMEOUT: Meaning(2, "the reattach request was not answered in time"),
    _R.ADDRESS_UNVALIDATED: Meaning(1, "the address must first answer a challenge"),
    _R.POLICY_APPLIED: Meaning(2, "a new policy is in force"),
    _R.POLICY_REJECTED: Meaning(3, "an invalid policy was refused; the last valid one stays"),
    _R.LEASE_LOST: Meaning(3, "the right to act for the session ended at this node"),
    _R.KEY_ROTATED: Meaning(1, "fresh keys are in use"),
}
