"""What follows from where the session is: which event to feed next, and when time alone changes the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jumpvpn.engine import outputs as out
from jumpvpn.engine.book import TransportBook
from jumpvpn.engine.liveness import CHALLENGE_AGAIN
from jumpvpn.engine.seat import Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Candidate, Choice, Nothing, Refused, Selected, Wish, choose, is_better
from jumpvpn.session import events as ev
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Attempt, AttemptKind, Session, State
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Instant, TransportId, later, milliseconds, replace

PROMPT_TRIES = 2  # attempts without patience; once more transports that answered failed, wait 2, 4, 8 ... s
BLIND_WAIT = 4 * SECOND  # doubled per attempt: then even a transport that answers no probe is tried, because a gateway
# whose confirmation was lost has moved on to an epoch in which it cannot open our probes
PATIENCE_MAX = MINUTE  # the longest wait between two attempts
REPEAT_WAIT = 100 * MILLISECOND  # so long after the first request the shell sends it again
REKEY_WAIT = 30 * SECOND  # the packet core gives an unanswered rekey up after 16 s


@dataclass(frozen=True, slots=True)
class Proof:
    """A challenge answered in this very turn: fresh enough to settle a revalidation."""

    transport: TransportId
    peer: str
    rtt_ns: int


class Plans:
    """Plans of the running client: they die with it. Fed by the engine, which tells what was refused and let down."""

    def __init__(self, book: TransportBook) -> None:
        self._book = book
        self.let_down = 0  # attempts of this episode that failed on transports which answered challenges
        self.corrected = False  # the gateway's refusal told what the next request has to name
        self.unstable_at = Instant(0)
        self.bound_path: int | None = None
        self.rekey_asked: Instant | None = None
        self._challenged_at: dict[TransportId, Instant] = {}

    def next_event(self, session: Session, now: Instant, proof: Proof | None) -> ev.Event | None:
        """The one event that follows from the present facts; None when the session is at rest."""
        bound = session.binding
        if bound is not None and session.state.live and self._book.is_lost(bound.transport):
            return ev.TransportDied(bound.transport, "lost")
        match session.state:
            case State.ATTACHED:
                return self._attached_plan(session, now)
            case State.VOLATILE:
                return self._volatile_plan(session, now)
            case State.RECOVERING:
                return self._recovering_plan(session, now, proof)
            case State.DEGRADED:
                return self._degraded_plan(session, now)
            case _:
                return None

    def bound(self, path: int | None) -> None:
        """The session is bound to ``path``; what let it down before is forgotten."""
        self.bound_path, self.let_down = path, 0
        self._book.gateways.bound()

    @property
    def denied_until(self) -> Instant:
        """When the first of the gateways that refused may be asked again; it may have passed."""
        return min((denial.until for denial in self._book.gateways.denied.values()), default=Instant(0))

    def _attached_plan(self, session: Session, now: Instant) -> ev.Event | None:
        assert session.binding is not None
        active = self._book.transports[session.binding.transport]
        if not self._book.allowed(active, session.policy):
            return ev.SwitchForced(Reason.POLICY_FORCED)
        if active.condition is Condition.SILENT:
            return ev.InstabilitySeen(active.id, Reason.PROBE_TIMEOUT)
        if self.may_leave(session, now):
            return ev.SwitchForced(Reason.GATEWAY_DRAIN)
        target = self.failback_target(session, active, now)
        return ev.SwitchForced(Reason.FAILBACK, target) if target is not None else None

    def may_leave(self, session: Session, now: Instant) -> bool:
        """Whether the session's own gateway wants to be left, and a proven transport to another one may be taken."""
        if self._book.home(session) not in self._book.gateways.draining:
            return False
        found = self._book.candidates(session.policy, session.tried, now, session)
        proven = (c for c in found if c.away and c.usable and c.validated and c.allowed and not c.avoided)
        return any(self.switch_refusal(session, c.id, now) is None for c in proven)

    def failback_target(self, session: Session, active: Transport, now: Instant) -> TransportId | None:
        """The preferred transport that has been stable long enough to return to, or None."""
        patience = session.policy.switching.failback
        if patience == "never":
            return None
        mine = self._book.rank(active, session.policy)
        better = [
            t for t in self._book.transports.values() if t.validated and self._book.rank(t, session.policy) < mine
        ]
        bound_for = now - session.binding.since if session.binding is not None else 0
        ripe = [t for t in better if min(t.stable_for(now), bound_for) >= patience and self._holds(t, session)]

        def rank(t: Transport) -> tuple[int, bool, str]:
            return self._book.rank(t, session.policy), self._book.is_away(t, session), t.id

        for transport in sorted(ripe, key=rank):
            if self.switch_refusal(session, transport.id, now) is None:
                return transport.id
        return None

    def _holds(self, transport: Transport, session: Session) -> bool:
        """Whether the gateway behind ``transport`` stays and would serve a session that returns to it."""
        if transport.gateway in self._book.gateways.draining:
            return False
        return self._book.is_away(transport, session) or not transport.needs_epoch

    def switch_refusal(self, session: Session, target: TransportId, now: Instant) -> tuple[str, dict[str, Any]] | None:
        """Why an operator's switch to ``target`` would be refused now, or None."""
        if session.binding is not None and session.binding.transport == target:
            return Reason.INVALID_TRANSPORT_CANDIDATE.value, {"to_id": target, "rule": "already active"}
        if session.state not in (State.ATTACHED, State.VOLATILE):
            return Reason.INVALID_TRANSPORT_CANDIDATE.value, {"to_id": target, "rule": f"state {session.state.value}"}
        known = self._book.transports.get(target)
        denied_until = self._book.gateways.denied_until(known.gateway) if known is not None else Instant(0)
        if now < denied_until:
            left_ms = milliseconds(denied_until - now)
            detail = {"to_id": target, "rule": "denied by the gateway", "cooldown_left_ms": left_ms}
            return Reason.COOLDOWN_ACTIVE.value, detail
        wish = Wish(urgent=False, incumbent=session.incumbent, target=target, exclude_incumbent=True)
        found = self._book.candidates(session.policy, session.tried, now, session)
        choice = choose(found, wish, session.budget, session.policy, now)
        if isinstance(choice, Refused):
            return choice.rule, {"to_id": target, **choice.detail}
        if isinstance(choice, Nothing):
            return Reason.NO_CANDIDATE_TRANSPORTS.value, {"to_id": target, "candidate_count": 0}
        return None

    def _volatile_plan(self, session: Session, now: Instant) -> ev.Event | None:
        if session.binding is None:
            assert session.incumbent is not None
            return ev.TransportDied(session.incumbent, "binding_cleared")
        if not self._book.allowed(self._book.transports[session.binding.transport], session.policy):
            return ev.SwitchForced(Reason.POLICY_FORCED)
        if self.may_leave(session, now):
            return ev.SwitchForced(Reason.GATEWAY_DRAIN)
        active = self._book.transports[session.binding.transport]
        incumbent = self._book.candidate(active, session.policy, (), now, session)
        for candidate in self._book.candidates(session.policy, session.tried, now, session):
            if candidate.id != incumbent.id and _beats(candidate, incumbent, session.policy):
                return ev.BetterCandidateSeen(candidate.id, {"rtt_p95_ms": milliseconds(candidate.rtt_ns)})
        due = self.stable_at(session)
        return ev.TransportStabilized(incumbent.id) if due is not None and now >= due else None

    def stable_at(self, session: Session) -> Instant | None:
        """When the incumbent will have been good for the stability window (doubled per re-entry), or None."""
        if session.state is not State.VOLATILE or session.binding is None:
            return None
        active = self._book.transports[session.binding.transport]
        if not active.validated or self.threshold_crossed(active, session.policy) is not None:
            return None
        window = session.policy.volatility.stability_after(len(session.volatile_entries))
        return later(max(active.since, self.unstable_at, session.entered_at), window)

    def threshold_crossed(self, transport: Transport, policy: Policy) -> Reason | None:
        """Which quality threshold of the policy the transport's figures cross, or None."""
        if transport.loss > policy.volatility.loss_threshold:
            return Reason.LOSS_THRESHOLD_EXCEEDED
        limit = policy.volatility.latency_p95
        slow = transport.rtt_ns + 2 * transport.rtt_dev_ns  # 95 % of a normal distribution lies below two deviations
        return Reason.LATENCY_THRESHOLD_EXCEEDED if limit != "off" and slow > limit else None

    def _recovering_plan(self, session: Session, now: Instant, proof: Proof | None) -> ev.Event | None:
        attempt = session.attempt
        if attempt is None:
            return self._next_attempt(session, now)
        if attempt.kind is AttemptKind.REVALIDATE and proof is not None and proof.transport == attempt.transport:
            return ev.IncumbentRevalidated(proof.transport, proof.peer, proof.rtt_ns)
        return None

    def _next_attempt(self, session: Session, now: Instant) -> ev.Event:
        choice = self.choose(session, now)
        if isinstance(choice, Nothing):
            return ev.NoCandidate(choice.considered)
        if isinstance(choice, Refused):
            return ev.SwitchDenied(Reason(choice.rule), choice.detail)
        kind = AttemptKind.REVALIDATE if self._can_revalidate(session, choice.transport) else AttemptKind.SWITCH
        deadline = later(now, self._attempt_time(session, choice.transport, now))
        return ev.AttemptStarted(kind, choice.transport, deadline, measured=choice.measured)

    def _attempt_time(self, session: Session, transport: TransportId, now: Instant) -> int:
        """How long (ns) an attempt may take.

        After a silence nobody knows whether network or gateway is gone: the session's own gateway is asked over another
        network first, and once more, but not longer where another gateway is ready.
        """
        longest = min(session.policy.recovery.attempt_timeout, session.policy.recovery.window)
        known = self._book.transports[transport]
        if not known.rtt_ns or self._book.is_away(known, session) or not self._book.fell_silent(session):
            return longest
        others = self._book.candidates(session.policy, session.tried, now, session)
        ready = any(c.away and c.usable and c.validated and c.allowed and not (c.tried or c.avoided) for c in others)
        answer = known.rtt_ns + 4 * known.rtt_dev_ns + session.policy.volatility.silence_margin
        return min(longest, REPEAT_WAIT + answer) if ready else longest

    def choose(self, session: Session, now: Instant, hoped: tuple[Transport, ...] = ()) -> Choice:
        """What the next attempt would be for: selection's answer, the incumbent first where it may prove itself.

        ``hoped`` are transports as they would be if they were worth an attempt.
        """
        wish = session.want
        target = wish.target if wish is not None else None
        unwanted = wish is not None and wish.avoid_incumbent
        found = self._book.candidates(session.policy, session.tried, now, session, hoped)
        candidates = tuple(c for c in found if self._may_ask(session, c, now))
        incumbent = next((c for c in candidates if c.id == session.incumbent), None)
        asked = Wish(urgent=session.binding is None, incumbent=session.incumbent, target=target)
        if incumbent is None or session.binding is None or target is not None:
            return choose(candidates, replace(asked, exclude_incumbent=unwanted), session.budget, session.policy, now)
        others = (c for c in candidates if c.id != incumbent.id and not c.tried)
        beaten = any(_beats(other, incumbent, session.policy) for other in others)
        if unwanted or beaten:
            elsewhere = replace(asked, exclude_incumbent=True)
            choice = choose(candidates, elsewhere, session.budget, session.policy, now)
            if unwanted or isinstance(choice, Selected):
                return choice
        if not incumbent.tried and self._within_policy(session, incumbent):
            return Selected(incumbent.id, "incumbent_within_policy", figures(self._book.transports[incumbent.id]))
        return choose(candidates, asked, session.budget, session.policy, now)

    def _may_ask(self, session: Session, candidate: Candidate, now: Instant) -> bool:
        """Whether its gateway's last refusal, or the wish to leave a gateway, leaves ``candidate`` in question."""
        if self._can_revalidate(session, candidate.id):
            return True
        bound, wish = session.binding is not None, session.want
        if bound and wish is not None and wish.cause is Reason.GATEWAY_DRAIN:
            return candidate.away and not candidate.avoided
        gateway = self._book.transports[candidate.id].gateway
        return not self._book.gateways.is_denied(gateway, now, bound=bound)

    def is_denied(self, session: Session, now: Instant) -> bool:
        """Whether some gateway's last refusal still counts: it binds wishes longer than it binds need."""
        gateways = self._book.gateways
        return any(gateways.is_denied(name, now, bound=session.binding is not None) for name in gateways.denied)

    def _within_policy(self, session: Session, incumbent: Candidate) -> bool:
        known = self._book.transports[incumbent.id]
        good = incumbent.allowed and self._can_revalidate(session, incumbent.id)
        return good and self.threshold_crossed(known, session.policy) is None

    def _can_revalidate(self, session: Session, transport: TransportId) -> bool:
        """Whether proof suffices: the gateway knows only the path that was bound, not a later socket's."""
        known = self._book.transports[transport]
        proven = known.validated and not known.needs_epoch
        return proven and transport == session.incumbent and known.path == self.bound_path

    def _degraded_plan(self, session: Session, now: Instant) -> ev.Event | None:
        bound = session.binding
        if bound is not None and not self._book.allowed(self._book.transports[bound.transport], session.policy):
            return ev.TransportDied(bound.transport, "policy")  # nothing else to go to: it must not carry on
        choice, hoped = self.degraded_choice(session, now)
        for known in hoped:
            self._book.keep(known)
        if isinstance(choice, Selected):
            due = self.try_at(session, choice.transport)
            if due is not None and now >= due:
                return ev.ConditionMet(choice.transport, choice.rule)
        return None

    def degraded_choice(self, session: Session, now: Instant) -> tuple[Choice, tuple[Transport, ...]]:
        """What DEGRADED would be left for, and the silent transports that this counts as worth one blind attempt."""
        anew = replace(session, tried=(), want=None)
        choice, blind_at = self.choose(anew, now), self.blind_at(session)
        forbidden = isinstance(choice, Refused) and choice.rule == Reason.POLICY_DENIED.value
        if not (forbidden or isinstance(choice, Nothing)) or blind_at is None or now < blind_at:
            return choice, ()
        allowed = (t for t in self._book.silent(session) if self._book.allowed(t, session.policy))
        hoped = tuple(transport_facts.hoped_for(t, now) for t in allowed)
        return self.choose(anew, now, hoped), hoped

    def forbids(self, session: Session, attempt: Attempt, now: Instant) -> bool:
        """Whether the policy in force no longer lets the running attempt succeed: its transport, or one switch more."""
        moves = attempt.kind is AttemptKind.SWITCH and attempt.transport != session.incumbent
        spent = moves and session.budget.used(now) >= session.policy.switching.max_per_minute
        return spent or not self._book.allowed(self._book.transports[attempt.transport], session.policy)

    def try_at(self, session: Session, transport: TransportId) -> Instant | None:
        """When DEGRADED may be left for ``transport``: at once, patiently if attempts failed before, or never."""
        known = self._book.transports[transport]
        if self.corrected or self._can_revalidate(session, transport) or session.attempts <= PROMPT_TRIES:
            return session.entered_at
        if not known.validated:
            return self.blind_at(session)
        patience = SECOND * 2 ** (self.let_down - PROMPT_TRIES) if self.let_down > PROMPT_TRIES else 0
        denied_until = self._book.gateways.denied_until(known.gateway)
        return max(later(session.entered_at, min(patience, PATIENCE_MAX)), denied_until)

    def blind_at(self, session: Session) -> Instant | None:
        """When to try without evidence; the last attempt is kept for a transport that answers, while there is time."""
        left = session.policy.recovery.max_attempts - session.attempts
        if session.binding is not None or left < 1:
            return None
        if left == 1:  # the end would waste it: a gateway in a newer epoch answers nothing but a request
            return max(session.entered_at, later(_end_of_waiting(session), -session.policy.recovery.window))
        silent = {t.gateway for t in self._book.silent(session)} or {t.gateway for t in self._book.transports.values()}
        denied_until = min(map(self._book.gateways.denied_until, silent), default=Instant(0))
        if denied_until > session.entered_at:  # the gateway answers requests, so patience is what it asked for
            return denied_until
        return later(session.entered_at, min(BLIND_WAIT * 2 ** max(0, session.attempts - 1), PATIENCE_MAX))

    def doubt_unanswered(self, turn: Turn) -> None:
        """A transport on which an attempt ran out of time has to answer before the next: trying on proves nothing."""
        while turn.unanswered:
            attempt = turn.unanswered.pop()
            known = self._book.transports[attempt.transport]
            if not known.usable:
                continue
            self.let_down += known.validated
            if attempt.kind is AttemptKind.SWITCH:
                self._book.transports[known.id] = transport_facts.died(known, turn.now, turn.session.policy.switching)
            else:
                self._book.transports[known.id] = transport_facts.fell_silent(known, turn.now)
            turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))

    def ask_elsewhere(self, turn: Turn) -> None:
        """The bound transport fell silent: ask standbys at other gateways whether it is that gateway's fault."""
        for known in sorted(self._book.transports.values(), key=lambda t: t.id):
            if known.validated and known.path is not None and self._book.is_away(known, turn.session):
                turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))

    def challenge_silent(self, turn: Turn) -> None:
        """In DEGRADED, ask transports that are not usable whether they are back."""
        if turn.session.state is not State.DEGRADED:
            self._challenged_at.clear()
            return
        for known in self._book.silent(turn.session):
            if turn.now >= self.challenge_due(known):
                self._challenged_at[known.id] = turn.now
                turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))

    def challenge_due(self, known: Transport) -> Instant:
        """When a transport that fell silent is asked again, while DEGRADED."""
        last = self._challenged_at.get(known.id)
        return known.since if last is None else later(last, CHALLENGE_AGAIN)

    def rekey_if_due(self, turn: Turn) -> None:
        """Ask for fresh keys when they are old enough, and again when the last exchange was given up."""
        if turn.session.state is State.ATTACHED and turn.now >= self.rekey_due(turn.session):
            self.rekey_asked = turn.now
            turn.outputs.append(out.AskRekey())

    def rekey_due(self, session: Session) -> Instant:
        """When fresh keys are asked for (again)."""
        if self.rekey_asked is not None:
            return later(self.rekey_asked, REKEY_WAIT)
        return later(session.keys_at, session.policy.security.rekey_after)

    def waits(self, session: Session, seen: Instant) -> list[Instant]:
        """Moments at which time alone may change a decision; those that have passed do no harm."""
        moments = [*self._book.reopen_at.values(), *(denial.until for denial in self._book.gateways.denied.values())]
        stable_at = self.stable_at(session)
        if stable_at is not None:
            moments.append(stable_at)
        if session.state is State.DEGRADED:
            moments += self._degraded_waits(session, seen)
        if session.state is State.ATTACHED:
            moments += [*self._failback_waits(session), self.rekey_due(session)]
        if self._book.home(session) in self._book.gateways.draining:
            others = [t for t in self._book.transports.values() if self._book.is_away(t, session)]
            moments += self._lifts(session, others)
        return moments

    def _failback_waits(self, session: Session) -> list[Instant]:
        patience = session.policy.switching.failback
        better = [t for t in self._book.transports.values() if t.validated and self._ranks_above(t, session)]
        if patience == "never" or not better:
            return []
        since = [session.entered_at, *(t.since for t in better)]
        return [*(later(at, patience) for at in since), *self._lifts(session, better)]

    def _lifts(self, session: Session, wanted: list[Transport]) -> list[Instant]:
        """When what forbids a switch to one of ``wanted`` may pass."""
        reuse = [t.penalty.reuse_at(session.policy.switching) for t in wanted]
        lifts = [session.hold_until, *reuse, *(later(at, MINUTE) for at in session.switches)]
        return [at for at in lifts if at is not None]

    def _ranks_above(self, transport: Transport, session: Session) -> bool:
        assert session.binding is not None
        mine = self._book.rank(self._book.transports[session.binding.transport], session.policy)
        return self._book.rank(transport, session.policy) < mine

    def _degraded_waits(self, session: Session, seen: Instant) -> list[Instant]:
        moments = [self.challenge_due(known) for known in self._book.silent(session)]
        choice = self.choose(replace(session, tried=(), want=None), seen)
        if isinstance(choice, Refused):
            moments.append(choice.retry_at or session.entered_at)
        due = self.try_at(session, choice.transport) if isinstance(choice, Selected) else self.blind_at(session)
        return moments if due is None else [*moments, due]


def _beats(candidate: Candidate, incumbent: Candidate, policy: Policy) -> bool:
    """Whether ``candidate`` is worth leaving a living binding for: not if its gateway would rather be left."""
    return not (candidate.away and candidate.avoided) and is_better(candidate, incumbent, policy)


def _end_of_waiting(session: Session) -> Instant:
    """When a session without binding ends, if nothing comes: transport TTL or episode, whichever is first."""
    assert session.transportless_at is not None, "the clock runs while no binding lives"
    assert session.episode_at is not None, "a session without binding is in an episode"
    episode = later(session.episode_at, session.policy.recovery.episode_max)
    return min(later(session.transportless_at, session.policy.session.transport_ttl), episode)


def figures(transport: Transport) -> dict[str, Any]:
    """What was measured of a transport, for an event."""
    return {
        "loss_ratio": round(transport.loss, 4),
        "rtt_p95_ms": milliseconds(transport.rtt_ns + 2 * transport.rtt_dev_ns),
        "jitter_ms": milliseconds(transport.rtt_dev_ns),
    }
