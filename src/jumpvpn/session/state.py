"""What a session is: state, binding, attempt, and the record that owns them."""

from __future__ import annotations

from enum import Enum

from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Budget
from jumpvpn.session.reasons import Reason
from jumpvpn.values import Epoch, Instant, SessionId, TransportId, Version, dataclass


class State(Enum):
    """The mission's six states."""

    BIRTH = "BIRTH"
    ATTACHED = "ATTACHED"
    VOLATILE = "VOLATILE"
    RECOVERING = "RECOVERING"
    DEGRADED = "DEGRADED"
    TERMINATED = "TERMINATED"

    @property
    def live(self) -> bool:
        """Whether anything can still happen to the session."""
        return self is not State.TERMINATED


class Role(Enum):
    """Which end of the session this node is. Both ends run the same machine."""

    CLIENT = "client"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Binding:
    """The session's attachment to one transport in one epoch."""

    transport: TransportId
    peer: str
    epoch: Epoch
    since: Instant


class AttemptKind(Enum):
    """What an attempt in RECOVERING tries to prove."""

    SWITCH = "switch"  # reattach on a candidate, new epoch
    REVALIDATE = "revalidate"  # the incumbent answers a fresh challenge
    REBIND = "rebind"  # the peer's new address answers a challenge


@dataclass(frozen=True, slots=True)
class Attempt:
    """One explicit, bounded attempt."""

    kind: AttemptKind
    transport: TransportId
    started: Instant
    deadline: Instant
    peer: str | None = None  # REBIND: the address under challenge


@dataclass(frozen=True, slots=True)
class Totals:
    """What the session's life came to so far, in ns and counts: told by its events, read by no rule.

    Stays and stretches count when they end: the present one is not in it yet. ``switches`` are changes of transport;
    a rebinding is none. What begins with ``episode_`` belongs to the present episode, or to the last one.
    """

    switches: int = 0
    episodes: int = 0
    volatile: int = 0
    recovering: int = 0
    degraded: int = 0
    transportless: int = 0
    episode_degraded: int = 0
    episode_denials: int = 0
    episode_unseen: int | None = None  # silence before the trouble was noticed; None: nobody can tell


@dataclass(frozen=True, slots=True)
class Session:
    """The record of one session; replaced, never changed.

    Durable fields are those that ``records.py`` writes. ``attempt``, ``tried`` and ``want`` are plans of the running
    process: they die with it and never raise the version. ``prior_bound_version`` is what the client showed to know
    when it asked for the newest binding, and stays valid: if that answer was lost, and the next one, it asks again with
    what it knows; its data in the new epoch does not show that an answer came (data may follow the request at once).
    """

    id: SessionId
    role: Role
    policy: Policy
    state: State
    version: Version
    epoch: Epoch
    born_at: Instant
    entered_at: Instant  # when the present state was entered
    keys_at: Instant  # when the keys in use were agreed
    reason: Reason | None = None  # of the last transition
    binding: Binding | None = None
    incumbent: TransportId | None = None  # the last bound transport, remembered while no binding lives
    transportless_at: Instant | None = None
    episode_at: Instant | None = None
    attempts: int = 0  # in this episode
    bound_version: Version = Version(1)  # the version that the peer was told with the newest binding: what it expects
    prior_bound_version: Version | None = None  # what it expects if answers were lost
    peer_version: Version = Version(0)  # client: the gateway's version that it last authenticated
    owner_epoch: int = 1  # incarnation of the owner; fences a restarted or replaced one
    switches: tuple[Instant, ...] = ()  # of the last 60 s
    hold_until: Instant | None = None
    volatile_entries: tuple[Instant, ...] = ()  # of the last 60 s
    attempt: Attempt | None = None
    tried: tuple[TransportId, ...] = ()  # in this stay in RECOVERING
    want: Want | None = None  # why RECOVERING was entered and for which transport
    warnings: int = 0  # lifetime warnings given
    next_policy: Policy | None = None  # loosening that waits for the end of the episode
    totals: Totals = Totals()

    @property
    def uid(self) -> str:
        """The public name."""
        return self.id.uid

    @property
    def budget(self) -> Budget:
        """The switch limits as they stand."""
        return Budget(self.switches, self.hold_until)

    @property
    def attached(self) -> bool:
        """Whether the session is in ATTACHED."""
        return self.state is State.ATTACHED


@dataclass(frozen=True, slots=True)
class Want:
    """What the episode is about: a forced target, a rebinding, or simply any good transport."""

    kind: AttemptKind
    cause: Reason
    target: TransportId | None = None  # operator or failback: only this one
    peer: str | None = None  # rebinding: the address to prove
    avoid_incumbent: bool = False  # drain, policy or operator: the incumbent is no answer
