"""Which rows of the table the engines take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jumpvpn.engine.seat import Turn
from jumpvpn.session.machine import Step


@contextmanager
def counted(rows: Counter[str]) -> Iterator[None]:
    """Add every row that a turn takes to ``rows``: the quiet ones leave no event."""
    take = Turn.take

    def counting(turn: Turn, outcome: Step) -> None:
        rows.update(outcome.rows)
        take(turn, outcome)

    Turn.take = counting  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Turn.take = take  # type: ignore[method-assign]
