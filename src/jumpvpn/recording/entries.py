"""The lines of a recording: one JSON array each, its first entry the kind; event lines stand as they were journaled.

Whatever is read here may come from anybody: each line is bounded, typed, and refused with its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import msgspec

from jumpvpn.audit.chain import Chain
from jumpvpn.audit.checkpoints import Link
from jumpvpn.audit.sealing import Origin
from jumpvpn.engine import inputs as inp
from jumpvpn.recording.codec import BadValue, Veil, decode, encode
from jumpvpn.recording.snapshot import Part
from jumpvpn.recording.veil import ReaderSight
from jumpvpn.values import DomainEvent, Instant, Now

FORMAT = 2
MAGIC = b'["recording",'
LINE_MAX = 1 << 20  # bytes; one session's state has about 2 KiB, an event about 1 KiB
DIGEST_DIGITS = 16  # shows accidents; whoever edits on purpose can compute it, too: the event chains are for that

INPUTS: dict[str, type] = {
    kind.__name__: kind
    for kind in vars(inp).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == inp.__name__ and kind is not inp.Reachable
}
"""All inputs that an engine takes, by name."""


class BadRecording(ValueError):
    """The bytes are no recording, or not one that can be read; the text says what is wrong and where."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {text}" if line else text)
        self.line = line


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment is: by which program, of which node's run, which one of that run's segments.

    ``missed`` counts the inputs between the segment before and this one that were not recorded.
    """

    format: int
    program: str
    role: str
    node_id: str
    cluster_id: str
    boot_id: str
    run: str
    segment: int
    missed: int
    began_ms: int
    address_mode: str

    @property
    def origin(self) -> Origin:
        """Who wrote the events."""
        return Origin(self.node_id, self.cluster_id, self.boot_id, self.run, self.role)


@dataclass(frozen=True, slots=True)
class State:
    """One part of the state in which the segment begins."""

    part: Part


@dataclass(frozen=True, slots=True)
class Shown:
    """Names of addresses that events show otherwise than without their ordinal."""

    forms: dict[str, str]


@dataclass(frozen=True, slots=True)
class Input:
    """The engine was told ``event``."""

    now: Now
    event: Any


@dataclass(frozen=True, slots=True)
class Emitted:
    """The next events that the engine ordered to be recorded outside a commit were sealed."""


@dataclass(frozen=True, slots=True)
class Noted:
    """The node itself recorded these events."""

    now: Now
    events: tuple[DomainEvent, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The store has the session's commit."""

    uid: str


@dataclass(frozen=True, slots=True)
class PolicyUsed:
    """From here on events name this policy, and show addresses as it says."""

    policy: Any
    forms: dict[str, str]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A session's chain continues where the store says it ended."""

    uid: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class Due:
    """Summaries of denials were asked for."""

    now: Now


@dataclass(frozen=True, slots=True)
class Vouched:
    """The node signed a checkpoint."""

    now: Now
    link: Link
    signature: bytes


@dataclass(frozen=True, slots=True)
class Sum:
    """The first digits of the SHA-256 of all bytes before this line."""

    digest: str


@dataclass(frozen=True, slots=True)
class End:
    """The segment is complete: what it counted."""

    inputs: int
    events: int


@dataclass(frozen=True, slots=True)
class EventLine:
    """One line of the journal, byte for byte."""

    line: bytes


Entry = (
    Header
    | State
    | Shown
    | Input
    | Emitted
    | Noted
    | Settled
    | PolicyUsed
    | Resumed
    | Due
    | Vouched
    | Sum
    | End
    | EventLine
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[Any])


# --- writing ---------------------------------------------------------------------------------------------------------


def header_line(header: Header) -> bytes:
    """The first line of a segment."""
    return line_of("recording", {field.name: getattr(header, field.name) for field in fields(header)})


def input_line(event: Any, now: Now, veil: Veil) -> bytes:
    """One input. Raises TypeError for a kind that cannot be recorded."""
    kind = type(event)
    return line_of("in", now.boot, now.wall_ms, kind.__name__, encode(event, kind, veil))


def note_line(events: Iterable[DomainEvent], now: Now, veil: Veil) -> bytes:
    """Events that the node itself recorded."""
    return line_of("note", now.boot, now.wall_ms, [encode(event, DomainEvent, veil) for event in events])


def line_of(*entry: Any) -> bytes:
    """A line of plain values."""
    return _encoder.encode(entry) + b"\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def read(lines: Iterable[bytes], sight: ReaderSight) -> Iterator[tuple[int, Entry]]:
    """The entries of one segment with their line numbers (from 1). The header comes first.

    A last line without its newline was being written when the node died: it is left out. Raises BadRecording.
    """
    digest = hashlib.sha256()
    for number, line in enumerate(lines, start=1):
        if len(line) > LINE_MAX:
            raise BadRecording(f"is longer than {LINE_MAX} bytes", number)
        if not line.endswith(b"\n"):
            if number == 1:
                raise BadRecording("no recording of jumpvpn")
            return
        entry = _entry(line, number, sight)
        if isinstance(entry, Header) is not (number == 1):
            raise BadRecording("a second beginning" if number > 1 else "no recording of jumpvpn", number)
        if isinstance(entry, Sum) and entry.digest != digest.hexdigest()[:DIGEST_DIGITS]:
            raise Changed(number)
        digest.update(line)
        yield number, entry


