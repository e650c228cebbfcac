"""Sending at a steady rate by sleeping to absolute deadlines, without making up for lost time in bursts."""

import time
from dataclasses import dataclass


def boot_ns() -> int:
    """Return nanoseconds of CLOCK_BOOTTIME, the one clock of all logs: every namespace shares it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Pacer:
    """A schedule of one deadline per `interval_ns`; of missed deadlines, at most `allowance` are made up for."""

    interval_ns: int
    next_ns: int
    allowance: int = 3

    def due(self, now_ns: int) -> int:
        """Return how many deadlines to serve now, and move on to the next one."""
        behind = (now_ns - self.next_ns) // self.interval_ns + 1
        if behind <= 0:
            return 0
        self.next_ns += behind * self.interval_ns
        return min(behind, self.allowance)

    def wait_s(self, now_ns: int) -> float:
        """Return the seconds until the next deadline."""
        return max(0, self.next_ns - now_ns) / 1e9
