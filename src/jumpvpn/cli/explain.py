"""``jumpvpn explain``: finds the log and the node, and says in words why a session is where it is."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.text import Text

from jumpvpn.audit.envelope import LONGEST_LINE
from jumpvpn.cli import node
from jumpvpn.cli.console import console
from jumpvpn.cli.failures import TRACEBACK_VARIABLE, USAGE_FAILURE, Failure
from jumpvpn.config import load_either
from jumpvpn.explain import text
from jumpvpn.explain.explanation import Explanation, Source, explain, unborn
from jumpvpn.explain.history import Collector, History, NoHistory, Seen, Wanted, survey
from jumpvpn.explain.records import parse
from jumpvpn.explain.styles import STATE_STYLES
from jumpvpn.policy.units import parse_duration
from jumpvpn.runtime.control import NotRunning
from jumpvpn.values import MILLISECOND

WIDEST = 110  # longer lines are hard to read on any screen
PLAIN_WIDTH = 100  # without a terminal
_READ_BYTES = 1 << 20
_TELL_SECONDS = 2.0  # how often a long reading says that it goes on
_GZIP = b"\x1f\x8b"
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,3}))?)?")
_STYLES = {"dim": "dim", "label": "bold", "good": "green", "bad": "red", **STATE_STYLES}


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: a session (the beginning of its uid, "" for the only one), and a moment if not the present."""

    session: str
    at: str | None
    event: str | None

    @property
    def past(self) -> bool:
        """Whether a moment was named."""
        return self.at is not None or self.event is not None


def run(question: Question, control: Path | None, config: Path | None, log: Path | None, *, as_json: bool) -> None:
    """Answer ``question``. Raises Failure (2 for whatever cannot be answered), Refused, Rejected."""
    if question.at is not None and question.event is not None:
        raise Failure("--at and --event name two moments; give one", USAGE_FAILURE)
    with _readable():
        found = _from_log(question, log, None, "") if log is not None else _from_node(question, control, config)
    if as_json:
        sys.stdout.write(json.dumps(found.document(), indent=2, allow_nan=False) + "\n")
    else:
        _print(found)


# --- sources ---------------------------------------------------------------------------------------------------------


def _from_node(question: Question, control: Path | None, config: Path | None) -> Explanation:
    """The running node's answer with its journal; the journal alone if no node runs."""
    path = node.control_path(control, config)
    try:
        answer = node.with_node(path, lambda client: client.request("outlook", session=question.session))
    except NotRunning as gone:
        journal = _journal(control, config)
        if journal is None:
            raise Failure(f"{gone}; or name a log with --log", USAGE_FAILURE) from None
        return _from_log(question, journal, None, "the node does not run; ")
    journal, facts = Path(answer["events_file"]), answer["session"]
    if answer.get("unborn") is not None and not question.session and not question.past:
        with _same_version():
            return unborn(answer["unborn"], _source(answer, "the running node"))
    if facts is None and question.session == "" and answer["known"]:
        raise Failure(f"several sessions live here; name one: {_known(answer['known'])}", USAGE_FAILURE)
    if answer.get("matches", 1) > 1:
        names = _known(answer["known"])
        raise Failure(f"{question.session!r} is the beginning of several: {names}", USAGE_FAILURE)
    if facts is None or question.past:
        wanted = Question(facts["uid"], question.at, question.event) if facts is not None else question
        return _from_log(wanted, journal, answer, "")
    try:
        history = _history(journal, Wanted(facts["uid"]))
    except (Failure, NoHistory, OSError):
        history = None  # the node's answer stands without its causes, and says so
    with _same_version():
        return explain(history, facts, _source(answer, "the running node and its journal"))


def _source(answer: Any, words: str) -> Source:
    return Source(f"{answer['role']} {answer['node']}; {words}", answer["node"], live=True, now_ms=answer["time_ms"])


def _journal(control: Path | None, config: Path | None) -> Path | None:
    """Where the journal of a node that does not run would be."""
    if config is not None:
        return load_either(config).events
    found = [path for path in node.DEFAULT_EVENTS if control is None and path.exists()]
    return found[0] if found else None


