"""What the tests with real nodes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jumpvpn.lab import Lab, LabError


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(seed=5)
    try:
        lab.open()
    except LabError as error:
        pytest.skip(str(error))
    try:
        if (missing := lab.missing_tun()) is not None:
            pytest.skip(missing)
        yield lab
    finally:
        lab.close()
