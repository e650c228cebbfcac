"""Which transport next: filter, rank, decide. Deterministic, and every answer names the rule that decided."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from jumpvpn.policy.model import Policy
from jumpvpn.values import MINUTE, Instant, TransportId, dataclass, milliseconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """What selection knows of one transport. ``rank`` is the place in ``transports.prefer`` (0 is best).

    ``away``: it leads to another gateway than the session's own. ``avoided``: its gateway leaves, or has just refused.
    ``doubt``: how many failures of others suggest that this one fails as well.
    """

    id: TransportId
    allowed: bool
    usable: bool
    validated: bool
    suppressed: bool = False
    reuse_at: Instant | None = None
    tried: bool = False
    rank: int = 0
    loss: float = 0.0
    rtt_ns: int = 0
    stable_ns: int = 0
    away: bool = False
    avoided: bool = False
    doubt: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The switch limits as they stand."""

    switches: tuple[Instant, ...]
    hold_until: Instant | None

    def used(self, now: Instant) -> int:
        """Switches within the last 60 s."""
        return sum(1 for instant in self.switches if now - instant < MINUTE)

    def frees_at(self, now: Instant) -> Instant | None:
        """When the oldest switch of the last 60 s no longer counts; None if there is none."""
        oldest = min((instant for instant in self.switches if now - instant < MINUTE), default=None)
        return Instant(oldest + MINUTE) if oldest is not None else None

    def hold_left(self, now: Instant) -> int:
        """Hold-down still to wait (ns)."""
        return max(0, self.hold_until - now) if self.hold_until is not None else 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked: any good transport, or ``target`` only; ``urgent`` when nothing carries the session."""

    urgent: bool
    incumbent: TransportId | None = None
    target: TransportId | None = None
    exclude_incumbent: bool = False


@dataclass(frozen=True, slots=True)
class Selected:
    """This one, because of ``rule``."""

    transport: TransportId
    rule: str
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate exists, but ``rule`` forbids the switch now; ``retry_at`` when time alone lifts it."""

    rule: str  # policy_denied | switch_rate_limited | cooldown_active
    detail: dict[str, Any]
    retry_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class Nothing:
    """No usable transport among ``considered``."""

    considered: int


Choice = Selected | Refused | Nothing


def choose(candidates: tuple[Candidate, ...], wish: Wish, budget: Budget, policy: Policy, now: Instant) -> Choice:
    """Decide between ``candidates``.

    Hold-down does not delay leaving a dead transport for a validated standby; the rate limit always counts, except for
    the incumbent itself, because returning to it is no switch.
    """
    wanted = [c for c in candidates if _in_question(c, wish)]
    usable = [c for c in wanted if c.usable and not c.tried]
    allowed = [c for c in usable if c.allowed]
    if usable and not allowed:
        return Refused("policy_denied", {"candidate_count": len(usable), "rule": "transports.allow/deny"})
    if not allowed:
        return Nothing(len(wanted))
    calm = _unsuppressed(allowed, wish)
    if not calm:
        return _suppressed(allowed)
    best = min(calm, key=lambda c: rank_key(c, now))
    if best.id != wish.incumbent:
        refusal = _limits(best, wish, budget, policy, now, len(allowed))
        if refusal is not None:
            same = next((c for c in calm if c.id == wish.incumbent), None)
            return refusal if same is None else _selected(same, "incumbent_while_limited")
    return _selected(best, "only_candidate" if len(allowed) == 1 else "ranked")


def rank_key(candidate: Candidate, _now: Instant) -> tuple[Any, ...]:
    """Validated first, then policy preference, loss, latency, longest stability, lowest identifier.

    Gateways that leave come last, then whatever recent failures cast doubt on. Among what policy ranks alike, the
    session's own gateway is preferred: another one costs a takeover.
    """
    loss = round(candidate.loss, 2)  # a hundredth of loss is below what two seconds of probes can tell
    rtt_ms = candidate.rtt_ns // 1_000_000
    shunned = (not candidate.validated, candidate.avoided, candidate.doubt)
    return (*shunned, candidate.rank, candidate.away, loss, rtt_ms, -candidate.stable_ns, candidate.id)


def is_better(candidate: Candidate, incumbent: Candidate, policy: Policy) -> bool:
    """Whether ``candidate`` beats an unstable incumbent by more than the hysteresis."""
    if not (candidate.validated and candidate.allowed):
        return False
    if not incumbent.usable:
        return True
    margin = policy.switching.hysteresis
    mine, theirs = (1 + candidate.loss) * candidate.rtt_ns, (1 + incumbent.loss) * incumbent.rtt_ns
    much_loss_less = incumbent.loss - candidate.loss > policy.volatility.loss_threshold / 2
    return much_loss_less or (candidate.rtt_ns > 0 and mine * margin < theirs)


def _in_question(candidate: Candidate, wish: Wish) -> bool:
    if wish.target is not None and candidate.id != wish.target:
        return False
    return not (wish.exclude_incumbent and candidate.id == wish.incumbent)


def _unsuppressed(allowed: list[Candidate], wish: Wish) -> list[Candidate]:
    """Flapping transports come last: they serve only when nothing else does and nothing carries the session.

    Staying on an incumbent that carries the session is no switch, so its flaps do not count.
    """
    calm = [c for c in allowed if not c.suppressed or (c.id == wish.incumbent and not wish.urgent)]
    return calm if calm or not wish.urgent else allowed


def _suppressed(flapping: list[Candidate]) -> Refused:
    """All candidates flap: the switch waits for the first that is calm again."""
    times = [c.reuse_at for c in flapping if c.reuse_at is not None]
    detail = {"candidate_count": len(flapping), "to_id": min(c.id for c in flapping), "rule": "switching.flap_suppress"}
    return Refused("cooldown_active", detail, min(times, default=None))


def _limits(best: Candidate, wish: Wish, budget: Budget, policy: Policy, now: Instant, count: int) -> Refused | None:
    used, limit = budget.used(now), policy.switching.max_per_minute
    detail = {"candidate_count": count, "to_id": best.id, "switch_count_60s": used, "limit": limit}
    if used >= limit:
        return Refused("switch_rate_limited", detail, budget.frees_at(now))
    left = budget.hold_left(now)
    if left and not (wish.urgent and best.validated):
        detail["cooldown_left_ms"] = milliseconds(left)
        return Refused("cooldown_active", detail, Instant(now + left))
    return None


def _selected(candidate: Candidate, rule: str) -> Selected:
    measured = {
        "rule": rule,
        "loss_ratio": round(candidate.loss, 4),
        "rtt_ms": milliseconds(candidate.rtt_ns),
        "stable_ms": milliseconds(candidate.stable_ns),
    }
    return Selected(candidate.id, rule, measured)
