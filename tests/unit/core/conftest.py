"""Options of the core's tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite`` writes what the machine does now into tests/scenarios; the difference is reviewed as code."""
    parser.addoption("--rewrite", action="store_true", default=False, help="rewrite the transcripts in tests/scenarios")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are written instead of compared."""
    return bool(request.config.getoption("--rewrite", default=False))
