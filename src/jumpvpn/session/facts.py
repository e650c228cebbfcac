"""What a session's record says at a moment, in plain JSON values: what a running node and its log both tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session.deadlines import POLICY_KEY, Deadline
from jumpvpn.session.state import Session
from jumpvpn.values import Instant, milliseconds

Facts = dict[str, Any]


def record_facts(session: Session, running: Iterable[Deadline], now: Instant) -> Facts:
    """Names end in their unit; ``running`` are the deadlines to tell, the nearest first in the answer."""
    bound, attempt, frees = session.binding, session.attempt, session.budget.frees_at(now)
    return {
        "uid": session.uid, "state": session.state.value, "role": session.role.value, "version": int(session.version),
        "epoch": int(session.epoch), "reason": session.reason.value if session.reason is not None else None,
        "state_age_ms": milliseconds(now - session.entered_at), "age_ms": milliseconds(now - session.born_at),
        "binding": None if bound is None else {"transport": bound.transport, "age_ms": milliseconds(now - bound.since)},
        "incumbent": session.incumbent, "transportless_ms": _since(session.transportless_at, now),
        "episode_ms": _since(session.episode_at, now), "attempts": session.attempts, "tried": list(session.tried),
        "attempt": None if attempt is None else {"kind": attempt.kind.value, "transport": attempt.transport,
                                                 "age_ms": milliseconds(now - attempt.started)},
        "deadlines": [_deadline(d, session.policy, now) for d in sorted(running, key=lambda d: d.at)],
        "budget": {"used": session.budget.used(now), "max": session.policy.switching.max_per_minute,
                   "hold_down_ms": milliseconds(session.budget.hold_left(now)),
                   "frees_in_ms": milliseconds(frees - now) if frees is not None else None},
    }  # fmt: skip


def _deadline(deadline: Deadline, policy: Policy, now: Instant) -> Facts:
    key = POLICY_KEY[deadline.name]
    section, _, field = key.partition(".")
    return {
        "name": deadline.name, "event": type(deadline.event).__name__, "policy": key,
        "value": getattr(getattr(policy, section), field), "at_ns": int(deadline.at),
        "left_ms": milliseconds(deadline.at - now),
    }  # fmt: skip


def _since(start: Instant | None, now: Instant) -> float | None:
    return milliseconds(now - start) if start is not None else None
