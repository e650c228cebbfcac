"""``jumpvpn cluster status``: the members, the store, and who owns which session, as one gateway sees them.

The gateway's control command ``cluster`` with ``{"sessions": bool}`` answers (times in ms, null where not known)::

    {
      "cluster": "eu", "node": "gw1",                      # the cluster, and the gateway that answers
      "members": [{"node": "gw1", "address": "vpn1.example.org:51900",
                   "state": "serving" | "draining" | "gone" | "fenced",    # fenced: it may not act
                   "lease_left_ms": 4210.0, "sessions": 12, "version": "0.1.0",
                   # if it dies: who serves in its place, when they adopt whose client stays silent; or how all end
                   "if_lost": {"heirs": ["gw2"], "adopted_after_ms": 15000.0,
                               "ends": null | {"reason": "transport_ttl_exceeded", "policy": "session.transport_ttl",
                                               "in_ms": 300000.0}}}],
      "store": {"endpoints": [{"address": "10.0.0.11:2379", "reachable": true | false | null}],
                "revision": 4711, "behind": 3, "behind_oldest_ms": 240.0},
      "owners": {"gw1": 12, "gw2": 9},                     # living sessions per owner
      "sessions": [{"uid": "9f2c…", "device": "laptop", "state": "ATTACHED", "owner": "gw1", "term": 2,
                    "since_ms": 63000.0}],                 # with this owner, if this gateway saw it come there;
                                                           # empty unless asked for
      "sessions_total": 21
    }

A gateway without ``[cluster]`` refuses. ``runtime.status.of_cluster`` makes the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jumpvpn.cli.console import printable
from jumpvpn.cli.show_status import NOTHING, ahead_line, append_behind, span
from jumpvpn.explain import units
from jumpvpn.explain.styles import STATE_STYLES

COMMAND = "cluster"
MEMBER_STYLES = {"serving": "green", "draining": "yellow", "fenced": "bold red", "gone": "red"}

Document = Mapping[str, Any]


def cluster_view(document: Document) -> RenderableType:
    """The whole document for people."""
    parts: list[RenderableType] = [_head(document), Text(), _members(document), Text(), _store(document)]
    members = [] if _is_fenced(document) else document.get("members") or []
    ahead = [words for member in members if (words := _if_lost(member)) is not None]
    parts += [Text(), *(ahead_line(words) for words in ahead)] if ahead else []
    rows: Sequence[Document] = document.get("sessions") or []
    if rows:
        parts += [Text(), _sessions(rows)]
        left_off = int(document.get("sessions_total") or 0) - len(rows)
        if left_off > 0:
            parts.append(Text(f"and {left_off} more", style="dim"))
    return Group(*parts)


def _is_fenced(document: Document) -> bool:
    """Whether the gateway that answers has no lease, so that it knows only what was."""
    own = (member for member in document.get("members") or [] if member.get("node") == document.get("node"))
    return any(member.get("state") == "fenced" for member in own)


def _head(document: Document) -> Text:
    line = Text("cluster ")
    line.append(_word(document.get("cluster")), style="bold")
    line.append(
        f"  sessions {_word(document.get('sessions_total'))}  seen by {_word(document.get('node'))}", style="dim"
    )
    if _is_fenced(document):
        line.append("\nit has no lease, and forwards nothing; the others are shown as they were seen last", style="red")
    return line


def _members(document: Document) -> Table:
    table = _table(("gateway", "address", "state"), ("lease left", "sessions"), ("version",))
    for member in document.get("members") or []:
        state = _word(member.get("state"))
        name = Text(_word(member.get("node")), style="bold" if member.get("node") == document.get("node") else "")
        table.add_row(
            name,
            _word(member.get("address")),
            Text(state, style=MEMBER_STYLES.get(state, "")),
            span(member.get("lease_left_ms")),
            _word(member.get("sessions")),
            _word(member.get("version")),
        )
    return table


def _if_lost(member: Document) -> str | None:
    """What becomes of a member's sessions if it dies; None without sessions, or if it is gone already."""
    lost: Document | None = member.get("if_lost")
    if lost is None or not member.get("sessions") or member.get("state") == "gone":
        return None
    heirs, ends = [_word(heir) for heir in lost.get("heirs") or []], lost.get("ends")
    if ends is not None:
        end = f"{_word(ends.get('reason'))} after {span(ends.get('in_ms'))} ({_word(ends.get('policy'))})"
        what = f"no other gateway serves: its sessions end with {end}, unless it is back before"
    else:
        after = span(lost.get("adopted_after_ms"))
        what = (
            f"its clients ask {units.listed(heirs, 'or')}; sessions whose clients stay silent are adopted after {after}"
        )
    return f"if {_word(member.get('node'))} dies, {what}"


def _store(document: Document) -> Text:
    store: Document = document.get("store") or {}
    line = Text("store   ")
    for endpoint in store.get("endpoints") or []:
        reachable = endpoint.get("reachable")
        words, style = {True: ("answers", "green"), False: ("silent", "red")}.get(reachable, ("untried", "dim"))
        line.append(f"{_word(endpoint.get('address'))} ")
        line.append(words, style=style)
        line.append("  ")
    line.append(f"revision {_word(store.get('revision'))}\nbehind  ")
    append_behind(line, store)
    return line


def _sessions(rows: Sequence[Document]) -> Table:
    table = _table(("session", "device", "state", "owner"), ("term", "since"))
    for row in rows:
        state = _word(row.get("state"))
        table.add_row(
            _word(row.get("uid")),
            _word(row.get("device")),
            Text(state, style=STATE_STYLES.get(state, "")),
            _word(row.get("owner")),
            _word(row.get("term")),
            span(row.get("since_ms")),
        )
    return table


def _table(words: Sequence[str], numbers: Sequence[str], more: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in words:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for title in more:
        table.add_column(title, no_wrap=True)
    return table


def _word(value: Any) -> str:
    """What another gateway wrote goes to the terminal only as text."""
    return NOTHING if value is None or value == "" else printable(str(value))
