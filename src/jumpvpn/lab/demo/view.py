"""What people see while a run goes on: a live picture in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jumpvpn.explain.styles import STATE_STYLES, TRANSPORT_STYLES
from jumpvpn.lab.demo.result import Result
from jumpvpn.lab.demo.script import END, STEPS, Step
from jumpvpn.lab.demo.words import milliseconds, names_of
from jumpvpn.lab.incidents import Incident
from jumpvpn.lab.journals import Record
from jumpvpn.lab.traffic.pacing import boot_ns

_REFRESH_HZ = 8
_BARS = " ▁▂▃▄▅▆▇█"
# One progress line is 200 ms: a sparkline of the last 16 s.
_SPARKS = 80
# With this many events the picture fits into 24 lines.
_TAIL = 6
# These say nothing that the change of state beside them does not say.
_QUIET_EVENTS = frozenset({"transport.retired", "reattach.result", "ownership.acquired", "session.episode_closed"})


class Stage:
    """What is known so far; both views draw from it."""

    def __init__(self) -> None:
        self.started_ns = 0
        self.size = 0
        self.document: Mapping[str, Any] = {}
        self.tools: dict[str, Mapping[str, Any]] = {}
        self.sparks: deque[float] = deque(maxlen=_SPARKS)
        self.done: dict[str, Incident] = {}
        self.current: Step | None = None
        self.tail: deque[Record] = deque(maxlen=_TAIL)

    def began(self, result: Result) -> None:
        """The session is attached and traffic flows."""
        self.started_ns, self.size = result.started_ns, result.size

    def status(self, document: Mapping[str, Any]) -> None:
        """Take in the client's status."""
        self.document = document

    def progress(self, tool: str, line: Mapping[str, Any]) -> None:
        """Take in a traffic tool's progress."""
        if "t_ns" in line:
            self.tools[tool] = line
            if tool == "download":
                self.sparks.append(float(line["mbit_s"]))

    def record(self, record: Record) -> None:
        """Take in an event record."""
        if record.event not in _QUIET_EVENTS:
            self.tail.append(record)

    def step(self, step: Step) -> None:
        """A step begins."""
        self.current = step

    def over(self, step: Step, incident: Incident) -> None:
        """A step has ended."""
        self.done[step.title] = incident
        self.current = None

    @property
    def seconds(self) -> float:
        """Since traffic began to flow."""
        return (boot_ns() - self.started_ns) / 1e9 if self.started_ns else 0.0


