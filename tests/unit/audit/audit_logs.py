"""Logs for the auditor's tests: written by the shipped machine and sealer, then spoiled on purpose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jumpvpn.audit.auditor import Report, audit_lines
from jumpvpn.audit.chain import GENESIS, Chain
from jumpvpn.audit.checkpoints import Link
from jumpvpn.audit.sealing import Origin, Sealer
from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session.machine import birth, step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept, decode, encode
from jumpvpn.session.state import AttemptKind, Role, Session, State
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Epoch, Instant, Now, SessionId, TransportId, Version

WALL_MS = 1_700_000_000_000
START_MS = 1_000_000
PEER = "192.0.2.1:51820"
WLAN, LTE = TransportId("wlan0/udp/gw1"), TransportId("wwan0/udp/gw1")
PATH0, PATH1 = TransportId("path0/udp"), TransportId("path1/udp")
Records = list[dict[str, Any]]


class Node:
    """One node and its journal; ``at`` is its clock in ms since ``START_MS``; its boot clock is ``offset`` ahead."""

    def __init__(
        self, name: str = "gw1", role: str = "gateway", *, policy: Policy | None = None, run: str = "r1",
        boot: str = "boot", offset: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.role = name, role
        self.policy = policy or Policy()
        self.lines: list[bytes] = []
        self.at, self.offset = 0, offset
        self.number, self.previous = 0, GENESIS
        self.begin(run, boot=boot)

    def begin(self, run: str, *, boot: str = "boot") -> None:
        """A process starts."""
        self.sealer = Sealer(Origin(self.name, "standalone", boot, run, self.role), self.policy, lambda a, _mode: a)
        data = {"role": self.role, "boot_id": boot, "audit_key": self.public()}
        self.note(DomainEvent("node.started", "N", data=data))
        self.announce(self.policy, "start")

    def announce(self, policy: Policy, mode: str = "reload") -> None:
        """From here on events name ``policy``."""
        self.sealer.use_policy(policy)
        data = {"version": policy.version, "digest": policy.digest(), "body": policy.body(), "mode": mode}
        self.note(DomainEvent("policy.applied", "N", reason="policy_applied", data=data))

    @property
    def now(self) -> Now:
        return Now(Instant((START_MS + self.offset + self.at) * MILLISECOND), WALL_MS + self.at)

    def note(self, *events: DomainEvent) -> None:
        """Node-lane events."""
        self.lines += self.sealer.note(events, self.now)

    def commit(self, uid: str, events: Iterable[DomainEvent], *, ended: bool) -> None:
        """One commit of a session."""
        self.lines += self.sealer.settle(self.sealer.draft(uid, list(events), self.now), ended=ended)

    def key(self, number: int) -> Ed25519PrivateKey:
        """The private key of a checkpoint."""
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{self.name} {number}".encode()).digest())

    def public(self, number: int | None = None) -> str:
        """The public key (hex) of the next checkpoint, or of another."""
        key = self.key(self.number + 1 if number is None else number)
        return key.public_key().public_bytes_raw().hex()

    def checkpoint(self) -> None:
        """Vouch for everything so far."""
        self.number += 1
        link = Link(self.number, self.previous, self.public(self.number + 1))
        self.lines.append(self.sealer.checkpoint(link, self.key(self.number).sign, self.now))
        self.previous = self.sealer.node.head

    def stop(self, *, vouch: bool = True) -> None:
        """The process ends in order."""
        if vouch:
            self.checkpoint()
        self.note(DomainEvent("node.stopped", "N", data={"cause": "asked"}))


class Tale:
    """One session at one node, stepped by hand; ``feed`` is one turn and one commit."""

    def __init__(self, node: Node, number: int = 1, *, client: str = "c0ffee") -> None:
        self.node = node
        self.id = SessionId(bytes(15) + bytes([number]))
        role = Role.CLIENT if node.role == "client" else Role.GATEWAY
        born = birth(self.id, role, node.policy, self._now, client)
        self.session: Session = born.session
        self._write(list(born.events))

    @property
    def chain(self) -> str:
        """The name of its chain."""
        return f"{'c' if self.node.role == 'client' else 's'}:{self.session.uid}"

    @property
    def _now(self) -> Instant:
        return self.node.now.boot

    def feed(self, *inputs: Any, at: int | None = None, contributing: tuple[Reason, ...] = ()) -> Tale:
        """Apply ``inputs`` one after the other, at ``at`` (ms), as one turn."""
        if at is not None:
            self.node.at = at
        events: list[DomainEvent] = []
        mutated = False
        for event in inputs:
            taken = step(self.session, event, self._now, contributing)
            self.session = taken.session
            events += taken.events
            mutated = mutated or taken.mutated
        if mutated:
            self._write(events)
        else:
            self.node.note(*events)
        return self

    def _write(self, events: list[DomainEvent]) -> None:
        self.node.commit(self.session.uid, events, ended=self.session.state is State.TERMINATED)


def attached(transport: TransportId = PATH0) -> ev.HandshakeCompleted:
    return ev.HandshakeCompleted(transport, PEER, Epoch(1), Version(1))


def accepted(transport: TransportId, epoch: int, nonce: str) -> ev.ReattachAccepted:
    return ev.ReattachAccepted(transport, PEER, Epoch(epoch), nonce, Reason.TRANSPORT_DEAD)


def refused(reason: Reason, nonce: str, step_number: int = 7) -> ev.ReattachRefused:
    return ev.ReattachRefused(PATH1, step_number, reason, nonce, proven=True)


def closed() -> ev.CloseRequested:
    return ev.CloseRequested(Reason.PEER_CLOSED)


def attempt(tale: Tale, transport: TransportId, kind: AttemptKind = AttemptKind.SWITCH) -> ev.AttemptStarted:
    deadline = Instant(tale.node.now.boot + 2 * SECOND)
    return ev.AttemptStarted(kind, transport, deadline)


def gateway_log(*, vouch: bool = True) -> Node:
    """A gateway that serves one session through two outages, a refusal, a rekey and a policy, until it is closed."""
    node = Node()
    tale = Tale(node)
    tale.feed(attached(), at=50)
    tale.feed(ev.InstabilitySeen(PATH0, Reason.PROBE_TIMEOUT), at=4_000)
    tale.feed(ev.TransportDied(PATH0, "silence", 300), ev.NoCandidate(1), at=4_300)
    tale.feed(refused(Reason.STALE_STATE_VERSION, "n-stale", 8), at=4_500)
    tale.feed(accepted(PATH1, 2, "n-1"), at=5_000)
    tale.feed(ev.KeysRotated(Epoch(3)), at=8_000)
    node.checkpoint() if vouch else None
    tale.feed(accepted(PATH0, 4, "n-2"), at=12_000)
    node.announce(node.policy)
    tale.feed(ev.PolicyReloaded(node.policy), at=15_000)
    tale.feed(closed(), at=20_000)
    node.stop(vouch=vouch)
    return node


def client_log(*, vouch: bool = True) -> Node:
    """A client that recovers by a switch, by a fresh proof, and waits in DEGRADED; then its operator ends it."""
    node = Node("laptop", "client")
    tale = Tale(node)
    tale.feed(attached(WLAN), at=50)
    node.at = 10_000
    tale.feed(ev.TransportDied(WLAN, "link"), attempt(tale, LTE))
    tale.feed(ev.ReattachCommitted(LTE, PEER, Epoch(2), Version(5), "n-1"), at=10_080)
    tale.feed(ev.InstabilitySeen(LTE, Reason.PROBE_TIMEOUT), at=30_000)
    node.at = 32_000
    tale.feed(ev.TransportStabilized(LTE), attempt(tale, LTE, AttemptKind.REVALIDATE))
    tale.feed(ev.IncumbentRevalidated(LTE, PEER, 20 * MILLISECOND), at=32_020)
    tale.feed(ev.TransportDied(LTE, "link"), ev.NoCandidate(0), at=40_000)
    node.at = 43_000
    tale.feed(ev.ConditionMet(WLAN, "ranked"), attempt(tale, WLAN))
    tale.feed(ev.AttemptFailed(WLAN, Reason.REATTACH_TIMEOUT), at=45_000)
    tale.feed(attempt(tale, WLAN))
    tale.feed(ev.ReattachCommitted(WLAN, PEER, Epoch(4), Version(9), "n-2"), at=45_100)
    tale.feed(ev.CloseRequested(Reason.OPERATOR_TERMINATED), at=60_000)
    node.stop(vouch=vouch)
    return node


def rewritten(lines: Iterable[bytes], change: Callable[[Records], Records | None]) -> list[bytes]:
    """The log after ``change``, with numbers, links and hashes made right again: what a skilled forger would do."""
    records: Records = [json.loads(line) for line in lines]
    records = change(records) or records
    heads: dict[str, tuple[int, str]] = {}
    sealed = []
    for record in records:
        seq, head = heads.get(record["chain"], (0, GENESIS))
        body = {**record, "seq": seq + 1, "prev": head}
        body.pop("hash", None)
        digest = hashlib.sha256(rfc8785.dumps(body)).hexdigest()
        heads[record["chain"]] = (seq + 1, digest)
        sealed.append(rfc8785.dumps({**body, "hash": digest}) + b"\n")
    return sealed


def of_session(records: Records) -> Records:
    """The state-lane records."""
    return [record for record in records if record["chain"][0] in "sc"]


def named(records: Records, event: str, place: int = 0) -> dict[str, Any]:
    """The ``place``-th record of that name."""
    return [record for record in records if record["event"] == event][place]


def change_to(records: Records, state: str, place: int = 0) -> dict[str, Any]:
    """The ``place``-th change into ``state``."""
    found = [r for r in records if r["event"] == "session.state_change" and r["state"] == state]
    return found[place]


def rules(report: Report) -> set[str]:
    """Which rules are broken."""
    return {finding.rule.id for verdict in report.faults for finding in verdict.findings}


def judged(lines: Iterable[bytes], **options: Any) -> Report:
    """The audit of ``lines``."""
    return audit_lines(lines, **options)


@dataclass(frozen=True)
class Stored:
    """What the store has of a session: the record as bytes, the head of its chain, and which node owns it."""

    record: bytes
    uid: str
    chain: Chain
    owner: str


class Shared(Tale):
    """A session of a cluster: ``store`` is what another gateway would find, ``claim`` how it goes on from there."""

    def store(self) -> Stored:
        """The record as it is has reached the store."""
        node, uid = self.node, self.session.uid
        record = encode(self.session, Kept(b"", "", ()), node.now, node.sealer.origin.boot_id)
        return Stored(record, uid, node.sealer._sessions[uid], node.name)

    def restored(self, node: Node, found: Stored, *, at: int | None = None) -> Shared:
        """The session as ``node`` reads it from the store, before it claims it."""
        if at is not None:
            node.at = at
        other = Shared.__new__(Shared)
        other.node, other.id = node, self.id
        other.session = decode(found.record, node.policy, node.now, node.sealer.origin.boot_id)[0]
        node.sealer.resume(found.uid, found.chain)
        return other

    def claim(
        self, node: Node, found: Stored, *, at: int | None = None, proven: int = 0, proven_epoch: int = 0,
        lost_at: int | None = None, term: int | None = None,
    ) -> Shared:  # fmt: skip
        """``node`` acquires the session; ``proven``: the version that the client proved to know. Gives its own tale."""
        other = self.restored(node, found, at=at)
        session = other.session
        lost = Instant((START_MS + node.offset + lost_at) * MILLISECOND) if lost_at is not None else None
        term = term or session.owner_epoch + 1
        cause = ev.OwnerCause.REQUEST if lost is None else ev.OwnerCause.ORPHAN
        changed = ev.OwnerChanged(term, found.owner, lost, proven, proven_epoch, cause)
        incumbent = session.incumbent
        assert incumbent is not None
        if session.state in (State.ATTACHED, State.VOLATILE):
            return other.feed(changed, ev.TransportDied(incumbent, "binding_cleared"), ev.NoCandidate(1))
        return other.feed(changed)


def gateway(name: str, *, offset: int = 0) -> Node:
    """A gateway of a cluster, on a machine of its own whose boot clock is ``offset`` ms ahead."""
    return Node(name, boot=f"boot-{name}", offset=offset)


def lost(tale: Tale, code: str = "not_owner", *, at: int | None = None) -> None:
    """The node says that it owns the session no more."""
    if at is not None:
        tale.node.at = at
    session = tale.session
    tale.node.note(
        DomainEvent(
            "ownership.lost",
            "N",
            session=session.uid,
            state_version=int(session.version),
            owner_epoch=session.owner_epoch,
            prev_state=session.state.value,
            state=session.state.value,
            reason="lease_lost",
            data={"row": "32", "epoch": session.owner_epoch, "code": code},
        )
    )


def killed_owner(*, behind: bool = True, vouch: bool = True) -> tuple[Node, Node]:
    """Two gateways: gw1 dies with a switch written behind, which the client knows; gw2 takes over by its request."""
    one, two = gateway("gw1"), gateway("gw2", offset=77_000)
    tale = Shared(one).feed(attached(), at=50)
    found = tale.store()
    if behind:
        tale.feed(accepted(PATH1, 2, "n-1"), at=4_000)
    proven = int(tale.session.version)
    moved = tale.claim(two, found, at=6_000, proven=proven if behind else 0, proven_epoch=2 if behind else 0)
    moved.feed(accepted(PATH0, 3, "n-2"), at=6_100)
    moved.feed(closed(), at=9_000)
    two.stop(vouch=vouch)
    return one, two


def besides_node(report: Report, name: str) -> list[str]:
    """What is not in order but the end of a node's own lane, which a killed node cannot close."""
    return [str(fault) for fault in report.faults if not fault.chain.startswith(f"n:{name}")]


def broken(report: Report, promise: str) -> list[str]:
    """What was found against a promise, in words."""
    return [f.text for v in report.faults for f in v.findings if f.promise.name == promise]
