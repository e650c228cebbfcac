"""The client's engine: turns facts about transports into what happens to the session, and orders into outputs."""

from __future__ import annotations

from typing import Any, Literal

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.book import TransportBook
from jumpvpn.engine.liveness import Liveness, silence_reason
from jumpvpn.engine.outputs import Output
from jumpvpn.engine.plans import Plans, Proof, figures
from jumpvpn.engine.seat import Seat, Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Budget, Choice, Wish, choose
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason, denial
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.validation import EPOCH_JUMP
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import MILLISECOND, DomainEvent, Epoch, Instant, Now, TransportId, TransportView, milliseconds


class ClientEngine:
    """``handle(input, now) -> outputs``; deterministic; holds at most one session."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seat: Seat | None = None
        self.book = TransportBook()
        self.plans = Plans(self.book)
        self._proposed = Epoch(0)
        self._token = b""

    # --- what the shell asks -----------------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The committed record, None before the gateway answered."""
        return self.seat.session if self.seat is not None else None

    @property
    def transports(self) -> dict[TransportId, Transport]:
        """All transports that were ever reachable."""
        return self.book.transports

    def liveness(self, transport: TransportId) -> Liveness | None:
        """The limits in force for ``transport``, for ``status``."""
        return self.book.liveness(transport)

    def switch_refusal(self, session: Session, target: TransportId, now: Instant) -> tuple[str, dict[str, Any]] | None:
        """Why an operator's switch to ``target`` would be refused now, or None."""
        return self.plans.switch_refusal(session, target, now)

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
            return min(self.book.reopen_at.values(), default=None)
        if self.seat.session.state is State.TERMINATED:
            return None
        return min(self.seat.wakeups(self.plans.waits(self.seat.session, self.seat.seen)), default=None)

    def first_choice(self, now: Instant, tried: tuple[TransportId, ...]) -> Choice:
        """The transport for the handshake: what shares neither network nor gateway with those ``tried`` comes first."""
        candidates = self.book.candidates(self.policy, tried, now, None)
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
            self.book.socket_broke(self.transports[event.transport], self.policy.switching, now.boot)
        return self.book.open_again(None, now.boot)

    def _born(self, answer: inp.HandshakeAnswered, now: Now) -> list[Output]:
        first = birth(answer.session_id, Role.CLIENT, answer.policy, now.boot, answer.device)
        self.seat = Seat(first.session, seen=now.boot)
        turn = Turn(first.session, now.boot, None)
        turn.take(first)
        self.book.take_birth_path(answer.transport)
        transport = self.transports[answer.transport]
        if transport.condition is not Condition.GONE:
            self.book.keep(transport_facts.validated(transport, answer.peer, 0, now.boot))
        completed = ev.HandshakeCompleted(answer.transport, answer.peer, Epoch(1), answer.peer_version)
        turn.feed(completed)
        self._proposed = Epoch(1)
        return self._finish(turn, None, [*self.book.tune_all(turn.session)])

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
            case inp.StandbyAnswered() | inp.DrainTold():
                self._gateway_fact(event, turn)
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
        for transport_id in self._in_order(set(self.transports) | set(reachable), reachable, turn):
            outputs += self._one_reachable(transport_id, reachable.get(transport_id), change, turn, now)
        self.book.forget(_named(turn.session) if turn is not None else ())
        return outputs

    def _in_order(
        self, transports: set[TransportId], reachable: dict[TransportId, inp.Reachable], turn: Turn | None
    ) -> list[TransportId]:
        """What is gone first, as it frees path indexes; then the session's own gateway, which has a right to them."""
        home = self.book.home(turn.session) if turn is not None else None

        def place(transport: TransportId) -> tuple[int, TransportId]:
            seen = reachable.get(transport)
            if home is None or len({t.gateway for t in reachable.values()} | {home}) == 1:
                return 0, transport
            return (0 if seen is None else 1 if seen.gateway == home else 2), transport

        return sorted(transports, key=place)

    def _one_reachable(
        self,
        transport_id: TransportId,
        seen: inp.Reachable | None,
        change: inp.TransportsChanged,
        turn: Turn | None,
        now: Instant,
    ) -> list[Output]:
        known = self.book.here(transport_id)
        moved = known is not None and seen is not None and self._moved(known, seen, turn)
        outputs: list[Output] = []
        if known is not None and (seen is None or moved):
            evidence = change.evidence.get(transport_id, "address" if moved else "link")
            outputs += self._gone(known, evidence, turn, now)
        if seen is not None and (known is None or moved):
            outputs += self.book.appear(seen, turn.session if turn is not None else None, now)
            if turn is not None:
                self._note_candidate(turn, seen.id, "added", "")
        return outputs

    def _moved(self, known: Transport, seen: inp.Reachable, turn: Turn | None) -> bool:
        """Whether another socket is needed. The session's own gateway is where it answered, whatever a list says."""
        elsewhere = turn is None or self.book.is_away(known, turn.session)
        return known.local != seen.local or (elsewhere and known.peer != seen.peer)

    def _gone(self, known: Transport, evidence: str, turn: Turn | None, now: Instant) -> list[Output]:
        orders = self.book.vanish(known, None if evidence == inp.UNUSED else self.policy.switching, now)
        if turn is not None:
            self._lost(known, evidence, 0, turn)
            self._note_candidate(turn, known.id, "removed", evidence)
        return orders

    def _path_validated(self, fact: inp.PathValidated, turn: Turn) -> Proof | None:
        known = self.book.here(fact.transport)
        if known is None:
            return None
        if not known.validated:
            self._note_candidate(turn, known.id, "validated", "")
        if self.book.is_away(known, turn.session):  # an answer to what was sent before the session left that gateway
            self.book.keep(transport_facts.hinted(known, turn.now))
            turn.feed()
            return None
        self.book.keep(transport_facts.validated(known, fact.peer, fact.rtt_ns, turn.now))
        turn.feed()
        return Proof(fact.transport, fact.peer, fact.rtt_ns)

    def _gateway_fact(self, fact: inp.StandbyAnswered | inp.DrainTold, turn: Turn) -> None:
        known = self.book.here(fact.transport)
        match fact:
            case inp.DrainTold() if known is not None:
                self.book.gateways.drains(known.gateway, on=fact.on)
            case inp.StandbyAnswered() if known is not None and self.book.is_away(known, turn.session):
                self._standby_answered(known, fact, turn)
        turn.feed()  # an answer of the session's own gateway was asked for before the session came to it

    def _standby_answered(self, known: Transport, fact: inp.StandbyAnswered, turn: Turn) -> None:
        if not known.validated:
            self._note_candidate(turn, known.id, "validated", "")
        self.book.gateways.drains(known.gateway, on=fact.draining)
        self.book.keep(transport_facts.standby_answered(known, fact.rtt_ns, turn.now))
        turn.outputs += self.book.tune(self.transports[known.id], turn.session)

    def _path_measured(self, fact: inp.PathMeasured, turn: Turn) -> None:
        known = self.transports.get(fact.transport)
        if known is None:
            return
        updated = transport_facts.measured(known, fact.rtt_ns, fact.rtt_dev_ns, fact.loss_up, fact.loss_down)
        self.book.keep(updated)
        turn.outputs += self.book.tune(updated, turn.session)
        reason = self.plans.threshold_crossed(updated, turn.session.policy)
        bound = turn.session.binding
        if reason is not None and bound is not None and bound.transport == updated.id:
            self.plans.unstable_at = turn.now
            turn.feed(ev.InstabilitySeen(updated.id, reason, figures(updated)))
        else:
            turn.feed()

    def _liveness_fact(self, fact: Any, turn: Turn) -> None:
        known = self.book.here(fact.transport)
        if known is None:
            return
        now, policy = turn.now, turn.session.policy.switching
        match fact:
            case inp.PathSilent():
                self.book.keep(transport_facts.fell_silent(known, now))
                bound = turn.session.binding
                if bound is not None and bound.transport == known.id:
                    self.plans.ask_elsewhere(turn)
                self.plans.unstable_at = now if known.id == turn.session.incumbent else self.plans.unstable_at
                data = {"silent_ms": milliseconds(fact.silent_ns), "limit_ms": milliseconds(fact.limit_ns)}
                turn.feed(ev.InstabilitySeen(known.id, silence_reason(turn.session.policy, fact.limit_ns), data))
            case inp.PathDead():
                self.book.keep(transport_facts.died(known, now, policy))
                self._lost(known, "silence", fact.silent_ns // MILLISECOND, turn)
            case inp.PathHeard():
                self.book.keep(transport_facts.heard(known, now))
                turn.feed()
                if not known.validated:
                    self._note_candidate(turn, known.id, "heard", "")
            case inp.Hinted():
                self._gateway_forgot(known, turn)
            case inp.SocketFailed() if fact.local:
                self.book.socket_broke(known, policy, now)
                self._lost(known, f"socket:{fact.error}", 0, turn)
            case _:  # an ICMP error can be forged by a third party: ask the path itself
                turn.outputs.append(out.ChallengePath(turn.session.uid, known.id))
                turn.feed()

    def _gateway_forgot(self, known: Transport, turn: Turn) -> None:
        """A gateway that lost its keys cannot use any binding made with it: all its transports need a new epoch."""
        self.book.epoch_forgotten(known.gateway)
        self.book.keep(transport_facts.hinted(self.transports[known.id], turn.now))
        bound, attempt = turn.session.binding, turn.session.attempt
        proving = attempt is not None and attempt.kind is AttemptKind.REVALIDATE
        incumbent = turn.session.incumbent
        here = incumbent is not None and self.transports[incumbent].gateway == known.gateway
        if here and (bound is not None or proving):
            turn.feed(ev.OwnerChanged(turn.session.owner_epoch + 1))
        else:
            turn.feed()

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
        if before.condition is Condition.DEAD or evidence == inp.UNUSED:
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
            turn.outputs.append(self._ask(turn, answer.transport, turn.session.reason or Reason.RECOVERY_RETRY))
        else:
            self.book.keep(transport_facts.validated(known, known.peer, known.rtt_ns, now.boot))
            turn.feed(ev.ReattachCommitted(answer.transport, known.peer, answer.epoch, answer.version, answer.nonce_id))

    def _denied(self, answer: inp.ReattachAnswered, turn: Turn) -> None:
        """Wait before asking again, unless the refusal told what the request has to name."""
        session = turn.session
        stale = answer.reason is Reason.STALE_STATE_VERSION
        learned = stale and (answer.version > session.peer_version or answer.epoch >= self._proposed)
        self._proposed = max(self._proposed, answer.epoch) if stale else self._proposed
        self.plans.corrected = learned
        known = self.transports[answer.transport]
        self.book.keep(transport_facts.hinted(known, turn.now))
        if answer.reason is Reason.GATEWAY_DRAIN:
            self.book.gateways.drains(known.gateway, on=True)
        if not learned:
            self.book.gateways.refused(known.gateway, turn.now, urgent=session.binding is None)
        told = answer.version if stale else None
        turn.feed(ev.SwitchDenied(denial(answer.reason), {"to_id": answer.transport, "by": "gateway"}, told))

    def _operator_switch(self, wish: inp.OperatorSwitch, turn: Turn) -> None:
        """Refuse what could not be granted before the session is disturbed; a refusal is an event too."""
        turn.feed()
        session = turn.session
        refusal = self.plans.switch_refusal(session, wish.target, turn.now)
        if refusal is None:
            turn.feed(ev.SwitchForced(Reason.OPERATOR_SWITCH, wish.target))
            return
        reason, detail = refusal
        view = TransportView(wish.target)
        turn.note(DomainEvent("transport.switch_denied", "N", reason=reason, transport=view, data=detail))

    def _policy_offered(self, offer: inp.PolicyOffered, turn: Turn) -> None:
        if offer.policy is None:
            turn.feed(ev.PolicyRefused(offer.errors))
            return
        self.policy = offer.policy
        turn.feed(ev.PolicyReloaded(offer.policy))
        attempt = turn.session.attempt
        if attempt is not None and self.plans.forbids(turn.session, attempt, turn.now):
            turn.feed(ev.AttemptFailed(attempt.transport, Reason.POLICY_DENIED))
        turn.outputs += self.book.tune_all(turn.session)

    def _rekeyed(self, answer: inp.RekeyAnswered, turn: Turn) -> None:
        self.plans.rekey_asked = None
        before = turn.session.epoch
        turn.feed(ev.KeysRotated(answer.epoch))
        if turn.session.epoch > before:
            self._proposed = max(self._proposed, turn.session.epoch)
            self.book.new_epoch(self.book.home(turn.session) or "")
            turn.outputs.append(out.FinishRekey())

    # --- turns -------------------------------------------------------------------------------------------------------

    def _finish(self, turn: Turn, proof: Proof | None, more: list[Output] | None = None) -> list[Output]:
        assert self.seat is not None
        if turn.session.binding is None and turn.session.state.live:
            turn.outputs += self.book.open_waiting(turn.session)
        self.plans.doubt_unanswered(turn)
        while (event := self.plans.next_event(turn.session, turn.now, proof)) is not None:
            turn.follow(event)
            self.plans.doubt_unanswered(turn)
        self.plans.rekey_if_due(turn)
        self.plans.challenge_silent(turn)
        turn.outputs += self.book.open_again(turn.session, turn.now)
        orders = [order for effect in turn.effects for order in self._order(effect, turn)]
        return self.seat.close(turn, orders + (more or []))

    def _order(self, effect: fx.Effect, turn: Turn) -> list[Output]:
        session = turn.session
        match effect:
            case fx.Bind():
                return self._bind(effect, turn)
            case fx.Unbind():
                self.plans.rekey_asked = None
                return [out.Deactivate(session.uid)]
            case fx.StartAttempt():
                if effect.attempt.kind is AttemptKind.SWITCH:
                    self._token = b""
                    return [self._ask(turn, effect.attempt.transport, effect.cause)]
                return [out.ChallengePath(session.uid, effect.attempt.transport)]
            case fx.StopAttempt():
                return [out.AbandonReattach()] if effect.attempt.kind is AttemptKind.SWITCH else []
            case fx.Erase():
                return [out.EndSession(session.uid, effect.reason, effect.tell_peer)]

    def _bind(self, effect: fx.Bind, turn: Turn) -> list[Output]:
        assert self.seat is not None
        before = self.seat.session
        self.plans.bound(self.transports[effect.transport].path)
        if before.state is State.BIRTH or effect.epoch == before.epoch:
            return [out.Activate(turn.session.uid, effect.transport, effect.peer)]
        here, left = self.transports[effect.transport].gateway, self.book.home(before)
        handover = self._handover(here, left)
        self.plans.rekey_asked = None
        self.book.gateways.granted(here)
        self.book.new_epoch(here)
        self.book.epoch_agreed(here)
        return [out.FinishReattach(effect.transport, handover), *self.book.open_waiting(turn.session)]

    def _handover(self, here: str, left: str | None) -> Literal["same", "lost", "drained"]:
        """What becomes of the epoch with the gateway that was ``left``: one that may wake up must not be heard."""
        if left is None or left == here:
            return "same"
        return "drained" if left in self.book.gateways.draining else "lost"

    def _ask(self, turn: Turn, transport: TransportId, cause: Reason) -> out.AskReattach:
        session = turn.session
        self.plans.corrected = False
        self._proposed = Epoch(min(max(self._proposed, session.epoch) + 1, session.epoch + EPOCH_JUMP))
        age_ms = (turn.now - session.born_at) // MILLISECOND
        return out.AskReattach(transport, self._proposed, int(session.peer_version), age_ms, cause, self._token)

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

    def _note_candidate(self, turn: Turn, transport: TransportId, change: str, code: str) -> None:
        data = {"change": change, "code": code}
        turn.note(DomainEvent("transport.candidate", "N", transport=TransportView(transport), data=data))


def _named(session: Session) -> tuple[TransportId | None, ...]:
    """Transports that the session's record names: they are never forgotten."""
    bound, attempt, wish = session.binding, session.attempt, session.want
    return (
        session.incumbent, *session.tried, bound.transport if bound is not None else None,
        attempt.transport if attempt is not None else None, wish.target if wish is not None else None,
    )  # fmt: skip
