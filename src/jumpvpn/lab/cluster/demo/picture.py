"""The timeline of the cluster's demonstration: who owned the session, who carried it, what traffic noticed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jumpvpn.lab.cluster.demo.result import Result, Shown
from jumpvpn.lab.demo import chart
from jumpvpn.lab.demo.chart import STATES, WIDTH, Flag, Frame, Span, states
from jumpvpn.lab.demo.result import Finding
from jumpvpn.lab.demo.svg import Drawing
from jumpvpn.lab.demo.words import effect_cells

_GATEWAYS = {"gw1": "#6554c0", "gw2": "#d6336c", "gw3": "#0b7285"}
_NETWORKS = {"wlan0": "#2186eb", "wwan0": "#f0883e"}
_NETWORK_NAMES = {"wlan0": "Wi-Fi", "wwan0": "LTE"}
_MEMBERS = {"etcd1": "#486581", "etcd2": "#829ab1", "etcd3": "#334e68"}
_WORLD = {"wifi": "Wi-Fi", "gw1": "gw1", "gw2": "gw2", "gw3": "gw3"}
# Rows from the top: room for two lines of flags, then throughput, round trips, lanes.
_DOWNLOAD_Y, _ECHO_Y, _LANES_Y = 140, 316, 452
_COLUMNS = (
    (48, "start", "what was done"),
    (330, "start", "session's reason, and how it was settled"),
    (790, "end", "detected"),
    (950, "end", "UDP not delivered"),
    (1110, "end", "TCP not delivered"),
    (1270, "end", "download paused"),
    (1390, "end", "packets lost"),
    (1480, "end", "duplicated"),
    (1500, "start", "owner afterwards"),
)


def timeline(result: Result, findings: Sequence[Finding]) -> str:
    """Return the picture as SVG."""
    frame = Frame(result.started_ns, result.ended_ns)
    lanes = 3 + 1 + len(result.gateways)
    below = _LANES_Y + 26 * (lanes + 1) + 12 + 18 * (1 + len(result.gateways))
    drawing = Drawing(WIDTH, below + 80 + 22 * max(1, len(result.shown)), "Jumping VPN: one session, two gateways")
    broken = [finding.text for finding in findings if not finding.holds]
    chart.head(drawing, "one session, whichever gateway owns it", _facts(result), broken)
    marks = [Flag(shown.incident.cause_ns, shown.incident.settled_ns, shown.title) for shown in result.shown]
    chart.flags(drawing, frame, marks, 92, below, below - _DOWNLOAD_Y)
    log = result.logs.download if result.logs is not None else None
    chart.download(drawing, frame, log, carried(result, last=True), _GATEWAYS, _DOWNLOAD_Y, 150)
    chart.round_trips(drawing, frame, result.logs.echoes if result.logs is not None else {}, _ECHO_Y, 110)
    _lanes(drawing, frame, result, _LANES_Y)
    chart.axis(drawing, frame, _DOWNLOAD_Y, below + 8)
    chart.table(drawing, _COLUMNS, [_cells(shown) for shown in result.shown], below + 54)
    return drawing.render()


def owners(result: Result) -> list[Span]:
    """Who owned the session, by the store's record."""
    marks = [(change.at_ns, str(change.record["owner"])) for change in result.terms]
    return [Span(at, end, name) for (at, name), (end, _) in pairwise([*marks, (result.ended_ns, "")])]


def carried(result: Result, *, last: bool) -> list[Span]:
    """What carried the session by the client's records, nothing while nothing did: gateways (`last`) or interfaces."""
    marks: list[tuple[int, str]] = []
    for record in result.records:
        if record.side != "client":
            continue
        if (record.event == "transport.dead" and record.data.get("was_active")) or record.turned("TERMINATED"):
            marks.append((record.at_ns, ""))
        elif record.turned("ATTACHED"):
            marks.append((record.at_ns, record.transport.split("/")[-1 if last else 0]))
    spans = pairwise([*marks, (result.ended_ns, "")])
    return [Span(at, end, name) for (at, name), (end, _) in spans if name]


def held(result: Result, gateway: str) -> list[Span]:
    """The session's states at a gateway, while the process had it in its hands."""
    given_up = [r.at_ns for r in result.records if r.side == gateway and r.event == "ownership.lost"]
    given_up += [change.at_ns for change in result.world if change.what == gateway and change.state == "killed"]
    spans = states(result.records, gateway, result.ended_ns)
    return [
        Span(span.start_ns, min([end for end in given_up if end >= span.start_ns] + [span.end_ns]), span.name)
        for span in spans
    ]


def _lanes(drawing: Drawing, frame: Frame, result: Result, y: float) -> None:
    chart.band(drawing, frame, y, "owner, by the store", owners(result), _GATEWAYS, {})
    chart.band(drawing, frame, y + 26, "carried by", carried(result, last=True), _GATEWAYS, {})
    chart.band(drawing, frame, y + 52, "over", carried(result, last=False), _NETWORKS, _NETWORK_NAMES)
    y += 84
    for side in ("client", *result.gateways):
        spans = states(result.records, side, result.ended_ns) if side == "client" else held(result, side)
        chart.band(drawing, frame, y, f"state at {side}", spans, STATES, {})
        y += 26
    y += 6
    leaders = pairwise([*result.leaders, (result.ended_ns, "")])
    leading = [Span(at, end, name) for (at, name), (end, _) in leaders if name and end > result.started_ns]
    chart.band(drawing, frame, y, "etcd's leader", leading, _MEMBERS, {})
    y += 30
    for what in ("wifi", *result.gateways):
        happened = [(change.at_ns, change.state) for change in result.world if change.what == what]
        colour = _GATEWAYS.get(what, _NETWORKS["wlan0"])
        chart.changes(drawing, frame, y, _WORLD[what], colour, happened)
        y += 18


def _facts(result: Result) -> list[str]:
    facts = result.download
    return [
        f"{facts.get('received', 0) / 1e6:.0f} MB over {facts.get('server_connections', 0)} TCP connection",
        "SHA-256 holds" if facts.get("checksum_ok") else "SHA-256 does not hold",
        f"session {result.uid}",
        f"{result.births} handshake",
        f"{len(result.terms)} terms of ownership",
        f"{result.writes} writes of its record",
        f"{(result.ended_ns - result.started_ns) / 1e9:.0f} s",
    ]


def _cells(shown: Shown) -> list[str]:
    incident, effect = shown.incident, shown.effect
    settled = f"{incident.reason}, {incident.outcome}" if incident.outcome != incident.reason else incident.reason
    return [shown.title, settled, *effect_cells(incident.detection_ms, effect), shown.owner]
