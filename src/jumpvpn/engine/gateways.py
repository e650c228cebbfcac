"""What the client knows of gateways as such: who wants to be left, who refused, and whom a silence puts in doubt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import MINUTE, SECOND, Instant, later, replace

DENIAL_WAIT = 5 * SECOND  # a gateway that denied is not asked again at once; doubled for each further denial
DENIAL_WAIT_MAX = MINUTE  # after that long its switch budget is free again


@dataclass(frozen=True, slots=True)
class Denial:
    """A gateway refused ``denials`` times in a row: it is not asked before ``until``.

    ``urgent``: nothing carried the session then. A refusal binds wishes longer than it binds need.
    """

    until: Instant
    denials: int
    urgent: bool


@dataclass(slots=True)
class Gateways:
    """By name; bounded by the transports that there are. ``draining`` have announced that they leave."""

    draining: set[str] = field(default_factory=set)
    denied: dict[str, Denial] = field(default_factory=dict)

    def drains(self, gateway: str, *, on: bool) -> None:
        """``gateway`` announced that it leaves, or took that back."""
        if on:
            self.draining.add(gateway)
        else:
            self.draining.discard(gateway)

    def refused(self, gateway: str, now: Instant, *, urgent: bool) -> None:
        """``gateway`` refused: it is not asked again for a while, longer each time."""
        before = self.denied.get(gateway)
        count = before.denials if before is not None else 0
        until = later(now, min(DENIAL_WAIT * 2**count, DENIAL_WAIT_MAX))
        self.denied[gateway] = Denial(until, count + 1, urgent)

    def granted(self, gateway: str) -> None:
        """``gateway`` granted a reattach: its refusals count no more, and what it announced before neither."""
        self.denied.pop(gateway, None)
        self.draining.discard(gateway)

    def bound(self) -> None:
        """The session is bound: no refusal of before binds need."""
        self.denied = {gateway: replace(denial, urgent=False) for gateway, denial in self.denied.items()}

    def denied_until(self, gateway: str) -> Instant:
        """When ``gateway`` may be asked again; it may have passed."""
        denial = self.denied.get(gateway)
        return denial.until if denial is not None else Instant(0)

    def is_denied(self, gateway: str, now: Instant, *, bound: bool) -> bool:
        """Whether the last refusal of ``gateway`` still counts for a session that is ``bound`` or in need."""
        denial = self.denied.get(gateway)
        return denial is not None and now < denial.until and (bound or denial.urgent)

    def is_avoided(self, gateway: str, now: Instant) -> bool:
        """Whether any other gateway is to be preferred: this one leaves, or it has just refused."""
        return gateway in self.draining or now < self.denied_until(gateway)

    def forget(self, known: set[str], here: set[str]) -> None:
        """Transports are ``known`` of these gateways, and lead ``here`` now: what others announced is out of date.

        While nothing leads anywhere, nobody can announce anything.
        """
        self.denied = {gateway: denial for gateway, denial in self.denied.items() if gateway in known}
        if here:
            self.draining &= here


def is_stale(transport: Transport, incumbent: Transport | None) -> bool:
    """Whether a standby at another gateway was proven only before its network fell silent.

    It has to answer again, which takes a round trip: else each gap in a network would move the session.
    """
    if incumbent is None or incumbent.failed_at is None or not transport.validated:
        return False
    shared = transport.interface == incumbent.interface and transport.gateway != incumbent.gateway
    return shared and not _heard_since(transport, incumbent)


def failures(transports: Iterable[Transport], incumbent: Transport | None) -> tuple[Transport, ...]:
    """The transports that failed lately, of ``transports`` that were tried and of the ``incumbent``.

    Before the session exists (no incumbent) whatever was tried counts: nothing else shows that it does not answer.
    """
    tried = [t for t in transports if t.condition is not Condition.GONE]
    if incumbent is None:
        return tuple(tried)
    failed = [t for t in tried if t.failed_at is not None and t.id != incumbent.id]
    return (*failed, incumbent) if incumbent.failed_at is not None else tuple(failed)


def doubt(transport: Transport, failed: tuple[Transport, ...], incumbent: Transport | None) -> int:
    """How many of ``failed`` suggest that ``transport`` fails as well, because it shares network or gateway with them.

    The incumbent's silence alone is held against its network, not against its gateway: a change of gateway costs a
    takeover, and networks fail more often. What was heard since then is in no doubt.
    """
    others = [f for f in failed if f.id != transport.id and not _heard_since(transport, f)]
    at_gateway = [f for f in others if f.gateway == transport.gateway]
    if incumbent is not None and at_gateway == [incumbent]:
        at_gateway = []
    return len(at_gateway) + sum(f.interface == transport.interface and f.gateway != transport.gateway for f in others)


def _heard_since(transport: Transport, failed: Transport) -> bool:
    heard, since = transport.heard_at, failed.failed_at
    return heard is not None and since is not None and heard >= since