def _from_log(question: Question, path: Path, answer: Any, remark: str) -> Explanation:
    """From a log alone: a copy, a dead node's journal, or a moment of the past. ``answer`` is the running node's."""
    end_ms = _end_ms(path)
    now_ms = int(answer["time_ms"]) if answer is not None else end_ms
    at_ms = _moment(question.at, now_ms) if question.at is not None else None
    if at_ms is not None and at_ms > now_ms:
        ends = "that is in the future" if answer is not None else f"the log {path} ends at {_clock(None)(end_ms)}"
        raise Failure(f"--at {question.at}: {ends}", USAGE_FAILURE)
    uid = _which(path, question.session, at_ms)
    chain, seq = _event(question.event) if question.event is not None else ("", None)
    history = _history(path, Wanted(uid, at_ms, chain, seq))
    moment = history.moment
    named = f"event {moment.ref} ({moment.event}); " if question.event is not None else ""
    who = f"{'client' if any(r.chain.startswith('c:') for r in history.records) else 'gateway'} {moment.node}"
    source = Source(f"{who}; {remark}{named}from {path}", moment.node, live=False, now_ms=now_ms, past=question.past)
    return explain(history, None, source)


def _which(path: Path, prefix: str, at_ms: int | None) -> str:
    """The one session meant."""
    with Backwards.open(path) as lines:
        found = survey(lines, prefix, at_ms)
    if len(found) == 1 or (found and found[0].is_client):
        return found[0].uid
    if found:
        known = _known([_seen(seen) for seen in found])
        ambiguous = (
            f"{prefix!r} is the beginning of several" if prefix else "several sessions are in this log; name one"
        )
        raise Failure(f"{ambiguous}: {known}", USAGE_FAILURE)
    with Backwards.open(path) as lines:
        others = survey(lines, "", None)
    if not others:
        raise Failure(f"{path} holds no session; is it an event log of Jumping VPN?", USAGE_FAILURE)
    names = _known([_seen(seen) for seen in others])
    if any(seen.uid.startswith(prefix) for seen in others):
        raise Failure(f"{path} tells of no session at or before that time; later ones: {names}", USAGE_FAILURE)
    raise Failure(f"no session {prefix!r} in {path}; it tells of {names}", USAGE_FAILURE)


def _seen(seen: Seen) -> dict[str, str]:
    return {"uid": seen.uid, "state": seen.state}


def _known(sessions: list[Any]) -> str:
    return ", ".join(f"{s['uid']} ({s['state']})" for s in sessions) or "none"


def _history(path: Path, wanted: Wanted) -> History:
    collector = Collector(wanted)
    with Backwards.open(path) as lines:
        for line in lines:
            if collector.feed(line):
                break
    try:
        return collector.history()
    except NoHistory as missing:
        clock = _clock(None)
        reach = (
            f"; it reaches from {clock(collector.begin_ms)} to {clock(collector.end_ms)}" if collector.end_ms else ""
        )
        raise Failure(f"{path}: {missing}{reach}", USAGE_FAILURE) from None


def _end_ms(path: Path) -> int:
    """Wall time of the newest record."""
    with Backwards.open(path) as lines:
        for line in lines:
            record = parse(line)
            if record is not None:
                return record.time_ms
    raise Failure(f"{path} holds no event record; is it an event log of Jumping VPN?", USAGE_FAILURE)


