"""One line of an event log, read with suspicion: logs are copied, cut, and written by whoever had the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.audit.envelope import LARGEST_INTEGER, LONGEST_LINE
from jumpvpn.session.state import State

LONGEST_TEXT = 200  # of any word that is shown again
MOST_FIELDS = 64  # no event has half as many
LATEST_TIME_MS = 253_402_300_799_000  # the end of the year 9999, which is where calendars of most systems end

STATES = frozenset(state.value for state in State)


@dataclass(frozen=True, slots=True)
class Record:
    """What ``explain`` uses of an event record. ``data`` holds plain values only; ``bounds`` and ``body`` apart."""

    event: str
    chain: str
    seq: int
    time_ms: int
    mono_ms: int
    boot_id: str
    node: str
    session: str | None = None
    version: int = 0
    prev_state: str | None = None
    state: str | None = None
    reason: str | None = None
    contributing: tuple[str, ...] = ()
    transport: str | None = None
    epoch: int = 0
    policy_version: str = ""
    policy_digest: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, int] | None = None
    body: Mapping[str, Any] | None = None

    @property
    def ref(self) -> str:
        """``chain/seq``: the name of this very record."""
        return f"{self.chain}/{self.seq}"

    @property
    def row(self) -> str:
        """The row of the transition table that made it, "" if none did."""
        return str(self.data.get("row", ""))

    @property
    def mutates(self) -> bool:
        """Whether it belongs to a session's own chain."""
        return self.chain.startswith(("c:", "s:"))


def parse(line: bytes) -> Record | None:
    """The record in ``line``, or None if it is none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _record(found) if isinstance(found, dict) else None


def _record(found: dict[str, Any]) -> Record | None:
    seq, time_ms, mono_ms = (_number(found.get(name)) for name in ("seq", "time_ms", "mono_ms"))
    event, chain = _word(found.get("event")), _word(found.get("chain"))
    if not event or not chain or seq is None or seq < 1 or time_ms is None or mono_ms is None:
        return None
    if time_ms > LATEST_TIME_MS:
        return None
    data = found.get("data")
    data = data if isinstance(data, dict) else {}
    transport = found.get("transport")
    transport = transport if isinstance(transport, dict) else {}
    contributing = found.get("contributing")
    return Record(
        event=event, chain=chain, seq=seq, time_ms=time_ms, mono_ms=mono_ms, boot_id=_word(found.get("boot_id")) or "",
        node=_word(found.get("node_id")) or "", session=_word(found.get("session_uid")),
        version=_number(found.get("state_version")) or 0, prev_state=_state(found.get("prev_state")),
        state=_state(found.get("state")), reason=_word(found.get("reason")),
        contributing=_words(contributing), transport=_word(transport.get("id")),
        epoch=_number(transport.get("binding_gen")) or 0, policy_version=_word(found.get("policy_version")) or "",
        policy_digest=_word(found.get("policy_digest")) or "", data=_plain(data), bounds=_bounds(data.get("bounds")),
        body=data["body"] if event == "policy.applied" and isinstance(data.get("body"), dict) else None,
    )  # fmt: skip


def shown(text: str) -> str:
    """``text`` without control characters (a log must not steer a terminal) and not too long."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: LONGEST_TEXT + 1])
    return clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 3] + "..."


def _word(value: Any) -> str | None:
    return shown(value) if isinstance(value, str) and value else None


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(shown(word) for word in value[:MOST_FIELDS] if isinstance(word, str))


def _state(value: Any) -> str | None:
    return value if isinstance(value, str) and value in STATES else None


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= LARGEST_INTEGER else None


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """The flat fields with values that can be shown; a list of words becomes a tuple."""
    kept: dict[str, Any] = {}
    for name, value in list(data.items())[:MOST_FIELDS]:
        if isinstance(value, str):
            kept[shown(name)] = shown(value)
        elif isinstance(value, bool) or (isinstance(value, int | float) and _sane(value)):
            kept[shown(name)] = value
        elif isinstance(value, list):
            kept[shown(name)] = _words(value)
    return kept


def _sane(value: float) -> bool:
    return abs(value) <= LARGEST_INTEGER  # false for NaN and infinities too


def _bounds(value: Any) -> dict[str, int] | None:
    if not isinstance(value, dict):
        return None
    numbers = {shown(name): _number(number) for name, number in list(value.items())[:MOST_FIELDS]}
    return {name: number for name, number in numbers.items() if number is not None}
