"""What a long run says meanwhile; worker processes say it themselves, so all of this can be handed to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic

Progress = Callable[[str], None]


class Told:
    """Lines on standard error, not more often than every two seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, line: str) -> None:
        """Say ``line`` if the last one was some time ago."""
        if monotonic() - self._last >= 2.0:
            self._last = monotonic()
            print(line, file=sys.stderr, flush=True)


def silent(_line: str) -> None:
    """Say nothing."""
