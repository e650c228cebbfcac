"""What a session tells of its whole life when it ends, and of an episode when that closes."""

from __future__ import annotations

from typing import Any

import pytest
from build import ETH, PEER, START, WLAN, attached, started
from hypothesis import given, settings
from strategies import events, sessions

from jumpvpn.policy.model import Policy
from jumpvpn.session import events as ev
from jumpvpn.session import records
from jumpvpn.session.machine import step
from jumpvpn.session.reasons import Reason
from jumpvpn.session.records import Kept
from jumpvpn.session.state import AttemptKind, Session, State
from jumpvpn.values import MILLISECOND, SECOND, DomainEvent, Epoch, Instant, Now, Version, later

CLOSE = ev.CloseRequested(Reason.OPERATOR_TERMINATED)


class Life:
    """One session from ATTACHED on, and the events of its story."""

    def __init__(self) -> None:
        self.session: Session = attached()
        self.now: Instant = START
        self.told: list[DomainEvent] = []

    def after(self, seconds: float, event: ev.Event) -> Life:
        """``event`` happens this much later."""
        self.now = later(self.now, round(seconds * SECOND))
        outcome = step(self.session, event, self.now)
        self.session = outcome.session
        self.told += outcome.events
        return self

    def tries(self, seconds: float) -> Life:
        """An attempt on ETH begins."""
        return self.after(seconds, started(self.session, ETH, AttemptKind.SWITCH, self.now))

    def switched(self, seconds: float, epoch: int) -> Life:
        """The attempt on ETH ends well."""
        return self.after(seconds, ev.ReattachCommitted(ETH, PEER, Epoch(epoch), Version(9), "00"))

    def last(self, name: str) -> dict[str, Any]:
        """The data of the newest event of this name, without its row."""
        data = [event.data for event in self.told if event.name == name][-1]
        return {key: value for key, value in data.items() if key != "row"}


def story() -> Life:
    """3 s VOLATILE, then without a transport: 1 s RECOVERING, 5 s DEGRADED (denied), 2 s RECOVERING, ATTACHED."""
    life = Life().after(10, ev.InstabilitySeen(WLAN, Reason.PROBE_TIMEOUT, {"silent_ms": 700.5}))
    life.after(3, ev.TransportDied(WLAN, "silence", 3700))
    life.after(1, ev.SwitchDenied(Reason.COOLDOWN_ACTIVE))
    return life.after(5, ev.ConditionMet(ETH, "ranked")).tries(1).switched(1, 2)


def test_an_episode_tells_how_it_went() -> None:
    life = story()
    assert life.session.state is State.ATTACHED
    assert life.last("session.episode_closed") == {
        "detect_ms": 700.5, "recovery_ms": 11_000.0, "degraded_ms": 5000.0, "transportless_ms": 8000.0, "attempts": 2,
        "denials": 1, "outcome": "ATTACHED",
    }  # fmt: skip


def test_the_end_tells_the_whole_life() -> None:
    life = story()
    life.after(4, ev.TransportDied(ETH, "silence", 250)).tries(0.5)
    life.after(0.5, ev.IncumbentRevalidated(ETH, PEER, 1))  # not asked for: the attempt goes on
    life.after(1, ev.SwitchDenied(Reason.POLICY_DENIED)).after(6, CLOSE)
    assert life.last("session.terminated") == {
        "session_age_ms": 33_000.0, "transportless_ms": 16_000.0, "volatile_ms": 3000.0, "recovering_ms": 5000.0,
        "degraded_ms": 11_000.0, "switches_total": 1, "episodes_total": 2, "last_epoch": 2, "episode_ms": 8000.0,
        "episode_degraded_ms": 6000.0, "attempts": 1, "denials": 1, "detect_ms": 250.0,
    }  # fmt: skip


def test_an_end_between_episodes_tells_none() -> None:
    told = story().after(1, CLOSE).last("session.terminated")
    assert not {"episode_ms", "episode_degraded_ms", "attempts", "denials", "detect_ms"} & set(told)
    assert (told["switches_total"], told["episodes_total"], told["degraded_ms"]) == (1, 1, 5000.0)


@pytest.mark.parametrize(
    "event",
    [
        ev.TransportDied(WLAN, "link"),
        ev.InstabilitySeen(WLAN, Reason.LOSS_THRESHOLD_EXCEEDED, {"loss_ratio": 0.3}),
        ev.SwitchForced(Reason.OPERATOR_SWITCH),
    ],
)
def test_what_was_noticed_at_once_or_nobody_knows_when_has_no_time_of_detection(event: ev.Event) -> None:
    life = story().after(1, ev.SwitchForced(Reason.OPERATOR_SWITCH, WLAN))
    assert life.session.totals.episode_unseen is None, "the episode before is forgotten"
    assert "detect_ms" not in Life().after(1, event).after(1, CLOSE).last("session.terminated")


def test_a_restart_forgets_nothing_of_it() -> None:
    life = story().after(1, ev.TransportDied(ETH, "silence", 250)).after(2, ev.NoCandidate())
    body = records.encode(life.session, Kept(b"", "", ()), Now(life.now, 0), "boot")
    again, _ = records.decode(body, Policy(), Now(life.now, 0), "boot")
    assert again.totals == life.session.totals
    life.session = again
    told = life.after(1, CLOSE).last("session.terminated")
    assert (told["degraded_ms"], told["transportless_ms"], told["episodes_total"]) == (6000.0, 11_000.0, 2)


@given(sessions(), events)
@settings(max_examples=500, deadline=None)
def test_time_is_counted_once_and_in_one_state(session: Session, event: ev.Event) -> None:
    """Whatever happens: what a step adds to the times is the stay that it ends, or nothing."""
    now = later(session.entered_at, 1500 * MILLISECOND)
    before, after = session.totals, step(session, event, now).session
    grown = [
        getattr(after.totals, name) - getattr(before, name)
        for name in ("volatile", "recovering", "degraded", "transportless")
    ]
    left = after.entered_at == now and session.state in (State.VOLATILE, State.RECOVERING, State.DEGRADED)
    assert sum(grown[:3]) == (1500 * MILLISECOND if left else 0)
    ended = session.transportless_at is not None and after.transportless_at != session.transportless_at
    over = ended or (after.state is State.TERMINATED and session.state is not State.TERMINATED)
    assert grown[3] == (now - session.transportless_at if over and session.transportless_at is not None else 0)
