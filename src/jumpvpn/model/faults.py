"""Ways to put one fault into the shipped machine, in this process only. Call them in a process that ends afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jumpvpn.session import actions, deadlines
from jumpvpn.session.deadlines import Deadline
from jumpvpn.session.state import Session
from jumpvpn.session.transitions import LISTED, ROWS, Row
from jumpvpn.values import Instant, later

Action = Callable[[Session, Any, Instant], Session]


def change(row_id: str, **fields: Any) -> None:
    """Give one row of the table other fields."""
    changed = replace(ROWS[row_id], **fields)
    _rewrite(lambda row: (changed,) if row.id == row_id else (row,))


def remove(row_id: str) -> None:
    """Take one row out of the table."""
    _rewrite(lambda row: () if row.id == row_id else (row,))


def unlist(state: Any, event: type) -> None:
    """Forget that ``event`` is listed in ``state``."""
    del LISTED[state, event]


def and_then(row_id: str, alter: Callable[[Session, Session, Instant], Session]) -> None:
    """Let ``alter(before, after, now)`` change what the row's action gave."""
    action = ROWS[row_id].action
    change(row_id, action=lambda session, event, now: alter(session, action(session, event, now), now))


def instead(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``module.name`` by ``make(the old one)``."""
    setattr(module, name, make(getattr(module, name)))


def without_deadline(name: str) -> None:
    """The deadline ``name`` does not exist."""
    _deadlines(lambda found: () if found.name == name else (found,))


def moved_deadline(name: str, by: int) -> None:
    """The deadline ``name`` lies ``by`` ns later (earlier if negative)."""
    _deadlines(lambda found: (found._replace(at=later(found.at, by)),) if found.name == name else (found,))


def swapped_ranks(one: type, other: type) -> None:
    """Two events change places in the priority order."""
    ranks = deadlines._RANK
    ranks[one], ranks[other] = ranks[other], ranks[one]


def settled_policy(session: Session, event: Any, _now: Instant) -> Session:
    """Row 31 as it must not be: the new policy counts at once in everything."""
    return replace(session, policy=event.policy, next_policy=event.policy)


def plain_entry(session: Session, _event: Any, _now: Instant) -> Session:
    """Entering RECOVERING without counting the attempt."""
    return replace(session, attempt=None, tried=())


def keep_binding(session: Session, event: Any, now: Instant) -> Session:
    """A new owner that inherits the binding."""
    return actions.note_owner(actions.open_episode(session, event, now), event, now)


def _rewrite(with_row: Callable[[Row], tuple[Row, ...]]) -> None:
    for pair, rows in LISTED.items():
        LISTED[pair] = tuple(new for row in rows for new in with_row(row))


def _deadlines(with_deadline: Callable[[Deadline], tuple[Deadline, ...]]) -> None:
    shipped = deadlines.deadlines

    def faulty(session: Session) -> tuple[Deadline, ...]:
        return tuple(new for found in shipped(session) for new in with_deadline(found))

    deadlines.deadlines = faulty
