"""What the machine asks of the world: orders, executed in sequence after the commit."""

from __future__ import annotations

from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt
from jumpvpn.values import Epoch, TransportId, dataclass


@dataclass(frozen=True, slots=True)
class Bind:
    """Make ``transport`` carry the session in ``epoch``; send what waited."""

    transport: TransportId
    peer: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Unbind:
    """Send nothing more on the old binding; inner packets wait in the bounded queue."""

    transport: TransportId | None


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Begin the attempt: a reattach request, or a fresh challenge."""

    attempt: Attempt
    cause: Reason


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """Forget the attempt; a late answer to it means nothing."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Erase:
    """Erase the session's keys; tell the peer where it can still be told."""

    reason: Reason
    tell_peer: bool


Effect = Bind | Unbind | StartAttempt | StopAttempt | Erase
