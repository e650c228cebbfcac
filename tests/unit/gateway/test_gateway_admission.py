"""Requests to reattach in a storm: how many are under way, which goes next, and what becomes of the others."""

from __future__ import annotations

import pytest

from jumpvpn.engine.inputs import ReattachAsked
from jumpvpn.gateway import admission
from jumpvpn.gateway.admission import AT_ONCE, LIFE_NS, PATIENCE_NS, UNPROVED_MAX, Admission
from jumpvpn.runtime import clock
from jumpvpn.values import MILLISECOND, Epoch, TransportId


def asked(number: int, *, proof: bool = True, fresh: bool = True) -> ReattachAsked:
    return ReattachAsked(
        number, None, TransportId("path0/udp"), "10.0.0.1:5000", proof, fresh, True, f"{number:x}", Epoch(2), 2, 0, 1
    )


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Gate:
    """An admission that notes what it starts and drops, on a clock of its own."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.dropped: list[int] = []
        self.now = 0
        self.admission = Admission(lambda _, request: self.started.append(request.request), self.dropped.append)

    def offer(self, number: int, of: int, *, proof: bool = True, fresh: bool = True) -> None:
        self.admission.offer(session(of), asked(number, proof=proof, fresh=fresh))

    def fill(self) -> None:
        """As many under way as may be; their numbers are negative."""
        for number in range(1, AT_ONCE + 1):
            self.offer(-number, of=100_000 + number)
        assert len(self.started) == AT_ONCE
        self.started.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(clock, "boot_time", lambda: gate.now)
    return gate


def test_a_request_is_started_at_once_while_few_are_under_way(gate: Gate) -> None:
    gate.offer(1, of=1)
    gate.offer(2, of=2)
    assert (gate.started, gate.dropped) == ([1, 2], [])


def test_beyond_the_bound_requests_wait_and_the_newest_goes_first(gate: Gate) -> None:
    gate.fill()
    for number in (1, 2, 3):
        gate.offer(number, of=number)
    assert gate.started == []
    for number in (1, 2):
        gate.admission.done(-number)
    assert gate.started == [3, 2]
    gate.admission.done(-1)
    assert gate.started == [3, 2], "it was done already"


def test_of_a_session_that_waits_only_the_newest_request_is_kept_and_is_as_new_as_that(gate: Gate) -> None:
    gate.fill()
    gate.offer(1, of=1)
    gate.offer(2, of=2)
    gate.offer(3, of=1)
    gate.admission.done(-1)
    gate.admission.done(-2)
    gate.admission.done(-3)
    assert (gate.started, gate.dropped) == ([3, 2], [1])


def test_one_request_of_a_session_is_under_way_at_a_time_and_the_newest_follows_it(gate: Gate) -> None:
    for number in (1, 2, 3):
        gate.offer(number, of=1)
    assert (gate.started, gate.dropped) == ([1], [2])
    gate.admission.done(1)
    assert gate.started == [1, 3]


def test_what_proves_nothing_displaces_nothing_until_there_is_too_much_of_it(gate: Gate) -> None:
    gate.fill()
    for number in range(UNPROVED_MAX + 2):
        gate.offer(number, of=1, proof=False)
    assert gate.dropped == [0, 1]
    gate.admission.done(-1)
    last = UNPROVED_MAX + 1
    assert gate.started == [last]
    assert [gate.admission.another(number) for number in (last, last - 1)] == [last - 1, last - 2]
    assert gate.admission.another(last) is None, "it is not under way any more"
    gate.dropped.clear()
    gate.admission.done(last - 2)
    assert gate.started == [last, last - 3]
    assert gate.dropped == list(range(2, last - 3)), "the newest is tried once more, the others have had their time"


def test_a_proved_request_displaces_what_proves_nothing(gate: Gate) -> None:
    gate.fill()
    for number in (1, 2):
        gate.offer(number, of=1, proof=False)
    gate.offer(3, of=1)
    gate.admission.done(-1)
    assert (gate.started, gate.dropped, gate.admission.another(3)) == ([3], [1, 2], None)


def test_its_age_counts_on_while_a_request_waits(gate: Gate) -> None:
    ages = list[int]()
    gate.fill()
    gate.admission._start = lambda _session, request: ages.append(request.age_ms)
    gate.offer(1, of=1)
    gate.now = 70 * MILLISECOND
    gate.admission.done(-1)
    assert ages == [70]
    assert (gate.admission.waited_ms(1), gate.admission.waited_ms(2)) == (70, 0)


def test_one_that_is_never_answered_holds_its_session_up_no_longer_than_it_lives(gate: Gate) -> None:
    gate.offer(1, of=1)
    gate.now = LIFE_NS - 1
    gate.offer(2, of=1)
    gate.now = LIFE_NS
    gate.offer(3, of=3)
    assert gate.started == [1, 2, 3]


def test_a_copy_of_an_old_request_displaces_no_other(gate: Gate) -> None:
    gate.offer(1, of=1)
    gate.offer(2, of=1)
    gate.offer(3, of=1, fresh=False)
    gate.admission.done(1)
    assert (gate.started, gate.dropped) == ([1, 2], [3])


def test_a_request_whose_keys_were_found_is_asked_again_at_once(gate: Gate) -> None:
    gate.offer(1, of=1, proof=False)
    gate.offer(1, of=1)
    assert (gate.started, gate.dropped) == ([1, 1], [])
    gate.offer(2, of=1)
    gate.admission.done(1)
    assert gate.started == [1, 1, 2]


def test_whose_client_has_given_it_up_is_not_worked_on(gate: Gate) -> None:
    gate.fill()
    gate.offer(1, of=1)
    gate.now = 1
    gate.offer(2, of=2)
    gate.now = PATIENCE_NS
    gate.admission.done(-1)
    gate.admission.done(-2)
    assert (gate.started, gate.dropped) == ([2], [1])


def test_what_the_packet_core_has_forgotten_holds_up_nobody(gate: Gate) -> None:
    gate.fill()
    gate.now = LIFE_NS - 1
    gate.offer(1, of=1)
    gate.offer(2, of=100_001)
    assert gate.started == []
    gate.now = LIFE_NS
    gate.offer(3, of=3)
    assert gate.started == [2, 3, 1], "they hold up nobody any more, least of all the session of the oldest"


def test_when_all_wait_the_oldest_is_dropped(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "WAITING_MAX", 2)
    gate.fill()
    for number in (1, 2, 3):
        gate.offer(number, of=number)
    assert gate.dropped == [1]


def test_thousands_that_end_at_once_are_started_one_after_the_other(gate: Gate) -> None:
    gate.fill()
    for number in range(5_000):
        gate.offer(number, of=number)

    def end(_session: bytes, request: ReattachAsked) -> None:
        gate.started.append(request.request)
        gate.admission.done(request.request)

    gate.admission._start = end
    gate.admission.done(-1)
    assert len(gate.started) == 5_000


def test_a_start_that_fails_stops_nothing_else(gate: Gate) -> None:
    def fail(_session: bytes, _request: ReattachAsked) -> None:
        raise ZeroDivisionError

    ordinary, gate.admission._start = gate.admission._start, fail
    with pytest.raises(ZeroDivisionError):
        gate.offer(1, of=1)
    gate.admission._start = ordinary
    gate.offer(2, of=2)
    assert gate.started == [2]
