"""``step``: one event, one row, one new record. The only code that writes state, version or binding."""

from __future__ import annotations

from jumpvpn.policy.model import Policy
from jumpvpn.session.actions import counted
from jumpvpn.session.effects import Effect
from jumpvpn.session.emissions import Occasion, bounds, further_event, state_change
from jumpvpn.session.events import Event
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.session.transitions import AFTER_TERMINATION, LISTED, NOT_LISTED, Row
from jumpvpn.values import DomainEvent, Epoch, Instant, SessionId, Version, dataclass, replace


class AmbiguousTable(AssertionError):
    """A listed (state, event) pair enabled no row, or more than one: a defect of the table."""


class IllegalReason(AssertionError):
    """An event brought a reason that its row does not list: a defect of whoever made the event."""


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome: the new record, the rows taken, the events to record and the effects to execute, in order.

    ``mutated`` says whether the durable record changed; then the events of lane S and the record are one commit.
    """

    session: Session
    rows: tuple[str, ...]
    events: tuple[DomainEvent, ...]
    effects: tuple[Effect, ...]
    mutated: bool


def birth(session_id: SessionId, role: Role, policy: Policy, now: Instant, client: str) -> Step:
    """A session comes to be: identity and policy exist, the handshake is under way.

    ``client`` is a one-way name of the device, for the event.
    """
    session = Session(
        id=session_id, role=role, policy=policy, state=State.BIRTH, version=Version(1), epoch=Epoch(0), born_at=now,
        entered_at=now, keys_at=now,
    )  # fmt: skip
    data = {"row": "0", "client_id_hash": client, "role": role.value, "bounds": bounds(policy)}
    created = DomainEvent(
        name="session.created", lane="S", session=session.uid, state_version=1, owner_epoch=1,
        prev_state=State.BIRTH.value, state=State.BIRTH.value, data=data,
    )  # fmt: skip
    return Step(session, ("0",), (created,), (), mutated=True)


def step(session: Session, event: Event, now: Instant, contributing: tuple[Reason, ...] = ()) -> Step:
    """Apply one event. ``contributing`` names the simultaneous causes that lost (deadlines.PRIORITY).

    Raises AmbiguousTable if the table is not total and deterministic at this point, IllegalReason if the event's
    reason is none of its row's (defects, never input errors).
    """
    rows: list[str] = []
    events: list[DomainEvent] = []
    effects: list[Effect] = []
    mutated = False
    current = session
    while True:
        row = enabled_row(current, event)
        after = _apply(current, event, row, now)
        events += _record(current, after, event, row, now, contributing)
        effects += row.orders(current, after, event)
        rows.append(row.id)
        mutated = mutated or row.mutates
        current = after
        if not row.again:
            return Step(current, tuple(rows), tuple(events), tuple(effects), mutated)


def enabled_row(session: Session, event: Event) -> Row:
    """The one row that applies."""
    if session.state is State.TERMINATED:
        return AFTER_TERMINATION
    listed = LISTED.get((session.state, type(event)))
    if listed is None:
        return NOT_LISTED
    enabled = [row for row in listed if row.guard(session, event)]
    if len(enabled) != 1:
        names = [row.id for row in enabled]
        raise AmbiguousTable(f"{session.state.value} + {type(event).__name__} enables {names or 'no row'}")
    return enabled[0]


def _reason(row: Row, event: Event) -> Reason | None:
    if not isinstance(row.reason, tuple):
        return row.reason
    reason: Reason | None = getattr(event, "reason", None)
    if reason not in row.reason:
        raise IllegalReason(f"row {row.id} has no reason {reason}")
    return reason


def _apply(session: Session, event: Event, row: Row, now: Instant) -> Session:
    after = row.action(session, event, now)
    if row.mutates:
        # A client may know versions that the former owner had not stored: they are never given twice.
        newest = max(session.version, getattr(event, "proven_version", 0))
        after = replace(after, version=Version(newest + 1))
    if row.next is not None:
        totals = counted(session, after.totals, row.next, now)
        after = replace(after, state=row.next, entered_at=now, reason=_reason(row, event), totals=totals)
    return after


def _record(
    before: Session, after: Session, event: Event, row: Row, now: Instant, contributing: tuple[Reason, ...]
) -> list[DomainEvent]:
    reason = _reason(row, event)
    occasion = Occasion(row.id, before, after, event, now, reason, row.mutates)
    others = tuple(other.value for other in contributing if other is not reason)
    events = [state_change(occasion, others)] if row.next is not None else []
    for name in row.emits:
        events += further_event(name, occasion)
    return events
