"""The timeline of a run as one picture: what was done to the networks, what the session did, what traffic noticed."""

from collections.abc import Sequence
from itertools import pairwise

from jumpvpn.lab.demo import chart
from jumpvpn.lab.demo.chart import STATES, WIDTH, Flag, Frame, Span, states
from jumpvpn.lab.demo.result import Finding, Result, Shown
from jumpvpn.lab.demo.svg import Drawing
from jumpvpn.lab.demo.words import effect_cells, names_of

__all__ = ["carriers", "states", "timeline"]

_NETWORKS = {"wlan0": "#2186eb", "wwan0": "#f0883e"}
_NETWORK_NAMES = {"wlan0": "Wi-Fi", "wwan0": "LTE"}
_WORLD = {"wifi": ("Wi-Fi", "wlan0"), "lte": ("LTE", "wwan0"), "gateway": ("gateway", "")}
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


def timeline(result: Result, findings: Sequence[Finding]) -> str:
    """Return the picture as SVG."""
    frame = Frame(result.started_ns, result.ended_ns)
    rows = max(1, len(result.shown))
    drawing = Drawing(WIDTH, 716 + 22 * rows, "Jumping VPN: one session through everything")
    broken = [finding.text for finding in findings if not finding.holds]
    chart.head(drawing, "one session, whatever happens to the networks under it", _facts(result), broken)
    marks = [Flag(s.incident.cause_ns, s.incident.settled_ns, s.step.title) for s in result.shown]
    chart.flags(drawing, frame, marks, 92, 636, 468)
    log = result.logs.download if result.logs is not None else None
    chart.download(drawing, frame, log, carriers(result), _NETWORKS, 168, 150)
    chart.round_trips(drawing, frame, result.logs.echoes if result.logs is not None else {}, 344, 110)
    y = 480
    for side in ("client", "gateway"):
        chart.band(drawing, frame, y, f"state at {side}", states(result.records, side, result.ended_ns), STATES, {})
        y += 26
    chart.band(drawing, frame, y, "carried by", carriers(result), _NETWORKS, _NETWORK_NAMES)
    y += 38
    for what, (label, interface) in _WORLD.items():
        happened = [(change.at_ns, change.state) for change in result.world if change.what == what]
        chart.changes(drawing, frame, y, label, _NETWORKS.get(interface, STATES["ATTACHED"]), happened)
        y += 18
    chart.axis(drawing, frame, 168, 644)
    chart.table(drawing, _COLUMNS, [_cells(shown) for shown in result.shown], 690)
    return drawing.render()


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


def _facts(result: Result) -> list[str]:
    return [
        f"{result.download.get('received', 0) / 1e6:.0f} MB over {result.tcp_connections} TCP connection",
        "SHA-256 holds" if result.download.get("checksum_ok") else "SHA-256 does not hold",
        f"{len(result.sessions)} session {' '.join(result.sessions)}",
        f"{result.handshakes} handshake",
        f"{(result.ended_ns - result.started_ns) / 1e9:.0f} s",
    ]


def _cells(shown: Shown) -> list[str]:
    incident, effect = shown.incident, shown.effect
    settled = f"{incident.reason}, {incident.outcome}" if incident.outcome != incident.reason else incident.reason
    return [
        shown.step.title,
        settled,
        *effect_cells(incident.detection_ms, effect),
        names_of(incident.transport),
    ]
