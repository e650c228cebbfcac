"""Reattach validation: each check alone and in pairs, where the earlier one gives the reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from build import ETH, PEER, START, attached, in_state, policy

from jumpvpn.session.reasons import Reason
from jumpvpn.session.state import Role, Session, State
from jumpvpn.session.validation import EPOCH_JUMP, ReattachRequest, validate
from jumpvpn.values import MINUTE, SECOND, Epoch, Instant, Now, Version, later

NOW = Now(later(START, 10 * SECOND), 1_700_000_000_000)
AGE_MS = 10_000  # of the session, which was born at START
GOOD = ReattachRequest(
    ETH, PEER, proof=True, fresh_nonce=True, nonce_id="aa", epoch=Epoch(2), expected_version=1, age_ms=AGE_MS,
    cause=Reason.TRANSPORT_DEAD, address_validated=True,
)  # fmt: skip


@dataclass
class Case:
    """What a request meets; faults change it."""

    session: Session | None
    request: ReattachRequest
    owned: bool = True


def _fresh() -> Case:
    return Case(attached(Role.GATEWAY, policy(session={"transport_ttl": "20s"}, recovery={"episode_max": "60s"})), GOOD)


def _session(case: Case, **change: object) -> None:
    if case.session is not None:
        case.session = replace(case.session, **change)  # type: ignore[arg-type]


def _request(case: Case, **change: object) -> None:
    case.request = replace(case.request, **change)  # type: ignore[arg-type]


def _unknown(case: Case) -> None:
    case.session = None


def _not_owned(case: Case) -> None:
    case.owned = False


FAULTS: list[tuple[int, Reason, Callable[[Case], None]]] = [
    (1, Reason.UNKNOWN_SESSION, _unknown),
    (2, Reason.NOT_OWNER, _not_owned),
    (3, Reason.INVALID_STATE_FOR_REATTACH, lambda case: _session(case, state=State.BIRTH)),
    (4, Reason.SESSION_EXPIRED, lambda case: _session(case, born_at=Instant(NOW.boot - 25 * 60 * MINUTE))),
    (5, Reason.TRANSPORT_TTL_EXCEEDED, lambda case: _session(case, transportless_at=Instant(NOW.boot - 21 * SECOND))),
    (6, Reason.BAD_PROOF, lambda case: _request(case, proof=False)),
    (7, Reason.REPLAY_DETECTED, lambda case: _request(case, fresh_nonce=False)),
    (7, Reason.STALE_REQUEST, lambda case: _request(case, age_ms=AGE_MS - 5001)),
    (8, Reason.STALE_STATE_VERSION, lambda case: _request(case, expected_version=7)),
    (9, Reason.SWITCH_RATE_LIMITED, lambda case: _session(case, switches=(NOW.boot,) * 8)),
    (10, Reason.ADDRESS_UNVALIDATED, lambda case: _request(case, address_validated=False)),
]


def _verdict(case: Case) -> tuple[int, Reason | None]:
    verdict = validate(case.session, case.request, NOW, owned=case.owned)
    assert verdict.answerable == (verdict.step > 6)
    assert verdict.passed == (verdict.reason is None)
    return verdict.step, verdict.reason


def test_a_good_request_passes_all() -> None:
    assert _verdict(_fresh()) == (10, None)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[1].value)
def test_each_check_alone(fault: tuple[int, Reason, Callable[[Case], None]]) -> None:
    step, reason, apply = fault
    case = _fresh()
    apply(case)
    assert _verdict(case) == (step, reason)


@pytest.mark.parametrize("pair", list(itertools.combinations(range(len(FAULTS)), 2)), ids=str)
def test_of_two_faults_the_earlier_is_the_reason(pair: tuple[int, int]) -> None:
    case = _fresh()
    for index in reversed(pair):
        FAULTS[index][2](case)
    assert _verdict(case) == FAULTS[pair[0]][:2]


def test_limits_themselves_are_still_inside() -> None:
    case = _fresh()
    _request(case, age_ms=AGE_MS - 5000)
    _session(case, transportless_at=Instant(NOW.boot - 20 * SECOND), switches=(NOW.boot,) * 7)
    assert _verdict(case) == (10, None)
    _request(case, age_ms=AGE_MS + 5001)
    assert _verdict(case) == (7, Reason.STALE_REQUEST)


@pytest.mark.parametrize(
    ("epoch", "passes"), [(0, False), (1, False), (2, True), (1 + EPOCH_JUMP, True), (2 + EPOCH_JUMP, False)]
)
def test_only_a_newer_epoch_within_reach_passes(epoch: int, passes: bool) -> None:
    case = _fresh()
    _request(case, epoch=Epoch(epoch))
    assert (_verdict(case)[1] is None) == passes


def test_the_version_before_the_newest_counts_too() -> None:
    case = _fresh()
    _session(case, bound_version=Version(5), prior_bound_version=Version(1))
    assert _verdict(case)[1] is None
    _session(case, prior_bound_version=None)
    assert _verdict(case) == (8, Reason.STALE_STATE_VERSION)


def test_returning_to_the_incumbent_is_no_switch() -> None:
    case = _fresh()
    assert case.session is not None
    assert case.session.incumbent is not None
    _session(case, switches=(NOW.boot,) * 8)
    _request(case, transport=case.session.incumbent)
    assert _verdict(case) == (10, None)


@pytest.mark.parametrize("state", [State.ATTACHED, State.VOLATILE, State.RECOVERING, State.DEGRADED])
def test_every_live_state_after_birth_may_reattach(state: State) -> None:
    assert _verdict(Case(in_state(state, Role.GATEWAY), GOOD)) == (10, None)


def test_a_terminated_session_never_reattaches() -> None:
    assert _verdict(Case(in_state(State.TERMINATED, Role.GATEWAY), GOOD)) == (3, Reason.INVALID_STATE_FOR_REATTACH)
