"""The session's rules as the mission states them, written down again: what the checker holds every run against.

Nothing here is read from the transition table: a row that goes astray must meet a second opinion.
"""

from __future__ import annotations

from collections.abc import Mapping

_FORCED = {"operator_switch", "gateway_drain", "policy_forced", "failback"}
_UNSTABLE = {"loss_threshold_exceeded", "consecutive_drop_exceeded", "probe_timeout", "latency_threshold_exceeded"}
_LIMITED = {"cooldown_active", "switch_rate_limited", "policy_denied"}
_TOLD = {  # what a gateway that refused may have told
    "stale_state_version", "store_unavailable", "atomicity_failed", "stale_request", "replay_detected", "not_owner",
    "session_expired", "transport_ttl_exceeded", "invalid_state_for_reattach", "invalid_transport_candidate",
    "rate_limited", "unsupported_version", "recovery_attempts_exhausted",
}  # fmt: skip
_CLOSED = {"operator_terminated", "peer_closed", "device_superseded"}
_ENDED = {"session_lifetime_exceeded", "key_expired", "security_failure", "ownership_conflict"} | _CLOSED
_TTL, _EPISODE = {"transport_ttl_exceeded"}, {"episode_bound_exceeded"}

EDGES: Mapping[tuple[str, str], frozenset[str]] = {
    edge: frozenset(reasons)
    for edge, reasons in {
        ("BIRTH", "ATTACHED"): {"handshake_ok"},
        ("ATTACHED", "VOLATILE"): {*_UNSTABLE, *_FORCED, "transport_dead", "nat_rebinding", "peer_signalled",
                                   "owner_changed"},
        ("VOLATILE", "RECOVERING"): {*_FORCED, "path_stabilized", "volatile_persisted", "loss_recovery",
                                     "dead_transport_recovery", "nat_rebinding", "peer_signalled", "owner_changed"},
        ("RECOVERING", "ATTACHED"): {"same_path_revalidated", "rebind_validated", "reattach_success"},
        ("RECOVERING", "DEGRADED"): {*_LIMITED, *_TOLD, "no_candidate_transports", "recovery_window_exceeded"},
        ("DEGRADED", "RECOVERING"): {"recovery_retry"},
        ("BIRTH", "TERMINATED"): {*_ENDED, "handshake_failed", "handshake_timeout"},
        ("ATTACHED", "TERMINATED"): {*_ENDED, *_TTL},
        ("VOLATILE", "TERMINATED"): {*_ENDED, *_TTL, *_EPISODE},
        ("RECOVERING", "TERMINATED"): {*_ENDED, *_TTL, *_EPISODE},
        ("DEGRADED", "TERMINATED"): {*_ENDED, *_TTL, *_EPISODE, "recovery_attempts_exhausted"},
    }.items()
}  # fmt: skip
"""Every edge there is, with the reasons that may lead along it."""

ENDINGS: tuple[str, ...] = (
    "session_lifetime_exceeded",
    "key_expired",
    "transport_ttl_exceeded",
    "episode_bound_exceeded",
)
"""Ends that a clock demands, the first of several that have passed wins."""

STEPS_MAX = 64  # rows in one turn
TICKS_AT_ONCE = 16  # wake-ups at one instant that an engine may ask for: more are a loop
TICKS_PER_SECOND = 256  # wake-ups of its own accord within one second: far above what any plan needs
