"""What TLC says of a story's journals: whether the TLA+ module of the session explains all that its nodes wrote."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from jumpvpn.lab.errors import LabError
from jumpvpn.tracecheck import Finding, Report, TlcFailed, TlcMissing, UnreadableJournal, Verdict, tlc, validate

ENDS = ("client", "gateway")


@dataclass(frozen=True, slots=True)
class Traces:
    """What came of it: sessions' records that were judged, their events, and what broke a promise, one line each."""

    judged: int
    events: int
    violations: tuple[str, ...]


def demand_tlc() -> None:
    """Raises LabError if traces could not be judged here; the text says what to install."""
    try:
        tlc.ready()
    except TlcMissing as error:
        raise LabError(f"traces cannot be judged: {error}") from None


def judged(journals: Mapping[str, Path], uids: Collection[str], *, disks_lost: bool) -> Traces:
    """The verdict on all ``journals`` of one deployment, by side; ``uids`` are the sessions that have to be in them.

    With ``disks_lost`` a record may be in no journal: what a gateway had on a disk that is gone. Takes a second for the
    start of TLC, and some more for a large story. Raises LabError if TLC is not here.
    """
    logs = [path for path in journals.values() if path.exists() and path.stat().st_size]
    if not logs:
        return Traces(0, 0, ("no journal was written: there is no trace",) if uids else ())
    try:
        report = validate(logs)
    except TlcMissing as error:
        raise LabError(f"traces cannot be judged: {error}") from None
    except (TlcFailed, UnreadableJournal) as error:
        return Traces(0, 0, (f"traces were not judged: {error}",))
    return Traces(
        len(report.findings),
        sum(finding.explained for finding in report.findings),
        (*_absent(report, uids), *_unexplained(report, logs, disks_lost=disks_lost)),
    )


def _absent(report: Report, uids: Collection[str]) -> list[str]:
    """Sessions of which one end left no trace."""
    told = {(finding.session, finding.end) for finding in report.findings}
    return [f"session {uid} has no trace at its {end}" for uid in uids for end in ENDS if (uid, end) not in told]


def _unexplained(report: Report, logs: list[Path], *, disks_lost: bool) -> list[str]:
    fine = {Verdict.ACCEPTED, Verdict.MISSING} if disks_lost else {Verdict.ACCEPTED}
    return [_told(finding, logs) for finding in report.findings if finding.verdict not in fine]


def _told(finding: Finding, logs: list[Path]) -> str:
    at = "" if finding.at is None else f" at {finding.at} ({', '.join(_lines(finding, logs)) or 'in no journal'})"
    return (
        f"trace of session {finding.session} ({finding.end}) is {finding.verdict.value}{at}, "
        f"{finding.explained} of {finding.lines} events explained: {finding.why}"
    )


def _lines(finding: Finding, logs: list[Path]) -> list[str]:
    """Where the record that a finding is about stands, file and line: of one, the first place; of two, both."""
    chain, _, number = str(finding.at).rpartition("/")
    found: dict[str, str] = {}
    for path in logs:
        for place, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the reader of journals has counted it
            name = str(record.get("hash"))
            if (record.get("chain"), str(record.get("seq"))) == (chain, number) and finding.record in ("", name):
                found.setdefault(name, f"{path.name}:{place}")
    return list(found.values())
