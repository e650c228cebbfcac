"""How states of sessions and of transports look on a terminal (styles of rich), wherever they are shown."""

from __future__ import annotations

STATE_STYLES = {
    "BIRTH": "cyan",
    "ATTACHED": "bold green",
    "VOLATILE": "bold yellow",
    "RECOVERING": "bold magenta",
    "DEGRADED": "bold red",
    "TERMINATED": "bold white on red",
}
TRANSPORT_STYLES = {
    "active": "bold green",
    "standby": "green",
    "candidate": "cyan",
    "silent": "yellow",
    "dead": "red",
    "gone": "dim",
    "suppressed": "dim",
}