@dataclass(slots=True)
class Backwards:
    """The lines of a file, newest first, in little memory; a line that is too long comes as ``TOO_LONG``."""

    fd: int
    size: int
    name: str

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Iterator[bytes]]:
        """The lines of ``path``. Raises Failure for what is no plain file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer must not hold us up
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Failure(f"{path} is not a regular file; copy the log into one", USAGE_FAILURE)
            if os.pread(fd, len(_GZIP), 0) == _GZIP:
                raise Failure(f"{path} is compressed; unpack it first", USAGE_FAILURE)
            yield cls(fd, found.st_size, str(path)).lines()
        finally:
            os.close(fd)

    def lines(self) -> Iterator[bytes]:
        """Newest first. What stands behind the last newline is a line that is still being written."""
        start, carry, too_long = self.size, b"", False
        progress = Progress(self.name, self.size)
        is_tail = True
        while start > 0:
            before = max(0, start - _READ_BYTES)
            *rest, last = (os.pread(self.fd, start - before, before) + carry).split(b"\n")[::-1]
            start = before
            for piece in rest:
                if not is_tail and (piece or too_long):
                    yield TOO_LONG if too_long else piece
                is_tail = too_long = False
            too_long = too_long or len(last) > LONGEST_LINE
            carry = last[-1:] if too_long else last
            progress.reached(self.size - start)
        if not is_tail and (carry or too_long):
            yield TOO_LONG if too_long else carry


TOO_LONG = bytes(LONGEST_LINE + 1)


class Progress:
    """Says on a terminal's stderr how far a long reading has come."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._next = time.monotonic() + _TELL_SECONDS

    def reached(self, done: int) -> None:
        """``done`` bytes are read."""
        if sys.stderr.isatty() and time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_SECONDS
            sys.stderr.write(f"jumpvpn: reading {self._name}: {100 * done // max(self._size, 1)} %\n")


# --- moments ---------------------------------------------------------------------------------------------------------


def _moment(words: str, now_ms: int) -> int:
    """Unix ms of ``-5min``, ``14:03:05`` (the last one before ``now_ms``) or an RFC 3339 time. Raises Failure."""
    try:
        if words.startswith("-"):
            return now_ms - parse_duration(words[1:]) // MILLISECOND
        of_day = _TIME_OF_DAY.fullmatch(words)
        if of_day is not None:
            return _time_of_day(of_day, now_ms)
        found = datetime.fromisoformat(words)
        return int((found if found.tzinfo is not None else found.astimezone()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise Failure(
            f'--at {words!r} is no time; write "-5min", "14:03:05" or "2026-11-22T14:03:05+01:00"', USAGE_FAILURE
        ) from None


def _time_of_day(found: re.Match[str], now_ms: int) -> int:
    now = datetime.fromtimestamp(now_ms / 1000).astimezone()
    hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
    moment = now.replace(
        hour=hour, minute=minute, second=second, microsecond=int((found[4] or "0").ljust(3, "0")) * 1000
    )
    if moment > now:
        moment -= timedelta(days=1)
    return int(moment.timestamp() * 1000)


def _event(words: str) -> tuple[str, int]:
    """(chain, seq) of ``17`` or ``c:2ba67de0bde187e7/17``. Raises Failure."""
    chain, _, number = words.rpartition("/")
    if not number.isascii() or not number.isdigit() or len(number) > 15:
        raise Failure(f"--event {words!r} is no event; write its number, or chain/number", USAGE_FAILURE)
    return chain, int(number)


def _clock(reference_ms: int | None) -> Callable[[int], str]:
    """The reader's time of day, with the date where it is not the reference's (None: always)."""
    day = datetime.fromtimestamp(reference_ms / 1000).astimezone().date() if reference_ms is not None else None

    def shown(time_ms: int) -> str:
        moment = datetime.fromtimestamp(time_ms / 1000).astimezone()
        date = "" if moment.date() == day else f"{moment:%Y-%m-%d} "
        return f"{date}{moment:%H:%M:%S}.{time_ms % 1000:03d}"

    return shown


# --- output ----------------------------------------------------------------------------------------------------------


def _print(found: Explanation) -> None:
    out = console(PLAIN_WIDTH)
    for line in text.lines(found, _clock(found.at_ms), min(out.width, WIDEST)):
        shown = Text()
        for words, style in line:
            shown.append(words, style=_STYLES.get(style, ""))
        shown.rstrip()
        out.print(shown, soft_wrap=True)


@contextmanager
def _readable() -> Iterator[None]:
    """A log that cannot be read is a mistake of the command line."""
    try:
        yield
    except OSError as error:
        raise Failure(f"{error.filename or 'the log'}: {error.strerror}", USAGE_FAILURE) from None


@contextmanager
def _same_version() -> Iterator[None]:
    """A node's answer in another form is a node of another version."""
    try:
        yield
    except (KeyError, TypeError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        raise Failure(
            f"the node answers in a form that this program does not know ({error}); are both of one version?"
        ) from None
