"""The command ``replay``, and the group ``policy`` with ``check`` and ``dry-run``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jumpvpn.cli import show_replay as show
from jumpvpn.cli.failures import RUN_FAILURE, USAGE_FAILURE, Failure, reported

if TYPE_CHECKING:
    from jumpvpn.recording.replay import Replay
    from jumpvpn.recording.series import Segment

PROGRESS_TTY_SECONDS = 0.5
PROGRESS_SECONDS = 10.0  # in a log, one line per that long says that it is alive

policy_commands = typer.Typer(help="Check a policy, and try it on a recording.", rich_markup_mode=None)

FilesArgument = Annotated[list[Path], typer.Argument(help="Recordings; their order does not matter.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def replay(
    files: FilesArgument,
    log: Annotated[Path | None, typer.Option("--log", help="Compare with this event journal, too.")] = None,
    until: Annotated[int, typer.Option("--until", min=0, help="Stop after so many inputs; 0: at the end.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Feed recorded inputs to the session's machine again: every event must come out byte for byte.

    Exit status: 0 all events came out the same; 1 the first difference is shown; 2 a file cannot be read, or is no
    recording that this version knows.
    """
    with reported():
        report = _replayed(files, log, until)
        typer.echo(json.dumps(report.document(), indent=2) if as_json else "\n".join(report.words()))
        if report.code:
            raise SystemExit(report.code)


@dataclass(slots=True)
class Report:
    """What the replay of some files came to. ``at`` is the file in which it failed."""

    journal: Path | None
    parts: list[tuple[Segment, Replay]] = field(default_factory=list)
    failure: Exception | None = None
    at: Path | None = None
    stopped: bool = False

    @property
    def code(self) -> int:
        """Exit status."""
        from jumpvpn.recording.entries import BadRecording, Changed

        if self.failure is None:
            return 0
        unreadable = isinstance(self.failure, BadRecording) and not isinstance(self.failure, Changed)
        return USAGE_FAILURE if unreadable else RUN_FAILURE

    @property
    def result(self) -> str:
        """One word."""
        return {0: "REPRODUCED", RUN_FAILURE: "DIFFERENT"}.get(self.code, "UNREADABLE")

    def document(self) -> dict[str, Any]:
        """For programs."""
        document: dict[str, Any] = {"result": self.result, "files": [show.part(*part) for part in self.parts]}
        if self.failure is not None:
            document["failure"] = {"file": None if self.at is None else str(self.at), **show.failure(self.failure)}
        return document

    def words(self) -> Iterator[str]:
        """For people."""
        for segment, run in self.parts:
            yield from show.part_words(segment, run)
            if segment.path != self.at:
                yield f"  {self._verdict(run)}"
        if self.failure is not None:
            yield from show.failure_words(self.at, self.failure)

    def _verdict(self, run: Replay) -> str:
        text = "reproduced byte for byte"
        text += f", as in {self.journal}" if self.journal is not None else ""
        if self.stopped and self.parts[-1][1] is run:
            return f"{text} as far as was asked for"
        if not run.ended:
            return f"{text} up to where the file breaks off: the node was killed, still runs, or lines are missing"
        return text


def _replayed(files: list[Path], log: Path | None, until: int) -> Report:
    from jumpvpn.recording.entries import BadRecording
    from jumpvpn.recording.journal import JournalCheck, NotInJournal
    from jumpvpn.recording.replay import Difference
    from jumpvpn.recording.series import lines_of, segments

    report, progress = Report(log), Progress("inputs")
    try:
        journal = None if log is None else JournalCheck(str(log), lines_of(log))
        found = segments(files)
        _tell_other_program(found)
        _replay_all(found, journal, report, progress, until)
    except (BadRecording, Difference, NotInJournal) as error:
        report.failure = error
    except OSError as error:
        raise _unreadable(error) from None
    finally:
        progress.end()
    return report


def _replay_all(found: Sequence[Segment], journal: Any, report: Report, progress: Progress, until: int) -> None:
    from jumpvpn.recording.replay import replay as replay_segment

    done, before = 0, None
    state: list[Any] | None = None
    for segment in found:
        report.at, run = segment.path, None
        beginning = state if segment.follows(before) else None
        if journal is not None and beginning is None:
            journal.search()
        on_line = None if journal is None else journal.expect
        for run in replay_segment(segment.lines(), None, on_line, beginning):
            if not report.parts or report.parts[-1][1] is not run:
                report.parts.append((segment, run))
            progress.at(done + run.counts.inputs)
            if until and done + run.counts.inputs >= until and run.settled:
                report.stopped, report.at = True, None
                return
        assert run is not None
        done, before, state = done + run.counts.inputs, segment, run.state()
    report.at = None


