"""What the shell tells the engine: facts of the packet core, of netlink, of the store, of people."""

from __future__ import annotations

from dataclasses import field

from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Session
from jumpvpn.values import Epoch, Instant, SessionId, TransportId, Version, dataclass


@dataclass(frozen=True, slots=True)
class Reachable:
    """A transport whose interface, address and route exist. ``peer`` and ``local`` are ``address:port`` / address."""

    id: TransportId
    interface: str
    protocol: str
    gateway: str
    peer: str
    local: str


UNUSED = "gateway"
"""Evidence that nothing failed: transports to that gateway are not wanted any more."""


@dataclass(frozen=True, slots=True)
class TransportsChanged:
    """The set of reachable transports now; ``evidence`` says per missing transport what went away, or ``UNUSED``."""

    reachable: tuple[Reachable, ...]
    evidence: dict[TransportId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandshakeAnswered:
    """Client: the gateway accepted; keys of epoch 1 are installed. ``limits`` are the gateway's bounds (ns, counts)."""

    session_id: SessionId
    transport: TransportId
    peer: str
    device: str
    policy: Policy
    peer_version: Version


@dataclass(frozen=True, slots=True)
class HandshakeAbandoned:
    """Client: no gateway accepted in time, or one refused; ``session_id`` is of our own making."""

    session_id: SessionId
    device: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class HandshakeOffered:
    """Gateway: a device proved its key; ``device`` is None when the key is not in the list."""

    handshake: int
    session_id: SessionId
    device_key: bytes = field(repr=False)
    device: str | None
    peer: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class EpochProved:
    """Gateway: first authenticated datagram of ``epoch`` from the client, on ``transport``."""

    uid: str
    epoch: Epoch
    transport: TransportId
    peer: str


@dataclass(frozen=True, slots=True)
class ReattachAsked:
    """Gateway: a reattach request; ``uid`` is None if no such session is known."""

    request: int
    uid: str | None
    transport: TransportId
    peer: str
    proof: bool
    fresh_nonce: bool
    token_ok: bool
    nonce_id: str
    epoch: Epoch
    expected_version: int
    age_ms: int
    cause: int


@dataclass(frozen=True, slots=True)
class ReattachAnswered:
    """Client: the gateway's sealed answer. ``status``: committed, challenge or denied."""

    transport: TransportId
    nonce_id: str
    status: str
    epoch: Epoch
    version: Version
    reason: Reason
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class PathValidated:
    """A challenge on ``transport`` was answered from ``peer``."""

    uid: str
    transport: TransportId
    peer: str
    rtt_ns: int


@dataclass(frozen=True, slots=True)
class StandbyAnswered:
    """Client: another gateway than the session's own answered a probe on ``transport``; ``draining`` says it leaves."""

    uid: str
    transport: TransportId
    rtt_ns: int
    draining: bool


@dataclass(frozen=True, slots=True)
class DrainTold:
    """Client: the gateway behind ``transport`` asks, in the session, to be left; ``on`` False takes it back."""

    uid: str
    transport: TransportId
    on: bool


@dataclass(frozen=True, slots=True)
class PathMeasured:
    """New figures of a transport; losses are ratios 0..1."""

    uid: str
    transport: TransportId
    rtt_ns: int
    rtt_dev_ns: int
    loss_up: float
    loss_down: float


@dataclass(frozen=True, slots=True)
class PathSilent:
    """What was sent is not reported back within the limit (ns)."""

    uid: str
    transport: TransportId
    silent_ns: int
    limit_ns: int


@dataclass(frozen=True, slots=True)
class PathDead:
    """Silent beyond the dead limit."""

    uid: str
    transport: TransportId
    silent_ns: int


@dataclass(frozen=True, slots=True)
class PathHeard:
    """What was owed has been reported."""

    uid: str
    transport: TransportId


@dataclass(frozen=True, slots=True)
class PeerMoved:
    """Authenticated data came from a new address; the packet core has challenged it."""

    uid: str
    transport: TransportId
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Hinted:
    """Client: the gateway answered a probe, but holds no binding for the session."""

    uid: str
    transport: TransportId


@dataclass(frozen=True, slots=True)
class SocketFailed:
    """The socket of ``transport`` reported an error; ``local`` if this host is its origin (no route, no device)."""

    transport: TransportId
    error: str
    local: bool


@dataclass(frozen=True, slots=True)
class RekeyAsked:
    """Gateway: the client asks for fresh keys, which open ``epoch``."""

    request: int
    uid: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class RekeyAnswered:
    """Client: fresh keys of ``epoch`` are ready."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer ended the session, authenticated."""

    uid: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class OperatorSwitch:
    """A person asks for ``target``."""

    target: TransportId


@dataclass(frozen=True, slots=True)
class OperatorTerminate:
    """A person ends ``uid``."""

    uid: str


@dataclass(frozen=True, slots=True)
class PolicyOffered:
    """A reloaded policy, or the errors that make it invalid."""

    policy: Policy | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionRestored:
    """Gateway: a live record from the store that this node is to own from here on.

    After a restart ``owner`` is the node itself. Otherwise it is the node that was lost, at the instant ``lost_at``, or
    the one where the device's former session is, which a newer one has ``superseded``. ``request`` is what its client
    asks already. ``age_guessed``: the record is of another boot, its instants are where the wall clocks put them.
    """

    session: Session
    device_key: bytes = field(repr=False)
    owner: str = ""
    lost_at: Instant | None = None
    superseded: bool = False
    request: ReattachAsked | None = None
    age_guessed: bool = False


@dataclass(frozen=True, slots=True)
class TakeoverAsked:
    """Gateway: ``request``, with its proof, is for a session that this node does not own; the store's record of it."""

    session: Session
    device_key: bytes = field(repr=False)
    owner: str
    request: ReattachAsked
    lost_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class OwnerElsewhere:
    """Gateway: the store names another owner, under the term ``owner_epoch``. Without one, the session has ended."""

    uid: str
    owner: str
    owner_epoch: int


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """Gateway: this node may act for no session any more; ``stopped_ms`` is when forwarding stopped (boot clock)."""

    stopped_ms: int


@dataclass(frozen=True, slots=True)
class DrainWished:
    """Gateway: from now on no session begins here or moves here; ``on`` False takes it back."""

    on: bool


@dataclass(frozen=True, slots=True)
class CommitEnded:
    """The outcome of a ``Commit``: committed, conflict, replayed_device or unavailable."""

    uid: str
    serial: int
    result: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline may have passed."""
