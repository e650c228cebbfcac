"""The timeline of a run as one picture: what was done to the networks, what the session did, what traffic noticed."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jumpvpn.lab.demo.result import Finding, Result, Shown
from jumpvpn.lab.demo.svg import Drawing, text_width
from jumpvpn.lab.demo.words import effect_cells, milliseconds, names_of
from jumpvpn.lab.journals import Record
from jumpvpn.lab.measure import EchoLog

WIDTH = 1680
_LEFT, _RIGHT = 168, 40
_INK, _SOFT, _FAINT, _GRID = "#1f2933", "#616e7c", "#9aa5b1", "#e4e7eb"
_GOOD, _BAD = "#199473", "#d64545"
_STATES = {
    "BIRTH": "#7cc4fa",
    "ATTACHED": "#3ebd93",
    "VOLATILE": "#f7c948",
    "RECOVERING": "#a368fc",
    "DEGRADED": "#ef8354",
    "TERMINATED": "#52606d",
}
_NETWORKS = {"wlan0": "#2186eb", "wwan0": "#f0883e"}
_NETWORK_NAMES = {"wlan0": "Wi-Fi", "wwan0": "LTE"}
_WORLD = {"wifi": ("Wi-Fi", "wlan0"), "lte": ("LTE", "wwan0"), "gateway": ("gateway", "")}
_BUCKET_NS = 100_000_000
# A 1 kHz echo that pauses this long was interrupted; less is the ordinary jitter of a busy machine.
_GAP_NS = 20_000_000
_LABELLED_GAP_MS = 30.0
# TCP adds delayed acknowledgements of up to 40 ms.
_TCP_GAP_NS = 45_000_000
_FLAG_LEVELS = 4
# A change of state that is over within a pixel stays visible.
_THINNEST = 2.2
_INTERRUPTED = "#fbd0d0"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time (boot ns) with a name."""

    start_ns: int
    end_ns: int
    name: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where time is on the picture."""

    start_ns: int
    end_ns: int

    def x(self, at_ns: float) -> float:
        share = (at_ns - self.start_ns) / (self.end_ns - self.start_ns)
        return _LEFT + min(1.0, max(0.0, share)) * (WIDTH - _LEFT - _RIGHT)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values from 0 to `most` are in a row of the picture; larger ones are cut off."""

    top: float
    height: float
    most: float

    def y(self, value: float) -> float:
        return self.top + self.height - min(1.0, value / self.most) * self.height


def timeline(result: Result, findings: Sequence[Finding]) -> str:
    """Return the picture as SVG."""
    frame = _Frame(result.started_ns, result.ended_ns)
    rows = max(1, len(result.shown))
    drawing = Drawing(WIDTH, 716 + 22 * rows, "Jumping VPN: one session through everything")
    _head(drawing, result, findings)
    _flags(drawing, frame, result, 92, 636)
    _download(drawing, frame, result, 168, 150)
    _round_trips(drawing, frame, result, 344, 110)
    y = 480
    for side in ("client", "gateway"):
        _states(drawing, frame, result, y, side)
        y += 26
    _band(drawing, frame, y, "carried by", carriers(result), _NETWORKS, _NETWORK_NAMES)
    y += 38
    for what in _WORLD:
        _network(drawing, frame, result, y, what)
        y += 18
    _axis(drawing, frame, 168, 644)
    _table(drawing, result, 690)
    return drawing.render()


def states(records: Sequence[Record], side: str, end_ns: int) -> list[Span]:
    """The states of the session at one side, one after the other."""
    changes = [r for r in records if r.side == side and r.event == "session.state_change"]
    ends = [*(r.at_ns for r in changes), end_ns][1:]
    return [Span(r.at_ns, end, str(r.fields["state"])) for r, end in zip(changes, ends, strict=True)]


