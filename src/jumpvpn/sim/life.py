"""One session at one end as its events tell it: clocks, counts and proofs that owe nothing to the machine's record."""

from __future__ import annotations

from dataclasses import dataclass, field

from jumpvpn.properties import Property
from jumpvpn.session.state import Session, State
from jumpvpn.sim.plane import NEVER
from jumpvpn.values import MINUTE, DomainEvent


@dataclass(slots=True)
class Life:
    """``record`` is what the store has; everything else is counted from events. Instants in ns."""

    side: str
    uid: str
    record: Session | None = None
    state: str = ""
    version: int = 0
    unbound_at: int | None = None
    episode_at: int | None = None
    tries: int = 0  # entries into RECOVERING in this episode
    switches: list[int] = field(default_factory=list)
    switch_limit: int = 0  # in force when the attempt under way was entered
    attempt: str | None = None  # transport of the attempt that has no result yet
    nonces: set[str] = field(default_factory=set)
    fails_until: int = 0  # a commit failed: until then the engine may wait before it tries again
    failing: bool = False  # the newest commit failed
    due: int = NEVER
    due_for: tuple[Property, str] = (Property.FINITE, "")

    @property
    def live(self) -> bool:
        """Whether it has been created and not ended."""
        return bool(self.state) and self.state != State.TERMINATED.value

    def spent(self, now: int) -> int:
        """Switches of the last 60 s."""
        self.switches = [at for at in self.switches if now - at < MINUTE]
        return len(self.switches)

    def moved(self, event: DomainEvent, now: int) -> None:
        """Follow one ``session.state_change``."""
        self.state = event.state or ""
        if event.prev_state == "ATTACHED":
            self.episode_at, self.tries = now, 0
        if self.state == "RECOVERING":
            self.tries += 1
        if self.state == "ATTACHED":
            self.episode_at = self.unbound_at = None
            self.tries = 0
        if event.prev_state == "RECOVERING":
            self.attempt = None

    def unbound(self, now: int) -> None:
        """The binding is gone; the clock starts unless it runs."""
        if self.unbound_at is None:
            self.unbound_at = now

    def look_ahead(self) -> None:
        """Which deadline of the record comes first."""
        session = self.record
        if session is None or not session.state.live:
            self.due = NEVER
            return
        self.due, prop, name = min(deadlines_of(session), key=lambda found: found[0])
        self.due_for = (prop, name)


def deadlines_of(session: Session) -> list[tuple[int, Property, str]]:
    """Every deadline of a live session: instant, the promise behind it, its key in the policy."""
    policy, finite = session.policy, Property.FINITE
    entered = session.entered_at
    found = [
        (session.born_at + policy.session.max_lifetime, finite, "session.max_lifetime"),
        (session.keys_at + policy.security.key_max_age, finite, "security.key_max_age"),
    ]
    if session.transportless_at is not None:
        found.append((session.transportless_at + policy.session.transport_ttl, finite, "session.transport_ttl"))
    if session.episode_at is not None:
        found.append((session.episode_at + policy.recovery.episode_max, finite, "recovery.episode_max"))
    if session.state is State.BIRTH:
        found.append((entered + policy.session.handshake_timeout, finite, "session.handshake_timeout"))
    if session.state is State.VOLATILE:
        found.append((entered + policy.volatility.volatile_max, Property.BOUNDED_RECOVERY, "volatility.volatile_max"))
    if session.state is State.RECOVERING:
        found.append((entered + policy.recovery.window, Property.BOUNDED_RECOVERY, "recovery.window"))
    return found
