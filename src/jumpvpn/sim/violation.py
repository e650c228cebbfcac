"""What a broken promise looks like."""

from __future__ import annotations

from jumpvpn.properties import Property


class Violated(AssertionError):
    """``prop`` does not hold: ``expected`` says what should be, ``seen`` what is."""

    def __init__(self, prop: Property, expected: str, seen: str) -> None:
        super().__init__(f"{prop.name}: expected {expected}; {seen}")
        self.prop = prop
        self.expected = expected
        self.seen = seen
