"""From journals to verdicts: several traces in one TLC run, and the first event that no action explains, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from jumpvpn.tracecheck import tlc
from jumpvpn.tracecheck.data import Names, module
from jumpvpn.tracecheck.journals import LIMITS_MAX, LINES_MAX, TRACES_MAX, Seen, Trace, read

LOOK_AHEAD = 6  # TraceSession looks so many lines ahead for what a row's first line does not tell
LINES_PER_RUN = 6_000  # one JVM parses them in some seconds within its heap; start-up is paid once for all its traces
_AT = re.compile(r'<<\s*"at",(.*?)>>', re.DOTALL)
_EXPLAINED = re.compile(r'<<\s*"explained",\s*(\d+)\s*>>')
_TOKEN = re.compile(r'"([^"]*)"|(-?\d+)')
_WORDS_MAX = 80  # of a foreign text shown to people


class Verdict(Enum):
    """What became of one trace."""

    ACCEPTED = "ACCEPTED"  # the module explains every event
    REJECTED = "REJECTED"  # it explains the events before one, and not that one
    MISSING = "MISSING"  # it explains the events before one that is not in the given journals
    INCOMPLETE = "INCOMPLETE"  # not judged: the beginning is not in the given journals, or too much is open


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one session's record at one end.

    ``explained`` counts the events before the first that nothing explains (all, if ACCEPTED), ``lines`` those that
    were judged, ``at`` is the chain and number of that first one (None: the end is missing), ``why`` says it in words.
    ``rows`` are the table's rows of the explained events. ``note`` says what was left out, ``journal`` names the file
    if each was judged apart. ``record`` is the hash that the event at ``at`` bears, for a number may be there twice.
    """

    chain: str
    verdict: Verdict
    explained: int
    lines: int
    at: str | None = None
    why: str = ""
    note: str = ""
    rows: tuple[str, ...] = ()
    journal: str = ""
    record: str = ""

    @property
    def session(self) -> str:
        """The session's public name."""
        return self.chain[2:]

    @property
    def end(self) -> str:
        """Whose record it is."""
        return "client" if self.chain.startswith("c:") else "gateway"


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, and what the journals held besides: records of sessions in all, lines that are no records."""

    findings: tuple[Finding, ...]
    sessions: int
    unreadable: int

    @property
    def accepted(self) -> bool:
        """Whether there was something to judge, and all of it was explained."""
        return bool(self.findings) and all(finding.verdict is Verdict.ACCEPTED for finding in self.findings)

    @property
    def rejected(self) -> tuple[Finding, ...]:
        """Those that nothing explains."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.REJECTED)


