"""What is held against the journals of a run when it has ended: the auditor, which knows nothing of engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from jumpvpn.audit.auditor import Table, audit_lines, load_table


@dataclass(frozen=True, slots=True)
class Complaint:
    """One broken rule: the promise behind it, and the auditor's words."""

    prop: str
    text: str


def journal_judge(lines: Iterable[bytes]) -> list[Complaint]:
    """What breaks a rule in the journals' lines. Missing checkpoints break none: a simulated node has no keys."""
    verdicts = audit_lines(lines, table=_table()).faults
    return [Complaint(f.promise.name, str(f)) for verdict in verdicts for f in verdict.findings]


@cache
def _table() -> Table:
    return load_table()
