"""``jumpvpn audit``: judge event logs, tell what happened, count it. Needs no running node."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jumpvpn.cli.failures import USAGE_FAILURE, Failure, reported

if TYPE_CHECKING:
    from jumpvpn.audit.auditor import Auditor, Observer, Report

audit_commands = typer.Typer(
    help="Judge event logs, and tell what happened: an implementation of its own, which reads nothing but the events.",
    rich_markup_mode=None,
)

LogsArgument = Annotated[list[str], typer.Argument(help="Event journals, '.gz' too; '-' is standard input.")]
TableOption = Annotated[Path | None, typer.Option("--table", help="Another exported transition table (JSON).")]
KeysOption = Annotated[
    list[str] | None,
    typer.Option("--checkpoints", metavar="KEY", help="A node's first audit key (hex), or the file that holds it."),
]
HeadsOption = Annotated[
    Path | None, typer.Option("--heads", help='Chain heads kept elsewhere: JSON {chain: "seq:hash"}.')
]
ToleranceOption = Annotated[int, typer.Option("--tolerance", min=0, help="How late (ms) a node may act on a deadline.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SessionOption = Annotated[str, typer.Option("--session", help="Only sessions whose uid begins so.")]

PROGRESS_SECONDS = 2.0
TOLERANCE_MS = 2_000
HEADS_BYTES_MAX = 1 << 26  # a head takes about 100 bytes
KEY_BYTES_MAX = 1 << 12


@audit_commands.command()
def verify(
    logs: LogsArgument,
    table: TableOption = None,
    checkpoints: KeysOption = None,
    heads: HeadsOption = None,
    tolerance: ToleranceOption = TOLERANCE_MS,
    as_json: JsonOption = False,
) -> None:
    """Check every chain and every session against all rules.

    PASS: every rule holds and the chain is closed, or a signed checkpoint vouches for its head; with --checkpoints a
    checkpoint has to vouch for what is closed, too. FAIL: a rule is broken. INCOMPLETE: something is missing, so it
    cannot be decided. Exit status: 0 all PASS; 1 any FAIL; 2 none fails, but
    something is INCOMPLETE or unreadable, or the command line is wrong.
    """
    with reported():
        from jumpvpn.cli import show_audit

        report = _audit(logs, table, checkpoints, heads, tolerance, None)
        if as_json:
            _print_json(report.as_json())
        else:
            show_audit.print_report(report)
        raise SystemExit(report.exit_code)


@audit_commands.command()
def timeline(
    logs: LogsArgument, session: SessionOption = "", table: TableOption = None, as_json: JsonOption = False
) -> None:
    """Tell each session's story: states over time, transports, owners, switches, denials, the cause of its end.

    Exit status: 0 told; 1 the events break a rule ('jumpvpn audit verify' says which); 2 nothing to tell, or something
    is unreadable.
    """
    with reported():
        from jumpvpn.audit.auditor.timeline import Timeline
        from jumpvpn.cli import show_audit

        told = Timeline(session)
        report = _audit(logs, table, None, None, TOLERANCE_MS, told)
        stories = list(told.stories.values())
        if as_json:
            document = {"sessions": [story.as_json() for story in stories], "not_told": told.not_told}
            _print_json({**document, "log": _log_json(report)})
        else:
            show_audit.print_stories(stories, told.not_told)
            show_audit.print_doubts(report)
        if not stories:
            _nothing(report, f"no session that begins with {session!r}" if session else "no session")
        raise SystemExit(_told_code(report))


@audit_commands.command()
def stats(logs: LogsArgument, table: TableOption = None, as_json: JsonOption = False) -> None:
    """Count: recovery and detection times, stays per state, switches, denials, causes of ends, events, rates.

    Exit status: 0 counted; 1 the events break a rule ('jumpvpn audit verify' says which); 2 nothing to count, or
    unreadable.
    """
    with reported():
        from jumpvpn.audit.auditor.stats import Stats
        from jumpvpn.cli import show_audit

        counted = Stats()
        report = _audit(logs, table, None, None, TOLERANCE_MS, counted)
        if as_json:
            _print_json({**counted.as_json(), "log": _log_json(report)})
        else:
            show_audit.print_stats(counted)
            show_audit.print_doubts(report)
        if not report.events:
            _nothing(report, "no event record")
        raise SystemExit(_told_code(report))


def _audit(
    logs: list[str], table: Path | None, keys: list[str] | None, heads: Path | None, tolerance: int,
    observer: Observer | None,
) -> Report:  # fmt: skip
    from jumpvpn.audit.auditor import Auditor, BadTable, feed_files, load_table

    if len(set(logs)) != len(logs):
        raise Failure("a log is named twice", USAGE_FAILURE)
    try:
        rows = load_table(table)
    except BadTable as error:
        raise Failure(str(error), USAGE_FAILURE) from None
    auditor: Auditor = Auditor(
        rows, [_key(text) for text in keys or ()], _heads(heads) if heads is not None else None, tolerance, observer
    )
    progress = _Progress()
    feed_files(auditor, logs, progress)
    progress.done()
    return auditor.finish()


def _key(text: str) -> str:
    """A public key from the command line or from the file that is named there."""
    from jumpvpn.audit.auditor.checkpoints import is_key

    if is_key(text):
        return text
    try:
        with Path(text).open("rb") as file:
            found = file.read(KEY_BYTES_MAX).decode("ascii", "replace").strip()
    except (OSError, ValueError):
        raise Failure(f"--checkpoints {text[:80]!r} is neither a key of 64 hex digits nor a readable file", 2) from None
    if not is_key(found):
        raise Failure(f"{text} holds no key of 64 hex digits", USAGE_FAILURE)
    return found


def _heads(path: Path) -> dict[str, tuple[int, str]]:
    """Heads that were kept outside of the log."""
    from jumpvpn.audit.auditor.checkpoints import head_of

    try:
        with path.open("rb") as file:
            named: Any = json.loads(file.read(HEADS_BYTES_MAX))
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", USAGE_FAILURE) from None
    except (ValueError, RecursionError):
        raise Failure(f"{path} is no JSON object of chain heads", USAGE_FAILURE) from None
    found = {c: head_of(h) if isinstance(h, str) else None for c, h in named.items()} if isinstance(named, dict) else {}
    wrong = [chain for chain, head in found.items() if head is None]
    if wrong or not found:
        where = f"at {wrong[0][:80]!r}" if wrong else ""
        raise Failure(f'{path} is no JSON object of chain heads ("chain": "seq:hash") {where}'.rstrip(), USAGE_FAILURE)
    return {chain: head for chain, head in found.items() if head is not None}


class _Progress:
    """How far the reading is, on stderr; nothing for what is read at once."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._live = sys.stderr.isatty()
        self._shown = False

    def __call__(self, lines: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._live else PROGRESS_SECONDS)
        sys.stderr.write(f"\r\033[K{lines} lines" if self._live else f"audit: {lines} lines\n")
        sys.stderr.flush()
        self._shown = True

    def done(self) -> None:
        """Take the line away."""
        if self._shown and self._live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _log_json(report: Report) -> dict[str, Any]:
    document = report.as_json()
    return {name: document[name] for name in ("outcome", "lines", "events", "chains", "unreadable")}


def _nothing(report: Report, what: str) -> None:
    first = f" ({report.unreadable[0]})" if report.unreadable else ""
    raise Failure(f"there is {what} in the log{first}", USAGE_FAILURE)


def _told_code(report: Report) -> int:
    return 1 if not report.sound else USAGE_FAILURE if report.unreadable_count else 0


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
