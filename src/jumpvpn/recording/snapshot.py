"""Everything that an engine and a sealer carry from one input to the next, as parts of a segment's beginning.

A snapshot is taken while no commit is under way: then no turn is open and nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from jumpvpn.audit.chain import Chain
from jumpvpn.audit.coalesce import Kind, _Window
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.engine.gateways import Gateways
from jumpvpn.engine.liveness import Liveness
from jumpvpn.engine.place import Place
from jumpvpn.engine.seat import Seat
from jumpvpn.policy.model import Policy
from jumpvpn.recording.codec import BadValue, Sight, Veil, decode, encode, hints_of
from jumpvpn.recording.veil import ReaderSight
from jumpvpn.session.state import Session
from jumpvpn.transports.state import Transport
from jumpvpn.values import Epoch, Instant, TransportId

Engine = ClientEngine | GatewayEngine
Shape = dict[str, Any]
Part = tuple[str, Any]
"""Kind of part, and its JSON value."""

ENGINES: dict[str, Shape] = {
    "client": {"policy": Policy, "_proposed": Epoch, "_token": bytes},
    "gateway": {"policy": Policy, "_by_device": dict[bytes, str], "_births": dict[str, int], "draining": bool},
}
BOOK: Shape = {
    "transports": dict[TransportId, Transport], "reopen_at": dict[TransportId, Instant], "_paths_used": set[int],
    "_liveness": dict[TransportId, Liveness], "gateways": Gateways,
}  # fmt: skip
PLANS: Shape = {
    "let_down": int, "corrected": bool, "unstable_at": Instant, "bound_path": int | None, "rekey_asked": Instant | None,
    "_challenged_at": dict[TransportId, Instant],
}  # fmt: skip
SEAT: Shape = {"session": Session, "serial": int, "seen": Instant, "retry_at": Instant}
PLACE: Shape = {name: hint for name, hint in hints_of(Place).items() if name != "seat"}
SEALER: Shape = {"policy": Policy, "node": Chain}
GROWTH: Shape = {"_events": int, "_since": Instant | None}


class Shown:
    """A veil for what events show already: addresses stay as they are."""

    def __init__(self, veil: Veil) -> None:
        self.secret, self.policy = veil.secret, veil.policy

    def address(self, address: str) -> str:
        """The form that it has."""
        return address


def at_rest(engine: Engine) -> bool:
    """Whether no commit is under way."""
    if isinstance(engine, ClientEngine):
        return engine.seat is None or engine.seat.pending is None
    return all(place.seat.pending is None for place in engine.places.values())


def capture(engine: Engine, sealer: Sealer, veil: Veil) -> Iterator[Part]:
    """The parts of the present state, in the order in which ``Restoring`` takes them."""
    if isinstance(engine, ClientEngine):
        state = _taken(engine, ENGINES["client"], veil)  # first: whoever reads meets its policy's body first
        state["book"], state["plans"] = _taken(engine.book, BOOK, veil), _taken(engine.plans, PLANS, veil)
        state["seat"] = None if engine.seat is None else _taken(engine.seat, SEAT, veil)
        yield "engine", state
    else:
        yield "engine", _taken(engine, ENGINES["gateway"], veil)
        for uid, place in engine.places.items():
            yield "place", [uid, {**_taken(place, PLACE, veil), "seat": _taken(place.seat, SEAT, veil)}]
    yield from _sealer_parts(sealer, veil)


def _sealer_parts(sealer: Sealer, veil: Veil) -> Iterator[Part]:
    """What grows with the number of sessions comes in lines of its own: a line is bounded."""
    growth = _taken(sealer.growth, GROWTH, veil)
    yield "sealer", {**_taken(sealer, SEALER, veil), **growth, "denial_interval": sealer._denials._interval}
    for uid, chain in sealer._sessions.items():
        yield "chain", [uid, chain.name, chain.seq, chain.head]
    for chain in sealer.growth._heads.values():
        yield "head", [chain.name, chain.seq, chain.head]
    for kind, window in sealer._denials._windows.items():
        yield "window", [encode(kind, Kind, veil), encode(window, _Window, Shown(veil))]


class Restoring:
    """Takes the parts one after the other; then ``engine`` and ``sealer`` go on where the node was. Raises BadValue."""

    def __init__(self, role: str, origin: Origin, sight: ReaderSight) -> None:
        self._role = role
        self._origin = origin
        self._sight = sight
        self._engine: Engine | None = None
        self._sealer: Sealer | None = None

    def take(self, kind: str, value: Any) -> None:
        """One part."""
        if kind == "engine":
            self._engine = _client(value, self._sight) if self._role == "client" else _gateway(value, self._sight)
        elif kind == "sealer":
            self._sealer = self._sealed(value)
        elif kind == "place":
            self._place(value)
        elif kind == "chain":
            uid, name, seq, head = decode(value, tuple[str, str, int, str], self._sight)
            self.sealer.resume(uid, Chain(name, seq, head))
        elif kind == "head":
            grown = Chain(*decode(value, tuple[str, int, str], self._sight))
            self.sealer.growth._heads[grown.name] = grown
        else:
            key, window = _pair(value)
            windows = self.sealer._denials._windows
            windows[decode(key, Kind, self._sight)] = decode(window, _Window, self._sight)

    @property
    def complete(self) -> bool:
        """Whether there are both an engine and a sealer."""
        return self._engine is not None and self._sealer is not None

    @property
    def engine(self) -> Engine:
        """The engine so far."""
        if self._engine is None:
            raise BadValue("the state of the engine is missing")
        return self._engine

    @property
    def sealer(self) -> Sealer:
        """The sealer so far."""
        if self._sealer is None:
            raise BadValue("the state of the sealer is missing")
        return self._sealer

    def _sealed(self, value: Any) -> Sealer:
        table = _table(value, {*SEALER, *GROWTH, "denial_interval"})
        sealer = Sealer(self._origin, self._sight.policy(table["policy"]), self._sight.show)
        sealer.node = decode(table["node"], Chain, self._sight)
        _put(sealer.growth, GROWTH, table, self._sight)
        sealer._denials._interval = decode(table["denial_interval"], int, self._sight)
        return sealer

    def _place(self, value: Any) -> None:
        if not isinstance(self.engine, GatewayEngine):
            raise BadValue("a client has no places")
        uid, body = _pair(value)
        table = _table(body, {*PLACE, "seat"})
        place = Place(_seat(table["seat"], self._sight), b"")
        _put(place, PLACE, table, self._sight)
        self.engine.places[decode(uid, str, self._sight)] = place
        self.engine.watch_clock(place)


def _client(value: Any, sight: Sight) -> ClientEngine:
    table = _table(value, {*ENGINES["client"], "book", "plans", "seat"})
    engine = ClientEngine(sight.policy(table["policy"]))
    _put(engine, ENGINES["client"], table, sight)
    _put(engine.book, BOOK, _table(table["book"], set(BOOK)), sight)
    _put(engine.plans, PLANS, _table(table["plans"], set(PLANS)), sight)
    engine.seat = None if table["seat"] is None else _seat(table["seat"], sight)
    return engine


def _gateway(value: Any, sight: Sight) -> GatewayEngine:
    table = _table(value, set(ENGINES["gateway"]))
    engine = GatewayEngine(sight.policy(table["policy"]))
    _put(engine, ENGINES["gateway"], table, sight)
    return engine


def _seat(value: Any, sight: Sight) -> Seat:
    table = _table(value, set(SEAT))
    return Seat(**{name: _field(name, hint, table, sight) for name, hint in SEAT.items()})


def _taken(holder: Any, shape: Shape, veil: Veil) -> dict[str, Any]:
    return {name: encode(getattr(holder, name), hint, veil, name) for name, hint in shape.items()}


def _put(holder: Any, shape: Shape, table: dict[str, Any], sight: Sight) -> None:
    for name, hint in shape.items():
        setattr(holder, name, _field(name, hint, table, sight))


def _field(name: str, hint: Any, table: dict[str, Any], sight: Sight) -> Any:
    try:
        return decode(table[name], hint, sight, name)
    except BadValue as error:
        raise BadValue(f"{name}: {error}") from None


def _table(value: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise BadValue(f"has not exactly the fields {', '.join(sorted(names))}")
    return value


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise BadValue("is no pair")
    return value[0], value[1]


def attributes(holder: Any) -> set[str]:
    """Names of all that ``holder`` keeps; the shapes above have to cover them."""
    if hasattr(holder, "__dataclass_fields__"):
        return {field.name for field in fields(holder)}
    return set(vars(holder))