def carriers(result: Result) -> list[Span]:
    """Which interface carried the session, by the client's records; nothing while it had no binding."""
    marks: list[tuple[int, str]] = []
    for record in result.records:
        if record.side != "client":
            continue
        lost = record.event == "transport.dead" and record.data.get("was_active")
        if lost or record.turned("TERMINATED") or (record.turned("VOLATILE") and record.reason == "owner_changed"):
            marks.append((record.at_ns, ""))
        elif record.turned("ATTACHED"):
            marks.append((record.at_ns, record.transport.partition("/")[0]))
    marks.append((result.ended_ns, ""))
    return [Span(at, end, name) for (at, name), (end, _) in pairwise(marks) if name]


def gaps(echo: EchoLog, least_ns: int = _GAP_NS) -> list[Span]:
    """The times without delivery of an echo."""
    edges = [echo.sent[0], *echo.deliveries] if echo.sent else []
    return [Span(before, after, "") for before, after in pairwise(edges) if after - before >= least_ns]


def _head(drawing: Drawing, result: Result, findings: Sequence[Finding]) -> None:
    broken = [finding.text for finding in findings if not finding.holds]
    drawing.text(24, 38, "Jumping VPN", size=24, bold=True)
    drawing.text(206, 38, "one session, whatever happens to the networks under it", size=17, fill=_SOFT)
    facts = [
        f"{result.download.get('received', 0) / 1e6:.0f} MB over {result.tcp_connections} TCP connection",
        "SHA-256 holds" if result.download.get("checksum_ok") else "SHA-256 does not hold",
        f"{len(result.sessions)} session {' '.join(result.sessions)}",
        f"{result.handshakes} handshake",
        f"{(result.ended_ns - result.started_ns) / 1e9:.0f} s",
    ]
    drawing.text(24, 64, "  ·  ".join(facts), size=13, fill=_SOFT)
    told = "everything held" if not broken else f"{len(broken)} broken: {broken[0][:60]}"
    width = text_width(told, 14, bold=True) + 28
    drawing.rect(WIDTH - _RIGHT - width, 20, width, 28, _BAD if broken else _GOOD, radius=14)
    drawing.text(WIDTH - _RIGHT - width / 2, 39, told, size=14, fill="#ffffff", anchor="middle", bold=True)


def _flags(drawing: Drawing, frame: _Frame, result: Result, top: float, bottom: float) -> None:
    """One numbered flag per incident, with its title where there is room (the table below has it in any case)."""
    free = [0.0] * _FLAG_LEVELS
    for number, shown in enumerate(result.shown, 1):
        x, end = frame.x(shown.incident.cause_ns), frame.x(shown.incident.settled_ns)
        words = shown.step.title
        width = 14 + text_width(words, 12, bold=True)
        backwards = x + width > WIDTH - _RIGHT
        left, right = (x - width, x + 10) if backwards else (x - 10, x + width)
        level = next((i for i, taken in enumerate(free) if taken <= left), None)
        y = top + (level if level is not None else _FLAG_LEVELS - 1) * 20
        drawing.rect(x, bottom - 468, max(1.0, end - x), 468, "#243b53", opacity=0.06)
        drawing.line(x, y + 9, x, bottom, _FAINT, dash="2 3")
        drawing.circle(x, y, 9, _INK)
        drawing.text(x, y + 4, str(number), size=11, fill="#ffffff", anchor="middle", bold=True)
        if level is not None:
            free[level] = right + 6
            anchor = "end" if backwards else "start"
            drawing.text(x - 14 if backwards else x + 14, y + 4, words, size=12, anchor=anchor, bold=True)


