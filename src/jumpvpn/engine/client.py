"""The client's engine: knows the transports, chooses among them, and carries the one session through their deaths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.liveness import Liveness, liveness_of, silence_reason
from jumpvpn.engine.outputs import Output
from jumpvpn.engine.seat import Seat, Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Budget, Candidate, Choice, Nothing, Refused, Selected, Wish, choose, is_better
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.validation import EPOCH_JUMP
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import (
    MILLISECOND,
    MINUTE,
    SECOND,
    DomainEvent,
    Epoch,
    Instant,
    Now,
    TransportId,
    TransportView,
    later,
    milliseconds,
)

BIRTH_PATH = 0  # wire format: the transport of the handshake is path 0 of epoch 1
PATHS_PER_EPOCH = 8  # wire format: a path index names one candidate instance in one epoch
DENIAL_WAIT = 5 * SECOND  # a gateway that denied is not asked again at once; doubled for each further denial
DENIAL_WAIT_MAX = MINUTE  # after that long its switch budget is free again
CHALLENGE_AGAIN = SECOND  # while DEGRADED, transports that fell silent are asked that often whether they are back
PROMPT_TRIES = 2  # attempts without patience; once more transports that answered failed, wait 2, 4, 8 ... s
BLIND_WAIT = 4 * SECOND  # doubled per attempt: then even a transport that answers no probe is tried, because a gateway
# whose confirmation was lost has moved on to an epoch in which it cannot open our probes
PATIENCE_MAX = MINUTE  # the longest wait between two attempts
REOPEN_WAIT = SECOND  # a socket that failed here is opened anew that much later: an address may still be tentative
REKEY_WAIT = 30 * SECOND  # the packet core gives an unanswered rekey up after 16 s
RETUNE_STEP = 5 * MILLISECOND  # a limit that moved less is not worth a call into the packet core


@dataclass(frozen=True, slots=True)
class Proof:
    """A challenge answered in this very turn: fresh enough to settle a revalidation."""

    transport: TransportId
    peer: str
    rtt_ns: int


class ClientEngine:
    """``handle(input, now) -> outputs``; deterministic; holds at most one session."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seat: Seat | None = None
        self.transports: dict[TransportId, Transport] = {}
        self._paths_used: set[int] = set()
        self._proposed = Epoch(0)
        self._token = b""
        self._denied_until = Instant(0)
        self._denials = 0
        self._denied_urgent = False
        self._let_down = 0  # attempts of this episode that failed on transports which answered challenges
        self._corrected = False  # the gateway's refusal told what the next request has to name
        self._unstable_at = Instant(0)
        self._liveness: dict[TransportId, Liveness] = {}
        self._rekey_asked: Instant | None = None
        self._bound_path: int | None = None
        self._reopen_at: dict[TransportId, Instant] = {}
        self._challenged_at: dict[TransportId, Instant] = {}

    # --- what the shell asks -----------------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The committed record, None before the gateway answered."""
        return self.seat.session if self.seat is not None else None

    def handle(self, event: Any, now: Now) -> list[Output]:
        """Apply one input; returns orders, commits first."""
        if isinstance(event, inp.CommitEnded):
            return self._commit_ended(event, now)
        if self.seat is None:
            return self._before_birth(event, now)
        if self.seat.pending is not None:
            self.seat.waiting.append(event)
            return []
        turn = self.seat.begin(now.boot)
        proof = self._apply(event, turn, now)
        return self._finish(turn, proof)

    def next_wakeup(self) -> Instant | None:
        """When the engine wants a ``Tick`` although nothing happened."""
        if self.seat is None:
            return min(self._reopen_at.values(), default=None)
        if self.seat.session.state is State.TERMINATED:
            return None
        return min(self.seat.wakeups(self._waits(self.seat.session)), default=None)

    def candidates(self, session: Session | None, now: Instant) -> tuple[Candidate, ...]:
        """All transports as selection sees them, in order of identifier."""
        policy = session.policy if session is not None else self.policy
        tried = session.tried if session is not None else ()
        return tuple(self._candidate(t, policy, tried, now) for _, t in sorted(self.transports.items()))

    def first_choice(self, now: Instant, tried: tuple[TransportId, ...]) -> Choice:
        """The transport for the handshake."""
        candidates = tuple(replace(c, tried=c.id in tried) for c in self.candidates(None, now))
        return choose(candidates, Wish(urgent=True), Budget((), None), self.policy, now)

    # --- birth -------------------------------------------------------------------------------------------------------

    def _before_birth(self, event: Any, now: Now) -> list[Output]:
        if isinstance(event, inp.TransportsChanged):
            return self._reachable_changed(event, None, now.boot)
        if isinstance(event, inp.HandshakeAnswered):
            return self._born(event, now)
        if isinstance(event, inp.HandshakeAbandoned):
            return self._stillborn(event, now)
        if isinstance(event, inp.SocketFailed) and event.local and event.transport in self.transports:
            self._socket_broke(self.transports[event.transport], now.boot)
        return self._open_again(None, now.boot)

    def _born(self, answer: inp.HandshakeAnswered, now: Now) -> list[Output]:
        first = birth(answer.session_id, Role.CLIENT, answer.policy, now.boot, answer.device)
        self.seat = Seat(first.session, seen=now.boot)
        turn = Turn(first.session, now.boot, None)
        turn.take(first)
        self._take_birth_path(answer.transport)
        transport = self.transports[answer.transport]
        if transport.condition is not Condition.GONE:
            self.transports[answer.transport] = transport_facts.validated(transport, answer.peer, 0, now.boot)
        completed = ev.HandshakeCompleted(answer.transport, answer.peer, Epoch(1), answer.peer_version)
        turn.feed(completed)
        self._proposed = Epoch(1)
        return self._finish(turn, None, [*self._tune_all(turn.session)])

    def _take_birth_path(self, transport: TransportId) -> None:
        """The handshake's transport gets the path index of birth; whoever held it takes over the other one."""
        mine = self.transports[transport].path
        for known in list(self.transports.values()):
            if known.path == BIRTH_PATH:
                self.transports[known.id] = replace(known, path=mine)
        self.transports[transport] = replace(self.transports[transport], path=BIRTH_PATH)
        self._paths_used.add(BIRTH_PATH)

    def _stillborn(self, abandoned: inp.HandshakeAbandoned, now: Now) -> list[Output]:
        """No gateway answered: the session that was wanted ends where it began, with its reason on record."""
        first = birth(abandoned.session_id, Role.CLIENT, self.policy, now.boot, abandoned.device)
        self.seat = Seat(first.session, seen=now.boot)
        turn = Turn(first.session, now.boot, None)
        turn.take(first)
        turn.feed(ev.HandshakeFailed(abandoned.reason))
        return self._finish(turn, None)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _apply(self, event: Any, turn: Turn, now: Now) -> Proof | None:
        match event:
            case inp.TransportsChanged():
                turn.outputs += self._reachable_changed(event, turn, now.boot)
            case inp.PathValidated():
                return self._path_validated(event, turn)
            case inp.PathMeasured():
                self._path_measured(event, turn)
            case inp.PathSilent() | inp.PathDead() | inp.PathHeard() | inp.Hinted() | inp.SocketFailed():
                self._liveness_fact(event, turn)
            case inp.ReattachAnswered():
                self._reattach_answered(event, turn, now)
            case inp.OperatorSwitch():
                self._operator_switch(event, turn)
            case inp.OperatorTerminate():
                turn.feed(ev.CloseRequested(Reason.OPERATOR_TERMINATED))
            case inp.PeerClosed():
                turn.feed(ev.CloseRequested(event.reason))
            case inp.PolicyOffered():
                self._policy_offered(event, turn)
            case inp.RekeyAnswered():
                self._rekeyed(event, turn)
            case _:
                turn.feed()
        return None

    def _reachable_changed(self, change: inp.TransportsChanged, turn: Turn | None, now: Instant) -> list[Output]:
        reachable = {seen.id: seen for seen in change.reachable}
        outputs: list[Output] = []
        for transport_id in sorted(set(self.transports) | set(reachable)):
            outputs += self._one_reachable(transport_id, reachable.get(transport_id), change, turn, now)
        return outputs

    def _one_reachable(
        self,
        transport_id: TransportId,
        seen: inp.Reachable | None,
        change: inp.TransportsChanged,
        turn: Turn | None,
        now: Instant,
    ) -> list[Output]:
        known = self.transports.get(transport_id)
        here = known is not None and known.condition is not Condition.GONE
        moved = here and seen is not None and known is not None and known.local != seen.local
        outputs: list[Output] = []
        if known is not None and here and (seen is None or moved):
            evidence = change.evidence.get(transport_id, "address" if moved else "link")
            outputs += self._gone(known, evidence, turn, now)
        if seen is not None and (not here or moved):
            outputs += self._appeared(seen, turn, now)
        return outputs

    def _gone(self, known: Transport, evidence: str, turn: Turn | None, now: Instant) -> list[Output]:
        self.transports[known.id] = transport_facts.vanished(known, now, self.policy.switching)
        self._liveness.pop(known.id, None)
        self._reopen_at.pop(known.id, None)
        if turn is not None:
            self._lost(known, evidence, 0, turn)
            self._note_candidate(turn, known.id, "removed", evidence)
        return [out.ClosePath(known.id, known.path)] if known.path is not None else []

    def _appeared(self, seen: inp.Reachable, turn: Turn | None, now: Instant) -> list[Output]:
        known = self.transports.get(seen.id)
        path = self._allocate_path(turn)
        fresh = Transport(
            id=seen.id, interface=seen.interface, protocol=seen.protocol, gateway=seen.gateway, peer=seen.peer,
            local=seen.local, path=path, since=now, condition=Condition.GONE,
        )  # fmt: skip
        if known is not None:
            fresh = replace(fresh, penalty=known.penalty)
        self.transports[seen.id] = transport_facts.appeared(fresh, now)
        if turn is not None:
            self._note_candidate(turn, seen.id, "added", "")
        if path is None:
            return []
        return [out.OpenPath(seen.id, path, seen.peer), *self._tune(self.transports[seen.id], turn)]

    def _allocate_path(self, turn: Turn | None) -> int | None:
        """A path index that this epoch has not used; when nothing carries the session, one that is merely free."""
        held = {t.path for t in self.transports.values() if t.condition is not Condition.GONE}
        unused = [path for path in range(PATHS_PER_EPOCH) if path not in self._paths_used and path not in held]
        free = [path for path in range(PATHS_PER_EPOCH) if path not in held]
        transportless = turn is None or turn.session.binding is None
        path = unused[0] if unused else (free[0] if free and transportless else None)
        if path is not None:
            self._paths_used.add(path)
        return path

    def _path_validated(self, fact: inp.PathValidated, turn: Turn) -> Proof | None:
        known = self.transports.get(fact.transport)
        if known is None or known.condition is Condition.GONE:
            return None
        if not known.validated:
            self._note_candidate(turn, known.id, "validated", "")
        self.transports[known.id] = transport_facts.validated(known, fact.peer, fact.rtt_ns, turn.now)
        turn.feed()
        return Proof(fact.transport, fact.peer, fact.rtt_ns)

    def _path_measured(self, fact: inp.PathMeasured, turn: Turn) -> None:
        known = self.transports.get(fact.transport)
        if known is None:
            return
        updated = transport_facts.measured(known, fact.rtt_ns, fact.rtt_dev_ns, fact.loss_up, fact.loss_down)
        self.transports[known.id] = updated
        turn.outputs += self._tune(updated, turn)
        reason = self._threshold_crossed(updated, turn.session.policy)
        bound = turn.session.binding
        if reason is not None and bound is not None and bound.transport == updated.id:
            self._unstable_at = turn.now
            turn.feed(ev.InstabilitySeen(updated.id, reason, _figures(updated)))
        else:
            turn.feed()

    def _threshold_crossed(self, transport: Transport, policy: Policy) -> Reason | None:
        if transport.loss > policy.volatility.loss_threshold:
            return Reason.LOSS_THRESHOLD_EXCEEDED
        limit = policy.volatility.latency_p95
        slow = transport.rtt_ns + 2 * transport.rtt_dev_ns  # 95 % of a normal distribution lies below two deviations
        return Reason.LATENCY_THRESHOLD_EXCEEDED if limit != "off" and slow > limit else None

    def _liveness_fact(self, fact: Any, turn: Turn) -> None:
        known = self.transports.get(fact.transport)
        if known is None or known.condition is Condition.GONE:
            return
        now, policy = turn.now, turn.session.policy.switching
        match fact:
            case inp.PathSilent():
                self.transports[known.id] = transport_facts.fell_silent(known, now)
                self._unstable_at = now if known.id == turn.session.incumbent else self._unstable_at
                data = {"silent_ms": milliseconds(fact.silent_ns), "limit_ms": milliseconds(fact.limit_ns)}
                turn.feed(ev.InstabilitySeen(known.id, silence_reason(turn.session.policy, fact.limit_ns), data))
            case inp.PathDead():
                self.transports[known.id] = transport_facts.died(known, now, policy)
                self._lost(known, "silence", fact.silent_ns // MILLISECOND, turn)
            case inp.PathHeard():
                self.transports[known.id] = transport_facts.heard(known, now)
                turn.feed()
                if not known.validated:
                    self._note_candidate(turn, known.id, "heard", "")
            case inp.Hinted():
                self._gateway_forgot(known, turn)
            case inp.SocketFailed() if fact.local:
                self._socket_broke(known, now)
                self._lost(known, f"socket:{fact.error}", 0, turn)
            case _:  # an ICMP error can be forged by a third party: ask the path itself
                turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))
                turn.feed()

    def _gateway_forgot(self, known: Transport, turn: Turn) -> None:
        """A gateway that lost its keys cannot use any binding made with it: all its transports need a new epoch."""
        for other in self.transports.values():
            if other.gateway == known.gateway and other.condition is not Condition.GONE:
                self.transports[other.id] = replace(other, needs_epoch=True)
        self.transports[known.id] = transport_facts.hinted(self.transports[known.id], turn.now)
        bound, attempt = turn.session.binding, turn.session.attempt
        proving = attempt is not None and attempt.kind is AttemptKind.REVALIDATE
        incumbent = turn.session.incumbent
        here = incumbent is not None and self.transports[incumbent].gateway == known.gateway
        if here and (bound is not None or proving):
            turn.feed(ev.OwnerChanged(turn.session.owner_epoch + 1))
        else:
            turn.feed()

    def _socket_broke(self, known: Transport, now: Instant) -> None:
        """The socket is of no use any more; a new one is tried soon."""
        self.transports[known.id] = transport_facts.died(known, now, self.policy.switching)
        self._reopen_at[known.id] = later(now, REOPEN_WAIT)

    def _open_again(self, turn: Turn | None, now: Instant) -> list[Output]:
        """New sockets for transports whose socket failed a while ago."""
        outputs: list[Output] = []
        for transport in sorted(t for t, at in self._reopen_at.items() if now >= at):
            del self._reopen_at[transport]
            known = self.transports[transport]
            if known.path is not None:
                self._liveness.pop(transport, None)
                outputs += [out.ClosePath(transport, known.path), out.OpenPath(transport, known.path, known.peer)]
                outputs += self._tune(known, turn)
                if turn is None:
                    self.transports[transport] = transport_facts.appeared(known, now)
        return outputs

    def _lost(self, before: Transport, evidence: str, age_ms: int, turn: Turn) -> None:
        """A transport died that was as ``before``: any attempt on it is over, and its binding too."""
        transport = before.id
        attempt = turn.session.attempt
        if attempt is not None and attempt.transport == transport:
            turn.feed(ev.AttemptFailed(transport, Reason.TRANSPORT_DEAD))
        bound = turn.session.binding
        if bound is not None and bound.transport == transport:
            turn.feed(ev.TransportDied(transport, evidence, age_ms))
            return
        turn.feed()
        if before.condition is Condition.DEAD:
            return
        data = {"evidence": evidence, "age_ms": age_ms, "was_active": False}
        turn.note(
            DomainEvent("transport.dead", "N", reason="transport_dead", transport=TransportView(transport), data=data)
        )

    def _reattach_answered(self, answer: inp.ReattachAnswered, turn: Turn, now: Now) -> None:
        attempt = turn.session.attempt
        if attempt is None or attempt.transport != answer.transport or attempt.kind is not AttemptKind.SWITCH:
            turn.feed()
            return
        known = self.transports[answer.transport]
        if answer.status == "denied":
            self._denied(answer, turn)
        elif answer.epoch != self._proposed:  # an answer to a request that was given up
            turn.feed()
        elif answer.status == "challenge":
            self._token = answer.token
            turn.outputs.append(self._ask(turn.session, answer.transport, turn.session.reason or Reason.RECOVERY_RETRY))
        else:
            self.transports[known.id] = transport_facts.validated(known, known.peer, known.rtt_ns, now.boot)
            turn.feed(ev.ReattachCommitted(answer.transport, known.peer, answer.epoch, answer.version, answer.nonce_id))

    def _denied(self, answer: inp.ReattachAnswered, turn: Turn) -> None:
        """Wait before asking again, unless the refusal told what the request has to name."""
        session = turn.session
        stale = answer.reason is Reason.STALE_STATE_VERSION
        learned = stale and (answer.version > session.peer_version or answer.epoch >= self._proposed)
        self._proposed = max(self._proposed, answer.epoch) if stale else self._proposed
        self._corrected = learned
        self.transports[answer.transport] = transport_facts.hinted(self.transports[answer.transport], turn.now)
        if not learned:
            wait = min(DENIAL_WAIT * 2**self._denials, DENIAL_WAIT_MAX)
            self._denied_until = later(turn.now, wait)
            self._denials += 1
            self._denied_urgent = session.binding is None
        told = answer.version if stale else None
        turn.feed(ev.SwitchDenied(answer.reason, {"to_id": answer.transport, "by": "gateway"}, told))

    def _operator_switch(self, wish: inp.OperatorSwitch, turn: Turn) -> None:
        """Refuse what could not be granted before the session is disturbed; a refusal is an event too."""
        turn.feed()
        session = turn.session
        refusal = self.switch_refusal(session, wish.target, turn.now)
        if refusal is None:
            turn.feed(ev.SwitchForced(Reason.OPERATOR_SWITCH, wish.target))
            return
        reason, detail = refusal
        view = TransportView(wish.target)
        turn.note(DomainEvent("transport.switch_denied", "N", reason=reason, transport=view, data=detail))

    def switch_refusal(self, session: Session, target: TransportId, now: Instant) -> tuple[str, dict[str, Any]] | None:
        """Why an operator's switch to ``target`` would be refused now, or None."""
        if session.binding is not None and session.binding.transport == target:
            return Reason.INVALID_TRANSPORT_CANDIDATE.value, {"to_id": target, "rule": "already active"}
        if session.state not in (State.ATTACHED, State.VOLATILE):
            return Reason.INVALID_TRANSPORT_CANDIDATE.value, {"to_id": target, "rule": f"state {session.state.value}"}
        if now < self._denied_until:
            left_ms = milliseconds(self._denied_until - now)
            detail = {"to_id": target, "rule": "denied by the gateway", "cooldown_left_ms": left_ms}
            return Reason.COOLDOWN_ACTIVE.value, detail
        wish = Wish(urgent=False, incumbent=session.incumbent, target=target, exclude_incumbent=True)
        choice = choose(self.candidates(session, now), wish, _budget(session), session.policy, now)
        if isinstance(choice, Refused):
            return choice.rule, {"to_id": target, **choice.detail}
        if isinstance(choice, Nothing):
            return Reason.NO_CANDIDATE_TRANSPORTS.value, {"to_id": target, "candidate_count": 0}
        return None

    def _policy_offered(self, offer: inp.PolicyOffered, turn: Turn) -> None:
        if offer.policy is None:
            turn.feed(ev.PolicyRefused(offer.errors))
            return
        self.policy = offer.policy
        turn.feed(ev.PolicyReloaded(offer.policy))
        attempt = turn.session.attempt
        if attempt is not None and not self._allowed(self.transports[attempt.transport], turn.session.policy):
            turn.feed(ev.AttemptFailed(attempt.transport, Reason.POLICY_DENIED))
        turn.outputs += self._tune_all(turn.session)

    def _rekeyed(self, answer: inp.RekeyAnswered, turn: Turn) -> None:
        self._rekey_asked = None
        before = turn.session.epoch
        turn.feed(ev.KeysRotated(answer.epoch))
        if turn.session.epoch > before:
            self._proposed = max(self._proposed, turn.session.epoch)
            self._new_epoch()
            turn.outputs.append(out.FinishRekey())

    # --- plans: what follows from where we are -----------------------------------------------------------------------

    def _finish(self, turn: Turn, proof: Proof | None, more: list[Output] | None = None) -> list[Output]:
        assert self.seat is not None
        if turn.session.binding is None and turn.session.state.live:
            turn.outputs += self._reopen(turn)
        while self._plan_once(turn, proof):
            pass
        self._maybe_rekey(turn)
        self._challenge_silent(turn)
        turn.outputs += self._open_again(turn, turn.now)
        orders = [order for effect in turn.effects for order in self._order(effect, turn)]
        return self.seat.close(turn, orders + (more or []))

    def _plan_once(self, turn: Turn, proof: Proof | None) -> bool:
        """Feed the one event that follows from the present facts; False when the session is at rest."""
        self._doubt_unanswered(turn)
        session = turn.session
        event: ev.Event | None = None
        lost = session.binding is not None and self._is_lost(session.binding.transport)
        match session.state:
            case state if lost and state.live:
                assert session.binding is not None
                event = ev.TransportDied(session.binding.transport, "lost")
            case State.ATTACHED:
                event = self._attached_plan(session, turn.now)
            case State.VOLATILE:
                event = self._volatile_plan(session, turn.now)
            case State.RECOVERING:
                event = self._recovering_plan(session, turn.now, proof)
            case State.DEGRADED:
                event = self._degraded_plan(session, turn.now)
            case _:
                return False
        if event is None:
            return False
        turn.follow(event)
        return True

    def _is_lost(self, transport: TransportId) -> bool:
        return self.transports[transport].condition in (Condition.DEAD, Condition.GONE)

    def _doubt_unanswered(self, turn: Turn) -> None:
        """A transport on which an attempt ran out of time has to answer before the next: trying on proves nothing."""
        while turn.unanswered:
            attempt = turn.unanswered.pop()
            known = self.transports[attempt.transport]
            if not known.usable:
                continue
            self._let_down += known.validated
            if attempt.kind is AttemptKind.SWITCH:
                self.transports[known.id] = transport_facts.died(known, turn.now, turn.session.policy.switching)
            else:
                self.transports[known.id] = transport_facts.fell_silent(known, turn.now)
            turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))

    def _challenge_silent(self, turn: Turn) -> None:
        """In DEGRADED, ask transports that are not usable whether they are back."""
        if turn.session.state is not State.DEGRADED:
            self._challenged_at.clear()
            return
        for known in self._silent():
            if turn.now >= self._challenge_due(known):
                self._challenged_at[known.id] = turn.now
                turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))

    def _silent(self) -> list[Transport]:
        unusable = (Condition.SILENT, Condition.DEAD)
        found = [t for t in self.transports.values() if t.condition in unusable and t.path is not None]
        return sorted(found, key=lambda t: t.id)

    def _challenge_due(self, known: Transport) -> Instant:
        last = self._challenged_at.get(known.id)
        return known.since if last is None else later(last, CHALLENGE_AGAIN)

    def _attached_plan(self, session: Session, now: Instant) -> ev.Event | None:
        assert session.binding is not None
        active = self.transports[session.binding.transport]
        if not self._allowed(active, session.policy):
            return ev.SwitchForced(Reason.POLICY_FORCED)
        if active.condition is Condition.SILENT:
            return ev.InstabilitySeen(active.id, Reason.PROBE_TIMEOUT)
        target = self._failback_target(session, active, now)
        return ev.SwitchForced(Reason.FAILBACK, target) if target is not None else None

    def _failback_target(self, session: Session, active: Transport, now: Instant) -> TransportId | None:
        patience = session.policy.switching.failback
        if patience == "never":
            return None
        mine = self._rank(active, session.policy)
        better = [t for t in self.transports.values() if t.validated and self._rank(t, session.policy) < mine]
        bound_for = now - session.binding.since if session.binding is not None else 0
        ripe = [t for t in better if min(t.stable_for(now), bound_for) >= patience and not t.needs_epoch]
        for transport in sorted(ripe, key=lambda t: (self._rank(t, session.policy), t.id)):
            if self.switch_refusal(session, transport.id, now) is None:
                return transport.id
        return None

    def _volatile_plan(self, session: Session, now: Instant) -> ev.Event | None:
        if session.binding is None:
            assert session.incumbent is not None
            return ev.TransportDied(session.incumbent, "binding_cleared")
        if not self._allowed(self.transports[session.binding.transport], session.policy):
            return ev.SwitchForced(Reason.POLICY_FORCED)
        incumbent = self._candidate(self.transports[session.binding.transport], session.policy, (), now)
        for candidate in self.candidates(session, now):
            if candidate.id != incumbent.id and is_better(candidate, incumbent, session.policy):
                return ev.BetterCandidateSeen(candidate.id, {"rtt_p95_ms": milliseconds(candidate.rtt_ns)})
        due = self._stable_at(session)
        return ev.TransportStabilized(incumbent.id) if due is not None and now >= due else None

    def _stable_at(self, session: Session) -> Instant | None:
        """When the incumbent will have been good for the stability window (doubled per re-entry), or None."""
        if session.state is not State.VOLATILE or session.binding is None:
            return None
        active = self.transports[session.binding.transport]
        policy = session.policy.volatility
        if not active.validated or self._threshold_crossed(active, session.policy) is not None:
            return None
        doublings = max(0, len(session.volatile_entries) - 1)
        window = min(policy.stability_window * 2**doublings, policy.stability_window_max)
        return later(max(active.since, self._unstable_at, session.entered_at), window)

    def _recovering_plan(self, session: Session, now: Instant, proof: Proof | None) -> ev.Event | None:
        attempt = session.attempt
        if attempt is None:
            return self._next_attempt(session, now)
        if attempt.kind is AttemptKind.REVALIDATE and proof is not None and proof.transport == attempt.transport:
            return ev.IncumbentRevalidated(proof.transport, proof.peer, proof.rtt_ns)
        return None

    def _next_attempt(self, session: Session, now: Instant) -> ev.Event:
        limit = min(session.policy.recovery.attempt_timeout, session.policy.recovery.window)
        deadline = later(now, limit)
        choice = self._choose(session, now)
        if isinstance(choice, Nothing):
            return ev.NoCandidate(choice.considered)
        if isinstance(choice, Refused):
            return ev.SwitchDenied(Reason(choice.rule), choice.detail)
        kind = AttemptKind.REVALIDATE if self._can_revalidate(session, choice.transport) else AttemptKind.SWITCH
        return ev.AttemptStarted(kind, choice.transport, deadline, measured=choice.measured)

    def _choose(self, session: Session, now: Instant) -> Choice:
        wish = session.want
        target = wish.target if wish is not None else None
        unwanted = wish is not None and wish.avoid_incumbent
        candidates = self.candidates(session, now)
        if self._is_denied(session, now):
            candidates = tuple(c for c in candidates if self._can_revalidate(session, c.id))
        incumbent = next((c for c in candidates if c.id == session.incumbent), None)
        asked = Wish(urgent=session.binding is None, incumbent=session.incumbent, target=target)
        if incumbent is None or session.binding is None or target is not None:
            return choose(candidates, replace(asked, exclude_incumbent=unwanted), _budget(session), session.policy, now)
        others = (c for c in candidates if c.id != incumbent.id and not c.tried)
        beaten = any(is_better(other, incumbent, session.policy) for other in others)
        if unwanted or beaten:
            elsewhere = replace(asked, exclude_incumbent=True)
            choice = choose(candidates, elsewhere, _budget(session), session.policy, now)
            if unwanted or isinstance(choice, Selected):
                return choice
        if not incumbent.tried and self._within_policy(session, incumbent):
            return Selected(incumbent.id, "incumbent_within_policy", _figures(self.transports[incumbent.id]))
        return choose(candidates, asked, _budget(session), session.policy, now)

    def _is_denied(self, session: Session, now: Instant) -> bool:
        """Whether the gateway's last refusal still counts: it binds wishes longer than it binds need."""
        return now < self._denied_until and (session.binding is not None or self._denied_urgent)

    def _within_policy(self, session: Session, incumbent: Candidate) -> bool:
        known = self.transports[incumbent.id]
        good = incumbent.allowed and self._can_revalidate(session, incumbent.id)
        return good and self._threshold_crossed(known, session.policy) is None

    def _can_revalidate(self, session: Session, transport: TransportId) -> bool:
        """Whether proof suffices: the gateway knows only the path that was bound, not a later socket's."""
        known = self.transports[transport]
        proven = known.validated and not known.needs_epoch
        return proven and transport == session.incumbent and known.path == self._bound_path

    def _degraded_plan(self, session: Session, now: Instant) -> ev.Event | None:
        choice = self._choose(replace(session, tried=(), want=None), now)
        blind_at = self._blind_at(session)
        forbidden = isinstance(choice, Refused) and choice.rule == Reason.POLICY_DENIED.value
        if (forbidden or isinstance(choice, Nothing)) and blind_at is not None and now >= blind_at:
            for known in self._silent():
                if self._allowed(known, session.policy):
                    self.transports[known.id] = transport_facts.hoped_for(known, now)
            choice = self._choose(replace(session, tried=(), want=None), now)
        if isinstance(choice, Selected):
            due = self._try_at(session, choice.transport)
            if due is not None and now >= due:
                return ev.ConditionMet(choice.transport, choice.rule)
        return None

    def _try_at(self, session: Session, transport: TransportId) -> Instant | None:
        """When DEGRADED may be left for ``transport``: at once, patiently if attempts failed before, or never."""
        known = self.transports[transport]
        if self._corrected or self._can_revalidate(session, transport) or session.attempts <= PROMPT_TRIES:
            return session.entered_at
        if not known.validated:
            return self._blind_at(session)
        patience = SECOND * 2 ** (self._let_down - PROMPT_TRIES) if self._let_down > PROMPT_TRIES else 0
        return max(later(session.entered_at, min(patience, PATIENCE_MAX)), self._denied_until)

    def _blind_at(self, session: Session) -> Instant | None:
        """When to try without evidence; None when the last attempt has to be kept for a transport that answers."""
        last = session.attempts >= session.policy.recovery.max_attempts - 1
        if session.binding is not None or last:
            return None
        if self._denied_until > session.entered_at:  # the gateway answers requests, so patience is what it asked for
            return self._denied_until
        return later(session.entered_at, min(BLIND_WAIT * 2 ** max(0, session.attempts - 1), PATIENCE_MAX))

    def _waits(self, session: Session) -> list[Instant]:
        """Moments at which time alone may change a decision; those that have passed do no harm."""
        moments = [*self._reopen_at.values(), self._denied_until]
        stable_at = self._stable_at(session)
        if stable_at is not None:
            moments.append(stable_at)
        if session.state is State.DEGRADED:
            moments += self._degraded_waits(session)
        if session.state is State.ATTACHED:
            moments += [*self._failback_waits(session), self._rekey_due(session)]
        return moments

    def _failback_waits(self, session: Session) -> list[Instant]:
        patience = session.policy.switching.failback
        better = [t for t in self.transports.values() if t.validated and self._ranks_above(t, session)]
        if patience == "never" or not better:
            return []
        reuse = [t.penalty.reuse_at(session.policy.switching) for t in better]
        lifts = [session.hold_until, *reuse, *(later(at, MINUTE) for at in session.switches)]
        since = [session.entered_at, *(t.since for t in better)]
        return [*(later(at, patience) for at in since), *(at for at in lifts if at is not None)]

    def _ranks_above(self, transport: Transport, session: Session) -> bool:
        assert session.binding is not None
        mine = self._rank(self.transports[session.binding.transport], session.policy)
        return self._rank(transport, session.policy) < mine

    def _degraded_waits(self, session: Session) -> list[Instant]:
        assert self.seat is not None
        moments = [self._challenge_due(known) for known in self._silent()]
        choice = self._choose(replace(session, tried=(), want=None), self.seat.seen)
        if isinstance(choice, Refused):
            moments.append(choice.retry_at or session.entered_at)
        due = self._try_at(session, choice.transport) if isinstance(choice, Selected) else self._blind_at(session)
        return moments if due is None else [*moments, due]

    def _rekey_due(self, session: Session) -> Instant:
        if self._rekey_asked is not None:
            return later(self._rekey_asked, REKEY_WAIT)
        return later(session.keys_at, session.policy.security.rekey_after)

    def _maybe_rekey(self, turn: Turn) -> None:
        if turn.session.state is State.ATTACHED and turn.now >= self._rekey_due(turn.session):
            self._rekey_asked = turn.now
            turn.outputs.append(out.AskRekey())

    # --- orders ------------------------------------------------------------------------------------------------------

    def _order(self, effect: fx.Effect, turn: Turn) -> list[Output]:
        session = turn.session
        match effect:
            case fx.Bind():
                return self._bind(effect, turn)
            case fx.Unbind():
                self._rekey_asked = None
                return [out.Deactivate(session.uid)]
            case fx.StartAttempt():
                if effect.attempt.kind is AttemptKind.SWITCH:
                    self._token = b""
                    return [self._ask(session, effect.attempt.transport, effect.cause)]
                return [out.ChallengePath(session.uid, effect.attempt.transport)]
            case fx.StopAttempt():
                return [out.AbandonReattach()] if effect.attempt.kind is AttemptKind.SWITCH else []
            case fx.Erase():
                return [out.EndSession(session.uid, effect.reason, effect.tell_peer)]

    def _bind(self, effect: fx.Bind, turn: Turn) -> list[Output]:
        assert self.seat is not None
        before = self.seat.session
        self._bound_path = self.transports[effect.transport].path
        self._denied_urgent, self._let_down = False, 0
        if before.state is State.BIRTH or effect.epoch == before.epoch:
            return [out.Activate(turn.session.uid, effect.transport, effect.peer)]
        self._denied_until, self._denials = Instant(0), 0
        self._new_epoch()
        for known in list(self.transports.values()):
            self.transports[known.id] = replace(known, needs_epoch=False)
        return [out.FinishReattach(effect.transport), *self._reopen(turn)]

    def _new_epoch(self) -> None:
        self._rekey_asked = None
        held = {t.path for t in self.transports.values() if t.path is not None and t.condition is not Condition.GONE}
        self._paths_used = {path for path in held if path is not None}

    def _reopen(self, turn: Turn) -> list[Output]:
        """Transports that waited for a path index get one of the new epoch."""
        outputs: list[Output] = []
        for known in sorted(self.transports.values(), key=lambda t: t.id):
            if known.path is None and known.condition is not Condition.GONE:
                path = self._allocate_path(turn)
                if path is not None:
                    self.transports[known.id] = replace(known, path=path)
                    outputs += [out.OpenPath(known.id, path, known.peer), *self._tune(self.transports[known.id], turn)]
        return outputs

    def _ask(self, session: Session, transport: TransportId, cause: Reason) -> out.AskReattach:
        self._corrected = False
        self._proposed = Epoch(min(max(self._proposed, session.epoch) + 1, session.epoch + EPOCH_JUMP))
        return out.AskReattach(transport, self._proposed, int(session.peer_version), cause, self._token)

    # --- commits -----------------------------------------------------------------------------------------------------

    def _commit_ended(self, ended: inp.CommitEnded, now: Now) -> list[Output]:
        assert self.seat is not None
        if self.seat.pending is None or ended.serial != self.seat.serial:
            return []
        turn = self.seat.settle(now.boot, committed=ended.result == "committed")
        outputs = list(turn.outputs) if ended.result == "committed" else []
        waiting, self.seat.waiting = list(self.seat.waiting), type(self.seat.waiting)(maxlen=self.seat.waiting.maxlen)
        for index, event in enumerate(waiting):
            outputs += self.handle(event, now)
            if self.seat.pending is not None:
                self.seat.waiting.extend(waiting[index + 1 :])
                break
        return outputs

    # --- views -------------------------------------------------------------------------------------------------------

    def _candidate(self, t: Transport, policy: Policy, tried: tuple[TransportId, ...], now: Instant) -> Candidate:
        return Candidate(
            id=t.id, allowed=self._allowed(t, policy), usable=t.usable and t.path is not None, validated=t.validated,
            suppressed=t.penalty.is_suppressed(now, policy.switching), reuse_at=t.penalty.reuse_at(policy.switching),
            tried=t.id in tried, rank=self._rank(t, policy), loss=t.loss, rtt_ns=t.rtt_ns,
            stable_ns=t.stable_for(now),
        )  # fmt: skip

    def _allowed(self, transport: Transport, policy: Policy) -> bool:
        return policy.transports.allows(transport.interface, transport.protocol, transport.gateway)

    def _rank(self, transport: Transport, policy: Policy) -> int:
        return policy.transports.rank(transport.interface, transport.protocol, transport.gateway)

    def _tune_all(self, session: Session) -> list[Output]:
        self._liveness.clear()
        turn = Turn(session, session.entered_at, None)
        return [order for _, t in sorted(self.transports.items()) for order in self._tune(t, turn)]

    def _tune(self, transport: Transport, turn: Turn | None) -> list[Output]:
        """Tell the packet core the path's limits when they moved enough to matter."""
        if turn is None or transport.path is None or transport.condition is Condition.GONE:
            return []
        wanted = liveness_of(turn.session.policy, transport.rtt_ns, transport.rtt_dev_ns)
        known = self._liveness.get(transport.id)
        if known is not None and known.close_to(wanted, RETUNE_STEP):
            return []
        self._liveness[transport.id] = wanted
        return [wanted.order(turn.session.uid, transport.id)]

    def liveness(self, transport: TransportId) -> Liveness | None:
        """The limits in force for ``transport``, for ``status``."""
        return self._liveness.get(transport)

    def _note_candidate(self, turn: Turn, transport: TransportId, change: str, code: str) -> None:
        data = {"change": change, "code": code}
        turn.note(DomainEvent("transport.candidate", "N", transport=TransportView(transport), data=data))


def _budget(session: Session) -> Budget:
    return Budget(session.switches, session.hold_until)


def _figures(transport: Transport) -> dict[str, Any]:
    return {
        "loss_ratio": round(transport.loss, 4),
        "rtt_p95_ms": milliseconds(transport.rtt_ns + 2 * transport.rtt_dev_ns),
        "jitter_ms": milliseconds(transport.rtt_dev_ns),
    }
