"""The transition table as a whole: total, deterministic, within the mission's edges, and pinned by a snapshot."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from build import START, WLAN, in_state
from hypothesis import given, settings
from strategies import EVENT_TYPES, events, instants, sessions

from jumpvpn.session import events as ev
from jumpvpn.session.deadlines import PRIORITY
from jumpvpn.session.machine import IllegalReason, enabled_row, step
from jumpvpn.session.reasons import MEANINGS, Reason, denial, reason_of_code
from jumpvpn.session.state import Attempt, AttemptKind, Session, State
from jumpvpn.session.transitions import LISTED, TABLE, Row

SNAPSHOT = Path(__file__).parents[2] / "scenarios" / "table.txt"
LIVE_EDGES = {
    (State.BIRTH, State.ATTACHED),
    (State.ATTACHED, State.VOLATILE),
    (State.VOLATILE, State.RECOVERING),
    (State.RECOVERING, State.ATTACHED),
    (State.RECOVERING, State.DEGRADED),
    (State.DEGRADED, State.RECOVERING),
}
PLANS = {"attempt", "tried", "want"}  # of the running process, never recorded
NOT_DURABLE = PLANS | {"prior_bound_version", "warnings"}  # see Session: the first's clearing rides on the next commit


def _durable(session: Session) -> dict[str, object]:
    return {f.name: getattr(session, f.name) for f in fields(session) if f.name not in NOT_DURABLE}


def _described(row: Row) -> str:
    reason = "(its own)" if isinstance(row.reason, tuple) else row.reason.value if row.reason is not None else "-"
    target = row.next.value if row.next is not None else ("same" if row.mutates else "none")
    again = ", again" if row.again else ""
    emits = f"  + {' '.join(row.emits)}" if row.emits else ""
    return f"{row.id:<18} {row.guard.__name__:<34} > {target}{again}  {reason}{emits}"


def _matrix() -> str:
    lines = ["# Every (state, event): rows as  id  guard  > next  reason  + further events.",
             "# 'same' raises the version in the same state; 'none' changes nothing durable."]  # fmt: skip
    for state in State:
        lines += ["", f"== {state.value}"]
        unlisted = []
        for event in PRIORITY:
            rows = LISTED.get((state, event), ())
            if not rows:
                unlisted.append(event.__name__)
            lines += [f"{event.__name__:<24} {_described(row)}" for row in rows]
        row_id = "34 event_after_termination" if state is State.TERMINATED else "35 invalid_event"
        lines += [f"{row_id}: {', '.join(unlisted)}"] if unlisted else []
    return "\n".join(lines) + "\n"


def test_the_whole_matrix_is_as_reviewed(rewrite: bool) -> None:
    if rewrite:
        SNAPSHOT.write_text(_matrix())
    assert SNAPSHOT.read_text() == _matrix()


def test_every_event_has_a_place_in_the_priority() -> None:
    assert len(PRIORITY) == len(set(PRIORITY))
    assert set(PRIORITY) == set(EVENT_TYPES)


def test_published_priority() -> None:
    """session.md: lifetime, ownership conflict, security, operator, key expiry, transport TTL, episode, ..."""
    published = (
        ev.LifetimePassed, ev.OwnershipConflictProved, ev.SecurityFailed, ev.CloseRequested, ev.KeysExpired,
        ev.TransportTtlPassed, ev.EpisodePassed, ev.OwnerChanged, ev.PolicyReloaded, ev.TransportDied,
        ev.RecoveryWindowPassed, ev.ReattachCommitted, ev.RebindingValidated, ev.IncumbentRevalidated,
        ev.SwitchDenied, ev.PeerAddressChanged, ev.SwitchForced, ev.InstabilitySeen, ev.DwellPassed,
        ev.TransportStabilized, ev.ConditionMet,
    )  # fmt: skip
    assert [event for event in PRIORITY if event in published] == list(published)


def test_row_ids_are_unique() -> None:
    assert len({row.id for row in TABLE}) == len(TABLE)


def test_only_the_published_edges_exist() -> None:
    edges = {(state, row.next) for row in TABLE for state in row.states if row.next is not None}
    assert {edge for edge in edges if edge[1] is not State.TERMINATED} == LIVE_EDGES
    assert all(row.mutates for row in TABLE if row.next is not None)
    assert not any(State.TERMINATED in row.states for row in TABLE)


def test_every_terminal_row_says_so_and_erases() -> None:
    for row in TABLE:
        assert (row.next is State.TERMINATED) == ("session.terminated" in row.emits), row.id
        if row.next is State.TERMINATED:
            assert row.orders.__name__ == "erase", row.id


def test_every_reason_is_registered_with_a_meaning() -> None:
    assert set(MEANINGS) == set(Reason)
    for reason in Reason:
        assert 1 <= reason.meaning.severity <= 5
        assert reason.meaning.text
        assert reason_of_code(reason.code) is reason
    assert reason_of_code(60_000) is Reason.POLICY_DENIED


@given(sessions(), events)
@settings(max_examples=2000, deadline=None)
def test_exactly_one_row_is_enabled(session: Session, event: ev.Event) -> None:
    enabled_row(session, event)  # raises AmbiguousTable


@given(sessions(), events, instants)
@settings(max_examples=2000, deadline=None)
def test_one_step_keeps_the_record_lawful(session: Session, event: ev.Event, now: object) -> None:
    outcome = step(session, event, now)  # type: ignore[arg-type]
    after = outcome.session
    rows = [row for row_id in outcome.rows for row in TABLE if row.id == row_id]
    raised = sum(row.mutates for row in rows)
    known = max(int(session.version), getattr(event, "proven_version", 0) if raised else 0)
    assert after.version == known + raised
    assert after.id == session.id
    assert after.epoch >= session.epoch
    assert after.owner_epoch >= session.owner_epoch
    assert (after.state is State.ATTACHED) <= (after.binding is not None)
    assert (after.state is State.TERMINATED) <= (after.binding is None)
    assert after.binding is None or after.binding.transport == after.incumbent
    assert (after.attempt is not None) <= (after.state is State.RECOVERING)
    if session.state is State.TERMINATED:
        assert after == session
        assert outcome.rows == ("34",)
    if not outcome.mutated:
        assert _durable(after) == _durable(session)
        assert all(event.lane == "N" for event in outcome.events)


@given(sessions(), events, instants)
@settings(max_examples=1000, deadline=None)
def test_each_change_of_state_has_exactly_one_event_with_a_reason(
    session: Session, event: ev.Event, now: object
) -> None:
    outcome = step(session, event, now)  # type: ignore[arg-type]
    changes = [e for e in outcome.events if e.name == "session.state_change"]
    path = [(e.prev_state, e.state) for e in changes]
    assert [start for start, _ in path] + [outcome.session.state.value] == [session.state.value] + [
        end for _, end in path
    ]
    assert [e.state_version for e in changes] == sorted({e.state_version for e in changes})
    assert all(e.lane == "S" and e.reason is not None for e in changes)
    ended = [e for e in outcome.events if e.name == "session.terminated"]
    assert len(ended) == (outcome.session.state is State.TERMINATED and session.state is not State.TERMINATED)


@given(sessions(), events, instants)
@settings(max_examples=300, deadline=None)
def test_the_same_facts_give_the_same_step(session: Session, event: ev.Event, now: object) -> None:
    assert step(session, event, now) == step(session, event, now)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [row for row in TABLE if isinstance(row.reason, tuple)], ids=lambda row: row.id)
def test_a_row_refuses_a_reason_that_it_does_not_list(row: Row) -> None:
    alien = next(reason for reason in Reason if reason not in row.reasons)
    told = {"reason": alien, "transport": WLAN}
    event = row.event(**{name: told.get(name) for name in row.event.__dataclass_fields__})
    session = in_state(row.states[0])
    if session.state is State.RECOVERING:
        session = replace(session, attempt=Attempt(AttemptKind.SWITCH, WLAN, START, START))
    with pytest.raises(IllegalReason, match=row.id):
        step(session, event, START)


def test_events_name_their_row() -> None:
    outcome = step(in_state(State.ATTACHED), ev.TransportDied(WLAN, "link"), START)
    assert [event.data["row"] for event in outcome.events] == ["4", "4", "11.known"]


def test_a_peer_denies_only_with_reasons_that_deny() -> None:
    assert denial(Reason.SWITCH_RATE_LIMITED) is Reason.SWITCH_RATE_LIMITED
    assert denial(Reason.HANDSHAKE_OK) is Reason.POLICY_DENIED