def validate(
    journals: Iterable[Path],
    *,
    sample: int | None = None,
    seed: int = 0,
    session: str | None = None,
    each: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Judge the sessions in ``journals`` (all, or ``sample`` of them, or the one named ``session``).

    The journals are those of one deployment: records of one session come together from all of them. With ``each``
    every journal is judged apart, as for independent runs that name their sessions alike. ``progress`` hears before
    each run of TLC which one of how many it is.
    Raises UnreadableJournal, TlcMissing, TlcFailed.
    """
    files = tuple(journals)
    worlds = [((path,), str(path)) for path in files] if each else [(files, "")]
    ready: list[tuple[Trace, str]] = []
    findings: list[Finding] = []
    sessions = unreadable = 0
    for paths, name in worlds:
        room = max(0, (TRACES_MAX if sample is None else sample) - len(ready) - len(findings))
        reading = read(paths, session=session, sample=room, seed=seed)
        sessions += reading.sessions
        unreadable += reading.unreadable
        for trace in reading.traces:
            unfit = _unfit(trace)
            if unfit is None:
                ready.append((trace, name))
            else:
                findings.append(replace(unfit, journal=name))
    batches = list(_batches(ready))
    for number, batch in enumerate(batches, 1):
        if progress is not None:
            progress(number, len(batches))
        findings += _run(batch)
    return Report(tuple(findings), sessions, unreadable)


def _unfit(trace: Trace) -> Finding | None:
    """The verdict on what needs no TLC."""
    if trace.forked is not None and trace.unclaimed is not None:
        why = f"the record with which owner epoch {trace.unclaimed} begins is not in the given journals"
        why += f", and without it nobody can tell which of two records {trace.forked} counts: this cannot be judged"
        return Finding(trace.chain, Verdict.MISSING, 0, len(trace.lines), f"{trace.chain}/{trace.forked}", why)
    if trace.forked is not None:
        why = f"the chain has two different records with the number {trace.forked}"
        return Finding(trace.chain, Verdict.REJECTED, 0, len(trace.lines), f"{trace.chain}/{trace.forked}", why)
    if trace.first != 1:
        first = trace.first or "beyond the bound"
        why = f"its first record here has the number {first}; give the journals from its birth on"
        return Finding(trace.chain, Verdict.INCOMPLETE, 0, len(trace.lines), None, why)
    if len(trace.limits) > LIMITS_MAX:
        why = f"its policies name more than {LIMITS_MAX} different bounds on attempts; give journals of a shorter time"
        return Finding(trace.chain, Verdict.INCOMPLETE, 0, len(trace.lines), None, why)
    return None


def _batches(traces: list[tuple[Trace, str]]) -> Iterator[list[tuple[Trace, str]]]:
    batch: list[tuple[Trace, str]] = []
    size = 0
    for trace, name in traces:
        if batch and size + len(trace.lines) > LINES_PER_RUN:
            yield batch
            batch, size = [], 0
        batch.append((trace, name))
        size += len(trace.lines)
    if batch:
        yield batch


def _run(batch: list[tuple[Trace, str]]) -> Iterator[Finding]:
    named = [(trace, Names()) for trace, _ in batch]
    files = {**tlc.sources(), "TraceData.tla": module(named)}
    outcome = tlc.run("TraceSession", "TraceSession.cfg", files)
    if outcome.violated is not None:
        raise tlc.TlcFailed(f"TLC reports {outcome.violated}, which trace validation does not check")
    farthest = {place.trace: place for place in map(_place, _AT.findall(outcome.text))}
    explained = {int(number) for number in _EXPLAINED.findall(outcome.text)}
    for number, ((trace, names), (_, name)) in enumerate(zip(named, batch, strict=True), 1):
        place = farthest.get(number)
        if place is None:
            raise tlc.TlcFailed(f"TLC said nothing of trace {number}")
        yield replace(_finding(trace, names, place, accepted=number in explained), journal=name)


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a trace was explained, and where the module stood there."""

    trace: int
    line: int
    state: str
    version: int
    epoch: int
    owner: int
    bound: str
    incumbent: str
    attempts: int
    limit: int
    kind: str
    on: str
    row: str
    again: str
    by: int
    fenced: int
    served: int
    unshown: tuple[str, ...]


def _place(text: str) -> _Place:
    values: list[Any] = [int(number) if number else word for word, number in _TOKEN.findall(text)]
    return _Place(*[*values[:17], tuple(values[17:])])


def _finding(trace: Trace, names: Names, place: _Place, *, accepted: bool) -> Finding:
    note = f"judged its first {len(trace.lines)} of {trace.total} events (at most {LINES_MAX})" if trace.cut else ""
    explained = len(trace.lines) if accepted else place.line - 1
    rows = tuple(dict.fromkeys(_short(line.told("row")) for line in trace.lines[:explained]))
    if accepted:
        return Finding(trace.chain, Verdict.ACCEPTED, explained, len(trace.lines), note=note, rows=rows)
    at_end = explained == len(trace.lines)
    line = None if at_end else trace.lines[explained]
    why = _missing(place) if line is None else f"{_event(line)}, but {_standing(place, names, line, trace)}"
    at = None if line is None else f"{_short(line.chain)}/{line.seq}"
    gap = trace.missing
    if gap is not None and (at_end or any(near.seq >= gap for near in _near(trace, explained))):
        why = f"record {gap} is not in the given journals: line missing, so what follows cannot be judged"
        return Finding(
            trace.chain, Verdict.MISSING, explained, len(trace.lines), f"{trace.chain}/{gap}", why, note, rows
        )
    record = "" if line is None else _short(line.hash)
    return Finding(trace.chain, Verdict.REJECTED, explained, len(trace.lines), at, why, note, rows, record=record)


def _near(trace: Trace, explained: int) -> list[Seen]:
    """The first unexplained line and those after it that tell what it means: for want of one it may go unexplained."""
    lines = trace.lines[explained : explained + LOOK_AHEAD + 1]
    return [line for line in lines if not line.chain.startswith("n:")]


def _event(line: Seen) -> str:
    """One event in words."""
    change = f" {_short(line.prev_state)} > {_short(line.state)}" if line.event == "session.state_change" else ""
    reason = f", {_short(line.reason)}" if line.reason is not None else ""
    lane = " of the node's lane" if line.chain.startswith("n:") else ""
    shown = (
        f"{_short(line.event)}{change} (row {_short(line.told('row'))}, version {_short(line.state_version)}{reason})"
    )
    return f"record {line.seq}{lane} is {shown}"


def _standing(place: _Place, names: Names, line: Seen, trace: Trace) -> str:
    """Where the module stands, and what it would accept."""
    if place.line == 1:
        return "a session begins with session.created: row 0, version 1, BIRTH, owner epoch 1, its role and bounds"
    if (broken := _broken(place, names, line, trace)) is not None:
        return broken
    if place.unshown:
        return (
            f"row {place.row} (version {place.version}, epoch {place.epoch}) has still to show {_listed(place.unshown)}"
        )
    bound = f"bound to {_short(names.known(place.bound))}" if place.bound != "none" else "no binding"
    trial = f", an attempt ({place.kind}) runs on {_short(names.known(place.on))}" if place.kind != "none" else ""
    where = (
        f"the session is in {place.state}, version {place.version}, epoch {place.epoch}, owner epoch {place.owner}, "
        f"{bound}, {place.attempts} of {place.limit} attempts used{trial}"
    )
    if place.again != "none":
        return f"{where}, and {place.again} has to take its next row in the same commit"
    if type(line.state_version) is int and line.state_version > place.version + 1:
        return f"{where}: the versions between are missing"
    return f"{where}: no action gives this event with these values"


def _broken(place: _Place, names: Names, line: Seen, trace: Trace) -> str | None:
    """The rule that the event breaks whatever the table says, if it breaks one."""
    acts, node = names.known_node(place.by), _short(line.node_id)
    claims = line.event == "ownership.acquired" or str(line.told("row")).partition(".")[0] == "8"
    if claims and not place.unshown and line.owner_epoch == place.owner:
        return f"owner epoch {place.owner} is {_short(acts)}'s: a change of owner takes the next one"
    if not claims and names.node(line.node_id) != place.by:
        return f"owner epoch {place.owner} is {_short(acts)}'s, and {node} wrote this without a change of owner"
    if not claims and place.fenced and not trace.is_early(line):
        return f"{_short(acts)} has lost the session (ownership.lost): only a change of owner may follow"
    if type(line.state_version) is int and line.state_version < place.version:
        return f"the session is at version {place.version}, and versions never go back"
    epoch = line.told("epoch") if line.event == "reattach.result" else None
    if type(epoch) is int and epoch < place.epoch:
        return f"epoch {epoch} was used before: the session is at epoch {place.epoch}"
    granted = trace.granted(line)
    if granted is not None and granted < place.served:
        return f"the owner of term {granted} granted it, and the client had accepted a grant of term {place.served}"
    return None


def _missing(place: _Place) -> str:
    if place.unshown:
        return f"the record ends although row {place.row} has still to show {_listed(place.unshown)}"
    return f"the record ends although {place.again} has to take its next row in the same commit"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(sorted(names))


def _short(text: Any) -> str:
    """A foreign value in one short printable line."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return shown if len(shown) <= _WORDS_MAX else shown[:_WORDS_MAX] + ".."
