"""The Linux calls that Python 3.11 has no names for: unshare(2), inotify(7) and a prctl(2) setting."""

import ctypes
import os

CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
_PR_SET_TIMERSLACK = 29
_IN_MODIFY = 0x2
_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move the calling, single-threaded process into new namespaces; raises OSError."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def set_timer_slack(slack_ns: int) -> None:
    """Let sleeps of this thread end at most `slack_ns` late (the default of 50 us would blur a 1 kHz schedule)."""
    _libc.prctl(ctypes.c_int(_PR_SET_TIMERSLACK), ctypes.c_ulong(slack_ns), *(ctypes.c_ulong(0),) * 3)


def watch_directory(path: os.PathLike[str]) -> int:
    """Return a non-blocking descriptor that is readable when a file in the directory appears or grows; OSError."""
    descriptor = _libc.inotify_init1(ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))
    wanted = ctypes.c_uint32(_IN_MODIFY | _IN_CREATE | _IN_MOVED_TO)
    if descriptor < 0 or _libc.inotify_add_watch(ctypes.c_int(descriptor), os.fsencode(path), wanted) < 0:
        number = ctypes.get_errno()
        if descriptor >= 0:
            os.close(descriptor)
        raise OSError(number, os.strerror(number), "inotify")
    return int(descriptor)
