"""One session at the gateway: its seat, its device, and what is known of the client's paths."""

from __future__ import annotations

from dataclasses import dataclass, field

from jumpvpn.engine.inputs import TakeoverAsked
from jumpvpn.engine.liveness import Liveness, liveness_of
from jumpvpn.engine.outputs import Output
from jumpvpn.engine.seat import Seat
from jumpvpn.session.events import OwnerChanged
from jumpvpn.session.state import Session
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import Instant, TransportId


@dataclass(slots=True)
class Place:
    """One session at the gateway: its seat, its device, and the client's paths as seen from here.

    ``claim`` is the change of owner that this process must record before it acts for a session of before it; until
    then ``claimant`` is the request that asked for it, if one did.
    ``age_guessed``: the session is as old as wall clocks say, until its client has said how old it is.
    ``asked_age_ms`` is the newest age (ms) that a request of the client named: an older one could be a copy.
    """

    seat: Seat
    device: bytes = field(repr=False)
    birth_peer: str = ""
    transports: dict[TransportId, Transport] = field(default_factory=dict)
    liveness: dict[TransportId, Liveness] = field(default_factory=dict)
    request: int | None = None  # the reattach request that the pending turn grants
    granted: Transport | None = None  # the granted transport as it was before: a commit that fails leaves it so
    claim: OwnerChanged | None = None
    claimant: TakeoverAsked | None = None
    age_guessed: bool = False
    asked_age_ms: int = 0
    challenged_at: Instant = Instant(0)

    def see(self, transport: TransportId, peer: str, now: Instant) -> Transport:
        """The client's path as known here; a path never seen before begins as a candidate."""
        known = self.transports.get(transport)
        if known is None:
            known = Transport(transport, "", "udp", "", peer, since=now, condition=Condition.CANDIDATE)
            self.transports[transport] = known
        return known

    def validate(self, known: Transport, peer: str, rtt_ns: int, now: Instant) -> None:
        """``known`` answered a challenge from ``peer``."""
        self.transports[known.id] = transport_facts.validated(known, peer, rtt_ns, now)

    def incumbent(self, session: Session) -> Transport | None:
        """The path that was bound last, if this process has seen it."""
        return self.transports.get(session.incumbent) if session.incumbent is not None else None

    def tune(self, transport: TransportId, session: Session) -> list[Output]:
        """Tell the packet core the path's limits when they moved enough to matter."""
        known = self.transports[transport]
        wanted = liveness_of(session.policy, known.rtt_ns, known.rtt_dev_ns)
        before = self.liveness.get(transport)
        if before is not None and before.close_to(wanted):
            return []
        self.liveness[transport] = wanted
        return [wanted.order(session.uid, transport)]
