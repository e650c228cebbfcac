"""Reads and replays the transcripts in tests/scenarios: ``>>`` lines are inputs, ``<<`` lines what the machine did.

``given STATE [gateway] [unbound] [lifetime|one_attempt]`` begins anew; ``+4s`` lets time pass before the inputs;
``A(...) & B(...)`` coincide. Transports are named by their interface, ``gw`` and ``gw2`` are two addresses.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, fields, replace
from typing import Any

from build import NEW_PEER, PEER, START, in_state, policy

from jumpvpn.engine.seat import Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.units import parse_duration
from jumpvpn.session import events as ev
from jumpvpn.session.machine import Step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.values import DomainEvent, Instant, TransportId, later

LIFETIME = policy(session={"max_lifetime": "20min", "lifetime_warnings": ["10min", "2min"]})
ONE_ATTEMPT = policy(recovery={"max_attempts": 1})
POLICIES = {
    "default": Policy(),
    "short_ttl": policy(session={"transport_ttl": "20s"}, recovery={"episode_max": "60s"}),
}
ADDRESSES = {"gw": PEER, "gw2": NEW_PEER}
SUFFIX = "/udp/gw1"


class Recorded(Turn):
    """A turn that remembers its rows."""

    rows: list[str]

    def take(self, outcome: Step) -> None:
        self.rows = [*getattr(self, "rows", []), *outcome.rows]
        Turn.take(self, outcome)


@dataclass
class Scenario:
    """One section: its title, input lines, and the transcript that they give."""

    title: str
    inputs: list[str] = field(default_factory=list)

    def replay(self) -> tuple[list[str], list[str]]:
        """(transcript lines, rows taken)."""
        lines, rows = [f"--- {self.title}"], []
        session, now = in_state(State.BIRTH), START
        for text in self.inputs:
            lines.append(text)
            if text.startswith("given "):
                session, now = _given(text.split()[1:]), START
                continue
            words = text.removeprefix(">> ")
            if words.startswith("+"):
                wait, _, words = words.partition(" ")
                now = later(now, parse_duration(wait[1:]))
            turn = Recorded(session, now, int(session.version))
            turn.rows = []
            turn.feed(*(_event(part.strip(), now) for part in words.split(" & ") if part.strip()))
            lines += [f"<< {line}" for line in _shown(session, turn)]
            rows += turn.rows
            session = turn.session
        return lines, rows


def read(text: str) -> list[Scenario]:
    """The sections of a file; what the machine did is left out."""
    found: list[Scenario] = []
    for line in text.splitlines():
        if line.startswith("--- "):
            found.append(Scenario(line.removeprefix("--- ")))
        elif line.startswith((">> ", "given ")):
            found[-1].inputs.append(line)
    return found


def _given(words: list[str]) -> Session:
    role = Role.GATEWAY if "gateway" in words else Role.CLIENT
    session = in_state(State(words[0]), role, bound="unbound" not in words)
    if "lifetime" in words:
        return replace(session, policy=LIFETIME)
    return replace(session, policy=ONE_ATTEMPT) if "one_attempt" in words else session


def _event(text: str, now: Instant) -> Any:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    kind = getattr(ev, call.func.id)
    values = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    return kind(**{name: _value(str(name), value, now) for name, value in values.items()})


def _value(name: str, value: Any, now: Instant) -> Any:
    match name:
        case "reason":
            return Reason(value)
        case "cause" if value in {reason.value for reason in Reason}:
            return Reason(value)
        case "kind":
            return AttemptKind(value)
        case "transport" | "target":
            return TransportId(value + SUFFIX)
        case "peer" | "old" | "new":
            return ADDRESSES[value]
        case "deadline":
            return later(now, parse_duration(value[1:]))
        case "policy":
            return POLICIES[value]
    return value


def _shown(before: Session, turn: Recorded) -> list[str]:
    after = turn.session
    if not turn.rows:
        return ["nothing"]
    version = f"version {before.version} > {after.version}" if turn.mutated else "nothing durable"
    lines = [f"row {' '.join(turn.rows)}: {after.state.value}, {version}{_binding(after)}"]
    lines += [_shown_event(event) for event in turn.events]
    lines += [_short(f"order {type(effect).__name__}({_fields(effect)})") for effect in turn.effects]
    return [_short(line) for line in lines]


def _binding(session: Session) -> str:
    bound = session.binding
    return f", on {bound.transport} epoch {bound.epoch}" if bound is not None else ", no binding"


def _shown_event(event: DomainEvent) -> str:
    change = f" {event.prev_state}>{event.state}" if event.name == "session.state_change" else ""
    where = f" [{event.transport.id}]" if event.transport is not None else ""
    lost = f" contributing {' '.join(event.contributing)}" if event.contributing else ""
    told = {name: value for name, value in event.data.items() if value not in ("", None)}
    data = " ".join(f"{name}={value}" for name, value in told.items() if name not in ("row", "bounds"))
    return f"{event.lane} {event.name}{change} {event.reason or '-'}{where}{lost} | {data}".rstrip(" |")


def _fields(effect: Any) -> str:
    return ", ".join(_field(getattr(effect, f.name)) for f in fields(effect))


def _field(value: Any) -> str:
    if isinstance(value, (Reason, AttemptKind)):
        return str(value.value)
    kind = getattr(value, "kind", None)
    return f"{kind.value} {value.transport}" if kind is not None else str(value)


def _short(line: str) -> str:
    line = line.replace(SUFFIX, "")
    for name, address in ADDRESSES.items():
        line = line.replace(address, name)
    return line