def _download(drawing: Drawing, frame: _Frame, result: Result, top: float, height: float) -> None:
    """Throughput, painted in the colour of the network that carried it."""
    _label(drawing, top + 14, "download", "Mbit/s, TCP")
    if result.logs is None or result.logs.download is None:
        return
    points = _buckets(result.logs.download.throughput(), frame)
    most = _round_up(sorted(value for _, value in points)[int(len(points) * 0.995)] if points else 1.0)
    scale = _Scale(top, height, most)
    _levels(drawing, scale)
    spans = carriers(result)
    starts = [span.start_ns for span in spans]
    for at, value in points:
        index = bisect_right(starts, at + _BUCKET_NS // 2) - 1
        within = index >= 0 and at + _BUCKET_NS // 2 < spans[index].end_ns
        colour = _NETWORKS.get(spans[index].name, _FAINT) if within else _FAINT
        left, right = frame.x(at), frame.x(at + _BUCKET_NS)
        drawing.rect(left, scale.y(value), right - left + 0.3, top + height - scale.y(value), colour, opacity=0.35)
    drawing.polyline([(frame.x(at + _BUCKET_NS / 2), scale.y(value)) for at, value in points], _SOFT, width=1.1)


def _round_trips(drawing: Drawing, frame: _Frame, result: Result, top: float, height: float) -> None:
    """Round-trip times of the UDP echo, and where nothing came back (UDP: the whole row, TCP: a strip below)."""
    _label(drawing, top + 14, "echo, 1 kHz UDP", "round trip, ms")
    drawing.text(_LEFT - 14, top + height + 13, "no delivery, TCP", size=10, fill=_SOFT, anchor="end")
    if result.logs is None or "udp" not in result.logs.echoes:
        return
    udp = result.logs.echoes["udp"]
    points = _medians(udp, frame)
    most = _round_up(1.5 * sorted(value for _, value in points)[int(len(points) * 0.7)] if points else 1.0)
    for span in gaps(udp):
        drawing.rect(frame.x(span.start_ns), top, max(1.0, frame.x(span.end_ns) - frame.x(span.start_ns)), height,
                     _INTERRUPTED)  # fmt: skip
    scale = _Scale(top, height, most)
    _levels(drawing, scale)
    for at, value in points:
        drawing.rect(frame.x(at), scale.y(value) - 1, max(1.2, frame.x(at + _BUCKET_NS) - frame.x(at)), 2.2, "#0f609b")
    _gap_labels(drawing, frame, gaps(udp), top + 12)
    if "tcp" in result.logs.echoes:
        drawing.rect(_LEFT, top + height + 4, WIDTH - _LEFT - _RIGHT, 10, "#f0f4f8")
        for span in gaps(result.logs.echoes["tcp"], _TCP_GAP_NS):
            x, end = frame.x(span.start_ns), frame.x(span.end_ns)
            drawing.rect(x, top + height + 4, max(1.2, end - x), 10, _BAD)


def _gap_labels(drawing: Drawing, frame: _Frame, found: Sequence[Span], y: float) -> None:
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


def _states(drawing: Drawing, frame: _Frame, result: Result, y: float, side: str) -> None:
    found = states(result.records, side, result.ended_ns)
    _band(drawing, frame, y, f"state at {side}", found, _STATES, {})


def _band(
    drawing: Drawing,
    frame: _Frame,
    y: float,
    label: str,
    spans: Sequence[Span],
    colours: dict[str, str],
    names: dict[str, str],
) -> None:
    """A band of coloured stretches; the longer ones below, so that a short one is never hidden."""
    drawing.text(_LEFT - 14, y + 15, label, size=12, anchor="end", bold=True)
    drawing.rect(_LEFT, y, WIDTH - _LEFT - _RIGHT, 21, "#f0f4f8", radius=2)
    for span in sorted(spans, key=lambda span: span.start_ns - span.end_ns):
        x, end = frame.x(span.start_ns), frame.x(span.end_ns)
        drawing.rect(x, y, max(_THINNEST, end - x), 21, colours.get(span.name, _FAINT), radius=1)
        words = names.get(span.name, span.name)
        if end - x > text_width(words, 11, bold=True) + 8:
            drawing.text(x + 6, y + 15, words, size=11, fill="#ffffff", bold=True)


def _network(drawing: Drawing, frame: _Frame, result: Result, y: float, what: str) -> None:
    """What the script did to a network or to the gateway."""
    label, interface = _WORLD[what]
    drawing.text(_LEFT - 14, y + 11, label, size=11, fill=_SOFT, anchor="end")
    drawing.rect(_LEFT, y + 2, WIDTH - _LEFT - _RIGHT, 11, _NETWORKS.get(interface, _STATES["ATTACHED"]), opacity=0.22)
    changes = [change for change in result.world if change.what == what]
    ends = [*(change.at_ns for change in changes), result.ended_ns][1:]
    for change, end_ns in zip(changes, ends, strict=True):
        if change.state == "up":
            continue
        x, end = frame.x(change.at_ns), frame.x(end_ns)
        drawing.rect(x, y + 2, max(_THINNEST, end - x), 11, "#323f4b")
        if end - x > text_width(change.state, 10) + 8:
            drawing.text(x + 5, y + 11, change.state, size=10, fill="#ffffff")


def _axis(drawing: Drawing, frame: _Frame, top: float, y: float) -> None:
    seconds = (frame.end_ns - frame.start_ns) / 1e9
    step = next(step for step in (1, 2, 5, 10, 20, 60) if seconds / step <= 22)
    for second in range(0, int(seconds) + 1, step):
        x = frame.x(frame.start_ns + second * 1e9)
        drawing.line(x, y - 6, x, y, _FAINT)
        drawing.text(x, y + 13, f"{second} s", size=11, fill=_SOFT, anchor="middle")
    drawing.line(_LEFT, y - 6, WIDTH - _RIGHT, y - 6, _FAINT)


_COLUMNS = (
    (48, "start", "incident"),
    (270, "start", "session's reason, and how it was settled"),
    (760, "end", "detected"),
    (930, "end", "UDP not delivered"),
    (1090, "end", "TCP not delivered"),
    (1260, "end", "download paused"),
    (1380, "end", "packets lost"),
    (1480, "end", "duplicated"),
    (1500, "start", "carried by afterwards"),
)


def _table(drawing: Drawing, result: Result, y: float) -> None:
    for x, anchor, words in _COLUMNS:
        drawing.text(x, y, words, size=11, fill=_SOFT, anchor=anchor)
    drawing.line(24, y + 7, WIDTH - _RIGHT, y + 7, _GRID)
    for number, shown in enumerate(result.shown, 1):
        line = y + 4 + 22 * number
        drawing.circle(33, line - 4, 8, _INK)
        drawing.text(33, line, str(number), size=10, fill="#ffffff", anchor="middle", bold=True)
        for (x, anchor, _), words in zip(_COLUMNS, _cells(shown), strict=True):
            drawing.text(x, line, words, size=12, anchor=anchor)


def _cells(shown: Shown) -> list[str]:
    incident, effect = shown.incident, shown.effect
    settled = f"{incident.reason}, {incident.outcome}" if incident.outcome != incident.reason else incident.reason
    return [
        shown.step.title,
        settled,
        *effect_cells(incident.detection_ms, effect),
        names_of(incident.transport),
    ]


def _label(drawing: Drawing, y: float, words: str, unit: str) -> None:
    drawing.text(_LEFT - 14, y, words, size=12, anchor="end", bold=True)
    drawing.text(_LEFT - 14, y + 16, unit, size=10, fill=_SOFT, anchor="end")


def _levels(drawing: Drawing, scale: _Scale) -> None:
    for level in (0.0, scale.most / 2, scale.most):
        y = scale.y(level)
        drawing.line(_LEFT, y, WIDTH - _RIGHT, y, _GRID)
        drawing.text(WIDTH - _RIGHT + 4, y + 4, f"{level:.0f}", size=10, fill=_SOFT)


def _buckets(series: Sequence[tuple[int, float]], frame: _Frame) -> list[tuple[int, float]]:
    """Throughput in buckets wide enough to read."""
    sums: dict[int, list[float]] = {}
    for at, value in series:
        if at <= frame.end_ns:
            sums.setdefault((at - frame.start_ns) // _BUCKET_NS, []).append(value)
    width = max((len(values) for values in sums.values()), default=1)
    return [(frame.start_ns + index * _BUCKET_NS, sum(sums[index]) / width) for index in sorted(sums)]


def _medians(echo: EchoLog, frame: _Frame) -> list[tuple[int, float]]:
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
