"""What both ends' packet cores share: probes, silence, answers, epochs that open and drain.

It keeps the packet core's promises towards the engines (which facts follow which orders), not its bytes. While traffic
flows, the oldest unanswered probe of the active path stands for data that nobody has reported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.values import MILLISECOND, SECOND, TransportId

if TYPE_CHECKING:
    from jumpvpn.sim.world import World

OUTSTANDING_MAX = 32  # probes whose answer may still come, as in the packet core
OWED_MAX = 16  # unanswered probes that count; the oldest decides
DRAIN = 10 * SECOND  # an epoch that was replaced opens for so long
MEASURE_INTERVAL = 500 * MILLISECOND  # measurements are told at most this often
NEVER = 1 << 62


@dataclass(slots=True)
class Path:
    """One path of one side: its liveness and the probes under way (challenge -> when, where, whether told)."""

    transport: TransportId
    peer: str
    limits: out.TuneLiveness | None = None
    outstanding: dict[int, tuple[int, str, bool]] = field(default_factory=dict)
    owed: list[int] = field(default_factory=list)
    next_probe: int = 0
    last_probe: int = -NEVER
    state: str = "alive"
    validated: bool = False
    rtt: int = 0
    moved: str = ""
    socket: int = 0
    measured_at: int = -NEVER

    def watch_anew(self) -> None:
        """Owes nothing and is alive, as a new path: what was told before is told again."""
        self.state = "alive"
        self.owed.clear()


class Side(ABC):
    """One end's packet core for one session. ``world`` carries datagrams and takes facts.

    ``key`` is the epoch that seals, None before a reattach allows to send; ``epoch`` the newest agreed one; ``open``
    the epochs that open, oldest first, with the instant at which each ends (None: not yet known).
    """

    name = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.paths: dict[int, Path] = {}
        self.limits: dict[int, out.TuneLiveness] = {}
        self.active: int | None = None
        self.key: int | None = None
        self.epoch = 0
        self.open: dict[int, int | None] = {}
        self.uid = ""
        self._armed = NEVER

    def install(self, epoch: int, drain: int | None = DRAIN, *, keep_oldest: bool = False) -> None:
        """The newest epoch opens; the one before drains (None: from the confirmation on), older ones end.

        ``keep_oldest``: the peer may still be in the oldest, so those between end instead.
        """
        if epoch in self.open:
            return
        for old in list(self.open)[1:] if keep_oldest else list(self.open)[:-1]:
            del self.open[old]
        for old in self.open:
            self.open[old] = None if drain is None else self.world.now + drain
        self.open[epoch] = None

    def drain_old(self) -> None:
        """Every epoch but the newest ends after the drain."""
        for old in list(self.open)[:-1]:
            if self.open[old] is None:
                self.open[old] = self.world.now + DRAIN

    def retract(self, epoch: int) -> None:
        """The newest epoch closes again; the one before stays."""
        if not self.open or next(reversed(self.open)) != epoch:
            return
        del self.open[epoch]
        for last in list(self.open)[-1:]:
            self.open[last] = None

    def opens(self, epoch: int | None) -> bool:
        """Whether datagrams of ``epoch`` can be read."""
        if epoch is None or epoch not in self.open:
            return False
        until = self.open[epoch]
        return until is None or self.world.now < until

    # --- time --------------------------------------------------------------------------------------------------------

    def arm(self, at: int) -> None:
        """Look at the paths at ``at``, or before."""
        if at < self._armed:
            self._armed = max(at, self.world.now)
            self.world.after(self._armed - self.world.now, self._fire, self._armed)

    def _fire(self, at: int) -> None:
        if at == self._armed:
            self._armed = NEVER
            if self.world.runs(self):
                self.look()

    def look(self) -> None:
        """Probe what is due, tell what fell silent."""
        busy = self.active is None or self.world.traffic
        due = NEVER
        for index, path in sorted(self.paths.items()):
            if path.limits is not None and self.key is not None:
                deadline = self._silence(index, path, path.limits)
                interval = path.limits.probe_busy if busy else path.limits.probe_idle
                path.next_probe = min(path.next_probe, path.last_probe + interval)
                if self.world.now >= path.next_probe:
                    path.next_probe = self.world.now + interval
                    self.probe(index, path, path.peer, fresh=False)
                due = min(due, path.next_probe, deadline)
        self.arm(due)

    def probe(self, index: int, path: Path, address: str, *, fresh: bool) -> None:
        """Send one challenge to ``address``; ``fresh`` makes its answer a fact."""
        if self.key is None:
            return
        challenge, now = self.world.number(), self.world.now
        if len(path.outstanding) == OUTSTANDING_MAX:
            del path.outstanding[next(iter(path.outstanding))]
        path.outstanding[challenge] = (now, address, fresh)
        if address == path.peer:
            path.last_probe = now
            if path.limits is not None:
                del path.owed[OWED_MAX - 1 :]
                path.owed.append(now)
                self.arm(path.owed[0] + self._limit(index, path.limits))
        self.send("probe", index, address, epoch=self.key, challenge=challenge)

    def _limit(self, index: int, limits: out.TuneLiveness) -> int:
        return limits.silence_busy if self.world.traffic and index == self.active else limits.silence_idle

    def _silence(self, index: int, path: Path, limits: out.TuneLiveness) -> int:
        """Tell silence and death; the instant at which the next of them comes."""
        if not path.owed:
            return NEVER
        limit, since = self._limit(index, limits), path.owed[0]
        silent = self.world.now - since
        if path.state == "alive":
            if silent < limit:
                return since + limit
            path.state, path.validated = "silent", False
            self.tell(inp.PathSilent(self.uid, path.transport, silent, limit))
        if path.state == "silent":
            if silent < limit * limits.dead_factor:
                return since + limit * limits.dead_factor
            path.state = "dead"
            self.tell(inp.PathDead(self.uid, path.transport, silent))
        return NEVER

    def answered(self, index: int, challenge: int, source: str) -> None:
        """The peer answered a challenge, from ``source``."""
        path = self.paths.get(index)
        probe = path.outstanding.get(challenge) if path is not None else None
        if path is None or probe is None or probe[1] != source:
            return
        sent, address, fresh = path.outstanding.pop(challenge)
        own, quiet = address == path.peer, path.state != "alive"
        path.rtt = self.world.now - sent
        told = fresh or not own or not path.validated or quiet
        if own:
            path.validated, path.state = True, "alive"
            path.owed = [at for at in path.owed if at > sent]
        if told:
            self.tell(inp.PathValidated(self.uid, path.transport, source, path.rtt))
        if own and quiet:
            self.tell(inp.PathHeard(self.uid, path.transport))
        if own and self.world.measures and self.world.now - path.measured_at >= MEASURE_INTERVAL:
            path.measured_at = self.world.now
            loss = self.world.shown_loss(path.transport)
            self.tell(inp.PathMeasured(self.uid, path.transport, path.rtt, path.rtt // 8, loss, loss))

    # --- the world ---------------------------------------------------------------------------------------------------

    def tell(self, fact: Any) -> None:
        """Hand a fact to this side's engine."""
        self.world.post(self.name, fact)

    @abstractmethod
    def send(self, kind: str, index: int, address: str, **content: Any) -> None:
        """Put one datagram on the way."""
