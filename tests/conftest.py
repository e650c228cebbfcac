"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run of continuous integration: a new counterexample is found by people, and then kept.
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("dev", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
