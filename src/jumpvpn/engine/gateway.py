"""The gateway's engine: many sessions, each the client's to move; the gateway validates, commits and bounds."""

from __future__ import annotations

from typing import Any

from jumpvpn.engine import gateway_plans as plans
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.liveness import silence_reason
from jumpvpn.engine.outputs import Output, Secret
from jumpvpn.engine.place import Place
from jumpvpn.engine.seat import Seat, Turn
from jumpvpn.policy.model import Policy
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason, reason_of_code
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.validation import ReattachRequest, Verdict, validate
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Transport
from jumpvpn.values import MILLISECOND, DomainEvent, Instant, Now, TransportId

UNBOUND = (out.ChallengeReattach, out.RefuseReattach, out.TuneLiveness)  # orders that depend on no commit

BIRTH_TRANSPORT = TransportId("path0/udp")  # wire format: the transport of the handshake is path 0


class GatewayEngine:
    """``handle(input, now) -> outputs``; deterministic; sessions never share state."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.places: dict[str, Place] = {}
        self._by_device: dict[bytes, str] = {}
        self._births: dict[str, int] = {}

    # --- what the shell asks -----------------------------------------------------------------------------------------

    def session(self, uid: str) -> Session | None:
        """The committed record."""
        place = self.places.get(uid)
        return place.seat.session if place is not None else None

    def handle(self, event: Any, now: Now) -> list[Output]:
        """Apply one input; returns orders, commits first."""
        match event:
            case inp.HandshakeOffered():
                return self._handshake_offered(event, now)
            case inp.SessionRestored():
                return self._restored(event, now)
            case inp.ReattachAsked() if event.uid is None or event.uid not in self.places:
                return self._unknown(event)
            case inp.CommitEnded():
                return self._commit_ended(event, now)
            case inp.Tick():
                return self._tick(now)
            case inp.PolicyOffered():
                return self._policy_offered(event, now)
        place = self.places.get(event.uid)
        return self._for_place(place, event, now) if place is not None else []

    def next_wakeup(self) -> Instant | None:
        """When the engine wants a ``Tick`` although nothing happened."""
        return min((at for place in self.places.values() for at in plans.moments(place)), default=None)

    # --- births ------------------------------------------------------------------------------------------------------

    def _handshake_offered(self, offer: inp.HandshakeOffered, now: Now) -> list[Output]:
        if offer.device is None:
            data = {"step": "handshake", "count": 1, "source_prefix": offer.peer}
            event = DomainEvent("security.validation_failed", "N", reason=Reason.UNKNOWN_DEVICE.value, data=data)
            return [out.Emit((event,)), out.RefuseHandshake(offer.handshake)]
        first = birth(offer.session_id, Role.GATEWAY, self.policy, now.boot, offer.device)
        uid = first.session.uid
        place = Place(Seat(first.session), offer.device_key, birth_peer=offer.peer)
        self.places[uid] = place
        self._births[uid] = offer.handshake
        turn = Turn(first.session, now.boot, None)
        turn.take(first)
        turn.secret = Secret("handshake", offer.handshake)
        turn.device = (offer.device_key, offer.timestamp)
        return place.seat.close(turn, [out.AcceptHandshake(offer.handshake, uid)])

    def _born(self, uid: str, now: Now) -> list[Output]:
        """The birth is durable. One device, one live session: an older one ends, and says why."""
        place = self.places[uid]
        older = self._by_device.get(place.device)
        self._by_device[place.device] = uid
        return self._for_place(self.places[older], inp.Tick(), now) if older in self.places else []

    def _restored(self, restored: inp.SessionRestored, now: Now) -> list[Output]:
        """A record from before this process: the keys of its epoch must never send again, so the binding is gone."""
        session = restored.session
        # The nonces that were seen are forgotten: what was asked before now could be a copy.
        place = Place(
            Seat(session),
            restored.device_key,
            owner_epoch=session.owner_epoch + 1,
            asked_age_ms=_age_ms(session, now.boot) + 1,
        )
        self.places[session.uid] = place
        rival = self.session(self._by_device.get(restored.device_key, ""))
        if rival is None or rival.born_at < session.born_at:
            self._by_device[restored.device_key] = session.uid
        if session.incumbent is not None:
            place.see(session.incumbent, session.binding.peer if session.binding is not None else "", now.boot)
        return self._for_place(place, inp.Tick(), now)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _for_place(self, place: Place, event: Any, now: Now) -> list[Output]:
        if place.seat.pending is not None:
            place.seat.waiting.append(event)
            return []
        turn = place.seat.begin(now.boot)
        self._apply(place, event, turn, now)
        return self._finish(place, turn)

    def _apply(self, place: Place, event: Any, turn: Turn, now: Now) -> None:
        match event:
            case inp.EpochProved():
                self._epoch_proved(place, event, turn)
            case inp.ReattachAsked():
                self._reattach_asked(place, event, turn, now)
            case inp.PathValidated():
                self._path_validated(place, event, turn)
            case inp.PathMeasured():
                self._path_measured(place, event, turn)
            case inp.PathSilent() | inp.PathDead() | inp.PathHeard():
                self._liveness_fact(place, event, turn)
            case inp.PeerMoved():
                self._peer_moved(place, event, turn)
            case inp.RekeyAsked():
                self._rekey_asked(place, event, turn)
            case inp.PeerClosed():
                turn.feed(ev.CloseRequested(event.reason))
            case inp.OperatorTerminate():
                turn.feed(ev.CloseRequested(Reason.OPERATOR_TERMINATED))
            case ev.PolicyReloaded() | ev.PolicyRefused():
                turn.feed(event)
            case _:
                turn.feed()

    def _epoch_proved(self, place: Place, fact: inp.EpochProved, turn: Turn) -> None:
        place.see(fact.transport, fact.peer, turn.now)
        if turn.session.state is State.BIRTH:
            # The client could use our keys, so our answer reached the handshake's address: that one is bound, whichever
            # of the client's paths was the first to be heard.
            born = place.see(BIRTH_TRANSPORT, place.birth_peer, turn.now)
            place.validate(born, place.birth_peer, 0, turn.now)
            turn.feed(ev.HandshakeCompleted(born.id, place.birth_peer, fact.epoch))
            turn.outputs += place.tune(born.id, turn.session)
        else:
            turn.feed()

    def _reattach_asked(self, place: Place, asked: inp.ReattachAsked, turn: Turn, now: Now) -> None:
        turn.feed()
        known = place.transports.get(asked.transport)
        proved = asked.token_ok or (known is not None and known.validated and known.peer == asked.peer)
        request = ReattachRequest(
            transport=asked.transport, peer=asked.peer, proof=asked.proof, fresh_nonce=asked.fresh_nonce,
            nonce_id=asked.nonce_id, epoch=asked.epoch, expected_version=asked.expected_version,
            age_ms=asked.age_ms, cause=reason_of_code(asked.cause), address_validated=proved,
        )  # fmt: skip
        verdict = validate(turn.session, request, now, owned=True)
        if verdict.passed:
            self._grant(place, asked, request, turn)
        elif verdict.reason is Reason.ADDRESS_UNVALIDATED:
            turn.outputs.append(out.ChallengeReattach(asked.request))
        else:
            self._refuse(place, asked, verdict, turn)
        if asked.proof:
            tolerance = turn.session.policy.security.reattach_max_age // MILLISECOND
            latest = _age_ms(turn.session, turn.now) + tolerance
            place.asked_age_ms = max(place.asked_age_ms, min(asked.age_ms, latest))

    def _grant(self, place: Place, asked: inp.ReattachAsked, request: ReattachRequest, turn: Turn) -> None:
        known = place.see(asked.transport, asked.peer, turn.now)
        place.granted = known
        place.validate(known, asked.peer, known.rtt_ns, turn.now)
        accepted = ev.ReattachAccepted(asked.transport, asked.peer, asked.epoch, asked.nonce_id, request.cause)
        turn.feed(accepted)
        if turn.session.state is State.ATTACHED and turn.session.epoch == asked.epoch:
            place.request = asked.request
            turn.secret = Secret("reattach", asked.request)
        else:
            turn.outputs.append(out.RefuseReattach(asked.request, Reason.STALE_STATE_VERSION, 0, answer=False))

    def _refuse(self, place: Place, asked: inp.ReattachAsked, verdict: Verdict, turn: Turn) -> None:
        """Refuse, and tell the client why; whoever may have sent a copy is told nothing."""
        assert verdict.reason is not None
        refused = ev.ReattachRefused(asked.transport, verdict.step, verdict.reason, asked.nonce_id, asked.proof)
        if turn.session.state is not State.TERMINATED:
            turn.feed(refused)
        version = int(turn.session.bound_version)
        answer = verdict.answerable and asked.age_ms >= place.asked_age_ms
        turn.outputs.append(out.RefuseReattach(asked.request, verdict.reason, version, answer))

    def _unknown(self, asked: inp.ReattachAsked) -> list[Output]:
        data = {"status": "DENIED", "step": 1, "nonce_id": asked.nonce_id}
        event = DomainEvent("reattach.result", "N", reason=Reason.UNKNOWN_SESSION.value, data=data)
        refuse = out.RefuseReattach(asked.request, Reason.UNKNOWN_SESSION, 0, answer=False)
        return [out.Emit((event,)), refuse]

    def _path_validated(self, place: Place, fact: inp.PathValidated, turn: Turn) -> None:
        known = place.see(fact.transport, fact.peer, turn.now)
        place.validate(known, fact.peer, fact.rtt_ns, turn.now)
        turn.outputs += place.tune(known.id, turn.session)
        self._return_by(fact, turn, known)
        attempt = turn.session.attempt
        if (
            attempt is None
            or attempt.transport != fact.transport
            or plans.asked_address(turn.session) not in (None, fact.peer)
        ):
            turn.feed()
        elif attempt.kind is AttemptKind.REVALIDATE:
            turn.feed(ev.IncumbentRevalidated(fact.transport, fact.peer, fact.rtt_ns))
        elif plans.may_rebind(turn.session, turn.now):
            turn.feed(ev.RebindingValidated(fact.transport, fact.peer, fact.rtt_ns))
        else:
            turn.feed(ev.SwitchDenied(Reason.SWITCH_RATE_LIMITED, {"to_id": fact.transport, "rule": "rebinding"}))

    def _return_by(self, fact: inp.PathValidated, turn: Turn, known: Transport) -> None:
        """Begin the attempt that this proof answers, if the session waits for it and none runs."""
        session = turn.session
        bound = session.binding
        if session.incumbent != fact.transport or known.needs_epoch:
            return
        if bound is not None and bound.peer != fact.peer:
            self._return_elsewhere(fact, bound.peer, turn)
        elif bound is None and session.state is State.DEGRADED:
            turn.feed(ev.ConditionMet(fact.transport, "incumbent_answers"))
            if turn.session.state is State.RECOVERING:
                turn.feed(plans.attempt(turn.session, AttemptKind.REVALIDATE, fact.transport, turn.now))

    def _return_elsewhere(self, fact: inp.PathValidated, old: str, turn: Turn) -> None:
        """The bound transport answers from a new address: that is a rebinding, whatever was being proved."""
        if not plans.may_rebind(turn.session, turn.now):
            return
        if turn.session.state in (State.ATTACHED, State.VOLATILE):
            turn.feed(ev.PeerAddressChanged(fact.transport, old, fact.peer))
        elif turn.session.state is State.DEGRADED:
            turn.feed(ev.ConditionMet(fact.transport, "rebinding_answers"))
        attempt = turn.session.attempt
        if attempt is not None and attempt.transport == fact.transport and attempt.peer != fact.peer:
            turn.feed(ev.AttemptFailed(attempt.transport, Reason.NAT_REBINDING))
        if turn.session.state is State.RECOVERING and turn.session.attempt is None:
            turn.feed(plans.attempt(turn.session, AttemptKind.REBIND, fact.transport, turn.now, fact.peer))

    def _path_measured(self, place: Place, fact: inp.PathMeasured, turn: Turn) -> None:
        known = place.see(fact.transport, "", turn.now)
        updated = transport_facts.measured(known, fact.rtt_ns, fact.rtt_dev_ns, fact.loss_up, fact.loss_down)
        place.transports[known.id] = updated
        turn.outputs += place.tune(known.id, turn.session)
        turn.feed()

    def _liveness_fact(self, place: Place, fact: Any, turn: Turn) -> None:
        known = place.see(fact.transport, "", turn.now)
        now, switching = turn.now, turn.session.policy.switching
        match fact:
            case inp.PathSilent():
                place.transports[known.id] = transport_facts.fell_silent(known, now)
                data = {"silent_ms": fact.silent_ns / MILLISECOND, "limit_ms": fact.limit_ns / MILLISECOND}
                turn.feed(ev.InstabilitySeen(known.id, silence_reason(turn.session.policy, fact.limit_ns), data))
            case inp.PathDead():
                place.transports[known.id] = transport_facts.died(known, now, switching)
                attempt = turn.session.attempt
                if attempt is not None and attempt.transport == known.id:
                    turn.feed(ev.AttemptFailed(known.id, Reason.TRANSPORT_DEAD))
                bound = turn.session.binding
                dead = ev.TransportDied(known.id, "silence", fact.silent_ns // MILLISECOND)
                turn.feed(*([dead] if bound is not None and bound.transport == known.id else []))
            case _:
                place.transports[known.id] = transport_facts.heard(known, now)
                turn.feed()

    def _peer_moved(self, place: Place, fact: inp.PeerMoved, turn: Turn) -> None:
        turn.feed(ev.PeerAddressChanged(fact.transport, fact.old, fact.new))

    def _rekey_asked(self, place: Place, asked: inp.RekeyAsked, turn: Turn) -> None:
        before = turn.session.epoch
        turn.feed(ev.KeysRotated(asked.epoch))
        if turn.session.epoch > before:
            turn.secret = Secret("rekey", asked.request)
            turn.outputs.append(out.GrantRekey(asked.request, turn.session.uid))

    def _policy_offered(self, offer: inp.PolicyOffered, now: Now) -> list[Output]:
        event: ev.Event = ev.PolicyRefused(offer.errors)
        if offer.policy is not None:
            self.policy = offer.policy
            event = ev.PolicyReloaded(offer.policy)
        outputs: list[Output] = []
        for place in list(self.places.values()):
            outputs += self._for_place(place, event, now)
        return outputs

    def _tick(self, now: Now) -> list[Output]:
        outputs: list[Output] = []
        for place in list(self.places.values()):
            if any(now.boot >= at for at in plans.moments(place)):
                outputs += self._for_place(place, inp.Tick(), now)
        return outputs

    # --- turns -------------------------------------------------------------------------------------------------------

    def _finish(self, place: Place, turn: Turn) -> list[Output]:
        while (event := self._next_event(place, turn)) is not None:
            turn.follow(event)
        plans.challenge_silent(place, turn)
        orders = [order for effect in turn.effects for order in self._order(place, effect, turn)]
        return place.seat.close(turn, orders)

    def _next_event(self, place: Place, turn: Turn) -> ev.Event | None:
        if turn.session.state.live:
            plans.doubt_unanswered(place, turn)
        superseded = self._by_device.get(place.device, turn.session.uid) != turn.session.uid
        return plans.next_event(place, turn.session, turn.now, superseded=superseded)

    # --- orders ------------------------------------------------------------------------------------------------------

    def _order(self, place: Place, effect: fx.Effect, turn: Turn) -> list[Output]:
        uid = turn.session.uid
        match effect:
            case fx.Bind():
                return self._bind(place, effect, turn)
            case fx.Unbind():
                return [out.Deactivate(uid)]
            case fx.StartAttempt():
                rebinding = effect.attempt.kind is AttemptKind.REBIND  # the packet core has challenged that address
                return [] if rebinding else [out.ChallengePath(uid, effect.attempt.transport)]
            case fx.StopAttempt():
                return []
            case fx.Erase():
                return [out.EndSession(uid, effect.reason, effect.tell_peer)]

    def _bind(self, place: Place, effect: fx.Bind, turn: Turn) -> list[Output]:
        uid = turn.session.uid
        if place.request is not None:
            request, place.request = place.request, None
            return [
                out.GrantReattach(request, uid, int(turn.session.version)),
                *place.tune(effect.transport, turn.session),
            ]
        return [out.Activate(uid, effect.transport, effect.peer)]

    # --- commits -----------------------------------------------------------------------------------------------------

    def _commit_ended(self, ended: inp.CommitEnded, now: Now) -> list[Output]:
        place = self.places.get(ended.uid)
        if place is None or place.seat.pending is None or ended.serial != place.seat.serial:
            return []
        turn = place.seat.settle(now.boot, committed=ended.result == "committed")
        if ended.result == "committed":
            place.granted = None
            outputs = list(turn.outputs)
            if self._births.pop(ended.uid, None) is not None:
                outputs += self._born(ended.uid, now)
            if turn.session.state is State.TERMINATED:
                self._forget(ended.uid)
                return outputs
        else:
            outputs = self._commit_lost(place, turn, ended)
        return outputs + self._after_commit(place, now)

    def _commit_lost(self, place: Place, turn: Turn, ended: inp.CommitEnded) -> list[Output]:
        """Nothing happened: tell nobody, keep the old record, and say so."""
        if place.granted is not None:
            place.transports[place.granted.id] = place.granted
        place.request = place.granted = None
        unavailable = ended.result == "unavailable"
        reason = Reason.STORE_UNAVAILABLE if unavailable else Reason.ATOMICITY_FAILED
        name = "ownership.store_unavailable" if unavailable else "ownership.rejected"
        session = place.seat.session
        data: dict[str, Any] = {"op": "commit"} if unavailable else {"seen_version": int(session.version)}
        if ended.result == "replayed_device":
            name, reason, data = "security.replay_detected", Reason.REPLAY_DETECTED, {"step": "handshake", "count": 1}
        event = DomainEvent(
            name, "N", session=ended.uid, state_version=int(session.version), owner_epoch=session.owner_epoch,
            prev_state=session.state.value, state=session.state.value, reason=reason.value, data=data,
        )  # fmt: skip
        outputs: list[Output] = [out.Emit((event,)), *(order for order in turn.outputs if isinstance(order, UNBOUND))]
        handshake = self._births.pop(ended.uid, None)
        if handshake is not None:
            self._forget(ended.uid)
            return [*outputs, out.RefuseHandshake(handshake)]
        if turn.secret is not None and turn.secret.kind == "reattach":
            version = int(session.bound_version)
            outputs.append(out.RefuseReattach(turn.secret.number, reason, version, answer=True))
        return outputs

    def _after_commit(self, place: Place, now: Now) -> list[Output]:
        outputs: list[Output] = []
        while place.seat.waiting and place.seat.pending is None:
            outputs += self._for_place(place, place.seat.waiting.popleft(), now)
        return outputs

    def _forget(self, uid: str) -> None:
        place = self.places.pop(uid, None)
        if place is not None and self._by_device.get(place.device) == uid:
            del self._by_device[place.device]


def _age_ms(session: Session, now: Instant) -> int:
    return (now - session.born_at) // MILLISECOND
