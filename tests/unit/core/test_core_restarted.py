"""After a restart: a client that asks brings its session back in the commit that records its loss."""

from __future__ import annotations

import pytest
from build import attached
from test_core_takeover import DEVICE, NOW, Gateway, _asked, _kinds

from jumpvpn.engine import inputs as inp
from jumpvpn.engine import outputs as out
from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.values import MILLISECOND, SECOND, Epoch, Instant, later, replace


@pytest.fixture
def record() -> Session:
    return attached(Role.GATEWAY)


@pytest.fixture
def gateway(record: Session) -> Gateway:
    return Gateway("gw1", {record.uid: record})


def test_loss_and_return_are_one_commit(gateway: Gateway, record: Session) -> None:
    asked = _asked(record, uid=record.uid)
    orders = gateway.tell(inp.SessionRestored(record, DEVICE, request=asked))
    assert _kinds(orders).count("Commit") == 1
    assert "GrantReattach" in _kinds(orders)
    session = gateway.engine.session(record.uid)
    assert session is not None
    assert (session.state, session.epoch) == (State.ATTACHED, record.epoch + 1)
    (acquired,) = gateway.events("ownership.acquired")
    assert acquired.data["cause"] == "restart"
    assert [event.state for event in gateway.events("session.state_change")][-1] == "ATTACHED"


def test_a_request_that_is_refused_records_the_loss_all_the_same(gateway: Gateway, record: Session) -> None:
    stale = _asked(record, uid=record.uid, epoch=record.epoch)
    orders = gateway.tell(inp.SessionRestored(record, DEVICE, request=stale))
    assert [o.reason for o in orders if isinstance(o, out.RefuseReattach)] == [Reason.STALE_STATE_VERSION]
    session = gateway.engine.session(record.uid)
    assert session is not None
    assert session.binding is None


def test_what_is_restored_twice_is_here_once_and_its_request_counts(gateway: Gateway, record: Session) -> None:
    gateway.tell(inp.SessionRestored(record, DEVICE))
    assert gateway.tell(inp.SessionRestored(record, DEVICE)) == []
    again = inp.SessionRestored(record, DEVICE, request=_asked(record, uid=record.uid))
    assert "GrantReattach" in _kinds(gateway.tell(again))


def test_a_session_that_is_not_taken_up_yet_has_its_address_proved_meanwhile(gateway: Gateway, record: Session) -> None:
    asked = _asked(record, uid=record.uid, token_ok=False)
    assert gateway.tell(asked) == [out.ChallengeReattach(asked.request)]
    assert gateway.commits == []


@pytest.mark.parametrize("change", [{"uid": None}, {"proof": False}, {"fresh_nonce": False}])
def test_strangers_and_copies_are_met_with_silence(
    gateway: Gateway, record: Session, change: dict[str, object]
) -> None:
    orders = gateway.tell(_asked(record, **({"uid": record.uid, "token_ok": False} | change)))
    assert [(o.reason, o.answer) for o in orders if isinstance(o, out.RefuseReattach)] == [
        (Reason.UNKNOWN_SESSION, False)
    ]
    assert not any(isinstance(order, out.ChallengeReattach) for order in orders)


def test_whose_session_is_let_go_during_the_commit_waits_for_no_answer(gateway: Gateway, record: Session) -> None:
    gateway.hold = True
    gateway.tell(inp.SessionRestored(record, DEVICE, request=_asked(record, uid=record.uid, request=7)))
    gateway.tell(_asked(record, uid=record.uid, request=8, nonce_id="bb"))
    orders = gateway.tell(inp.LeaseEnded(1))
    assert sorted(o.request for o in orders if isinstance(o, out.RefuseReattach) and not o.answer) == [7, 8]


def test_what_asks_while_its_session_ends_waits_for_no_answer(gateway: Gateway, record: Session) -> None:
    gateway.tell(inp.SessionRestored(record, DEVICE))
    gateway.hold = True
    gateway.tell(inp.OperatorTerminate(record.uid))
    gateway.tell(_asked(record, uid=record.uid))
    (*_, ending) = gateway.commits
    orders = gateway.tell(gateway.settle(ending), later(NOW, SECOND))
    assert [o.request for o in orders if isinstance(o, out.RefuseReattach) and not o.answer] == [7]


@pytest.mark.parametrize("younger_s", [-3600, -20, 20])
def test_wall_clocks_that_lie_lock_no_client_out(gateway: Gateway, record: Session, younger_s: int) -> None:
    asked = _asked(record, uid=record.uid)
    guessed = replace(record, born_at=Instant(record.born_at - younger_s * SECOND))
    gateway.tell(inp.SessionRestored(guessed, DEVICE, age_guessed=True))
    assert "GrantReattach" in _kinds(gateway.tell(asked))
    session = gateway.engine.session(record.uid)
    assert session is not None
    assert session.born_at == NOW - asked.age_ms * MILLISECOND
    older = replace(asked, request=8, nonce_id="bb", epoch=Epoch(session.epoch + 1), age_ms=asked.age_ms + 60_000)
    later_version = replace(older, expected_version=int(session.version))
    refused = [o.reason for o in gateway.tell(later_version) if isinstance(o, out.RefuseReattach)]
    assert refused == [Reason.STALE_REQUEST], "once said, the age is known"


@pytest.mark.parametrize(
    ("guessed", "younger_s", "change"),
    [(False, -3600, {}), (True, 3600, {}), (True, -3600, {"proof": False})],
    ids=["the boot clock has gone on", "much younger than the clocks say", "said by a stranger"],
)
def test_an_age_that_need_not_be_believed_is_not(
    gateway: Gateway, record: Session, guessed: bool, younger_s: int, change: dict[str, object]
) -> None:
    wrong = replace(record, born_at=Instant(record.born_at - younger_s * SECOND))
    gateway.tell(inp.SessionRestored(wrong, DEVICE, age_guessed=guessed))
    orders = gateway.tell(_asked(record, uid=record.uid, **change))
    assert "GrantReattach" not in _kinds(orders)
    session = gateway.engine.session(record.uid)
    assert session is not None
    assert session.born_at == wrong.born_at
