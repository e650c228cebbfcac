"""One event record as one line for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from jumpvpn.explain.styles import STATE_STYLES

_SEVERITY_STYLES = {1: "", 2: "", 3: "yellow", 4: "red", 5: "bold white on red"}


def event_line(line: bytes) -> Text:
    """``12:30:01.250 9f2c… session.state_change ATTACHED > VOLATILE loss_threshold_exceeded …``."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        return Text("unreadable line", style="red")
    text = Text(_time(record.get("time_ms")), style="dim")
    text.append(f"  {record.get('session_uid') or 'node':<16}  ")
    style = _SEVERITY_STYLES.get(record.get("severity", 1), "")
    text.append(f"{record.get('event', '?'):<24}", style=style)
    _append_states(text, record)
    text.append(f"  {record.get('reason') or ''}", style=style)
    contributing = record.get("contributing")
    if contributing:
        text.append(f" (with {', '.join(str(code) for code in contributing)})", style="dim")
    text.append(_details(record), style="dim")
    return text


def _append_states(text: Text, record: Mapping[str, Any]) -> None:
    before, after = record.get("prev_state"), record.get("state")
    if before and before != after:
        text.append(f"  {before} > ", style="dim")
        text.append(str(after), style=STATE_STYLES.get(str(after), ""))


def _details(record: Mapping[str, Any]) -> str:
    data = record.get("data")
    transport = record.get("transport")
    words = [f"  {transport['id']}"] if isinstance(transport, dict) and transport.get("id") else []
    if isinstance(data, dict):
        plain = {k: v for k, v in data.items() if v is not None and not isinstance(v, dict | list)}
        words += [f"  {name}={value}" for name, value in plain.items()]
    return "".join(words)


def _time(time_ms: Any) -> str:
    if not isinstance(time_ms, int):
        return "--:--:--.---"
    moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC).astimezone()
    return f"{moment:%H:%M:%S}.{time_ms % 1000:03d}"
