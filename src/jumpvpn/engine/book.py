"""The client's transports: what is known of each, its path index and socket, and the limits that it is watched by."""

from __future__ import annotations

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.gateways import Gateways, doubt, failures, is_stale
from jumpvpn.engine.liveness import Liveness, liveness_of
from jumpvpn.engine.outputs import Output
from jumpvpn.policy.model import Policy, SwitchingPolicy
from jumpvpn.policy.selection import Candidate
from jumpvpn.session.state import Session
from jumpvpn.transports import state as transport_facts
from jumpvpn.transports.state import Condition, Transport
from jumpvpn.values import SECOND, Instant, TransportId, later, replace

BIRTH_PATH = 0  # wire format: the transport of the handshake is path 0 of epoch 1
PATHS_PER_EPOCH = 8  # wire format: a path index names one candidate instance in one epoch
KNOWN_MAX = 64  # 8 interfaces at 8 gateways; of what is gone, the longest gone is forgotten beyond that
REOPEN_WAIT = SECOND  # a socket that failed here is opened anew that much later: an address may still be tentative


class TransportBook:
    """All transports that were ever reachable; what happens to them means nothing to the session here."""

    def __init__(self) -> None:
        self.transports: dict[TransportId, Transport] = {}
        self.gateways = Gateways()
        self.reopen_at: dict[TransportId, Instant] = {}
        self._paths_used: set[int] = set()
        self._liveness: dict[TransportId, Liveness] = {}

    def keep(self, transport: Transport) -> None:
        """Remember the newest of what is known. A transport that answers has a socket that works: none replaces it."""
        self.transports[transport.id] = transport
        if transport.validated:
            self.reopen_at.pop(transport.id, None)

    def here(self, transport: TransportId) -> Transport | None:
        """The transport, unless it is unknown or gone."""
        known = self.transports.get(transport)
        return None if known is None or known.condition is Condition.GONE else known

    def home(self, session: Session | None) -> str | None:
        """The gateway that holds the session: that of the transport which was bound last; None before the birth."""
        known = self._incumbent(session)
        return known.gateway if known is not None else None

    def is_away(self, transport: Transport, session: Session | None) -> bool:
        """Whether the transport leads to another gateway than the session's own."""
        home = self.home(session)
        return home is not None and transport.gateway != home

    def vanish(self, known: Transport, switching: SwitchingPolicy | None, now: Instant) -> list[Output]:
        """Interface, address or route went away; ``switching`` None: nothing failed, the transport is not wanted."""
        gone = transport_facts.vanished(known, now, switching) if switching else transport_facts.retired(known, now)
        self.keep(gone)
        self._liveness.pop(known.id, None)
        self.reopen_at.pop(known.id, None)
        return [out.ClosePath(known.id, known.path)] if known.path is not None else []

    def appear(self, seen: inp.Reachable, session: Session | None, now: Instant) -> list[Output]:
        """Interface, address and route exist (again): a new instance, with a path index of its own if one is free."""
        known = self.transports.get(seen.id)
        room: list[Output] = []
        path = self.allocate_path(session, seen.gateway)
        if path is None:
            path, room = self._make_room(session, seen.gateway, now)
        fresh = Transport(
            id=seen.id, interface=seen.interface, protocol=seen.protocol, gateway=seen.gateway, peer=seen.peer,
            local=seen.local, path=path, since=now, condition=Condition.GONE,
        )  # fmt: skip
        if known is not None:
            fresh = replace(fresh, penalty=known.penalty)
        self.keep(transport_facts.appeared(fresh, now))
        if path is None:
            return []
        return [*room, out.OpenPath(seen.id, path, seen.peer), *self.tune(self.transports[seen.id], session)]

    def forget(self, keep: tuple[TransportId | None, ...]) -> None:
        """Bound what is kept of transports that are gone; those in ``keep`` stay."""
        gone = [t for t in self.transports.values() if t.condition is Condition.GONE and t.id not in keep]
        surplus = max(0, len(self.transports) - KNOWN_MAX)
        for old in sorted(gone, key=lambda t: (t.since, t.id))[:surplus]:
            del self.transports[old.id]
        known = {t.gateway for t in self.transports.values()}
        self.gateways.forget(known, {t.gateway for t in self._here()})

    def new_epoch(self, home: str) -> None:
        """An epoch with the gateway ``home``: path indexes that no transport to it holds are free again."""
        self._paths_used = {t.path for t in self._here() if t.path is not None and t.gateway == home}

    def epoch_agreed(self, home: str) -> None:
        """The gateway ``home`` confirmed a reattach: it holds keys, for every transport to it; no other does."""
        for known in list(self.transports.values()):
            self.keep(replace(known, needs_epoch=known.gateway != home))

    def epoch_forgotten(self, gateway: str) -> None:
        """The gateway holds no keys of this epoch: none of its transports can be used without a reattach."""
        for known in list(self.transports.values()):
            if known.gateway == gateway and known.condition is not Condition.GONE:
                self.keep(replace(known, needs_epoch=True))

    def candidates(
        self,
        policy: Policy,
        tried: tuple[TransportId, ...],
        now: Instant,
        session: Session | None,
        instead: tuple[Transport, ...] = (),
    ) -> tuple[Candidate, ...]:
        """All transports as selection sees them, in order of identifier; those in ``instead`` as they are there.

        ``session`` tells which gateway is its own; None before the birth.
        """
        seen = {**self.transports, **{t.id: t for t in instead}}
        incumbent = self._incumbent(session)
        several = len({t.gateway for t in seen.values()}) > 1
        failed = failures((seen[t] for t in tried if t in seen), incumbent) if several else ()
        return tuple(
            replace(found, doubt=doubt(t, failed, incumbent)) if failed else found
            for _, t in sorted(seen.items())
            for found in (self.candidate(t, policy, tried, now, session),)
        )

    def candidate(
        self, t: Transport, policy: Policy, tried: tuple[TransportId, ...], now: Instant, session: Session | None
    ) -> Candidate:
        """One transport as selection sees it, without the doubt that failures of others cast on it."""
        fresh = not is_stale(t, self._incumbent(session))
        usable, validated = fresh and t.usable and t.path is not None, fresh and t.validated
        return Candidate(
            id=t.id, allowed=self.allowed(t, policy), usable=usable, validated=validated,
            suppressed=t.penalty.is_suppressed(now, policy.switching), reuse_at=t.penalty.reuse_at(policy.switching),
            tried=t.id in tried, rank=self.rank(t, policy), loss=t.loss, rtt_ns=t.rtt_ns,
            stable_ns=t.stable_for(now), away=self.is_away(t, session),
            avoided=self.gateways.is_avoided(t.gateway, now),
        )  # fmt: skip

    def _incumbent(self, session: Session | None) -> Transport | None:
        return self.transports.get(session.incumbent) if session is not None and session.incumbent else None

    def allowed(self, transport: Transport, policy: Policy) -> bool:
        """Whether policy lets the transport carry the session."""
        return policy.transports.allows(transport.interface, transport.protocol, transport.gateway)

    def rank(self, transport: Transport, policy: Policy) -> int:
        """Its place in ``transports.prefer`` (0 is best)."""
        return policy.transports.rank(transport.interface, transport.protocol, transport.gateway)

    def silent(self, session: Session) -> list[Transport]:
        """Transports that have a path and do not answer, or have to answer again, in order of identifier."""
        unusable, incumbent = (Condition.SILENT, Condition.DEAD), self._incumbent(session)
        having = (t for t in self.transports.values() if t.path is not None)
        return sorted((t for t in having if t.condition in unusable or is_stale(t, incumbent)), key=lambda t: t.id)

    def is_lost(self, transport: TransportId) -> bool:
        """Whether the transport is dead or gone."""
        return self.transports[transport].condition in (Condition.DEAD, Condition.GONE)

    def fell_silent(self, session: Session) -> bool:
        """Whether the transport that was bound last is silent or dead, and no error of this host explains it."""
        known = self._incumbent(session)
        return known is not None and known.failed_at is not None and known.id not in self.reopen_at

    def take_birth_path(self, transport: TransportId) -> None:
        """The handshake's transport gets the path index of birth; whoever held it takes over the other one."""
        mine = self.transports[transport].path
        for known in list(self.transports.values()):
            if known.path == BIRTH_PATH:
                self.transports[known.id] = replace(known, path=mine)
        home = self.transports[transport].gateway
        self._paths_used -= {t.path for t in self._here() if t.path is not None and t.gateway != home}
        self.transports[transport] = replace(self.transports[transport], path=BIRTH_PATH)
        self._paths_used.add(BIRTH_PATH)

    def allocate_path(self, session: Session | None, gateway: str) -> int | None:
        """A path index that this epoch has not used; when nothing carries the session, one that is merely free.

        A standby at another gateway is no path of the epoch: any free index will do, those first that are used up here.
        """
        held = {t.path for t in self._here()}
        if self.home(session) not in (None, gateway):
            spare = [path for path in range(PATHS_PER_EPOCH) if path not in held]
            return min(spare, key=lambda path: (path not in self._paths_used, path), default=None)
        unused = [path for path in range(PATHS_PER_EPOCH) if path not in self._paths_used and path not in held]
        free = [path for path in range(PATHS_PER_EPOCH) if path not in held]
        transportless = session is None or session.binding is None
        path = unused[0] if unused else (free[0] if free and transportless else None)
        if path is not None:
            self._paths_used.add(path)
        return path

    def _make_room(self, session: Session | None, gateway: str, now: Instant) -> tuple[int | None, list[Output]]:
        """For a transport to the session's own ``gateway``: the index of a standby at another one, which moves away."""
        if session is None or self.home(session) != gateway:
            return None, []
        others = [t for t in self._here() if t.path is not None and t.gateway != gateway]
        given = [t for t in others if t.path not in self._paths_used]
        if not given:
            return None, []
        least = max(given, key=lambda t: (not t.validated, t.gateway in self.gateways.draining, t.id))
        assert least.path is not None, "chosen among those that hold an index"
        self._paths_used.add(least.path)
        self._liveness.pop(least.id, None)
        elsewhere = self.allocate_path(session, least.gateway)
        self.transports[least.id] = replace(transport_facts.hoped_for(least, now), path=elsewhere)
        orders: list[Output] = [out.ClosePath(least.id, least.path)]
        if elsewhere is not None:
            orders += [out.OpenPath(least.id, elsewhere, least.peer), *self.tune(self.transports[least.id], session)]
        return least.path, orders

    def _here(self) -> list[Transport]:
        return [t for t in self.transports.values() if t.condition is not Condition.GONE]

    def open_waiting(self, session: Session) -> list[Output]:
        """Transports that waited for a path index get one of the new epoch, the session's own gateway first."""
        outputs: list[Output] = []
        for known in sorted(self.transports.values(), key=lambda t: (self.is_away(t, session), t.id)):
            if known.path is None and known.condition is not Condition.GONE:
                path = self.allocate_path(session, known.gateway)
                if path is not None:
                    self.transports[known.id] = replace(known, path=path)
                    outputs += [
                        out.OpenPath(known.id, path, known.peer),
                        *self.tune(self.transports[known.id], session),
                    ]
        return outputs

    def socket_broke(self, known: Transport, switching: SwitchingPolicy, now: Instant) -> None:
        """The socket is of no use any more; a new one is tried soon."""
        self.transports[known.id] = transport_facts.died(known, now, switching)
        self.reopen_at[known.id] = later(now, REOPEN_WAIT)

    def open_again(self, session: Session | None, now: Instant) -> list[Output]:
        """New sockets for transports whose socket failed a while ago."""
        outputs: list[Output] = []
        for transport in sorted(t for t, at in self.reopen_at.items() if now >= at):
            del self.reopen_at[transport]
            known = self.transports[transport]
            if known.path is not None:
                self._liveness.pop(transport, None)
                outputs += [out.ClosePath(transport, known.path), out.OpenPath(transport, known.path, known.peer)]
                outputs += self.tune(known, session)
                if session is None:
                    self.transports[transport] = transport_facts.appeared(known, now)
        return outputs

    def tune_all(self, session: Session) -> list[Output]:
        """The limits of all paths, told afresh."""
        self._liveness.clear()
        return [order for _, t in sorted(self.transports.items()) for order in self.tune(t, session)]

    def tune(self, transport: Transport, session: Session | None) -> list[Output]:
        """Tell the packet core the path's limits when they moved enough to matter."""
        if session is None or transport.path is None or transport.condition is Condition.GONE:
            return []
        wanted = liveness_of(session.policy, transport.rtt_ns, transport.rtt_dev_ns)
        known = self._liveness.get(transport.id)
        if known is not None and known.close_to(wanted):
            return []
        self._liveness[transport.id] = wanted
        return [wanted.order(session.uid, transport.id)]

    def liveness(self, transport: TransportId) -> Liveness | None:
        """The limits in force for ``transport``, for ``status``."""
        return self._liveness.get(transport)
