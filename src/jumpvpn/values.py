"""Words that every layer shares: instants, durations, identifiers, counters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NewType

import msgspec

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - said so that mypy knows what it makes
else:

    def dataclass(*, frozen: bool = False, slots: bool = False) -> Callable[[type], type]:
        """``dataclasses.dataclass`` for what is made by the thousand: a ``msgspec.Struct`` where that can do its work.

        It is made and changed in a fraction of the time. The others are frozen for the type checker only: one that is
        frozen at run time, too, takes ten times as long to make.
        """

        def made(kind: type) -> type:
            namespace = dict(vars(kind))
            told = dataclasses.dataclass(slots=slots, unsafe_hash=frozen)(kind)
            return _struct(told, namespace) if frozen and all(map(_is_plain, fields(told))) else told

        return made

    def _is_plain(one: dataclasses.Field[Any]) -> bool:
        return one.init and one.repr and one.compare

    def _struct(told: type, namespace: dict[str, Any]) -> type:
        """``told`` as a Struct; ``dataclasses.fields`` and ``replace`` know it, too."""
        for one in fields(told):
            if one.default_factory is not dataclasses.MISSING:
                namespace[one.name] = msgspec.field(default_factory=one.default_factory)
        del namespace["__dict__"], namespace["__weakref__"]
        made = type(msgspec.Struct)(told.__name__, (msgspec.Struct,), namespace, frozen=True)
        made.__dataclass_fields__ = told.__dataclass_fields__
        return made


Instant = NewType("Instant", int)
"""Boot time (CLOCK_BOOTTIME, includes suspend), integer nanoseconds. Comparable within one boot only."""

Duration = NewType("Duration", int)
"""Integer nanoseconds, never negative."""

TransportId = NewType("TransportId", str)
"""One way to reach a gateway: ``interface/protocol/gateway``, for example ``wlan0/udp/gw1``."""

Epoch = NewType("Epoch", int)
"""Counter raised at each new binding or rekey; newer always wins; 0 means "no binding yet"."""

Version = NewType("Version", int)
"""Counter raised by one at each mutation of a session record; 0 means "not yet recorded"."""

MICROSECOND = Duration(1_000)
MILLISECOND = Duration(1_000_000)
SECOND = Duration(1_000_000_000)
MINUTE = Duration(60 * SECOND)
HOUR = Duration(60 * MINUTE)

SESSION_ID_BYTES = 16  # 128 random bits (protocol: BIRTH)


@dataclass(frozen=True, slots=True)
class SessionId:
    """The identity that outlives every transport: 128 random bits.

    ``raw`` is a routing secret (it is what tickets seal), so only ``uid``, a one-way name, is shown to people.
    """

    raw: bytes = field(repr=False)
    uid: str = field(init=False, compare=False)
    """Public name: the first 16 hex digits of SHA-256("jumpvpn uid" || raw)."""

    def __post_init__(self) -> None:
        if len(self.raw) != SESSION_ID_BYTES:
            raise ValueError(f"a session id has {SESSION_ID_BYTES} bytes, not {len(self.raw)}")
        object.__setattr__(self, "uid", self._public_name())

    def _public_name(self) -> str:
        return hashlib.sha256(b"jumpvpn uid" + self.raw).hexdigest()[:16]

    def __str__(self) -> str:
        return self.uid


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of the clocks, taken once per loop turn.

    ``boot`` orders and bounds everything; ``wall_ms`` (Unix milliseconds, UTC) is for people and peers only.
    """

    boot: Instant
    wall_ms: int


def later(instant: Instant, duration: int) -> Instant:
    """``instant`` moved by ``duration`` nanoseconds."""
    return Instant(instant + duration)


def milliseconds(duration: int) -> float:
    """``duration`` (ns) in milliseconds, for people."""
    return round(duration / MILLISECOND, 3)


if TYPE_CHECKING:
    from dataclasses import replace as replace  # noqa: PLC0414 - said so that mypy checks the arguments
else:

    def replace(value: Any, /, **changes: Any) -> Any:
        """``dataclasses.replace`` in less than half the time, for those whose every field is an argument, by place."""
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(value, **changes)
        read, places = _fields(type(value))
        arguments = list(read(value))
        for name, new in changes.items():
            arguments[places[name]] = new
        return type(value)(*arguments)


@cache
def _fields(kind: Any) -> tuple[Callable[[Any], tuple[Any, ...]], Mapping[str, int]]:
    names = [found.name for found in fields(kind)]
    return attrgetter(*names), {name: place for place, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class TransportView:
    """What an event says of a transport. ``local`` and ``peer`` are ``address:port`` or empty."""

    id: TransportId
    proto: str = "udp"
    local: str = ""
    peer: str = ""
    binding_gen: int = 0


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """One event before it is sealed into an event record (observability: the envelope).

    ``lane`` "S" belongs to a committed mutation of ``session``; "N" to the running node. ``data`` is flat, its names
    end in their unit. ``state_version``, ``prev_state`` and ``state`` are those after the step.
    """

    name: str
    lane: Literal["S", "N"]
    session: str | None = None
    state_version: int = 0
    owner_epoch: int = 0
    prev_state: str | None = None
    state: str | None = None
    reason: str | None = None
    contributing: tuple[str, ...] = ()
    transport: TransportView | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def showing(self, transport: TransportView | None, data: Mapping[str, Any]) -> DomainEvent:
        """The same event with other words for its transport and data."""
        return replace(self, transport=transport, data=data)
