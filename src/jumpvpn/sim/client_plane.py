"""The client's packet core and the part of its executor that answers the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.properties import Property
from jumpvpn.session.reasons import Reason
from jumpvpn.sim.plane import Path, Side
from jumpvpn.sim.violation import Violated
from jumpvpn.values import MILLISECOND, Epoch, TransportId, Version

if TYPE_CHECKING:
    from jumpvpn.sim.world import World

RESEND = 100 * MILLISECOND  # a reattach request without an answer is sent again, doubled each time
RESEND_MAX = 8 * RESEND
REKEY_REPEAT = 250 * MILLISECOND  # doubled each time
REKEY_JUMP = 8  # more than this above its own epoch the client asks for none: it begins anew
REKEY_REPEATS = 6  # then the exchange is given up


@dataclass(frozen=True, slots=True)
class Request:
    """A reattach request as the client made it."""

    uid: str
    nonce: str
    epoch: int
    version: int
    path: int
    transport: TransportId
    cause: int
    token: bytes
    age_ms: int


class ClientPlane(Side):
    """Knows which path index belongs to which transport; one session at most."""

    name = "client"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.request: Request | None = None
        self.committed: int | None = None
        self._rekey: tuple[int, int] | None = None  # number of the exchange, epoch that it asks for
        self._rekey_tried = 0  # the highest epoch asked for
        self._rekeyed: int | None = None

    def execute(self, order: Any) -> None:
        """Carry out one order of the client's engine."""
        match order:
            case out.OpenPath():
                path = Path(order.transport, order.peer, self.limits.get(order.path), next_probe=self.world.now)
                self.paths[order.path] = path
                path.socket = self.world.number()
            case out.ClosePath():
                self.paths.pop(order.path, None)
                self.active = None if self.active == order.path else self.active
            case out.AskReattach():
                self._ask(order)
            case out.AbandonReattach():
                self._give_up()
            case out.FinishReattach():
                self._finish(order)
            case out.AskRekey():
                self._ask_rekey()
            case out.FinishRekey():
                self._finish_rekey()
            case out.EndSession():
                self._end(order)
                return
            case _:
                self._on_path(order)
        self.arm(self.world.now)

    def _on_path(self, order: Any) -> None:
        if isinstance(order, out.Deactivate):
            self.active = None
            return
        index = self.index(order.transport)
        if index is None:
            return
        match order:
            case out.TuneLiveness():
                self.limits[index] = self.paths[index].limits = order
            case out.ChallengePath():
                self.probe(index, self.paths[index], self.paths[index].peer, fresh=True)
            case out.Activate():
                self.active = index

    def index(self, transport: TransportId) -> int | None:
        """The path index of ``transport``, None without a socket."""
        return next((i for i, p in self.paths.items() if p.transport == transport), None)

    def born(self, uid: str, path: int) -> None:
        """The gateway accepted: keys of epoch 1; the handshake's transport, which had index ``path``, has path 0.

        It may have vanished since; who held index 0 takes over the other one all the same.
        """
        self.uid, self.key, self.epoch = uid, 1, 1
        self.install(1)
        mine, other = self.paths.pop(path, None), self.paths.pop(0, None) if path != 0 else None
        if other is not None:
            self.paths[path] = other
        if mine is not None:
            self.paths[0], self.active = mine, 0
        self.arm(self.world.now)

    # --- reattach ----------------------------------------------------------------------------------------------------

    def _ask(self, order: out.AskReattach) -> None:
        self._give_up()
        index = self.index(order.transport)
        if self.key is None or order.epoch <= self.key:
            raise Violated(Property.EPOCH, f"a request for an epoch above {self.key}", f"{order.epoch} was asked for")
        if index is None:
            return
        nonce = f"{self.world.number():06x}"
        self.request = Request(
            self.uid, nonce, order.epoch, order.expected_version, index, order.transport, order.cause.code, order.token,
            order.age_ms,
        )  # fmt: skip
        self.world.checker.asked(self.uid, nonce)
        self._resend(nonce, RESEND)

    def _resend(self, nonce: str, wait: int) -> None:
        if self.request is None or self.request.nonce != nonce:
            return
        self.send("request", self.request.path, "", request=self.request)
        self.world.after(wait, self._resend, nonce, min(2 * wait, RESEND_MAX))

    def _give_up(self) -> None:
        """What was committed, but not finished, is closed again."""
        if self.committed is not None:
            self.retract(self.committed)
        self.request = self.committed = None

    def _finish(self, order: out.FinishReattach) -> None:
        if self.committed is None:
            raise Violated(Property.PROOF, "a reattach that the gateway has committed", "none is there to finish")
        self.key = self.epoch = self.committed
        self.committed = self._rekey = self._rekeyed = None
        self.active = self.index(order.transport)
        for path in self.paths.values():
            path.owed.clear()
        if self.active is not None:
            path = self.paths[self.active]
            path.watch_anew()  # it may have been told dead before, and its gateway may die before it answers
            self.probe(self.active, path, path.peer, fresh=True)

    def _reply(self, content: dict[str, Any]) -> None:
        request = self.request
        if request is None or request.nonce != content["nonce"]:
            return
        self.request = None
        if content["status"] == "committed":
            self.install(content["epoch"])
            self.committed = content["epoch"]
        self.tell(
            inp.ReattachAnswered(
                request.transport, request.nonce, content["status"], Epoch(content["epoch"]),
                Version(content["version"]), content["reason"], content.get("token", b""),
            )
        )  # fmt: skip

    # --- rekey -------------------------------------------------------------------------------------------------------

    def _ask_rekey(self) -> None:
        if self._rekey is None and self.key is not None:
            last = self._rekey_tried if self._rekey_tried < self.key + REKEY_JUMP else self.key
            self._rekey_tried = max(self.key, last) + 1
            self._rekey = (self.world.number(), self._rekey_tried)
            self._repeat_rekey(self._rekey, 0)

    def _repeat_rekey(self, exchange: tuple[int, int], repeats: int) -> None:
        if self._rekey != exchange or self.key is None:
            return
        if repeats == REKEY_REPEATS:
            self._rekey = None
            return
        index = self.active if self.active is not None else next(iter(self.paths), 0)
        self.send("rekey_request", index, "", epoch=self.key, exchange=exchange[0], new=exchange[1])
        self.world.after(REKEY_REPEAT << repeats, self._repeat_rekey, exchange, repeats + 1)

    def _finish_rekey(self) -> None:
        if self._rekeyed is None:
            raise Violated(Property.EPOCH, "an answered rekey", "none is there to finish")
        self.key = self.epoch = self._rekeyed
        self._rekeyed = None
        self.drain_old()
        if self.active is not None:
            self.probe(self.active, self.paths[self.active], self.paths[self.active].peer, fresh=False)

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def receive(self, kind: str, index: int, content: dict[str, Any]) -> None:
        """A datagram of the gateway, on path ``index``."""
        if kind in ("committed", "challenge", "denied"):
            self._reply(content)
        elif kind == "hint":
            path = self.paths.get(index)
            mine = content["epoch"] == self.key and self.committed is None
            if path is not None and mine and path.outstanding.pop(content["challenge"], None):
                self.tell(inp.Hinted(self.uid, path.transport))
        elif self.key is not None and self.opens(content.get("epoch")):
            self._opened(kind, index, content)

    def _opened(self, kind: str, index: int, content: dict[str, Any]) -> None:
        if kind == "probe":
            self.send("report", index, "", epoch=self.key, challenge=content["challenge"])
        elif kind == "report":
            self.answered(index, content["challenge"], self.paths[index].peer if index in self.paths else "")
        elif kind == "rekey_reply":
            if self._rekey is not None and self._rekey[0] == content["exchange"]:
                self.install(content["new"], drain=None)
                self._rekey, self._rekeyed = None, content["new"]
                self.tell(inp.RekeyAnswered(Epoch(content["new"])))
        elif kind == "close":
            told = content["reason"]
            reason = told if told is Reason.DEVICE_SUPERSEDED else Reason.PEER_CLOSED
            self.tell(inp.PeerClosed(self.uid, reason))

    def _end(self, order: out.EndSession) -> None:
        if order.tell_peer and self.active is not None:
            self.send("close", self.active, "", epoch=self.key, reason=order.reason)
        self.__init__(self.world)  # type: ignore[misc]

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Towards the gateway, over the path's link."""
        if index in self.paths:
            self.world.carry(self.paths[index].transport, self.uid, kind, index, content)
