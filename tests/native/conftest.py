"""What the tests of the packet core share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from native.harness import Pair, Second


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client and a gateway with a session between them."""
    with Pair() as pair:
        yield pair.establish()


@pytest.fixture
def second(pair: Pair) -> Iterator[Second]:
    """Another gateway of the cluster, for the client of ``pair``."""
    with Second(pair) as second:
        yield second
