"""Hypothesis strategies: every kind of event, and every consistent session."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from build import ID, NEW_PEER, PEER, START, TRANSPORTS, policy
from hypothesis import strategies as st

from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt, AttemptKind, Binding, Role, Session, State, Totals, Want
from jumpvpn.session.transitions import TABLE
from jumpvpn.values import SECOND, Epoch, Instant, Version, later

EVENT_TYPES: tuple[type, ...] = get_args(ev.Event)
POLICIES = (
    Policy(),
    policy(recovery={"max_attempts": 1}, switching={"max_per_minute": 1}),
    policy(session={"transport_ttl": "15s"}, recovery={"episode_max": "16s"}, switching={"hold_down": "0s"}),
)

transports = st.sampled_from(TRANSPORTS)
peers = st.sampled_from((PEER, NEW_PEER))
epochs = st.integers(0, 6).map(Epoch)
versions = st.integers(0, 9).map(Version)
reasons = st.sampled_from(Reason)
kinds = st.sampled_from(AttemptKind)
totals = st.builds(Totals, *[st.integers(0, 2**40)] * 8, st.none() | st.integers(1, 2**40))
instants = st.integers(START, START + 20 * SECOND).map(Instant)

_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "transport": transports,
    "peer": peers,
    "old": peers,
    "new": peers,
    "epoch": epochs,
    "known_version": st.none() | st.integers(1, 9).map(Version),
    "peer_version": versions,
    "reason": reasons,
    "cause": reasons,
    "target": st.none() | transports,
    "kind": kinds,
    "deadline": instants,
    "owner_epoch": st.integers(0, 4),
    "from_node": st.just("gw"),
    "lost_at": st.none() | instants,
    "proven_version": versions.map(int),
    "proven_epoch": epochs.map(int),
    "nonce_id": st.just("00"),
    "step": st.integers(1, 10),
    "proven": st.booleans(),
    "evidence": st.just("link"),
    "operation": st.just("commit"),
    "policy": st.sampled_from(POLICIES),
    "errors": st.just(("bad",)),
    "rtt_ns": st.integers(1, SECOND),
    "left_ms": st.just(1),
    "considered": st.just(0),
    "age_ms": st.just(0),
    "measured": st.just({}),
    "detail": st.just({}),
}


_OWN_REASONS = {row.event: row.reasons for row in TABLE if isinstance(row.reason, tuple)}


def _event(kind: type) -> st.SearchStrategy[Any]:
    fields = {name: _FIELDS[name] for name in kind.__dataclass_fields__}
    if "reason" in fields and kind in _OWN_REASONS:
        fields["reason"] = st.sampled_from(_OWN_REASONS[kind])
    if kind is ev.ReattachRefused:
        fields["transport"] = st.none() | transports
    if kind is ev.ConditionMet:
        fields["cause"] = st.just("ranked")
    if kind is ev.OwnerChanged:
        fields["cause"] = st.sampled_from(ev.OwnerCause)
    return st.builds(kind, **fields)


events = st.one_of([_event(kind) for kind in EVENT_TYPES])


@st.composite
def sessions(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Session:
    """Any record that the machine could hold or read back: all invariants that tie its fields together are met."""
    state = draw(st.sampled_from(states))
    role, rules = draw(st.sampled_from(Role)), draw(st.sampled_from(POLICIES))
    session = Session(ID, role, rules, state, draw(st.integers(1, 20).map(Version)), Epoch(0), START, START, START)
    if state in (State.BIRTH, State.TERMINATED):
        return session
    epoch, incumbent = draw(st.integers(1, 4).map(Epoch)), draw(transports)
    bound = state is State.ATTACHED or draw(st.booleans())
    session = replace(
        session, epoch=epoch, incumbent=incumbent, owner_epoch=draw(st.integers(1, 3)), reason=draw(reasons),
        binding=Binding(incumbent, draw(peers), epoch, START) if bound else None,
        transportless_at=None if bound else START, bound_version=draw(versions), peer_version=draw(versions),
        prior_bound_version=draw(st.none() | versions), entered_at=later(START, draw(st.integers(0, SECOND))),
        switches=tuple(START for _ in range(draw(st.integers(0, 9)))), hold_until=draw(st.none() | instants),
        totals=draw(totals),
    )  # fmt: skip
    if state is State.ATTACHED:
        return replace(session, warnings=draw(st.integers(0, 2)))
    session = replace(session, episode_at=START, attempts=draw(st.integers(0, 9)), volatile_entries=(START,))
    return draw(_planned(session)) if state is State.RECOVERING else session


@st.composite
def _planned(draw: st.DrawFn, session: Session) -> Session:
    kind, target, peer = draw(kinds), draw(transports), draw(peers)
    attempt = Attempt(kind, target, START, draw(instants), peer if kind is AttemptKind.REBIND else None)
    want = Want(kind, draw(reasons), draw(st.none() | transports), peer, draw(st.booleans()))
    return replace(session, attempt=draw(st.none() | st.just(attempt)), want=draw(st.none() | st.just(want)))
