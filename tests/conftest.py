"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The same examples in every run of continuous integration: a new counterexample is found by people, and then kept.
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("dev", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--audit-output=FILE`` keeps what the journals of real nodes exercised, for the table of coverage."""
    parser.addoption("--audit-output", default=None, help="write what the journals of real nodes exercised, as JSON")
