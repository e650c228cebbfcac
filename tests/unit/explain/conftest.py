"""Options of these tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rewrite-explain`` writes what is said now into golden/; read the difference as the on-call person would."""
    parser.addoption("--rewrite-explain", action="store_true", default=False, help="rewrite tests/unit/explain/golden")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are written instead of compared."""
    return bool(request.config.getoption("--rewrite-explain", default=False))
