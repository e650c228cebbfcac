"""A defect that somebody builds into the engine or the machine is found, under the name of the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jumpvpn.engine import gateway_plans
from jumpvpn.engine import inputs as inp
from jumpvpn.engine.client import ClientEngine
from jumpvpn.engine.gateway import GatewayEngine
from jumpvpn.engine.plans import Plans
from jumpvpn.engine.seat import Seat
from jumpvpn.policy.selection import Budget
from jumpvpn.session import deadlines, machine
from jumpvpn.session import effects as fx
from jumpvpn.session import events as ev
from jumpvpn.session.state import State
from jumpvpn.session.transitions import LISTED
from jumpvpn.session.validation import Verdict
from jumpvpn.sim.run import Run

SEEDS = 40  # the slowest to be found of these defects needs fewer

Patch = Callable[[pytest.MonkeyPatch], None]


def _without_deadline(name: str) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        all_of = deadlines.deadlines
        monkeypatch.setattr(deadlines, "deadlines", lambda s: tuple(d for d in all_of(s) if d.name != name))

    return patch


def _versions_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = machine._apply

    def applied(*args: Any) -> Any:
        after = apply(*args)
        return replace(after, version=after.version + 1) if args[2].id == "9" else after

    monkeypatch.setattr(machine, "_apply", applied)


def _row(monkeypatch: pytest.MonkeyPatch, state: State, event: type, **changes: Any) -> None:
    rows = LISTED[(state, event)]
    monkeypatch.setitem(LISTED, (state, event), (replace(rows[0], **changes), *rows[1:]))


def _retry_resets_the_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    action = LISTED[(State.DEGRADED, ev.ConditionMet)][0].action

    def forgetful(session: Any, event: Any, now: Any) -> Any:
        after = action(session, event, now)
        return replace(after, transportless_at=now) if after.transportless_at is not None else after

    _row(monkeypatch, State.DEGRADED, ev.ConditionMet, action=forgetful)


def _stable_without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    _row(monkeypatch, State.VOLATILE, ev.TransportStabilized, next=State.ATTACHED)


def _death_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    _row(monkeypatch, State.RECOVERING, ev.NoCandidate, next=State.TERMINATED)


def _proof_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpvpn.engine.gateway.validate", lambda *_args, **_more: Verdict(10, None))


def _any_address_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = GatewayEngine._reattach_asked

    def trusting(engine: GatewayEngine, place: Any, request: inp.ReattachAsked, turn: Any, now: Any) -> None:
        asked(engine, place, replace(request, token_ok=True), turn, now)

    monkeypatch.setattr(GatewayEngine, "_reattach_asked", trusting)


def _rebinding_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_plans, "may_rebind", lambda _session, _now: True)


def _never_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seat, "wakeups", lambda _seat, _moments: [])


def _budget_is_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "used", lambda _budget, _now: 0)


def _silence_is_overheard(monkeypatch: pytest.MonkeyPatch) -> None:
    fact_of = ClientEngine._liveness_fact

    def deaf(engine: ClientEngine, fact: Any, turn: Any) -> None:
        turn.feed() if isinstance(fact, inp.PathSilent) else fact_of(engine, fact, turn)

    monkeypatch.setattr(ClientEngine, "_liveness_fact", deaf)


def _degraded_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plans, "_degraded_plan", lambda _plans, _session, _now: None)


def _never_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClientEngine, "next_wakeup", lambda engine: engine.seat.seen if engine.seat else None)


def _lost_commits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Seat.settle
    monkeypatch.setattr(Seat, "settle", lambda seat, now, committed: settle(seat, now, committed=True))


def _keeps_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ClientEngine._order

    def stubborn(engine: ClientEngine, effect: Any, turn: Any) -> Any:
        return [] if isinstance(effect, fx.Unbind) else order(engine, effect, turn)

    monkeypatch.setattr(ClientEngine, "_order", stubborn)


DEFECTS: dict[str, tuple[Patch, str]] = {
    "no transport TTL": (_without_deadline("transport_ttl"), "FINITE"),
    "no episode bound": (_without_deadline("episode"), "FINITE"),
    "no recovery window": (_without_deadline("recovery_window"), "BOUNDED_RECOVERY"),
    "no dwell bound": (_without_deadline("volatile_dwell"), "BOUNDED_RECOVERY"),
    "versions rise by two": (_versions_by_two, "VERSION"),
    "a retry resets the TTL": (_retry_resets_the_ttl, "CLOCKS"),
    "VOLATILE returns to ATTACHED": (_stable_without_proof, "EDGES"),
    "no candidate ends the session": (_death_ends_the_session, "EDGES"),
    "no proof is asked for": (_proof_is_not_asked_for, "PROOF"),
    "any address is granted": (_any_address_is_granted, "PROOF"),
    "a rebinding costs nothing": (_rebinding_costs_nothing, "BOUNDED_SWITCHING"),
    "the engine never wakes": (_never_wakes, "FINITE"),
    "the switch budget is endless": (_budget_is_endless, "BOUNDED_SWITCHING"),
    "silence is overheard": (_silence_is_overheard, "VISIBLE"),
    "DEGRADED waits for ever": (_degraded_waits_for_ever, "MUST_RECOVER"),
    "the engine never sleeps": (_never_asleep, "PROGRESS"),
    "a lost commit counts": (_lost_commits_count, "VERSION"),
    "an unbound session keeps sending": (_keeps_sending, "SINGLE_BINDING"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, prop = DEFECTS[name]
    patch(monkeypatch)
    found: list[str] = []
    for seed in range(SEEDS):
        failure = Run(seed, sealed=False).play().failure
        if failure is not None:
            found.append(f"{failure.prop} (seed {seed}): {failure.expected}; {failure.seen}")
            if failure.prop == prop:
                return
    pytest.fail(f"{prop} was not broken within {SEEDS} seeds, but {found}")
