"""The gateway's packet core and the part of its executor that answers the engine, for one session."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.properties import Property
from jumpvpn.session.reasons import Reason
from jumpvpn.sim.client_plane import Request
from jumpvpn.sim.plane import Path, Side
from jumpvpn.sim.violation import Violated
from jumpvpn.values import MILLISECOND, SECOND, Epoch, TransportId

if TYPE_CHECKING:
    from jumpvpn.sim.world import World

REQUEST_LIFE = 5 * SECOND  # requests that nobody decides are forgotten after this
STANDBY_PROOF = 5 * SECOND  # a standby path that the client probes is proven anew after this
CHALLENGE_INTERVAL = 100 * MILLISECOND  # a new source of the active path is challenged again at most this often
REPLY_PATIENCE = SECOND  # within this a reply is asked for again; who probes in an old epoch later has missed it
REKEY_JUMP = 8  # a client that heard nothing of its rekey asks for one epoch higher
MOVES_PER_INTERVAL = 4  # sources that are followed within that time


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for the engine. ``copied``: an attacker sent it; ``sealed``: a commit names it."""

    request: Request
    address: str
    since: int
    fresh: bool
    copied: bool
    sealed: bool = False


class GatewayPlane(Side):
    """Paths are the client's indexes; nothing is sent before the session may send."""

    name = "gateway"

    def __init__(self, world: World, uid: str) -> None:
        super().__init__(world)
        self.uid = uid
        self.confirmed: set[int] = set()
        self.pending: dict[int, Pending] = {}
        self.rekeys: dict[int, tuple[int, int, int]] = {}  # request -> path, exchange, epoch asked for
        self._seen: set[str] = set()
        self._last_reply: tuple[str, int, str, dict[str, Any]] | None = None
        self._switch_to: int | None = None
        self._moves = (0, 0)  # since when and how many sources of the active path were challenged
        self._replied: tuple[int, int] | None = None  # exchange and epoch of the last rekey
        self._unproven = False  # nothing has shown yet that the client has the keys of the newest epoch
        self._granted = 0
        self._probes_only: set[int] = set()  # epochs in which only probes open, for hints to answer

    def born(self, address: str) -> None:
        """The handshake was accepted: keys of epoch 1."""
        self.key = self.epoch = 1
        self.install(1)
        self.paths[0] = Path(transport_of(0), address, next_probe=self.world.now)
        self.active = 0

    def restore(self, epoch: int) -> None:
        """A stored session: its epoch opens, so that the client can be told; nothing may be sent under it."""
        self.epoch = epoch
        self.install(epoch)
        self._probes_only = {epoch}

    # --- orders ------------------------------------------------------------------------------------------------------

    def execute(self, order: Any) -> None:
        """Carry out one order of the gateway's engine; what came too late is forgotten."""
        match order:
            case out.Deactivate():
                self.active = None
            case out.GrantReattach():
                self._grant(order)
            case out.ChallengeReattach():
                self._challenge(order)
            case out.RefuseReattach():
                self._refuse(order)
            case out.GrantRekey():
                self._grant_rekey(order)
            case out.EndSession():
                if order.tell_peer and self.active is not None and self.key is not None:
                    self.send("close", self.active, self.paths[self.active].peer, epoch=self.key, reason=order.reason)
            case _:
                self._on_path(order)
        self.arm(self.world.now)

    def _on_path(self, order: Any) -> None:
        index = path_of(order.transport)
        match order:
            case out.TuneLiveness():
                self.limits[index] = order
                if index in self.paths:
                    self.paths[index].limits = order
            case out.ChallengePath():
                if self.key is None:
                    raise Violated(Property.EPOCH, "silence until a reattach opens an epoch", f"a challenge on {index}")
                if index in self.paths:
                    self.probe(index, self.paths[index], self.paths[index].peer, fresh=True)
            case out.Activate():
                if index in self.paths:
                    path = self.paths[index]
                    if path.peer != order.peer:
                        path.owed.clear()
                    path.peer, path.moved = order.peer, ""
                    self.active = index

    def sealable(self, secret: out.Secret | None) -> bool:
        """Whether the key material that a commit names is still there."""
        self._forget_old()
        if secret is None or secret.kind == "handshake":
            return True
        if secret.kind == "reattach":
            waiting = self.pending.get(secret.number)
            if waiting is None or waiting.request.epoch <= self.epoch:
                return False
            self.pending[secret.number] = replace(waiting, sealed=True)
            return True
        asked = self.rekeys.get(secret.number)
        return asked is not None and asked[2] > self.epoch

    def _forget_old(self) -> None:
        for number, waiting in list(self.pending.items()):
            if not waiting.sealed and self.world.now - waiting.since >= REQUEST_LIFE:
                del self.pending[number]

    def _grant(self, order: out.GrantReattach) -> None:
        self._forget_old()
        waiting = self.pending.pop(order.request, None)
        if waiting is None or waiting.request.epoch <= self.epoch:
            return
        request, address = waiting.request, waiting.address
        self.install(request.epoch, keep_oldest=self._unproven)
        self._unproven, self._granted = True, self.world.now
        self.key = self.epoch = request.epoch
        self._switch_to = self._replied = None
        known = self.paths.get(request.path)
        if known is None or known.peer != address:
            limits = self.limits.get(request.path)
            self.paths[request.path] = Path(transport_of(request.path), address, limits, next_probe=self.world.now)
        else:  # it died before, or will be told dead again: from here on it is watched anew
            known.watch_anew()
        self.active = request.path
        content = {"status": "committed", "epoch": request.epoch, "version": order.version}
        self._reply(request, address, {**content, "reason": Reason.REATTACH_SUCCESS})
        if self.world.zero_rtt:  # data that came before the commit counts as the first of the epoch
            self._confirm(request.epoch, request.path, address)

    def _challenge(self, order: out.ChallengeReattach) -> None:
        waiting = self.pending.pop(order.request, None)
        if waiting is not None and waiting.fresh:
            token = waiting.address.encode()
            content = {"status": "challenge", "token": token, "epoch": waiting.request.epoch, "version": 0}
            self._reply(waiting.request, waiting.address, {**content, "reason": Reason.ADDRESS_UNVALIDATED})

    def _refuse(self, order: out.RefuseReattach) -> None:
        waiting = self.pending.pop(order.request, None)
        if waiting is not None and order.answer and waiting.fresh:  # a copy's sender may be anybody
            content = {"status": "denied", "epoch": self.epoch, "version": order.version, "reason": order.reason}
            self._reply(waiting.request, waiting.address, content)

    def _reply(self, request: Request, address: str, content: dict[str, Any]) -> None:
        content = {"nonce": request.nonce, **content}
        self._last_reply = (request.nonce, request.path, address, content)
        self.send(content["status"], request.path, address, **content)

    def _grant_rekey(self, order: out.GrantRekey) -> None:
        asked = self.rekeys.pop(order.request, None)
        if asked is None or self.key is None or asked[2] <= self.epoch:
            return
        index, exchange, epoch = asked
        if self._switch_to is not None:
            self.retract(self._switch_to)
        self.install(epoch, drain=None)
        self.epoch = self._switch_to = epoch
        self._replied = (exchange, epoch)
        self._reply_rekey(index)

    def _reply_rekey(self, index: int) -> None:
        if self._replied is not None and self.key is not None and index in self.paths:
            exchange, epoch = self._replied
            peer = self.paths[index].peer
            self.send("rekey_reply", index, peer, epoch=self.key, exchange=exchange, new=epoch)

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def receive(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """A datagram of the client that came from ``address``."""
        epoch = content.get("epoch")
        if epoch is None or self._left_behind(epoch, kind, index, address, content) or not self.opens(epoch):
            return
        if self._unproven and epoch == next(reversed(self.open)):
            self._unproven = False
            self.open = {other: until for other, until in self.open.items() if other not in self._probes_only}
        if self.key is not None:
            self._source(index, address)
            self._confirm(epoch, index, address)
        if kind == "probe":
            self.send("report", index, address, epoch=self.key, challenge=content["challenge"])
            self._refresh_standby(index, address)
        elif kind == "report":
            self.answered(index, content["challenge"], address)
        elif kind == "close":
            self.tell(inp.PeerClosed(self.uid, Reason.PEER_CLOSED))
        elif kind == "rekey_request":
            self._rekey_asked(index, content)

    def _left_behind(self, epoch: int, kind: str, index: int, address: str, content: dict[str, Any]) -> bool:
        """Whether the datagram is of an epoch that only hints answer; then its probe was answered by one."""
        if epoch not in self.open:
            return False
        if self._unproven and not self.opens(epoch):
            self._probes_only.add(epoch)
            self.open[epoch] = None
        muted = epoch in self._probes_only
        missed = self._unproven and epoch < self.epoch and self.world.now >= self._granted + REPLY_PATIENCE
        if kind == "probe" and (muted or missed):
            self.send("hint", index, address, epoch=epoch, challenge=content["challenge"])
        return muted or (missed and kind == "probe")

    def _confirm(self, epoch: int, index: int, address: str) -> None:
        if epoch == next(reversed(self.open)) and epoch not in self.confirmed:
            self.confirmed.add(epoch)
            if self._switch_to == epoch:
                self.key, self._switch_to = epoch, None
                self.drain_old()
            self.tell(inp.EpochProved(self.uid, Epoch(epoch), transport_of(index), address))

    def _source(self, index: int, address: str) -> None:
        path = self.paths.get(index)
        if path is None or (index != self.active and path.peer != address):
            path = Path(transport_of(index), address, self.limits.get(index), next_probe=self.world.now)
            self.paths[index] = path
            self.probe(index, path, address, fresh=True)
        elif path.peer != address and self._follows(path, address):
            if path.moved != address:
                self.tell(inp.PeerMoved(self.uid, path.transport, path.peer, address))
            path.moved = address
            self.probe(index, path, address, fresh=True)

    def _follows(self, path: Path, address: str) -> bool:
        """Whether the new source is challenged now, or has to wait."""
        since, count = self._moves
        if self.world.now >= since + CHALLENGE_INTERVAL or not path.moved:
            self._moves = (self.world.now, 1)
            return True
        self._moves = (since, count + 1)
        return address != path.moved and count < MOVES_PER_INTERVAL

    def _refresh_standby(self, index: int, address: str) -> None:
        path = self.paths.get(index)
        if path is None or index == self.active or path.peer != address:
            return
        if self.world.now >= path.last_probe + STANDBY_PROOF:
            self.probe(index, path, address, fresh=True)

    def _rekey_asked(self, index: int, content: dict[str, Any]) -> None:
        if self._replied is not None and self._replied[0] == content["exchange"]:
            self._reply_rekey(index)
            return
        asked = any(exchange == content["exchange"] for _, exchange, _ in self.rekeys.values())
        if asked or not self.epoch < content["new"] <= self.epoch + REKEY_JUMP:
            return
        number = self.world.number()
        self.rekeys = {number: (index, content["exchange"], content["new"])}
        self.tell(inp.RekeyAsked(number, self.uid, Epoch(content["new"])))

    def take_request(self, request: Request, address: str, *, copied: bool) -> None:
        """A reattach request that came from ``address``."""
        self._forget_old()
        if self._last_reply is not None and self._last_reply[0] == request.nonce:
            _, index, route, content = self._last_reply  # to where it went first: a copy must not turn a reply
            self.send(content["status"], index, route, **content)
            return
        if any(waiting.request.nonce == request.nonce for waiting in self.pending.values()):
            return
        number = self.world.number()
        fresh = request.nonce not in self._seen
        self._seen.add(request.nonce)
        self.pending[number] = Pending(request, address, self.world.now, fresh, copied)
        self.tell(
            inp.ReattachAsked(
                number, self.uid, transport_of(request.path), address, True, fresh,
                request.token == address.encode(), request.nonce, Epoch(request.epoch), request.version,
                request.age_ms, request.cause,
            )
        )  # fmt: skip

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Towards the client: it arrives if a link still has that address."""
        self.world.carry_back(self.uid, kind, index, address, content)


def transport_of(path: int) -> TransportId:
    """How the gateway names a client's path."""
    return TransportId(f"path{path}/udp")


def path_of(transport: TransportId) -> int:
    """The index behind ``transport_of``'s name."""
    return int(transport.removeprefix("path").split("/", maxsplit=1)[0])
