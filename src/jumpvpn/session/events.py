"""What can happen to a session: facts, in the past tense."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind
from jumpvpn.values import Epoch, Instant, TransportId, Version, dataclass


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """Proof, policy and transport were accepted; keys of ``epoch`` are in use."""

    transport: TransportId
    peer: str
    epoch: Epoch
    peer_version: Version = Version(0)


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The handshake was refused, or its deadline passed."""

    reason: Reason = Reason.HANDSHAKE_FAILED


@dataclass(frozen=True, slots=True)
class InstabilitySeen:
    """A measurement window of the active transport crossed a policy threshold."""

    transport: TransportId
    reason: Reason
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransportDied:
    """A transport was declared dead; ``evidence`` names the observation (link, address, route, socket, silence)."""

    transport: TransportId
    evidence: str
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class PeerAddressChanged:
    """An authenticated datagram of ``transport`` came from a new address; a challenge is under way."""

    transport: TransportId
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class SwitchForced:
    """Operator, drain, policy or failback wants another transport; ``target`` None means any other."""

    reason: Reason
    target: TransportId | None = None


@dataclass(frozen=True, slots=True)
class ReattachAccepted:
    """Gateway: a reattach request passed every check of ``validation.py`` and awaits its commit.

    ``known_version`` is the version that its client has shown to know, None for that of the newest binding.
    """

    transport: TransportId
    peer: str
    epoch: Epoch
    nonce_id: str
    cause: Reason
    known_version: Version | None = None


@dataclass(frozen=True, slots=True)
class ReattachRefused:
    """Gateway: a reattach request failed a check; nothing changes."""

    transport: TransportId | None
    step: int
    reason: Reason
    nonce_id: str
    proven: bool


class OwnerCause(Enum):
    """Why a node owns a session from here on, as ``ownership.acquired`` says it."""

    BIRTH = "birth"  # the session began there
    REQUEST = "request"  # its client asked there, with proof
    ORPHAN = "orphan"  # the owner's lease ended, and its client went nowhere
    SUPERSEDED = "superseded"  # its device began a newer session there, which ends this one
    RESTART = "restart"  # the same owner, which had lost what it holds in memory: a new process, or a lapsed lease


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """A new owner (another gateway, or this one after a restart) holds the session; the binding is gone.

    ``from_node`` owned it before. ``lost_at`` is since when nothing carried it, if that was earlier.
    ``proven_version`` and ``proven_epoch`` are what the client proved to know: a version above the record's newest
    binding shows that a former owner died with a binding that it had not stored yet.
    """

    owner_epoch: int
    from_node: str = ""
    lost_at: Instant | None = None
    proven_version: int = 0
    proven_epoch: int = 0
    cause: OwnerCause = OwnerCause.RESTART


@dataclass(frozen=True, slots=True)
class TransportStabilized:
    """The incumbent was good for the whole stability window."""

    transport: TransportId


@dataclass(frozen=True, slots=True)
class DwellPassed:
    """VOLATILE lasted ``volatility.volatile_max``."""


@dataclass(frozen=True, slots=True)
class BetterCandidateSeen:
    """A validated candidate beats the incumbent by more than the hysteresis."""

    transport: TransportId
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """Selection chose: one attempt begins."""

    kind: AttemptKind
    transport: TransportId
    deadline: Instant
    peer: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IncumbentRevalidated:
    """The incumbent answered a fresh challenge from ``peer``."""

    transport: TransportId
    peer: str
    rtt_ns: int


@dataclass(frozen=True, slots=True)
class RebindingValidated:
    """The peer's new address answered a challenge."""

    transport: TransportId
    peer: str
    rtt_ns: int


@dataclass(frozen=True, slots=True)
class ReattachCommitted:
    """Client: the gateway confirmed the reattach; the binding exists at ``peer_version``."""

    transport: TransportId
    peer: str
    epoch: Epoch
    peer_version: Version
    nonce_id: str


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The attempt ended without success; ``reason`` says how."""

    transport: TransportId
    reason: Reason


@dataclass(frozen=True, slots=True)
class SwitchDenied:
    """A switch is wanted and refused: hold-down, rate or policy; ``peer_version`` is the gateway's, if it refused."""

    reason: Reason
    detail: dict[str, Any] = field(default_factory=dict)
    peer_version: Version | None = None


@dataclass(frozen=True, slots=True)
class NoCandidate:
    """No usable transport is left to try, and the incumbent is not healthy."""

    considered: int = 0


@dataclass(frozen=True, slots=True)
class RecoveryWindowPassed:
    """RECOVERING lasted ``recovery.window``."""


@dataclass(frozen=True, slots=True)
class ConditionMet:
    """DEGRADED can be left: a transport is usable and nothing forbids the attempt."""

    transport: TransportId
    cause: str


@dataclass(frozen=True, slots=True)
class TransportTtlPassed:
    """Without a transport for longer than ``session.transport_ttl``."""


@dataclass(frozen=True, slots=True)
class EpisodePassed:
    """The episode is longer than ``recovery.episode_max``."""


@dataclass(frozen=True, slots=True)
class LifetimePassed:
    """Older than ``session.max_lifetime``."""


@dataclass(frozen=True, slots=True)
class KeysExpired:
    """The keys are older than ``security.key_max_age``."""


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """Operator or peer ended the session, authorised; ``reason`` says who."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class SecurityFailed:
    """Compromise, or an authenticated counter fork."""

    evidence: str


@dataclass(frozen=True, slots=True)
class OwnershipConflictProved:
    """Two commits at one version."""

    evidence: str


@dataclass(frozen=True, slots=True)
class PolicyReloaded:
    """A valid policy replaces the one in force."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class PolicyRefused:
    """An invalid policy was offered."""

    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """This node's right to act ended."""

    owner_epoch: int


@dataclass(frozen=True, slots=True)
class StoreUnavailable:
    """A store call failed."""

    operation: str


@dataclass(frozen=True, slots=True)
class KeysRotated:
    """A rekey completed: ``epoch`` is in use on the same transport."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class LifetimeNear:
    """The session ends in ``left_ms`` unless the user authenticates again."""

    left_ms: int


Event = (
    HandshakeCompleted
    | HandshakeFailed
    | InstabilitySeen
    | TransportDied
    | PeerAddressChanged
    | SwitchForced
    | ReattachAccepted
    | ReattachRefused
    | OwnerChanged
    | TransportStabilized
    | DwellPassed
    | BetterCandidateSeen
    | AttemptStarted
    | IncumbentRevalidated
    | RebindingValidated
    | ReattachCommitted
    | AttemptFailed
    | SwitchDenied
    | NoCandidate
    | RecoveryWindowPassed
    | ConditionMet
    | TransportTtlPassed
    | EpisodePassed
    | LifetimePassed
    | KeysExpired
    | CloseRequested
    | SecurityFailed
    | OwnershipConflictProved
    | PolicyReloaded
    | PolicyRefused
    | LeaseLost
    | StoreUnavailable
    | KeysRotated
    | LifetimeNear
)
