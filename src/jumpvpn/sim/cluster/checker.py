"""What must hold of the cluster at each change of the store, each grant, each packet, and each tenth of a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpvpn.engine.seat import STORE_RETRY
from jumpvpn.gateway.executor import LINGER_SECONDS
from jumpvpn.properties import Property
from jumpvpn.runtime.stores.base import TERMINATED, StoredSession
from jumpvpn.runtime.stores.etcd.records import decode_session
from jumpvpn.session.records import decode
from jumpvpn.session.state import Session
from jumpvpn.sim.client_plane import Request
from jumpvpn.sim.life import Life
from jumpvpn.sim.violation import Violated
from jumpvpn.values import MILLISECOND, SECOND, SessionId

if TYPE_CHECKING:
    from jumpvpn.sim.cluster.client import ClientHost
    from jumpvpn.sim.cluster.gateway import GatewayHost
    from jumpvpn.sim.cluster.plane import Hosted
    from jumpvpn.sim.cluster.world import ClusterWorld

SLACK = 50 * MILLISECOND  # of the network, of turns, and of rounding
ON_THE_WAY = 3 * SECOND  # a request tells its age as of its making: so much later it may be taken
LATE = 3 * SECOND  # beyond a retry of the store, a deadline that has passed must have had its effect
DRIFT = 100  # 1 %: more than two clocks that NTP slews part
KEYS, DEADLINE = "told apart by keys", "stopped by the deadline"


@dataclass(slots=True)
class Known:
    """The record of a session as the store has it; instants are true time (ns)."""

    stored: StoredSession
    transportless: int | None
    owned_since: int


class ClusterChecker:
    """Every method raises ``Violated`` for a broken promise; ``checks`` counts what was asked.

    ``notes`` counts samples in which more than one gateway acted for a session, by what kept them apart.
    """

    def __init__(self, world: ClusterWorld) -> None:
        self.checks: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.known: dict[bytes, Known] = {}
        self.over = False
        self.skew_ms = 0  # how far any wall clock has been off
        self._world = world
        self._nonces: dict[tuple[str, str], int] = {}
        self._heard: dict[str, tuple[int, str]] = {}
        self._late: dict[tuple[str, str], int] = {}
        self._lingering: dict[int, int] = {}
        self._unattended: dict[tuple[str, bytes], int] = {}
        self.at_grant: Callable[[str], None] | None = None

    def require(self, prop: Property, holds: bool, expected: str, seen: str) -> None:
        """Count one question about ``prop``; raise unless it holds."""
        self.checks[prop.name] += 1
        if not holds and not self.over:
            raise Violated(prop, expected, seen)

    # --- the store ---------------------------------------------------------------------------------------------------

    def stored(self, changes: Sequence[tuple[str, bytes | None]], _revision: int) -> None:
        """A transaction took place."""
        for name, value in changes:
            if value is not None and name.startswith(("live/", "dead/")):
                self._record(decode_session(name.encode(), value))

    def _record(self, after: StoredSession) -> None:
        known = self.known.get(after.session_id)
        uid = SessionId(after.session_id).uid[:4]
        host = self._world.gateways[after.owner]
        session, _ = decode(after.body, self._world.plan.rules, host.machine.now(), host.machine.boot_id)
        loose = session.transportless_at
        transportless = None if loose is None else host.machine.true(loose)
        since = self._world.now if known is None or known.stored.term != after.term else known.owned_since
        if known is not None:
            self._follows(known.stored, after, uid)
            if after.term > known.stored.term:
                self._new_owner(known, after, session, transportless, host)
        self.known[after.session_id] = Known(after, transportless, since)
        self._world.note(f"store    {uid} v{after.version} {after.owner} term {after.term} {after.state}")
        if after.state == TERMINATED:
            self._ended(SessionId(after.session_id).uid)
        self.look(SessionId(after.session_id).uid)

    def _follows(self, before: StoredSession, after: StoredSession, uid: str) -> None:
        self.require(
            Property.ABSORBING, before.state != TERMINATED, f"nothing after the end of {uid}",
            f"{after.owner} wrote {after.state} over it",
        )  # fmt: skip
        self.require(
            Property.VERSION, after.version > before.version, f"a version of {uid} above {before.version}",
            f"{after.owner} wrote {after.version}",
        )  # fmt: skip
        rises = after.term >= before.term and after.epoch >= before.epoch
        self.require(
            Property.EPOCH, rises, f"terms and epochs of {uid} from {before.term}/{before.epoch} on",
            f"{after.owner} wrote {after.term}/{after.epoch}",
        )  # fmt: skip
        # Deadlines outrank a change of owner: who adopts what has run out ends it in the term that it found.
        same = after.term != before.term or after.owner == before.owner or after.state == TERMINATED
        self.require(
            Property.EPOCH, same, f"one owner of {uid} in term {after.term}", f"{before.owner} and {after.owner}"
        )

    def _new_owner(
        self, known: Known, after: StoredSession, session: Session, transportless: int | None, host: GatewayHost
    ) -> None:  # fmt: skip
        before, uid = known.stored, SessionId(after.session_id).uid
        self.require(
            Property.EPOCH, session.binding is None or after.epoch > before.epoch,
            f"no binding of {uid[:4]} that a new owner inherits", f"{after.owner} owns it bound",
        )  # fmt: skip
        place = host.engine.places.get(uid)
        adopted = after.owner != before.owner and place is not None and place.claimant is None
        if after.state == TERMINATED or transportless is None:
            return
        loose = self._last_known(known, host) if after.owner == before.owner else known.transportless
        latest = self._world.now if loose is None else loose
        gone = host.sightings.gone.get(before.owner)
        if loose is None and adopted and gone is not None and host.confirmed_at is not None:
            owned = host.sightings.owned.get((before.session_id, before.term), 0)  # it may have been taken up since
            latest = min(latest, max(gone, host.confirmed_at, owned))
        apart = self.skew_ms * MILLISECOND + (self._world.now - latest) // DRIFT + (SLACK if adopted else ON_THE_WAY)
        self.require(
            Property.CLOCKS, transportless <= latest + apart, f"the transport clock of {uid[:4]} not to begin anew",
            f"{after.owner} moved it by {(transportless - latest) / SECOND:.3f} s",
        )  # fmt: skip

    def _last_known(self, known: Known, host: GatewayHost) -> int | None:
        """The clock as the same owner has it in its own file, which may be newer than the store."""
        row = host.local.row(known.stored.session_id)
        if row is None or row.term != known.stored.term or row.version <= known.stored.version:
            return known.transportless
        session, _ = decode(row.body, self._world.plan.rules, host.machine.now(), host.machine.boot_id)
        return None if session.transportless_at is None else host.machine.true(session.transportless_at)

    def _ended(self, uid: str) -> None:
        """The client may hear of an end at a gateway from here on."""
        for client in self._world.clients:
            client.checker.lives[("gateway", uid)] = Life("gateway", uid, state=TERMINATED)

    # --- grants and packets ------------------------------------------------------------------------------------------

    def born(self, client: ClientHost) -> None:
        """A client has been welcomed."""
        session_id = next(raw for raw in self.known if SessionId(raw).uid == client.uid)
        self._world.raw[client.uid] = session_id

    def granted(self, node: str, request: Request, version: int) -> None:
        """A gateway installs the epoch that a request asked for."""
        process = self._world.gateways[node].process
        run = process.name if process is not None else node
        # A process that begins anew knows no nonces: within a second of a grant that the store lacks, the request
        # counts again. No client takes that answer.
        before = self._nonces.setdefault((request.nonce, run), version)
        self.require(
            Property.PROOF, before == version, "a nonce that counts once", f"{run} grants {request.nonce} again"
        )
        named = request.transport.split("/")[2]
        self.require(Property.PROOF, named == node, f"a request for {node}", f"it names {named}")
        self.require(
            Property.VERSION, version > request.version, f"a version above {request.version}, which the client knows",
            f"{node} grants {version}",
        )  # fmt: skip

        if self.at_grant is not None:
            strike, self.at_grant = self.at_grant, None
            strike(node)

    def accepted(self, client: str, uid: str, epoch: int, node: str) -> None:
        """A client took data of ``node`` for current."""
        highest, whose = self._heard.get(uid, (0, node))
        self.require(
            Property.SINGLE_BINDING, epoch >= highest or node == whose,
            f"{client} to take data of {whose} only, since its epoch {highest}", f"{node} was heard in epoch {epoch}",
        )  # fmt: skip
        if epoch >= highest:
            self._heard[uid] = (epoch, node)

    def silent(self, node: str, uid: str) -> None:
        """A gateway's engine orders a probe where no epoch may send."""
        self.require(Property.EPOCH, False, "silence until a reattach opens an epoch", f"{node} probes {uid}")

    def look(self, uid: str) -> None:
        """Whose packets would the client take now?"""
        for client in self._world.clients:
            plane = client.client_plane
            if plane.uid != uid or plane.key is None:
                continue
            names = set(plane.acceptable().values())
            senders = {node for node, keys in self._senders(uid) if keys in names}
            acting = {node for node, _ in self._senders(uid)}
            self.notes[KEYS] += len(acting) > 1
            self.require(
                Property.SINGLE_BINDING, len(senders) <= 1, f"one gateway whose packets {client.name} takes",
                " and ".join(sorted(senders)),
            )  # fmt: skip

    def _senders(self, uid: str) -> list[tuple[str, str]]:
        found = []
        for name, host in self._world.gateways.items():
            if host.process is not None and host.process.paused:
                found += [(name, keys) for hosted, _, keys in host.recalled if hosted.uid == uid]
            else:
                found += [
                    (name, hosted.keys.get(hosted.key or 0, "")) for hosted in host.hosted()
                    if hosted.uid == uid and hosted.forwards()
                ]  # fmt: skip
        return found

    def sends(self, host: GatewayHost, hosted: Hosted) -> None:
        """A gateway sends data."""
        self._lease(host, hosted)

    def let_go(self, node: str, uid: str, term: int, code: str) -> None:
        """A gateway says that it owns a session no more."""
        known = next((known for raw, known in self.known.items() if SessionId(raw).uid == uid), None)
        own = known is not None and (known.stored.owner, known.stored.term) == (node, term)
        live = known is not None and known.stored.state != TERMINATED
        self.require(
            Property.FINITE, code != "not_owner" or not (own and live), f"{node} to keep {uid[:4]}, which it owns",
            f"it lets go of it in its own term {term}",
        )  # fmt: skip

    # --- samples -----------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Everything that holds at any instant."""
        for host in self._world.gateways.values():
            if host.running:
                self._has_seen(host)
                for hosted in host.hosted():
                    self._lease(host, hosted)
                self._deadlines(host)
        for session_id, known in self.known.items():
            if known.stored.state != TERMINATED:
                self._attended(session_id, known.stored.owner)
        for client in self._world.clients:
            client.checker.overdue()
            if client.uid:
                self.look(client.uid)

    def _has_seen(self, host: GatewayHost) -> None:
        """The deadline lies at most a lease behind the last instant of which this gateway has seen every change."""
        unseen = self._world.server.unseen_since(host.cluster.view.revision) if host.cluster is not None else None
        if unseen is None or host.plane.fenced:
            return
        until, lease = host.machine.true(host.plane.deadline), host.config.lease
        self.require(
            Property.SINGLE_BINDING, until <= unseen + lease + lease // DRIFT,
            f"{host.name} to act for a lease at most after what it has not seen",
            f"it may for {(until - unseen) / SECOND:.3f} s",
        )  # fmt: skip

    def _lease(self, host: GatewayHost, hosted: Hosted) -> None:
        """Who forwards holds a lease, and is the owner, or was at most a lease ago."""
        if not hosted.forwards():
            self.notes[DEADLINE] += hosted.active is not None and host.plane.fenced
            return
        held = self._world.server.get(f"held/{host.name}") is not None
        self.require(
            Property.SINGLE_BINDING, held, f"{host.name} to forward under a lease only", "the store has ended it"
        )
        known = self.known.get(hosted.session_id)
        if known is None or known.stored.state == TERMINATED or known.stored.owner == host.name:
            return
        if host.lingers(hosted):
            since = self._lingering.setdefault(hosted.handle, self._world.now)
            self.require(
                Property.SINGLE_BINDING, self._world.now - since <= LINGER_SECONDS * SECOND + LATE,
                f"{host.name} to deliver for {LINGER_SECONDS} s at most after it was left", "it goes on",
            )  # fmt: skip
            return
        lease = host.config.lease
        past = self._world.now - known.owned_since
        self.require(
            Property.SINGLE_BINDING, past <= lease + lease // DRIFT,
            f"{host.name} to stop within a lease after {known.stored.owner} took over",
            f"it forwards {past / SECOND:.3f} s later",
        )  # fmt: skip

    def _attended(self, session_id: bytes, owner: str) -> None:
        """What a gateway owns, it sees to: its deadlines have nobody else."""
        host, uid = self._world.gateways[owner], SessionId(session_id).uid
        way = self._world.server.way(owner)
        able = (
            host.running
            and not host.plane.fenced
            and not host.leaving
            and not way.troubled
            and not self._world.server.down
        )
        if not able or uid in host.engine.places:
            self._unattended.pop((owner, session_id), None)
            return
        since = self._unattended.setdefault((owner, session_id), self._world.now)
        self.require(
            Property.FINITE, self._world.now - since <= 2 * host.config.lease + LATE,
            f"{owner} to see to {uid[:4]}, which it owns", f"it has not for {(self._world.now - since) / SECOND:.1f} s",
        )  # fmt: skip

    def _deadlines(self, host: GatewayHost) -> None:
        """What is owned here ends in time."""
        now = host.machine.boot()
        for uid, place in host.engine.places.items():
            session = place.seat.session
            loose = session.transportless_at
            ttl = session.policy.session.transport_ttl
            overdue = session.state.live and loose is not None and now > loose + ttl + LATE
            if not overdue or place.seat.pending is not None or now < place.seat.retry_at + STORE_RETRY:
                self._late.pop((host.name, uid), None)
                continue
            since = self._late.setdefault((host.name, uid), now)
            self.require(
                Property.FINITE, now - since < LATE, f"an end to {uid[:4]} when its transport TTL has passed",
                f"{host.name} is {(now - (loose or 0) - ttl) / SECOND:.3f} s late",
            )  # fmt: skip
