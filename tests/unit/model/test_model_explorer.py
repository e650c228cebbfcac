"""The explorer: the shipped machine holds in a small world, and what does not hold is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jumpvpn.model import explorer, liveness, published
from jumpvpn.model.bounds import TINY, Bounds
from jumpvpn.model.explorer import Exploration, explore
from jumpvpn.model.liveness import components
from jumpvpn.model.report import EXPLORED, MutantResult, Report, told
from jumpvpn.properties import Property
from jumpvpn.session import deadlines
from jumpvpn.session import transitions as table
from jumpvpn.session.deadlines import Deadline
from jumpvpn.session.state import Role, Session, State

SMALLEST = Bounds("smallest", 3, 3, 1, 1, 1, 1, 1, 20_000)


@pytest.fixture(scope="module")
def explored() -> tuple[Exploration, ...]:
    """Both roles in the smallest world, in which each session has one attempt per episode."""
    return tuple(explore(role, SMALLEST) for role in Role)


def test_the_shipped_machine_holds_in_a_small_world(explored: tuple[Exploration, ...]) -> None:
    report = Report(SMALLEST.name, explored)
    assert [(role, found.property.name, found.text) for role, found in report.violations] == []
    assert report.unchecked == ()
    assert all(exploration.worlds > 1_000 for exploration in explored)


def test_recovery_is_owed_and_comes() -> None:
    exploration = explore(Role.CLIENT, TINY, cut=3_000)
    assert exploration.checks["MUST_RECOVER"] > 200
    assert exploration.recoveries["owed"] == exploration.checks["MUST_RECOVER"]
    assert set(exploration.recoveries) <= set(liveness.CONDITIONS)
    assert exploration.found == ()


def test_a_row_that_nothing_applies_fails_the_run(explored: tuple[Exploration, ...]) -> None:
    """With one attempt per episode there is no retry: the run says so and does not pass."""
    report = Report(SMALLEST.name, explored)
    assert "21" in report.uncovered
    assert not report.passed
    assert report.body()["uncovered_rows"] == list(report.uncovered)
    assert "UNCOVERED row 21" in told(report)
    assert told(report).endswith("FAIL")


def test_every_listed_row_but_the_retries_is_covered(explored: tuple[Exploration, ...]) -> None:
    assert set(Report(SMALLEST.name, explored).uncovered) == {"21", "7.degraded"}


def test_two_explorations_give_the_same_numbers() -> None:
    one, two = (replace(explore(Role.CLIENT, TINY, cut=400), seconds=0.0) for _ in range(2))
    assert one == two


def test_more_worlds_than_the_cap_violate_progress() -> None:
    found = explore(Role.GATEWAY, replace(TINY, max_worlds=60)).found
    assert [one.property for one in found] == [Property.PROGRESS]
    assert "more than 60 worlds" in found[0].text
    report = Report("tiny", (explore(Role.GATEWAY, replace(TINY, max_worlds=60)),))
    assert not report.passed


def _without(name: str) -> Callable[[Session], tuple[Deadline, ...]]:
    shipped = deadlines.deadlines
    return lambda session: tuple(found for found in shipped(session) if found.name != name)


def test_a_violation_shows_the_shortest_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "deadlines", _without("transport_ttl"))
    bounds = replace(SMALLEST, episode_max=5)  # so that the two deadlines never pass together
    exploration = explore(Role.CLIENT, bounds, first_only=True)
    (found,) = exploration.found
    assert found.property is Property.FINITE
    assert found.text == "the deadline transport_ttl has passed and nothing happened"
    steps = [line for line in found.path if not line.startswith(" ")]
    assert steps[-1].endswith("one second passes")
    assert sum("one second passes" in step for step in steps) == SMALLEST.transport_ttl + 1
    assert any("row 1 > ATTACHED (handshake_ok)" in line for line in found.path)
    text = told(Report(SMALLEST.name, (exploration,)))
    assert "VIOLATION FINITE (client): the deadline transport_ttl has passed" in text
    assert all(line in text for line in found.path)


def test_no_more_than_a_few_counterexamples_per_property(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "deadlines", _without("volatile_dwell"))
    found = explore(Role.CLIENT, TINY, cut=2_000).found
    assert 1 <= len([one for one in found if one.property is Property.BOUNDED_RECOVERY]) <= explorer.SHOWN


@pytest.mark.parametrize(
    ("edges", "alike"),
    [
        ({1: [2], 2: [3], 3: []}, []),
        ({1: [2], 2: [1]}, [{1, 2}]),
        ({1: [2], 2: [3], 3: [1, 4], 4: [5], 5: [4]}, [{1, 2, 3}, {4, 5}]),
        ({1: [2, 3], 2: [4], 3: [4], 4: [1]}, [{1, 2, 3, 4}]),
    ],
)
def test_components_are_the_cycles(edges: dict[int, list[int]], alike: list[set[int]]) -> None:
    component = components(edges)
    groups: dict[int, set[int]] = {}
    for vertex, number in component.items():
        groups.setdefault(number, set()).add(vertex)
    assert sorted((group for group in groups.values() if len(group) > 1), key=min) == alike


def test_a_long_chain_needs_no_recursion() -> None:
    chain = {n: [n + 1] for n in range(50_000)}
    assert len(set(components(chain).values())) == 50_001


def test_time_in_a_cycle_between_open_states_is_an_endless_excursion() -> None:
    graph, ways = liveness.Graph(Role.CLIENT, SMALLEST), liveness.Ways()
    ways.open = {10: [20 * 2], 20: [10 * 2 + 1]}
    (alarm,) = liveness.judge(graph, ways)
    assert alarm[1].property is Property.PROGRESS
    ways.open = {10: [20 * 2], 20: [10 * 2]}
    assert list(liveness.judge(graph, ways)) == []


def test_a_cycle_of_answers_alone_is_a_cycle_without_time() -> None:
    graph, ways = liveness.Graph(Role.CLIENT, SMALLEST), liveness.Ways()
    ways.prompt = {1: [2], 2: [1]}
    assert {alarm[1].property for alarm in liveness.judge(graph, ways)} == {Property.PROGRESS}


# --- the publication beside the table --------------------------------------------------------------------------------


def test_the_publication_lists_what_the_table_lists() -> None:
    listed = {(state.value, event.__name__) for state, event in table.LISTED}
    assert listed == set(published.BY_PAIR)


def test_the_publication_names_every_event_once_in_its_order() -> None:
    assert [event.__name__ for event in deadlines.PRIORITY] == list(published.PRIORITY)
    assert len(set(published.PRIORITY)) == len(published.PRIORITY)


def test_the_publication_gives_the_reasons_of_the_table() -> None:
    for (state, event), rows in table.LISTED.items():
        mine = {reason for line in published.BY_PAIR[state.value, event.__name__] for reason in line.reasons}
        assert mine == {reason.value for row in rows for reason in row.reasons}, (state, event)


# --- the report ------------------------------------------------------------------------------------------------------


def _complete(**more: Any) -> Report:
    rows = dict.fromkeys([row.id for row in (*table.TABLE, table.AFTER_TERMINATION, table.NOT_LISTED)], 1)
    checks = {one.name: 1 for one in EXPLORED}
    counter = explorer.Counter
    one = Exploration(
        "client", 1, 2, 3, 0.5, counter(rows), counter({"handshake_ok": 1}), counter(checks), counter({"owed": 3})
    )
    return Report("tiny", (one,), **more)


def test_a_complete_report_passes_and_says_so() -> None:
    report = _complete()
    assert report.passed
    assert told(report).endswith("PASS")
    body = report.body()
    assert (body["states"], body["edges"], body["reasons"]) == (2, 3, {"handshake_ok": 1})
    assert set(body) >= {"rows", "reasons", "properties", "mutants", "states", "edges"}


@pytest.mark.parametrize("caught_by", [None, "EDGES"])
def test_a_fault_that_survives_or_is_caught_by_another_property_fails(caught_by: str | None) -> None:
    report = _complete(mutants=(MutantResult("no-ttl", ("FINITE",), caught_by, "no-ttl: survived", 1.0),))
    assert not report.passed
    assert "MISSED no-ttl" in told(report)
    assert report.body()["mutants"] == {"no-ttl": caught_by}


def test_a_property_that_was_never_checked_fails() -> None:
    report = _complete()
    del report.explorations[0].checks["PROOF"]
    assert report.unchecked == ("PROOF",)
    assert not report.passed


def test_states_are_the_published_ones() -> None:
    assert {state for edge in published.EDGES for state in edge} == {state.value for state in State}
