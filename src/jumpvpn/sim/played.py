"""What playing one seed showed, and how its failure is told from what was raised or what its journals say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from jumpvpn.properties import Property
from jumpvpn.session.machine import AmbiguousTable
from jumpvpn.sim.judge import Complaint
from jumpvpn.sim.violation import Violated

Judge = Callable[[Iterable[bytes]], list[Complaint]]
"""Reads the lines of all journals, one after the other, and says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise that did not hold: its name, what was expected, what was seen."""

    prop: str
    expected: str
    seen: str


@dataclass(slots=True)
class Played:
    """What one seed showed. ``checks`` counts by promise, ``journals`` are lines by node.

    ``steps`` are an engine's turns, or those of the loop in which a cluster runs. ``ends`` are the states of the two
    ends, or of a cluster's clients. ``rows`` and ``reasons`` are counted where there is one client and one gateway.
    """

    seed: int
    theme: str = ""
    virtual_ns: int = 0
    steps: int = 0
    ends: tuple[str, ...] = ()
    recovery_s: float | None = None
    rows: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None
    transcript: tuple[str, ...] = ()
    journals: dict[str, list[bytes]] = field(default_factory=dict)


class Play(Protocol):
    """Plays one seed to its end; ``tell`` asks for the transcript even if nothing failed."""

    def __call__(self, seed: int, judge: Judge | None = None, *, tell: bool = False) -> Played:
        """What it showed, its journals among it."""


def raised(error: Exception) -> Failure:
    """What an exception that ended a run says: whatever it is, it is a finding of the seed."""
    if isinstance(error, Violated):
        return Failure(error.prop.name, error.expected, error.seen)
    if isinstance(error, AmbiguousTable):
        return Failure(Property.TOTALITY.name, "exactly one row for each input", str(error))
    cycle = isinstance(error, AssertionError) and "cycle without time" in str(error)
    prop = Property.PROGRESS if cycle else Property.TOTALITY
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where is not None else "?"
    return Failure(prop.name, "an engine that handles every input", f"{type(error).__name__} in {place}: {error}")


def judged(judge: Judge, journals: Mapping[str, list[bytes]]) -> Failure | None:
    """The first complaint about the journals; None if there is none."""
    complaints = judge(line for lines in journals.values() for line in lines)
    if not complaints:
        return None
    return Failure(complaints[0].prop, "journals that the auditor accepts", complaints[0].text)
