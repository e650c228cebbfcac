"""Records outlive processes and reboots; foreign bytes never become sessions. The welcome survives its codec."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from build import START
from hypothesis import given
from hypothesis import strategies as st
from strategies import sessions

from jumpvpn.policy.model import Policy
from jumpvpn.session import records
from jumpvpn.session.deadlines import deadlines
from jumpvpn.session.records import BadRecord, Kept
from jumpvpn.session.state import Session, State, Totals
from jumpvpn.values import MILLISECOND, MINUTE, SECOND, Instant, Now, later
from jumpvpn.wire.welcome import BadWelcome, Limits, Welcome, decode_welcome, encode_welcome

KEPT = Kept(b"k" * 32, "laptop", ("10.9.0.2/32", "fd00::2/128"))
WRITTEN = Now(later(START, 30 * SECOND), 1_700_000_000_000)
LIVE = tuple(state for state in State if state is not State.TERMINATED)


def _durable(session: Session) -> Session:
    return replace(session, attempt=None, tried=(), want=None, warnings=0, next_policy=None)


@given(sessions())
def test_the_same_boot_reads_back_what_was_written(session: Session) -> None:
    body = records.encode(session, KEPT, WRITTEN, "boot-a")
    again, kept = records.decode(body, session.policy, Now(later(WRITTEN.boot, MINUTE), 0), "boot-a")
    assert again == _durable(session)
    assert kept == KEPT


@given(sessions(LIVE), st.integers(0, 10**7), st.integers(0, 10**7))
def test_after_a_reboot_every_age_is_what_the_wall_clock_says(session: Session, away_ms: int, uptime_ms: int) -> None:
    body = records.encode(session, KEPT, WRITTEN, "boot-a")
    now = Now(Instant(uptime_ms * MILLISECOND), WRITTEN.wall_ms + away_ms)
    again, _ = records.decode(body, session.policy, now, "boot-b")
    before = {deadline.name: deadline.at - WRITTEN.boot for deadline in deadlines(_durable(session))}
    after = {deadline.name: deadline.at - now.boot for deadline in deadlines(again)}
    assert after == {name: left - away_ms * MILLISECOND for name, left in before.items()}


@given(sessions(LIVE), st.integers(1, 10**9))
def test_a_clock_that_went_back_lengthens_no_deadline(session: Session, back_ms: int) -> None:
    body = records.encode(session, KEPT, WRITTEN, "boot-a")
    now = Now(Instant(5 * SECOND), WRITTEN.wall_ms - back_ms)
    again, _ = records.decode(body, session.policy, now, "boot-b")
    before = {deadline.name: deadline.at - WRITTEN.boot for deadline in deadlines(_durable(session))}
    assert {deadline.name: deadline.at - now.boot for deadline in deadlines(again)} == before


@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(BadRecord):
        records.decode(body, Policy(), WRITTEN, "boot-a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("state", "LIMBO"),
        ("role", "spy"),
        ("reason", "because"),
        ("id", b"short"),
        ("totals", [-1, "many"]),
        ("extra", 1),
    ],
)
def test_a_damaged_field_is_refused(field: str, value: object) -> None:
    body = msgspec.msgpack.decode(records.encode(_any_session(), KEPT, WRITTEN, "boot-a"))
    body[field] = value
    with pytest.raises(BadRecord):
        records.decode(msgspec.msgpack.encode(body), Policy(), WRITTEN, "boot-a")


def _any_session() -> Session:
    from build import attached

    return attached()


@given(sessions())
def test_the_record_of_a_later_program_is_told_from_a_damaged_one(session: Session) -> None:
    body = msgspec.msgpack.decode(records.encode(session, KEPT, WRITTEN, "boot-a"))
    later_body = msgspec.msgpack.encode(body | {"format": 2, "unheard_of": 1})
    words = "it has record format 2, this program knows 1; upgrade the older program"
    with pytest.raises(BadRecord, match=words):
        records.decode(later_body, session.policy, WRITTEN, "boot-a")
    with pytest.raises(BadRecord, match=words):
        records.inner_addresses(later_body)


def test_a_record_that_counted_nothing_is_read_with_zeros() -> None:
    body = msgspec.msgpack.decode(records.encode(_any_session(), KEPT, WRITTEN, "boot-a"))
    del body["totals"]
    again, _ = records.decode(msgspec.msgpack.encode(body), Policy(), WRITTEN, "boot-a")
    assert again.totals == Totals()


def test_records_never_carry_secrets_in_their_repr() -> None:
    session = _any_session()
    assert session.id.raw.hex() not in repr(session)
    assert str(session.id.raw) not in repr(session)


# --- welcome ---------------------------------------------------------------------------------------------------------

WELCOME = Welcome(
    gateway="gw1", addresses=("10.9.0.2/24", "fd00::2/64"), routes=("0.0.0.0/0", "::/0"), mtu=1380,
    limits=Limits.of(Policy()), version=1,
)  # fmt: skip


def test_welcome_round_trip() -> None:
    assert decode_welcome(encode_welcome(WELCOME)) == WELCOME


def test_a_welcome_that_does_not_fit_is_refused_by_the_gateway() -> None:
    routes = tuple(f"2001:db8:{n:x}:ffff:ffff:ffff::/96" for n in range(64))
    with pytest.raises(ValueError, match="announce fewer routes"):
        encode_welcome(msgspec.structs.replace(WELCOME, routes=routes))


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ("10.9.0.300/24",)}, {"routes": ("10.9.0.1/24",)}, {"mtu": 0},
        {"mtu": 100}, {"mtu": 65535}, {"version": -1}, {"gateway": "g" * 65},
    ],
)  # fmt: skip
def test_a_malformed_welcome_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadWelcome):
        decode_welcome(encode_welcome(msgspec.structs.replace(WELCOME, **change)))


@given(st.binary(max_size=200))
def test_foreign_welcome_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(BadWelcome):
        decode_welcome(body)


def test_limits_only_tighten() -> None:
    mine = Policy()
    strict = msgspec.structs.replace(Limits.of(mine), transport_ttl=60 * SECOND, max_per_minute=3)
    met = strict.applied_to(mine)
    assert (met.session.transport_ttl, met.switching.max_per_minute) == (60 * SECOND, 3)
    loose = msgspec.structs.replace(Limits.of(mine), transport_ttl=10**15, max_per_minute=600)
    assert loose.applied_to(mine) == mine


@given(sessions(LIVE), st.integers(0, 10**6), st.integers(-29_000, 29_000))
def test_a_proved_age_counts_where_two_nodes_clocks_differ_a_little(
    session: Session, away_ms: int, skew_ms: int
) -> None:
    body = records.encode(session, KEPT, WRITTEN, "boot-a")
    age_ms = (WRITTEN.boot - session.born_at) // MILLISECOND + away_ms
    now = Now(Instant(7 * SECOND), WRITTEN.wall_ms + away_ms + max(skew_ms, -away_ms))
    again, _ = records.decode(body, session.policy, now, "boot-b", age_ms)
    assert abs(now.boot - again.born_at - age_ms * MILLISECOND) <= MILLISECOND


@given(sessions(LIVE), st.integers(31_000, 10**9), st.integers(0, 10**6))
def test_a_client_cannot_make_its_session_younger(session: Session, away_ms: int, claimed_ms: int) -> None:
    body = records.encode(session, KEPT, WRITTEN, "boot-a")
    now = Now(Instant(7 * SECOND), WRITTEN.wall_ms + away_ms)
    honest, _ = records.decode(body, session.policy, now, "boot-b")
    age_ms = min(claimed_ms, (WRITTEN.boot - session.born_at) // MILLISECOND + away_ms - 31_000)
    claimed, _ = records.decode(body, session.policy, now, "boot-b", age_ms)
    assert claimed.born_at == honest.born_at
    written, _ = records.decode(body, session.policy, Now(WRITTEN.boot, WRITTEN.wall_ms), "boot-b", 0)
    assert written.born_at <= session.born_at


def test_a_record_tells_whether_its_instants_are_of_this_boot() -> None:
    body = records.encode(_any_session(), KEPT, WRITTEN, "boot-a")
    assert (records.is_of_boot(body, "boot-a"), records.is_of_boot(body, "boot-b")) == (True, False)
    with pytest.raises(BadRecord):
        records.is_of_boot(b"\xc1", "boot-a")
