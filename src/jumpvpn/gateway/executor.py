"""Carries out the gateway engine's orders in the packet core, and reads its facts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.outputs import Output
from jumpvpn.gateway.admission import Admission
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import CLOSE, Fact, Overtaken, Plane, Race, end_session
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept
from jumpvpn.values import Epoch, Instant, SessionId, TransportId

PROTOCOL_VERSION = 1
REQUESTS_REMEMBERED = 16_384  # as many as wait in the packet core at most
SESSIONS_REMEMBERED = 65_536  # that were decided on last: what is older is in the store, and refuses by its version
NONCES_REMEMBERED = 8  # of one session: within the second until the store has them it is decided on no more often
# A client that was asked to leave takes what comes from here until its new gateway's first packet. What comes in here
# is delivered until the network behind the gateways sends to that one, which is after a commit and an announcement;
# then it is passed on. For twice that time what the client sent here before it left may still arrive.
HAND_OVER_SECONDS = 0.1
LINGER_SECONDS = 0.2


Refuse = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A device of the list, with its inner addresses (``address/prefix``)."""

    name: str
    inner: tuple[str, ...]


class Elsewhere(Protocol):
    """Who looks after sessions that this gateway does not hold, and after births that others must know of."""

    def asked(self, session_id: bytes, request: inp.ReattachAsked) -> None:
        """A request for a session that is not here."""

    def proved(self, handle: int, request: inp.ReattachAsked) -> bool:
        """A request was opened, or not, with a candidate's keys; False if ``handle`` is no candidate."""

    def birth(self, device: bytes, admitted: Admitted, offer: Callable[[Admitted], None], refuse: Refuse) -> None:
        """A device of the list offers itself: call ``offer`` with its inner addresses, or ``refuse``, later."""

    def born(self, uid: str) -> None:
        """The session is durable and the client has been answered."""

    def reached(self, handle: int) -> None:
        """The client has opened a new epoch: it hears what this gateway sends."""

    def released(self, session_id: SessionId, *, elsewhere: bool) -> None:
        """The session was let go here."""


class Announcing(Protocol):
    """Who makes the network behind the gateways send packets for inner addresses here."""

    def expected(self, addresses: Iterable[str]) -> None:
        """These are about to be carried here: begin to take what comes for them."""

    def ready(self, addresses: Iterable[str]) -> None:
        """Wait until what comes for expected ones is taken."""

    def hush(self, *, on: bool) -> None:
        """Announce each address once only, or again as often as it takes."""

    def acquired(self, addresses: Iterable[str]) -> None:
        """These are carried here."""

    def leaving(self, addresses: Iterable[str]) -> None:
        """These are carried elsewhere; what still comes for them is taken until they are released."""

    def released(self, addresses: Iterable[str]) -> None:
        """These are not carried here any more."""


