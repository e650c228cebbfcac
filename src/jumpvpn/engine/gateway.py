"""The gateway's engine: many sessions, each the client's to move; the gateway validates, commits and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.liveness import Liveness, liveness_of, silence_reason
from jumpvpn.engine.outputs import Output, Secret
from jumpvpn.engine.seat import Seat, Turn
from jumpvpn.policy.model import Policy
from jumpvpn.policy.selection import Budget
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth
from jumpvpn.session.reasons import Reason, reason_of_code
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.validation import ReattachRequest, Verdict, validate
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Instant, Now, TransportId, later

CHALLENGE_AGAIN = SECOND  # while DEGRADED, an incumbent that fell silent is asked that often whether it is back
RETUNE_STEP = 5 * MILLISECOND
UNBOUND = (out.ChallengeReattach, out.RefuseReattach, out.TuneLiveness)  # orders that depend on no commit

BIRTH_TRANSPORT = TransportId("path0/udp")  # wire format: the transport of the handshake is path 0


@dataclass(slots=True)
class Place:
    """One session at the gateway: its seat, its device, and the client's paths as seen from here.

    ``owner_epoch`` is the incarnation that this process must record before it acts for a session of before it.
    ``asked_age_ms`` is the newest age (ms) that a request of the client named: an older one could be a copy.
    """

    seat: Seat
    device: bytes = field(repr=False)
    birth_peer: str = ""
    transports: dict[TransportId, Transport] = field(default_factory=dict)
    liveness: dict[TransportId, Liveness] = field(default_factory=dict)
    request: int | None = None  # the reattach request that the pending turn grants
    granted: Transport | None = None  # the granted transport as it was before: a commit that fails leaves it so
    owner_epoch: int = 0
    asked_age_ms: int = 0
    challenged_at: Instant = Instant(0)


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
        return min((at for place in self.places.values() for at in self._moments(place)), default=None)

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
            self._see(place, session.incumbent, session.binding.peer if session.binding is not None else "", now.boot)
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
        self._see(place, fact.transport, fact.peer, turn.now)
        if turn.session.state is State.BIRTH:
            # The client could use our keys, so our answer reached the handshake's address: that one is bound, whichever
            # of the client's paths was the first to be heard.
            born = self._see(place, BIRTH_TRANSPORT, place.birth_peer, turn.now)
            place.transports[born.id] = transport_facts.validated(born, place.birth_peer, 0, turn.now)
            turn.feed(ev.HandshakeCompleted(born.id, place.birth_peer, fact.epoch))
            turn.outputs += self._tune(place, born.id, turn)
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
        known = self._see(place, asked.transport, asked.peer, turn.now)
        place.granted = known
        place.transports[known.id] = transport_facts.validated(known, asked.peer, known.rtt_ns, turn.now)
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
        known = self._see(place, fact.transport, fact.peer, turn.now)
        place.transports[known.id] = transport_facts.validated(known, fact.peer, fact.rtt_ns, turn.now)
        turn.outputs += self._tune(place, known.id, turn)
        self._return_by(fact, turn, known)
        attempt = turn.session.attempt
        if (
            attempt is None
            or attempt.transport != fact.transport
            or _asked_address(turn.session) not in (None, fact.peer)
        ):
            turn.feed()
        elif attempt.kind is AttemptKind.REVALIDATE:
            turn.feed(ev.IncumbentRevalidated(fact.transport, fact.peer, fact.rtt_ns))
        elif self._may_rebind(turn.session, turn.now):
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
                turn.feed(self._attempt(turn.session, AttemptKind.REVALIDATE, fact.transport, turn.now))

    def _return_elsewhere(self, fact: inp.PathValidated, old: str, turn: Turn) -> None:
        """The bound transport answers from a new address: that is a rebinding, whatever was being proved."""
        if not self._may_rebind(turn.session, turn.now):
            return
        if turn.session.state in (State.ATTACHED, State.VOLATILE):
            turn.feed(ev.PeerAddressChanged(fact.transport, old, fact.peer))
        elif turn.session.state is State.DEGRADED:
            turn.feed(ev.ConditionMet(fact.transport, "rebinding_answers"))
        attempt = turn.session.attempt
        if attempt is not None and attempt.transport == fact.transport and attempt.peer != fact.peer:
            turn.feed(ev.AttemptFailed(attempt.transport, Reason.NAT_REBINDING))
        if turn.session.state is State.RECOVERING and turn.session.attempt is None:
            turn.feed(self._attempt(turn.session, AttemptKind.REBIND, fact.transport, turn.now, fact.peer))

    def _may_rebind(self, session: Session, now: Instant) -> bool:
        return Budget(session.switches, None).used(now) < session.policy.switching.max_per_minute

    def _path_measured(self, place: Place, fact: inp.PathMeasured, turn: Turn) -> None:
        known = self._see(place, fact.transport, "", turn.now)
        updated = transport_facts.measured(known, fact.rtt_ns, fact.rtt_dev_ns, fact.loss_up, fact.loss_down)
        place.transports[known.id] = updated
        turn.outputs += self._tune(place, known.id, turn)
        turn.feed()

    def _liveness_fact(self, place: Place, fact: Any, turn: Turn) -> None:
        known = self._see(place, fact.transport, "", turn.now)
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
            if any(now.boot >= at for at in self._moments(place)):
                outputs += self._for_place(place, inp.Tick(), now)
        return outputs

    # --- plans -------------------------------------------------------------------------------------------------------

    def _finish(self, place: Place, turn: Turn) -> list[Output]:
        while (event := self._plan(place, turn)) is not None:
            turn.follow(event)
        self._challenge_silent(place, turn)
        orders = [order for effect in turn.effects for order in self._order(place, effect, turn)]
        return place.seat.close(turn, orders)

    def _plan(self, place: Place, turn: Turn) -> ev.Event | None:
        """The one event that follows from the present facts. What a failed commit undid, follows again."""
        session = turn.session
        if not session.state.live:
            return None
        self._doubt_unanswered(place, turn)
        if self._by_device.get(place.device, session.uid) != session.uid:
            return ev.CloseRequested(Reason.DEVICE_SUPERSEDED)
        if place.owner_epoch > session.owner_epoch:
            if session.state is State.BIRTH:
                return ev.HandshakeFailed(Reason.HANDSHAKE_TIMEOUT)
            return ev.OwnerChanged(place.owner_epoch)
        bound = session.binding
        known = place.transports.get(bound.transport) if bound is not None else None
        if known is not None and known.condition is Condition.DEAD:
            return ev.TransportDied(known.id, "silence")
        return self._state_plan(place, session, known, turn.now)

    def _state_plan(self, place: Place, session: Session, bound: Transport | None, now: Instant) -> ev.Event | None:
        if session.state is State.ATTACHED and bound is not None and bound.condition is Condition.SILENT:
            return ev.InstabilitySeen(bound.id, Reason.PROBE_TIMEOUT)
        if session.state is State.VOLATILE:
            if session.binding is None:
                assert session.incumbent is not None
                return ev.TransportDied(session.incumbent, "binding_cleared")
            due = self.stable_at(place, session)
            return ev.TransportStabilized(session.binding.transport) if due is not None and now >= due else None
        if session.state is State.RECOVERING and session.attempt is None:
            return self._next_attempt(place, session, now)
        incumbent = place.transports.get(session.incumbent) if session.incumbent is not None else None
        if session.state is State.DEGRADED and incumbent is not None and incumbent.validated:
            return ev.ConditionMet(incumbent.id, "incumbent_stable")
        return None

    def _doubt_unanswered(self, place: Place, turn: Turn) -> None:
        """A challenge that ran out of time is silence: the transport has to answer before it is asked again."""
        while turn.unanswered:
            known = place.transports.get(turn.unanswered.pop().transport)
            if known is not None:
                place.transports[known.id] = transport_facts.fell_silent(known, turn.now)

    def _challenge_silent(self, place: Place, turn: Turn) -> None:
        due = self.challenge_due(place, turn.session)
        if due is not None and turn.now >= due:
            assert turn.session.incumbent is not None
            place.challenged_at = turn.now
            turn.outputs.append(out.ChallengePath(turn.session.uid, turn.session.incumbent))

    def challenge_due(self, place: Place, session: Session) -> Instant | None:
        """When a silent incumbent is asked again, while DEGRADED waits; never before this process had its keys."""
        if session.state is not State.DEGRADED or session.incumbent is None:
            return None
        known = place.transports.get(session.incumbent)
        if known is None or known.validated or known.validated_at is None:
            return None
        return later(place.challenged_at, CHALLENGE_AGAIN)

    def _next_attempt(self, place: Place, session: Session, now: Instant) -> ev.Event:
        """The gateway never moves a session by itself: it lets the incumbent prove itself, or waits for the client."""
        wish = session.want
        if wish is not None and wish.kind is AttemptKind.REBIND and wish.target not in session.tried:
            assert wish.target is not None
            return self._attempt(session, AttemptKind.REBIND, wish.target, now, wish.peer)
        known = place.transports.get(session.incumbent) if session.incumbent is not None else None
        if known is not None and known.id not in session.tried and (session.binding is not None or known.validated):
            return self._attempt(session, AttemptKind.REVALIDATE, known.id, now)
        return ev.NoCandidate(len(place.transports))

    def _attempt(
        self, session: Session, kind: AttemptKind, transport: TransportId, now: Instant, peer: str | None = None
    ) -> ev.AttemptStarted:
        limit = min(session.policy.recovery.attempt_timeout, session.policy.recovery.window)
        return ev.AttemptStarted(kind, transport, later(now, limit), peer)

    def stable_at(self, place: Place, session: Session) -> Instant | None:
        """When the incumbent will have been good for the stability window, or None."""
        if session.state is not State.VOLATILE or session.binding is None:
            return None
        known = place.transports.get(session.binding.transport)
        if known is None or not known.validated:
            return None
        window = session.policy.volatility.stability_after(len(session.volatile_entries))
        return later(max(known.since, session.entered_at), window)

    def _moments(self, place: Place) -> list[Instant]:
        session = place.seat.session
        waits = (self.stable_at(place, session), self.challenge_due(place, session))
        return place.seat.wakeups([at for at in waits if at is not None])

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
                *self._tune(place, effect.transport, turn),
            ]
        return [out.Activate(uid, effect.transport, effect.peer)]

    def _tune(self, place: Place, transport: TransportId, turn: Turn) -> list[Output]:
        known = place.transports[transport]
        wanted = liveness_of(turn.session.policy, known.rtt_ns, known.rtt_dev_ns)
        before = place.liveness.get(transport)
        if before is not None and before.close_to(wanted, RETUNE_STEP):
            return []
        place.liveness[transport] = wanted
        return [wanted.order(turn.session.uid, transport)]

    def _see(self, place: Place, transport: TransportId, peer: str, now: Instant) -> Transport:
        """The client's path as known here; a path never seen before begins as a candidate."""
        known = place.transports.get(transport)
        if known is None:
            known = Transport(transport, "", "udp", "", peer, since=now, condition=Condition.CANDIDATE)
            place.transports[transport] = known
        return known

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


def _asked_address(session: Session) -> str | None:
    """The address that the running attempt challenges, or None if any will do: nothing is bound."""
    if session.attempt is not None and session.attempt.peer is not None:
        return session.attempt.peer
    return session.binding.peer if session.binding is not None else None


def _age_ms(session: Session, now: Instant) -> int:
    return (now - session.born_at) // MILLISECOND
