"""A packet core and a network for tests: both planes of one session, links with delays, black holes and NATs.

It keeps the packet core's promises towards the engines (which facts follow which orders), not its bytes. Liveness is
the oldest unanswered probe against the limits that ``TuneLiveness`` set; a session without active path probes often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.session.reasons import Reason
from jumpvpn.values import MILLISECOND, Epoch, TransportId, Version

RESEND = 100 * MILLISECOND
EPOCHS_OPEN = 2


@dataclass(slots=True)
class Link:
    """What lies between the client's interface and the gateway. ``address`` is what the gateway sees."""

    address: str
    delay: int = 10 * MILLISECOND
    up: bool = True  # the interface exists, netlink tells when not
    passes: bool = True  # packets arrive; a black hole tells nobody
    drop: Callable[[str], bool] = lambda _kind: False  # by kind of message


@dataclass(slots=True)
class Path:
    """One path of one side: its liveness and probes under way (challenge -> when, where, whether told)."""

    transport: TransportId
    peer: str
    limits: out.TuneLiveness | None = None
    probes: dict[int, tuple[int, str, bool]] = field(default_factory=dict)
    next_probe: int = 0
    state: str = "alive"
    validated: bool = False
    rtt: int = 0
    moved: str = ""
    socket: int = 0


class Side:
    """What both planes share: probing, silence, answers. ``world`` carries datagrams and takes facts."""

    name = ""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.paths: dict[int, Path] = {}
        self.limits: dict[int, out.TuneLiveness] = {}
        self.active: int | None = None
        self.key: int | None = None  # epoch that seals
        self.open: list[int] = []  # epochs that open, newest last
        self.uid = ""

    def install(self, epoch: int) -> None:
        """The newest epoch opens; the one before drains."""
        if epoch not in self.open:
            self.open = [*self.open, epoch][-EPOCHS_OPEN:]

    def tick(self) -> None:
        """Probe what is due, tell what fell silent."""
        for index, path in sorted(self.paths.items()):
            self._silence(index, path)
            busy = self.active is None or self.world.traffic
            interval = (path.limits.probe_busy if busy else path.limits.probe_idle) if path.limits else None
            if interval is not None and self.world.now >= path.next_probe:
                path.next_probe = self.world.now + interval
                self.probe(index, path, path.peer, fresh=False)

    def probe(self, index: int, path: Path, address: str, *, fresh: bool) -> None:
        """Send one challenge."""
        if self.key is None:
            return
        challenge = self.world.number()
        path.probes[challenge] = (self.world.now, address, fresh)
        self.send("probe", index, address, epoch=self.key, challenge=challenge)

    def _silence(self, index: int, path: Path) -> None:
        own = [sent for sent, address, _ in path.probes.values() if address == path.peer]
        if path.limits is None or not own:
            return
        loaded = self.world.traffic and index == self.active
        limit = path.limits.silence_busy if loaded else path.limits.silence_idle
        silent = self.world.now - min(own)
        if path.state == "alive" and silent >= limit:
            path.state, path.validated = "silent", False
            self.tell(inp.PathSilent(self.uid, path.transport, silent, limit))
        if path.state == "silent" and silent >= limit * path.limits.dead_factor:
            path.state = "dead"
            self.tell(inp.PathDead(self.uid, path.transport, silent))

    def answered(self, index: int, challenge: int, source: str) -> None:
        """The peer answered a challenge, from ``source``."""
        path = self.paths.get(index)
        probe = path.probes.get(challenge) if path is not None else None
        if path is None or probe is None or probe[1] != source:
            return
        sent, address, fresh = probe
        path.probes = {c: p for c, p in path.probes.items() if p[0] > sent or p[1] != address}
        own, quiet = address == path.peer, path.state != "alive"
        path.rtt = self.world.now - sent
        told = fresh or not own or not path.validated or quiet
        path.validated = path.validated or own
        path.state = "alive" if own else path.state
        if told:
            self.tell(inp.PathValidated(self.uid, path.transport, source, path.rtt))
        if own and quiet:
            self.tell(inp.PathHeard(self.uid, path.transport))
        if own and self.world.measures:
            link = self.world.link(path.transport)
            self.tell(inp.PathMeasured(self.uid, path.transport, path.rtt, path.rtt // 8, link.loss, link.loss))

    def tell(self, fact: Any) -> None:
        """Hand a fact to this side's engine."""
        self.world.post(self.name, fact)

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Put one datagram on the way."""
        raise NotImplementedError


@dataclass(slots=True)
class Request:
    """A reattach request under way at the client."""

    nonce: str
    epoch: int
    version: int
    path: int
    transport: TransportId
    cause: int
    token: bytes
    age_ms: int


class ClientPlane(Side):
    """The client's packet core and its executor."""

    name = "client"

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self.request: Request | None = None
        self.committed: int | None = None

    def execute(self, order: Any) -> None:
        """Carry out one order of the client's engine."""
        match order:
            case out.OpenPath():
                self.paths[order.path] = Path(order.transport, order.peer, self.limits.get(order.path))
                self.paths[order.path].socket = self.world.number()
                self.world.opened(order.transport)
            case out.ClosePath():
                self.paths.pop(order.path, None)
                self.active = None if self.active == order.path else self.active
            case out.TuneLiveness() if (index := self._index(order.transport)) is not None:
                self.limits[index] = self.paths[index].limits = order
            case out.ChallengePath() if (index := self._index(order.transport)) is not None:
                self.probe(index, self.paths[index], self.paths[index].peer, fresh=True)
            case out.Activate():
                self.active = self._index(order.transport)
            case out.Deactivate():
                self.active = None
            case out.AskReattach():
                self._ask(order)
            case out.AbandonReattach():
                self._give_up()
            case out.FinishReattach():
                self._finish(order)
            case out.AskRekey():
                self.send("rekey_request", self.active or 0, "", epoch=self.key)
            case out.FinishRekey():
                assert self.key is not None
                self.key += 1
            case out.EndSession():
                self._end(order)

    def _give_up(self) -> None:
        """What was committed, but not finished, is closed again."""
        self.open = [epoch for epoch in self.open if epoch != self.committed]
        self.request = self.committed = None

    def _end(self, order: out.EndSession) -> None:
        if order.tell_peer and self.active is not None:
            self.send("close", self.active, "", epoch=self.key, reason=order.reason)
        self.__init__(self.world)  # type: ignore[misc]

    def _index(self, transport: TransportId) -> int | None:
        return next((i for i, p in self.paths.items() if p.transport == transport), None)

    def _ask(self, order: out.AskReattach) -> None:
        self._give_up()
        index = self._index(order.transport)
        assert self.key is not None
        assert order.epoch > self.key, "the packet core refuses an epoch that is not newer"
        assert index is not None, "asked on a transport that has no path"
        nonce = f"{self.world.number():04x}"
        self.request = Request(
            nonce, order.epoch, order.expected_version, index, order.transport, order.cause.code, order.token,
            order.age_ms,
        )  # fmt: skip
        self._resend(nonce)

    def _resend(self, nonce: str) -> None:
        if self.request is None or self.request.nonce != nonce:
            return
        self.send("request", self.request.path, "", request=self.request)
        self.world.after(RESEND, lambda: self._resend(nonce))

    def _finish(self, order: out.FinishReattach) -> None:
        assert self.committed is not None, "the packet core has no committed reattach"
        self.key, self.committed = self.committed, None
        self.active = self._index(order.transport)
        assert self.active is not None
        for path in self.paths.values():
            path.probes.clear()
        self.probe(self.active, self.paths[self.active], self.paths[self.active].peer, fresh=True)

    def receive(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """A datagram from the gateway."""
        if kind in ("committed", "challenge", "denied"):
            self._reply(content)
        elif kind == "hint":
            if (path := self.paths.get(index)) is not None and content["challenge"] in path.probes:
                self.tell(inp.Hinted(self.uid, path.transport))
        elif content.get("epoch") in self.open:
            self._opened(kind, index, address, content)

    def _opened(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        if kind == "probe" and self.key is not None:
            self.send("report", index, address, epoch=self.key, challenge=content["challenge"])
        elif kind == "report":
            self.answered(index, content["challenge"], self.paths[index].peer if index in self.paths else "")
        elif kind == "rekey_reply":
            self.install(content["new"])
            self.tell(inp.RekeyAnswered(Epoch(content["new"])))
        elif kind == "close":
            told = content["reason"]
            reason = told if told is Reason.DEVICE_SUPERSEDED else Reason.PEER_CLOSED
            self.tell(inp.PeerClosed(self.uid, reason))

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

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Towards the gateway, over the path's link."""
        if index in self.paths:
            self.world.carry(self.paths[index].transport, kind, "gateway", index, content)


class GatewayPlane(Side):
    """The gateway's packet core and its executor, for one session."""

    name = "gateway"

    def __init__(self, world: Any, uid: str) -> None:
        super().__init__(world)
        self.uid = uid
        self.confirmed: set[int] = set()
        self.pending: dict[int, tuple[Request, str]] = {}
        self.seen: set[str] = set()
        self.copies: set[str] = set()
        self.last_reply: tuple[str, int, str, dict[str, Any]] | None = None
        self.switch_to: int | None = None
        self.rekeys: dict[int, int] = {}

    def execute(self, order: Any) -> None:
        """Carry out one order of the gateway's engine."""
        match order:
            case out.TuneLiveness():
                index = path_of(order.transport)
                self.limits[index] = order
                if index in self.paths:
                    self.paths[index].limits = order
            case out.ChallengePath():
                index = path_of(order.transport)
                assert index in self.paths, "the packet core has no such path"
                assert self.key is not None, "the session may not send before a reattach"
                self.probe(index, self.paths[index], self.paths[index].peer, fresh=True)
            case out.Activate():
                index = path_of(order.transport)
                self.paths[index].peer, self.paths[index].moved = order.peer, ""
                self.active = index
            case out.Deactivate():
                self.active = None
            case out.GrantReattach():
                self._grant(order)
            case out.ChallengeReattach():
                request, address = self.pending.pop(order.request)
                content = {"status": "challenge", "token": address.encode(), "epoch": request.epoch, "version": 0}
                self._reply(request, address, {**content, "reason": Reason.ADDRESS_UNVALIDATED})
            case out.RefuseReattach():
                self._refuse(order)
            case out.GrantRekey():
                assert self.key is not None
                self.switch_to = self.key + 1
                self.install(self.switch_to)
                index = self.rekeys.pop(order.request)
                self.send("rekey_reply", index, self.paths[index].peer, epoch=self.key, new=self.switch_to)
            case out.EndSession() if order.tell_peer and self.active is not None and self.key is not None:
                self.send("close", self.active, self.paths[self.active].peer, epoch=self.key, reason=order.reason)

    def born(self, address: str, transport: TransportId) -> None:
        """The handshake was answered: keys of epoch 1."""
        self.key = 1
        self.install(1)
        self.paths[0] = Path(transport_of(0), address)
        self.active = 0

    def _grant(self, order: out.GrantReattach) -> None:
        request, address = self.pending.pop(order.request)
        self.install(request.epoch)
        self.key, self.switch_to = request.epoch, None
        self.paths[request.path] = Path(transport_of(request.path), address, self.limits.get(request.path))
        self.active = request.path
        content = {"status": "committed", "epoch": request.epoch, "version": order.version}
        self._reply(request, address, {**content, "reason": Reason.REATTACH_SUCCESS})
        if self.world.zero_rtt:  # data that came before the commit counts as the first of the epoch
            self._confirm(request.epoch, request.path, address)

    def _refuse(self, order: out.RefuseReattach) -> None:
        request, address = self.pending.pop(order.request)
        if order.answer and request.nonce not in self.copies:  # a copy's sender may be anybody
            content = {"status": "denied", "epoch": self.open[-1] if self.open else 0, "version": order.version}
            self._reply(request, address, {**content, "reason": order.reason})

    def _reply(self, request: Request, address: str, content: dict[str, Any]) -> None:
        content = {"nonce": request.nonce, **content}
        self.last_reply = (request.nonce, request.path, address, content)
        self.send(content["status"], request.path, address, **content)

    def _confirm(self, epoch: int, index: int, address: str) -> None:
        if epoch == self.open[-1] and epoch not in self.confirmed:
            self.confirmed.add(epoch)
            if self.switch_to == epoch:
                self.key, self.switch_to = epoch, None
            self.tell(inp.EpochProved(self.uid, Epoch(epoch), transport_of(index), address))

    def receive(self, kind: str, index: int, address: str, content: dict[str, Any]) -> None:
        """A datagram of the client that came from ``address``."""
        if kind == "request":
            self._request(content["request"], address)
            return
        if content.get("epoch") not in self.open:
            return
        if self.key is not None:
            self._source(index, address)
            self._confirm(content["epoch"], index, address)
        if kind == "probe":
            reply = "report" if self.key is not None else "hint"
            self.send(reply, index, address, epoch=self.key, challenge=content["challenge"])
        elif kind == "report":
            self.answered(index, content["challenge"], address)
        elif kind == "close":
            self.tell(inp.PeerClosed(self.uid, Reason.PEER_CLOSED))
        elif kind == "rekey_request":
            number = self.world.number()
            self.rekeys[number] = index
            self.tell(inp.RekeyAsked(number, self.uid))

    def _source(self, index: int, address: str) -> None:
        path = self.paths.get(index)
        if path is None or (index != self.active and path.peer != address):
            self.paths[index] = Path(transport_of(index), address, self.limits.get(index))
        elif path.peer != address:
            if path.moved != address:
                self.tell(inp.PeerMoved(self.uid, path.transport, path.peer, address))
            path.moved = address
            self.probe(index, path, address, fresh=True)

    def _request(self, request: Request, address: str) -> None:
        if self.last_reply is not None and self.last_reply[0] == request.nonce:
            _, index, route, content = self.last_reply
            self.send(content["status"], index, route, **content)
            return
        if any(waiting.nonce == request.nonce for waiting, _ in self.pending.values()):
            return
        number = self.world.number()
        fresh = request.nonce not in self.seen
        self.copies |= set() if fresh else {request.nonce}
        self.seen.add(request.nonce)
        self.pending[number] = (request, address)
        self.tell(
            inp.ReattachAsked(
                number, self.uid, transport_of(request.path), address, True, fresh,
                request.token == address.encode(), request.nonce, Epoch(request.epoch), request.version,
                request.age_ms, request.cause,
            )
        )  # fmt: skip

    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Towards the client: it arrives if a link still has that address."""
        self.world.carry_back(kind, index, address, content)


def transport_of(path: int) -> TransportId:
    """How the gateway names a client's path."""
    return TransportId(f"path{path}/udp")


def path_of(transport: TransportId) -> int:
    """The index behind ``transport_of``'s name."""
    return int(transport.removeprefix("path").split("/", maxsplit=1)[0])
