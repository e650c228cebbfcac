"""``python -m jumpvpn.tracecheck``: sessions of event journals against the TLA+ module, or the module itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from jumpvpn.leaving import quietly
from jumpvpn.tracecheck import model, ownership
from jumpvpn.tracecheck.journals import TRACES_MAX, UnreadableJournal
from jumpvpn.tracecheck.tlc import TlcFailed, TlcMissing
from jumpvpn.tracecheck.traces import Finding, Report, Verdict, validate

WHAT = "Judges the sessions of event journals by the TLA+ module of the session, or checks the modules themselves."
HELP = """Exit status: 0 every session is ACCEPTED (with --model: every promise holds); 1 one is REJECTED (a promise is
violated, a row or an action is never taken); 2 not judged: wrong use, unreadable journal, no session in it, a record
of one missing, Java or TLC missing or stopped."""
UNJUDGED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    _consistent(parser, asked)
    try:
        return _model(as_json=asked.json) if asked.model else _traces(asked)
    except (UnreadableJournal, TlcMissing, TlcFailed) as error:
        sys.stderr.write(f"tracecheck: {error}\n")
        return UNJUDGED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m jumpvpn.tracecheck", description=WHAT, epilog=HELP)
    parser.add_argument(
        "logs", nargs="*", type=Path, metavar="LOG", help="event journals (JSON lines, '.gz' too) of one deployment"
    )
    parser.add_argument(
        "--model",
        action="store_true",
        help="check the modules of the session and of ownership, exhaustively; takes no LOG",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--session", metavar="UID", help="only this session (16 hex digits, as events show it)")
    parser.add_argument(
        "--sample", type=_positive, metavar="N", help=f"judge N records of sessions (default: {TRACES_MAX})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="chooses the sample (default: 0)")
    parser.add_argument(
        "--each", action="store_true", help="every LOG is a run of its own that names its sessions alike"
    )
    return parser


def _consistent(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    if asked.model and asked.logs:
        parser.error("--model takes no LOG")
    if not asked.model and not asked.logs:
        parser.error("name at least one LOG, or --model")


def _positive(text: str) -> int:
    number = int(text)
    if not 1 <= number <= TRACES_MAX:
        raise argparse.ArgumentTypeError(f"choose 1 to {TRACES_MAX}")
    return number


# --- traces ----------------------------------------------------------------------------------------------------------


def _traces(asked: argparse.Namespace) -> int:
    report = validate(
        asked.logs, sample=asked.sample, seed=asked.seed, session=asked.session, each=asked.each, progress=_progress
    )
    if asked.json:
        _print(json.dumps(_as_json(report)))
    else:
        for finding in report.findings:
            _print(_line(finding))
        _print(_summary(report, asked.session))
    if report.rejected:
        return 1
    return 0 if report.accepted else UNJUDGED


def _progress(number: int, runs: int) -> None:
    if runs > 1:
        _note(f"run {number} of {runs}")


def _line(finding: Finding) -> str:
    where = f"{finding.journal}: " if finding.journal else ""
    words = {
        Verdict.ACCEPTED: f"{finding.lines} events explained",
        Verdict.REJECTED: f"{finding.explained} of {finding.lines} events explained; {finding.why}",
        Verdict.MISSING: f"{finding.explained} of {finding.lines} events explained; {finding.why}",
        Verdict.INCOMPLETE: finding.why,
    }
    note = f" ({finding.note})" if finding.note else ""
    return f"{where}{finding.session} ({finding.end}): {finding.verdict.value}, {words[finding.verdict]}{note}"


def _summary(report: Report, asked_for: str | None) -> str:
    counts = {verdict: sum(f.verdict is verdict for f in report.findings) for verdict in Verdict}
    parts = [f"{count} {verdict.value}" for verdict, count in counts.items() if count]
    judged = len(report.findings)
    if not judged:
        parts = ["no such session was found" if asked_for else "no session was found"]
        parts[0] += ": --session takes all 16 digits" if asked_for else ": give event journals that hold sessions"
    elif judged < report.sessions:
        parts.append(f"{report.sessions - judged} more not judged")
    if report.unreadable:
        one = report.unreadable == 1
        parts.append("1 line is no event record" if one else f"{report.unreadable} lines are no event records")
    return "; ".join(parts)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "accepted": report.accepted,
        "sessions": report.sessions,
        "unreadable_lines": report.unreadable,
        "findings": [
            {
                "session": finding.session, "end": finding.end, "chain": finding.chain, "journal": finding.journal,
                "verdict": finding.verdict.value, "explained": finding.explained, "events": finding.lines,
                "at": finding.at, "why": finding.why, "note": finding.note, "rows": list(finding.rows),
            }
            for finding in report.findings
        ],
    }  # fmt: skip


# --- model -----------------------------------------------------------------------------------------------------------


def _model(*, as_json: bool) -> int:
    checked = model.check()
    protocol = ownership.check(lambda config: _note(f"checking {config}"))
    holds = checked.holds and protocol.holds
    if as_json:
        told = {
            "holds": holds, "rows": checked.rows, "untaken": list(checked.untaken), "runs": _runs_json(checked.runs),
            "ownership": {
                "holds": protocol.holds, "actions": protocol.actions, "untaken": list(protocol.untaken),
                "runs": _runs_json(protocol.runs), "assumptions": list(ownership.ASSUMPTIONS),
            },
        }  # fmt: skip
        _print(json.dumps(told))
        return 0 if holds else 1
    _tell_runs(checked.runs)
    _print(_taken("rows", checked.rows, checked.untaken))
    _tell_runs(protocol.runs)
    _print(_taken("actions of ownership", protocol.actions, protocol.untaken))
    _print("ownership is a model of the design, under these assumptions:")
    for assumption in ownership.ASSUMPTIONS:
        _print(f"  - {assumption}")
    return 0 if holds else 1


def _runs_json(runs: tuple[model.Checked, ...]) -> list[dict[str, Any]]:
    return [
        {"config": run.config, "states": run.states, "distinct": run.distinct, "promises": list(run.promises),
         "violated": run.violated} for run in runs
    ]  # fmt: skip


def _tell_runs(runs: tuple[model.Checked, ...]) -> None:
    for run in runs:
        _print(_run_line(run))
        if run.violated is not None:
            _print(run.text)


def _taken(what: str, total: int, untaken: tuple[str, ...]) -> str:
    return f"{total - len(untaken)} of {total} {what} taken" + (f"; never: {' '.join(untaken)}" if untaken else "")


def _note(text: str) -> None:
    """One line per run of TLC: it takes seconds to half a minute."""
    sys.stderr.write(f"tracecheck: {text}\n")


def _run_line(run: model.Checked) -> str:
    said = "all hold" if run.violated is None else f"VIOLATED: {run.violated}"
    return f"{run.config}: {run.distinct:,} states, {run.states:,} steps; {' '.join(run.promises)}: {said}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def run() -> NoReturn:
    """The command as a process."""
    raise SystemExit(quietly("tracecheck", main))


if __name__ == "__main__":
    run()
