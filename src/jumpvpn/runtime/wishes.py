"""Which addresses are to be announced or withdrawn next: the newest wish per address, failures again after a pause.

No I/O and no clock: instants (seconds of any steady clock) are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FIRST_PAUSE_S = 0.5  # before the second try; doubled by every failure
LONGEST_PAUSE_S = 30.0  # a routing daemon that comes back is used again within this


@dataclass(frozen=True, slots=True)
class Batch:
    """Addresses with the same wish (``acquire``, else release), to be carried out together."""

    acquire: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pause:
    acquire: bool
    tries: int
    until: float


class Wishes:
    """At most one wish per address is open, so the queue is never longer than there are addresses.

    ``take`` hands out one batch at a time; ``settle`` says how it went before the next one is taken, so the wishes of
    one address are carried out in their order. First tries and later ones never share a batch: what fails for good
    delays nobody else's first try by more than its own turn.
    """

    def __init__(self) -> None:
        self._ready: dict[tuple[bool, bool], dict[str, int]] = {  # (acquire, tried before): address -> failures so far
            (True, False): {}, (False, False): {}, (True, True): {}, (False, True): {},
        }  # fmt: skip
        self._paused: dict[str, _Pause] = {}
        self._next_due = float("inf")
        self._taken: dict[str, int] = {}

    def put(self, address: str, acquire: bool) -> None:
        """Wish for ``address``; an older wish that was not begun is forgotten."""
        self.drop(address)
        self._ready[acquire, False][address] = 0

    def drop(self, address: str) -> None:
        """Forget what was wished for ``address`` and not begun."""
        for ready in self._ready.values():
            ready.pop(address, None)
        self._paused.pop(address, None)

    def take(self, now: float, most: int) -> Batch | None:
        """Up to ``most`` addresses whose turn has come, oldest first; None when nothing is to be done now."""
        self._wake(now)
        for key in tuple(self._ready):
            if ready := self._ready[key]:
                self._ready[key] = self._ready.pop(key)  # whose turn it was is last next time
                addresses = tuple(address for address, _ in zip(ready, range(most), strict=False))
                self._taken = {address: ready.pop(address) for address in addresses}
                return Batch(key[0], addresses)
        return None

    def settle(self, batch: Batch, failed: Iterable[str], now: float) -> float:
        """The batch was tried; ``failed`` is tried again unless a newer wish came. The longest pause, in seconds."""
        longest = 0.0
        for address in failed:
            failures = self._taken[address] + 1
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
            longest = max(longest, pause)
            if not any(address in ready for ready in self._ready.values()):
                self._paused[address] = _Pause(batch.acquire, failures, now + pause)
                self._next_due = min(self._next_due, now + pause)
        self._taken = {}
        return longest

    def due(self) -> float | None:
        """When the next pause ends; None when none is running."""
        return self._next_due if self._paused else None

    def _wake(self, now: float) -> None:
        if now < self._next_due:
            return
        for address, pause in list(self._paused.items()):
            if pause.until <= now:
                del self._paused[address]
                self._ready[pause.acquire, True][address] = pause.tries
        self._next_due = min((pause.until for pause in self._paused.values()), default=float("inf"))
