"""Traces as the TLA+ module TraceData. Nothing of a record reaches the module but words of a small alphabet, numbers
within TLC's range, and names given here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jumpvpn.tracecheck.journals import Seen, Trace

_WORD = re.compile(r"[A-Za-z0-9_.]{1,48}")  # states, rows, reasons, names of events: the longest has 32
FOREIGN = "?"  # what is no such word; the specification has no string like it
ABSENT = -1
NOT_A_NUMBER = -3  # TLC's integers have 32 bits; no logged value of a real session comes near
_LARGEST = 2**31 - 1
_EPOCHS = ("epoch", "key_epoch", "last_epoch")
_KINDS = {
    "session.created": "role",
    "session.episode_closed": "outcome",
    "reattach.result": "status",
    "reattach.attempt": "kind",
    "ownership.acquired": "cause",
}


class Names:
    """Small names for the transports, small numbers for the nonces and nodes of one trace, as they appear in it."""

    def __init__(self) -> None:
        self._transports: dict[str, str] = {}
        self._nonces: dict[str, int] = {}
        self._nodes: dict[str, int] = {}

    def transport(self, shown: Any) -> str:
        """``t1``, ``t2``, ..; ``none`` where there is none."""
        if shown is None or shown == "":
            return "none"
        return self._transports.setdefault(str(shown), f"t{len(self._transports) + 1}")

    def nonce(self, shown: Any) -> int:
        """1, 2, ..; ABSENT where there is none."""
        if shown is None or shown == "":
            return ABSENT
        return self._nonces.setdefault(str(shown), len(self._nonces) + 1)

    def node(self, shown: Any) -> int:
        """1, 2, ..."""
        return self._nodes.setdefault(str(shown), len(self._nodes) + 1)

    def known_node(self, number: int) -> str:
        """The node that was given ``number``."""
        return next((shown for shown, given in self._nodes.items() if given == number), FOREIGN)

    def known(self, name: str) -> str:
        """The transport that was given ``name``, or the name itself."""
        return next((shown for shown, given in self._transports.items() if given == name), name)


def module(traces: Iterable[tuple[Trace, Names]]) -> str:
    """The text of TraceData.tla."""
    bodies = ",\n".join(_trace(trace, names) for trace, names in traces)
    return f"---- MODULE TraceData ----\nEXTENDS Integers\nTraces == <<\n{bodies}\n>>\n====\n"


def _trace(trace: Trace, names: Names) -> str:
    lines = ",\n".join(_line(line, names, trace) for line in trace.lines)
    limits = ", ".join(str(limit) for limit in sorted(trace.limits))
    end = "client" if trace.chain.startswith("c:") else "gateway"
    flags = f"silent |-> {str(trace.silent).upper()}, cut |-> {str(trace.cut).upper()}"
    return f'[end |-> "{end}", limits |-> {{{limits}}}, {flags}, lines |-> <<\n{lines}>>]'


def _line(line: Seen, names: Names, trace: Trace) -> str:
    transport = line.transport if isinstance(line.transport, dict) else {}
    bounds = line.told("bounds")
    texts = {
        "event": line.event,
        "row": line.told("row"),
        "from": line.prev_state,
        "to": line.state,
        "reason": line.reason,
        "lane": "N" if line.chain.startswith("n:") else "S",
    }
    given = {
        "transport": names.transport(transport.get("id")),
        "away": names.transport(line.told("from_id")),
        "here": names.transport(line.told("to_id")),
    }
    epoch = next((line.told(name) for name in _EPOCHS if line.told(name) is not None), None)
    attempts = line.told("attempts") if line.told("attempts") is not None else line.told("attempt")
    numbers = {
        "version": line.state_version,
        "owner": line.owner_epoch,
        "gen": transport.get("binding_gen"),
        "epoch": epoch,
        "attempts": attempts,
        "limit": bounds.get("attempts") if isinstance(bounds, dict) else None,
        "floor": line.told("floor"),
        "granted": trace.granted(line),
    }
    kind = _word(line.told(_KINDS[line.event])) if line.event in _KINDS else "none"
    fields = [
        *(f'{name} |-> "{_word(text)}"' for name, text in texts.items()),
        *(f'{name} |-> "{name_given}"' for name, name_given in given.items()),
        *(f"{name} |-> {_number(number)}" for name, number in numbers.items()),
        f"node |-> {names.node(line.node_id)}",
        f'kind |-> "{kind}"',
        f"nonce |-> {names.nonce(line.told('nonce_id'))}",
        f"early |-> {str(trace.is_early(line)).upper()}",
        f"lost |-> {_ran(line.told('transportless_ms'))}",
        f"episode |-> {_ran(line.told('episode_ms'))}",
    ]
    return "[" + ", ".join(fields) + "]"


def _word(text: Any) -> str:
    if text is None:
        return ""
    return text if isinstance(text, str) and _WORD.fullmatch(text) else FOREIGN


def _number(number: Any) -> int:
    if number is None:
        return ABSENT
    return number if type(number) is int and 0 <= number <= _LARGEST else NOT_A_NUMBER


def _ran(milliseconds: Any) -> str:
    """Whether a clock shows time, as TLA+ writes it."""
    running = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool) and milliseconds > 0
    return str(running).upper()
