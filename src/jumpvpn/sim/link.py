"""What lies between one interface of the client and the gateway."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from jumpvpn.values import MILLISECOND


@dataclass(slots=True)
class Link:
    """One way. ``address`` is what the gateway sees as its source, ``local`` what the interface has.

    Delays in ns and per direction; probabilities 0..1 per datagram. ``loss`` is what measurements show although nothing
    is lost.
    """

    address: str
    local: str = ""
    delay: int = 10 * MILLISECOND
    up: bool = True  # the interface exists; netlink tells when not
    passes: bool = True  # packets arrive; a black hole tells nobody
    passes_up: bool = True  # towards the gateway
    passes_down: bool = True  # towards the client
    loss: float = 0.0
    lose: float = 0.0
    jitter: int = 0  # each datagram takes up to this much longer: more than their spacing reorders them
    twice: float = 0.0  # arrives as two copies
    drop: Callable[[str], bool] = lambda _kind: False  # by kind of message

    @property
    def shown_loss(self) -> float:
        """The loss ratio that reports tell."""
        return max(self.loss, self.lose)

    def flights(self, kind: str, passes: bool, dice: random.Random | None) -> tuple[int, ...]:
        """When the copies of a datagram arrive, as delays (ns); empty when it is lost."""
        if not (self.up and self.passes and passes) or self.drop(kind):
            return ()
        if dice is None or not (self.lose or self.jitter or self.twice):
            return (self.delay,)
        if dice.random() < self.lose:
            return ()
        copies = 2 if dice.random() < self.twice else 1
        return tuple(self.delay + (dice.randrange(self.jitter) if self.jitter else 0) for _ in range(copies))

    def calm(self) -> None:
        """Everything passes again, quickly."""
        self.passes = self.passes_up = self.passes_down = True
        self.loss = self.lose = self.twice = 0.0
        self.delay, self.jitter = 10 * MILLISECOND, 0
        self.drop = lambda _kind: False
