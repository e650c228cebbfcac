"""Machines with clocks of their own, and the one place where the shell's clock and dice are replaced by theirs."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jumpvpn.runtime import clock
from jumpvpn.values import MILLISECOND, Instant, Now

WALL_MS = 1_700_000_000_000  # of every machine whose wall clock is right, at the beginning of time


@dataclass(slots=True)
class Machine:
    """``time`` tells the true time (ns); the boot clock runs at ``ppm`` off its speed, from an offset of its own.

    ``skew_ms``: how wrong the wall clock is.
    """

    name: str
    time: Callable[[], int]
    offset: int = 0
    ppm: int = 0
    skew_ms: int = 0

    def boot(self) -> Instant:
        """Its boot clock (ns)."""
        now = self.time()
        return Instant(now + self.offset + now * self.ppm // 1_000_000)

    def true(self, boot: int) -> int:
        """The true time (ns) at which its boot clock shows ``boot``."""
        return (boot - self.offset) * 1_000_000 // (1_000_000 + self.ppm)

    def wall_ms(self) -> int:
        """Its wall clock (ms)."""
        return WALL_MS + self.time() // MILLISECOND + self.skew_ms

    def now(self) -> Now:
        """Both clocks."""
        return Now(self.boot(), self.wall_ms())

    @property
    def boot_id(self) -> str:
        """Of the one boot that it has."""
        return f"{self.name}boot"


HERE: ContextVar[Machine] = ContextVar("HERE")


@contextmanager
def replaced(dice: random.Random) -> Iterator[None]:
    """Within this block ``runtime.clock`` reads the machine of the running context, and ``secrets`` draws from
    ``dice``: the shell is asked for no other source of time or chance."""
    names = {
        "boot_time": lambda: HERE.get().boot(), "wall_time_ms": lambda: HERE.get().wall_ms(),
        "wall_time_ns": lambda: HERE.get().wall_ms() * MILLISECOND, "now": lambda: HERE.get().now(),
        "boot_id": lambda: HERE.get().boot_id,
    }  # fmt: skip
    before = {name: getattr(clock, name) for name in names}
    drawn = {"token_bytes": dice.randbytes, "token_hex": lambda count: dice.randbytes(count).hex()}
    kept = {name: getattr(secrets, name) for name in drawn}
    try:
        for name, value in names.items():
            setattr(clock, name, value)
        for name, draw in drawn.items():
            setattr(secrets, name, draw)
        yield
    finally:
        for name, value in before.items():
            setattr(clock, name, value)
        for name, value in kept.items():
            setattr(secrets, name, value)
