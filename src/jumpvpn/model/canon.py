"""The canonical form of a session: what of it can still matter, seen at one fixed moment.

Instants are kept relative to ``NOW``; counters that only ever rise (version, epochs) are set to constants, because
every rule compares them with the session's own; what only events show (reason, age of a binding) is dropped. Edges are
checked on what ``step`` returned, before it is brought into this form.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from jumpvpn.model.bounds import NOW, TICK
from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Binding, Session, State, Totals
from jumpvpn.values import MINUTE, SECOND, Epoch, Instant, Version, later

VERSION, BOUND_VERSION, EPOCH, OWNER_EPOCH = Version(100), Version(50), Epoch(10), 5
_YOUNG = Instant(NOW - 10 * SECOND)  # far from the end of its lifetime; the ends themselves are probed
_RECENT = Instant(NOW - SECOND)
_DWELLS = (State.BIRTH, State.VOLATILE, State.RECOVERING)  # the states whose time of entry has a deadline


@dataclass(frozen=True, slots=True)
class Ghost:
    """What the explorer remembers by itself: switches of the last 60 s, and the ticks of hold-down still to run."""

    switches: int = 0
    hold: int = 0


class Policies:
    """Equal policies become one object with a short name. Equal is what their explored keys make equal."""

    def __init__(self) -> None:
        self._known: list[Policy] = []
        self._index: dict[Hashable, int] = {}

    def index(self, policy: Policy) -> int:
        """The number of ``policy``."""
        session, volatility, switching, recovery = policy.session, policy.volatility, policy.switching, policy.recovery
        key = (
            session.max_lifetime, session.transport_ttl, session.handshake_timeout, volatility.volatile_max,
            switching.max_per_minute, switching.hold_down, recovery.window, recovery.episode_max,
            recovery.max_attempts, recovery.attempt_timeout, policy.security.key_max_age, policy.transports.deny,
        )  # fmt: skip
        found = self._index.setdefault(key, len(self._known))
        if found == len(self._known):
            self._known.append(policy)
        return found

    def one(self, policy: Policy) -> Policy:
        """The object that stands for all equal to ``policy``."""
        return self._known[self.index(policy)]


class Canon:
    """Brings sessions into canonical form; ``key`` is equal exactly for equal forms."""

    def __init__(self) -> None:
        self.policies = Policies()

    def key(self, session: Session, ghost: Ghost) -> Hashable:
        """What identifies the canonical form, without building it. All ended sessions are one."""
        if session.state is State.TERMINATED:
            return State.TERMINATED
        attempt, want, bound = session.attempt, session.want, session.binding
        following = session.next_policy
        policy = self.policies.index(session.policy)
        return (
            session.state, session.role, policy, ghost,
            None if following is None else self._following(policy, following),
            None if bound is None else (bound.transport, bound.peer), session.incumbent,
            session.entered_at if session.state in _DWELLS else 0,
            session.transportless_at, session.episode_at, session.attempts, _recent(session), _hold(session),
            None if attempt is None else (attempt.kind, attempt.transport, attempt.deadline, attempt.peer),
            frozenset(session.tried),
            None if want is None else (want.kind, want.target, want.peer, want.avoid_incumbent),
        )  # fmt: skip

    def form(self, session: Session) -> Session:
        """The canonical form itself."""
        bound, policy = session.binding, self.policies.one(session.policy)
        following = session.next_policy
        if following is not None:
            following = None if self.policies.one(following) is policy else self.policies.one(following)
        return replace(
            session, policy=policy, next_policy=following, version=VERSION, epoch=EPOCH, owner_epoch=OWNER_EPOCH,
            bound_version=BOUND_VERSION, prior_bound_version=None, peer_version=Version(0), born_at=_YOUNG,
            keys_at=_RECENT, entered_at=session.entered_at if session.state in _DWELLS else NOW, reason=None,
            binding=None if bound is None else Binding(bound.transport, bound.peer, EPOCH, NOW),
            switches=(_RECENT,) * _recent(session), hold_until=_hold(session), volatile_entries=(), warnings=0,
            totals=Totals(), tried=tuple(sorted(set(session.tried))),
            attempt=None if session.attempt is None else replace(session.attempt, started=NOW),
            want=None if session.want is None else replace(session.want, cause=Reason.OPERATOR_SWITCH),
        )  # fmt: skip

    def _following(self, policy: int, following: Policy) -> int | None:
        index = self.policies.index(following)
        return None if index == policy else index


def a_tick_later(session: Session) -> Session:
    """``session`` as one tick of time makes it look: its instants lie one tick further back."""
    attempt = session.attempt
    return replace(
        session, entered_at=later(session.entered_at, -TICK), transportless_at=_back(session.transportless_at),
        episode_at=_back(session.episode_at), hold_until=_back(session.hold_until),
        attempt=None if attempt is None else replace(attempt, deadline=later(attempt.deadline, -TICK)),
    )  # fmt: skip


def a_minute_later(session: Session) -> Session:
    """The oldest switch leaves the window of 60 s; nothing else ages (a window may be left at any moment)."""
    return replace(session, switches=session.switches[1:])


def _recent(session: Session) -> int:
    return sum(1 for at in session.switches if NOW - at < MINUTE)


def _hold(session: Session) -> Instant | None:
    return session.hold_until if session.hold_until is not None and session.hold_until > NOW else None


def _back(at: Instant | None) -> Instant | None:
    return None if at is None else later(at, -TICK)
