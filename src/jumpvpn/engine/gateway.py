"""The gateway's engine: many sessions, each the client's to move; the gateway validates, commits and bounds."""

from __future__ import annotations

from typing import Any

from jumpvpn.engine import gateway_facts as facts
from jumpvpn.engine import gateway_plans as plans
from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine import takeover
from jumpvpn.engine.alarms import Alarms
from jumpvpn.engine.outputs import Output, Secret
from jumpvpn.engine.place import Place
from jumpvpn.engine.seat import Seat, Turn
from jumpvpn.policy.model import Policy
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.actions import note_owner
from jumpvpn.session.machine import birth, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.session.validation import ReattachRequest, Verdict, validate
from jumpvpn.values import MILLISECOND, DomainEvent, Instant, Now, TransportId, Version

UNBOUND = (out.ChallengeReattach, out.RefuseReattach, out.TuneLiveness)  # orders that depend on no commit

BIRTH_TRANSPORT = TransportId("path0/udp")  # wire format: the transport of the handshake is path 0


class GatewayEngine:
    """``handle(input, now) -> outputs``; deterministic; sessions never share state."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.places: dict[str, Place] = {}
        self._by_device: dict[bytes, str] = {}
        self._births: dict[str, int] = {}
        self.draining = False
        self.alarms = Alarms()

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
            case inp.TakeoverAsked():
                return self._takeover_asked(event, now)
            case inp.OwnerElsewhere():
                return self._owner_elsewhere(event, now)
            case inp.LeaseEnded():
                return self._lease_ended(event, now)
            case inp.DrainWished():
                return self._drain_wished(event)
            case inp.CommitEnded():
                return self._commit_ended(event, now)
            case inp.Tick():
                return self._tick(now)
            case inp.PolicyOffered():
                return self._policy_offered(event, now)
        place = self.places.get(event.uid)
        if place is None:
            return []
        if isinstance(event, inp.PathMeasured):
            return facts.path_measured(place, event, now.boot)
        return self._for_place(place, event, now)

    def next_wakeup(self) -> Instant | None:
        """When the engine wants a ``Tick`` although nothing happened."""
        return self.alarms.next()

    # --- births ------------------------------------------------------------------------------------------------------

    def _handshake_offered(self, offer: inp.HandshakeOffered, now: Now) -> list[Output]:
        if offer.device is None:
            data = {"step": "handshake", "count": 1, "source_prefix": offer.peer}
            event = DomainEvent("security.validation_failed", "N", reason=Reason.UNKNOWN_DEVICE.value, data=data)
            return [out.Emit((event,)), out.RefuseHandshake(offer.handshake)]
        if self.draining:  # silently: the client offers itself to the next gateway of its list
            return [out.RefuseHandshake(offer.handshake)]
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
        session, asked = restored.session, restored.request
        mine = self.places.get(session.uid)
        if mine is not None:
            return self._for_place(mine, asked, now) if asked is not None else []
        # The nonces that were seen are forgotten: what was asked before now could be a copy.
        place = Place(
            Seat(session), restored.device_key, claim=takeover.claim_after(restored),
            asked_age_ms=takeover.age_ms(session, now.boot) + 1,
            age_guessed=restored.age_guessed,
        )  # fmt: skip
        return self._take_place(place, asked or inp.Tick(), now, superseded=restored.superseded)

    def _take_place(self, place: Place, first: Any, now: Now, *, superseded: bool = False) -> list[Output]:
        """Begin to own what another run or another node owned; the claim and what ``first`` asks are one commit."""
        session = place.seat.session
        self.places[session.uid] = place
        rival = self.session(self._by_device.get(place.device, ""))
        if rival is None or (not superseded and rival.born_at < session.born_at):
            self._by_device[place.device] = session.uid
        if session.incumbent is not None:
            place.see(session.incumbent, session.binding.peer if session.binding is not None else "", now.boot)
        return self._for_place(place, first, now)

    # --- ownership ---------------------------------------------------------------------------------------------------

    def _takeover_asked(self, asked: inp.TakeoverAsked, now: Now) -> list[Output]:
        """A request with its proof is the client's word that it has left its binding: the session moves here.

        It is validated as it will be met after the claim; what would be refused then does not move the session at all.
        """
        request, session = asked.request, asked.session
        mine = self.places.get(session.uid)
        if mine is not None:
            return self._for_place(mine, request, now)
        claim = takeover.claim_for(asked)
        verdict = self._verdict_ahead(asked, claim, now)
        if not verdict.passed:
            return self._turned_away(asked, verdict, now)
        return self._take_place(Place(Seat(session), asked.device_key, claim=claim, claimant=asked), request, now)

    def _verdict_ahead(self, asked: inp.TakeoverAsked, claim: ev.OwnerChanged, now: Now) -> Verdict:
        if self.draining:
            return Verdict(2, Reason.NOT_OWNER)
        request = takeover.request_of(asked.request, address_validated=asked.request.token_ok)
        return validate(note_owner(asked.session, claim, now.boot), request, now, owned=True)

    def _turned_away(self, asked: inp.TakeoverAsked, verdict: Verdict, now: Now) -> list[Output]:
        """The session stays where it is; a proved client is told why."""
        request, session = asked.request, asked.session
        release = out.ReleaseSession(session.uid, session.id)
        if verdict.reason is Reason.ADDRESS_UNVALIDATED:
            return [out.ChallengeReattach(request.request), release]
        assert verdict.reason is not None
        refused = ev.ReattachRefused(request.transport, verdict.step, verdict.reason, request.nonce_id, request.proof)
        told = step(session, refused, now.boot).events
        answer = request.proof and request.fresh_nonce
        version = int(session.bound_version)
        return [out.Emit(told), out.RefuseReattach(request.request, verdict.reason, version, answer), release]

    def _owner_elsewhere(self, seen: inp.OwnerElsewhere, now: Now) -> list[Output]:
        """The record has another owner: nothing that this node still does for the session counts."""
        place = self.places.get(seen.uid)
        if place is None or seen.owner_epoch <= place.seat.session.owner_epoch:
            return []
        pending = place.seat.pending
        if seen.owner == "" and pending is not None and pending.session.state is State.TERMINATED:
            return []  # this node's own end of it
        return self._let_go(place, Reason.NOT_OWNER, now, {})

    def _lease_ended(self, ended: inp.LeaseEnded, now: Now) -> list[Output]:
        outputs: list[Output] = []
        for place in list(self.places.values()):
            outputs += self._let_go(place, Reason.LEASE_LOST, now, {"stopped_forwarding_mono_ms": ended.stopped_ms})
        return outputs

    def _let_go(self, place: Place, code: Reason, now: Now, told: dict[str, Any]) -> list[Output]:
        """Row 32: forget the session without a word to the client, and say so. A commit under way decides nothing."""
        session = place.seat.session
        outputs: list[Output] = []
        claim = place.claim
        # Whose claim is still under way has owned nothing yet.
        if session.state.live and (claim is None or claim.owner_epoch <= session.owner_epoch):
            events = step(session, ev.LeaseLost(session.owner_epoch), now.boot).events
            data = {"code": code.value, **told}
            outputs.append(out.Emit(tuple(event.showing(event.transport, {**event.data, **data}) for event in events)))
        self._forget(session.uid)
        release = out.ReleaseSession(session.uid, session.id, elsewhere=code is not Reason.LEASE_LOST)
        return [*outputs, *_undecided(place, code), release]

    def _drain_wished(self, wish: inp.DrainWished) -> list[Output]:
        self.draining = wish.on
        data = {"state": "on" if wish.on else "off", "sessions": len(self.places)}
        return [out.Emit((DomainEvent("cluster.drain", "N", data=data),))]

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _for_place(self, place: Place, event: Any, now: Now) -> list[Output]:
        if place.seat.pending is not None:
            place.seat.waiting.append(event)
            return []
        turn = place.seat.begin(now.boot)
        claim = plans.owed_claim(place, turn.session)
        if claim is not None and claim.from_node:
            # Whatever this node does for the session it does as its owner, also when time has run out already.
            turn.take(step(turn.session, claim, turn.now))
        self._apply(place, event, turn, now)
        return self._finish(place, turn)

    def _apply(self, place: Place, event: Any, turn: Turn, now: Now) -> None:
        match event:
            case inp.EpochProved():
                self._epoch_proved(place, event, turn)
            case inp.ReattachAsked():
                self._reattach_asked(place, event, turn, now)
            case inp.PathValidated():
                facts.path_validated(place, event, turn)
            case inp.PathSilent() | inp.PathDead() | inp.PathHeard():
                facts.liveness_fact(place, event, turn)
            case inp.PeerMoved():
                turn.feed(ev.PeerAddressChanged(event.transport, event.old, event.new))
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
        if turn.session.state.live and (owed := plans.owed_claim(place, turn.session)) is not None:
            turn.follow(owed)  # the loss, which the request comes after
        known = place.transports.get(asked.transport)
        proved = asked.token_ok or (known is not None and known.validated and known.peer == asked.peer)
        request = takeover.request_of(asked, address_validated=proved)
        claim = takeover.claim_again(turn.session, asked) if place.claim is not None else None
        aged = takeover.as_old_as_asked(turn.session, asked, turn.now) if place.age_guessed else turn.session
        met = aged if claim is None else note_owner(aged, claim, turn.now)
        verdict = validate(met, request, now, owned=True)
        if verdict.passed:
            turn.session, place.age_guessed = aged, False
            turn.feed(*([claim] if claim is not None else []))
            self._grant(place, asked, request, turn)
        elif verdict.reason is Reason.ADDRESS_UNVALIDATED:
            turn.outputs.append(out.ChallengeReattach(asked.request))
        else:
            self._refuse(place, asked, verdict, turn)
        if asked.proof:
            tolerance = turn.session.policy.security.reattach_max_age // MILLISECOND
            latest = takeover.age_ms(turn.session, turn.now) + tolerance
            place.asked_age_ms = max(place.asked_age_ms, min(asked.age_ms, latest))

    def _grant(self, place: Place, asked: inp.ReattachAsked, request: ReattachRequest, turn: Turn) -> None:
        known = place.see(asked.transport, asked.peer, turn.now)
        place.granted = known
        place.validate(known, asked.peer, known.rtt_ns, turn.now)
        known_version = Version(asked.expected_version)
        accepted = ev.ReattachAccepted(
            asked.transport, asked.peer, asked.epoch, asked.nonce_id, request.cause, known_version
        )
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
        if asked.uid is not None and asked.proof and asked.fresh_nonce and not asked.token_ok:
            # The packet core has it: it waits to be taken up after a restart. Its address has to be proved in any case.
            return [out.ChallengeReattach(asked.request)]
        data = {"status": "DENIED", "step": 1, "nonce_id": asked.nonce_id}
        event = DomainEvent("reattach.result", "N", reason=Reason.UNKNOWN_SESSION.value, data=data)
        refuse = out.RefuseReattach(asked.request, Reason.UNKNOWN_SESSION, 0, answer=False)
        return [out.Emit((event,)), refuse]

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
        for uid in self.alarms.take_due(now.boot):
            if (place := self.places.get(uid)) is not None:
                outputs += self._for_place(place, inp.Tick(), now)
        return outputs

    def watch_clock(self, place: Place) -> None:
        """Note when the session wants to be looked at, after whatever may have moved that."""
        self.alarms.set(place.seat.session.uid, min(plans.moments(place), default=None))

    # --- turns -------------------------------------------------------------------------------------------------------

    def _finish(self, place: Place, turn: Turn) -> list[Output]:
        while (event := self._next_event(place, turn)) is not None:
            turn.follow(event)
        plans.challenge_silent(place, turn)
        orders = [order for effect in turn.effects for order in self._order(place, effect, turn)]
        outputs = place.seat.close(turn, orders)
        self.watch_clock(place)
        return outputs

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
        self.watch_clock(place)
        if ended.result == "committed":
            place.granted = place.claimant = None
            outputs = list(turn.outputs)
            if self._births.pop(ended.uid, None) is not None:
                outputs += self._born(ended.uid, now)
            if turn.session.state is State.TERMINATED:
                self._forget(ended.uid)
                return outputs + _undecided(place, Reason.INVALID_STATE_FOR_REATTACH)
        elif place.claimant is not None:
            return self._claim_lost(place.claimant, ended)
        else:
            outputs = self._commit_lost(place, turn, ended)
        return outputs + self._after_commit(place, now)

    def _claim_lost(self, asked: inp.TakeoverAsked, ended: inp.CommitEnded) -> list[Output]:
        """Somebody else moved the record, or the store is away: nothing is owned here.

        After a conflict the request is forgotten in silence: the client repeats it, and the record is read again.
        """
        session, conflict = asked.session, ended.result == "conflict"
        event = _rejected(session, unavailable=not conflict)
        version, number = int(session.bound_version), asked.request.request
        refuse = out.RefuseReattach(number, Reason(event.reason), version, answer=not conflict)
        self._forget(session.uid)
        return [out.Emit((event,)), refuse, out.ReleaseSession(session.uid, session.id)]

    def _commit_lost(self, place: Place, turn: Turn, ended: inp.CommitEnded) -> list[Output]:
        """Nothing happened: tell nobody, keep the old record, and say so."""
        if place.granted is not None:
            place.transports[place.granted.id] = place.granted
        place.request = place.granted = None
        session = place.seat.session
        event = _rejected(session, unavailable=ended.result == "unavailable")
        reason = Reason(event.reason)
        if ended.result == "replayed_device":
            reason = Reason.REPLAY_DETECTED
            event = _about(session, "security.replay_detected", reason, {"step": "handshake", "count": 1})
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
        self.alarms.set(uid, None)
        if place is not None and self._by_device.get(place.device) == uid:
            del self._by_device[place.device]


def _undecided(place: Place, reason: Reason) -> list[Output]:
    """Requests that nobody will decide on: of the commit under way, and of those that wait for it."""
    seat = place.seat
    requests = [event.request for event in seat.waiting if isinstance(event, inp.ReattachAsked)]
    secret = seat.pending.secret if seat.pending is not None else None
    if secret is not None and secret.kind == "reattach":
        requests.append(secret.number)
    version = int(seat.session.bound_version)
    return [out.RefuseReattach(request, reason, version, answer=False) for request in requests]


def _rejected(session: Session, *, unavailable: bool) -> DomainEvent:
    """A commit did not take place."""
    if unavailable:
        return _about(session, "ownership.store_unavailable", Reason.STORE_UNAVAILABLE, {"op": "commit"})
    return _about(session, "ownership.rejected", Reason.ATOMICITY_FAILED, {"seen_version": int(session.version)})


def _about(session: Session, name: str, reason: Reason, data: dict[str, Any]) -> DomainEvent:
    return DomainEvent(
        name, "N", session=session.uid, state_version=int(session.version), owner_epoch=session.owner_epoch,
        prev_state=session.state.value, state=session.state.value, reason=reason.value, data=data,
    )  # fmt: skip
