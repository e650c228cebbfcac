"""The status document as people read it: the state first, then what is left of every budget, then each transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from jumpvpn.cli.console import printable
from jumpvpn.explain import units
from jumpvpn.explain.ahead import gateway_lost
from jumpvpn.explain.styles import STATE_STYLES, TRANSPORT_STYLES

Document = Mapping[str, Any]

NOTHING = "–"  # what is not known
_LEAST_INTERESTING_LOSS = 0.005
# A budget is shown in red from here on: the next step spends the last of it.
_NEARLY_SPENT = 0.8
# A change reaches the shared store within this, or the store does not keep up.
_LATE_MS = 1000
CLUSTER_STYLES = {"serving": "green", "draining": "yellow", "fenced": "bold red"}
GATEWAY_STYLES = {"current": "bold green", "standby": "green", "draining": "yellow", "silent": "red"}


def status_view(document: Document) -> RenderableType:
    """Everything that one node says about itself."""
    parts: list[RenderableType] = [_node_line(document)]
    if document.get("cluster"):
        parts.append(_cluster_line(document["cluster"]))
    if document.get("gateways"):
        parts += [Text(), _gateways(document["gateways"])]
    sessions: Sequence[Document] = document.get("sessions") or []
    if not sessions:
        parts.append(Text("no session", style="dim"))
    parts += [_session(session) for session in sessions]
    counters: Document = document.get("counters") or {}
    interesting = {name: value for name, value in sorted(counters.items()) if value}
    if interesting:
        parts += [Text(), _pairs(interesting)]
    return Group(*parts)


def span(milliseconds: float | None) -> str:
    """A length of time as people say it; a dash for what is not known."""
    return NOTHING if milliseconds is None else units.span(milliseconds)


def amount(size: float | None) -> str:
    """Bytes in decimal units, as network people count."""
    if size is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _node_line(document: Document) -> Text:
    tun: Document = document.get("tun") or {}
    line = Text()
    line.append(f"{document.get('role', 'node')} {document.get('node', '')}", style="bold")
    line.append(f"  process {document.get('pid', NOTHING)}  version {document.get('version', NOTHING)}", style="dim")
    if tun:
        addresses = " ".join(str(a) for a in tun.get("addresses") or ())
        line.append(f"\ntunnel  {tun.get('name', NOTHING)}  mtu {tun.get('mtu', NOTHING)}  {addresses}")
    return line


def _cluster_line(cluster: Document) -> Text:
    """A gateway's place in its cluster."""
    state = str(cluster.get("state", "?"))
    line = Text("cluster ")
    line.append(str(cluster.get("name", "?")), style="bold")
    line.append("  ")
    line.append(state, style=CLUSTER_STYLES.get(state, ""))
    if state == "fenced":
        line.append("  no lease: nothing is forwarded until there is one again", style="red")
    else:
        line.append(f"  lease left {span(cluster.get('lease_left_ms'))}")
    line.append(f"  sessions owned {_shown(cluster.get('sessions'))}  behind ")
    append_behind(line, cluster)
    return line


def append_behind(line: Text, facts: Document) -> None:
    """How many changes are durable at the gateway and not yet in the shared store, and since when."""
    behind, oldest = facts.get("behind"), facts.get("behind_oldest_ms")
    if not behind:
        line.append("nothing" if behind == 0 else NOTHING)
        return
    is_late = oldest is not None and oldest > _LATE_MS
    changes = "change" if behind == 1 else "changes"
    line.append(f"{behind} {changes}, the oldest for {span(oldest)}", style="yellow" if is_late else "")


def ahead_line(words: str) -> RenderableType:
    """What would happen, as a paragraph of its own."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("ahead  "), Text(words))
    return table


def _gateways(gateways: Sequence[Document]) -> Table:
    """The gateways that a client knows."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("gateway", "address", "state"):
        table.add_column(title, no_wrap=True)
    table.add_column("rtt", justify="right", no_wrap=True)
    for gateway in gateways:
        state = str(gateway.get("state", "?"))
        rtt = gateway.get("rtt_ms")
        table.add_row(
            Text(printable(str(gateway.get("name", "?"))), style="bold" if state == "current" else ""),
            Text(printable(str(gateway.get("address") or NOTHING))),
            Text(state, style=GATEWAY_STYLES.get(state, "")),
            NOTHING if rtt is None else f"{rtt:.1f} ms",
        )
    return table


def _session(session: Document) -> RenderableType:
    parts: list[RenderableType] = [Rule(style="dim"), _headline(session), _binding_line(session), _budget(session)]
    parts += [ahead_line(words) for words in gateway_lost(session.get("gateway_loss"))]
    transports: Sequence[Document] = session.get("transports") or []
    if transports:
        parts.append(Padding(_transports(transports), (1, 0, 0, 0)))
        formula = next((t["silence_formula"] for t in transports if t.get("silence_formula")), None)
        if formula:
            parts.append(Text(f"silence limit under traffic = {formula}", style="dim"))
    traffic: Document = session.get("traffic") or {}
    if traffic:
        parts.append(_traffic(traffic))
    return Group(*parts)


