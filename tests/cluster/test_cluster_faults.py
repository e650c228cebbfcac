"""Whatever is done to a real cluster: sessions keep their identity, nobody acts twice, and traffic comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jumpvpn.lab.cluster.scenario import FIXED, Scenario
from jumpvpn.lab.cluster.trial import run

pytestmark = pytest.mark.netns


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scenario", FIXED, ids=lambda scenario: scenario.name)
async def test_every_promise_holds(scenario: Scenario, tmp_path: Path) -> None:
    outcome = await run(scenario, lambda words: print(words, file=sys.stderr), tmp_path)
    assert outcome.ok, f"{outcome.explain()}\nwhat it left: {tmp_path}"