class PlainView(Stage):
    """One line per thing that happens."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def began(self, result: Result) -> None:
        super().began(result)
        self._say(f"traffic flows: {result.size / 1e6:.0f} MB download, 1 kHz echo over UDP and TCP")

    def step(self, step: Step) -> None:
        super().step(step)
        self._say(step.title)

    def over(self, step: Step, incident: Incident) -> None:
        super().over(step, incident)
        self._say(f"  {outcome(incident)}")

    def record(self, record: Record) -> None:
        super().record(record)
        if record.event == "session.state_change":
            self._say(f"    {plain(record)}")

    def _say(self, words: str) -> None:
        self._console.print(f"[{self.seconds:6.2f} s] {words}", markup=False, highlight=False, soft_wrap=True)


class LiveView(Stage):
    """A picture that is redrawn in place, and removed when the run is over."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=_REFRESH_HZ, transient=True, screen=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        if not self.started_ns:
            return Panel(
                Text("building networks, starting gateway and client …"), title="Jumping VPN", border_style="dim"
            )
        middle = Table.grid(expand=True, padding=(0, 1))
        middle.add_column(ratio=1)
        middle.add_column(ratio=1)
        middle.add_row(
            Panel(Group(self._headline(), Text(), self._transports(), Text(), self._traffic()), title="session"),
            Panel(self._steps(), title="incidents"),
        )
        return Group(middle, Panel(self._events(), title="events"), Text("Ctrl-C ends and cleans up", style="dim"))

    @property
    def _session(self) -> Mapping[str, Any]:
        sessions = self.document.get("sessions") or [{}]
        session: Mapping[str, Any] = sessions[0]
        return session

    def _headline(self) -> Text:
        session = self._session
        state = str(session.get("state", "?"))
        line = Text(f"{self.seconds:5.1f} s  ")
        line.append(state, style=STATE_STYLES.get(state, ""))
        line.append(f"  {session.get('last_reason') or ''}\n", style="dim")
        line.append(f"id {session.get('uid', '?')}  epoch {session.get('epoch', '?')}  handshakes 1\n")
        binding = session.get("binding")
        line.append("bound to " if binding else "no binding", style="" if binding else "bold red")
        line.append(names_of(str(binding["transport"])) if binding else "", style="bold")
        line.append(f"  inner address {' '.join((self.document.get('tun') or {}).get('addresses', ()))}", style="dim")
        return line

    def _transports(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("transport", "state"):
            table.add_column(title, no_wrap=True)
        for title in ("rtt", "loss", "heard"):
            table.add_column(title, justify="right", no_wrap=True)
        for transport in self._session.get("transports", ()):
            state = str(transport["state"])
            rtt, losses = transport.get("rtt_ms"), (transport.get("loss_up"), transport.get("loss_down"))
            loss = max((value for value in losses if value is not None), default=None)
            table.add_row(
                f"{names_of(transport['id'])} ({transport['interface']})",
                Text(state, style=TRANSPORT_STYLES.get(state, "dim")),
                "–" if rtt is None else f"{rtt:.0f} ms",
                "–" if loss is None else f"{loss * 100:.0f} %",
                milliseconds(transport.get("last_heard_ms")),
            )
        return table

    def _traffic(self) -> Text:
        download, udp, tcp = (self.tools.get(name, {}) for name in ("download", "udp", "tcp"))
        done = int(download.get("bytes", 0))
        line = Text("download ")
        line.append(_sparkline(self.sparks), style="cyan")
        line.append(f" {download.get('mbit_s', 0):.0f} Mbit/s\n")
        line.append(f"         {done / 1e6:.0f} of {self.size / 1e6:.0f} MB, one TCP connection\n", style="dim")
        for name, tool in (("udp", udp), ("tcp", tcp)):
            silent = float(tool.get("silent_ms") or 0)
            rtt = tool.get("rtt_ms")
            line.append(f"echo {name} ")
            line.append("no answer" if rtt is None else f"rtt {rtt:.0f} ms", style="red" if rtt is None else "")
            line.append(f"  silent {milliseconds(silent)}\n" if silent > 100 else "\n", style="bold red")
        line.rstrip()
        return line

    def _steps(self) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=True)
        table.add_column("", no_wrap=True, ratio=1)
        for title in ("seen", "settled"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("on", no_wrap=True)
        for step in (*STEPS, END):
            incident = self.done.get(step.title)
            if incident is not None:
                seen, settled = (milliseconds(value) for value in (incident.detection_ms, incident.settled_ms))
                table.add_row(Text(f"✓ {step.title}", style="green"), seen, settled, names_of(incident.transport))
            elif step is self.current:
                spin = "◐◓◑◒"[int(time.monotonic() * 4) % 4]
                table.add_row(Text(f"{spin} {step.title}", style="bold yellow"), "", "", "")
            else:
                table.add_row(Text(f"· {step.title}", style="dim"), "", "", "")
        return table

    def _events(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for record in self.tail:
            at = (record.at_ns - self.started_ns) / 1e9
            text.append(f"{at:7.2f} s  ", style="dim")
            text.append(f"{record.side:<8}")
            fields = record.fields
            if fields["prev_state"] != fields["state"]:
                text.append(f"{fields['prev_state']} → ", style="dim")
                text.append(str(fields["state"]), style=STATE_STYLES.get(str(fields["state"]), ""))
            else:
                text.append(record.event, style="dim")
            text.append(f"  {record.reason}  {names_of(record.transport)}\n")
        for _ in range(_TAIL - len(self.tail)):
            text.append("\n")
        return text


def outcome(incident: Incident) -> str:
    """What came of an incident, in a few words."""
    carrier = f" on {names_of(incident.transport)}" if incident.transport else ""
    words = incident.reason if incident.reason == incident.outcome else f"{incident.reason}, {incident.outcome}"
    seen, settled = (milliseconds(value) for value in (incident.detection_ms, incident.settled_ms))
    return f"{words}{carrier}; seen after {seen}, settled after {settled}"


def plain(record: Record) -> str:
    """One record as one line."""
    fields = record.fields
    return f"{record.side}: {fields['prev_state']} > {fields['state']}  {record.reason}  {names_of(record.transport)}"


def _sparkline(values: deque[float]) -> str:
    most = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(8, round(value / most * 8))] for value in values)
