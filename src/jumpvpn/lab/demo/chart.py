"""Pieces of a picture over time: where time is, bands, flags, throughput, round trips, and a table below."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jumpvpn.lab.demo.svg import Drawing, text_width
from jumpvpn.lab.demo.words import milliseconds
from jumpvpn.lab.journals import Record
from jumpvpn.lab.measure import DownloadLog, EchoLog

WIDTH = 1680
LEFT, RIGHT = 168, 40
INK, SOFT, FAINT, GRID = "#1f2933", "#616e7c", "#9aa5b1", "#e4e7eb"
GOOD, BAD = "#199473", "#d64545"
STATES = {
    "BIRTH": "#7cc4fa",
    "ATTACHED": "#3ebd93",
    "VOLATILE": "#f7c948",
    "RECOVERING": "#a368fc",
    "DEGRADED": "#ef8354",
    "TERMINATED": "#52606d",
}
# A change of state that is over within a pixel stays visible.
THINNEST = 2.2
_BUCKET_NS = 100_000_000
# A 1 kHz echo that pauses this long was interrupted; less is the ordinary jitter of a busy machine.
_GAP_NS = 20_000_000
_LABELLED_GAP_MS = 30.0
# TCP adds delayed acknowledgements of up to 40 ms.
_TCP_GAP_NS = 45_000_000
_FLAG_LEVELS = 4
_INTERRUPTED = "#fbd0d0"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time (boot ns) with a name."""

    start_ns: int
    end_ns: int
    name: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Where time is on the picture."""

    start_ns: int
    end_ns: int

    def x(self, at_ns: float) -> float:
        share = (at_ns - self.start_ns) / (self.end_ns - self.start_ns)
        return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values from 0 to `most` are in a row of the picture; larger ones are cut off."""

    top: float
    height: float
    most: float

    def y(self, value: float) -> float:
        return self.top + self.height - min(1.0, value / self.most) * self.height


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that was done (boot ns), until it was settled, and its name."""

    cause_ns: int
    settled_ns: int
    title: str


def states(records: Sequence[Record], side: str, end_ns: int) -> list[Span]:
    """The states of the session at one side, one after the other."""
    changes = [r for r in records if r.side == side and r.event == "session.state_change"]
    ends = [*(r.at_ns for r in changes), end_ns][1:]
    return [Span(r.at_ns, end, str(r.fields["state"])) for r, end in zip(changes, ends, strict=True)]


def gaps(echo: EchoLog, least_ns: int = _GAP_NS) -> list[Span]:
    """The times without delivery of an echo."""
    edges = [echo.sent[0], *echo.deliveries] if echo.sent else []
    return [Span(before, after, "") for before, after in pairwise(edges) if after - before >= least_ns]


def head(drawing: Drawing, motto: str, facts: Sequence[str], broken: Sequence[str]) -> None:
    """The title, what is to be known at a glance, and whether everything held."""
    drawing.text(24, 38, "Jumping VPN", size=24, bold=True)
    drawing.text(206, 38, motto, size=17, fill=SOFT)
    drawing.text(24, 64, "  ·  ".join(facts), size=13, fill=SOFT)
    told = "everything held" if not broken else f"{len(broken)} broken: {broken[0][:60]}"
    width = text_width(told, 14, bold=True) + 28
    drawing.rect(WIDTH - RIGHT - width, 20, width, 28, BAD if broken else GOOD, radius=14)
    drawing.text(WIDTH - RIGHT - width / 2, 39, told, size=14, fill="#ffffff", anchor="middle", bold=True)


def flags(drawing: Drawing, frame: Frame, marks: Sequence[Flag], top: float, bottom: float, height: float) -> None:
    """One numbered flag per mark, with its title where there is room (the table below has it in any case)."""
    free = [0.0] * _FLAG_LEVELS
    for number, mark in enumerate(marks, 1):
        x, end = frame.x(mark.cause_ns), frame.x(mark.settled_ns)
        width = 14 + text_width(mark.title, 12, bold=True)
        backwards = x + width > WIDTH - RIGHT
        left, right = (x - width, x + 10) if backwards else (x - 10, x + width)
        level = next((i for i, taken in enumerate(free) if taken <= left), None)
        y = top + (level if level is not None else _FLAG_LEVELS - 1) * 20
        drawing.rect(x, bottom - height, max(1.0, end - x), height, "#243b53", opacity=0.06)
        drawing.line(x, y + 9, x, bottom, FAINT, dash="2 3")
        drawing.circle(x, y, 9, INK)
        drawing.text(x, y + 4, str(number), size=11, fill="#ffffff", anchor="middle", bold=True)
        if level is not None:
            free[level] = right + 6
            anchor = "end" if backwards else "start"
            drawing.text(x - 14 if backwards else x + 14, y + 4, mark.title, size=12, anchor=anchor, bold=True)


def download(
    drawing: Drawing,
    frame: Frame,
    log: DownloadLog | None,
    spans: Sequence[Span],
    colours: Mapping[str, str],
    top: float,
    height: float,
) -> None:
    """Throughput, painted in the colour of what carried it (`spans`)."""
    _label(drawing, top + 14, "download", "Mbit/s, TCP")
    if log is None:
        return
    points = _buckets(log.throughput(), frame)
    most = _round_up(sorted(value for _, value in points)[int(len(points) * 0.995)] if points else 1.0)
    scale = Scale(top, height, most)
    _levels(drawing, scale)
    starts = [span.start_ns for span in spans]
    for at, value in points:
        index = bisect_right(starts, at + _BUCKET_NS // 2) - 1
        within = index >= 0 and at + _BUCKET_NS // 2 < spans[index].end_ns
        colour = colours.get(spans[index].name, FAINT) if within else FAINT
        left, right = frame.x(at), frame.x(at + _BUCKET_NS)
        drawing.rect(left, scale.y(value), right - left + 0.3, top + height - scale.y(value), colour, opacity=0.35)
    drawing.polyline([(frame.x(at + _BUCKET_NS / 2), scale.y(value)) for at, value in points], SOFT, width=1.1)


def round_trips(drawing: Drawing, frame: Frame, echoes: Mapping[str, EchoLog], top: float, height: float) -> None:
    """Round-trip times of the UDP echo, and where nothing came back (UDP: the whole row, TCP: a strip below)."""
    _label(drawing, top + 14, "echo, 1 kHz UDP", "round trip, ms")
    drawing.text(LEFT - 14, top + height + 13, "no delivery, TCP", size=10, fill=SOFT, anchor="end")
    if "udp" not in echoes:
        return
    udp = echoes["udp"]
    points = _medians(udp, frame)
    ordered = sorted(value for _, value in points) or [1.0]
    # The usual value has room above it, and a slower network that carried for a while is still inside.
    most = _round_up(max(1.5 * ordered[int(len(ordered) * 0.7)], 1.1 * ordered[int(len(ordered) * 0.9)]))
    for span in gaps(udp):
        x, end = frame.x(span.start_ns), frame.x(span.end_ns)
        drawing.rect(x, top, max(1.0, end - x), height, _INTERRUPTED)
    scale = Scale(top, height, most)
    _levels(drawing, scale)
    for at, value in points:
        drawing.rect(frame.x(at), scale.y(value) - 1, max(1.2, frame.x(at + _BUCKET_NS) - frame.x(at)), 2.2, "#0f609b")
    _gap_labels(drawing, frame, gaps(udp), top + 12)
    if "tcp" in echoes:
        drawing.rect(LEFT, top + height + 4, WIDTH - LEFT - RIGHT, 10, "#f0f4f8")
        for span in gaps(echoes["tcp"], _TCP_GAP_NS):
            x, end = frame.x(span.start_ns), frame.x(span.end_ns)
            drawing.rect(x, top + height + 4, max(1.2, end - x), 10, BAD)


def _gap_labels(drawing: Drawing, frame: Frame, found: Sequence[Span], y: float) -> None:
    """The lengths of the longer interruptions, the longest first, where they fit."""
    taken: list[tuple[float, float]] = []
    for span in sorted(found, key=lambda span: span.start_ns - span.end_ns):
        length = (span.end_ns - span.start_ns) / 1e6
        words = milliseconds(length)
        x, end = frame.x(span.start_ns), frame.x(span.end_ns)
        width = text_width(words, 10.5, bold=True)
        left = (x + end - width) / 2 if end - x > width + 6 else end + 3
        free = all(left > right or left + width < start for start, right in taken)
        if length >= _LABELLED_GAP_MS and free and left + width < WIDTH:
            drawing.text(left, y, words, size=10.5, fill="#ab091e", bold=True)
            taken.append((left - 4, left + width + 4))


def band(
    drawing: Drawing,
    frame: Frame,
    y: float,
    label: str,
    spans: Sequence[Span],
    colours: Mapping[str, str],
    names: Mapping[str, str],
) -> None:
    """A band of coloured stretches; the longer ones below, so that a short one is never hidden."""
    drawing.text(LEFT - 14, y + 15, label, size=12, anchor="end", bold=True)
    drawing.rect(LEFT, y, WIDTH - LEFT - RIGHT, 21, "#f0f4f8", radius=2)
    for span in sorted(spans, key=lambda span: span.start_ns - span.end_ns):
        x, end = frame.x(span.start_ns), frame.x(span.end_ns)
        drawing.rect(x, y, max(THINNEST, end - x), 21, colours.get(span.name, FAINT), radius=1)
        words = names.get(span.name, span.name)
        if end - x > text_width(words, 11, bold=True) + 8:
            drawing.text(x + 6, y + 15, words, size=11, fill="#ffffff", bold=True)


def changes(
    drawing: Drawing, frame: Frame, y: float, label: str, colour: str, happened: Sequence[tuple[int, str]]
) -> None:
    """A thin strip in `colour` while something is "up", else dark with the word; `happened` are (boot ns, word)."""
    drawing.text(LEFT - 14, y + 11, label, size=11, fill=SOFT, anchor="end")
    drawing.rect(LEFT, y + 2, WIDTH - LEFT - RIGHT, 11, colour, opacity=0.22)
    ends = [*(at for at, _ in happened), frame.end_ns][1:]
    for (at, word), end_ns in zip(happened, ends, strict=True):
        if word == "up":
            continue
        x, end = frame.x(at), frame.x(end_ns)
        drawing.rect(x, y + 2, max(THINNEST, end - x), 11, "#323f4b")
        if end - x > text_width(word, 10) + 8:
            drawing.text(x + 5, y + 11, word, size=10, fill="#ffffff")


def axis(drawing: Drawing, frame: Frame, top: float, y: float) -> None:
    seconds = (frame.end_ns - frame.start_ns) / 1e9
    step = next(step for step in (1, 2, 5, 10, 20, 60) if seconds / step <= 22)
    for second in range(0, int(seconds) + 1, step):
        x = frame.x(frame.start_ns + second * 1e9)
        drawing.line(x, y - 6, x, y, FAINT)
        drawing.text(x, y + 13, f"{second} s", size=11, fill=SOFT, anchor="middle")
    drawing.line(LEFT, y - 6, WIDTH - RIGHT, y - 6, FAINT)


def table(drawing: Drawing, columns: Sequence[tuple[int, str, str]], rows: Sequence[Sequence[str]], y: float) -> None:
    """A row of words per flag, under columns of (x, anchor, title)."""
    for x, anchor, words in columns:
        drawing.text(x, y, words, size=11, fill=SOFT, anchor=anchor)
    drawing.line(24, y + 7, WIDTH - RIGHT, y + 7, GRID)
    for number, cells in enumerate(rows, 1):
        line = y + 4 + 22 * number
        drawing.circle(33, line - 4, 8, INK)
        drawing.text(33, line, str(number), size=10, fill="#ffffff", anchor="middle", bold=True)
        for (x, anchor, _), words in zip(columns, cells, strict=True):
            drawing.text(x, line, words, size=12, anchor=anchor)


def _label(drawing: Drawing, y: float, words: str, unit: str) -> None:
    drawing.text(LEFT - 14, y, words, size=12, anchor="end", bold=True)
    drawing.text(LEFT - 14, y + 16, unit, size=10, fill=SOFT, anchor="end")


def _levels(drawing: Drawing, scale: Scale) -> None:
    for level in (0.0, scale.most / 2, scale.most):
        y = scale.y(level)
        drawing.line(LEFT, y, WIDTH - RIGHT, y, GRID)
        drawing.text(WIDTH - RIGHT + 4, y + 4, f"{level:.0f}", size=10, fill=SOFT)


def _buckets(series: Sequence[tuple[int, float]], frame: Frame) -> list[tuple[int, float]]:
    """Throughput in buckets wide enough to read."""
    sums: dict[int, list[float]] = {}
    for at, value in series:
        if at <= frame.end_ns:
            sums.setdefault((at - frame.start_ns) // _BUCKET_NS, []).append(value)
    width = max((len(values) for values in sums.values()), default=1)
    return [(frame.start_ns + index * _BUCKET_NS, sum(sums[index]) / width) for index in sorted(sums)]


def _medians(echo: EchoLog, frame: Frame) -> list[tuple[int, float]]:
    """The median round trip (ms) of the messages sent in each bucket and answered."""
    times: dict[int, list[int]] = {}
    for sent, answered in zip(echo.sent, echo.answered, strict=True):
        if answered:
            times.setdefault((sent - frame.start_ns) // _BUCKET_NS, []).append(answered - sent)
    return [
        (frame.start_ns + index * _BUCKET_NS, sorted(values)[len(values) // 2] / 1e6)
        for index, values in sorted(times.items())
    ]


def _round_up(value: float) -> float:
    """The next number with one or two telling digits, for the top of a scale."""
    scale = 10.0
    while True:
        for step in (1, 1.5, 2, 3, 4, 5, 6, 8):
            if value <= step * scale:
                return step * scale
        scale *= 10
