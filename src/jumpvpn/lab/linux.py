"""The Linux calls that Python 3.11 has no names for: unshare(2) and two prctl(2) settings."""

import ctypes
import os

CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
_PR_SET_TIMERSLACK = 29

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move the calling, single-threaded process into new namespaces; raises OSError."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def set_timer_slack(slack_ns: int) -> None:
    """Let sleeps of this thread end at most `slack_ns` late (the default of 50 us would blur a 1 kHz schedule)."""
    _libc.prctl(ctypes.c_int(_PR_SET_TIMERSLACK), ctypes.c_ulong(slack_ns), *(ctypes.c_ulong(0),) * 3)
