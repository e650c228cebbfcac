"""The clocks of this machine, read in one place."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from pathlib import Path

from jumpvpn.values import Instant, Now

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_time() -> Instant:
    """Nanoseconds since boot, suspend included (CLOCK_BOOTTIME)."""
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def wall_time_ms() -> int:
    """Unix time in milliseconds, UTC; for people and peers, never for ordering."""
    return time.time_ns() // 1_000_000


def wall_time_ns() -> int:
    """Unix time in nanoseconds, UTC: the handshake's timestamp."""
    return time.time_ns()


def now() -> Now:
    """Both clocks, read once per loop turn."""
    return Now(boot=boot_time(), wall_ms=wall_time_ms())


async def until(event: asyncio.Event, due: Instant | None) -> None:
    """Return when ``event`` is set, which also happens when the boot clock comes to ``due`` (None: never)."""
    alarm = None
    if due is not None:
        alarm = asyncio.get_running_loop().call_later(max(0.0, (due - boot_time()) / 1e9), event.set)
    try:
        await event.wait()
    finally:
        if alarm is not None:
            alarm.cancel()


@cache
def boot_id() -> str:
    """Identifier of this boot of the kernel, without dashes, read once; ``unknown`` where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")
    except OSError:
        return "unknown"
