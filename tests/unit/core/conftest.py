"""What the core's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jumpvpn.sim.judge import journal_judge
from jumpvpn.sim.world import World


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite`` writes what the machine does now into tests/scenarios; the difference is reviewed as code."""
    parser.addoption("--rewrite", action="store_true", default=False, help="rewrite the transcripts in tests/scenarios")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are written instead of compared."""
    return bool(request.config.getoption("--rewrite", default=False))


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the nodes of a test's worlds recorded breaks no rule of the auditor."""
    worlds: list[World] = []
    build = World.__init__

    def recorded(world: World, *args: Any, **options: Any) -> None:
        build(world, *args, **{"journals": True, **options})
        worlds.append(world)

    monkeypatch.setattr(World, "__init__", recorded)
    yield
    for world in worlds:
        for journal in world.journals.values():
            journal.close(world.clock())
        lines = (line for journal in world.journals.values() for line in journal.lines)
        assert [complaint.text for complaint in journal_judge(lines)] == []
