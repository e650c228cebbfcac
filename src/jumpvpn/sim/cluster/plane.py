"""The packet core of one gateway, with the native module's orders and facts: sessions, candidates, requests, deadline.

Keys are names made of both ends' nonces: a datagram opens where the same name is known for its epoch. What is sealed
for the record is the epoch and the name of its keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.runtime.dataplane import CLOSE
from jumpvpn.session.reasons import Reason, reason_of_code
from jumpvpn.sim.client_plane import Request
from jumpvpn.sim.gateway_plane import REQUEST_LIFE, GatewayPlane, Pending, path_of, transport_of
from jumpvpn.values import SECOND, Epoch, SessionId
from jumpvpn.wire.gateways import DRAIN

if TYPE_CHECKING:
    from jumpvpn.sim.cluster.gateway import GatewayHost

PREPARED_LIFE = 120 * SECOND  # a request on its way into the store, as in the packet core
OFFER_LIFE = 10 * SECOND  # an offer that waits or was answered
FENCED = "the deadline has passed: this gateway may decide nothing"


class Sealed(msgspec.Struct, array_like=True):
    """What a record keeps of the keys."""

    epoch: int
    keys: str


@dataclass(slots=True)
class Offer:
    """A handshake of a device. ``answer`` is sent again when it comes again."""

    number: tuple[str, int]
    address: str
    device: bytes
    stamp: int
    since: int
    handle: int
    session_id: bytes = b""
    welcome: bytes = b""
    answer: dict[str, Any] | None = None


class Hosted(GatewayPlane):
    """One session in a gateway's packet core; what it finds out comes as facts."""

    def __init__(self, plane: NodePlane, host: GatewayHost, session_id: bytes, handle: int) -> None:
        super().__init__(host, SessionId(session_id).uid)  # type: ignore[arg-type]
        self.plane, self.host = plane, host
        self.session_id, self.handle = session_id, handle
        self.keys: dict[int, str] = {}
        self.prepared: dict[int, str] = {}

    def tell(self, fact: Any) -> None:
        """Facts as the native module words them."""
        uid, handle = self.uid, self.handle
        told: tuple[Any, ...]
        match fact:
            case inp.PathValidated():
                told = ("path_validated", handle, path_of(fact.transport), fact.peer, fact.rtt_ns)
            case inp.PathMeasured():
                losses = int(fact.loss_up * 1e6), int(fact.loss_down * 1e6)
                told = ("path_measured", handle, path_of(fact.transport), fact.rtt_ns, fact.rtt_dev_ns, *losses, 0)
            case inp.PathSilent():
                told = ("path_silent", handle, path_of(fact.transport), fact.silent_ns, fact.limit_ns)
            case inp.PathDead():
                told = ("path_dead", handle, path_of(fact.transport), fact.silent_ns)
            case inp.PathHeard():
                told = ("path_heard", handle, path_of(fact.transport))
            case inp.PeerMoved():
                told = ("peer_moved", handle, path_of(fact.transport), fact.old, fact.new)
            case inp.EpochProved():
                told = ("epoch_confirmed", handle, int(fact.epoch), path_of(fact.transport), fact.peer)
            case inp.RekeyAsked():
                told = ("rekey_request", fact.request, handle, int(fact.epoch))
            case inp.PeerClosed():
                told = ("control", handle, 0, CLOSE, b"\0\0")
            case _:
                raise AssertionError(f"session {uid} has no such fact: {fact}")
        self.plane.tell(told)

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Towards the client, sealed with the keys of its epoch; behind the deadline nothing leaves."""
        if self.plane.fenced:
            return
        content["keys"] = self.keys.get(content.get("epoch", 0))
        if "new" in content:
            content["new_keys"] = self.keys.get(content["new"])
        content["data"] = kind == "probe" and index == self.active and self.world.traffic
        content["path"] = index
        if content["data"]:
            self.host.world.checker.sends(self.host, self)
        self.host.carry_back(self.uid, kind, address, content)

    def receive(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """A datagram of the client: opened if the deadline allows and the keys are these."""
        epoch = content.get("epoch")
        if not self.plane.fenced and epoch is not None and self.keys.get(epoch) == content["keys"]:
            super().receive(kind, index, address, content)

    def look(self) -> None:
        """Behind the deadline nothing can be found out."""
        if not self.plane.fenced:
            super().look()

    def unfenced(self) -> None:
        """What was owed meanwhile says nothing about the paths."""
        for path in self.paths.values():
            path.watch_anew()
        self.arm(self.world.now)

    def forwards(self) -> bool:
        """Whether inner packets leave towards the client, if the process runs."""
        return self.active is not None and self.key is not None and not self.plane.fenced

    # --- requests ----------------------------------------------------------------------------------------------------

    def opened(self, number: int, request: Request, address: str, *, copied: bool) -> bool:
        """A request of this session whose proof is right: told as a fact unless its answer is known."""
        if self._last_reply is not None and self._last_reply[0] == request.nonce:
            _, index, route, content = self._last_reply
            self.send(content["status"], index, route, **content)
            return False
        fresh = request.nonce not in self._seen
        self._seen.add(request.nonce)
        self.pending[number] = Pending(request, address, self.world.now, fresh, copied)
        self.plane.tell((
            "reattach_request", number, self.handle, self.session_id, 0, address, True, request.nonce, request.epoch,
            request.version, request.age_ms, request.path, request.cause,
            request.token == self.plane.token_for(address), fresh,
        ))  # fmt: skip
        return True

    def unsee(self, number: int) -> None:
        """The request stays new: who may decide again decides about its repetition."""
        waiting = self.pending.pop(number, None)
        if waiting is not None:
            self._seen.discard(waiting.request.nonce)

    def prepare(self, number: int) -> bytes:
        """The epoch and keys that the request asks for, for the record. Raises KeyError, RuntimeError."""
        waiting = self.pending[number]
        if waiting.request.epoch <= self.epoch:
            raise RuntimeError("the next epoch must be newer than the present one")
        self.pending[number] = replace(waiting, sealed=True)
        keys = self.prepared.setdefault(number, f"{waiting.request.nonce}/{self.host.draw()}")
        return msgspec.msgpack.encode(Sealed(waiting.request.epoch, keys))

    def commit(self, number: int, version: int) -> None:
        """Install what was prepared. Raises KeyError, RuntimeError."""
        request = self.pending[number].request
        if request.epoch <= self.epoch:
            raise RuntimeError("the next epoch must be newer than the present one")
        self.keys[request.epoch] = self.prepared.pop(number)
        self.keys = {epoch: keys for epoch, keys in self.keys.items() if epoch >= request.epoch - 16}
        self.host.world.checker.granted(self.host.name, request, version)
        self._grant(out.GrantReattach(number, self.uid, version))
        self.host.world.checker.look(self.uid)

    def prepare_rekey(self, number: int) -> bytes:
        """The new root and its epoch. Raises KeyError, RuntimeError."""
        _, exchange, epoch = self.rekeys[number]
        if epoch <= self.epoch:
            raise RuntimeError("the next epoch must be newer than the present one")
        keys = self.prepared.setdefault(number, f"rekey{exchange}/{self.host.draw()}")
        return msgspec.msgpack.encode(Sealed(epoch, keys))

    def commit_rekey(self, number: int) -> None:
        """Open the epoch of the new root. Raises KeyError."""
        self.keys[self.rekeys[number][2]] = self.prepared.pop(number)
        self._grant_rekey(out.GrantRekey(number, self.uid))


class NodePlane:
    """The native module's ``Plane`` as far as a gateway's shell uses it. Lives and dies with its process."""

    def __init__(self, host: GatewayHost) -> None:
        self.host = host
        self.sessions: dict[int, Hosted] = {}
        self.by_id: dict[bytes, Hosted] = {}
        self.deadline = 0
        self.draining = False
        self.consume: Callable[[tuple[Any, ...]], None] = lambda _fact: None
        self._unopened: dict[int, tuple[Request, bytes, str, int, bool]] = {}
        self._offers: dict[int, Offer] = {}

    @property
    def fenced(self) -> bool:
        """Whether the deadline has passed by this machine's own clock."""
        return self.host.machine.boot() >= self.deadline

    def tell(self, fact: tuple[Any, ...]) -> None:
        """Facts are read in the next turn of the process's loop."""
        self.host.after(0, self.consume, fact)

    def token_for(self, address: str) -> bytes:
        """What proves that its holder receives at ``address``: the same at every gateway."""
        return address.encode()

    # --- the network -------------------------------------------------------------------------------------------------

    def take_request(self, request: Request, session_id: bytes, address: str, *, copied: bool) -> None:
        """A reattach request from the network."""
        if self.fenced:
            return
        self._sweep()
        waiting = any(p.request.nonce == request.nonce for s in self.sessions.values() for p in s.pending.values())
        if waiting or any(known[0].nonce == request.nonce for known in self._unopened.values()):
            return
        number, hosted = self.host.number(), self.by_id.get(session_id)
        if hosted is None:
            self._unopened[number] = (request, session_id, address, self.host.now, copied)
            self._unproved(number, 0, request, session_id, address)
        elif request.transport.split("/")[2] == self.host.name:
            hosted.opened(number, request, address, copied=copied)

    def _unproved(self, number: int, handle: int, request: Request, session_id: bytes, address: str) -> None:
        nothing = (0, 0, 0, 0, 0, False, False)
        self.tell(("reattach_request", number, handle, session_id, 0, address, False, request.nonce, *nothing))

    def _sweep(self) -> None:
        now = self.host.now
        for hosted in self.sessions.values():
            for number, waiting in list(hosted.pending.items()):
                if now - waiting.since >= (PREPARED_LIFE if waiting.sealed else REQUEST_LIFE):
                    del hosted.pending[number]
        self._unopened = {n: known for n, known in self._unopened.items() if now - known[3] < REQUEST_LIFE}
        self._offers = {n: offer for n, offer in self._offers.items() if now - offer.since < OFFER_LIFE}

    def take_offer(self, number: tuple[str, int], device: bytes, stamp: int, address: str) -> None:
        """A handshake from the network, or its repetition."""
        if self.fenced:
            return
        self._sweep()
        known = next((offer for offer in self._offers.values() if offer.number == number), None)
        if known is None:
            handle = self.host.number()
            self._offers[handle] = Offer(number, address, device, stamp, self.host.now, handle)
            self.tell(("handshake_request", handle, 0, address, device, stamp, 1, 0, b""))
        elif known.answer is not None:
            self.host.carry_back("", "response", known.address, known.answer)

    def take_standby(self, challenge: int, address: str) -> None:
        """A standby probe: answered without any state."""
        if not self.fenced:
            content = {"challenge": challenge, "token": self.token_for(address), "draining": self.draining}
            self.host.carry_back("", "standby_reply", address, content)

    # --- orders ------------------------------------------------------------------------------------------------------

    def set_deadline(self, boot_ns: int) -> None:
        """From then on nothing is sealed, sent, opened or delivered."""
        was = self.fenced
        self.deadline = boot_ns
        if was and not self.fenced:
            for hosted in self.sessions.values():
                hosted.unfenced()

    def set_ticket_keys(self, _keys: list[bytes]) -> None:
        """Tickets always open here."""

    def set_draining(self, draining: bool) -> None:
        """What answers to standby probes say."""
        self.draining = draining

    def prepare_accept(self, handshake: int, session_id: bytes, _inner: list[str], welcome: bytes) -> bytes:
        """Keys of the first epoch, for the record."""
        offer = self._offers[handshake]
        offer.session_id, offer.welcome = session_id, welcome
        return msgspec.msgpack.encode(Sealed(1, f"birth{handshake}@{self.host.name}"))

    def finish_accept(self, handshake: int) -> int:
        """Open the session and answer the client."""
        if self.fenced:
            raise RuntimeError(FENCED)
        offer = self._offers[handshake]
        hosted = self._host(offer.session_id)
        hosted.keys[1] = f"birth{handshake}@{self.host.name}"
        hosted.born(offer.address)
        offer.answer = {"number": offer.number, "session": offer.session_id, "keys": hosted.keys[1],
                        "welcome": offer.welcome}  # fmt: skip
        self.host.carry_back("", "response", offer.address, offer.answer)
        return hosted.handle

    def reject_handshake(self, handshake: int) -> None:
        """Forget it."""
        del self._offers[handshake]

    def _host(self, session_id: bytes) -> Hosted:
        former = self.by_id.get(session_id)
        if former is not None:
            self.close_session(former.handle)
        hosted = Hosted(self, self.host, session_id, self.host.number())
        self.sessions[hosted.handle] = self.by_id[session_id] = hosted
        return hosted

    def restore(self, session_id: bytes, sealed: bytes, _inner: list[str], routed: bool = True) -> int:
        """A session from its record: its epoch opens, nothing is sent in it."""
        try:
            kept = msgspec.msgpack.decode(sealed, type=Sealed)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        hosted = self._host(session_id)
        hosted.keys[kept.epoch] = kept.keys
        hosted.restore(kept.epoch)
        return hosted.handle

    def close_session(self, session: int) -> None:
        """Erase it."""
        hosted = self.sessions.pop(session)
        if self.by_id.get(hosted.session_id) is hosted:
            del self.by_id[hosted.session_id]

    def retry_reattach(self, request: int) -> None:
        """Open a request again whose session was not here."""
        asked, session_id, address, _, copied = self._unopened.pop(request)
        hosted = self.by_id.get(session_id)
        mine = asked.transport.split("/")[2] == self.host.name
        if hosted is None or not mine or not hosted.opened(request, asked, address, copied=copied):
            self._unproved(request, 0 if hosted is None else hosted.handle, asked, session_id, address)

    def _of(self, request: int) -> Hosted:
        for hosted in self.sessions.values():
            if request in hosted.pending:
                return hosted
        raise KeyError(request)

    def prepare_reattach(self, request: int) -> bytes:
        """What goes into the record with the next epoch."""
        return self._of(request).prepare(request)

    def commit_reattach(self, request: int, version: int) -> None:
        """Install the epoch and answer."""
        if self.fenced:
            raise RuntimeError(FENCED)
        self._of(request).commit(request, version)

    def challenge_reattach(self, request: int) -> None:
        """Ask for a proof of the address."""
        hosted = self._of(request)
        if self.fenced:
            hosted.unsee(request)
        else:
            hosted._challenge(out.ChallengeReattach(request))

    def deny_reattach(self, request: int, reason: int, version: int) -> None:
        """Refuse, and say why."""
        hosted = self._of(request)
        if self.fenced:
            hosted.unsee(request)
        else:
            hosted._refuse(out.RefuseReattach(request, reason_of_code(reason), version, answer=True))

    def drop_reattach(self, request: int) -> None:
        """Forget it."""
        if self._unopened.pop(request, None) is None:
            del self._of(request).pending[request]

    def prepare_rekey(self, request: int) -> bytes:
        """The new root, for the record."""
        return self._rekey_of(request).prepare_rekey(request)

    def commit_rekey(self, request: int) -> None:
        """Open its epoch and answer."""
        if self.fenced:
            raise RuntimeError(FENCED)
        self._rekey_of(request).commit_rekey(request)

    def _rekey_of(self, request: int) -> Hosted:
        for hosted in self.sessions.values():
            if request in hosted.rekeys:
                return hosted
        raise KeyError(request)

    def set_liveness(
        self, session: int, path: int, busy: int, idle: int, silence_busy: int, silence_idle: int, dead: int, loss: int
    ) -> None:  # fmt: skip
        """How a path is watched."""
        hosted = self.sessions[session]
        order = out.TuneLiveness(hosted.uid, transport_of(path), busy, idle, silence_busy, silence_idle, dead, loss)
        hosted.execute(order)

    def probe_now(self, session: int, path: int) -> None:
        """Challenge a path."""
        hosted = self.sessions[session]
        if hosted.key is None:
            self.host.world.checker.silent(self.host.name, hosted.uid)
            return
        hosted.execute(out.ChallengePath(hosted.uid, transport_of(path)))

    def set_peer(self, session: int, path: int, peer: str) -> None:
        """Follow a peer."""
        hosted = self.sessions[session]
        if path in hosted.paths and hosted.paths[path].peer != peer:
            hosted.paths[path].owed.clear()
            hosted.paths[path].peer, hosted.paths[path].moved = peer, ""

    def activate(self, session: int, path: int) -> None:
        """A path carries data."""
        hosted = self.sessions[session]
        if path in hosted.paths:
            hosted.active = path
            hosted.arm(self.host.now)

    def deactivate(self, session: int) -> None:
        """Nothing carries data."""
        self.sessions[session].active = None

    def send_control(self, session: int, kind: int, payload: bytes, path: int | None = None) -> None:
        """One message on the active path. Raises KeyError, RuntimeError."""
        hosted = self.sessions[session]
        index = path if path is not None else hosted.active
        if index is None or hosted.key is None:
            raise RuntimeError("the session has no binding")
        peer = hosted.paths[index].peer
        if kind == CLOSE:
            reason: Reason = reason_of_code(int.from_bytes(payload, "big"))
            hosted.send("close", index, peer, epoch=hosted.key, reason=reason)
        else:
            word = "drain" if kind == DRAIN else "gateways"
            hosted.send(word, index, peer, epoch=hosted.key, payload=payload)

    def epoch_of(self, session_id: bytes) -> Epoch | None:
        """The newest epoch of a session that is here."""
        hosted = self.by_id.get(session_id)
        return None if hosted is None else Epoch(hosted.epoch)