def _headline(session: Document) -> Text:
    state = str(session.get("state", "?"))
    line = Text("session ")
    line.append(str(session.get("uid", "?")), style="bold")
    line.append("  ")
    line.append(state, style=STATE_STYLES.get(state, ""))
    line.append(f" for {span(session.get('state_age_ms'))}")
    line.append(f"  epoch {session.get('epoch', NOTHING)}  version {session.get('version', NOTHING)}", style="dim")
    line.append(f"  {session.get('last_reason') or ''}")
    return line


def _binding_line(session: Document) -> Text:
    binding: Document | None = session.get("binding")
    if binding:
        line = Text("binding ")
        line.append(str(binding.get("transport", "?")), style="bold")
        line.append(f" → {binding.get('peer', '?')} for {span(binding.get('since_ms'))}")
        return line
    if session.get("state") == "TERMINATED":
        return Text("ended; nothing brings it back, the next start makes a new session", style="dim")
    line = Text("no binding", style="red")
    line.append(f" for {span(session.get('transportless_ms'))}", style="")
    line.append(f"; ends in {span(session.get('transport_ttl_left_ms'))} unless a transport comes back", style="")
    return line


def _budget(session: Document) -> Text:
    line = Text("budget  ")
    _spent(line, "switches", session.get("switches_used"), session.get("switches_max"), " in 60 s")
    line.append("  ")
    _spent(line, "attempts", session.get("attempts"), session.get("attempts_max"), "")
    hold_down = session.get("hold_down_left_ms")
    if hold_down:
        line.append(f"  hold-down {span(hold_down)}", style="yellow")
    line.append(f"  lifetime left {span(session.get('lifetime_left_ms'))}")
    deadline: Document | None = session.get("next_deadline")
    if deadline:
        line.append(f"  next {deadline.get('name', '?')} in {span(deadline.get('in_ms'))}", style="dim")
    return line


def _spent(line: Text, name: str, used: Any, most: Any, suffix: str) -> None:
    is_nearly_spent = isinstance(used, int) and isinstance(most, int) and most > 0 and used >= _NEARLY_SPENT * most
    line.append(f"{name} {_shown(used)} of {_shown(most)}{suffix}", style="red" if is_nearly_spent else "")


def _transports(transports: Sequence[Document]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("transport", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ("rtt", "loss up", "loss down", "age", "last heard", "silent after"):
        table.add_column(title, justify="right", no_wrap=True)
    for transport in transports:
        state = str(transport.get("state", "?"))
        table.add_row(
            Text(str(transport.get("id", "?")), style="bold" if state == "active" else ""),
            Text(state, style=TRANSPORT_STYLES.get(state, "")),
            _round_trip(transport),
            _loss(transport.get("loss_up")),
            _loss(transport.get("loss_down")),
            span(transport.get("age_ms")),
            _heard(transport),
            span(transport.get("silence_limit_ms")),
        )
    return table


def _round_trip(transport: Document) -> Text:
    rtt, deviation = transport.get("rtt_ms"), transport.get("rtt_dev_ms")
    if rtt is None:
        return Text(NOTHING, style="dim")
    return Text(f"{rtt:.1f} ms" if deviation is None else f"{rtt:.1f} ± {deviation:.1f} ms")


def _loss(ratio: float | None) -> Text:
    if ratio is None:
        return Text(NOTHING, style="dim")
    style = "" if ratio < _LEAST_INTERESTING_LOSS else "yellow" if ratio < 0.2 else "red"
    return Text(f"{ratio * 100:.1f} %", style=style)


def _heard(transport: Document) -> Text:
    heard, limit = transport.get("last_heard_ms"), transport.get("silence_limit_ms")
    is_late = heard is not None and limit is not None and heard > limit
    return Text(span(heard), style="yellow" if is_late else "")


def _traffic(traffic: Document) -> Text:
    line = Text("traffic ")
    line.append(f"sent {amount(traffic.get('tx_bytes'))}  received {amount(traffic.get('rx_bytes'))}")
    for name, words in (("queued", "waiting"), ("resent", "sent again"), ("duplicates", "doubles dropped")):
        if traffic.get(name):
            line.append(f"  {words} {traffic[name]}")
    if traffic.get("shed"):
        line.append(f"  shed {traffic['shed']}", style="red")
    return line


def _pairs(counters: Document) -> Text:
    line = Text("counters ", style="dim")
    line.append("  ".join(f"{name} {value}" for name, value in counters.items()))
    return line


def _shown(value: Any) -> str:
    return NOTHING if value is None else str(value)
