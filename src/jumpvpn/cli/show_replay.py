"""Replays and dry-runs as words and as JSON values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpvpn.audit.auditor.rules import counted
from jumpvpn.policy.problems import Rejected
from jumpvpn.policy.units import format_duration
from jumpvpn.values import MILLISECOND, Now

if TYPE_CHECKING:
    from jumpvpn.recording.dryrun import Comparison
    from jumpvpn.recording.replay import Replay
    from jumpvpn.recording.series import Segment
    from jumpvpn.session.state import Session

LONGEST_WORDS = 600
LONGEST_SHOWN = 160  # characters of a value or a line in a difference; --json has all of it
MOST_SESSIONS = 20  # of a gateway; --json has all of them
CHAINED = ("hash", "prev")  # they differ wherever anything does


def cut(text: str, most: int = LONGEST_SHOWN) -> str:
    """``text`` in one line of bounded length, without control characters: it may come from anybody."""
    clean = "".join(sign if sign.isprintable() else "?" for sign in text[: most + 1])
    return clean if len(clean) <= most else clean[:most] + "…"


def moment(now: Now | None) -> str:
    """A time of the recording for people: UTC, and boot time in seconds."""
    if now is None:
        return "before the first input"
    try:
        wall = datetime.fromtimestamp(now.wall_ms / 1000, tz=UTC)
        shown = f"{wall:%Y-%m-%d %H:%M:%S}.{now.wall_ms % 1000:03d} UTC"
    except (ValueError, OverflowError, OSError):
        shown = f"wall clock {now.wall_ms} ms"
    return f"{shown} (boot time {now.boot / 1e9:.3f} s)"


# --- replay ----------------------------------------------------------------------------------------------------------


def part(segment: Segment, run: Replay) -> dict[str, Any]:
    """One file's replay for programs."""
    counts, header = run.counts, segment.header
    return {
        "file": str(segment.path), "role": header.role, "node": header.node_id, "run": header.run,
        "segment": header.segment, "missed_before": header.missed, "program": header.program,
        "complete": run.ended, "inputs": counts.inputs, "turns": counts.turns, "commits": counts.commits,
        "events": counts.events, "virtual_ms": _spent(run) // MILLISECOND,
        "inputs_by_kind": dict(sorted(counts.by_input.items())),
        "events_by_name": dict(sorted(counts.by_event.items())),
        "sessions": [_session(session) for session in run.sessions().values()],
    }  # fmt: skip


def part_words(segment: Segment, run: Replay) -> Iterator[str]:
    """One file's replay for people."""
    counts, header = run.counts, segment.header
    yield f"{segment.path}: {header.role} {cut(header.node_id)}, run {cut(header.run)}, segment {header.segment}"
    if header.missed:
        yield f"  {header.missed} inputs before it were not recorded: a commit was under way when a file was full"
    yield (
        f"  {counted(counts.inputs, 'input')}, {counted(counts.turns, 'turn')}, {counted(counts.commits, 'commit')}, "
        f"{counted(counts.events, 'event')} in "
        f"{format_duration(_spent(run) // MILLISECOND * MILLISECOND)}"
    )
    yield f"  inputs: {', '.join(f'{kind} {count}' for kind, count in counts.by_input.most_common()) or 'none'}"
    sessions = run.sessions()
    for session in list(sessions.values())[:MOST_SESSIONS]:
        on = f" on {cut(session.binding.transport)}" if session.binding is not None else ""
        yield f"  session {session.uid}: {session.state.value}{on}, version {session.version}, epoch {session.epoch}"
    if len(sessions) > MOST_SESSIONS:
        yield f"  and {len(sessions) - MOST_SESSIONS} sessions more"


def failure(error: Exception) -> dict[str, Any]:
    """What went wrong, for programs."""
    from jumpvpn.recording.replay import Difference

    if not isinstance(error, Difference):
        return {"what": str(error), "line": getattr(error, "line", 0) or None}
    return {
        "what": error.what, "line": error.line, "input": error.input, "input_kind": error.kind,
        "boot_ns": None if error.now is None else error.now.boot,
        "wall_ms": None if error.now is None else error.now.wall_ms,
        "recorded": _record(error.recorded), "produced": _record(error.produced),
        "fields": [{"field": name, "recorded": mine, "produced": theirs} for name, mine, theirs in error.fields()],
    }  # fmt: skip


def failure_words(at: Path | None, error: Exception) -> Iterator[str]:
    """What went wrong, for people."""
    from jumpvpn.recording.replay import Difference

    where = "" if at is None or str(at) in str(error) else f"{at}: "
    if not isinstance(error, Difference):
        yield cut(f"{where}{error}", LONGEST_WORDS)
        return
    kind = f" ({error.kind})" if error.kind else ""
    yield f"{where}line {error.line}, after input {error.input}{kind}, {moment(error.now)}:"
    yield f"  {cut(error.what, LONGEST_WORDS)}"
    both = error.recorded is not None and error.produced is not None
    for name, mine, theirs in error.fields() if both else ():
        if name not in CHAINED:
            yield f"  {name:<24} recorded {cut(json.dumps(mine))}, produced {cut(json.dumps(theirs))}"
    for word, line in (("recorded", error.recorded), ("produced", error.produced)):
        if line is not None:
            yield f"  {word}: {cut(line.decode('utf-8', 'replace').rstrip())}"


def _record(line: bytes | None) -> Any:
    if line is None:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", "replace")


def _spent(run: Replay) -> int:
    first, last = run.counts.first, run.counts.last
    return max(0, last.boot - first.boot) if first is not None and last is not None else 0


def _session(session: Session) -> dict[str, Any]:
    return {
        "uid": session.uid, "state": session.state.value, "version": int(session.version),
        "epoch": int(session.epoch), "reason": session.reason.value if session.reason is not None else None,
        "transport": session.binding.transport if session.binding is not None else None,
    }  # fmt: skip


# --- policies --------------------------------------------------------------------------------------------------------


def problems(error: Rejected) -> dict[str, Any]:
    """What is wrong with a policy, for programs."""
    found = [{"key": p.key, "line": p.line, "value": p.value, "message": p.message} for p in error.problems]
    return {"ok": False, "problems": found}


def unsuitable(error: Exception) -> str:
    """Why a recording does not serve for a dry-run."""
    from jumpvpn.recording.replay import Difference

    if isinstance(error, Difference):
        text = f"the recording does not replay (line {error.line}: {error.what}); see 'jumpvpn replay'"
        return cut(text, LONGEST_WORDS)
    return cut(str(error), LONGEST_WORDS)


def comparison(found: Comparison) -> Iterator[str]:
    """A dry-run side by side."""
    rows = [("", [name for name, _ in found.columns()]), *found.rows()]
    width = max(len(label) for label, _ in rows)
    for label, values in rows:
        yield f"{label:<{width}}" + "".join(f"{value:>26}" for value in values)
    yield ""
    yield from found.remarks()
