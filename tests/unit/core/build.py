"""Sessions, policies and events for tests, each in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.values import Epoch, Instant, SessionId, TransportId, Version, later

WLAN = TransportId("wlan0/udp/gw1")
ETH = TransportId("eth0/udp/gw1")
LTE = TransportId("wwan0/udp/gw1")
TRANSPORTS = (WLAN, ETH, LTE)
PEER = "192.0.2.1:51820"
NEW_PEER = "198.51.100.7:40000"
ID = SessionId(bytes(range(16)))
START = Instant(1_000_000_000_000)  # boot time of a machine that has run for a while


def policy(**sections: dict[str, Any]) -> Policy:
    """The default policy with the given sections' keys replaced, as TOML would write them."""
    return Policy.model_validate(sections)


def born(role: Role = Role.CLIENT, rules: Policy | None = None, now: Instant = START) -> Session:
    """A session in BIRTH."""
    return birth(ID, role, rules or Policy(), now, "c0ffee").session


def attached(role: Role = Role.CLIENT, rules: Policy | None = None, now: Instant = START) -> Session:
    """A session in ATTACHED on WLAN, epoch 1, version 2."""
    return step(born(role, rules, now), ev.HandshakeCompleted(WLAN, PEER, Epoch(1), Version(1)), now).session


def started(session: Session, transport: TransportId, kind: AttemptKind, now: Instant, peer: str | None = None) -> Any:
    """The fact that an attempt begins, with the deadline that policy gives."""
    return ev.AttemptStarted(kind, transport, later(now, session.policy.recovery.attempt_timeout), peer)


def in_state(state: State, role: Role = Role.CLIENT, *, bound: bool = True, now: Instant = START) -> Session:
    """A session in ``state``; in the unsettled ones with its binding alive or gone."""
    if state is State.BIRTH:
        return born(role, now=now)
    session = attached(role, now=now)
    cause = ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT) if bound else ev.TransportDied(WLAN, "link")
    path: dict[State, tuple[Any, ...]] = {
        State.ATTACHED: (),
        State.VOLATILE: (ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT),),
        State.RECOVERING: (cause, *((ev.DwellPassed(),) if bound else ())),
        State.DEGRADED: (cause, *((ev.DwellPassed(),) if bound else ()), ev.NoCandidate()),
        State.TERMINATED: (ev.CloseRequested(Reason.OPERATOR_TERMINATED),),
    }
    for event in path[state]:
        session = step(session, event, now).session
    if state is State.VOLATILE and not bound:  # only inside a step, or restored from such a record
        return replace(session, binding=None, transportless_at=now)
    assert session.state is state
    return session
