"""A second, independent implementation that judges an event stream by nothing but the stream and the exported table.

It shares no code with the nodes that wrote the stream (an import contract sees to that): own parser, own chain, own
replay. ``audit_lines`` and ``audit_files`` give a ``Report``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jumpvpn.audit.auditor.auditor import Auditor, Observer
from jumpvpn.audit.auditor.merging import claims_in, merged
from jumpvpn.audit.auditor.owners import Claims
from jumpvpn.audit.auditor.report import Report
from jumpvpn.audit.auditor.rules import Finding, Gap, Outcome, Rule, Verdict
from jumpvpn.audit.auditor.sources import Unreadable
from jumpvpn.audit.auditor.table import BadTable, Table, load_table

__all__ = [
    "Auditor", "BadTable", "Claims", "Finding", "Gap", "Observer", "Outcome", "Report", "Rule", "Table", "Unreadable",
    "Verdict", "audit_files", "audit_lines", "load_table",
]  # fmt: skip

GIVE_UP_AFTER = 1_000  # lines without a single event record: the file is no log
_PROGRESS_STEP = 1 << 14


def audit_lines(lines: Iterable[bytes], **options: Any) -> Report:
    """Judge lines (with or without their ends), in any order within bounds; ``options`` are ``Auditor``'s.

    All lines are held: which records stand beside a chain is known only when every change of owner was seen.
    """
    kept = [line.rstrip(b"\r\n") for line in lines]
    auditor = Auditor(**options, claims=Claims().note_all(kept))
    for number, line in enumerate(kept, start=1):
        auditor.feed(line, "line", number)
    return auditor.finish()


def audit_files(
    names: Sequence[str | Path], *, progress: Callable[[int], None] | None = None, **options: Any
) -> Report:
    """Judge logs: files, ``.gz`` files, ``-`` for standard input. ``progress`` is told how many lines were read."""
    auditor = Auditor(**options)
    feed_files(auditor, [str(name) for name in names], progress)
    return auditor.finish()


def feed_files(auditor: Auditor, names: Sequence[str], progress: Callable[[int], None] | None = None) -> None:
    """Feed the files' lines in an order that follows their chains; what cannot be read is reported with its reason."""
    claims = claims_in(names)
    auditor.expect(claims)
    seen, good, given_up = Counter[str](), Counter[str](), set[str]()
    for count, (name, item) in enumerate(merged(names, claims), start=1):
        if name in given_up:
            continue
        seen[name] += 1
        if isinstance(item, Unreadable):
            auditor.unreadable(item)
            continue
        number, text = item
        if count % _PROGRESS_STEP == 0 and progress is not None:
            progress(auditor.report.lines)
        if auditor.feed(text, name, number):
            good[name] += 1
        elif not good[name] and number >= GIVE_UP_AFTER:
            auditor.unreadable(Unreadable(name, 0, f"no event record in {number} lines; this is no event log"))
            given_up.add(name)
    for name in names:
        if not seen[name]:
            auditor.unreadable(Unreadable(name, 0, "the file is empty"))
