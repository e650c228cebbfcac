"""What happened in a run, line by line: faults with their virtual times, changes of both ends with their reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jumpvpn.sim.world import START
from jumpvpn.values import SECOND, DomainEvent

if TYPE_CHECKING:
    from jumpvpn.sim.run import Run

_TOLD = frozenset(
    {"session.created", "session.state_change", "transport.dead", "transport.switch_denied", "transport.switch_failed",
     "reattach.attempt", "reattach.result", "ownership.acquired", "ownership.rejected", "ownership.store_unavailable",
     "key.rotated", "policy.applied", "security.replay_detected", "security.validation_failed"}
)  # fmt: skip


def transcript(run: Run) -> Iterator[str]:
    """Lines in order of time; equal seeds give equal bytes."""
    yield f"seed {run.seed}: {run.trouble.theme}; {run.profile.text}"
    faults = [(at, 0, f"fault    {words}") for at, words in run.trouble.log]
    events = [
        (at, 1, f"{side:<8} {_words(event)}") for side, at, event in run.world.events if event.name in _TOLD
    ]  # fmt: skip
    for at, _, words in sorted([*faults, *events], key=lambda line: line[:2]):
        yield f"{(at - START) / SECOND:10.3f} s  {words}"
    states = " and ".join(run.world.states())
    yield f"{(run.world.now - START) / SECOND:10.3f} s  client and gateway are {states}"


def _words(event: DomainEvent) -> str:
    which = f"{(event.session or '-')[:4]} v{event.state_version}"
    if event.name == "session.state_change":
        return f"{which} {event.prev_state} > {event.state}: {event.reason}"
    on = f" on {event.transport.id}" if event.transport is not None else ""
    told = {"status", "step", "kind", "epoch", "rule", "by", "evidence", "nonce_id", "cooldown_left_ms"}
    details = " ".join(f"{name}={value}" for name, value in event.data.items() if name in told)
    reason = f": {event.reason}" if event.reason is not None else ""
    return f"{which} {event.name}{on}{reason} {details}".rstrip()
