"""Gateways' engines over one store: who owns a session may act for it, and moving it takes one compare-and-swap."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from build import ID, PEER, START, attached

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.policy.model import Policy
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Epoch, Instant, Now, TransportId, Version, later

DEVICE = b"d" * 32
PATH = TransportId("path1/udp")
NOW = later(START, 10 * SECOND)


@dataclass
class Gateway:
    """One engine whose commits win while ``records`` is as they expect."""

    name: str
    records: dict[str, Session]
    engine: GatewayEngine = field(default_factory=lambda: GatewayEngine(Policy()))
    orders: list[Any] = field(default_factory=list)
    commits: list[out.Commit] = field(default_factory=list)
    answer: str = ""
    hold: bool = False

    def tell(self, event: Any, at: Instant = NOW) -> list[Any]:
        """Hand over one input and carry out what follows; the orders that came of it."""
        before, waiting = len(self.orders), self.engine.handle(event, Now(at, 0))
        while waiting:
            order = waiting.pop(0)
            self.orders.append(order)
            if isinstance(order, out.Commit):
                self.commits.append(order)
                if not self.hold:
                    waiting += self.engine.handle(self.settle(order), Now(at, 0))
        return self.orders[before:]

    def settle(self, order: out.Commit) -> inp.CommitEnded:
        stored = self.records.get(order.uid)
        wins = order.expected_version == (None if stored is None else stored.version)
        result = self.answer or ("committed" if wins else "conflict")
        if result == "committed":
            self.records[order.uid] = order.session
        return inp.CommitEnded(order.uid, order.serial, result)

    def events(self, name: str) -> list[Any]:
        """Events of that name, as committed or emitted."""
        told = [o for o in self.orders if isinstance(o, out.Emit | out.Commit)]
        return [event for order in told for event in order.events if event.name == name]


def _asked(record: Session, **changes: Any) -> inp.ReattachAsked:
    age_ms = (NOW - record.born_at) // MILLISECOND
    request = inp.ReattachAsked(
        request=7, uid=None, transport=PATH, peer=PEER, proof=True, fresh_nonce=True, token_ok=True, nonce_id="aa",
        epoch=Epoch(record.epoch + 1), expected_version=int(record.bound_version), age_ms=age_ms,
        cause=Reason.DEAD_TRANSPORT_RECOVERY.code,
    )  # fmt: skip
    return replace(request, **changes)


@pytest.fixture
def record() -> Session:
    return attached(Role.GATEWAY)


@pytest.fixture
def gateways(record: Session) -> tuple[Gateway, Gateway]:
    records = {record.uid: record}
    return Gateway("gw1", records), Gateway("gw2", records)


def _take(gateway: Gateway, record: Session, **changes: Any) -> list[Any]:
    asked = _asked(record, uid=record.uid, **changes)
    return gateway.tell(inp.TakeoverAsked(record, DEVICE, "gw1", asked))


def _taken(gateway: Gateway, record: Session, **changes: Any) -> Session:
    """The session as its new owner has it."""
    _take(gateway, record, **changes)
    session = gateway.engine.session(record.uid)
    assert session is not None
    return session


def _kinds(orders: list[Any]) -> list[str]:
    return [type(order).__name__ for order in orders]


# --- takeover --------------------------------------------------------------------------------------------------------


def test_a_proved_request_moves_and_binds_the_session_in_one_commit(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    session = _taken(gateway, record)
    assert (session.state, session.owner_epoch, session.epoch) == (State.ATTACHED, 2, record.epoch + 1)
    (claim,) = gateway.commits
    assert claim.shared
    assert claim.session.binding is not None
    assert claim.secret == out.Secret("reattach", 7)
    names = [event.name for event in claim.events]
    assert names.index("ownership.acquired") < names.index("reattach.result"), names
    (acquired,) = gateway.events("ownership.acquired")
    assert (acquired.data["from_node"], acquired.data["epoch"], acquired.data["floor"]) == ("gw1", 2, 0)
    assert acquired.data["cause"] == "request"
    assert [o.version for o in gateway.orders if isinstance(o, out.GrantReattach)] == [session.version]


def test_nothing_binds_before_the_store_has_the_new_owner(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    _, gateway = gateways
    gateway.hold = True
    orders = _take(gateway, record)
    assert _kinds(orders) == ["Commit"]


def test_what_the_client_knows_beyond_the_record_is_never_given_twice(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    session = _taken(gateway, record, expected_version=record.version + 5, epoch=Epoch(record.epoch + 4))
    assert session.state is State.ATTACHED
    assert session.epoch == record.epoch + 4
    (acquired,) = gateway.events("ownership.acquired")
    assert acquired.data["floor"] == record.version + 5
    assert acquired.data["version"] == record.version + 6
    assert session.bound_version > record.version + 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fresh_nonce": False}, Reason.REPLAY_DETECTED),
        ({"age_ms": 0}, Reason.STALE_REQUEST),
        ({"epoch": Epoch(1)}, Reason.STALE_STATE_VERSION),
        ({"expected_version": 1}, Reason.STALE_STATE_VERSION),
    ],
)
def test_a_request_that_would_be_refused_moves_nothing(
    gateways: tuple[Gateway, Gateway], record: Session, changes: dict[str, Any], reason: Reason
) -> None:
    _, gateway = gateways
    orders = _take(gateway, replace(record, version=Version(9), bound_version=Version(8)), **changes)
    assert gateway.commits == []
    assert gateway.engine.places == {}
    assert [o.reason for o in orders if isinstance(o, out.RefuseReattach)] == [reason]
    assert isinstance(orders[-1], out.ReleaseSession)


def test_an_address_without_proof_is_challenged_before_anything_moves(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    orders = _take(gateway, record, token_ok=False)
    assert _kinds(orders) == ["ChallengeReattach", "ReleaseSession"]
    assert gateway.records[record.uid] is record


def test_of_two_takers_one_wins_and_the_other_forgets_in_silence(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    first, second = gateways
    first.hold = second.hold = True
    _take(first, record)
    _take(second, record)
    second.tell(second.settle(second.commits[0]))
    orders = first.tell(first.settle(first.commits[0]))
    assert first.engine.places == {}
    assert [(o.answer, o.reason) for o in orders if isinstance(o, out.RefuseReattach)] == [
        (False, Reason.ATOMICITY_FAILED)
    ]
    assert isinstance(orders[-1], out.ReleaseSession)
    assert second.engine.session(record.uid) is not None


def test_a_takeover_without_the_store_is_refused_and_says_so(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    gateway.answer = "unavailable"
    orders = _take(gateway, record)
    assert [(o.answer, o.reason) for o in orders if isinstance(o, out.RefuseReattach)] == [
        (True, Reason.STORE_UNAVAILABLE)
    ]
    assert gateway.engine.places == {}
    assert gateway.events("ownership.store_unavailable")


# --- the former owner ------------------------------------------------------------------------------------------------


def test_the_former_owner_lets_go_when_it_sees_the_new_one(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    former, _ = gateways
    _take(former, record)
    term = former.engine.places[record.uid].seat.session.owner_epoch
    assert former.tell(inp.OwnerElsewhere(record.uid, "gw2", term)) == [], "its own term is no news"
    orders = former.tell(inp.OwnerElsewhere(record.uid, "gw2", term + 1))
    assert former.engine.places == {}
    assert orders[-1] == out.ReleaseSession(record.uid, ID)
    (lost,) = former.events("ownership.lost")
    assert lost.data["code"] == "not_owner"
    assert former.tell(inp.Tick(), later(NOW, 60 * MINUTE)) == [], "nothing of it is left to act"


def test_a_commit_that_ends_after_the_session_moved_has_no_effect(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    former, _ = gateways
    _take(former, record)
    former.hold = True
    former.tell(inp.OperatorTerminate(record.uid))
    former.tell(inp.OwnerElsewhere(record.uid, "gw2", 9))
    assert former.tell(inp.CommitEnded(record.uid, former.commits[-1].serial, "committed")) == []


def test_its_own_end_of_a_session_is_no_news(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    owner, _ = gateways
    _take(owner, record)
    owner.hold = True
    owner.tell(inp.OperatorTerminate(record.uid))
    assert owner.tell(inp.OwnerElsewhere(record.uid, "", 2**62)) == []
    orders = owner.tell(owner.settle(owner.commits[-1]))
    assert any(isinstance(order, out.EndSession) for order in orders)


def test_without_its_lease_a_gateway_forgets_all_and_ends_nothing(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    owner, _ = gateways
    _take(owner, record)
    version = owner.records[record.uid].version
    orders = owner.tell(inp.LeaseEnded(stopped_ms=5))
    assert owner.engine.places == {}
    assert [o for o in orders if isinstance(o, out.ReleaseSession)] == [
        out.ReleaseSession(record.uid, ID, elsewhere=False)
    ]
    assert owner.events("ownership.lost")[0].data["stopped_forwarding_mono_ms"] == 5
    assert owner.records[record.uid].version == version
    assert owner.engine.next_wakeup() is None


# --- adoption and drain ----------------------------------------------------------------------------------------------


def test_an_adopted_session_keeps_the_clock_of_its_loss(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    _, heir = gateways
    lost_at = later(NOW, -30 * SECOND)
    heir.tell(inp.SessionRestored(record, DEVICE, "gw1", lost_at))
    session = heir.engine.session(record.uid)
    assert session is not None
    assert (session.state, session.binding, session.transportless_at) == (State.DEGRADED, None, lost_at)
    ttl = session.policy.session.transport_ttl
    assert heir.tell(inp.Tick(), later(lost_at, ttl)) == []
    heir.tell(inp.Tick(), later(lost_at, ttl + 1))
    assert heir.records[record.uid].reason is Reason.TRANSPORT_TTL_EXCEEDED


@pytest.mark.parametrize("ahead", [1, 2, 40])
def test_an_heir_believes_a_client_that_proves_to_know_more_than_the_record(
    gateways: tuple[Gateway, Gateway], record: Session, ahead: int
) -> None:
    """The former owner's last binding may have had a version that the heir has given again to its own changes."""
    _, heir = gateways
    heir.tell(inp.SessionRestored(record, DEVICE, "gw1", NOW))
    adopted, known = heir.records[record.uid].version, record.version + ahead
    assert record.version + 2 <= adopted < record.version + 40
    heir.tell(_asked(record, uid=record.uid, expected_version=known, epoch=Epoch(record.epoch + 5)))
    session = heir.engine.session(record.uid)
    assert session is not None
    assert (session.state, session.owner_epoch, session.epoch) == (State.ATTACHED, 3, record.epoch + 5)
    assert session.version > max(known, adopted)
    claims = [(event.data["cause"], event.data["floor"]) for event in heir.events("ownership.acquired")]
    assert claims == [("orphan", 0), ("request", known if known > adopted else 0)]
    assert heir.commits[-1].shared


