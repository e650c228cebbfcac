"""Every event there is: its lanes, its severity, and the data fields it may carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Lane(StrEnum):
    """STATE events belong to a committed mutation and its session's chain; NODE events to the process run's chain."""

    STATE = "S"
    NODE = "N"


class Severity(IntEnum):
    """OCSF 1.8 ``severity_id``."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the catalogue. The field ``row`` (of the transition table) belongs to every event that has one."""

    lanes: frozenset[Lane]
    severity: Severity
    fields: frozenset[str]


_STATE = frozenset({Lane.STATE})
_NODE = frozenset({Lane.NODE})
_BOTH = _STATE | _NODE
_INFO, _LOW, _MEDIUM, _HIGH, _CRITICAL = Severity


def _entry(lanes: frozenset[Lane], severity: Severity, fields: str) -> Entry:
    return Entry(lanes, severity, frozenset(fields.split()) | {"row"})


_SECURITY = "step nonce_id count source_prefix code"
_OWNED = "from_node epoch lease_ms version floor cause"
_COALESCED = " count first_ms last_ms"  # denials of one kind within the interval become one record

CATALOGUE: Mapping[str, Entry] = {
    "session.created": _entry(_STATE, _INFO, "client_id_hash requested_policy role bounds"),
    "session.state_change": _entry(_STATE, _INFO, "dwell_ms transportless_ms episode_ms recovery_ms attempts bounds"),
    "session.terminated": _entry(
        _STATE,
        _LOW,
        "session_age_ms transportless_ms last_epoch switches_total episodes_total volatile_ms recovering_ms degraded_ms"
        " episode_ms episode_degraded_ms attempts denials detect_ms bytes_in_total bytes_out_total",
    ),
    "session.episode_closed": _entry(
        _STATE, _INFO, "detect_ms recovery_ms degraded_ms transportless_ms attempts denials outcome"
    ),
    "session.input_rejected": _entry(_NODE, _LOW, "input code" + _COALESCED),
    "session.lifetime_warning": _entry(_NODE, _LOW, "left_ms"),
    "transport.attached": _entry(_STATE, _INFO, "epoch"),
    "transport.retired": _entry(_STATE, _INFO, "epoch"),
    "transport.dead": _entry(_BOTH, _MEDIUM, "evidence age_ms was_active"),
    "transport.health": _entry(
        _NODE,
        _INFO,
        "loss_ratio rtt_p95_ms jitter_ms silent_ms limit_ms drops window_ms sample_count",
    ),
    "transport.candidate": _entry(_NODE, _INFO, "change code"),
    "transport.switch": _entry(
        _STATE,
        _LOW,
        "from_id to_id candidate_count loss_ratio rtt_ms stable_ms switch_count_60s explicit interruption_ms"
        " resent_total rule candidates",
    ),
    "transport.rebound": _entry(_STATE, _LOW, "old_peer new_peer rtt_ms"),
    "transport.revalidated": _entry(_STATE, _INFO, "rtt_ms"),
    "transport.switch_denied": _entry(
        _BOTH,
        _LOW,
        "to_id candidate_count switch_count_60s cooldown_left_ms limit rule by" + _COALESCED,
    ),
    "transport.switch_failed": _entry(_NODE, _MEDIUM, "to_id elapsed_ms code"),
    "traffic.shed": _entry(_NODE, _LOW, "packets_total bytes_total"),
    "reattach.attempt": _entry(
        _NODE, _INFO, "attempt kind nonce_id deadline_ms rule loss_ratio rtt_ms stable_ms rtt_p95_ms jitter_ms"
    ),
    "reattach.result": _entry(_BOTH, _INFO, "attempt nonce_id status step epoch validate_us" + _COALESCED),
    "security.replay_detected": _entry(_NODE, _HIGH, _SECURITY + _COALESCED),
    "security.validation_failed": _entry(_NODE, _HIGH, _SECURITY + _COALESCED),
    "security.fixation_attempt": _entry(_NODE, _HIGH, _SECURITY + _COALESCED),
    "security.rate_limited": _entry(_NODE, _MEDIUM, _SECURITY + _COALESCED),
    "security.downgrade_attempt": _entry(_NODE, _HIGH, _SECURITY + _COALESCED),
    "security.key_compromise_suspected": _entry(_STATE, _CRITICAL, "evidence"),
    "key.rotated": _entry(_STATE, _INFO, "key_epoch trigger age_ms"),
    "key.expired": _entry(_STATE, _MEDIUM, "key_epoch trigger age_ms"),
    "key.rekey_denied": _entry(_NODE, _LOW, "key_epoch trigger age_ms code"),
    "ownership.acquired": _entry(_STATE, _LOW, _OWNED),
    "ownership.transferred": _entry(_STATE, _LOW, _OWNED),
    "ownership.lost": _entry(_NODE, _MEDIUM, "epoch lease_left_ms stopped_forwarding_mono_ms code"),
    "ownership.rejected": _entry(_NODE, _MEDIUM, "seen_epoch seen_version"),
    "ownership.conflict": _entry(_STATE, _CRITICAL, "evidence seen_epoch seen_version"),
    "ownership.store_unavailable": _entry(_NODE, _HIGH, "op elapsed_ms lease_left_ms error recovered"),
    "cluster.joined": _entry(_NODE, _INFO, "cluster address lease_ms run"),
    "cluster.member": _entry(_NODE, _LOW, "member state address"),
    "cluster.store": _entry(_NODE, _MEDIUM, "state error lease_left_ms"),
    "cluster.drain": _entry(_NODE, _INFO, "state sessions"),
    "policy.applied": _entry(_BOTH, _LOW, "version digest body mode deadlines_changed bounds"),
    "policy.rejected": _entry(_NODE, _MEDIUM, "version digest mode errors"),
    "node.started": _entry(
        _NODE, _INFO, "build_hash config_digest boot_id previous_head program_version role pid audit_key"
    ),
    "node.stopping": _entry(_NODE, _INFO, "cause"),
    "node.stopped": _entry(_NODE, _INFO, "cause uptime_ms error"),
    "audit.checkpoint": _entry(_NODE, _INFO, "number heads counts prev_checkpoint next_key signature"),
    "audit.suppressed": _entry(_NODE, _MEDIUM, "count sink lag_ms queue_len code"),
    "audit.gap": _entry(_NODE, _HIGH, "count sink lag_ms queue_len"),
    "audit.journal_failed": _entry(_NODE, _CRITICAL, "error count sink lag_ms queue_len"),
    "audit.sink_state": _entry(_NODE, _LOW, "sink state lag_ms queue_len"),
}

_BY_TARGET_STATE: Mapping[str, Severity] = {
    "BIRTH": _INFO,
    "ATTACHED": _INFO,
    "VOLATILE": _LOW,
    "RECOVERING": _LOW,
    "DEGRADED": _MEDIUM,
}
_ENDED_AS_PLANNED = frozenset({"operator_terminated", "peer_closed", "session_lifetime_exceeded"})
_ENDED_BY_ATTACK = frozenset({"security_failure", "ownership_conflict", "invariant_violation"})


def severity_of(event: str, state: str | None, reason: str | None) -> Severity:
    """Severity of one event: by the target state and the reason for ends and transitions, else by the row."""
    if event in ("session.state_change", "session.terminated"):
        if state in _BY_TARGET_STATE:
            return _BY_TARGET_STATE[str(state)]
        if reason in _ENDED_BY_ATTACK:
            return Severity.HIGH
        return Severity.LOW if reason in _ENDED_AS_PLANNED else Severity.MEDIUM
    if event == "reattach.result" and state is None:
        return Severity.MEDIUM
    return CATALOGUE[event].severity
