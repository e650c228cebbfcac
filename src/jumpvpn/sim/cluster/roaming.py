"""The client's packet core among several gateways: standby paths, keys by name, what becomes of the epoch before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.sim.client_plane import ClientPlane
from jumpvpn.sim.plane import NEVER, OUTSTANDING_MAX, OWED_MAX, Path
from jumpvpn.values import SECOND, TransportId
from jumpvpn.wire.gateways import decode_drain, decode_gateways

if TYPE_CHECKING:
    from jumpvpn.sim.cluster.client import ClientHost

TOKEN_LIFE = 9 * SECOND  # what an answer to a standby probe proves of the address, less the way of the request


class Roaming(ClientPlane):
    """``home`` is the gateway of the epoch in use; ``handover``: the first data of the newest epoch ends the others."""

    def __init__(self, host: ClientHost) -> None:
        super().__init__(host)  # type: ignore[arg-type]
        self.host = host
        self.home = ""
        self.keys: dict[int, str] = {}
        self.handover = False
        self._tokens: dict[int, tuple[bytes, int]] = {}

    def welcomed(self, uid: str, path: int, home: str, keys: str) -> None:
        """The handshake was answered by ``home``."""
        self.home, self.keys = home, {1: keys}
        self.born(uid, path)

    def away(self, transport: TransportId) -> bool:
        """Whether the transport leads to another gateway than the session's own."""
        return gateway_of(transport) != self.home

    def acceptable(self) -> dict[int, str]:
        """Epochs whose data would be taken for current, with their keys."""
        usable = [epoch for epoch in self.open if self.opens(epoch)]
        if self.handover and len(usable) > 1:
            usable = usable[:-1]
        return {epoch: self.keys[epoch] for epoch in usable if epoch in self.keys}

    # --- probes ------------------------------------------------------------------------------------------------------

    def probe(self, index: int, path: Path, address: str, *, fresh: bool) -> None:
        """A standby path is probed without the session's keys."""
        if self.key is None or not self.away(path.transport):
            super().probe(index, path, address, fresh=fresh)
            return
        challenge, now = self.world.number(), self.world.now
        if len(path.outstanding) == OUTSTANDING_MAX:
            del path.outstanding[next(iter(path.outstanding))]
        path.outstanding[challenge] = (now, address, fresh)
        path.last_probe = now
        if path.limits is not None:
            del path.owed[OWED_MAX - 1 :]
            path.owed.append(now)
            self.arm(path.owed[0] + self._limit(index, path.limits))
        self.send("standby", index, address, challenge=challenge)

    def _standby_answered(self, index: int, content: dict[str, Any]) -> None:
        path = self.paths.get(index)
        probe = path.outstanding.pop(content["challenge"], None) if path is not None else None
        if path is None or probe is None or not self.away(path.transport):
            return
        sent = probe[0]
        self._tokens[index] = (content["token"], sent)
        path.owed = [at for at in path.owed if at > sent]
        path.rtt = self.world.now - sent
        if path.state != "alive":
            path.state = "alive"
            self.tell(inp.PathHeard(self.uid, path.transport))
        self.tell(inp.StandbyAnswered(self.uid, path.transport, path.rtt, content["draining"]))

    # --- reattach ----------------------------------------------------------------------------------------------------

    def _ask(self, order: out.AskReattach) -> None:
        index = self.index(order.transport)
        token, sent = self._tokens.get(index if index is not None else -1, (b"", 0))
        fresh = self.world.now < sent + TOKEN_LIFE and self.away(order.transport)
        super()._ask(replace(order, token=token) if not order.token and fresh else order)

    def _finish(self, order: out.FinishReattach) -> None:
        before, self.home = self.home, gateway_of(order.transport)
        if (order.handover == "same") != (before == self.home):
            raise AssertionError(f"{order.handover!r} is no word for a move from {before} to {self.home}")
        for path in self.paths.values() if before != self.home else ():
            if gateway_of(path.transport) in (before, self.home):  # the other kind of probe is owed from here on
                path.watch_anew()
                path.validated = False
                path.outstanding.clear()
                path.next_probe, path.last_probe = self.world.now, -NEVER
        super()._finish(order)
        if order.handover == "lost":
            self._close_older()
        self.handover = order.handover == "drained" and len(self.open) > 1
        self.host.world.checker.look(self.uid)

    def _close_older(self) -> None:
        self.open = dict(list(self.open.items())[-1:])
        self.handover = False

    def _give_up(self) -> None:
        super()._give_up()
        if len(self.open) <= 1:
            self.handover = False

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def receive(self, kind: str, index: int, content: dict[str, Any]) -> None:
        """A datagram of some gateway."""
        if kind == "standby_reply":
            self._standby_answered(index, content)
            return
        if kind in ("committed", "challenge", "denied"):
            self._answer(kind, index, content)
            return
        epoch = content.get("epoch")
        if epoch is None or self.keys.get(epoch) != content["keys"]:
            return
        if kind != "hint":
            if not self.opens(epoch):
                return
            self._arrived(epoch, content)
        if "new" in content:
            self.keys[content["new"]] = content["new_keys"]
        if kind == "drain":
            transport = self.paths[index].transport if index in self.paths else None
            if transport is not None:
                self.tell(inp.DrainTold(self.uid, transport, decode_drain(content["payload"])))
        elif kind == "gateways":
            self.host.learn(decode_gateways(content["payload"]))
        elif kind != "data":
            super().receive(kind, index, content)

    def _answer(self, kind: str, index: int, content: dict[str, Any]) -> None:
        request = self.request
        if request is not None and request.nonce == content["nonce"] and kind == "committed":
            self.keys[content["epoch"]] = content["keys"]
            self.handover = self.away(request.transport)
        super().receive(kind, index, content)

    def _arrived(self, epoch: int, content: dict[str, Any]) -> None:
        if content["data"]:
            self.host.world.checker.accepted(self.host.name, self.uid, epoch, content["node"])
            if self.handover and epoch == next(reversed(self.open)):
                self._close_older()

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Sealed with the keys of its epoch."""
        content["keys"] = self.keys.get(content.get("epoch", 0))
        super().send(kind, index, address, **content)


def gateway_of(transport: str) -> str:
    """The gateway at the end of a transport."""
    return transport.split("/")[2]
