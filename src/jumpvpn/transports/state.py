"""One transport as this end sees it, and how facts change it."""

from __future__ import annotations

from enum import Enum

from jumpvpn.policy.model import SwitchingPolicy
from jumpvpn.transports.flap import Penalty
from jumpvpn.values import Instant, TransportId, dataclass, replace


class Condition(Enum):
    """What the last fact said of a transport."""

    CANDIDATE = "candidate"  # usable, not yet proved
    GOOD = "good"  # answered a challenge, and reports since
    SILENT = "silent"  # owes reports beyond the silence limit
    DEAD = "dead"  # silent beyond the dead limit, or its attempt failed
    GONE = "gone"  # interface, address or route is missing


@dataclass(frozen=True, slots=True)
class Transport:
    """A transport and its measurements. Times are boot instants (ns); losses are ratios 0..1 per direction."""

    id: TransportId
    interface: str
    protocol: str
    gateway: str
    peer: str
    local: str = ""
    path: int | None = None  # index in the present epoch
    condition: Condition = Condition.CANDIDATE
    since: Instant = Instant(0)  # of the condition
    validated_at: Instant | None = None
    heard_at: Instant | None = None
    rtt_ns: int = 0
    rtt_dev_ns: int = 0
    loss_up: float = 0.0
    loss_down: float = 0.0
    penalty: Penalty = Penalty()
    needs_epoch: bool = False  # the gateway answered, but holds no keys of this epoch
    failed_at: Instant | None = None  # since when it is silent or dead

    @property
    def loss(self) -> float:
        """The worse direction."""
        return max(self.loss_up, self.loss_down)

    @property
    def usable(self) -> bool:
        """Whether trying it makes sense now."""
        return self.condition in (Condition.CANDIDATE, Condition.GOOD)

    @property
    def validated(self) -> bool:
        """Whether it proved itself and has not failed since."""
        return self.condition is Condition.GOOD

    def stable_for(self, now: Instant) -> int:
        """How long (ns) it has been good without interruption."""
        return now - self.since if self.condition is Condition.GOOD else 0


def appeared(transport: Transport, now: Instant) -> Transport:
    """Interface, address and route exist (again)."""
    return _turn(replace(transport, needs_epoch=False), Condition.CANDIDATE, now)


def vanished(transport: Transport, now: Instant, policy: SwitchingPolicy) -> Transport:
    """Interface, address or route went away."""
    return _fail(transport, Condition.GONE, now, policy)


def retired(transport: Transport, now: Instant) -> Transport:
    """Nothing failed: it is not wanted any more."""
    return _turn(transport, Condition.GONE, now)


def validated(transport: Transport, peer: str, rtt_ns: int, now: Instant) -> Transport:
    """A challenge was answered from ``peer``."""
    fresh = replace(
        transport, peer=peer, validated_at=now, heard_at=now, rtt_ns=transport.rtt_ns or rtt_ns, needs_epoch=False
    )
    return _turn(fresh, Condition.GOOD, now)


def hinted(transport: Transport, now: Instant) -> Transport:
    """The gateway answered that it holds no binding: reachable, but only for a reattach."""
    return _turn(replace(transport, validated_at=now, heard_at=now, needs_epoch=True), Condition.GOOD, now)


def standby_answered(transport: Transport, rtt_ns: int, now: Instant) -> Transport:
    """Another gateway than the session's own answered a probe: reachable, but only for a reattach.

    Nobody else measures a transport that no session uses, so its round-trip time is smoothed here (RFC 6298).
    """
    if transport.rtt_ns:
        deviation = (3 * transport.rtt_dev_ns + abs(transport.rtt_ns - rtt_ns)) // 4
        rtt_ns = (7 * transport.rtt_ns + rtt_ns) // 8
    else:
        deviation = rtt_ns // 2
    return hinted(replace(transport, rtt_ns=rtt_ns, rtt_dev_ns=deviation), now)


def measured(transport: Transport, rtt_ns: int, rtt_dev_ns: int, loss_up: float, loss_down: float) -> Transport:
    """New figures from probes and reports."""
    return replace(transport, rtt_ns=rtt_ns, rtt_dev_ns=rtt_dev_ns, loss_up=loss_up, loss_down=loss_down)


def fell_silent(transport: Transport, now: Instant) -> Transport:
    """It owes reports, or the answer to a challenge, beyond the limit."""
    lost = transport.condition in (Condition.DEAD, Condition.GONE)
    return transport if lost else _turn(transport, Condition.SILENT, now)


def died(transport: Transport, now: Instant, policy: SwitchingPolicy) -> Transport:
    """Silent beyond the dead limit, or an attempt on it failed."""
    return transport if transport.condition is Condition.GONE else _fail(transport, Condition.DEAD, now, policy)


def hoped_for(transport: Transport, now: Instant) -> Transport:
    """Nothing is known of it any more: worth one attempt."""
    return transport if transport.condition is Condition.GONE else _turn(transport, Condition.CANDIDATE, now)


def heard(transport: Transport, now: Instant) -> Transport:
    """What it owed has been reported."""
    if transport.condition is Condition.GONE:
        return transport
    return _turn(replace(transport, heard_at=now), Condition.GOOD, now)


def _turn(transport: Transport, condition: Condition, now: Instant) -> Transport:
    if transport.condition is condition:
        return transport
    failing = condition in (Condition.SILENT, Condition.DEAD)
    began = (transport.failed_at or now) if failing else None
    return replace(transport, condition=condition, since=now, failed_at=began)


def _fail(transport: Transport, condition: Condition, now: Instant, policy: SwitchingPolicy) -> Transport:
    was_good = transport.condition in (Condition.GOOD, Condition.SILENT) and transport.heard_at is not None
    penalty = transport.penalty.flapped(now, policy) if was_good else transport.penalty
    return _turn(replace(transport, penalty=penalty), condition, now)