def test_so_does_who_takes_the_session_from_the_heir(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    other, heir = gateways
    heir.tell(inp.SessionRestored(record, DEVICE, "gw1", NOW))
    adopted = heir.records[record.uid]
    session = _taken(other, adopted, expected_version=int(record.version) + 1, epoch=Epoch(record.epoch + 5))
    assert (session.state, session.owner_epoch, session.epoch) == (State.ATTACHED, 3, record.epoch + 5)
    assert session.version > adopted.version


def test_an_heir_refuses_a_client_that_knows_less_than_the_record(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    """A copy of its state from before, say: it learns that it is one."""
    other, heir = gateways
    known = replace(record, version=Version(record.version + 5), bound_version=Version(record.version + 5))
    heir.records[record.uid] = known
    heir.tell(inp.SessionRestored(known, DEVICE, "gw1", NOW))
    old = {"expected_version": int(record.version) + 4, "epoch": Epoch(record.epoch + 5)}
    orders = heir.tell(_asked(record, uid=record.uid, **old))
    orders += _take(other, heir.records[record.uid], **old)
    assert [o.reason for o in orders if isinstance(o, out.RefuseReattach)] == 2 * [Reason.STALE_STATE_VERSION]


def test_what_was_asked_before_and_given_up_brings_no_session_back(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    first, second = gateways
    second.hold = True
    _take(second, record, epoch=Epoch(record.epoch + 2))
    second.tell(second.settle(second.commits[0]))  # claimed; the reattach itself is not in the store yet
    stored = second.records[record.uid]
    orders = _take(first, stored, epoch=Epoch(record.epoch + 1), expected_version=int(record.bound_version))
    assert [o.reason for o in orders if isinstance(o, out.RefuseReattach)] == [Reason.STALE_STATE_VERSION]
    assert first.engine.places == {}


def test_a_superseded_session_ends_under_the_owner_that_knows_the_newer_one(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    gateway.tell(inp.SessionRestored(record, DEVICE, "gw1"))
    older = replace(record, id=type(ID)(b"o" * 16), born_at=later(NOW, SECOND))
    gateway.records[older.uid] = older
    gateway.tell(inp.SessionRestored(older, DEVICE, "gw1", None, superseded=True))
    assert gateway.records[older.uid].reason is Reason.DEVICE_SUPERSEDED
    assert [event.data["cause"] for event in gateway.events("ownership.acquired")] == ["restart", "superseded"]
    assert gateway.records[older.uid].owner_epoch == older.owner_epoch + 1
    assert gateway.records[record.uid].state is not State.TERMINATED


def test_a_draining_gateway_takes_no_session(gateways: tuple[Gateway, Gateway], record: Session) -> None:
    _, gateway = gateways
    gateway.tell(inp.DrainWished(on=True))
    orders = _take(gateway, record)
    assert [(o.answer, o.reason) for o in orders if isinstance(o, out.RefuseReattach)] == [(True, Reason.NOT_OWNER)]
    offer = inp.HandshakeOffered(3, ID, DEVICE, "c0ffee", PEER, 1)
    assert gateway.tell(offer) == [out.RefuseHandshake(3)]
    gateway.tell(inp.DrainWished(on=False))
    _take(gateway, record)
    assert gateway.engine.session(record.uid) is not None


def test_a_client_that_missed_every_answer_so_far_is_never_refused_for_its_version(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    """A gateway that is slow because all ask at once must not make them wait for a denial on top."""
    _, gateway = gateways
    _take(gateway, record)
    for number in range(1, 5):
        epoch = Epoch(record.epoch + 1 + number)
        gateway.tell(_asked(record, uid=record.uid, request=7 + number, epoch=epoch, nonce_id=f"a{number}"))
    granted = [order.request for order in gateway.orders if isinstance(order, out.GrantReattach)]
    assert granted == [7, 8, 9, 10, 11]
    assert not [order for order in gateway.orders if isinstance(order, out.RefuseReattach)]


def test_a_client_that_has_had_an_answer_cannot_name_the_version_of_before(
    gateways: tuple[Gateway, Gateway], record: Session
) -> None:
    _, gateway = gateways
    session = _taken(gateway, record)
    news = {"expected_version": int(session.bound_version), "epoch": Epoch(session.epoch + 1), "nonce_id": "b1"}
    gateway.tell(_asked(record, uid=record.uid, request=8, **news))
    late = {"expected_version": int(record.bound_version), "epoch": Epoch(session.epoch + 2), "nonce_id": "b2"}
    gateway.tell(_asked(record, uid=record.uid, request=9, **late))
    assert [order.request for order in gateway.orders if isinstance(order, out.GrantReattach)] == [7, 8]
    assert [order.request for order in gateway.orders if isinstance(order, out.RefuseReattach)] == [9]
