"""What the engine orders: commits first, then what depends on them."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session
from jumpvpn.values import DomainEvent, Epoch, SessionId, TransportId, dataclass


@dataclass(frozen=True, slots=True)
class Commit:
    """Write record and events as one unit, by compare-and-swap on ``expected_version`` (None: must not exist).

    ``secret`` names where the packet core holds new key material to seal into the record; ``device`` is the device key
    and handshake timestamp (ns) to be raised with it. ``shared``: other gateways must know it before it counts (birth,
    owner, root of keys, end); the rest may be written behind. Answer with ``CommitEnded(uid, serial, result)``.
    """

    uid: str
    serial: int
    expected_version: int | None
    session: Session
    events: tuple[DomainEvent, ...]
    secret: Secret | None = None
    device: tuple[bytes, int] | None = field(default=None, repr=False)
    shared: bool = True


@dataclass(frozen=True, slots=True)
class Secret:
    """``kind`` handshake, reattach or rekey, and the packet core's number for it."""

    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class Emit:
    """Record events of the node lane."""

    events: tuple[DomainEvent, ...]


@dataclass(frozen=True, slots=True)
class OpenPath:
    """Give ``transport`` a socket and probe it under path index ``path``."""

    transport: TransportId
    path: int
    peer: str


@dataclass(frozen=True, slots=True)
class ClosePath:
    """Forget the socket of ``transport``."""

    transport: TransportId
    path: int


@dataclass(frozen=True, slots=True)
class TuneLiveness:
    """How the packet core probes a path and when it calls it silent (ns)."""

    uid: str
    transport: TransportId
    probe_busy: int
    probe_idle: int
    silence_busy: int
    silence_idle: int
    dead_factor: int
    loss_window: int


@dataclass(frozen=True, slots=True)
class ChallengePath:
    """Ask for a fresh proof of the path's present address."""

    uid: str
    transport: TransportId


@dataclass(frozen=True, slots=True)
class Activate:
    """``transport`` at ``peer`` carries the session."""

    uid: str
    transport: TransportId
    peer: str


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Nothing carries the session; inner packets wait."""

    uid: str


@dataclass(frozen=True, slots=True)
class AskReattach:
    """Client: send a reattach request on ``transport``; ``age_ms`` is the session's age on the client's boot clock."""

    transport: TransportId
    epoch: Epoch
    expected_version: int
    age_ms: int
    cause: Reason
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class AbandonReattach:
    """Client: forget the request."""


@dataclass(frozen=True, slots=True)
class FinishReattach:
    """Client: the confirmed epoch becomes the one in use, on ``transport``.

    ``handover`` tells what becomes of the epoch before: "same" if the gateway stays, "lost" if the session left a
    gateway that may be gone or paused, "drained" if that one had asked to be left.
    """

    transport: TransportId
    handover: Literal["same", "lost", "drained"] = "same"


@dataclass(frozen=True, slots=True)
class GrantReattach:
    """Gateway: install the committed epoch and answer."""

    request: int
    uid: str
    version: int


@dataclass(frozen=True, slots=True)
class ChallengeReattach:
    """Gateway: the address must prove itself first."""

    request: int


@dataclass(frozen=True, slots=True)
class RefuseReattach:
    """Gateway: refuse; ``answer`` only to a peer that has proved itself."""

    request: int
    reason: Reason
    version: int
    answer: bool


@dataclass(frozen=True, slots=True)
class AcceptHandshake:
    """Gateway: send the response; the session is durable."""

    handshake: int
    uid: str


@dataclass(frozen=True, slots=True)
class RefuseHandshake:
    """Gateway: forget the handshake, silently."""

    handshake: int


@dataclass(frozen=True, slots=True)
class AskRekey:
    """Client: begin the exchange for fresh keys."""


@dataclass(frozen=True, slots=True)
class FinishRekey:
    """Client: use the fresh keys."""


@dataclass(frozen=True, slots=True)
class GrantRekey:
    """Gateway: install and answer."""

    request: int
    uid: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """Erase the keys; tell the peer first if ``tell_peer``."""

    uid: str
    reason: Reason
    tell_peer: bool


@dataclass(frozen=True, slots=True)
class ReleaseSession:
    """Gateway: this node does not act for the session any more. Erase its keys here; tell the peer nothing.

    ``elsewhere`` is False where no other owner is known: what was committed here is still the newest.
    """

    uid: str
    session_id: SessionId
    elsewhere: bool = True


Output = (
    Commit
    | Emit
    | OpenPath
    | ClosePath
    | TuneLiveness
    | ChallengePath
    | Activate
    | Deactivate
    | AskReattach
    | AbandonReattach
    | FinishReattach
    | GrantReattach
    | ChallengeReattach
    | RefuseReattach
    | AcceptHandshake
    | RefuseHandshake
    | AskRekey
    | FinishRekey
    | GrantRekey
    | EndSession
    | ReleaseSession
)