def _tell_other_program(found: Sequence[Segment]) -> None:
    from importlib.metadata import version

    here = version("jumpvpn")
    for other in sorted({segment.header.program for segment in found} - {here}):
        sys.stderr.write(
            f"jumpvpn: recorded by jumpvpn {show.cut(other)}, replayed by {here}: differences may come from that\n"
        )


def _unreadable(error: OSError) -> Failure:
    return Failure(f"{error.filename}: {error.strerror}", USAGE_FAILURE)


class Progress:
    """Says on stderr how far long work is: in place on a terminal, else a line now and then."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._is_terminal = sys.stderr.isatty()
        self._every = PROGRESS_TTY_SECONDS if self._is_terminal else PROGRESS_SECONDS
        self._next = time.monotonic() + self._every
        self._shown = False

    def at(self, count: int) -> None:
        """So much is done."""
        if count % 64 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        self._shown = True
        sys.stderr.write(f"\r{count} {self._unit} " if self._is_terminal else f"jumpvpn: {count} {self._unit}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave a clean line."""
        if self._shown and self._is_terminal:
            sys.stderr.write("\r\x1b[K")


# --- policy ----------------------------------------------------------------------------------------------------------


@policy_commands.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A policy, or a node's configuration that holds one.")],
    as_json: JsonOption = False,
) -> None:
    """Check a policy: every problem with its place, or what it comes to in words.

    Exit status: 0 valid; 1 it has problems; 2 the file cannot be read.
    """
    from jumpvpn.config import load_policy_of, read_text
    from jumpvpn.policy.problems import Rejected
    from jumpvpn.recording.bounds import bounds_in_words

    with reported():
        read_text(file)  # what cannot be read has no problems of its own
        try:
            policy = load_policy_of(file)
        except Rejected as error:
            typer.echo(json.dumps(show.problems(error)) if as_json else str(error))
            raise SystemExit(RUN_FAILURE) from None
        if as_json:
            bounds = [{"what": what, "bound": bound} for what, bound in bounds_in_words(policy)]
            document = {"ok": True, "version": policy.version, "digest": policy.digest(), "bounds": bounds}
            typer.echo(json.dumps(document, indent=2))
        else:
            typer.echo(f"valid: version {policy.version}, digest {policy.digest()}")
            typer.echo("\n".join(f"  {what:<36}{bound}" for what, bound in bounds_in_words(policy)))


@policy_commands.command("dry-run")
def dry_run(
    file: Annotated[Path, typer.Argument(help="The policy to try, or a configuration that holds it.")],
    trace: Annotated[list[Path], typer.Option("--trace", help="A client's recording; several that follow each other.")],
    as_json: JsonOption = False,
) -> None:
    """Show what another policy would have made of the same networks, beside what happened.

    Exit status: 0 the comparison is shown; 1 the policy or the recording does not serve; 2 a file cannot be read.
    """
    from jumpvpn.config import load_policy_of, read_text
    from jumpvpn.policy.problems import Rejected
    from jumpvpn.recording.dryrun import Unsuitable, compare
    from jumpvpn.recording.entries import BadRecording
    from jumpvpn.recording.replay import Difference
    from jumpvpn.recording.series import segments

    with reported():
        read_text(file)  # what cannot be read has no problems of its own
        try:
            policy = load_policy_of(file)
        except Rejected as error:
            raise Failure(str(error)) from None
        progress = Progress("inputs")
        try:
            found = segments(trace)
            for earlier, segment in pairwise(found):
                if not segment.follows(earlier):
                    raise Unsuitable(
                        f"{segment.path} does not follow {earlier.path} without a gap; try them one by one"
                    )
            comparison = compare([segment.lines for segment in found], policy, progress.at)
        except (Unsuitable, Difference) as error:
            raise Failure(show.unsuitable(error)) from None
        except OSError as error:
            raise _unreadable(error) from None
        except BadRecording as error:
            raise Failure(show.cut(str(error), show.LONGEST_WORDS), USAGE_FAILURE) from None
        finally:
            progress.end()
        typer.echo(json.dumps(comparison.document(), indent=2) if as_json else "\n".join(show.comparison(comparison)))