class Decided:
    """Nonces of requests that this process has granted or denied, by session, also of sessions that have moved on.

    The packet core forgets them with the session; a request that is still on its way must not bring the session back,
    and what its client was told stays so.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._decided: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def asked(self, request: int, uid: str, nonce: str) -> bool:
        """A proved request waits for its decision; whether its nonce was never decided on here."""
        self._waiting[request] = (uid, nonce)
        while len(self._waiting) > REQUESTS_REMEMBERED:
            self._waiting.popitem(last=False)
        return nonce not in self._decided.get(uid, ())

    def decide(self, request: int) -> None:
        """The request is granted, or denied with an answer."""
        uid, nonce = self._waiting.pop(request, ("", ""))
        if not uid:  # without proof: whoever sent it decides nothing about the client's own
            return
        known = self._decided.pop(uid, ())
        self._decided[uid] = known if nonce in known else (*known[1 - NONCES_REMEMBERED :], nonce)
        while len(self._decided) > SESSIONS_REMEMBERED:
            self._decided.popitem(last=False)


@dataclass(slots=True)
class _Birth:
    session_id: SessionId
    kept: Kept


class GatewayExecutor:
    """Knows which packet-core session belongs to which uid, and what each device may have."""

    def __init__(
        self,
        plane: Plane,
        devices: dict[bytes, Admitted],
        welcome: Callable[[Admitted], bytes],
        post: Callable[[Any], None],
    ) -> None:
        self._plane = plane
        self._devices = devices
        self._welcome = welcome
        self._post = post
        self.handles: dict[str, int] = {}
        self._uids: dict[int, str] = {}
        self._births: dict[int, _Birth] = {}  # by handshake
        self.race = Race()
        self.admission = Admission(self._admitted, self._forget_request)
        self._decided = Decided()
        self._kept: dict[str, Kept] = {}
        self._expected: set[str] = set()  # sessions whose packets are taken here, announced or not
        self._announced: set[str] = set()
        self._lingering: dict[tuple[str, ...], int] = {}  # inner addresses: the session that had them last
        self.lingering = False  # while draining
        self.left_at = Instant(0)  # when a session went elsewhere last
        self.elsewhere: Elsewhere | None = None
        self.announcing: Announcing | None = None

    @property
    def names(self) -> dict[str, str]:
        """Device names by session."""
        return {uid: kept.device_name for uid, kept in self._kept.items()}

    def drain(self, *, on: bool) -> None:
        """Sessions are asked to leave (or no more): they are lingered for, and their addresses are not announced again.

        Another gateway may have one for some milliseconds before this one hears of it; an announcement in that time
        would take the address back from it.
        """
        self.lingering = on
        if self.announcing is not None:
            self.announcing.hush(on=on)

    # --- orders ------------------------------------------------------------------------------------------------------

    def restore(self, session_id: SessionId, sealed: bytes, kept: Kept) -> None:
        """Install a stored session: it can be asked to reattach, nothing else. Raises ValueError for foreign bytes."""
        self._adopt(session_id.uid, self._plane.restore(session_id.raw, sealed, kept.addresses), kept)

    def claim(self, uid: str, handle: int, kept: Kept) -> None:
        """A candidate of the packet core is about to become this gateway's session."""
        self._adopt(uid, handle, kept)

    def kept(self, uid: str) -> Kept:
        """What is stored beside the machine's record."""
        return self._kept[uid]

    def seal(self, secret: out.Secret | None, uid: str) -> bytes | None:
        """Key material that goes into the record with this commit. Raises Overtaken."""
        if secret is None:
            return None
        if secret.kind == "handshake":
            birth = self._births[secret.number]
            inner = birth.kept.addresses
            welcome = self._welcome(Admitted(birth.kept.device_name, birth.kept.inner))
            return self.race.run(self._plane.prepare_accept, secret.number, birth.session_id.raw, inner, welcome)
        if secret.kind == "reattach":
            self._expect(uid)
            return self.race.run(self._plane.prepare_reattach, secret.number)
        return self.race.run(self._plane.prepare_rekey, secret.number)

    def execute(self, order: Output) -> None:
        """Carry out one order. Requests wait in the packet core for some seconds only, whatever the store takes."""
        match order:
            case out.AcceptHandshake():
                self._accept(order)
            case out.RefuseHandshake():
                self._refuse(order)
            case out.GrantReattach():
                self._decided.decide(order.request)
                self._make_ready(order.uid)
                self.race.give(self._plane.commit_reattach, order.request, order.version)
                self._announce(order.uid)
                self.admission.done(order.request)
            case out.ChallengeReattach():
                self.race.give(self._plane.challenge_reattach, order.request)
                self.admission.done(order.request)
            case out.RefuseReattach() if order.answer:
                self._decided.decide(order.request)
                self.race.give(self._plane.deny_reattach, order.request, order.reason.code, order.version)
                self.admission.done(order.request)
            case out.RefuseReattach():
                self.drop(order.request)
            case out.GrantRekey():
                self.race.give(self._plane.commit_rekey, order.request)
            case out.EndSession():
                self._end(order)
            case out.ReleaseSession():
                self._release(order)
            case _:
                self._on_path(order)

    def drop(self, request: int) -> None:
        """Forget a request to reattach without an answer: its client repeats it."""
        self._forget_request(request)
        self.admission.done(request)

    def _forget_request(self, request: int) -> None:
        self.race.give(self._plane.drop_reattach, request)

    def _on_path(self, order: Output) -> None:
        """On a path of the session's; one that came back from a record has only those that were heard of since."""
        handle = self.handles.get(getattr(order, "uid", ""), 0)
        if not handle:
            return
        match order:
            case out.TuneLiveness():
                self._plane.set_liveness(
                    handle, path_of(order.transport), order.probe_busy, order.probe_idle, order.silence_busy,
                    order.silence_idle, order.dead_factor, order.loss_window,
                )  # fmt: skip
            case out.ChallengePath():
                self.race.give(self._plane.probe_now, handle, path_of(order.transport))
            case out.Activate():
                self.race.give(self._plane.set_peer, handle, path_of(order.transport), order.peer)
                self.race.give(self._plane.activate, handle, path_of(order.transport))
            case out.Deactivate():
                self._plane.deactivate(handle)

    def _accept(self, order: out.AcceptHandshake) -> None:
        """Answer the client. One that gave up meanwhile never proves its epoch, and the birth times out."""
        birth = self._births.pop(order.handshake)
        with contextlib.suppress(Overtaken):
            self._adopt(order.uid, self.race.run(self._plane.finish_accept, order.handshake), birth.kept)
            self._announce(order.uid)
        if self.elsewhere is not None:
            self.elsewhere.born(order.uid)

    def _refuse(self, order: out.RefuseHandshake) -> None:
        birth = self._births.pop(order.handshake, None)
        if birth is not None:
            self._kept.pop(birth.session_id.uid, None)
        self.race.give(self._plane.reject_handshake, order.handshake)

    def _adopt(self, uid: str, handle: int, kept: Kept) -> None:
        self.handles[uid] = handle
        self._uids[handle] = uid
        self._kept[uid] = kept

    def _expect(self, uid: str) -> None:
        """The session is this gateway's and about to be granted: its answers must find the way before it sends."""
        if self.announcing is not None and uid in self.handles and uid not in self._expected:
            self._expected.add(uid)
            self._lingering.pop(self._kept[uid].inner, None)
            self.announcing.expected(self._kept[uid].inner)

    def _make_ready(self, uid: str) -> None:
        if self.announcing is not None and uid in self._expected and uid not in self._announced:
            self.announcing.ready(self._kept[uid].inner)

    def _announce(self, uid: str) -> None:
        """Once per session and stay here: its packets are to come to this gateway."""
        if self.announcing is not None and uid in self.handles and uid not in self._announced:
            self._expected.add(uid)
            self._announced.add(uid)
            self._lingering.pop(self._kept[uid].inner, None)
            self.announcing.acquired(self._kept[uid].inner)

    def _forget(self, uid: str) -> tuple[int, tuple[str, ...]]:
        """Nothing of the session is kept here; its handle, or 0, and the inner addresses that are to be released."""
        handle, kept = self.handles.pop(uid, 0), self._kept.pop(uid, None)
        self._uids.pop(handle, None)
        inner = kept.inner if kept is not None and uid in self._expected else ()
        self._expected.discard(uid)
        self._announced.discard(uid)
        return handle, inner

    def _let_go(self, inner: tuple[str, ...]) -> None:
        if self.announcing is not None and inner:
            self.announcing.released(inner)

    def _release(self, order: out.ReleaseSession) -> None:
        handle, inner = self._forget(order.uid)
        if handle and order.elsewhere:
            self.left_at = clock.boot_time()
        if handle and order.elsewhere and self.lingering:
            self._linger(handle, inner)
        else:
            self._let_go(inner)
            if handle:
                self._plane.close_session(handle)
        if self.elsewhere is not None:
            self.elsewhere.released(order.session_id, elsewhere=order.elsewhere)

    def _linger(self, handle: int, inner: tuple[str, ...]) -> None:
        """Deliver for a while what still comes, from either side, although others are told no more to send here."""
        if self.announcing is not None and inner:
            self._lingering[inner] = handle
            self.announcing.leaving(inner)
        loop, close = asyncio.get_running_loop(), self._plane.close_session
        loop.call_later(HAND_OVER_SECONDS, self._pass_on, handle, inner)
        loop.call_later(LINGER_SECONDS, self.race.give, close, handle)  # if it came back, that has ended this one

    def _pass_on(self, handle: int, inner: tuple[str, ...]) -> None:
        """What still comes goes where the addresses are, unless they are here again."""
        if self._lingering.get(inner) == handle:
            del self._lingering[inner]
            self._let_go(inner)

    def _end(self, order: out.EndSession) -> None:
        handle, inner = self._forget(order.uid)
        self._let_go(inner)
        if not handle:
            return
        # Nothing leads to a client that did not reattach yet: it learns when it asks.
        end_session(self._plane, self.race, handle, order.reason.code, tell_peer=order.tell_peer)

    # --- facts -------------------------------------------------------------------------------------------------------

    def consume(self, fact: Fact) -> None:
        """Turn one fact of the packet core into an input."""
        kind = fact[0]
        if kind == "handshake_request":
            self._handshake(fact)
        elif kind == "reattach_request":
            self._reattach(fact)
        elif kind == "rekey_request":
            _, request, handle, epoch = fact
            if (uid := self._uids.get(handle)) is not None:
                self._post(inp.RekeyAsked(request, uid, Epoch(epoch)))
        elif len(fact) > 1 and (uid := self._uids.get(fact[1])) is not None:
            self._session_fact(kind, uid, fact)

    def _session_fact(self, kind: str, uid: str, fact: Fact) -> None:
        match kind:
            case "epoch_confirmed":
                if self.elsewhere is not None:
                    self.elsewhere.reached(fact[1])
                self._post(inp.EpochProved(uid, Epoch(fact[2]), transport_of(fact[3]), fact[4]))
            case "control":
                if fact[3] == CLOSE and len(fact[4]) == 2:
                    self._post(inp.PeerClosed(uid, Reason.PEER_CLOSED))
            case "path_validated":
                self._post(inp.PathValidated(uid, transport_of(fact[2]), fact[3], fact[4]))
            case "path_measured":
                up, down = fact[5] / 1e6, fact[6] / 1e6
                self._post(inp.PathMeasured(uid, transport_of(fact[2]), fact[3], fact[4], up, down))
            case "path_silent":
                self._post(inp.PathSilent(uid, transport_of(fact[2]), fact[3], fact[4]))
            case "path_dead":
                self._post(inp.PathDead(uid, transport_of(fact[2]), fact[3]))
            case "path_heard":
                self._post(inp.PathHeard(uid, transport_of(fact[2])))
            case "peer_moved":
                self._post(inp.PeerMoved(uid, transport_of(fact[2]), fact[3], fact[4]))

    def _handshake(self, fact: Fact) -> None:
        _, handshake, _, peer, key, timestamp, version, _, _ = fact
        admitted = self._devices.get(bytes(key))
        if version != PROTOCOL_VERSION:
            self._plane.reject_handshake(handshake)
            return
        offer = partial(self._offer, handshake, bytes(key), peer, timestamp)
        if admitted is None or self.elsewhere is None:
            offer(admitted)
        else:
            refuse = partial(self.race.give, self._plane.reject_handshake, handshake)
            self.elsewhere.birth(bytes(key), admitted, offer, refuse)

    def _offer(self, handshake: int, key: bytes, peer: str, timestamp: int, admitted: Admitted | None) -> None:
        session_id = SessionId(secrets.token_bytes(16))
        device = None
        if admitted is not None:
            kept = Kept(key, admitted.name, admitted.inner)
            self._births[handshake] = _Birth(session_id, kept)
            self._kept[session_id.uid] = kept
            device = hashlib.sha256(key).hexdigest()[:16]
        self._post(inp.HandshakeOffered(handshake, session_id, key, device, peer, timestamp))

    def _reattach(self, fact: Fact) -> None:
        (
            _, request, handle, session_id, _, peer, proof, nonce_id, epoch, version, age_ms, path, cause, token_ok,
            fresh,
        ) = fact  # fmt: skip
        uid = self._uids.get(handle)
        if proof and not self._decided.asked(request, SessionId(bytes(session_id)).uid, nonce_id) and fresh:
            if uid is not None:  # the session left and came back; its client has had the answer
                self.drop(request)
                return
            proof = False  # the session goes on where its client went on
        asked = inp.ReattachAsked(
            request, uid, transport_of(path), peer, proof, fresh, token_ok, nonce_id, Epoch(epoch),
            version, age_ms + self.admission.waited_ms(request), cause,
        )  # fmt: skip
        if uid is not None or self.elsewhere is None or not self.elsewhere.proved(handle, asked):
            self.admission.offer(bytes(session_id), asked)

    def _admitted(self, session_id: bytes, asked: inp.ReattachAsked) -> None:
        if asked.uid is not None or self.elsewhere is None:
            self._post(asked)
        else:
            self.elsewhere.asked(session_id, asked)


def transport_of(path: int) -> TransportId:
    """How the gateway names a client's path; the client's own name for it stays with the client."""
    return TransportId(f"path{path}/udp")


def path_of(transport: TransportId) -> int:
    """The path index behind ``transport_of``'s name."""
    return int(transport.removeprefix("path").split("/", maxsplit=1)[0])