class Changed(BadRecording):
    """Lines up to this one are not those that the node wrote."""

    def __init__(self, line: int) -> None:
        super().__init__(
            "the sum of all lines before this one is wrong: they were changed since they were written", line
        )


def _entry(line: bytes, number: int, sight: ReaderSight) -> Entry:
    if line.startswith(b"{") and number > 1:
        return EventLine(line)
    if number == 1 and not line.startswith(MAGIC):
        raise BadRecording(_foreign(line))
    try:
        kind, *values = _decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadRecording("is no line of a recording", number) from None
    read_it = _READERS.get(kind) if isinstance(kind, str) else None
    if read_it is None:
        raise BadRecording("is of an unknown kind", number)
    try:
        entry: Entry = read_it(values, sight)
        return entry
    except BadValue as error:
        raise BadRecording(f"{kind}: {error}", number) from None


def _foreign(line: bytes) -> str:
    if line.startswith(b"{") and b'"chain"' in line:
        return (
            "an event journal, no recording: replay needs what the engine was told ([recording] in the node's "
            "configuration)"
        )
    return "no recording of jumpvpn"


def _values(values: list[Any], hint: Any, sight: ReaderSight) -> Any:
    return decode(values, hint, sight)


def _now(boot: Any, wall_ms: Any, sight: ReaderSight) -> Now:
    return Now(Instant(decode(boot, int, sight)), decode(wall_ms, int, sight))


def _read_header(values: list[Any], sight: ReaderSight) -> Header:
    if len(values) != 1 or not isinstance(values[0], dict):
        raise BadValue("has no fields")
    if values[0].get("format") != FORMAT:
        shown = str(values[0].get("format"))[:20]
        program = str(values[0].get("program"))[:20]
        raise BadValue(f"has format {shown}, this program reads {FORMAT}: replay it with jumpvpn {program}")
    header: Header = decode(values[0], Header, sight)
    if header.role not in ("client", "gateway"):
        raise BadValue("role is neither client nor gateway")
    return header


def _read_input(values: list[Any], sight: ReaderSight) -> Input:
    if len(values) != 4 or not isinstance(values[2], str) or values[2] not in INPUTS:
        raise BadValue("is no known input")
    return Input(_now(values[0], values[1], sight), decode(values[3], INPUTS[values[2]], sight))


def _read_note(values: list[Any], sight: ReaderSight) -> Noted:
    if len(values) != 3:
        raise BadValue("has not three values")
    return Noted(_now(values[0], values[1], sight), decode(values[2], tuple[DomainEvent, ...], sight))


def _read_state(values: list[Any], _sight: ReaderSight) -> State:
    if len(values) != 2 or values[0] not in ("engine", "place", "sealer", "chain", "head", "window"):
        raise BadValue("is no part of a state")
    return State((values[0], values[1]))


def _read_policy(values: list[Any], sight: ReaderSight) -> PolicyUsed:
    if len(values) != 2:
        raise BadValue("has not two values")
    return PolicyUsed(sight.policy(values[0]), decode(values[1], dict[str, str], sight))


def _read_resumed(values: list[Any], sight: ReaderSight) -> Resumed:
    uid, name, seq, head = decode(values, tuple[str, str, int, str], sight)
    return Resumed(uid, Chain(name, seq, head))


def _read_due(values: list[Any], sight: ReaderSight) -> Due:
    boot, wall_ms = decode(values, tuple[int, int], sight)
    return Due(Now(Instant(boot), wall_ms))


def _read_vouched(values: list[Any], sight: ReaderSight) -> Vouched:
    boot, wall_ms, number, previous, next_key, signature = decode(values, tuple[int, int, int, str, str, str], sight)
    try:
        return Vouched(Now(Instant(boot), wall_ms), Link(number, previous, next_key), bytes.fromhex(signature))
    except ValueError:
        raise BadValue("the signature is not hexadecimal") from None


_READERS: dict[str, Any] = {
    "recording": _read_header,
    "state": _read_state,
    "shown": lambda values, sight: Shown(*decode(values, tuple[dict[str, str]], sight)),
    "in": _read_input,
    "emit": lambda values, sight: Emitted(*decode(values, tuple[()], sight)),
    "note": _read_note,
    "settle": lambda values, sight: Settled(*decode(values, tuple[str], sight)),
    "policy": _read_policy,
    "resume": _read_resumed,
    "due": _read_due,
    "vouch": _read_vouched,
    "sum": lambda values, sight: Sum(*decode(values, tuple[str], sight)),
    "end": lambda values, sight: End(*decode(values, tuple[int, int], sight)),
}
