"""Carries out the client engine's orders in the packet core, and reads its facts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.book import BIRTH_PATH
from jumpvpn.engine.outputs import Output
from jumpvpn.runtime import clock
from jumpvpn.runtime.dataplane import CLOSE, LOCAL_ERRORS, Fact, Plane, Race, end_session, error_name
from jumpvpn.session.reasons import Reason, reason_of_code
from jumpvpn.session.records import Kept
from jumpvpn.values import Epoch, TransportId, Version
from jumpvpn.wire.gateways import DRAIN, GATEWAYS, BadControl, Gateway, decode_drain, decode_gateways

RESEND_SECONDS = 0.1  # a lost request or answer costs this much; bounded by the attempt's deadline
RESEND_MAX_SECONDS = 0.8  # doubled until then: a gateway that took over thousands answers as fast as it can
_STATUS = ("committed", "challenge", "denied")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a transport begins, from netlink, and the gateway (name and public key) to which it leads."""

    interface: str
    address: str
    gateway: str
    key: bytes


@dataclass(slots=True)
class Way:
    """The socket behind one transport, and the gateway at its other end."""

    path: int
    socket: int
    peer: str
    local: str
    interface: str
    opened_ns: int
    gateway: str = ""
    key: bytes = b""


class ClientExecutor:
    """Knows which socket and path index belong to which transport."""

    def __init__(self, plane: Plane, mark: int, post: Callable[[Any], None], prepare: Callable[[str], None]) -> None:
        self._plane = plane
        self._mark = mark
        self._post = post
        self._prepare = prepare
        self.ways: dict[TransportId, Way] = {}
        self.handle = 0  # 0: no session yet, or none any more
        self.uid = ""
        self.race = Race()
        self.kept_record = Kept(b"", "", ())
        self.ended: Callable[[Reason], None] = lambda _reason: None
        self.handshake_facts: Callable[[Fact], None] = lambda _fact: None
        self._resend: asyncio.TimerHandle | None = None
        self.sources: dict[TransportId, Source] = {}
        self.told_gateways: Callable[[tuple[Gateway, ...]], None] = lambda _gateways: None
        self.malformed = 0  # control messages that could not be understood
        self._birth = self._home = ""  # names of the gateways of the handshake and of the epoch in use

    # --- orders ------------------------------------------------------------------------------------------------------

    def adopt(self, handle: int, uid: str, kept: Kept, born_on: TransportId, path: int) -> None:
        """The handshake succeeded: from now on paths belong to session ``handle``, path 0 to ``born_on``.

        ``path`` is the index that ``born_on`` had until now; it may have vanished since.
        """
        self.handle, self.uid, self.kept_record = handle, uid, kept
        for way in self.ways.values():
            if way.path == BIRTH_PATH:
                way.path = path
        if (way_of_birth := self.ways.get(born_on)) is not None:
            way_of_birth.path = BIRTH_PATH
        self._birth = self._home = self.sources[born_on].gateway
        self._set_all()

    def _set_all(self) -> None:
        """Tell the packet core where every path leads, those to the session's own gateway first."""
        for way in sorted(self.ways.values(), key=lambda way: (way.gateway != self._home, way.path)):
            self._set(way)

    def _set(self, way: Way) -> None:
        """The packet core knows the key of the birth's gateway only."""
        key = None if way.gateway == self._birth else way.key
        self._plane.set_path(self.handle, way.path, way.socket, way.peer, key, standby=way.gateway != self._home)

    def seal(self, secret: out.Secret | None, uid: str) -> bytes | None:
        """A client keeps no key material."""
        return None

    def kept(self, uid: str) -> Kept:
        """The device, for the record's completeness."""
        return self.kept_record

    def execute(self, order: Output) -> None:
        """Carry out one order."""
        match order:
            case out.OpenPath():
                self._open(order)
            case out.ClosePath():
                self._close(order)
            case out.EndSession():
                self._end(order)
            case _ if self.handle:
                self._on_session(order)

    def _on_session(self, order: Output) -> None:
        match order:
            case out.AskReattach():
                self._ask(order)
            case out.AbandonReattach():
                self._stop_resending()
                self._plane.abandon_reattach(self.handle)
            case out.FinishReattach():
                self._finish(order)
            case out.AskRekey():
                self._plane.begin_rekey(self.handle)
            case out.FinishRekey():
                self._plane.finish_rekey(self.handle)
            case out.Deactivate():
                self._plane.deactivate(self.handle)
            case _:
                self._on_path(order)

    def _on_path(self, order: Output) -> None:
        match order:
            case out.TuneLiveness() if (way := self.ways.get(order.transport)) is not None:
                self._plane.set_liveness(
                    self.handle, way.path, order.probe_busy, order.probe_idle, order.silence_busy, order.silence_idle,
                    order.dead_factor, order.loss_window,
                )  # fmt: skip
            case out.ChallengePath() if (way := self.ways.get(order.transport)) is not None:
                self._plane.probe_now(self.handle, way.path)
            case out.Activate() if (way := self.ways.get(order.transport)) is not None:
                self._plane.activate(self.handle, way.path)

    def _open(self, order: out.OpenPath) -> None:
        source = self.sources[order.transport]
        interface, local = source.interface, source.address
        bind = f"[{local}]:0" if ":" in local else f"{local}:0"
        try:
            self._prepare(interface)
            socket, address = self._plane.open_socket(bind=bind, interface=interface, mark=self._mark)
        except OSError as error:
            name = error_name(error.errno or 0)
            self._post(inp.SocketFailed(order.transport, name, local=True))
            return
        way = Way(
            order.path, socket, order.peer, address, interface, clock.boot_time(), source.gateway, source.key
        )  # fmt: skip
        self.ways[order.transport] = way
        if self.handle:
            self._set(way)

    def _close(self, order: out.ClosePath) -> None:
        way = self.ways.pop(order.transport, None)
        if way is None:
            return
        if self.handle:
            self._plane.drop_path(self.handle, way.path)
        self._plane.close_socket(way.socket)

    def _ask(self, order: out.AskReattach) -> None:
        self._stop_resending()
        way = self.ways.get(order.transport)
        if way is None:
            return
        self._plane.begin_reattach(
            self.handle, path=way.path, next_epoch=order.epoch, expected_version=order.expected_version,
            age_ms=order.age_ms, cause=order.cause.code, token=order.token, zero_rtt=True,
            leaving=order.cause is Reason.GATEWAY_DRAIN,
        )  # fmt: skip
        self._resend_in(RESEND_SECONDS)

    def _finish(self, order: out.FinishReattach) -> None:
        """The epoch of the new binding first: paths to its gateway cannot be probed under another one."""
        self._stop_resending()
        self._plane.finish_reattach(self.handle, order.handover)
        if order.handover != "same":
            self._home = self.sources[order.transport].gateway
            self._set_all()

    def _ask_again(self, waited: float) -> None:
        self.race.give(self._plane.resend_reattach, self.handle)  # the reply may be here, its fact not read yet
        self._resend_in(min(2 * waited, RESEND_MAX_SECONDS))

    def _resend_in(self, seconds: float) -> None:
        self._resend = asyncio.get_running_loop().call_later(seconds, self._ask_again, seconds)

    def _stop_resending(self) -> None:
        if self._resend is not None:
            self._resend.cancel()
            self._resend = None

    def _end(self, order: out.EndSession) -> None:
        self._stop_resending()
        if self.handle:
            # Without any transport nobody can be told: the gateway's own limits end the session there.
            end_session(self._plane, self.race, self.handle, order.reason.code, tell_peer=order.tell_peer)
            self.handle = 0
        self.ended(order.reason)

    # --- facts -------------------------------------------------------------------------------------------------------

    def consume(self, fact: Fact) -> None:
        """Turn one fact of the packet core into an input."""
        kind = fact[0]
        if kind in ("handshake_response", "handshake_failed"):
            self.handshake_facts(fact)
        elif kind == "socket_error":
            self._socket_error(fact)
        elif kind == "control":
            self._control(fact)
        elif kind == "reattach_reply":
            self._reattach_reply(fact)
        elif kind == "rekey_reply":
            self._post(inp.RekeyAnswered(Epoch(fact[2])))
        elif len(fact) > 2 and (transport := self._transport(fact[2])) is not None:
            self._path_fact(kind, transport, fact)

    def _path_fact(self, kind: str, transport: TransportId, fact: Fact) -> None:
        match kind:
            case "path_validated":
                self._post(inp.PathValidated(self.uid, transport, fact[3], fact[4]))
            case "path_measured":
                up, down = fact[5] / 1e6, fact[6] / 1e6
                self._post(inp.PathMeasured(self.uid, transport, fact[3], fact[4], up, down))
            case "path_silent":
                self._post(inp.PathSilent(self.uid, transport, fact[3], fact[4]))
            case "path_dead":
                self._post(inp.PathDead(self.uid, transport, fact[3]))
            case "standby_answered":
                self._post(inp.StandbyAnswered(self.uid, transport, fact[4], bool(fact[5])))
            case "path_heard":
                self._post(inp.PathHeard(self.uid, transport))
            case "hinted":
                self._post(inp.Hinted(self.uid, transport))

    def _socket_error(self, fact: Fact) -> None:
        _, socket, number, *_ = fact
        for transport, way in self.ways.items():
            if way.socket == socket:
                self._post(inp.SocketFailed(transport, error_name(number), number in LOCAL_ERRORS))
                return

    def _control(self, fact: Fact) -> None:
        _, _, path, kind, payload = fact
        transport = self._transport(path)
        try:
            if kind == CLOSE and len(payload) == 2:
                self._post(inp.PeerClosed(self.uid, _told(reason_of_code(int.from_bytes(payload, "big")))))
            elif kind == GATEWAYS:
                self.told_gateways(decode_gateways(payload))
            elif kind == DRAIN and transport is not None:  # without its path nobody knows who is to be left
                self._post(inp.DrainTold(self.uid, transport, decode_drain(payload)))
        except BadControl:
            self.malformed += 1

    def _reattach_reply(self, fact: Fact) -> None:
        _, _, nonce_id, status, epoch, version, code, path, token = fact
        transport = self._transport(path)
        if transport is None or not 0 <= status < len(_STATUS):
            return
        reason = reason_of_code(code)
        answer = inp.ReattachAnswered(
            transport, nonce_id, _STATUS[status], Epoch(epoch), Version(version), reason, bytes(token)
        )
        self._post(answer)

    def _transport(self, path: int) -> TransportId | None:
        return next((transport for transport, way in self.ways.items() if way.path == path), None)


def _told(reason: Reason) -> Reason:
    """What the peer's reason means here: that we were superseded is worth saying, all else is "the peer closed"."""
    return reason if reason is Reason.DEVICE_SUPERSEDED else Reason.PEER_CLOSED
